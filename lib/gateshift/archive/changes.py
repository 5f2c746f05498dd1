"""What really changed in the cluster and in DNS, as unified diffs; the newest run beside the one before."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateshift.archive.snapshots import read_snapshot
from gateshift.archive.spoken import listed
from gateshift.migration.records import Record
from gateshift.words import decision_words, gloss, term

__all__ = ["Change", "changes", "compared"]

_MOST_LINES = 400
"""Lines of one diff in the report; the snapshots themselves are in the archive."""

_OF_SERVER = (
    "managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink",
)  # fmt: skip


class Change(NamedTuple):
    """One change: UTC time, run, what it is of, and the unified diff."""

    time: str
    run: str
    what: str
    diff: str


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).splitlines()


def _diff(before: Any, after: Any, name: str) -> str:
    found = list(
        difflib.unified_diff(
            _lines(before), _lines(after), f"{name} before", f"{name} after", lineterm="", n=3
        )
    )
    if len(found) > _MOST_LINES:
        found[_MOST_LINES:] = [f"... {len(found) - _MOST_LINES} more lines"]
    return "\n".join(found)


def changes(migration: Path, records: Sequence[Record]) -> list[Change]:
    """Return every change on record in the order of its outcome; a snapshot that is missing says so."""
    found: list[Change] = []
    before: Any = None
    objects: Record | None = None
    for record in records:
        if record.kind in {"shift.intent", "prepare.intent"}:
            before = record.data.get("snapshot")
        elif record.kind == "shift.done" and "snapshot" in record.data:
            found += _one(record, "DNS", before, record.data["snapshot"])
            before = record.data["snapshot"]
        elif record.kind == "rollback.done" and before is not None:
            # The way back reads no snapshot before it moves; its evidence has the one of after.
            try:
                after = json.loads((migration / record.run / "evidence" / "weights.json").read_text("utf-8"))
            except (OSError, ValueError):
                continue
            found += _one(record, "DNS", before, after)
            before = after
        elif record.kind == "apply.intent":
            objects = record
        elif record.kind == "apply.done" and objects is not None and objects.data.get("snapshot"):
            found += _objects(migration, record, str(objects.data["snapshot"]), record.data.get("after"))
    return found


def _one(record: Record, name: str, before: Any, after: Any) -> list[Change]:
    text = _diff(before, after, name)
    return [Change(record.time, record.run, name, text)] if text else []


def _bare(obj: Any) -> Any:
    if not isinstance(obj, Mapping):
        return obj
    out = {k: v for k, v in obj.items() if k != "status"}
    metadata = out.get("metadata")
    if isinstance(metadata, Mapping):
        out["metadata"] = {k: v for k, v in metadata.items() if k not in _OF_SERVER}
    return out


def _read(path: Path) -> dict[str, Any]:
    found = read_snapshot(path)["objects"]
    return {f"{o['kind']} {o.get('namespace') or ''}/{o['name']}": o for o in found}


def _objects(migration: Path, record: Record, before: str, after: Any) -> list[Change]:
    if not after:
        return []  # from before snapshots of after were kept; the plan below has its steps
    try:
        old, new = _read(migration / before), _read(migration / str(after))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Change(record.time, record.run, "cluster", f"the snapshots cannot be read: {error}")]
    found: list[Change] = []
    for name, entry in old.items():
        # What the snapshot of after does not list was deleted by the apply.
        now = new.get(name, {}).get("after")
        found += _one(record, name, _bare(entry.get("before")), _bare(now))
    return found


_COMPARED = ("requests", "errors", "p95_ms", "share_percent")


def compared(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Compare the newest run of a notebook with the run of the same notebook before it.

    Returns rows of (what, the one before, the newest); empty when there is only one.
    """
    runs: dict[str, list[str]] = {}
    for record in records:
        if record.kind == "run.started":
            of = runs.setdefault(str(record.data["notebook"]), [])
            if record.run not in of:
                of.append(record.run)
    started = (str(r.data["notebook"]) for r in reversed(records) if r.kind == "run.started")
    notebook = next((name for name in started if len(runs[name]) > 1), None)
    if notebook is None:
        return []
    old_run, new_run = runs[notebook][-2:]
    old, new = _facts(records, old_run), _facts(records, new_run)
    return [(name, old.get(name, ""), new.get(name, "")) for name in dict.fromkeys((*old, *new))]


def _facts(records: Sequence[Record], run: str) -> dict[str, str]:
    own = [r for r in records if r.run == run]
    first = next(r for r in own if r.kind == "run.started")
    end = next((r for r in records if r.kind == "run.ended" and str(r.data.get("run", r.run)) == run), None)
    facts = {
        "run": run,
        "began (UTC)": first.time[:19].replace("T", " "),
        "outcome": term(str(end.data["outcome"]) if end is not None else "under way or died"),
        "time": f"{end.unix - first.unix:.0f} s" if end is not None else "",
        # The engine ends a run that failed, and does not know what it was given.
        "inputs": next((r.inputs for r in reversed(own) if r.inputs), ""),
    }
    for record in own:
        if record.kind == "stage.entered":
            facts["weight"] = f"{record.data['weight']} %"
        elif record.kind == "verdict":
            facts["verdict"] = decision_words(str(record.data["decision"]))
            facts["reasons"] = listed(record.data.get("reasons"))
            seen = record.data.get("observed") or {}
            facts |= {name: f"{seen[name]:.4g}" for name in _COMPARED if seen.get(name) is not None}
        elif record.kind in {"preflight.done", "verify.done"}:
            failed = record.data.get("failed") or ()
            facts["failed"] = ", ".join(term(str(one)) for one in failed) or "-"
        elif record.kind == "rollback.done":
            seconds = record.data.get("seconds_to_users")
            facts["rollback: until users were back"] = (
                gloss("not proven") if seconds is None else f"{seconds:.0f} s"
            )
    return facts
