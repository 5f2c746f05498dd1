"""Plain measurements of a history: sums, quantiles as Prometheus computes them, gaps. No decisions here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateshift.judge.model import Buckets, Missing, Sample, Side

__all__ = [
    "Gap",
    "Quantile",
    "edge_above",
    "edge_below",
    "quantile",
    "slow_counts",
    "sum_buckets",
    "totals",
    "trailing_gap",
]


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile in milliseconds; ``beyond`` when it lies above the last finite edge, which is then given."""

    value: float | None
    beyond: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        return f"more than {self.value:.0f} ms (last bucket)" if self.beyond else f"{self.value:.0f} ms"


def quantile(buckets: Buckets | None, q: float) -> Quantile:
    """Interpolate as ``histogram_quantile`` does: linearly in the bucket, 0 as the first lower edge.

    In the last (infinite) bucket Prometheus answers its lower edge; that is said by ``beyond``.
    """
    if not buckets or not math.isinf(buckets[-1][0]) or buckets[-1][1] <= 0:
        return Quantile(None)
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for le, raw in buckets:
        # Scrapes are not atomic over buckets: Prometheus forces counts to rise, and so do we.
        count = max(raw, below)
        if count >= rank and count > below:
            if math.isinf(le):
                return Quantile(lower, beyond=True)
            return Quantile(lower + (le - lower) * (rank - below) / (count - below))
        lower, below = le, count
    return Quantile(None)


def sum_buckets(sides: Sequence[Side]) -> Buckets | None:
    """Add the histograms of several intervals; edges must agree, otherwise the newest layout is kept."""
    known = [side.buckets for side in sides if side.buckets]
    if not known:
        return None
    edges = tuple(le for le, _ in known[-1])
    sums = dict.fromkeys(edges, 0.0)
    for buckets in known:
        if tuple(le for le, _ in buckets) == edges:
            for le, count in buckets:
                sums[le] += count
    return tuple(sums.items())


def totals(sides: Sequence[Side]) -> tuple[float, float]:
    """Return requests and errors over the intervals that are known."""
    return (
        math.fsum(s.requests for s in sides if s.requests is not None),
        math.fsum(s.errors for s in sides if s.requests is not None and s.errors is not None),
    )


def edge_above(buckets: Buckets, limit: float) -> float:
    """Smallest bucket edge at or above *limit*: what is counted above it is surely slow."""
    return min(le for le, _ in buckets if le >= limit)


def edge_below(buckets: Buckets, limit: float) -> float:
    """Largest bucket edge at or below *limit* (0 if there is none): nothing slow is missed above it."""
    return max((le for le, _ in buckets if le <= limit), default=0.0)


def slow_counts(side: Side, edge: float) -> tuple[float, float] | None:
    """Return (requests, requests slower than *edge*), None where the histogram is unknown."""
    if not side.buckets or side.missing is not None:
        return None
    total = side.buckets[-1][1]
    under = max((count for le, count in side.buckets if le <= edge), default=0.0)
    return total, max(total - under, 0.0)


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of intervals without figures that reaches to the newest sample."""

    seconds: float
    missing: Missing
    intervals: int


def trailing_gap(history: Sequence[Sample], side_name: str, now: float) -> Gap | None:
    """Return the gap that is still open on one side ("canary" or "baseline"), or None."""
    last: Missing | None = None
    count = 0
    since = history[0].time if history else now
    for sample in reversed(history):
        missing = getattr(sample, side_name).missing
        if missing is None:
            since = sample.time
            break
        last = last or missing
        count += 1
    return None if last is None else Gap(max(now - since, 0.0), last, count)
