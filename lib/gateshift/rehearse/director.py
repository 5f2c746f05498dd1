"""Run one migration in the lab: the notebooks in order, gates answered by an operator who reads digests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateshift.cli.notebooks import run_notebook
from gateshift.cli.results import checks_of
from gateshift.cli.shared import short_path
from gateshift.errors import Interrupted, LabError
from gateshift.migration.journal import read_records
from gateshift.runbook.approvals import write_approval
from gateshift.words import gloss, term

__all__ = ["Director", "Leg"]

OPERATOR = "rehearsal operator"


@dataclass(frozen=True, slots=True)
class Leg:
    """One notebook that ran: its verb and label, exit code, seconds and archived copy."""

    verb: str
    label: str
    exit_code: int
    seconds: float
    path: Path
    error: str


@dataclass
class Director:
    """One migration. *on_record* sees each journal record as it is written (plain JSON)."""

    migration: str
    params_file: str
    outputs: Path
    overrides: Mapping[str, Any]
    narrate: Callable[[str], None]
    on_record: Callable[[Mapping[str, Any]], None] | None = None
    legs: list[Leg] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The migration's folder in the archive."""
        return self.outputs / self.migration

    def run(self, verb: str, *, label: str = "", expect: frozenset[int] = frozenset({0}), **own: Any) -> Leg:
        """Run one notebook; raises :class:`~gateshift.errors.LabError` when it does not end as expected.

        Raises :class:`~gateshift.errors.Interrupted` when a signal asked for the end of the rehearsal.
        """
        begun = time.monotonic()
        with self.watching():
            outcome = run_notebook(
                verb,
                self.params_file,
                {"migration": self.migration, "mode": "act", **self.overrides, **own},
                on_output=self._hear,
                label=label,
            )
        leg = Leg(verb, label, outcome.exit_code, time.monotonic() - begun, outcome.path, outcome.error or "")
        self.legs.append(leg)
        what = f"{verb} {label}".rstrip()
        if outcome.signal:
            raise Interrupted(
                f"the rehearsal was stopped by {outcome.signal} during {what}",
                hint=f"run `gateshift rehearse` again; what was done is in {short_path(self.folder)}",
            )
        if leg.exit_code not in expect:
            for check in checks_of(leg.path.parent):
                if check["result"] == "fail":  # in a pipeline's log this is all that is left of them
                    self.narrate(f"  [fail] {term(check['name'])}: {gloss(check['measured'])}")
            wanted = " or ".join(str(code) for code in sorted(expect))
            raise LabError(
                f"{what} ended with exit code {leg.exit_code}, expected {wanted}: {leg.error}",
                hint=f"look at {short_path(leg.path)}",
            )
        return leg

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Approve plans and pass records on while the block runs."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join(timeout=5)

    def _hear(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                self.narrate(line.rstrip())

    def _watch(self, done: threading.Event) -> None:
        """Approve each plan that is shown, as the operator of a rehearsal does, and pass records on."""
        path = self.folder / "journal.jsonl"
        seen = len(read_records(path)) if path.exists() else 0
        while not done.wait(0.1):
            if not path.exists():
                continue
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[seen:]:
                self._react(json.loads(line))
            seen = len(lines)

    def _react(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "plan.shown":
            plan = record["data"]["plan"]
            if plan["steps"]:
                write_approval(self.folder, plan["digest"], OPERATOR)
        if self.on_record is not None:
            self.on_record(record)
