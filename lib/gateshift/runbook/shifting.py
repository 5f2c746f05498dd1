"""The way towards Istio: what is kept before records change, the wait for old answers, the forecast."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from gateshift.notebook.progress import Waiting, say, sit_out
from gateshift.params.model import Mechanism, Params
from gateshift.plan import Plan
from gateshift.runbook.context import Context
from gateshift.traffic.arrival import Clients
from gateshift.traffic.protocol import Shifter
from gateshift.words import tell

__all__ = [
    "ORIGINAL",
    "RESTORED",
    "clients_of",
    "finish_waiting",
    "keep_original",
    "last_shift",
    "make_weighted",
    "original_of",
    "settle",
    "split_settling",
    "with_settling",
]

ORIGINAL = "note.traffic.original"
"""Record with the snapshot of before gateshift's first change: what an exact restore goes back to."""
RESTORED = "note.traffic.restored"
SETTLED = "note.traffic.settled"
WAITING = "note.traffic.waiting"
_SETTLE = "settle"

_ALIAS_TTL = 60.0
_CLOUDFLARE_TTL = 30.0  # of a load balancer that is not proxied (Cloudflare docs: Load balancers, TTL)


def original_of(context: Context) -> dict[str, Any] | None:
    """Return the snapshot of before the first change, or None when nothing was changed since a restore."""
    for record in reversed(context.journal.records):
        if record.kind == RESTORED:
            return None
        if record.kind == ORIGINAL:
            return dict(record.data["snapshot"])
    return None


def keep_original(context: Context) -> None:
    """Record the snapshot of before the first change, once, for all mechanisms that will be used."""
    if original_of(context) is None:
        context.journal.append(
            ORIGINAL,
            snapshot=context.shifter().snapshot(),
            apisix_target=context.apisix_target,
            istio_target=context.istio_target,
        )


def make_weighted(context: Context, shifter: Shifter, prepare: Plan) -> None:
    """Carry out *prepare*, everybody staying where they are, and record until when old answers live."""
    say("records become weighted, all on APISIX, same target: no user notices")
    context.journal.append("prepare.intent", snapshot=shifter.snapshot())
    receipt = shifter.set(prepare)
    if receipt.wait_out_s:
        context.journal.append(WAITING, until=receipt.accepted_at + receipt.wait_out_s)
    shifter.confirm(receipt)
    context.journal.append("prepare.done")


def finish_waiting(context: Context) -> None:
    """Wait until no cache can hold an answer with the longer TTL of before; also after a restart.

    Until then neither a shift nor a rollback would be seen in time.
    """
    until = max((float(r.data["until"]) for r in context.journal.records if r.kind == WAITING), default=0.0)
    left = until - time.time()
    if left > 0:
        sit_out(Waiting(tell("wait.cached"), say), left, tell("wait.cached.reason"))


def last_shift(context: Context) -> tuple[float, float | None]:
    """Return what the newest shift began from (percent on Istio) and when its weights were accepted.

    The time is None when the run died before it was on record. A stage that was resumed is told so what its
    forecast counts from.
    """
    before, accepted = 0.0, None
    for record in context.journal.records:
        if record.kind == "shift.intent":
            before, accepted = float(record.data["from"]), None
        elif record.kind == "shift.done":
            accepted = record.data.get("accepted_at")
    return before, accepted


def clients_of(params: Params, stage: int) -> Clients:
    """Return how clients follow a change of *stage*: its mechanism's TTL and the params' assumptions."""
    given, mechanism = params.traffic.clients, params.mechanism_of(stage)
    per_request = mechanism is Mechanism.TRAFFIC_SPLIT
    if mechanism is Mechanism.ISTIO_FIRST:
        per_request = stage > 0  # only the first stage moves DNS
        mechanism = params.traffic.istio_first.front or mechanism
    if per_request:
        return Clients(ttl=0.0, propagation=1.0, tail=0.0, sticky=0.0)
    route53 = params.traffic.route53
    ttl = _CLOUDFLARE_TTL
    if mechanism is Mechanism.ROUTE53 and route53 is not None:
        ttl = _ALIAS_TTL if route53.record == "alias" else route53.ttl
    return Clients(
        ttl=ttl if given.ttl is None else given.ttl,
        propagation=given.propagation,
        tail=given.tail,
        tail_ttl=given.tail_ttl,
        sticky=given.sticky,
        connection_age=given.connection_age,
    )


def with_settling(context: Context, plan: Plan) -> Plan:
    """Return *plan* with what was changed only to move (a lowered TTL) put back at its end, as before."""
    original = original_of(context)
    if original is None:
        return plan
    last = context.shifter().settle_plan(original)
    if last.empty:
        return plan
    part = {"kind": last.kind, "title": last.title, "steps": len(last.steps), "inputs": dict(last.inputs)}
    return replace(plan, steps=(*plan.steps, *last.steps), inputs={**plan.inputs, _SETTLE: part})


def split_settling(plan: Plan) -> tuple[Plan, Plan | None]:
    """Return the two plans that :func:`with_settling` joined; None for the second when there was none."""
    part = plan.inputs.get(_SETTLE)
    if part is None:
        return plan, None
    size = len(plan.steps) - int(part["steps"])
    inputs = {key: value for key, value in plan.inputs.items() if key != _SETTLE}
    last = Plan(part["kind"], part["title"], plan.steps[size:], plan.way_back, part["inputs"])
    return replace(plan, steps=plan.steps[:size], inputs=inputs), last


def settle(context: Context, plan: Plan) -> None:
    """Carry out the second part of :func:`split_settling`, wait until it is everywhere, and record it."""
    shifter = context.shifter()
    receipt = shifter.set(plan)
    shifter.confirm(receipt)
    context.journal.append(SETTLED, digest=plan.digest, records=len(plan.steps))
    say(f"{plan.title}: {len(plan.steps)} records")
