"""Compiled loops of the judge's bench: drawing errors, and bounds that tell where evidence can decide.

Nothing here decides. What a bound lets through is judged by :mod:`gateshift.judge.evidence` itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

_POISSON = 1e12


@njit(cache=True)
def seed(value: int) -> None:
    """Seed the generator of this process's compiled loops."""
    np.random.seed(value)


@njit(cache=True)
def _poisson(mean: float) -> int:
    """Draw one Poisson number: by inversion where it is short, otherwise as NumPy does."""
    if mean > 12.0:
        return int(np.random.poisson(mean))
    term = math.exp(-mean)
    left = np.random.random()
    count = 0
    while left > term:
        left -= term
        count += 1
        term *= mean / count
        if term < 1e-18 and count > mean:
            break
    return count


@njit(cache=True)
def errors(requests: int, rates: Any, shock: Any) -> Any:
    """Draw errors: Poisson around requests x rate x shock, at most *requests*; shape (scrapes, runs)."""
    scrapes, runs = shock.shape
    found = np.zeros((scrapes, runs), dtype=np.int32)
    for t in range(scrapes):
        for run in range(runs):
            share = rates[t] * shock[t, run]
            found[t, run] = min(_poisson(min(share, 1.0) * requests), requests)
    return found


@njit(cache=True)
def sums_of(table: Any, found: Any) -> Any:
    """Sum *table* (events, k) over the scrapes of each run, shape (runs, k)."""
    scrapes, runs = found.shape
    total = np.zeros((runs, table.shape[1]))
    for t in range(scrapes):
        for run in range(runs):
            row = found[t, run]
            for j in range(table.shape[1]):
                total[run, j] += table[row, j]
    return total


@njit(cache=True)
def window_sums(table: Any, found: Any, runs: Any, starts: Any, ends: Any) -> Any:
    """Sum *table* over the windows [start, end) of these runs, shape (windows, k)."""
    total = np.zeros((runs.size, table.shape[1]))
    for i in range(runs.size):
        for t in range(starts[i], ends[i]):
            row = found[t, runs[i]]
            for j in range(table.shape[1]):
                total[i, j] += table[row, j]
    return total


@njit(cache=True)
def known(requests: Any, events: Any, repeats: Any, constant: Any, grid: Any) -> Any:
    """What the past says about k: :func:`gateshift.judge.evidence.known_dispersion` for grouped scrapes."""
    runs, blocks = events.shape
    out = np.zeros((runs, grid.size))
    for run in range(runs):
        x = events[run].sum()
        if x <= 0:
            continue
        n = (requests * repeats).sum()
        for j in range(grid.size):
            k = grid[j]
            log_rate = math.log(max(x, 0.3) / n)
            two = 1.0
            for _ in range(14):
                one = 0.0
                two = 0.0
                rate = math.exp(log_rate)
                for b in range(blocks):
                    mean = requests[b] * rate
                    share = k / (mean + k)
                    one += (events[run, b] - repeats[b] * mean) * share
                    two += mean * share * share * (repeats[b] + events[run, b] / k)
                step = min(max(one / max(two, 1e-12), -1.0), 1.0)
                log_rate += step
                if abs(step) < 1e-10:
                    break
            height = constant[run, j]
            for b in range(blocks):
                mean = requests[b] * math.exp(log_rate)
                if events[run, b] > 0:
                    height += events[run, b] * math.log(mean)
                if k >= _POISSON:
                    height -= repeats[b] * mean
                else:
                    height -= (events[run, b] + repeats[b] * k) * math.log1p(mean / k)
            out[run, j] = height - 0.5 * math.log(max(two, 1e-12))
    return out


