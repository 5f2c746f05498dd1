"""The judge on many runs at once: the evidence functions of production, evaluated where they can decide.

A window is judged in full only where a bound (``judge_kernel``) says that its evidence may reach the
threshold: the log-likelihood ratio of the canary's own rate, at the k that suits the canary's case best, over
the null at its best k; a mixture cannot exceed it. ``tests/judge/test_bench.py`` shows that the outcome is
the one of :func:`gateshift.judge.stage_tests.errors_test`, called scrape by scrape.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

import judge_kernel as kernel
from gateshift.judge import evidence
from gateshift.judge.persistence import CAUTION, LONGEST, TREND
from gateshift.judge.stage_tests import ERROR_SHARE, LIMIT_EVIDENCE, RECENT
from gateshift.judge.verdict import attempt_share
from gateshift.params.model import JudgeParams
from judge_cases import STAGES, Played, Traffic

PARAMS = JudgeParams()
GRID = evidence.dispersion_grid(PARAMS.dispersion_floor)
ALPHA = PARAMS.false_rollback_budget / len(STAGES) * attempt_share(0)
STRENGTH = float(-np.log(ALPHA * ERROR_SHARE))
SLOW_STRENGTH = float(-np.log(ALPHA * (1 - ERROR_SHARE)))
"""What the latency test is asked; it is the same test on requests slower than the P95 limit."""

GUARANTEE = float(-np.log(PARAMS.wrong_promotion))
NEVER = 1 << 30
_SLACK = 0.1
"""What the bound leaves out (two curvatures) is less than this and what the mixture costs."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


_CHUNK = 256
"""Windows judged together: their arrays stay in the processor's cache."""

_ROUNDS = (1, 4, 32, 1 << 30)
"""Windows of a run that one round judges; whoever was not rolled back by the first few gets more."""


class Side:
    """Cumulative sums of one gateway, so that any window costs one subtraction."""

    def __init__(self, traffic: Traffic) -> None:
        self.requests = traffic.requests
        self.errors = traffic.errors
        scrapes, runs = traffic.errors.shape
        self.sums = np.zeros((scrapes + 1, runs), dtype=np.int32)
        np.cumsum(traffic.errors, axis=0, out=self.sums[1:])
        self.table = evidence.shape_terms(np.arange(traffic.errors.max(initial=0) + 1.0), GRID)

    def windows(self, rows: Rows, starts: Rows, ends: Rows) -> evidence.Tilted:
        """The windows' likelihoods, as production would build them from single intervals."""
        events = (self.sums[ends, rows] - self.sums[starts, rows]).astype(np.float64)[:, None]
        repeats = (ends - starts).astype(np.float64)[:, None]
        counts = evidence.Counts(np.full((rows.size, 1), float(self.requests)), events, repeats)
        return evidence.Tilted(counts, GRID, kernel.window_sums(self.table, self.errors, rows, starts, ends))

    def window(self, start: int, end: int, rows: Rows) -> evidence.Tilted:
        """One window of these runs."""
        return self.windows(rows, np.full(rows.size, start), np.full(rows.size, end))


class Before:
    """What the old gateway's past says about k; blocks of scrapes are added as the migration goes on."""

    def __init__(self) -> None:
        self._blocks = 0
        self._rates: list[Floats] = []
        self._constant: Floats | float = 0.0

    def known(self, before: tuple[Traffic, ...]) -> Floats:
        """Return it for this past, shape (runs, k)."""
        for traffic in before[self._blocks :]:
            table = evidence.shape_terms(np.arange(traffic.errors.max(initial=0) + 1.0), GRID)
            self._constant = self._constant + kernel.sums_of(table, traffic.errors)
            self._blocks += 1
            self._rates.append(traffic.errors / float(traffic.requests))
        events = np.stack([t.errors.sum(axis=0).astype(np.float64) for t in before], axis=1)
        requests = np.array([float(t.requests) for t in before])
        repeats = np.array([float(t.errors.shape[0]) for t in before])
        self.tau: Floats = kernel.persistence(np.concatenate(self._rates), TREND, LONGEST, CAUTION)
        found: Floats = kernel.known(requests, events, repeats, self._constant, GRID)
        return found


