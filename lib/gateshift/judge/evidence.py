"""Evidence against three nulls, robust to overdispersed errors. All figures are natural logarithms.

Model: in interval *t* a gateway with ``n_t`` requests has ``x_t`` events, gamma-Poisson (negative binomial)
with mean ``n_t * p`` and shape ``k``: the rate of each interval is multiplied by an independent gamma
variable of mean 1 and variance ``1/k``. ``k`` is unknown. Each evidence figure is a mixture likelihood of
the alternative over the null's likelihood *at its most favourable k* (and p), so bursts are first explained
by dispersion, which the baseline's own intervals inform. By Ville's inequality such a ratio exceeds
``1/alpha`` at any moment with probability at most ``alpha`` under the null; it may be checked at each scrape.
Underdispersed data (binomial) are smaller in convex order and therefore safe. See ``docs/verdicts.md``.

Arrays carry a leading batch axis, so the bench runs the very code that judges production.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Counts",
    "Tilted",
    "above_limit",
    "against",
    "below_limit",
    "dispersion_grid",
    "known_dispersion",
    "limit_ratio",
    "shape_terms",
    "windows",
    "worse_than_baseline",
]

Array = npt.NDArray[np.float64]


def logsumexp(values: Array, axis: int, *, keepdims: bool = False) -> Array:
    """Return log(sum(exp(values))) along *axis*; a slice of nothing but -inf gives -inf."""
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        found: Array = np.log(np.exp(values - top).sum(axis=axis, keepdims=True)) + top
    return found if keepdims else found.squeeze(axis)


_POISSON = 1e12
"""Stands for k = infinity; at this shape the negative binomial is Poisson to double precision."""

_RATIOS = np.exp(np.arange(0.4, np.log(300.0), 0.4))
"""Alternatives canary/baseline, equally weighted: 1.5 to 270 in steps of 49 %; more of them cost evidence."""

_NEWTON_STEPS = 14
_CONVERGED = 1e-10


_BELOW_FLOOR = (0.3, 0.45, 0.67)


def dispersion_grid(floor: float) -> Array:
    """Return the shapes k guarded against, from below *floor* (most dispersed) to Poisson."""
    # Narrow steps where k matters: with a long history the nearest one must be near enough. An incident that
    # begins or ends within a window looks burstier than the floor; it must not pass for evidence.
    steps = np.array([*_BELOW_FLOOR, 1, 1.5, 2.25, 3.4, 5.1, 7.6, 11.4, 17, 26, 58, 130, 500])
    return np.append(steps * floor, _POISSON)


_INDEPENDENT = 0.85
"""Prior weight of independent errors (k = infinity) in the alternative; the other shapes share the rest.

