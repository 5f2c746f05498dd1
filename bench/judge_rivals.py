"""Other judges on the same samples: Flagger, Argo Rollouts and Kayenta, as their documents set them up.

Each function takes the stage as it was played and returns the first scrape at which the tool gives up on the
canary, by run (NEVER if it does not). All three see error rates; none of them knows what a missing figure is.

* Flagger (docs.flagger.app, Istio canary tutorial): each minute the success rate of the last minute must be
  at least 99 %; failed checks add up and ``threshold: 5`` of them roll back. Also with threshold 1.
* Argo Rollouts (docs, "Background Analysis"): ``interval: 5m``, ``successCondition: result[0] >= 0.95``,
  ``failureLimit: 3``: the fourth failed measurement fails the analysis. The window of the query is 5 minutes.
* Kayenta (MannWhitneyClassifier): two-sided Mann-Whitney of canary and baseline by minute at 98 %; "High" if
  the lower end of the confidence interval of the shift exceeds a quarter of the shift's Hodges-Lehmann
  estimate. Judged every 30 minutes on all minutes so far; High with a single metric fails the run.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from judge_cases import Played, Traffic
from judge_ours import NEVER

_MINUTE = 4
Firsts = npt.NDArray[np.int64]


def _rates(traffic: Traffic, scrapes: int) -> npt.NDArray[np.float64]:
    """Error ratios by block of *scrapes*, shape (runs, blocks)."""
    errors = traffic.errors
    whole = errors.shape[0] // scrapes * scrapes
    blocks = errors[:whole].reshape(-1, scrapes, errors.shape[1]).sum(axis=1)
    found: npt.NDArray[np.float64] = blocks.T / (traffic.requests * scrapes)
    return found


def _first(hit: npt.NDArray[np.bool_], scrapes: int) -> Firsts:
    return np.where(hit.any(axis=1), (hit.argmax(axis=1) + 1) * scrapes, NEVER).astype(np.int64)


def flagger(played: Played, threshold: int) -> Firsts:
    """Roll back at *threshold* failed checks."""
    failed = _rates(played.canary, _MINUTE) > 0.01
    return _first(failed.cumsum(axis=1) >= threshold, _MINUTE)


def argo(played: Played) -> Firsts:
    """Fail at the fourth failed measurement."""
    failed = _rates(played.canary, 5 * _MINUTE) > 0.05
    return _first(failed.cumsum(axis=1) > 3, 5 * _MINUTE)


def kayenta(played: Played) -> Firsts:
    """Fail at the first "High"; without a baseline there is nothing to compare and nothing fails."""
    runs = played.canary.errors.shape[1]
    first = np.full(runs, NEVER, dtype=np.int64)
    if not played.baseline.requests:
        return first
    canary, baseline = _rates(played.canary, _MINUTE), _rates(played.baseline, _MINUTE)
    for end in range(30, canary.shape[1] + 1, 30):
        # The confidence interval of R's wilcox.test: order statistics of all differences, normal quantiles.
        shifts = np.sort((canary[:, :end, None] - baseline[:, None, :end]).reshape(runs, -1), axis=1)
        spread = norm.ppf(0.99) * np.sqrt(end * end * (2 * end + 1) / 12)
        lower = shifts[:, max(int(end * end / 2 - spread), 0)]
        high = lower > 0.25 * np.abs(np.median(shifts, axis=1))
        first = np.where((first == NEVER) & high, end * _MINUTE, first)
    return first
