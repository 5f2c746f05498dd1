"""Runbooks after the canary: soak, cleanup, rollback, troubleshoot, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import yaml
from IPython.display import HTML
from matplotlib.figure import Figure

from gateshift import diagnose
from gateshift.archive.report import write_report
from gateshift.cluster import cleanup as cluster_cleanup
from gateshift.errors import Blocked, ClusterError, GateshiftError, NotEnoughEvidence
from gateshift.judge.replay import SampleLog
from gateshift.judge.verdict import Decision, judge
from gateshift.migration.lock import LeaseLock
from gateshift.migration.state import Phase
from gateshift.notebook.live import LiveFigure
from gateshift.notebook.plots import canary_figure
from gateshift.notebook.show import Card, Note, Table
from gateshift.params import Mode, Params
from gateshift.plan import Plan, Step
from gateshift.runbook.base import Runbook, say
from gateshift.runbook.retreat import bring_back, collect_evidence, watch_return

__all__ = ["Cleanup", "Report", "Rollback", "Soak", "Troubleshoot"]


class Soak(Runbook):
    """``60_soak``: the stable run at 100 %, one sample a run, until the stable time is on record."""

    name: ClassVar[str] = "60_soak"
    title: ClassVar[str] = "Stable run"
    changes: ClassVar[bool] = False
    own: ClassVar[frozenset[str]] = frozenset({"samples"})

    def read(self) -> object:
        """Show what the record says so far."""
        state = self.context.state
        self.due = state.phase in {Phase.CANARY, Phase.SOAK, Phase.SOAKED} and state.stage_index >= len(
            self.params.stages
        )
        if not self.due and self.params.mode is Mode.ACT:
            raise Blocked(
                f"the stable run is not due: the migration is at {state.phase.value}",
                hint=f"next: {self.next_step()}",
            )
        rows = (
            ("stable time wanted", f"{self.params.soak.stable_for / 86400:.3g} days"),
            ("stable since", state.stable_since or "not yet"),
            ("samples on record", state.soak_samples),
        )
        return Table("Stable run", ("what", "value"), rows)

    def check(self) -> object:
        """Observe once (or *samples* times) and add to the record; a gap or an error starts it anew."""
        if not self.due:
            return Note("info", "the stable run is not due; nothing was measured")
        stage = self.params.stages[-1]
        live = LiveFigure()
        log = SampleLog(
            self.context.run_folder / "samples.jsonl", stage, self.params.judge, len(self.params.stages) - 1
        )
        outcome: Note | None = None
        for _ in range(int(self.extra.get("samples") or 1)):
            outcome = self._sample_once(stage, live, log)
        live.finish()
        return outcome

    def _sample_once(self, stage: Any, live: LiveFigure, log: SampleLog) -> Note:
        history = []
        begun = since = time.time()
        verdict = None
        while time.time() - begun < self.params.soak.sample_for:
            time.sleep(self.params.metrics.step)
            now = time.time()
            sample = self.context.sampler.sample(since, now)
            since = now
            history.append(sample)
            log.write(sample)
            verdict = judge(
                history,
                stage,
                self.params.judge,
                stage_index=len(self.params.stages) - 1,
                stages=len(self.params.stages),
                started=begun,
                now=now,
            )
            live.update(partial(_soak_figure, history, stage, verdict, self.params.migration))
        known = [s for s in history if s.canary.requests is not None]
        requests = sum(s.canary.requests or 0 for s in known)
        errors = sum(s.canary.errors or 0 for s in known)
        if verdict is None or not known or requests <= 0:
            raise NotEnoughEvidence(
                "stable run: no requests were measured, so nothing was added to the record"
            )
        stable = verdict.decision is not Decision.ROLLBACK
        self.record(
            "soak.sample",
            stable=stable,
            requests=requests,
            errors=errors,
            seconds=time.time() - begun,
            unmeasured=len(history) - len(known),
            reasons=list(verdict.reasons),
        )
        if not stable:
            raise Blocked(
                f"stable run: {'; '.join(verdict.reasons)}",
                hint="look at the plot; `gateshift rollback` brings back",
            )
        return self._conclude(requests, errors)

    def _conclude(self, requests: float, errors: float) -> Note:
        state = self.context.state
        stable_for = time.time() - (state.stable_since_unix or time.time())
        text = f"{requests:.0f} requests, {errors:.0f} errors; stable for {stable_for:.0f} s"
        if stable_for < self.params.soak.stable_for:
            return Note("info", f"{text} of {self.params.soak.stable_for:.0f} s")
        if state.phase is not Phase.SOAKED:
            self.record("soak.done", stable_seconds=stable_for)
        return Note("pass", f"{text}: the stable time is on record")


def _soak_figure(history: list[Any], stage: Any, verdict: Any, migration: str) -> Figure:
    return canary_figure(history, stage, verdict=verdict, title=f"{migration}: stable run")


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
            self.record("plan.approved", digest=plan.digest, who="journal", how="rollback already started")
            return Note("pass", "the rollback has started and will be finished")
        return super().gate()

    def perform(self, plan: Plan) -> object:
        """Bring back, watch, collect, fill the checklist."""
        del plan
        begun = self._started_at()
        reason = str(self.extra.get("reason") or "asked by the operator")
        to_dns = bring_back(self.context, reason)
        live = LiveFigure()
        seen = watch_return(self.context, lambda now, share: say(f"observed share of Istio {share:.1f} %"))
        live.finish()
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
        try:
            causes = diagnose.run("", self.context)
        except GateshiftError as error:
            return f"not known: {error}"
        return "; ".join(c.title for c in causes[:3]) or "no finding: look at the evidence"

    def check(self) -> object:
        """Show the guide's checklist."""
        rows = tuple((standing, what, how) for what, standing, how in self.checklist)
        return Table("Rollback checklist", ("result", "item", "detail"), rows)


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
        self.path = write_report(self.context.folder)
        return HTML(f"<p>Report: <code>{self.path.name}</code></p>")

    def check(self) -> object:
        """Show the outcome as the state machine has it."""
        state = self.context.state
        return Card(
            "Outcome", self.context.production, {"phase": state.phase.value, "report": self.path.name}
        )
