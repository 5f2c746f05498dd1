"""When clients follow a change of weight: a forecast from TTL, resolvers' tail and connections' age. Pure.

The model and its checks against a simulation are in ``docs/dns.md``. All times are seconds, counted from
the moment the provider accepted the change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateshift.traffic.protocol import Weights
from gateshift.traffic.share import allowed_distance

__all__ = ["Clients", "forecast_arrival", "forecast_share", "likely_reason"]

_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Clients:
    """How clients hold on to an old answer.

    *ttl*: of the record (an alias has its load balancer's, 60 s). *propagation*: until the provider's
    servers answer anew. *tail*: the fraction of traffic behind resolvers that cache for *tail_ttl* instead
    of the TTL. *sticky*: the fraction of requests on long connections, renewed on average every
    *connection_age* (exponential). The defaults are assumptions on the careful side, not measurements.
    """

    ttl: float = 60.0
    propagation: float = 5.0
    tail: float = 0.05
    tail_ttl: float = 300.0
    sticky: float = 0.1
    connection_age: float = 120.0


def _moved(clients: Clients, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the fraction of traffic that follows the new weights at each of *times* (rising from 0)."""
    since = np.maximum(0.0, times - clients.propagation)
    # A cache is refreshed at an even phase of its TTL, so refreshes arrive linearly.
    resolved = (1 - clients.tail) * np.minimum(1.0, since / max(clients.ttl, 1e-9))
    resolved = resolved + clients.tail * np.minimum(1.0, since / max(clients.tail_ttl, clients.ttl, 1e-9))
    if clients.sticky <= 0:
        return np.asarray(resolved, dtype=np.float64)
    # Connections end at random with rate 1/age and then resolve anew: m' = (resolved - m) / age.
    moved = np.zeros_like(resolved)
    for i in range(1, len(times)):
        keep = float(np.exp(-(times[i] - times[i - 1]) / max(clients.connection_age, 1e-9)))
        middle = (resolved[i] + resolved[i - 1]) / 2
        moved[i] = moved[i - 1] * keep + middle * (1 - keep)
    return np.asarray((1 - clients.sticky) * resolved + clients.sticky * moved, dtype=np.float64)


def _seen(clients: Clients, times: npt.NDArray[np.float64], window: float) -> npt.NDArray[np.float64]:
    """Return :func:`_moved` as counters show it: the mean of the *window* seconds before each of *times*."""
    moved = _moved(clients, times)
    if window <= 0:
        return moved
    # The integral from 0, by trapezoids; the mean between two moments is the difference of two integrals.
    area = np.concatenate(([0.0], np.cumsum((moved[1:] + moved[:-1]) / 2 * np.diff(times))))
    begins = np.maximum(0.0, times - window)
    span = np.maximum(times - begins, 1e-9)
    return np.asarray((area - np.interp(begins, times, area)) / span, dtype=np.float64)


def forecast_share(
    clients: Clients, before_percent: float, after_percent: float, seconds: float, *, window: float = 0.0
) -> float:
    """Return Istio's expected share in percent *seconds* after the change was accepted.

    With *window* (seconds) it is the share that the counters show over that time, as it is observed.
    """
    times = np.linspace(0.0, max(seconds, 1e-9), _STEPS)
    seen = float(_seen(clients, times, window)[-1])
    return before_percent + (after_percent - before_percent) * seen


def forecast_arrival(
    clients: Clients,
    before_percent: float,
    after_percent: float,
    tolerance_percent: float = 2.0,
    *,
    window: float = 0.0,
) -> float:
    """Return the seconds until the share, observed over *window* seconds, counts as arrived."""
    distance = abs(after_percent - before_percent)
    within = allowed_distance(after_percent, tolerance_percent)
    if distance <= within:
        return 0.0
    needed = 1 - within / distance
    # By then every cache is refreshed and all but exp(-12) of the long connections are renewed.
    horizon = clients.propagation + max(clients.ttl, clients.tail_ttl) + 12 * clients.connection_age + window
    times = np.linspace(0.0, horizon, _STEPS)
    seen = _seen(clients, times, window)
    index = int(np.searchsorted(seen, needed))
    if index >= len(times):
        return horizon
    if index == 0:
        return 0.0
    rise = seen[index] - seen[index - 1]
    part = (needed - seen[index - 1]) / rise if rise > 0 else 1.0
    return float(times[index - 1] + part * (times[index] - times[index - 1]))


def likely_reason(
    weights: Weights,
    *,
    before_percent: float,
    target_percent: float,
    observed_percent: float | None,
    elapsed: float,
    forecast: float,
) -> str:
    """Say why the share has not arrived, the likeliest reason first, as one sentence."""
    if weights.problems:
        return weights.problems[0]
    if weights.istio_percent != target_percent:
        now = "different per host" if weights.istio_percent is None else f"{weights.istio_percent} %"
        return (
            f"the weights are not what was set ({now} instead of {target_percent:g} %): somebody changed them"
        )
    if observed_percent is None:
        return "the gateways' request counters are missing, so the share cannot be observed"
    if elapsed < forecast:
        return f"it is early: expected {forecast:.0f} s after the change, {elapsed:.0f} s have passed"
    wanted = target_percent - before_percent
    return _stuck((observed_percent - before_percent) / wanted if wanted else 1.0)


def _stuck(done: float) -> str:
    """Say why the share stays at *done* (0-1) of the way from the old weight to the new."""
    if done < 0.1:
        return (
            "nobody follows the weights: clients ask another record or another zone (private instead of "
            "public, a delegated name), or reach APISIX by its address"
        )
    if done < 1:
        return (
            f"{100 * done:.0f} % of the way: the rest sits on long connections or behind resolvers that "
            "ignore the TTL; close idle connections at APISIX or wait"
        )
    return (
        "more traffic than the weight says goes to Istio: one large client or resolver answers for many users"
    )
