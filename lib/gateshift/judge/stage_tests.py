"""The two sequential tests of a stage, errors and latency, on the evidence of :mod:`.evidence`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateshift.judge import evidence
from gateshift.judge.measure import Quantile, edge_above, edge_below, quantile, slow_counts, sum_buckets
from gateshift.judge.model import Sample
from gateshift.params.model import JudgeParams, StageParams

__all__ = ["ERROR_SHARE", "LIMIT_EVIDENCE", "Finding", "LatencyFinding", "errors_test", "latency_test"]

ERROR_SHARE = 0.8
"""Share of a stage's false-rollback budget that errors get; latency gets the rest."""

LIMIT_EVIDENCE = math.log(4.0)
"""Evidence that the limit itself is exceeded, asked *beside* the full evidence against the baseline.

The budget is kept by the comparison; this only tells a canary that is worse, but within the limit, from one
above it. More would delay every rollback near the limit (2 % errors at a limit of 1 %) several times over.
"""

_NO_LATENCY = "no latency figures of the new gateway: empty answer"

_SLOW_SHARE = 0.05
"""A P95 limit says that at most 5 % of the requests may be slower."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Evidence (natural logarithms) with its thresholds, and the plain sums behind it."""

    requests: float
    events: float
    baseline_requests: float
    baseline_events: float
    relative: float
    relative_threshold: float
    absolute: float
    absolute_threshold: float
    promotion: float
    promotion_threshold: float
    rollback_reason: str = ""

    @property
    def rate(self) -> float:
        """Events per request of the canary."""
        return self.events / self.requests if self.requests > 0 else 0.0

    @property
    def baseline_rate(self) -> float:
        """Events per request of the baseline."""
        return self.baseline_events / self.baseline_requests if self.baseline_requests > 0 else 0.0

    @property
    def rolls_back(self) -> bool:
        """Both tests have reached their thresholds."""
        return self.rollback_ratio >= 1.0

    @property
    def rollback_ratio(self) -> float:
        """Evidence over threshold, of the test that lags behind."""
        absolute = self.absolute / self.absolute_threshold
        if math.isinf(self.relative_threshold):
            return absolute
        return min(absolute, self.relative / self.relative_threshold)

    @property
    def promotion_ratio(self) -> float:
        """Evidence over threshold for "not worse than the limit by the margin"."""
        return self.promotion / self.promotion_threshold

    @property
    def guaranteed(self) -> bool:
        """Whether the promotion guarantee holds."""
        return self.requests > 0 and self.promotion >= self.promotion_threshold

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        compared = not math.isinf(self.relative_threshold)
        return {
            "requests": self.requests,
            "events": self.events,
            "baseline_requests": self.baseline_requests,
            "baseline_events": self.baseline_events,
            "worse_than_baseline": self.relative if compared else None,
            "worse_than_baseline_threshold": self.relative_threshold if compared else None,
            "above_limit": self.absolute,
            "above_limit_threshold": self.absolute_threshold,
            "below_limit_with_margin": self.promotion,
            "below_limit_with_margin_threshold": self.promotion_threshold,
        }


@dataclass(frozen=True, slots=True)
class LatencyFinding:
    """The latency test with its P95; ``unknown`` says why there is none."""

    finding: Finding
    p95: Quantile
    baseline_p95: Quantile
    hold_reason: str = ""
    unknown: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            **self.finding.as_json(),
            "p95_ms": self.p95.value,
            "p95_in_last_bucket": self.p95.beyond,
            "baseline_p95_ms": self.baseline_p95.value,
            "unknown": self.unknown or None,
        }


Pairs = list[tuple[float, float]]


def _test(
    canary: Pairs,
    baseline: Pairs,
    *,
    limit: float,
    worst: float,
    params: JudgeParams,
    alpha: float,
    compare: bool,
    cautious: Pairs | None = None,
) -> Finding:
    grid = evidence.dispersion_grid(params.dispersion_floor)
    new = evidence.Tilted.of(evidence.Counts.of(canary), grid)
    old = evidence.Tilted.of(evidence.Counts.of(baseline), grid)
    careful = new if cautious is None else evidence.Tilted.of(evidence.Counts.of(cautious), grid)
    n_new, x_new = (float(total[0]) for total in new.counts.totals)
    n_old, x_old = (float(total[0]) for total in old.counts.totals)
    relative = float(evidence.worse_than_baseline(new, old)[0]) if compare and n_new and n_old else 0.0
    strength = math.log(1 / alpha)
    return Finding(
        requests=n_new,
        events=x_new,
        baseline_requests=n_old,
        baseline_events=x_old,
        relative=relative,
        relative_threshold=strength if compare else math.inf,
        absolute=float(evidence.above_limit(new, old, limit)[0]) if n_new else 0.0,
        absolute_threshold=LIMIT_EVIDENCE if compare else strength,
        promotion=float(evidence.below_limit(careful, old, min(worst, 0.99))[0]) if n_new else 0.0,
        promotion_threshold=math.log(1 / params.wrong_promotion),
    )


