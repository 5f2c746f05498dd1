"""Roll back: the operator's way back to APISIX."""

from __future__ import annotations

import time
from typing import ClassVar

from gateshift import diagnose
from gateshift.errors import ClusterError, GateshiftError, NotEnoughEvidence
from gateshift.migration.lease import LeaseLock
from gateshift.notebook.progress import Waiting
from gateshift.notebook.show import Note, Table
from gateshift.plan import Plan, Step
from gateshift.runbook.approvals import JOURNAL
from gateshift.runbook.base import Runbook, say
from gateshift.runbook.retreat import bring_back, collect_evidence, watch_return
from gateshift.words import tell

__all__ = ["Rollback"]


class Rollback(Runbook):
    """``80_rollback``: weights first, then the proof that users are back, then the evidence."""

    name: ClassVar[str] = "80_rollback"
    title: ClassVar[str] = "Roll back"
    own: ClassVar[frozenset[str]] = frozenset({"reason"})

    def _take_lease(self) -> LeaseLock | None:
        """A rollback needs no cluster: without its Lease it goes on under the local lock."""
        try:
            return super()._take_lease()
        except ClusterError as error:
            say(f"the cluster is out of reach, the rollback goes on without its Lease: {error}")
            return None

    def _stand_back(self, why: str, hint: str) -> None:
        say(f"{why}; a rollback goes on in any case ({hint})")

    def _people_needed(self) -> int:
        """One confirmation is enough for the way back, whatever the way forward asks for."""
        return 1

    def _finish_rollback(self) -> None:
        """This notebook is the one that finishes: its cells do it in their order."""

    def read(self) -> object:
        """Show the weights and whether a rollback is already under way."""
        self.already = self.context.state.rolling_back
        weights = self.context.shifter(back_only=True).read()
        under_way = "yes: this run finishes it" if self.already else "no"
        rows = (("weight on Istio", weights.istio_percent), ("rollback under way", under_way))
        return Table("Now", ("what", "value"), rows)

    def make_plan(self) -> Plan:
        """Weights to APISIX, then proof and evidence."""
        shift = self.context.shifter(back_only=True).plan(0)
        follow = Step("verify", "observed share", None, ">= 99 % on APISIX", "then evidence and checklist")
        return Plan(
            kind=self.name,
            title="All traffic back to APISIX; Istio stays for investigation",
            steps=(*shift.steps, follow),
            way_back="a new canary, after the cause is fixed",
        )

    def gate(self) -> Note:
        """A rollback that has started needs no second confirmation: it must finish."""
        plan = self._planned()
        if self.already:
            self.record("plan.approved", digest=plan.digest, who=JOURNAL, how="rollback already started")
            return Note("pass", "the rollback has started and will be finished")
        return super().gate()

    def perform(self, plan: Plan) -> object:
        """Bring back, watch, collect, fill the checklist."""
        del plan
        begun = self._started_at()
        reason = str(self.extra.get("reason") or "asked by the operator")
        to_dns = bring_back(self.context, reason)
        waiting, since = Waiting(tell("wait.return"), say, every=5.0), time.monotonic()
        limit = self.params.traffic.rollback_target
        seen = watch_return(
            self.context,
            lambda _, share: waiting.beat(
                time.monotonic() - since, limit, tell("wait.return.reason", share=f"{share:.1f}")
            ),
        )
        waiting.close(well=bool(seen and seen[1] >= 99.0))
        to_users = time.time() - begun if seen and seen[1] >= 99.0 else None
        missing = collect_evidence(self.context, self._write)
        causes = self._causes()
        self.checklist = [
            ("DNS back at 100 % APISIX", "pass", f"accepted after {to_dns:.1f} s"),
            (
                "traffic confirmed recovered",
                "pass" if to_users is not None else "warn",
                f"{seen[1]:.1f} % on APISIX" if seen else "metrics cannot tell",
            ),
            (
                "Istio error logs collected",
                "warn" if missing else "pass",
                "; ".join(missing) or "in the archive",
            ),
            ("root cause analysed", "info", causes),
            ("configuration fixed, then retry", "info", "open: a person's decision"),
        ]
        self.record(
            "rollback.done",
            seconds_to_dns=to_dns,
            seconds_to_users=to_users,
            checklist=[list(c) for c in self.checklist],
        )
        if to_users is None:
            raise NotEnoughEvidence(
                "the weights are back on APISIX, but it is not proven that the users are",
                hint="look at APISIX's own access log, then run 80_rollback again",
            )
        return Note("pass", f"users are back {to_users:.0f} s after the start; Istio is kept")

    def _started_at(self) -> float:
        for record in reversed(self.context.journal.records):
            if record.kind == "rollback.started" and self.already:
                return record.unix
        return time.time()

    def _write(self, name: str, text: str) -> None:
        folder = self.context.run_folder / "evidence"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    def _causes(self) -> str:
        """Run the tree that the rollback's reason speaks of; the whole answer goes into the evidence."""
        reason = self.context.state.rollback_reason or str(self.extra.get("reason") or "")
        try:
            causes = diagnose.explain_rollback(reason, self.context, progress=say)
        except GateshiftError as error:
            return f"not known: {error}"
        self._write("causes.json", diagnose.archived(causes, self.context.journal.redactor.text))
        return diagnose.sentence(causes) or "no finding: look at the evidence"

    def check(self) -> object:
        """Show the guide's checklist."""
        rows = tuple((standing, what, how) for what, standing, how in self.checklist)
        return Table("Rollback checklist", ("result", "item", "detail"), rows)
