"""``gateshift shift --act``: put the weights right, or the records back as they were, behind the same gates.

Weights rise only by a stage of 50_canary, because only there they are observed and judged, and fall only by
a rollback. What is left for a person's hand: setting again what somebody else changed, and the exact restore
of the records once the migration is back at 0 %.
"""

from __future__ import annotations

import time
from typing import ClassVar

from gateshift.errors import Blocked, InputError
from gateshift.migration.state import Phase
from gateshift.notebook.progress import say
from gateshift.notebook.show import Note
from gateshift.plan import Plan
from gateshift.runbook.base import Runbook
from gateshift.runbook.shifting import RESTORED, original_of
from gateshift.traffic.protocol import Shifter
from gateshift.words import tell

__all__ = ["Shift"]


class Shift(Runbook):
    """Set the weight in force again (own parameter *to*) or restore the records (*restore*)."""

    name: ClassVar[str] = "shift"
    title: ClassVar[str] = "Set weights"
    own: ClassVar[frozenset[str]] = frozenset({"to", "restore"})

    @property
    def heading(self) -> str:
        """The title in the language in use."""
        return tell("title.shift")

    def make_plan(self) -> Plan:
        """Plan what was asked for, when it is one of the two things that may be asked here."""
        return self._restore_plan() if self.extra.get("restore") else self._weights_plan()

    def _shifter(self) -> Shifter:
        index = min(self.context.state.stage_index, len(self.params.stages) - 1)
        return self.context.shifter(stage=index)

    def _weights_plan(self) -> Plan:
        state, to = self.context.state, int(self.extra["to"])
        if state.rolling_back or to == 0:
            raise InputError(
                "weights go to 0 by a rollback, which also proves that the users are back",
                hint="`gateshift rollback --act`",
            )
        if state.shifting_to is not None or to != state.weight_percent:
            raise InputError(
                f"{to} % is not the weight in force ({state.weight_percent} %); weights rise by the next "
                "stage of 50_canary, which observes and judges them",
                hint="`gateshift canary --act` for the next stage, `gateshift rollback --act` to go back",
            )
        self.shifter = self._shifter()
        return self.shifter.plan(to)

    def _restore_plan(self) -> Plan:
        state = self.context.state
        if state.weight_percent or state.rolling_back or state.phase is Phase.CANARY:
            raise Blocked(
                f"records are restored when nobody is on Istio; the migration is {state.phase.value}, "
                f"{state.weight_percent} % in force",
                hint="`gateshift rollback --act` first",
            )
        original = original_of(self.context)
        if original is None:
            raise Blocked(
                "there is no snapshot to restore: gateshift changed nothing, or it is restored already",
                hint="`gateshift shift` shows them as they are",
            )
        self.shifter = self.context.shifter()
        return self.shifter.restore_plan(original)

    def perform(self, plan: Plan) -> object:
        """Set what was approved, wait until it is everywhere, and record it."""
        begun = time.monotonic()
        receipt = self.shifter.set(plan)
        self.shifter.confirm(receipt)
        seconds = time.monotonic() - begun
        kind = RESTORED if self.extra.get("restore") else "note.traffic.set"
        self.record(kind, digest=plan.digest, seconds=seconds)
        say(f"in force after {seconds:.1f} s")
        return Note("pass", f"{len(plan.steps)} changes set and read back in {seconds:.1f} s")
