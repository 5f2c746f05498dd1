"""The two sequential tests of a stage, errors and latency, on the evidence of :mod:`.evidence`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gateshift.judge import evidence
from gateshift.judge.findings import Finding, LatencyFinding, Window, ratio
from gateshift.judge.measure import Quantile, edge_above, edge_below, quantile, slow_counts, sum_buckets
from gateshift.judge.model import Sample, Side
from gateshift.judge.persistence import persistence
from gateshift.params.model import JudgeParams, StageParams

__all__ = [
    "ERROR_SHARE",
    "LIMIT_EVIDENCE",
    "RECENT",
    "errors_test",
    "latency_test",
]

ERROR_SHARE = 0.8
"""Share of a stage's false-rollback budget that errors get; latency gets the rest."""

LIMIT_EVIDENCE = math.log(1.4)
"""Log-likelihood ratio of the measured rate to the limit, asked *beside* the evidence against the baseline.

The budget is kept by the comparison; this only tells a canary that is worse, but within the limit, from one
above it. More would delay every rollback near the limit (2 % errors at a limit of 1 %) several times over;
``docs/verdicts.md`` has the figures of both.
"""

_NO_LATENCY = "no latency figures of the new gateway: empty answer"

RECENT = (2, 4, 8)
"""The newest intervals that must keep the limit before a promotion, each number of them; and a quarter."""

_SLOW_SHARE = 0.05
"""A P95 limit says that at most 5 % of the requests may be slower."""


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
    reference: Pairs,
    cautious: Pairs | None = None,
) -> Finding:
    """Test aligned lists of (requests, events); an interval without figures is (0, 0).

    *reference* are the baseline's intervals of before the stage: they tell how much errors burst.
    """
    grid = evidence.dispersion_grid(params.dispersion_floor)
    before = evidence.Tilted.of(evidence.Counts.of(reference), grid)
    known = evidence.known_dispersion([before], 1, grid)
    strength = math.log(1 / alpha)
    tau = persistence(reference)
    relative_threshold = strength if compare else math.inf
    absolute_threshold = LIMIT_EVIDENCE if compare else strength
    looked_at = [
        _window(
            canary,
            baseline,
            start,
            weight,
            limit=limit,
            known=known,
            grid=grid,
            compare=compare,
            tau=tau,
        )
        for start, weight in evidence.windows(len(canary))
    ]
    loudest = max(looked_at, key=lambda window: ratio(window, relative_threshold, absolute_threshold))
    careful = canary if cautious is None else cautious
    new = evidence.Tilted.of(evidence.Counts.of(careful), grid)
    old = evidence.Tilted.of(evidence.Counts.of(baseline), grid)
    all_known = known + evidence.known_dispersion([old], 1, grid)
    whole = looked_at[0]
    return Finding(
        requests=whole.requests,
        events=whole.events,
        baseline_requests=whole.baseline_requests,
        baseline_events=whole.baseline_events,
        late=_late(canary, limit),
        window=loudest,
        relative_threshold=relative_threshold,
        absolute_threshold=absolute_threshold,
        promotion=float(evidence.below_limit(new, all_known, min(worst, 0.99))[0]) / tau
        if whole.requests
        else 0.0,
        promotion_threshold=math.log(1 / params.wrong_promotion),
        tau=tau,
    )


