"""The judge on many runs at once: the evidence functions of production, evaluated where they can decide.

A run is looked at in full only where a bound says that its evidence may reach the threshold. The bound is
the log-likelihood ratio of the canary's own rate, at the k that suits the canary's case best, over the null
at its best k; a mixture cannot exceed it. ``tests/judge/test_bench.py`` shows that the outcome is the one of
:func:`gateshift.judge.stage_tests.errors_test`, called scrape by scrape.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from gateshift.judge import evidence
from gateshift.judge.stage_tests import ERROR_SHARE, LIMIT_EVIDENCE, RECENT
from gateshift.judge.verdict import attempt_share
from gateshift.params.model import JudgeParams
from judge_cases import STAGES, Played, Traffic

PARAMS = JudgeParams()
GRID = evidence.dispersion_grid(PARAMS.dispersion_floor)
ALPHA = PARAMS.false_rollback_budget / len(STAGES) * attempt_share(0)
STRENGTH = float(-np.log(ALPHA * ERROR_SHARE))
GUARANTEE = float(-np.log(PARAMS.wrong_promotion))
NEVER = 1 << 30
_SLACK = 0.1
"""For single precision. What the bound leaves out (two curvatures) is less than what the mixture costs."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


class Side:
    """Cumulative sums of one gateway, so that any window costs one subtraction.

    ``shapes`` sums the terms that no rate changes, for the shapes *kept* only: they serve the bound.
    """

    def __init__(self, traffic: Traffic, kept: npt.NDArray[np.intp] | None = None) -> None:
        self.requests = traffic.requests
        self._errors = traffic.errors
        scrapes, runs = traffic.errors.shape
        self.sums = np.zeros((scrapes + 1, runs), dtype=np.int32)
        np.cumsum(traffic.errors, axis=0, out=self.sums[1:])
        self._table = evidence.shape_terms(np.arange(traffic.errors.max(initial=0) + 1.0), GRID)
        if kept is not None and traffic.requests:
            # Single precision holds ten thousands to a hundredth, which the bound's slack forgives.
            self._shapes = np.zeros((scrapes + 1, runs, kept.size), dtype=np.float32)
            for column, index in enumerate(kept):
                self._shapes[1:, :, column] = np.cumsum(self._table[:, index][traffic.errors], axis=0)

    def window(self, start: int, end: int, rows: Rows) -> evidence.Tilted:
        """The window's likelihood for these runs, as production would build it from single intervals."""
        events = (self.sums[end, rows] - self.sums[start, rows]).astype(np.float64)[:, None]
        counts = evidence.Counts(
            np.full((rows.size, 1), float(self.requests)), events, np.array([float(end - start)])
        )
        return evidence.Tilted(counts, GRID, self._table[self._errors[start:end, rows]].sum(axis=0))

    def constant(self, start: int, end: int, rows: Rows) -> Floats:
        """The window's terms that no rate changes, shape (rows, kept shapes)."""
        found: Floats = self._shapes[end, rows] - self._shapes[start, rows]
        return found


