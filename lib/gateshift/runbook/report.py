"""The report, and troubleshooting: runbooks that only read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from IPython.display import HTML

from gateshift import diagnose
from gateshift.notebook.progress import say
from gateshift.notebook.show import Card, Note
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
    own: ClassVar[frozenset[str]] = frozenset({"symptom", "host", "path", "rule", "window"})

    def __init__(self, params: Params, extra: Mapping[str, Any]) -> None:
        self.causes: tuple[diagnose.Cause, ...] = ()
        super().__init__(params, extra)  # asks for the cluster already, see below

    def read(self) -> object:
        """Run the probes of the symptom (none given: of all) and show the causes, most likely first."""
        self.causes = diagnose.run(
            str(self.extra.get("symptom") or ""),
            self.context,
            host=str(self.extra.get("host") or ""),
            path=str(self.extra.get("path") or ""),
            rule=str(self.extra.get("rule") or ""),
            window=float(self.extra.get("window") or diagnose.WINDOW),
            progress=say,
        )
        return diagnose.table(self.causes)

    def _cluster_uid(self) -> str:
        """As ever; a cluster that gave no answer while it was diagnosed is not waited for once more."""
        silent = any(c.code == "not-known" and "API server" in c.evidence for c in self.causes)
        return "" if silent else super()._cluster_uid()

    def check(self) -> object:
        """Keep the causes in the archive and say what was found."""
        text = diagnose.archived(self.causes, self.context.journal.redactor.text)
        (self.context.run_folder / "causes.json").write_text(text)
        errors = [c for c in self.causes if c.level == "error"]
        self.record(
            "diagnose.done",
            symptom=str(self.extra.get("symptom") or ""),
            findings=len(self.causes),
            causes=[c.code for c in errors[:5]],
        )
        if not errors:
            return Note("pass", f"no finding of level error; {len(self.causes)} notes are in causes.json")
        first = errors[0]
        return Note("fail", f"{first.title} (confidence {first.confidence:.0%}); remedy: {first.remedy}")


class Report(Runbook):
    """``99_report``: the whole migration as one self-contained page."""

    name: ClassVar[str] = "99_report"
    title: ClassVar[str] = "Report"
    changes: ClassVar[bool] = False

    def read(self) -> object:
        """Write the report and show where it is."""
        from gateshift.archive.report import write_report  # noqa: PLC0415 - nbformat takes seconds to load

        self.path = write_report(self.context.folder, reporting=self.context.run)
        return HTML(f"<p>Report: <code>{self.path.name}</code></p>")

    def check(self) -> object:
        """Show the outcome as the state machine has it."""
        state = self.context.state
        return Card(
            tell("card.outcome"),
            self.context.production,
            {tell("card.phase"): phase_words(state.phase.value), tell("card.report"): self.path.name},
        )
