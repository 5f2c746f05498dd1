"""Watch one stage: sample, wait for the share to arrive, judge, draw; until a verdict stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateshift.errors import MetricsError, NotEnoughEvidence
from gateshift.judge.model import Sample, Side
from gateshift.judge.verdict import Decision, Verdict, judge
from gateshift.params import StageParams
from gateshift.runbook.base import say
from gateshift.runbook.context import Context
from gateshift.traffic.share import Share, observed_share

__all__ = ["SHARE_WINDOW_STEPS", "StageWatch", "recent_share"]

SHARE_WINDOW_STEPS = 8
"""Steps over which the observed share is taken: short enough to see a shift, long enough to count."""


def recent_share(history: list[Sample], target: float, tolerance: float) -> Share | None:
    """Return the observed share over the newest samples, or None while either side is unknown."""
    recent = [s for s in history[-SHARE_WINDOW_STEPS:] if _known(s.canary) and _known(s.baseline)]
    if not recent:
        return None
    istio = sum(s.canary.requests or 0.0 for s in recent)
    apisix = sum(s.baseline.requests or 0.0 for s in recent)
    if istio + apisix <= 0:
        return None
    return observed_share(istio, apisix, target, tolerance)


def _known(side: Side) -> bool:
    return side.requests is not None


@dataclass
class StageWatch:
    """The state of one stage's observation. Times are unix seconds."""

    context: Context
    stage: StageParams
    index: int
    redraw: Callable[[StageWatch, Verdict | None], None]
    on_sample: Callable[[Sample], None]
    history: list[Sample] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)
    dwelled: float = 0.0
    arrived_once: bool = False

    def run(self) -> Verdict:
        """Observe until the verdict is promote or roll back.

        Raises :class:`~gateshift.errors.NotEnoughEvidence` when the share never arrives or the hold
        outlasts ``judge.hold_timeout``; traffic then stays where it is.
        """
        params = self.context.params
        begun = since = time.time()
        spoken = 0.0
        while True:
            time.sleep(params.metrics.step)
            now = time.time()
            sample = self._sample(since, now)
            arrived = self._arrived(sample, now - since)
            since = now
            verdict = judge(
                self.history,
                self.stage,
                params.judge,
                stage_index=self.index,
                stages=len(params.stages),
                started=now - self.dwelled,
                now=now,
            )
            self.redraw(self, verdict)
            if verdict.decision is Decision.ROLLBACK:
                return verdict
            if verdict.decision is Decision.PROMOTE and arrived:
                return verdict
            waited = now - begun
            if not self.arrived_once and waited > params.traffic.arrival_timeout:
                raise NotEnoughEvidence(
                    f"stage {self.index + 1}: the share never arrived at {self.stage.weight_percent} % "
                    f"in {waited:.0f} s (last observed: {self._last_share()})",
                    hint="gateshift diagnose -p symptom=share: wrong zone, other record, sticky connections",
                )
            if waited > params.judge.hold_timeout:
                raise NotEnoughEvidence(
                    f"stage {self.index + 1} is on hold since {waited:.0f} s: {'; '.join(verdict.reasons)}"
                )
            if now - spoken >= max(5.0, params.metrics.step):
                spoken = now
                say(
                    f"stage {self.index + 1} at {self.stage.weight_percent} %: share {self._last_share()}, "
                    f"dwell {self.dwelled:.0f}/{self.stage.dwell:.0f} s, {verdict.decision.value}: "
                    f"{verdict.reasons[0] if verdict.reasons else ''}"
                )

    def _sample(self, since: float, now: float) -> Sample:
        try:
            sample = self.context.sampler.sample(since, now)
        except MetricsError as error:
            sample = Sample.unknown(now, str(error))
        self.history.append(sample)
        self.on_sample(sample)
        return sample

    def _arrived(self, sample: Sample, elapsed: float) -> bool:
        """Count dwell only while the observed share is at the target."""
        share = recent_share(
            self.history,
            float(self.stage.weight_percent),
            self.context.params.traffic.arrival_tolerance_percent,
        )
        if share is None or share.percent is None:
            return False
        self.shares.append((sample.time, share.percent))
        if share.arrived:
            if not self.arrived_once:
                self.arrived_once = True
                self.context.journal.append("stage.arrived", stage=self.index, share=share.percent)
                say(f"stage {self.index + 1}: traffic has arrived, observed share {share.percent:.1f} %")
            self.dwelled += elapsed
        return share.arrived

    def _last_share(self) -> str:
        return f"{self.shares[-1][1]:.1f} %" if self.shares else "unknown"
