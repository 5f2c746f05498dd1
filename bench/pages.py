"""Pages of the documentation that benches write their figures into, between marks."""

from __future__ import annotations

from gateshift.runbook.inputs import project_root

__all__ = ["write_between"]


def write_between(name: str, marks: tuple[str, str], body: str) -> None:
    """Put *body* between *marks* in the page *name* of docs/; exits when the page lacks one of them."""
    page = project_root() / "docs" / name
    head, begin, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise SystemExit(f"{page} has no marks {marks}")
    page.write_text(f"{head}{begin}{body}{end}{tail}", encoding="utf-8")
