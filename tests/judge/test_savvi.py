"""Our evidence beside another implementation of anytime-valid tests, ``savvi``.

Its multinomial test asks whether errors fall on both gateways in proportion to their requests: with
independent errors that is our comparison given their total, with a Dirichlet prior instead of our grid of
ratios. (``confseq``, the other candidate, does not build with current compilers and ships no wheel.)
"""

from __future__ import annotations

import numpy as np
import pytest
from savvi.multinomial import Multinomial
from scipy.special import logsumexp
from scipy.stats import beta

from gateshift.judge import evidence

pytestmark = pytest.mark.slow  # a cross-check: it changes with the formula only

GRID = evidence.dispersion_grid(0.1)
INDEPENDENT = np.where(GRID[-1] <= GRID, 0.0, -1e6)[None, :]
"""What the past says about k when it is certain that errors are independent."""

ALPHA = 0.01 / 5 * 0.8
REQUESTS = 3000.0


def tilted(requests: float, events: np.ndarray) -> evidence.Tilted:
    x = events.astype(float)[None, :]
    return evidence.Tilted.of(evidence.Counts.each(np.full_like(x, requests), x), GRID)


@pytest.mark.parametrize("weight", [0.1, 0.5])
@pytest.mark.parametrize("ratio", [1.0, 4.0, 20.0])
def test_with_its_prior_our_likelihood_gives_its_odds(weight: float, ratio: float) -> None:
    rng = np.random.default_rng([5, round(100 * weight), round(ratio)])
    new = rng.poisson(REQUESTS * weight * 0.001 * ratio, 12)
    old = rng.poisson(REQUESTS * (1 - weight) * 0.001, 12)
    theirs = Multinomial(ALPHA, np.array([weight, 1 - weight]), k=100)
    for pair in zip(new, old, strict=True):
        theirs.update(np.array(pair))
    # Their prior is on the canary's share of errors; ours is on the ratio of rates, so shares become ratios.
    share = (np.arange(40_000) + 0.5) / 40_000
    ratios = share * (1 - weight) / ((1 - share) * weight)
    prior = beta.logpdf(share, 100 * weight, 100 * (1 - weight)) - np.log(share.size)
    sides = tilted(REQUESTS * weight, new), tilted(REQUESTS * (1 - weight), old)
    means = [np.array([n * t.counts.requests.sum() for n in (1.0,)]) for t in sides]
    x_new, x_old = float(new.sum()), float(old.sum())
    rate = (x_new + x_old) / (means[0] * ratios + means[1])
    k = np.zeros((1, GRID.size, 1))

    def height(r: np.ndarray, common: np.ndarray) -> np.ndarray:
        return (
            sides[0].log_likelihood(common * r + k) + sides[1].log_likelihood(common * np.ones_like(r) + k)
        )[0, -1]

    null = height(np.ones(1), (x_new + x_old) / (means[0] + means[1]))[0]
    ours = float(logsumexp(height(ratios, rate) + prior)) - null
    assert ours == pytest.approx(float(np.log(theirs.odds)), abs=1e-3)


def test_both_see_a_sick_canary_and_neither_a_healthy_one() -> None:
    strength = np.log(1 / ALPHA)
    for times, sick in ((1.0, False), (20.0, True)):
        rng = np.random.default_rng([9, round(times)])
        later = []
        for _ in range(20):
            new = rng.poisson(REQUESTS * 0.1 * 0.001 * times, 40)
            old = rng.poisson(REQUESTS * 0.9 * 0.001, 40)
            theirs = Multinomial(ALPHA, np.array([0.1, 0.9]), k=10)
            odds = []
            for pair in zip(new, old, strict=True):
                theirs.update(np.array(pair))
                odds.append(np.log(theirs.odds))
            ours = [
                float(
                    evidence.worse_than_baseline(
                        tilted(REQUESTS * 0.1, new[:end]), tilted(REQUESTS * 0.9, old[:end]), INDEPENDENT
                    )[0]
                )
                for end in range(1, 41)
            ]
            if not sick:
                assert max(ours) < strength
                assert max(odds) < strength
                continue
            first = [next(i for i, value in enumerate(line) if value >= strength) for line in (ours, odds)]
            later.append(first[0] - first[1])
        # One-sided and on the ratios that matter, ours is not the later one.
        assert not sick or np.mean(later) <= 0.1
