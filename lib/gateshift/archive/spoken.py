"""The report's sentences, in the language in use: what a journal's record means to a reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gateshift.migration.journal import Record
from gateshift.words import decision_words, gloss, known, tell, term

__all__ = ["column", "listed", "outcome_words", "said"]

Data = Mapping[str, Any]


def column(text: str) -> str:
    """Return a column's or row's name in the language in use; what the catalogue lacks stays as it is."""
    key = f"report.col.{_slug(text)}"
    return tell(key) if known(key) else text


def outcome_words(word: str) -> str:
    """Return the few words that say how a migration stands."""
    key = f"report.word.{_slug(word)}"
    return tell(key) if known(key) else word


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def listed(value: Any) -> str:
    """Return a list of reasons as one text, as far as they are known in the language in use."""
    if isinstance(value, (list, tuple)):
        return gloss("; ".join(str(v) for v in value))
    return gloss(str(value or ""))


def _seconds(value: Any) -> str:
    return "?" if value is None else f"{float(value):.1f} s"


def said(record: Record) -> str | None:
    """Return what *record* says to a reader, or None when it says nothing to one."""
    make = _SAID.get(record.kind)
    return make(record.data) if make else None


def _checked(what: str) -> Callable[[Data], str]:
    def make(data: Data) -> str:
        if data.get("ok"):
            return tell(f"report.said.{what}_passed")
        return tell(f"report.said.{what}_failed", what=listed(data.get("failed")))

    return make


def _plain(key: str, **values: Callable[[Data], Any]) -> Callable[[Data], str]:
    return lambda data: tell(f"report.said.{key}", **{name: of(data) for name, of in values.items()})


def _stage(data: Data) -> int:
    return int(data["stage"]) + 1


_SAID: Mapping[str, Callable[[Data], str]] = {
    "migration.opened": _plain("migration_opened"),
    "preflight.done": _checked("preflight"),
    "verify.done": _checked("verification"),
    "install.done": _plain("install_done", version=lambda d: d.get("version", "")),
    "apply.done": _plain("apply_done", objects=lambda d: d.get("objects", "?")),
    "stage.entered": _plain("stage_entered", stage=_stage, weight=lambda d: d["weight"]),
    "shift.intent": _plain("shift_intent", before=lambda d: d["from"], after=lambda d: d["to"]),
    "shift.done": _plain(
        "shift_done",
        to=lambda d: d["to"],
        accepted=lambda d: _seconds(d.get("accepted_s")),
        insync=lambda d: _seconds(d.get("insync_s")),
    ),
    "stage.arrived": _plain("stage_arrived", stage=_stage, share=lambda d: f"{float(d['share']):.1f}"),
    "verdict": _plain(
        "verdict",
        stage=_stage,
        decision=lambda d: decision_words(str(d["decision"])),
        reasons=lambda d: listed(d.get("reasons")),
    ),
    "stage.promoted": _plain("stage_promoted", stage=_stage),
    "rollback.started": _plain(
        "rollback_started", before=lambda d: d["from"], reason=lambda d: gloss(d["reason"])
    ),
    "rollback.shifted": _plain("rollback_shifted"),
    "rollback.done": lambda d: tell(
        "report.said.rollback_done"
        if d.get("seconds_to_users", 0) is not None
        else "report.said.rollback_unproven"
    ),
    "soak.sample": lambda d: tell(
        "report.said.soak_stable" if d.get("stable", True) else "report.said.soak_unstable"
    ),
    "soak.done": _plain("soak_done"),
    "cleanup.intent": _plain("cleanup_intent", export=lambda d: d.get("export")),
    "cleanup.done": _plain("cleanup_done"),
    "journal.repaired": _plain("journal_repaired", bytes=lambda d: d["dropped_bytes"]),
    "reconciled": _plain("reconciled", weight=lambda d: d["weight"]),
    "run.ended": lambda d: tell(
        "report.said.run_ended_why" if d.get("error") else "report.said.run_ended",
        notebook=d["notebook"],
        outcome=term(str(d["outcome"])),
        error=gloss(str(d.get("error") or "")),
    ),
}