def errors_test(history: Sequence[Sample], stage: StageParams, params: JudgeParams, alpha: float) -> Finding:
    """Test the error rate: against the baseline, against the limit, and for promotion."""
    canary = [
        (s.canary.requests, s.canary.errors or 0.0)
        for s in history
        if s.canary.missing is None and s.canary.requests
    ]
    baseline = [
        (s.baseline.requests, s.baseline.errors or 0.0)
        for s in history
        if s.baseline.missing is None and s.baseline.requests
    ]
    limit = stage.error_rate_limit_percent / 100
    compare = stage.weight_percent < 100
    found = _test(
        canary,
        baseline,
        limit=limit,
        worst=limit * (1 + params.margin),
        params=params,
        alpha=alpha,
        compare=compare,
    )
    told = (
        f"the old gateway shows {100 * found.baseline_rate:.3g} % over {found.baseline_requests:.0f}"
        if compare
        else "all traffic is here, so the limit alone is tested"
    )
    return _with_reason(
        found,
        f"error rate {100 * found.rate:.3g} % ({found.events:.0f} of {found.requests:.0f} requests) is above "
        f"the limit of {stage.error_rate_limit_percent:g} %; {told}",
    )


def _with_reason(found: Finding, reason: str) -> Finding:
    values = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return Finding(**{**values, "rollback_reason": reason})


def latency_test(
    history: Sequence[Sample], stage: StageParams, params: JudgeParams, alpha: float
) -> LatencyFinding:
    """Test the share of slow requests, counted at bucket edges so that no interpolation can mislead.

    For rolling back only requests surely slower than the limit count (next edge above), and the baseline's
    at the nearest edge at or below that one; for promotion every request that may be slower counts (next
    edge below). Istio's edges around 2000 ms are 1000 and 2500.
    """
    canary = [s.canary for s in history if s.canary.missing is None and s.canary.buckets]
    baseline = [s.baseline for s in history if s.baseline.missing is None and s.baseline.buckets]
    limit = stage.p95_limit_ms
    compare = stage.weight_percent < 100
    worst = min(_SLOW_SHARE * (1 + params.margin), 0.5)
    if not canary or canary[-1].buckets is None:
        none = _test([], [], limit=_SLOW_SHARE, worst=worst, params=params, alpha=alpha, compare=compare)
        unknown = Quantile(None)
        return LatencyFinding(
            none, unknown, unknown, unknown="no latency figures of the new gateway: empty answer"
        )
    upper = edge_above(canary[-1].buckets, limit)
    lower = edge_below(canary[-1].buckets, limit)
    sure = [pair for s in canary if (pair := slow_counts(s, upper))]
    maybe = [pair for s in canary if (pair := slow_counts(s, lower))]
    base = [pair for s in baseline if s.buckets and (pair := slow_counts(s, edge_below(s.buckets, upper)))]
    found = _test(
        sure,
        base,
        limit=_SLOW_SHARE,
        worst=worst,
        params=params,
        alpha=alpha,
        compare=compare,
        cautious=maybe,
    )
    p95 = quantile(sum_buckets(canary), 0.95)
    baseline_p95 = quantile(sum_buckets(baseline), 0.95)
    told = f"; the old gateway's P95 is {baseline_p95}" if compare else ""
    reason = (
        f"{100 * found.rate:.3g} % of {found.requests:.0f} requests took longer than {upper:g} ms: P95 is "
        f"{p95}, limit {limit:.0f} ms{told}"
    )
    hold = f"P95 {p95}: not yet certain that it stays within {limit:.0f} ms"
    if p95.value is not None and lower < p95.value <= limit and not found.guaranteed:
        hold += f" (answers between {lower:g} and {upper:g} ms cannot be told apart by the buckets)"
    return LatencyFinding(_with_reason(found, reason), p95, baseline_p95, hold_reason=hold)
