"""Evidence against three nulls, robust to overdispersed errors. All figures are natural logarithms.

Model: in interval *t* a gateway with ``n_t`` requests has ``x_t`` events, gamma-Poisson (negative binomial)
with mean ``n_t * p`` and shape ``k``: the rate of each interval is multiplied by an independent gamma
variable of mean 1 and variance ``1/k``. ``k`` is unknown. Each evidence figure is a mixture likelihood of
the alternative over the null's likelihood *at its most favourable k* (and p), so bursts are first explained
by dispersion, which the baseline's own intervals inform. By Ville's inequality such a ratio exceeds
``1/alpha`` at any moment with probability at most ``alpha`` under the null; it may be checked at each scrape.
Underdispersed data (binomial) are smaller in convex order and therefore safe. See ``docs/judge.md``.

Arrays carry a leading batch axis, so the bench runs the very code that judges production.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

__all__ = [
    "Counts",
    "Tilted",
    "above_limit",
    "below_limit",
    "dispersion_grid",
    "dispersion_prior",
    "windows",
    "worse_than_baseline",
]

Array = npt.NDArray[np.float64]

_POISSON = 1e12
"""Stands for k = infinity; at this shape the negative binomial is Poisson to double precision."""

_RATIOS = np.exp(np.arange(0.25, np.log(1000.0), 0.25))
"""Alternatives canary/baseline, equally weighted: 1.3 to 1000 in steps of 28 %."""

_NEWTON_STEPS = 14


def dispersion_grid(floor: float) -> Array:
    """Return the shapes k guarded against, from *floor* (most dispersed) to Poisson."""
    return np.array([floor, 2.5 * floor, 6 * floor, 15 * floor, 50 * floor, 250 * floor, _POISSON])


def dispersion_prior(size: int) -> Array:
    """Return the log prior over the grid in the alternative: half on independent errors, the rest equal."""
    weights = np.full(size, 0.5 / (size - 1))
    weights[-1] = 0.5
    result: Array = np.log(weights)
    return result


_RESTART_EVERY = 4
"""Intervals between the moments from which evidence is also gathered anew."""

_FROM_START = 0.7
"""Weight of the evidence gathered from the stage's first interval; the restarts share the rest."""

_EARLY_RESTARTS = 30
"""Restarts that have about equal weight; later ones fall off with the square, so that the sum stays 1."""


