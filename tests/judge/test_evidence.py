"""The evidence figures are e-values: their mean under the null is at most 1, computed exactly."""

import numpy as np
import pytest
from scipy.stats import binom, nbinom, poisson

from gateshift.judge import evidence

GRID = evidence.dispersion_grid(0.1)


def tilted(requests: float, events: np.ndarray) -> evidence.Tilted:
    x = events.astype(float).reshape(-1, 1)
    return evidence.Tilted.of(evidence.Counts.each(np.full_like(x, requests), x), GRID)


@pytest.mark.parametrize("total", [1, 3, 10, 40])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.75])
def test_the_comparison_given_the_total_is_an_e_value(total: int, weight: float) -> None:
    c = np.arange(total + 1)
    new, old = tilted(1000 * weight, c), tilted(1000 * (1 - weight), total - c)
    found = np.exp(evidence.worse_than_baseline(new, old, np.zeros((c.size, GRID.size))))
    # Without a canary error the figure is given as "no evidence", above its true value; it decides nothing.
    mean = float((binom.pmf(c, total, weight) * np.where(c > 0, found, 0.0)).sum())
    assert mean <= 1.0 + 1e-6


@pytest.mark.parametrize("k", [0.1, 0.5, np.inf])
@pytest.mark.parametrize("requests", [30.0, 3000.0])
def test_the_limit_tests_are_e_values(k: float, requests: float) -> None:
    limit = 0.01
    mean = requests * limit
    law = poisson(mean) if np.isinf(k) else nbinom(k, k / (k + mean))
    x = np.arange(int(law.ppf(1 - 1e-9)) + 1)
    none = np.zeros((x.size, GRID.size))
    for test in (evidence.above_limit, evidence.below_limit):
        found = np.exp(test(tilted(requests, x), none, limit))
        assert float((law.pmf(x) * found).sum()) <= 1.0 + 1e-6


def test_the_weights_of_all_restarts_sum_to_one() -> None:
    first = dict(evidence.windows(1))[0]
    newest = {start: weight for end in range(1, 4000) for start, weight in evidence.windows(end) if start}
    assert np.exp(first) + sum(np.exp(w) for w in newest.values()) <= 1.0
