"""README.md and README.zh-CN.md say the same: headings, links, notebooks, verbs and make targets of both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def headings(text: str) -> list[int]:
    """The level of each heading, in order: what stands in them differs by language."""
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code, re.MULTILINE)]


def links(text: str) -> set[str]:
    """Where the page leads to, but for the other language."""
    return set(re.findall(r"\]\(([^)#]+)", text)) - {"README.md", "README.zh-CN.md"}


def runbooks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\d\d_\w+)` \| (.+?) \|", text, re.MULTILINE)


def commands(text: str) -> set[str]:
    """The verbs of gateshift and the make targets that are named anywhere."""
    return set(re.findall(r"\b(?:gateshift|make) [a-z][a-z-]*(?: --in)?", text))


@pytest.mark.parametrize("of", [headings, links, runbooks])
def test_both_have_the_same(of: Callable[[str], object]) -> None:
    found = of(ENGLISH)
    assert found, "nothing was read: is the pattern still right?"
    assert of(CHINESE) == found


def test_the_chinese_page_lacks_no_command() -> None:
    assert commands(ENGLISH) - commands(CHINESE) == set()
    # The way back is named in both; English has it behind the link to the page for people on call.
    assert commands(CHINESE) - commands(ENGLISH) <= {"gateshift rollback"}