class Before:
    """What the old gateway's past says about k; blocks of scrapes are added as the migration goes on."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Traffic, Floats]] = []

    def known(self, before: tuple[Traffic, ...]) -> Floats:
        """Return it for this past, shape (runs, k)."""
        for traffic in before[len(self._blocks) :]:
            table = evidence.shape_terms(np.arange(traffic.errors.max(initial=0) + 1.0), GRID)
            constant = np.zeros((traffic.errors.shape[1], GRID.size))
            for row in traffic.errors:
                constant += table[row]
            self._blocks.append((traffic, constant))
        runs = before[0].errors.shape[1]
        counts = evidence.Counts(
            np.tile([float(t.requests) for t in before], (runs, 1)),
            np.stack([t.errors.sum(axis=0).astype(np.float64) for t in before], axis=1),
            np.array([float(t.errors.shape[0]) for t in before]),
        )
        constant = np.sum([own for _, own in self._blocks], axis=0)
        return evidence.known_dispersion([evidence.Tilted(counts, GRID, constant)], runs, GRID)


def _bound(
    canary: Side,
    baseline: Side | None,
    start: int,
    end: int,
    rows: Rows,
    known: Floats,
    against: Floats,
    limit: float,
    shapes: npt.NDArray[np.float32],
) -> Floats:
    """An upper bound of the evidence that may decide, shape (rows,); single precision is enough for it.

    Terms that own rates and null share are left out; what is left of a side's log-likelihood at the mean m
    of a scrape is x log m - (x + T k) log(1 + m/k).
    """
    t = np.float32(end - start)
    c = (canary.sums[end, rows] - canary.sums[start, rows]).astype(np.float32)[:, None]
    n_c = np.float32(canary.requests)
    if baseline is None:
        mean = np.maximum(c / t, n_c * np.float32(limit))
        own, level = _spread(c, t, mean, shapes), c[:, 0] * np.log(mean[:, 0] / (n_c * np.float32(limit)))
        null = _spread(c, t, n_c * np.float32(limit), shapes)
    else:
        b = (baseline.sums[end, rows] - baseline.sums[start, rows]).astype(np.float32)[:, None]
        n_b = np.float32(baseline.requests)
        rate = (c + b) / ((n_c + n_b) * t)
        own = _spread(c, t, c / t, shapes) + _spread(b, t, b / t, shapes)
        # Weighing the sides by what a request of each tells at this k comes near the null's best rate.
        w_c, w_b = shapes / (shapes + n_c * rate), shapes / (shapes + n_b * rate)
        rate_k = (w_c * c + w_b * b) / ((w_c * n_c + w_b * n_b) * t)
        null = _spread(c, t, n_c * rate_k, shapes) + _spread(b, t, n_b * rate_k, shapes)
        null += (c + b) * np.log(rate_k / rate)
        level = (c * np.log(c / (rate * n_c * t)))[:, 0]
        level += np.where(b > 0, b * np.log(np.maximum(b, 1) / (rate * n_b * t)), 0)[:, 0]
    window = canary.constant(start, end, rows)
    if baseline is not None:
        window = window + baseline.constant(start, end, rows)
    offset = window.max(axis=1, keepdims=True)
    single = window - offset
    # The same two steps as in evidence: the alternative weighs k by what is known, the null may choose it.
    best = (single + null + against).max(axis=1)
    found: Floats = level + (single + own + known).max(axis=1) - best
    return found


_KS = np.minimum(GRID, 1e9).astype(np.float32)


def _spread(events: Floats, repeats: Floats, mean: Floats, shapes: npt.NDArray[np.float32]) -> Floats:
    return -(events + repeats * shapes) * np.log1p(mean / shapes)


def _kept(known: Floats) -> npt.NDArray[np.intp]:
    """The shapes that a window may still make the likeliest in some run."""
    likely = (known - known.max(axis=1, keepdims=True)).max(axis=0) > -30
    likely[:9:2] = True  # some that the null may turn to; leaving others out only widens the bound
    found: npt.NDArray[np.intp] = np.flatnonzero(likely)
    return found


@cache
def _fewest(n: float, limit: float, threshold: float) -> int:
    """The fewest errors in *n* requests whose likelihood ratio to *limit* reaches *threshold* (Poisson)."""
    c = np.arange(1, int(n * min(limit * 40, 1.0)) + 60, dtype=np.float64)
    mean = n * limit
    reached = (c > mean) & (c * np.log(c / mean) - (c - mean) >= threshold)
    return int(c[reached.argmax()]) if reached.any() else NEVER


def rolls_back(
    played: Played, past: Before | None = None, *, limit_evidence: float = LIMIT_EVIDENCE
) -> npt.NDArray[np.int64]:
    """Return the first scrape at which the judge rolls back for its error rate, by run (or NEVER)."""
    limit = played.stage.limit
    alone = played.baseline.requests == 0
    scrapes, runs = played.canary.errors.shape
    first = np.full(runs, NEVER, dtype=np.int64)
    before = (past or Before()).known(played.before)
    kept = _kept(before)
    shapes = _KS[kept]
    against = evidence.against(before)[:, kept].astype(np.float32)
    likely = (before - before.max(axis=1, keepdims=True))[:, kept].astype(np.float32)
    canary = Side(played.canary, kept)
    baseline = None if alone else Side(played.baseline, kept)
    n_c, n_b = played.canary.requests, played.baseline.requests
    open_ = np.ones(runs, dtype=bool)
    for end in range(1, scrapes + 1):
        for start, weight in evidence.windows(end):
            t = end - start
            needed = STRENGTH - weight
            fewest = _fewest(n_c * t, limit, needed if alone else limit_evidence)
            c = canary.sums[end] - canary.sums[start]
            rows = np.flatnonzero(open_ & (c >= fewest))
            if rows.size and baseline is not None:
                rows = rows[_poisson(c[rows], baseline, start, end, rows, n_c, n_b) >= needed - _SLACK]
            if not rows.size:
                continue
            bound = _bound(canary, baseline, start, end, rows, likely[rows], against[rows], limit, shapes)
            rows = rows[bound >= needed - _SLACK]
            if not rows.size:
                continue
            hit = _decides(canary, baseline, start, end, rows, before[rows], limit, needed, limit_evidence)
            first[rows[hit]] = end
            open_[rows[hit]] = False
    return first


def _poisson(
    c: npt.NDArray[np.int64], baseline: Side, start: int, end: int, rows: Rows, n_c: int, n_b: int
) -> Floats:
    """The likelihood ratio were errors independent: no k gives more, with intervals of one size."""
    b = (baseline.sums[end, rows] - baseline.sums[start, rows]).astype(np.float64)
    both = c + b
    with np.errstate(divide="ignore", invalid="ignore"):
        own = c * np.log(c / both * (n_c + n_b) / n_c)
        other = np.where(b > 0, b * np.log(np.where(b > 0, b / both * (n_c + n_b) / n_b, 1.0)), 0.0)
    found: Floats = np.where(c * n_b > b * n_c, own + other, 0.0)
    return found


def _decides(
    canary: Side,
    baseline: Side | None,
    start: int,
    end: int,
    rows: Rows,
    before: Floats,
    limit: float,
    needed: float,
    limit_evidence: float,
) -> npt.NDArray[np.bool_]:
    new = canary.window(start, end, rows)
    if baseline is None:
        return np.asarray(evidence.above_limit(new, before, limit) >= needed)
    old = baseline.window(start, end, rows)
    known = before + evidence.known_dispersion([old], rows.size, GRID)
    hit = np.asarray(evidence.limit_ratio(new, known, limit) >= limit_evidence)
    keep = np.flatnonzero(hit)
    if keep.size:
        relative = evidence.worse_than_baseline(
            canary.window(start, end, rows[keep]), baseline.window(start, end, rows[keep]), before[keep]
        )
        hit[keep] = relative >= needed
    return hit


def promotes(played: Played, looks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first of *looks* (scrapes) at which the error rate alone would allow promotion, by run."""
    limit = played.stage.limit
    runs = played.canary.errors.shape[1]
    worst = min(limit * (1 + PARAMS.margin), 0.99)
    canary, baseline = Side(played.canary), Side(played.baseline)
    before = Before().known(played.before)
    first = np.full(runs, NEVER, dtype=np.int64)
    n = played.canary.requests
    for end in looks:
        good = canary.sums[end] <= limit * n * end
        for recent in (*RECENT, max(RECENT[-1], int(end) // 4)):
            newest = min(recent, int(end))
            good &= canary.sums[end] - canary.sums[end - newest] <= limit * n * newest
        rows = np.flatnonzero((first == NEVER) & good)
        if not rows.size:
            continue
        known = before[rows]
        if baseline.requests:
            known = known + evidence.known_dispersion([baseline.window(0, end, rows)], rows.size, GRID)
        found = evidence.below_limit(canary.window(0, end, rows), known, worst) >= GUARANTEE
        first[rows[found]] = end
    return first