def windows(intervals: int) -> list[tuple[int, float]]:
    """Return (first interval, log weight) of the evidence to look at after *intervals* intervals.

    A canary may turn bad after a long healthy time, which evidence from the first interval alone would
    average away. Evidence is therefore also gathered from every fourth interval on; weighted so that the
    weights of all restarts ever sum to 1, the mixture keeps the guarantee. Only restarts about 4, 8, 16, ...
    intervals ago are looked at: leaving terms of a sum away errs on the safe side.
    """
    found = [(0, float(np.log(_FROM_START)))]
    length = _RESTART_EVERY
    while length < intervals:
        index = (intervals - length) // _RESTART_EVERY
        if index > 0 and index * _RESTART_EVERY != found[-1][0]:
            c = _EARLY_RESTARTS
            weight = (1 - _FROM_START) * (c + 1) / ((index + c) * (index + c + 1))
            found.append((index * _RESTART_EVERY, float(np.log(weight))))
        length *= 2
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests and events by interval, shape (batch, intervals). Empty intervals may be present."""

    requests: Array
    events: Array

    @classmethod
    def of(cls, pairs: list[tuple[float, float]]) -> Counts:
        """Build a batch of one from (requests, events) pairs."""
        both = np.array([pair for pair in pairs if pair[0] > 0], dtype=np.float64).reshape(-1, 2)
        # Neither retries counted twice nor a late scrape can make more events than requests.
        return cls(both[None, :, 0], np.minimum(both[None, :, 1], both[None, :, 0]))

    @property
    def totals(self) -> tuple[Array, Array]:
        """Sums over the intervals: requests and events."""
        return self.requests.sum(axis=1), self.events.sum(axis=1)


@dataclass(frozen=True, slots=True)
class Tilted:
    """Log-likelihood of one side over (batch, k), with the terms that no rate changes kept apart."""

    counts: Counts
    grid: Array
    constant: Array

    @classmethod
    def of(cls, counts: Counts, grid: Array) -> Tilted:
        """Prepare the rate-free terms once."""
        x = counts.events[:, None, :]
        k = grid[None, :, None]
        # gammaln(x + k) - gammaln(k) - x log k loses all digits at the Poisson end, where it is 0.
        terms = gammaln(x + k) - gammaln(k) - x * np.log(k)
        terms = np.where(k >= _POISSON, 0.0, terms)
        return cls(counts, grid, terms.sum(axis=2))

    def log_likelihood(self, rate: Array) -> Array:
        """Evaluate at *rate* of shape (batch, k, ...); terms without k or rate are left out on both sides."""
        extra = rate.ndim - 2
        shape = (slice(None), None, *([None] * extra), slice(None))
        n, x = self.counts.requests[shape], self.counts.events[shape]
        k = self.grid.reshape(1, -1, *([1] * (extra + 1)))
        mean = n * rate[..., None]
        with np.errstate(divide="ignore"):
            level = np.where(x > 0, x * np.log(np.where(x > 0, mean, 1.0)), 0.0)
        total: Array = (level - (x + np.where(k >= _POISSON, 0.0, k)) * np.log1p(mean / k)).sum(axis=-1)
        poisson = (level - mean).sum(axis=-1)
        is_poisson = (self.grid >= _POISSON).reshape(1, -1, *([1] * extra))
        constant = self.constant.reshape(*self.constant.shape, *([1] * extra))
        return constant + np.where(is_poisson, poisson, total)

    def slope(self, rate: Array) -> tuple[Array, Array]:
        """Return first and (negated) second derivative with respect to log rate, shapes as *rate*."""
        extra = rate.ndim - 2
        shape = (slice(None), None, *([None] * extra), slice(None))
        n, x = self.counts.requests[shape], self.counts.events[shape]
        k = self.grid.reshape(1, -1, *([1] * (extra + 1)))
        mean = n * rate[..., None]
        share = k / (mean + k)
        return ((x - mean) * share).sum(axis=-1), (mean * share * share * (1 + x / k)).sum(axis=-1)


def _peak(sides: list[tuple[Tilted, Array]], start: Array) -> tuple[Array, Array]:
    """Maximise the joint log-likelihood over the log rate; concave, so damped Newton converges.

    *sides* are (likelihood, multiplier of the common rate). Returns the log rate and the curvature there.
    """
    log_rate = start
    curvature = np.ones_like(start)
    for _ in range(_NEWTON_STEPS):
        first = np.zeros_like(start)
        curvature = np.zeros_like(start)
        for tilted, multiplier in sides:
            one, two = tilted.slope(np.exp(log_rate) * multiplier)
            first, curvature = first + one, curvature + two
        log_rate = log_rate + np.clip(first / np.maximum(curvature, 1e-12), -1.0, 1.0)
    return log_rate, np.maximum(curvature, 1e-12)


def _rate_start(requests: Array, events: Array) -> Array:
    return np.log(np.maximum(events, 0.3) / np.maximum(requests, 1e-9))


def _marginal(sides: list[tuple[Tilted, Array]], start: Array) -> Array:
    """Integrate the common rate out with prior d(rate)/rate (Laplace): the scale carries no information.

    The same prior stands in numerator and denominator, so its norm cancels; with independent errors the
    ratio is then exactly the conditional test given the total number of errors.
    """
    log_rate, curvature = _peak(sides, start)
    height = np.zeros_like(start)
    for tilted, multiplier in sides:
        height = height + tilted.log_likelihood(np.exp(log_rate) * multiplier)
    result: Array = height - 0.5 * np.log(curvature)
    return result


def worse_than_baseline(canary: Tilted, baseline: Tilted) -> Array:
    """Log evidence against "the canary's rate is at most the baseline's", shape (batch,)."""
    grid = canary.grid
    n_c, x_c = canary.counts.totals
    n_b, x_b = baseline.counts.totals
    batch = n_c.shape[0]
    one = np.ones((1, 1))
    start0 = np.broadcast_to(_rate_start(n_c + n_b, x_c + x_b)[:, None], (batch, grid.size)).copy()
    null = _marginal([(canary, one), (baseline, one)], start0).max(axis=1)
    ratios = _RATIOS[None, None, :]
    start1 = _rate_start(n_c[:, None, None] * ratios + n_b[:, None, None], (x_c + x_b)[:, None, None])
    start1 = np.broadcast_to(start1, (batch, grid.size, _RATIOS.size)).copy()
    joint = _marginal([(canary, ratios), (baseline, np.ones((1, 1, 1)))], start1)
    by_k = logsumexp(joint, axis=2) - np.log(_RATIOS.size)
    mixture: Array = np.asarray(logsumexp(by_k + dispersion_prior(grid.size)[None, :], axis=1))
    # Without a single canary event, or without baseline traffic, there is nothing to compare.
    usable = (x_c > 0) & (n_b > 0)
    return np.where(usable, mixture - null, 0.0)


def _own_marginal(side: Tilted | None, batch: int, size: int) -> Array:
    """What the baseline says about k, its own rate integrated out; nothing when it has no events."""
    if side is None or side.counts.requests.shape[1] == 0:
        return np.zeros((batch, size))
    n, x = side.counts.totals
    start = np.broadcast_to(_rate_start(n, x)[:, None], (batch, size)).copy()
    found = _marginal([(side, np.ones((1, 1)))], start)
    return np.where((x > 0)[:, None], found, 0.0)


def _against_limit(
    canary: Tilted, baseline: Tilted | None, limit: float, *, upper: bool, ratios: Array, weights: Array
) -> Array:
    grid = canary.grid
    n, x = canary.counts.totals
    batch = n.shape[0]
    known = _own_marginal(baseline, batch, grid.size)
    start = np.broadcast_to(_rate_start(n, x)[:, None], (batch, grid.size)).copy()
    best, _ = _peak([(canary, np.ones((1, 1)))], start)
    best_rate = np.exp(best)
    inside = np.minimum(best_rate, limit) if upper else np.maximum(best_rate, limit)
    null = (known + canary.log_likelihood(inside)).max(axis=1)
    rates = np.broadcast_to(limit * ratios[None, None, :], (batch, grid.size, ratios.size))
    joint = canary.log_likelihood(rates) + np.log(weights)[None, None, :]
    by_k = logsumexp(joint, axis=2) + known
    mixture: Array = np.asarray(logsumexp(by_k + dispersion_prior(grid.size)[None, :], axis=1))
    return np.where(n > 0, mixture - null, 0.0)


def above_limit(canary: Tilted, baseline: Tilted | None, limit: float) -> Array:
    """Log evidence against "the canary's rate is at most *limit*" (a ratio 0-1), shape (batch,)."""
    ratios = np.exp(np.arange(0.25, max(np.log(1.0 / limit), 0.5) + 0.25, 0.25))
    return _against_limit(
        canary, baseline, limit, upper=True, ratios=ratios, weights=np.full(ratios.size, 1.0 / ratios.size)
    )


def below_limit(canary: Tilted, baseline: Tilted | None, limit: float) -> Array:
    """Log evidence against "the canary's rate is at least *limit*" (a ratio 0-1), shape (batch,).

    Half of the mixture lies on (nearly) no events, which is what a healthy gateway shows.
    """
    ratios = np.array([1e-4, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65])
    weights = np.full(ratios.size, 0.5 / (ratios.size - 1))
    weights[0] = 0.5
    return _against_limit(canary, baseline, limit, upper=False, ratios=ratios, weights=weights)