So bursty errors cost ln 7 more, which pays for what the model lacks: levels that change within a window.
"""


def _weighed(known: Array) -> Array:
    """Return the log weights of the grid in the alternative, shape (batch, k).

    A prior (summing to 1) times the square root of what the past says, relative to the k it likes best: so
    the weights sum to at most 1, being a sub-probability chosen before the stage. That is all they promise.
    The null is *not* weighed the same way: :func:`against` lowers it by the past, up to ``STEP_AWAY`` a step,
    where a strict e-value for every k would leave it whole. By that deduction (and by Laplace's method) the
    ratio is an e-value only for k near the one the past shows; what it does elsewhere is measured by the
    bench. Taking only half of the past as prior is a choice by that measurement: the whole as evidence
    loses the share of a flat prior that lies on the true k, the whole as prior lets a past that misleads by
    luck pass for certainty.
    """
    half = (known - known.max(axis=1, keepdims=True)) / 2
    bursty = half[:, :-1] - logsumexp(half[:, :-1], axis=1, keepdims=True) + np.log(1 - _INDEPENDENT)
    independent = np.full((known.shape[0], 1), np.log(_INDEPENDENT))
    result: Array = np.concatenate([bursty, independent], axis=1) + half
    return result


STEP_AWAY = 1.0
"""What each step of the grid away from the past's likeliest k may cost the null at most."""


def against(known: Array) -> Array:
    """Return what the past speaks against each k of the null (log, at most 0), shape (batch, k).

    A stage may burst as the time before it never did, the less likely the further away. With a long past
    the deduction would be prohibitive without a bound, and the first incident that both gateways share
    would pass for evidence.
    """
    likeliest = known.argmax(axis=1)[:, None]
    away = np.abs(np.arange(known.shape[1])[None, :] - likeliest)
    result: Array = np.maximum(known - known.max(axis=1, keepdims=True), -STEP_AWAY * away)
    return result


def _null(known: Array, by_k: Array) -> Array:
    """Return the null's log-likelihood at the k that suits it best."""
    result: Array = (by_k + against(known)).max(axis=1)
    return result


_RESTART_EVERY = 4
"""Intervals between the moments from which evidence is also gathered anew."""

_RESTART_GROWTH = 3
"""How much further back each restart that is looked at lies than the one before."""

FROM_START = 0.85
"""Weight of the evidence gathered from the stage's first interval; the restarts share the rest."""

_EARLY_RESTARTS = 30
"""Restarts that have about equal weight; later ones fall off with the square, so that the sum stays 1."""


def windows(intervals: int, from_start: float = FROM_START) -> list[tuple[int, float]]:
    """Return (first interval, log weight) of the evidence to look at after *intervals* intervals.

    A canary may turn bad after a long healthy time, which evidence from the first interval alone would
    average away. Evidence is therefore also gathered from every fourth interval on; weighted so that the
    weights of all restarts ever sum to 1, the mixture keeps the guarantee. Only restarts about 4, 12, 36,
    ... intervals ago are looked at: leaving terms of a sum away errs on the safe side.
    """
    found = [(0, float(np.log(from_start)))]
    length = _RESTART_EVERY
    while length < intervals:
        index = (intervals - length) // _RESTART_EVERY
        if index > 0 and index * _RESTART_EVERY != found[-1][0]:
            c = _EARLY_RESTARTS
            weight = (1 - from_start) * (c + 1) / ((index + c) * (index + c + 1))
            found.append((index * _RESTART_EVERY, float(np.log(weight))))
        length *= _RESTART_GROWTH
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests and events by interval, shape (batch, intervals). Empty intervals may be present.

    Intervals with the same number of requests may stand together: ``requests`` is then that of one of them,
    ``events`` their sum, ``repeats`` how many they are, shape (1 or batch, intervals).
    """

    requests: Array
    events: Array
    repeats: Array

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Counts:
        """Build a batch of one from (requests, events) pairs."""
        both = np.array([pair for pair in pairs if pair[0] > 0], dtype=np.float64).reshape(-1, 2)
        # Neither retries counted twice nor a late scrape can make more events than requests.
        return cls.each(both[None, :, 0], np.minimum(both[None, :, 1], both[None, :, 0]))

    @classmethod
    def each(cls, requests: Array, events: Array) -> Counts:
        """Build a batch in which every interval stands alone."""
        return cls(requests, events, np.ones((1, events.shape[1])))

    @property
    def totals(self) -> tuple[Array, Array]:
        """Sums over the intervals: requests and events."""
        return (self.requests * self.repeats).sum(axis=1), self.events.sum(axis=1)


def shape_terms(events: Array, grid: Array) -> Array:
    """Return the terms of the log-likelihood that no rate changes, for event counts of single intervals.

    *events* has any shape; the grid becomes the last axis of the result.
    """
    from scipy.special import gammaln  # noqa: PLC0415 - takes a second; most notebooks import but never judge

    x, k = events[..., None], grid
    # gammaln(x + k) - gammaln(k) - x log k loses all digits at the Poisson end, where it is 0.
    terms: Array = np.where(k >= _POISSON, 0.0, gammaln(x + k) - gammaln(k) - x * np.log(k))
    return terms


@dataclass(frozen=True, slots=True)
class Tilted:
    """Log-likelihood of one side over (batch, k), with the terms that no rate changes kept apart."""

    counts: Counts
    grid: Array
    constant: Array

    @classmethod
    def of(cls, counts: Counts, grid: Array) -> Tilted:
        """Prepare the rate-free terms once; every interval must stand alone."""
        return cls(counts, grid, shape_terms(counts.events, grid).sum(axis=1))

    def _axes(self, rate: Array) -> tuple[Array, Array, Array, Array]:
        """Requests, events, repeats and k with room for the axes of *rate*; intervals come last."""
        extra = rate.ndim - 2
        shape = (slice(None), None, *([None] * extra), slice(None))
        k = self.grid.reshape(1, -1, *([1] * (extra + 1)))
        return self.counts.requests[shape], self.counts.events[shape], self.counts.repeats[shape], k

    def log_likelihood(self, rate: Array) -> Array:
        """Evaluate at *rate* of shape (batch, k, ...); terms without k or rate are left out on both sides."""
        n, x, repeats, k = self._axes(rate)
        mean = n * rate[..., None]
        with np.errstate(divide="ignore"):
            level = np.where(x > 0, x * np.log(np.where(x > 0, mean, 1.0)), 0.0)
        total: Array = (level - (x + np.where(k >= _POISSON, 0.0, repeats * k)) * np.log1p(mean / k)).sum(-1)
        poisson = (level - repeats * mean).sum(axis=-1)
        extra = rate.ndim - 2
        is_poisson = (self.grid >= _POISSON).reshape(1, -1, *([1] * extra))
        constant = self.constant.reshape(*self.constant.shape, *([1] * extra))
        return constant + np.where(is_poisson, poisson, total)

    def slope(self, rate: Array) -> tuple[Array, Array]:
        """Return first and (negated) second derivative with respect to log rate, shapes as *rate*."""
        n, x, repeats, k = self._axes(rate)
        mean = n * rate[..., None]
        share = k / (mean + k)
        first = ((x - repeats * mean) * share).sum(axis=-1)
        return first, (mean * share * share * (repeats + x / k)).sum(axis=-1)


def _peak(sides: Sequence[tuple[Tilted, Array]], start: Array) -> tuple[Array, Array]:
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
        step = np.clip(first / np.maximum(curvature, 1e-12), -1.0, 1.0)
        log_rate = log_rate + step
        if np.abs(step).max(initial=0.0) < _CONVERGED:
            break
    return log_rate, np.maximum(curvature, 1e-12)


def _rate_start(requests: Array, events: Array) -> Array:
    return np.log(np.maximum(events, 0.3) / np.maximum(requests, 1e-9))


def _marginal(sides: Sequence[tuple[Tilted, Array]], start: Array) -> Array:
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


def known_dispersion(sides: Sequence[Tilted], batch: int, grid: Array) -> Array:
    """Return what *sides* say about k, each with its own rate integrated out: log weights (batch, k).

    A side without events says nothing. The baseline before the stage and during it speak here.
    """
    total = np.zeros((batch, grid.size))
    for side in sides:
        n, x = side.counts.totals
        if side.counts.events.shape[1]:
            start = np.broadcast_to(_rate_start(n, x)[:, None], (x.size, grid.size)).copy()
            found = _marginal([(side, np.ones((1, 1)))], start)
            total = total + np.where((x > 0)[:, None], found, 0.0)
    return total


def worse_than_baseline(canary: Tilted, baseline: Tilted, known: Array) -> Array:
    """Log evidence against "the canary's rate is at most the baseline's", shape (batch,).

    *known* (see :func:`known_dispersion`) must not hold the intervals of *baseline* itself.
    """
    grid = canary.grid
    n_c, x_c = canary.counts.totals
    n_b, x_b = baseline.counts.totals
    batch = x_c.shape[0]
    one = np.ones((1, 1))
    start0 = np.broadcast_to(_rate_start(n_c + n_b, x_c + x_b)[:, None], (batch, grid.size)).copy()
    null = _null(known, _marginal([(canary, one), (baseline, one)], start0))
    ratios = _RATIOS[None, None, :]
    start1 = _rate_start(n_c[:, None, None] * ratios + n_b[:, None, None], (x_c + x_b)[:, None, None])
    start1 = np.broadcast_to(start1, (batch, grid.size, _RATIOS.size)).copy()
    joint = _marginal([(canary, ratios), (baseline, np.ones((1, 1, 1)))], start1)
    by_k = logsumexp(joint, axis=2) - np.log(_RATIOS.size)
    mixture = logsumexp(by_k + _weighed(known), axis=1)
    # Without a single canary event, or without baseline traffic, there is nothing to compare.
    usable = (x_c > 0) & (n_b > 0)
    return np.where(usable, mixture - null, 0.0)


def _at_best(canary: Tilted, limit: float, *, upper: bool) -> Array:
    """Log-likelihood by k at the best rate that the null "at most (at least) *limit*" allows."""
    n, x = canary.counts.totals
    start = np.broadcast_to(_rate_start(n, x)[:, None], (x.size, canary.grid.size)).copy()
    best = np.exp(_peak([(canary, np.ones((1, 1)))], start)[0])
    return canary.log_likelihood(np.minimum(best, limit) if upper else np.maximum(best, limit))


def _against_limit(
    canary: Tilted, known: Array, limit: float, *, upper: bool, ratios: Array, weights: Array
) -> Array:
    grid = canary.grid
    n, x = canary.counts.totals
    null = _null(known, _at_best(canary, limit, upper=upper))
    rates = np.broadcast_to(limit * ratios[None, None, :], (x.size, grid.size, ratios.size))
    joint = canary.log_likelihood(rates) + np.log(weights)[None, None, :]
    by_k = logsumexp(joint, axis=2)
    mixture = logsumexp(by_k + _weighed(known), axis=1)
    return np.where(n > 0, mixture - null, 0.0)


def above_limit(canary: Tilted, known: Array, limit: float) -> Array:
    """Log evidence against "the canary's rate is at most *limit*" (a ratio 0-1), shape (batch,)."""
    ratios = np.exp(np.arange(0.25, max(np.log(1.0 / limit), 0.5) + 0.25, 0.25))
    return _against_limit(
        canary, known, limit, upper=True, ratios=ratios, weights=np.full(ratios.size, 1.0 / ratios.size)
    )


def limit_ratio(canary: Tilted, known: Array, limit: float) -> Array:
    """Log-likelihood ratio of the canary's own rate to *limit*, 0 within it; shape (batch,).

    Not a test by itself (it pays nothing for having chosen the rate): it stands beside the comparison.
    """
    null = (known + _at_best(canary, limit, upper=True)).max(axis=1)
    found: Array = (known + _at_best(canary, 1.0, upper=True)).max(axis=1) - null
    return found


def below_limit(canary: Tilted, known: Array, limit: float) -> Array:
    """Log evidence against "the canary's rate is at least *limit*" (a ratio 0-1), shape (batch,).

    Half of the mixture lies on (nearly) no events, which is what a healthy gateway shows.
    """
    # The guarantee holds from the floor on; shapes below it would only delay every promotion.
    own = len(_BELOW_FLOOR)
    canary = Tilted(canary.counts, canary.grid[own:], canary.constant[:, own:])
    known = known[:, own:]
    ratios = np.array([1e-4, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65])
    weights = np.full(ratios.size, 0.5 / (ratios.size - 1))
    weights[0] = 0.5
    return _against_limit(canary, known, limit, upper=False, ratios=ratios, weights=weights)
