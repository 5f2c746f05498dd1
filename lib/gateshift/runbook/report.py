"""The report, and troubleshooting: runbooks that only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from IPython.display import HTML

from gateshift import diagnose
from gateshift.notebook.show import Card, Note, Table
from gateshift.params import Params
from gateshift.runbook.base import Runbook
from gateshift.runbook.standing import phase_words
from gateshift.words import tell

__all__ = ["Report", "Troubleshoot"]


class Troubleshoot(Runbook):
    """``90_troubleshoot``: from symptom to cause, read-only."""

    name: ClassVar[str] = "90_troubleshoot"
    title: ClassVar[str] = "Troubleshoot"
    changes: ClassVar[bool] = False
    own: ClassVar[frozenset[str]] = frozenset({"symptom", "host", "path"})

    def __init__(self, params: Params, extra: Mapping[str, Any]) -> None:
        super().__init__(params, extra)
        self.causes: tuple[Any, ...] = ()

    def read(self) -> object:
        """Run the probes."""
        self.causes = diagnose.run(
            str(self.extra.get("symptom") or ""),
            self.context,
            host=str(self.extra.get("host") or ""),
            path=str(self.extra.get("path") or "/"),
        )
        rows = tuple((c.level, c.title, c.evidence, c.remedy, c.equivalent) for c in self.causes)
        columns = ("level", "cause", "evidence", "remedy", "by hand")
        return Table("Ranked causes" if rows else "No findings", columns, rows)

    def check(self) -> object:
        """Say what was found."""
        (self.context.run_folder / "causes.json").write_text(
            json.dumps([[c.level, c.title, c.evidence] for c in self.causes], indent=1)
        )
        return Note("info", f"{len(self.causes)} findings")


class Report(Runbook):
    """``99_report``: the whole migration as one self-contained page."""

    name: ClassVar[str] = "99_report"
    title: ClassVar[str] = "Report"
    changes: ClassVar[bool] = False

    def read(self) -> object:
        """Write the report and show where it is."""
        from gateshift.archive.report import write_report  # noqa: PLC0415 - nbformat takes seconds to load

        self.path = write_report(self.context.folder)
        return HTML(f"<p>Report: <code>{self.path.name}</code></p>")

    def check(self) -> object:
        """Show the outcome as the state machine has it."""
        state = self.context.state
        return Card(
            tell("card.outcome"),
            self.context.production,
            {tell("card.phase"): phase_words(state.phase.value), tell("card.report"): self.path.name},
        )
