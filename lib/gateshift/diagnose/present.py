"""How causes are shown and kept: the ranked table of a notebook, and the archive's JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from gateshift.diagnose.causes import KNOWN, TREES
from gateshift.diagnose.model import Cause, Level
from gateshift.notebook.show import Table

__all__ = ["archived", "catalogue", "sentence", "table"]

_STANDING = {Level.ERROR: "fail", Level.WARNING: "warn", Level.INFO: "info"}


def table(causes: Sequence[Cause]) -> Table:
    """Return the ranked causes as a table: standing, confidence, cause, evidence, remedy, by hand."""
    rows = tuple(
        (
            _STANDING[c.level],
            f"{c.confidence:.0%}",
            c.shown or c.title,
            c.evidence,
            c.remedy,
            c.equivalent,
            c.reference,
        )
        for c in causes
    )
    errors = sum(c.level == Level.ERROR for c in causes)
    title = f"Ranked causes: {errors} that explain the symptom, {len(causes) - errors} to know"
    columns = ("", "confidence", "cause", "evidence", "remedy", "check by hand", "see")
    return Table(title if causes else "No findings", columns, rows)


def archived(causes: Sequence[Cause], redact: Callable[[str], str] = str) -> str:
    """Return the causes as the archive keeps them (JSON); *redact* takes secrets out of the text."""
    kept = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "causes": [c.as_json() for c in causes]}
    return redact(json.dumps(kept, indent=1)) + "\n"


def sentence(causes: Sequence[Cause], most: int = 3) -> str:
    """Return the likeliest causes in one line, for a checklist; empty when nothing explains the symptom."""
    named = [f"{c.title} ({c.confidence:.0%})" for c in causes if c.level == Level.ERROR]
    return "; ".join(named[:most])


def catalogue() -> str:
    """Return every cause that can be named, as the Markdown of docs/troubleshooting.md, tree by tree."""
    lines: list[str] = []
    tree = ""
    for code, known in KNOWN.items():
        if known.tree == "any":
            continue
        if known.tree != tree:
            tree = known.tree
            lines += ["", f'<a id="{tree}"></a>', "", f"### {tree}: {TREES[tree]}", ""]
            lines += ["| code | cause | level | confidence |", "|---|---|---|---|"]
        lines.append(f"| `{code}` | {known.title} | {known.level} | {known.confidence:.0%} |")
    return "\n".join(lines).strip()