@cache
def _fewest(n: float, limit: float, threshold: float) -> int:
    """The fewest errors in *n* requests whose likelihood ratio to *limit* reaches *threshold* (Poisson)."""
    mean = n * limit
    low, high = math.floor(mean), int(n) + 1
    while low + 1 < high:
        c = (low + high) // 2
        if c > mean and c * math.log(c / mean) - (c - mean) >= threshold:
            high = c
        else:
            low = c
    return high if high <= n else NEVER


def _ends(
    scrapes: int, n_c: int, limit: float, strength: float, limit_evidence: float | None, from_start: float
) -> tuple[Any, ...]:
    """Lay the windows of all ends out: index of each end's first, starts, thresholds, fewest errors."""
    first, starts, needs, fewest = [0, 0], [], [], []
    for end in range(1, scrapes + 1):
        for start, weight in evidence.windows(end, from_start):
            starts.append(start)
            needs.append(strength - weight)
            asked = strength - weight if limit_evidence is None else limit_evidence
            fewest.append(_fewest(n_c * (end - start), limit, asked))
        first.append(len(starts))
    return np.array(first), np.array(starts), np.array(needs), np.array(fewest)


def rolls_back(
    played: Played,
    past: Before | None = None,
    *,
    limit_evidence: float = LIMIT_EVIDENCE,
    strength: float = STRENGTH,
    from_start: float = evidence.FROM_START,
) -> npt.NDArray[np.int64]:
    """Return the first scrape at which the judge rolls back for its error rate, by run (or NEVER).

    With *strength* ``SLOW_STRENGTH`` and slow requests for errors it is the latency test.
    """
    limit = played.stage.limit
    alone = played.baseline.requests == 0
    scrapes, runs = played.canary.errors.shape
    first = np.full(runs, NEVER, dtype=np.int64)
    past = past or Before()
    before = past.known(played.before)
    likely = before - before.max(axis=1, keepdims=True)
    against = evidence.against(before)
    canary, baseline = Side(played.canary), Side(played.baseline)
    n_c, n_b = played.canary.requests, played.baseline.requests
    layout = _ends(scrapes, n_c, limit, strength, None if alone else limit_evidence, from_start)
    begin = np.ones(runs, dtype=np.int64)
    for most in _ROUNDS:
        found, begin = kernel.candidates(
            canary.errors, baseline.errors, n_c, n_b, limit, likely, against, GRID,
            canary.table, baseline.table, begin, most, *layout, past.tau, _SLACK,
        )  # fmt: skip
        for at in range(0, found.shape[0], _CHUNK):
            rows, starts, ends, which = found[at : at + _CHUNK].T
            needed = layout[2][which] * past.tau[rows]
            hit = _decides(
                canary, None if alone else baseline, rows, starts, ends, before, limit, needed, limit_evidence
            )
            np.minimum.at(first, rows[hit], ends[hit])
        begin = np.where(first < NEVER, scrapes + 1, begin)
    return first


def _decides(
    canary: Side,
    baseline: Side | None,
    rows: Rows,
    starts: Rows,
    ends: Rows,
    before: Floats,
    limit: float,
    needed: Floats,
    limit_evidence: float,
) -> npt.NDArray[np.bool_]:
    new = canary.windows(rows, starts, ends)
    if baseline is None:
        return np.asarray(evidence.above_limit(new, before[rows], limit) >= needed)
    hit = np.asarray(
        evidence.worse_than_baseline(new, baseline.windows(rows, starts, ends), before[rows]) >= needed
    )
    keep = np.flatnonzero(hit)
    if keep.size:
        rows, starts, ends = rows[keep], starts[keep], ends[keep]
        old = baseline.windows(rows, starts, ends)
        known = before[rows] + evidence.known_dispersion([old], rows.size, GRID)
        new = canary.windows(rows, starts, ends)
        hit[keep] = evidence.limit_ratio(new, known, limit) >= limit_evidence
    return hit


def promotes(played: Played, looks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first of *looks* (scrapes) at which the error rate alone would allow promotion, by run."""
    limit = played.stage.limit
    runs = played.canary.errors.shape[1]
    worst = min(limit * (1 + PARAMS.margin), 0.99)
    canary, baseline = Side(played.canary), Side(played.baseline)
    past = Before()
    before = past.known(played.before)
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
        found = evidence.below_limit(canary.window(0, end, rows), known, worst) / past.tau[rows] >= GUARANTEE
        first[rows[found]] = end
    return first
