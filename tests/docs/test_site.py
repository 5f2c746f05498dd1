"""The site has every page that was written, and its generated pages have what they name."""

from __future__ import annotations

from pathlib import Path

from docs import _hooks
from gateshift.cli import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_no_generated_page_takes_the_place_of_a_written_one() -> None:
    """The page on translation was in the clone only: the one of examples had its name."""
    assert [path for path in _hooks.GENERATED if (DOCS / path).exists()] == []


def test_every_page_has_its_place_in_the_navigation() -> None:
    listed = {path for pages in _hooks.SECTIONS.values() for _, path in pages}
    written = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert listed == written | set(_hooks.GENERATED)


def test_the_options_of_every_form_of_a_command_are_listed() -> None:
    page = reference.commands_page()
    for text in (
        "## gateshift translate --in",
        "--istio-version",
        "## gateshift diagnose --files",
        "--junit",
    ):
        assert text in page
    assert "[ARGUMENTS]" not in page
