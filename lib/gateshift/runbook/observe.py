"""Watch one stage: sample, wait for arrival, dwell, judge; until a verdict is final or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from gateshift.errors import MetricsError, NotEnoughEvidence, RolledBack, TrafficError
from gateshift.judge.model import Sample, Side
from gateshift.judge.verdict import Decision, Verdict, judge
from gateshift.notebook.progress import say
from gateshift.params import StageParams
from gateshift.runbook.context import Context
from gateshift.traffic.arrival import Clients, forecast_arrival, forecast_share, likely_reason
from gateshift.traffic.protocol import Shifter, Weights
from gateshift.traffic.share import Share, window_share

__all__ = ["SHARE_WINDOW_STEPS", "StageWatch", "recent_share"]

SHARE_WINDOW_STEPS = 8
"""Fewest steps the observed share is taken over: short enough to see a shift, long enough to count."""

_GAP, _GAP_STEPS = 15.0, 4.0
"""Seconds, or scrapes, that one look may count as dwell at most, whichever is longer.

Nobody watched for longer than that: the machine slept, or its clock was set forward.
"""
_CURVE_POINTS = 60


def recent_share(
    history: list[Sample], target: float, tolerance: float, *, shortest: int = SHARE_WINDOW_STEPS
) -> Share | None:
    """Return the observed share over the newest samples, or None while either side is unknown."""
    both = [s for s in history if _known(s.canary) and _known(s.baseline)]
    known = [(s.canary.requests or 0.0, s.baseline.requests or 0.0) for s in both]
    seconds = [(s.canary.covered, s.baseline.covered) for s in both]
    # Old figures do not speak for the present: without new ones the share is unknown.
    if not known or not any(_known(s.canary) and _known(s.baseline) for s in history[-shortest:]):
        return None
    share = window_share(known, target, tolerance, shortest=shortest, seconds=seconds)
    return None if share.percent is None else share


def _known(side: Side) -> bool:
    return side.requests is not None


@dataclass
class StageWatch:
    """The state of one stage's observation. Times are unix seconds, shares percent on Istio.

    *connections* are (time, Istio, APISIX), to watch; None where they are not known.

    *attempt* counts the observations of this stage before this one: they share its budget. *accepted* is when
    the weights were accepted: the forecast counts from then (None: from its own begin).
    """

    context: Context
    stage: StageParams
    index: int
    redraw: Callable[[StageWatch, Verdict | None], None]
    on_sample: Callable[[Sample], None]
    shifter: Shifter
    before_percent: float = 0.0
    accepted: float | None = None
    clients: Clients = field(default_factory=Clients)
    reference: tuple[Side, ...] = ()
    attempt: int = 0
    history: list[Sample] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)
    connections: list[tuple[float, float | None, float | None]] = field(default_factory=list)
    dwelled: float = 0.0
    arrived_once: bool = False
    weights: Weights | None = None
    begun: float = 0.0
    _why: str = ""
    _inside: bool = False
    _read_at: float = 0.0

    @cached_property
    def forecast(self) -> float:
        """Seconds from the acceptance of the weights until the share is expected to be seen at its target."""
        tolerance = self.context.params.traffic.arrival_tolerance_percent
        before, after = self.before_percent, self.stage.weight_percent
        return forecast_arrival(self.clients, before, after, tolerance, window=self._window)

    @property
    def since(self) -> float:
        """When clients began to follow the new weights."""
        return self.begun if self.accepted is None else self.accepted

    @property
    def left(self) -> float:
        """Seconds from now until the share is expected at its target; 0 once it was there."""
        return 0.0 if self.arrived_once else max(0.0, self.since + self.forecast - time.time())

    @property
    def _window(self) -> float:
        return SHARE_WINDOW_STEPS * self.context.params.metrics.step

    def curve(self, until: float) -> list[tuple[float, float]]:
        """Return the expected share from the change to *until*, for the plot: (unix seconds, percent)."""
        span = max(until - self.since, self.forecast, 1.0)
        times = [span * i / _CURVE_POINTS for i in range(_CURVE_POINTS + 1)]
        before, after = self.before_percent, float(self.stage.weight_percent)
        return [
            (self.since + t, forecast_share(self.clients, before, after, t, window=self._window))
            for t in times
        ]

    def run(self) -> Verdict:
        """Observe until the verdict is promote or roll back.

        Raises :class:`~gateshift.errors.NotEnoughEvidence` when the share never arrives or the hold
        outlasts ``judge.hold_timeout``; traffic then stays where it is. Raises
        :class:`~gateshift.errors.RolledBack` when a rollback was started elsewhere.
        """
        params = self.context.params
        self.begun = since = time.time()
        spoken = 0.0
        say(f"stage {self.index + 1}: the share is expected at its target {self.left:.0f} s from now")
        while True:
            time.sleep(params.metrics.step)
            now = time.time()
            self._stop_if_rolled_back()
            if now <= since:
                raise NotEnoughEvidence(
                    f"stage {self.index + 1}: this machine's clock was set back by {since - now:.0f} s "
                    "or more, so what was seen cannot be put in order",
                    hint="run the stage again: it observes anew; `gateshift rollback` goes back",
                )
            sample = self._sample(since, now)
            self._watch_weights(now)
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
                reference=self.reference,
                attempt=self.attempt,
            )
            self.redraw(self, verdict)
            if verdict.decision is Decision.ROLLBACK:
                return verdict
            if verdict.decision is Decision.PROMOTE and arrived:
                return verdict
            waited = now - self.begun
            if not self.arrived_once and waited > params.traffic.arrival_timeout:
                raise NotEnoughEvidence(
                    f"stage {self.index + 1}: the share never arrived at {self.stage.weight_percent} % "
                    f"in {waited:.0f} s (last observed: {self._last_share()}); likely: {self.reason()}",
                    hint="`gateshift diagnose -p symptom=share` looks closer; `gateshift rollback` goes back",
                )
            if waited > params.judge.hold_timeout:
                away = "" if arrived else f"; the share is {self._last_share()}, likely: {self.reason()}"
                raise NotEnoughEvidence(
                    f"stage {self.index + 1} is on hold since {waited:.0f} s: "
                    f"{'; '.join(verdict.reasons)}{away}"
                )
            if now - spoken >= max(5.0, params.metrics.step):
                spoken = now
                say(self._line(verdict, arrived))

    def _line(self, verdict: Verdict, arrived: bool) -> str:
        text = (
            f"stage {self.index + 1} at {self.stage.weight_percent} %: share {self._last_share()}, "
            f"dwell {self.dwelled:.0f}/{self.stage.dwell:.0f} s"
        )
        if not arrived:
            expected = f", expected in {self.left:.0f} s" if self.left > 0 else ""
            return f"{text} (paused{expected}: {self.reason()})"
        return f"{text}, {verdict.decision.value}: {verdict.reasons[0] if verdict.reasons else ''}"

    def reason(self) -> str:
        """Say why the share is not at its target, the likeliest reason first."""
        weights = self.weights
        if weights is None:
            return "the weights could not be read back"
        target, tolerance = self.stage.weight_percent, self.context.params.traffic.arrival_tolerance_percent
        near = bool(self.shares) and abs(self.shares[-1][1] - target) <= tolerance
        if near and self._why and not self._disturbed():
            return self._why
        return likely_reason(
            weights,
            before_percent=self.before_percent,
            target_percent=float(self.stage.weight_percent),
            observed_percent=self.shares[-1][1] if self.shares else None,
            elapsed=time.time() - self.since,
            # Once it was there, a share that is away is not early.
            forecast=0.0 if self.arrived_once else self.forecast,
        )

    def _stop_if_rolled_back(self) -> None:
        state = self.context.state
        if state.rolling_back:
            raise RolledBack(
                f"a rollback was started elsewhere ({state.rollback_reason}); this stage ends here",
                hint="80_rollback finishes it",
            )

    def _watch_weights(self, now: float) -> None:
        """Read the weights back now and then: somebody may change them while the stage dwells."""
        if now - self._read_at < self.context.params.traffic.watch_weights:
            return
        self._read_at = now
        try:
            self.weights = self.shifter.read()
        except TrafficError as error:
            say(f"stage {self.index + 1}: the weights cannot be read back now: {error}")

    def _disturbed(self) -> bool:
        weights = self.weights
        return weights is not None and weights.istio_percent != self.stage.weight_percent

    def _sample(self, since: float, now: float) -> Sample:
        try:
            sample = self.context.sampler.sample(since, now)
        except MetricsError as error:
            # Cleaned before it is judged: what is recorded is what was judged.
            sample = Sample.unknown(now, self.context.journal.redactor.text(str(error)))
        self.history.append(sample)
        # An address that told nothing of either gateway is not asked again: each question may wait in vain.
        silent = sample.canary.missing is not None and sample.baseline.missing is not None
        watched = (None, None) if silent else self.context.sampler.connections(now)
        self.connections.append((now, *watched))
        self.on_sample(sample)
        return sample

    def _arrived(self, sample: Sample, elapsed: float) -> bool:
        """Count dwell only while the observed share is at the target and the weights are as set."""
        share = recent_share(
            self.history,
            float(self.stage.weight_percent),
            self.context.params.traffic.arrival_tolerance_percent,
        )
        inside = False
        if share is not None and share.percent is not None:
            self.shares.append((sample.time, share.percent))
            self._why = share.reason
            inside = share.arrived and not self._disturbed()
        if inside:
            if not self.arrived_once:
                self.arrived_once = True
                self.context.journal.append(
                    "stage.arrived",
                    stage=self.index,
                    share=share.percent if share else None,
                    seconds=sample.time - self.since,
                    forecast_seconds=self.forecast,
                )
                say(f"stage {self.index + 1}: traffic has arrived, observed share {self._last_share()}")
            self.dwelled += min(elapsed, max(_GAP, _GAP_STEPS * self.context.params.metrics.step))
        elif self._inside:
            say(f"stage {self.index + 1}: the share left its target, the dwell pauses: {self.reason()}")
        self._inside = inside
        return inside

    def _last_share(self) -> str:
        return f"{self.shares[-1][1]:.1f} %" if self.shares else "unknown"
