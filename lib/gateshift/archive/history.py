"""List migrations and how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateshift.archive.audit import migrations_in
from gateshift.errors import JournalError
from gateshift.migration.journal import read_records
from gateshift.migration.state import Phase, State, fold

__all__ = ["Entry", "listing", "outcome_of"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One migration. Times are UTC texts; ``weight_percent`` is on Istio."""

    migration: str
    began: str
    last: str
    phase: str
    outcome: str
    weight_percent: int
    runs: int
    rollbacks: int
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def outcome_of(state: State) -> str:
    """Say in a few words how the migration stands."""
    if state.rolling_back:
        return "rollback under way"
    words = {
        Phase.ROLLED_BACK: "rolled back",
        Phase.CLEANED: "done, APISIX removed",
        Phase.SOAKED: "stable on Istio",
        Phase.SOAK: "on Istio, stable run",
    }
    if state.phase in words:
        return words[state.phase]
    if state.phase is Phase.CANARY:
        if state.weight_percent == 100 and state.stage_entered is None:
            return "all stages promoted"
        return f"canary at {state.weight_percent} %"
    return state.phase.value


def listing(outputs: Path) -> list[Entry]:
    """Return every migration under *outputs*, newest last; a damaged one is listed with its problem."""
    entries = []
    for folder in migrations_in(outputs):
        try:
            records = read_records(folder / "journal.jsonl")
            state = fold(records)
        except JournalError as error:
            entries.append(Entry(folder.name, "", "", "unknown", "damaged", 0, 0, 0, str(error)))
            continue
        entries.append(
            Entry(
                migration=folder.name,
                began=records[0].time if records else "",
                last=records[-1].time if records else "",
                phase=state.phase.value,
                outcome=outcome_of(state),
                weight_percent=state.weight_percent,
                runs=len(state.runs),
                rollbacks=sum(r.kind == "rollback.done" for r in records),
            )
        )
    return sorted(entries, key=lambda e: e.last)
