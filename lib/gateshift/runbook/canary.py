"""``50_canary``: one stage, from the shift to a verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gateshift.errors import Blocked, RolledBack
from gateshift.judge.measure import totals
from gateshift.judge.model import Sample, Side
from gateshift.judge.verdict import Decision, Verdict, p_quantiles
from gateshift.migration.state import Phase
from gateshift.notebook.live import LiveFigure
from gateshift.notebook.progress import Waiting, say
from gateshift.notebook.show import Note, Table
from gateshift.params import Mode, Params, StageParams
from gateshift.plan import Plan, Step
from gateshift.runbook.applied import require_applied
from gateshift.runbook.approvals import JOURNAL
from gateshift.runbook.base import Runbook
from gateshift.runbook.observe import StageWatch
from gateshift.runbook.parity import require_parity
from gateshift.runbook.resume import OBSERVED, fresh_verdict, observations, reconcile
from gateshift.runbook.retreat import bring_back
from gateshift.runbook.samples import KeptSamples
from gateshift.runbook.shifting import clients_of, finish_waiting, keep_original, last_shift, make_weighted
from gateshift.words import decision_words, gloss, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Canary"]

_LABELS = {
    "requests": "requests on Istio",
    "errors": "errors on Istio",
    "p95_ms": "P95 on Istio, ms",
    "share_percent": "share on Istio, %",
}


class Canary(Runbook):
    """One stage of the canary: shift, wait for arrival, dwell, judge, promote or bring back."""

    name: ClassVar[str] = "50_canary"
    title: ClassVar[str] = "Canary stage"

    def __init__(self, params: Params, extra: Mapping[str, Any]) -> None:
        super().__init__(params, extra)
        state = self.context.state
        due = state.phase in {Phase.VERIFIED, Phase.CANARY} and state.stage_index < len(params.stages)
        if params.mode is Mode.ACT and not due:
            raise Blocked(
                f"no canary stage is due: the migration is at {state.phase.value}, "
                f"{state.stage_index} of {len(params.stages)} stages promoted",
                hint=self.next_step(),
            )
        # In mode plan the newest stage is shown, due or not.
        self.index = min(state.stage_index, len(params.stages) - 1)
        self.watch: StageWatch | None = None
        self.verdict: Verdict | None = None

    @property
    def stage(self) -> StageParams:
        """The stage this run is for."""
        return self.params.stages[self.index]

    def read(self) -> object:
        """Show the weights as the provider has them and the stage's limits."""
        self.shifter = self.context.shifter(stage=self.index)
        weights = self.shifter.read()
        if self.params.mode is Mode.ACT:
            found = reconcile(self.context, weights)
            if found is not None:
                say(f"a shift died half-way; the provider has {found} % on Istio")
            if self.context.state.stage_verdict is None or self.context.state.stage_entered is None:
                require_applied(self.context)
        stage = self.stage
        rows = (
            (
                "weight on Istio now",
                "not weighted yet" if weights.istio_percent is None else weights.istio_percent,
            ),
            ("weight of this stage", f"{stage.weight_percent} %"),
            ("moved by", self.shifter.name),
            ("dwell after arrival", f"{stage.dwell:.0f} s"),
            ("roll back above error rate", f"{stage.error_rate_limit_percent} %"),
            ("roll back above P95", f"{stage.p95_limit_ms:.0f} ms"),
            ("availability", f"{stage.availability_percent} %"),
        )
        return Table(f"Stage {self.index + 1} of {len(self.params.stages)}", ("what", "value"), rows)

    def make_plan(self) -> Plan:
        """Plan the weights of this stage; observing is part of what is approved."""
        prepare = self.shifter.prepare_plan()
        # Until the records are weighted, the shift is planned from "all on APISIX", where preparing ends.
        self.prepare = prepare
        shift = None if not prepare.empty else self.shifter.plan(self.stage.weight_percent)
        steps = (*prepare.steps, *(shift.steps if shift else ()))
        observe = Step(
            "observe",
            f"stage {self.index + 1}",
            None,
            {
                "weight_percent": self.stage.weight_percent,
                "dwell_seconds": self.stage.dwell,
                "error_rate_limit_percent": self.stage.error_rate_limit_percent,
            },
            note="first converts the records, then sets this weight" if not prepare.empty else "",
        )
        return Plan(
            kind=self.name,
            title=f"Stage {self.index + 1}: {self.stage.weight_percent} % of traffic to Istio",
            steps=(*steps, observe),
            way_back="80_rollback: all weight back on APISIX",
            inputs={"stage": self.index, "mechanism": self.shifter.name},
        )

    def gate(self) -> Note:
        """A stage already entered and still in force resumes under the approval it has."""
        plan = self._planned()
        if self.params.mode is Mode.ACT and self._resuming(plan):
            self.record("plan.approved", digest=plan.digest, who=JOURNAL, how="stage resumed as approved")
            return Note("pass", "this stage was approved and is in force; observation goes on")
        return super().gate()

    def _resuming(self, plan: Plan) -> bool:
        return self.context.state.stage_entered == self.index and len(plan.steps) == 1

    def perform(self, plan: Plan) -> object:
        """Shift, watch, judge. A verdict of rollback brings the traffic back before anything else.

        A stage that died on the way goes on where its records end; nothing is done or recorded twice.
        """
        if self.context.state.stage_entered != self.index:
            if self.index == 0:
                require_parity(self.context)
            self.record("stage.entered", stage=self.index, weight=self.stage.weight_percent)
        left = fresh_verdict(self.context, within=self.stage.dwell)
        if left is not None and left.decision == "rollback":
            self._retreat(left.reasons)
        keep_original(self.context)
        if not self.prepare.empty:
            make_weighted(self.context, self.shifter, self.prepare)
        finish_waiting(self.context)
        past = () if left is not None else self._past()
        live = LiveFigure()  # what draws is loaded while the weights become effective
        self._shift()
        if left is not None:
            return self._promote(left.reasons)
        attempt = observations(self.context.journal, self.index)
        self.record(OBSERVED, stage=self.index, attempt=attempt)
        log = KeptSamples(
            self.context.run_folder / "samples.jsonl", self.stage, self.params.judge, self.index, past
        )
        waiting = StageWaiting(self.stage, self.index)

        def redraw(watch: StageWatch, verdict: Verdict | None) -> None:
            waiting.beat(watch, verdict)
            live.update(lambda: self._figure(watch, verdict))

        before, accepted = last_shift(self.context)
        self.watch = StageWatch(
            self.context,
            self.stage,
            self.index,
            redraw=redraw,
            on_sample=log.write,
            shifter=self.shifter,
            before_percent=before,
            accepted=accepted,
            clients=clients_of(self.params, self.index),
            reference=past,
            attempt=attempt,
        )
        try:
            self.verdict = self.watch.run()
        finally:
            live.finish()
            waiting.close(well=self.verdict is not None)
        log.verdict(self.verdict)
        if self.verdict.decision is not Decision.ROLLBACK:
            log.require_whole()
        self.record("verdict", stage=self.index, observed=self._observed(), **self.verdict.as_json())
        if self.verdict.decision is Decision.ROLLBACK:
            self._retreat(self.verdict.reasons)
        return self._promote(self.verdict.reasons)

    def _promote(self, reasons: Sequence[str]) -> Note:
        self.record("stage.promoted", stage=self.index)
        return Note("pass", tell("canary.promoted", stage=self.index + 1, reasons=gloss("; ".join(reasons))))

    def _past(self) -> tuple[Side, ...]:
        """Read how the old gateway's errors burst before this stage."""
        past, lacking = self.context.sampler.reference(time.time())
        if past:
            requests, errors = totals(past)
            say(
                f"before this stage: {requests:.0f} requests in {len(past)} intervals of the old gateway, "
                f"{100 * errors / requests:.3g} % errors"
            )
        else:
            say(f"no past of the old gateway ({lacking}): errors count as bursty until shown otherwise")
        return past

    def _shift(self) -> None:
        plan = self.shifter.plan(self.stage.weight_percent)
        state = self.context.state
        if plan.empty and state.shifting_to is None and state.weight_percent == self.stage.weight_percent:
            return  # in force already: this stage was resumed
        if state.shifting_to is None:
            self.record(
                "shift.intent",
                stage=self.index,
                to=self.stage.weight_percent,
                snapshot=self.shifter.snapshot(),
                apisix_target=self.context.apisix_target,
                istio_target=self.context.istio_target,
                **{"from": state.weight_percent},
            )
        begun = time.monotonic()
        accepted = insync = 0.0
        accepted_at = None
        if not plan.empty:
            receipt = self.shifter.set(plan)
            accepted, accepted_at = time.monotonic() - begun, receipt.accepted_at
            self.shifter.confirm(receipt)
            insync = time.monotonic() - begun
        self.record(
            "shift.done",
            to=self.stage.weight_percent,
            accepted_s=accepted,
            accepted_at=accepted_at,
            insync_s=insync,
            snapshot=self.shifter.snapshot(),
        )
        say(f"stage {self.index + 1}: weight {self.stage.weight_percent} % in force after {insync:.1f} s")

    def _retreat(self, reasons: Sequence[str]) -> None:
        reason = "; ".join(reasons)
        say(f"ROLLBACK: {reason}")
        bring_back(self.context, reason)
        raise RolledBack(
            f"stage {self.index + 1} rolled back: {reason}",
            hint="run 80_rollback: it proves that the users are back and collects the evidence",
        )

    def _figure(self, watch: StageWatch, verdict: Verdict | None) -> Figure:
        from gateshift.notebook.plots import canary_figure  # noqa: PLC0415 - LiveFigure has loaded what is slow

        history: list[Sample] = watch.history
        return canary_figure(
            history,
            self.stage,
            shares=watch.shares,
            connections=watch.connections,
            forecast=watch.curve(history[-1].time) if history else (),
            verdict=verdict,
            params=self.params.judge,
            reference=watch.reference,
            title=f"{self.params.migration}: stage {self.index + 1}, {self.stage.weight_percent} % on Istio",
        )

    def check(self) -> object:
        """Show the stage's figures."""
        if self.verdict is None:
            return Note("info", "nothing was observed")
        rows = (
            ("decision", decision_words(self.verdict.decision.value)),
            *[(_LABELS[name], value) for name, value in self._observed().items()],
            *[("reason", reason) for reason in self.verdict.reasons],
        )
        return Table(f"Stage {self.index + 1}", ("what", "value"), rows)

    def _observed(self) -> dict[str, float | None]:
        """What the stage saw, for the journal: counts, percent and milliseconds."""
        if self.watch is None:
            return {}
        history = self.watch.history
        return {
            "requests": sum(s.canary.requests or 0.0 for s in history),
            "errors": sum(s.canary.errors or 0.0 for s in history),
            "p95_ms": p_quantiles(history, "canary")["p95"],
            "share_percent": self.watch.shares[-1][1] if self.watch.shares else None,
        }


