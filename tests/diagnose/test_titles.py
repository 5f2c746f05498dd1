"""Titles of causes in Chinese: complete, with the same words to fill in; the archive stays in English."""

from __future__ import annotations

import json
from collections.abc import Iterator
from string import Formatter

import pytest

from gateshift import words
from gateshift.diagnose.causes import KNOWN, TITLES, found
from gateshift.diagnose.present import archived, table


@pytest.fixture
def chinese() -> Iterator[None]:
    words.use("zh")
    yield
    words.use("")


def _fields(text: str) -> list[str]:
    return sorted(f"{name}:{spec}" for _, name, spec, _ in Formatter().parse(text) if name is not None)


def test_every_cause_has_a_title_in_chinese_with_the_same_words() -> None:
    assert list(TITLES["zh"]) == list(KNOWN)
    assert {c for c, k in KNOWN.items() if _fields(k.title) != _fields(TITLES["zh"][c])} == set()
    assert all(any("\u4e00" <= ch <= "\u9fff" for ch in title) for title in TITLES["zh"].values())


@pytest.mark.usefixtures("chinese")
def test_people_see_chinese_and_the_archive_keeps_english() -> None:
    cause = found("service-port", "it has [80]", "gateshift install --act", port=443)
    assert "网关的 Service 没有端口 443" in str(table([cause]).rows)
    (kept,) = json.loads(archived([cause]))["causes"]
    assert kept["title"] == "the gateway's Service has no port 443"
    assert "shown" not in kept


def test_english_is_shown_as_it_is_kept() -> None:
    cause = found("service-port", "it has [80]", "gateshift install --act", port=443)
    assert "the gateway's Service has no port 443" in str(table([cause]).rows)
