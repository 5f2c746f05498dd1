"""How long bursts of errors last: what makes scrapes in a row less than independent witnesses.

The evidence of :mod:`.evidence` takes the shocks of different scrapes for independent. A backend that fails
for minutes makes them go together: n scrapes then tell no more than n / tau independent ones, with tau = 1 +
2 * (sum of the autocorrelations), the integrated autocorrelation time known from Monte Carlo output analysis
(Geyer, "Practical Markov chain Monte Carlo", 1992, cuts the sum where it drowns in noise, as is done here).

Evidence is therefore divided by tau. That never breaks a promise that held before: for an e-value E the
mean of E ** (1 / tau) is at most 1 as well (Jensen).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["CAUTION", "FEWEST", "LONGEST", "TREND", "persistence"]

TREND = 41
"""Intervals over which the level is taken before residuals are: slower changes are drift, not bursts."""

FEWEST = 2 * TREND
"""Intervals of the past below which nothing is said (tau = 1)."""

LONGEST = 16
"""Lags looked at, in intervals."""

_NOISE = 2.0
"""Standard errors above which an autocorrelation counts."""

CAUTION = 2.0
"""By how much tau - 1 is taken larger than estimated: the past holds few bursts, and the moving average
shortens those it holds; at four scrapes a burst the estimate is 40 % too low on average.
"""


def persistence(past: Sequence[tuple[float, float]]) -> float:
    """Return tau (at least 1) of *past*, (requests, events) by interval of the old gateway, oldest first.

    1 means that errors come independently from interval to interval, or that too little is known.
    """
    rates = np.array([events / requests for requests, events in past if requests > 0], dtype=np.float64)
    if rates.size < FEWEST:
        return 1.0
    sums = np.concatenate([[0.0], np.cumsum(rates)])
    middle = np.arange(rates.size)
    first = np.maximum(middle - TREND // 2, 0)
    last = np.minimum(middle + TREND // 2 + 1, rates.size)
    apart = rates - (sums[last] - sums[first]) / (last - first)
    spread = float(apart @ apart)
    if spread <= 0.0:
        return 1.0
    tau = 1.0
    for lag in range(1, LONGEST + 1):
        found = float(apart[lag:] @ apart[:-lag]) / spread
        if found < _NOISE / np.sqrt(rates.size):
            break
        tau += CAUTION * 2.0 * found
    return float(tau)
