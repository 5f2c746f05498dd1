"""Where the traffic really is: Istio's share of all requests, with its sampling error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Share", "allowed_distance", "observed_share", "window_share"]


@dataclass(frozen=True, slots=True)
class Share:
    """Istio's observed share in percent with its confidence bounds, and whether the target is reached.

    ``percent``, ``low`` and ``high`` are None without requests: no data never counts as arrived.
    """

    percent: float | None
    low: float | None
    high: float | None
    arrived: bool
    requests: float
    reason: str = ""


def allowed_distance(target_percent: float, tolerance_percent: float) -> float:
    """Return how many points the share may be from *target_percent*: half the tolerance at 0 and 100 %."""
    return tolerance_percent / 2 if target_percent in (0, 100) else tolerance_percent


def observed_share(
    istio_requests: float | None,
    apisix_requests: float | None,
    target_percent: float,
    tolerance_percent: float = 2.0,
    *,
    confidence: float = 0.95,
) -> Share:
    """Compare both gateways' request increases over one interval with *target_percent*.

    The bounds are Clopper-Pearson's. Traffic has arrived when the observed share is within
    *tolerance_percent* of the target and so few requests were seen that chance could not have put it
    there from outside twice the tolerance; too few requests are therefore never an arrival. A target of 0
    or 100 must be met to within half the tolerance: the last clients must be seen to have moved.
    """
    if not _usable(istio_requests) or not _usable(apisix_requests):
        return Share(None, None, None, False, 0.0, "a gateway's request counter is missing")
    istio, apisix = float(istio_requests or 0.0), float(apisix_requests or 0.0)
    total = istio + apisix
    if total < 1:
        return Share(None, None, None, False, total, "no requests were seen at either gateway")
    from scipy.special import betaincinv  # noqa: PLC0415 - slow import; only a canary looks at shares

    percent = 100.0 * istio / total
    tail = (1 - confidence) / 2
    low = 0.0 if istio <= 0 else 100.0 * float(betaincinv(istio, apisix + 1, tail))
    high = 100.0 if apisix <= 0 else 100.0 * float(betaincinv(istio + 1, apisix, 1 - tail))
    within = allowed_distance(target_percent, tolerance_percent)
    if abs(percent - target_percent) > within:
        reason = f"{percent:.1f} % is more than {within:g} points from {target_percent:g} %"
        return Share(percent, low, high, False, total, reason)
    outer = 2 * tolerance_percent
    if low < target_percent - outer or high > target_percent + outer:
        reason = f"{total:.0f} requests are too few: the share may be {low:.1f} to {high:.1f} %"
        return Share(percent, low, high, False, total, reason)
    return Share(percent, low, high, True, total)


def window_share(
    requests: Sequence[tuple[float, float]],
    target_percent: float,
    tolerance_percent: float = 2.0,
    *,
    shortest: int = 8,
    seconds: Sequence[tuple[float | None, float | None]] = (),
) -> Share:
    """Return the share over the newest intervals, as many of them as the sampling error needs.

    *requests* are (Istio's, APISIX's) increases, oldest first. The window is *shortest* intervals and is
    doubled while its bounds are too wide to tell an arrival, so that little traffic makes the answer later
    and not impossible; a longer window also holds requests of before the arrival, which errs on the safe
    side.

    *seconds* are the times between the scrapes of each gateway's increases. The gateways are scraped at
    moments of their own, so that a window may hold one scrape more of one of them: of eight scrapes each, a
    share of 50 % would be seen as 47 or 53 %. Where the times are known, rates are compared instead.
    """
    length = shortest
    while True:
        part = _alike(requests[-length:], seconds[-length:])
        share = observed_share(
            part[0] if part else None,
            part[1] if part else None,
            target_percent,
            tolerance_percent,
        )
        wide = share.low is not None and share.high is not None and not share.arrived
        wide = wide and (share.high or 0) - (share.low or 0) > 2 * tolerance_percent
        if not wide or length >= len(requests):
            return share
        length *= 2


def _alike(
    requests: Sequence[tuple[float, float]], seconds: Sequence[tuple[float | None, float | None]]
) -> tuple[float, float] | None:
    """Return both sums, brought to the same time (the mean of both) where times are known."""
    if not requests:
        return None
    istio, apisix = math.fsum(i for i, _ in requests), math.fsum(a for _, a in requests)
    known = [(i, a) for i, a in seconds if i is not None and a is not None]
    if len(known) < len(requests):
        return istio, apisix
    istio_time, apisix_time = math.fsum(i for i, _ in known), math.fsum(a for _, a in known)
    if istio_time <= 0 or apisix_time <= 0:
        return istio, apisix
    mean = (istio_time + apisix_time) / 2
    return istio * mean / istio_time, apisix * mean / apisix_time


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0
