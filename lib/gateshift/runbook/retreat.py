"""The way back, one path for an operator's command and for a verdict: weights first, then proof."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateshift.errors import ClusterError, ExternalError, InputError, MetricsError, ParamsError, TrafficError
from gateshift.judge.model import Sample
from gateshift.notebook.progress import say
from gateshift.runbook.context import Context
from gateshift.traffic.protocol import Changed, Receipt, Shifter

__all__ = ["NOTHING_OF_THE_CLUSTER", "Return", "bring_back", "collect_evidence", "still_back", "watch_return"]

NOTHING_OF_THE_CLUSTER = "nothing of the cluster"
_TRIES = 4
_WINDOW_STEPS = 2
"""Steps that prove the return at least; more when there are too few requests in them."""


@dataclass(slots=True)
class Return:
    """How the users came back: (unix seconds, percent on Istio) as observed, and whether it is proven.

    ``seconds`` is from the start of the watch; ``percent`` the last share of APISIX, None when nothing was
    seen.
    """

    seconds: float = 0.0
    percent: float | None = None
    proven: bool = False
    shares: list[tuple[float, float]] = field(default_factory=list)
    why: str = ""


def bring_back(context: Context, reason: str, *, asked: float | None = None) -> float:
    """Put all weight on APISIX; return the seconds from *asked* (unix; default now) to the acceptance.

    Recorded before and after, so that a rollback that dies is found and finished by the next run. Safe to
    repeat: with the weights already back it only confirms.
    """
    begun = time.time() if asked is None else asked
    if not context.state.rolling_back:
        context.record_rollback(reason, context.state.weight_percent)
    state = context.state  # after the start: a rollback of before that shifted is not this one
    shifter = context.shifter(back_only=True)
    receipt = _set_back(shifter)
    if receipt is None and state.rollback_shifted:
        return _recorded_seconds(context)
    seconds = time.time() - begun if receipt else 0.0
    if receipt:
        say(f"rollback: all weight on APISIX accepted after {seconds:.1f} s")
        _confirm(shifter, receipt)
    context.journal.append("rollback.shifted", seconds_to_dns=seconds, seconds_to_insync=time.time() - begun)
    return seconds


def _recorded_seconds(context: Context) -> float:
    """Return how long the shift back took, from the run that made it."""
    for record in reversed(context.journal.records):
        if record.kind == "rollback.shifted":
            return float(record.data.get("seconds_to_dns") or 0.0)
    return 0.0


def still_back(context: Context) -> bool:
    """Set the weights back again if a shift under way elsewhere moved them; True when nobody had."""
    shifter = context.shifter(back_only=True)
    receipt = _set_back(shifter)
    if receipt is None:
        return True
    say("rollback: somebody moved the weights again in the meantime; they are back on APISIX")
    _confirm(shifter, receipt)
    return False


def _set_back(shifter: Shifter) -> Receipt | None:
    """Set all weight on APISIX, planning anew when a change of somebody else's comes between."""
    for attempt in range(1, _TRIES + 1):
        plan = shifter.plan(0)
        if plan.empty and not plan.inputs.get("silent"):
            return None
        try:
            return shifter.set(plan)
        except Changed as error:
            if attempt == _TRIES:
                raise
            say(f"rollback: {error}; planning anew")
    return None


def _confirm(shifter: Shifter, receipt: Receipt) -> None:
    """Wait until the change is everywhere; a change that never gets there does not stop the rollback."""
    try:
        shifter.confirm(receipt)
    except TrafficError as error:
        say(f"rollback: {error}; going on, the observed share will tell")