def _late(canary: Pairs, limit: float) -> tuple[int, float] | None:
    """Return the fewest newest intervals whose rate is above *limit*, with that rate."""
    for count in (*RECENT, max(RECENT[-1], len(canary) // 4)):
        newest = canary[-count:]
        requests = math.fsum(n for n, _ in newest)
        events = math.fsum(x for _, x in newest)
        if events > limit * requests:
            return len(newest), events / requests
    return None


def _window(
    canary: Pairs,
    baseline: Pairs,
    start: int,
    weight: float,
    *,
    limit: float,
    known: evidence.Array,
    grid: evidence.Array,
    compare: bool,
    tau: float,
) -> Window:
    new = evidence.Tilted.of(evidence.Counts.of(canary[start:]), grid)
    old = evidence.Tilted.of(evidence.Counts.of(baseline[start:]), grid)
    n_new, x_new = (float(total[0]) for total in new.counts.totals)
    n_old, x_old = (float(total[0]) for total in old.counts.totals)
    # Evidence of being worse needs a worse rate; skipping the rest saves nearly all work of healthy stages.
    above = n_new > 0 and x_new > limit * n_new
    worse = above and n_old > 0 and x_new * n_old > x_old * n_new
    relative = absolute = 0.0
    if worse and compare:
        relative = float(evidence.worse_than_baseline(new, old, known)[0]) / tau
    if above:
        all_known = known + evidence.known_dispersion([old], 1, grid)
        test = evidence.limit_ratio if compare else evidence.above_limit
        absolute = float(test(new, all_known, limit)[0])
    return Window(
        start,
        n_new,
        x_new,
        n_old,
        x_old,
        relative + weight if worse else 0.0,
        # Beside the comparison the limit is asked at a fixed strength; alone it carries the budget.
        absolute if compare or not above else absolute / tau + weight,
    )


def errors_test(
    history: Sequence[Sample],
    stage: StageParams,
    params: JudgeParams,
    alpha: float,
    reference: Sequence[Side] = (),
) -> Finding:
    """Test the error rate: against the baseline, against the limit, and for promotion."""
    canary = [_pair(s.canary) for s in history]
    baseline = [_pair(s.baseline) for s in history]
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
        reference=[_pair(side) for side in reference],
    )
    loud = found.window
    told = (
        f"the old gateway shows {100 * loud.baseline_rate:.3g} % over {loud.baseline_requests:.0f}"
        if compare
        else "all traffic is here, so the limit alone is tested"
    )
    return replace(
        found,
        rollback_reason=f"error rate {100 * loud.rate:.3g} % "
        f"({loud.events:.0f} of {loud.requests:.0f} requests{_since(history, loud.start)}) "
        f"is above the limit of {stage.error_rate_limit_percent:g} %; {told}",
    )


def _pair(side: Side) -> tuple[float, float]:
    if side.missing is not None or not side.requests:
        return 0.0, 0.0
    return side.requests, side.errors or 0.0


def _slow_pair(side: Side, edge: float) -> tuple[float, float]:
    """(requests, slow requests) of the old gateway, whose edges may differ: the nearest one not above."""
    found = slow_counts(side, edge_below(side.buckets, edge)) if side.buckets else None
    return found or (0.0, 0.0)


def _since(history: Sequence[Sample], start: int) -> str:
    return f" in the last {history[-1].time - history[start - 1].time:.0f} s" if start > 0 else ""


def latency_test(
    history: Sequence[Sample],
    stage: StageParams,
    params: JudgeParams,
    alpha: float,
    reference: Sequence[Side] = (),
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
        none = _test(
            [], [], limit=_SLOW_SHARE, worst=worst, params=params, alpha=alpha, compare=compare, reference=[]
        )
        unknown = Quantile(None)
        return LatencyFinding(none, unknown, unknown, unknown=_NO_LATENCY)
    upper = edge_above(canary[-1].buckets, limit)
    lower = edge_below(canary[-1].buckets, limit)
    nothing = (0.0, 0.0)
    sure = [slow_counts(s.canary, upper) or nothing for s in history]
    maybe = [slow_counts(s.canary, lower) or nothing for s in history]
    base = [_slow_pair(s.baseline, upper) for s in history]
    found = _test(
        sure,
        base,
        limit=_SLOW_SHARE,
        worst=worst,
        params=params,
        alpha=alpha,
        compare=compare,
        reference=[_slow_pair(side, upper) for side in reference],
        cautious=maybe,
    )
    p95 = quantile(sum_buckets(canary), 0.95)
    baseline_p95 = quantile(sum_buckets(baseline), 0.95)
    told = f"; the old gateway's P95 is {baseline_p95}" if compare else ""
    reason = (
        f"{100 * found.window.rate:.3g} % of {found.window.requests:.0f} requests"
        f"{_since(history, found.window.start)} took longer than {upper:g} ms: P95 is "
        f"{p95}, limit {limit:.0f} ms{told}"
    )
    hold = f"P95 {p95}: not yet certain that it stays within {limit:.0f} ms"
    if p95.value is not None and lower < p95.value <= limit and not found.guaranteed:
        hold += f" (answers between {lower:g} and {upper:g} ms cannot be told apart by the buckets)"
    return LatencyFinding(replace(found, rollback_reason=reason), p95, baseline_p95, hold_reason=hold)
