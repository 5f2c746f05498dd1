"""The summary of a rehearsed migration, computed from its journal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from gateshift.migration.journal import Record, read_records
from gateshift.notebook.show import wrapped
from gateshift.rehearse.director import Director
from gateshift.words import gloss, tell, term

__all__ = ["folded", "stage_table"]


def stage_table(title: str, director: Director) -> str:
    """Render one row a stage (weight, share, requests, errors, P95, verdict, time), then a rollback."""
    records = read_records(director.folder / "journal.jsonl")
    head = tell("rehearse.head", migration=director.migration, title=title)
    table = Table(title=head, title_justify="left")
    for name in ("stage", "weight", "observed", "requests", "errors", "P95", "verdict", "time"):
        table.add_column(term(name), justify="left" if name in {"verdict"} else "right")
    rows = _rows(records)
    for stage in sorted(rows):
        table.add_row(*_cells(stage, rows[stage]))
    text = io.StringIO()
    width = _width()
    console = Console(file=text, width=width, force_terminal=False)
    if rows:
        console.print(table)
    else:
        console.print(f"{head}: {tell('rehearse.none')}", markup=False, highlight=False)
    for record in records:
        if record.kind == "rollback.done":
            for line, indent in _rollback(record.data):
                # In columns of the terminal: a Chinese character takes two.
                parts = wrapped(line, width - len(indent) - 2)
                shown = [f"{indent}{'  ' if i else ''}{part}" for i, part in enumerate(parts)]
                console.print(*shown, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return text.getvalue().rstrip()


def _width() -> int:
    """Return the columns to write in: the terminal's; a pipe or a CI log gets 100."""
    return min(120, max(60, shutil.get_terminal_size((100, 24)).columns))


def folded(text: str) -> str:
    """Return *text* in lines no wider than the terminal, broken between words; a path stays in one piece."""
    lines = (wrapped(line, _width() - 2, paths_whole=True) for line in text.splitlines())
    return "\n".join(f"{'  ' if i else ''}{part}" for one in lines for i, part in enumerate(one))


def _rows(records: tuple[Record, ...]) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.kind == "stage.entered":
            rows.setdefault(record.data["stage"], {"weight": record.data["weight"], "begun": record.time})
        elif record.kind == "verdict":
            row = rows[record.data["stage"]]
            row.update(record.data["observed"], verdict=record.data["decision"], ended=record.time)
    return rows


def _cells(stage: int, row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = "—"
    if "ended" in row:
        elapsed = datetime.fromisoformat(row["ended"]) - datetime.fromisoformat(row["begun"])
        seconds = f"{elapsed.total_seconds():.0f} s"
    p95 = row.get("p95_ms")
    share = row.get("share_percent")
    return (
        str(stage + 1),
        f"{row['weight']} %",
        "—" if share is None else f"{share:.1f} %",
        f"{row.get('requests', 0):.0f}",
        f"{row.get('errors', 0):.0f}",
        "—" if p95 is None else f"{p95:.0f} ms",
        term(str(row.get("verdict", "none: held"))),
        seconds,
    )


def _rollback(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a rollback, each with its indent."""
    users, dns = data.get("seconds_to_users"), f"{data['seconds_to_dns']:.1f}"
    if users is None:
        yield tell("rehearse.back.unproven", dns=dns), ""
    else:
        yield tell("rehearse.back", dns=dns, users=f"{users:.1f}"), ""
    for what, standing, detail in data["checklist"]:
        yield f"[{tell(f'standing.{standing}')}] {gloss(what)}: {gloss(detail)}", "  "
