"""The page for people on call is one screen: nothing beside it, no command cut off, not more than fits."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docs import _hooks

PAGE = Path(__file__).resolve().parents[2] / "docs" / _hooks.ONE_SCREEN


def rendered(name: str) -> tuple[str, dict[str, Any]]:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=name), meta={})
    return _hooks.on_page_markdown("text", page), page.meta


def test_it_has_the_whole_screen_and_no_other_page_has() -> None:
    text, meta = rendered(_hooks.ONE_SCREEN)
    assert 'class="one-screen"' in text
    assert meta == {"hide": ["navigation", "toc"]}
    assert rendered("index.md") == ("text", {})


def test_it_is_not_longer_than_what_was_seen_to_fit() -> None:
    """At 1440 x 900 in Chromium it ends at 700 pixels, with 40 lines of at most 120 characters."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 45
    commands = [line for line in lines if re.match(r"\$ ", line)]
    assert commands
    assert max(map(len, commands)) <= 110, "it would be cut off"