@njit(cache=True)
def persistence(rates: Any, trend: int, longest: int, caution: float) -> Any:
    """Return tau by run of error ratios (scrapes, runs): :func:`gateshift.judge.persistence.persistence`."""
    scrapes, runs = rates.shape
    out = np.ones(runs)
    if scrapes < 2 * trend:
        return out
    apart = np.empty(scrapes)
    sums = np.zeros(scrapes + 1)
    for run in range(runs):
        for t in range(scrapes):
            sums[t + 1] = sums[t] + rates[t, run]
        spread = 0.0
        for t in range(scrapes):
            first, last = max(t - trend // 2, 0), min(t + trend // 2 + 1, scrapes)
            apart[t] = rates[t, run] - (sums[last] - sums[first]) / (last - first)
            spread += apart[t] * apart[t]
        if spread <= 0.0:
            continue
        for lag in range(1, longest + 1):
            found = 0.0
            for t in range(lag, scrapes):
                found += apart[t] * apart[t - lag]
            if found / spread < 2.0 / math.sqrt(scrapes):
                break
            out[run] += caution * 2.0 * found / spread
    return out


@njit(cache=True)
def _gain(c: float, b: float, t: float, n_c: float, n_b: float, limit: float, k: float) -> float:
    """Log-likelihood of own rates over that of the null at this k; the null's rate is nearly its best."""
    if n_b == 0:
        mean, at = c / t, n_c * limit
        return c * math.log(mean / at) - (c + t * k) * (math.log1p(mean / k) - math.log1p(at / k))
    rate = (c + b) / ((n_c + n_b) * t)
    w_c, w_b = k / (k + n_c * rate), k / (k + n_b * rate)
    rate = (w_c * c + w_b * b) / ((w_c * n_c + w_b * n_b) * t)
    found = c * math.log(c / (n_c * rate * t))
    found -= (c + t * k) * math.log1p((c / t - n_c * rate) / (k + n_c * rate))
    if b > 0:
        found += b * math.log(b / (n_b * rate * t))
    found -= (b + t * k) * math.log1p((b / t - n_b * rate) / (k + n_b * rate))
    return found


@njit(cache=True)
def _independent(c: float, b: float, t: float, n_c: float, n_b: float, limit: float) -> float:
    """The same were errors independent: with intervals of one size no k gives more."""
    if n_b == 0:
        at = n_c * limit * t
        return c * math.log(c / at) - (c - at)
    both = c + b
    found = c * math.log(c / both * (n_c + n_b) / n_c)
    if b > 0:
        found += b * math.log(b / both * (n_c + n_b) / n_b)
    return found


@njit(cache=True)
def _possible(
    c: float, b: float, t: float, n_c: float, n_b: float, limit: float, need: float, apart: Any, grid: Any
) -> bool:
    """Whether some k may give *need*; *apart* is what each k costs the alternative more than the null."""
    most = _independent(c, b, t, n_c, n_b, limit)
    if most < need:
        return False
    for j in range(grid.size - 1, -1, -1):
        if most + apart[j] < need:
            continue
        if grid[j] < _POISSON:
            most = _gain(c, b, t, n_c, n_b, limit, grid[j])
        if most < need:
            return False
        if most + apart[j] >= need:
            return True
    return False


@njit(cache=True)
def candidates(
    canary: Any,
    baseline: Any,
    n_c: int,
    n_b: int,
    limit: float,
    likely: Any,
    against: Any,
    grid: Any,
    table_c: Any,
    table_b: Any,
    begin: Any,
    most: int,
    first: Any,
    starts: Any,
    needs: Any,
    fewest: Any,
    tau: Any,
    slack: float,
) -> Any:
    """List windows whose evidence may reach their threshold, at most about *most* a run.

    Each run is scanned from its *begin* on (rows of *first* index the windows of one end); returned are runs,
    starts, ends, indices of windows, and where each run's scan goes on.
    """
    scrapes, runs = canary.shape
    out = np.empty((1024, 4), dtype=np.int64)
    count = 0
    go_on = begin.copy()
    sum_c, sum_b = np.zeros(scrapes + 1), np.zeros(scrapes + 1)
    apart = np.empty(grid.size)
    for run in range(runs):
        if begin[run] > scrapes:
            continue
        for t in range(scrapes):
            sum_c[t + 1] = sum_c[t] + canary[t, run]
            sum_b[t + 1] = sum_b[t] + (baseline[t, run] if n_b > 0 else 0)
        for j in range(grid.size):
            apart[j] = likely[run, j] - against[run, j]
        own = 0
        end = begin[run]
        while end <= scrapes and own < most:
            for w in range(first[end], first[end + 1]):
                start = starts[w]
                c = sum_c[end] - sum_c[start]
                b = sum_b[end] - sum_b[start]
                if c < fewest[w] or c * n_b < b * n_c:
                    continue
                t = float(end - start)
                need = needs[w] * tau[run] - slack
                if not _possible(c, b, t, n_c, n_b, limit, need, apart, grid):
                    continue
                if not _bounded(
                    canary, baseline, run, start, end, c, b, n_c, n_b, limit, need,
                    likely[run], against[run], grid, table_c, table_b,
                ):  # fmt: skip
                    continue
                if count == out.shape[0]:
                    bigger = np.empty((2 * count, 4), dtype=np.int64)
                    bigger[:count] = out
                    out = bigger
                out[count, 0], out[count, 1], out[count, 2], out[count, 3] = run, start, end, w
                count += 1
                own += 1
            end += 1
        go_on[run] = end
    return out[:count], go_on


@njit(cache=True)
def _bounded(
    canary: Any, baseline: Any, run: int, start: int, end: int, c: float, b: float, n_c: int, n_b: int,
    limit: float, need: float, likely: Any, against: Any, grid: Any, table_c: Any, table_b: Any,
) -> bool:  # fmt: skip
    """The alternative at the k that suits it best over the null at the k that suits it best."""
    t = float(end - start)
    best_own, best_null = -1e300, -1e300
    for j in range(grid.size):
        k = grid[j]
        shape = 0.0
        if k < _POISSON:
            for i in range(start, end):
                shape += table_c[canary[i, run], j]
                if n_b > 0:
                    shape += table_b[baseline[i, run], j]
        own = shape + _level(c, t, c / t, k)
        gain = _independent(c, b, t, n_c, n_b, limit)
        if n_b > 0:
            own += _level(b, t, b / t, k)
        if k < _POISSON:
            gain = _gain(c, b, t, n_c, n_b, limit, k)
        best_own = max(best_own, own + likely[j])
        best_null = max(best_null, own - gain + against[j])
    return best_own - best_null >= need


@njit(cache=True)
def _level(x: float, t: float, mean: float, k: float) -> float:
    if x <= 0:
        return 0.0
    if k >= _POISSON:
        return x * math.log(mean) - t * mean
    return x * math.log(mean) - (x + t * k) * math.log1p(mean / k)