class StageWaiting:
    """The two waits of a stage as a person sees them: until the traffic is there, then the dwell."""

    def __init__(self, stage: StageParams, index: int) -> None:
        self._stage, self._index = stage, index
        # The lines of a stage are printed by its watch; here only the bar moves.
        self._arrive = Waiting(tell("wait.arrive", stage=index + 1))
        self._dwell: Waiting | None = None

    def beat(self, watch: StageWatch, verdict: Verdict | None) -> None:
        """Show where the stage is."""
        target = self._stage.weight_percent
        share = f"{watch.shares[-1][1]:.1f} %" if watch.shares else tell("wait.unknown")
        if not watch.arrived_once:
            spent = time.time() - watch.since
            reason = tell("wait.arrive.reason", share=share, target=target)
            self._arrive.beat(spent, max(spent, watch.forecast), reason, left=watch.left or None)
            return
        if self._dwell is None:
            self._arrive.close()
            self._dwell = Waiting(tell("wait.dwell", stage=self._index + 1, target=target))
        left = max(0.0, self._stage.dwell - watch.dwelled)
        reason = tell(
            "wait.dwell.reason",
            share=share,
            decision=decision_words(verdict.decision.value) if verdict else "",
            reason=gloss(verdict.reasons[0]) if verdict and verdict.reasons else "",
        )
        self._dwell.beat(watch.dwelled, self._stage.dwell, reason, left=left or None)

    def close(self, *, well: bool) -> None:
        """End whichever wait is open."""
        (self._dwell or self._arrive).close(well=well)