def watch_return(context: Context, redraw: Callable[[Return], None]) -> Return:
    """Watch until the users are back: at least 99 % of requests reach APISIX, sampling error included.

    A rollback never waits on metrics alone longer than ``traffic.rollback_target`` seconds.
    """
    from gateshift.runbook.observe import recent_share  # noqa: PLC0415 - slow to import; the weights come first

    limit = context.params.traffic.rollback_target
    begun = time.monotonic()
    since = time.time()
    history: list[Sample] = []
    seen = Return(why="no sample was taken")
    while time.monotonic() - begun < limit:
        time.sleep(context.params.metrics.step)
        now = time.time()
        try:
            sample = context.sampler.sample(since, now)
        except (MetricsError, ParamsError) as error:
            sample = Sample.unknown(now, str(error))
        since = now
        history.append(sample)
        missing = sample.canary.missing or sample.baseline.missing
        seen.seconds = time.monotonic() - begun
        share = recent_share(history, 0.0, 2.0, shortest=_WINDOW_STEPS)
        if share is None or share.percent is None:
            told = f"metrics cannot tell: {missing}{_served(history)}"
            seen.why = told if missing else "no requests were seen"
            redraw(seen)
            continue
        seen.percent = 100.0 - share.percent
        seen.shares.append((now, share.percent))
        seen.why = share.reason
        seen.proven = share.arrived
        redraw(seen)
        if share.arrived:
            return seen
    return seen


def _served(history: Sequence[Sample]) -> str:
    """What the old gateway was seen to serve; no proof, but what a person asks for next."""
    seen = [sample.baseline for sample in history if sample.baseline.requests is not None]
    if not seen:
        return ""
    count = sum(side.requests or 0.0 for side in seen)
    return f"; APISIX served {count:.0f} requests in {len(seen)} samples meanwhile"


def collect_evidence(context: Context, write: Callable[[str, str], None]) -> list[str]:
    """Save what explains the failure; what cannot be read is returned, never fatal to a rollback."""
    from gateshift.cluster import evidence  # noqa: PLC0415 - the cluster may be out of reach; DNS comes first

    missing = []
    try:
        write("weights.json", json.dumps(context.shifter(back_only=True).snapshot(), indent=1))
    except (TrafficError, ClusterError) as error:
        missing.append(f"weights.json: {error}")
    try:
        _metrics_around(context, write)
    except (MetricsError, ParamsError) as error:
        missing.append(f"metrics.json: {error}")
    try:
        cluster = context.cluster
        cluster.version  # noqa: B018 - asks whether it can be reached at all, once instead of for every file
    except (ExternalError, InputError) as error:
        names = ", ".join(evidence.sources(context.params))
        return [*missing, f"{NOTHING_OF_THE_CLUSTER} ({names}): {error}"]
    for name, read in evidence.sources(context.params).items():
        try:
            write(name, read(cluster))
        except (ExternalError, ParamsError) as error:
            missing.append(f"{name}: {error}")
    return missing


_AROUND = (
    "istio_error_rate", "apisix_error_rate", "istio_p95", "apisix_p95", "istio_request_rate",
    "apisix_request_rate", "istio_error_rate_by_service",
)  # fmt: skip


def _metrics_around(context: Context, write: Callable[[str, str], None]) -> None:
    """Save both gateways' figures from half an hour before the rollback until now."""
    from gateshift.metrics.catalogue import CATALOGUE, render  # noqa: PLC0415 - only when evidence is collected

    metrics = context.params.metrics
    started = next(
        (r.unix for r in reversed(context.journal.records) if r.kind == "rollback.started"), time.time()
    )
    now = time.time()
    out: dict[str, object] = {"from": started - 1800, "until": now, "rollback_started": started}
    step = max(metrics.step, (now - started + 1800) / 500)
    for name in _AROUND:
        selector = metrics.istio_selector if name.startswith("istio") else metrics.apisix_selector
        query = render(CATALOGUE[name], selector=selector, window=max(4 * metrics.step, step))
        answer = context.source.range(query, started - 1800, now, step)
        out[name] = [
            # JSON has no NaN: a rate over nothing is written as null.
            {"labels": dict(s.labels), "points": [(t, v if math.isfinite(v) else None) for t, v in s.points]}
            for s in answer.series
        ]
    write("metrics.json", json.dumps(out, indent=1))
