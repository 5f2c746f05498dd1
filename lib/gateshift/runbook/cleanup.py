"""Clean-up: APISIX goes, after the stable run."""

from __future__ import annotations

import time
from typing import ClassVar

import yaml

from gateshift.cluster import cleanup as cluster_cleanup
from gateshift.errors import Blocked, NotEnoughEvidence
from gateshift.migration.state import Phase
from gateshift.notebook.show import Note
from gateshift.params import Mode
from gateshift.plan import Plan
from gateshift.runbook.base import Runbook, say

__all__ = ["Cleanup"]


class Cleanup(Runbook):
    """``70_cleanup``: APISIX goes, after the stable time, exported first, by typed name."""

    name: ClassVar[str] = "70_cleanup"
    title: ClassVar[str] = "Clean up APISIX"

    def read(self) -> object:
        """Refuse unless the stable time is on record and APISIX is idle."""
        state = self.context.state
        if state.phase not in {Phase.SOAKED, Phase.CLEANED}:
            reason = f"clean-up is not due: the migration is at {state.phase.value}"
            if self.params.mode is Mode.ACT:
                raise Blocked(reason, hint=f"next: {self.next_step()}")
            return Note("warn", reason)
        weights = self.context.shifter().read()
        if weights.istio_percent != 100:
            raise Blocked(f"DNS still sends traffic to APISIX: Istio has {weights.istio_percent} %")
        since = time.time()
        time.sleep(max(self.params.metrics.step * 3, 3.0))
        sample = self.context.sampler.sample(since, time.time())
        if sample.baseline.requests is None:
            raise NotEnoughEvidence("clean-up: whether APISIX still serves traffic is not known")
        if sample.baseline.requests > 0:
            raise Blocked(f"APISIX still served {sample.baseline.requests:.0f} requests in the last seconds")
        return Note("pass", "stable time on record, DNS at 100 % Istio, APISIX served nothing")

    def make_plan(self) -> Plan:
        """List everything that would be deleted, with owners."""
        try:
            return cluster_cleanup.plan(self.params, self.context.cluster)
        except Blocked as refusal:
            if self.params.mode is Mode.ACT:
                raise
            # Reading is always possible; the plan says why nothing could be deleted now.
            return Plan(kind="cleanup", title=str(refusal), steps=(), way_back="nothing is changed")

    def perform(self, plan: Plan) -> object:
        """Export, then delete in a safe order."""
        objects = cluster_cleanup.export(self.context.cluster, plan)
        path = self.context.run_folder / "export.yaml"
        path.write_text(yaml.safe_dump_all(objects))
        self.record("cleanup.intent", export=path.name, digest=plan.digest)
        cluster_cleanup.execute(self.params, self.context.cluster, plan, progress=say)
        self.record("cleanup.done", deleted=len(plan.steps))
        return Note("pass", f"{len(plan.steps)} objects deleted; export in {path.name}")
