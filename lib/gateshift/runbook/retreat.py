"""The way back, one path for an operator's command and for a verdict: weights first, then proof."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateshift.errors import ExternalError, MetricsError
from gateshift.runbook.base import say
from gateshift.runbook.context import Context

__all__ = ["bring_back", "watch_return"]


def bring_back(context: Context, reason: str) -> float:
    """Put all weight on APISIX; return seconds from the start until the provider accepted and confirmed.

    Recorded before and after, so that a rollback that dies is found and finished by the next run. Safe to
    repeat: with the weights already back it only confirms.
    """
    state = context.state
    if not state.rolling_back:
        context.record_rollback(reason, state.weight_percent)
    begun = time.monotonic()
    shifter = context.shifter(back_only=True)
    plan = shifter.plan(0)
    if plan.empty and state.rollback_shifted:
        return _recorded_seconds(context)
    if plan.empty:
        seconds = 0.0
    else:
        receipt = shifter.set(plan)
        accepted = time.monotonic() - begun
        say(f"rollback: all weight on APISIX accepted after {accepted:.1f} s")
        shifter.confirm(receipt)
        seconds = accepted
    context.journal.append(
        "rollback.shifted", seconds_to_dns=seconds, seconds_to_insync=time.monotonic() - begun
    )
    return seconds


def _recorded_seconds(context: Context) -> float:
    """Return how long the shift back took, from the run that made it."""
    for record in reversed(context.journal.records):
        if record.kind == "rollback.shifted":
            return float(record.data.get("seconds_to_dns") or 0.0)
    return 0.0


def watch_return(context: Context, redraw: Callable[[float, float], None]) -> tuple[float, float] | None:
    """Watch until at least 99 % of requests reach APISIX again.

    Returns (seconds watched, last observed APISIX share in percent), or None when metrics cannot tell;
    a rollback never waits on metrics alone longer than ``traffic.rollback_target`` seconds.
    """
    limit = context.params.traffic.rollback_target
    begun = time.monotonic()
    since = time.time()
    good = 0
    share: float | None = None
    while time.monotonic() - begun < limit:
        time.sleep(context.params.metrics.step)
        now = time.time()
        try:
            sample = context.sampler.sample(since, now)
        except MetricsError as error:
            say(f"rollback: metrics cannot tell ({error})")
            continue
        since = now
        istio, apisix = sample.canary.requests, sample.baseline.requests
        if istio is None or apisix is None or istio + apisix <= 0:
            continue
        share = 100.0 * apisix / (istio + apisix)
        redraw(now, 100.0 - share)
        good = good + 1 if share >= 99.0 else 0
        if good >= 2:
            return time.monotonic() - begun, share
    return None if share is None else (time.monotonic() - begun, share)


def collect_evidence(context: Context, write: Callable[[str, str], None]) -> list[str]:
    """Save what explains the failure; what cannot be read is said, never fatal to a rollback."""
    from gateshift.cluster import evidence  # noqa: PLC0415 - the cluster may be out of reach; DNS comes first

    missing = []
    for name, read in evidence.sources(context.params).items():
        try:
            write(name, read(context.cluster))
        except ExternalError as error:
            missing.append(f"{name}: {error}")
    return missing
