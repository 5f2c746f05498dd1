"""Turn what serves a host today into weighted records, everybody staying where they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateshift.errors import TrafficError
from gateshift.plan import Step
from gateshift.traffic.elb import plain_name
from gateshift.traffic.records import (
    APISIX,
    ISTIO,
    Record,
    Wanted,
    check_targets,
    fresh,
    pair,
    refuse_obstacles,
    step,
    target_of,
)

__all__ = ["prepare_host"]

_NOBODY = "Istio is there, but nobody is sent to it"


def prepare_host(host: str, records: Sequence[Record], wanted: Wanted) -> list[Step]:
    """Return the steps that make *host* weighted: same target first, Istio present with weight 0."""
    _refuse_targets(wanted)
    refuse_obstacles(host, records, wanted)
    if not records:
        raise TrafficError(
            f"{host}: there is no A, AAAA or CNAME record in this hosted zone",
            hint="check traffic.route53.zone, private and hosts: this may be the wrong zone",
        )
    steps: list[Step] = []
    cname = next((r for r in records if r["Type"] == "CNAME" and "SetIdentifier" not in r), None)
    if cname is not None and "CNAME" not in wanted.types:
        # A name has either a CNAME or addresses: the one batch takes it away and puts the aliases there.
        _check_serves(host, cname, wanted)
        steps.append(step(cname, None, "replaced by aliases to the same load balancer"))
    for rtype in wanted.types:
        apisix, istio = pair(records, rtype)
        if apisix is not None:
            steps += _complete(host, rtype, apisix, istio, wanted)
        elif istio is not None:
            raise TrafficError(
                f"{host}: there is a weighted {rtype} record {ISTIO} but none for {APISIX}",
                hint="restore the records from the journal's snapshot with `gateshift rollback`",
            )
        else:
            simple = next((r for r in records if r["Type"] == rtype), None)
            steps += _convert(host, rtype, simple, wanted, elsewhere=cname is not None)
    return steps


def _refuse_targets(wanted: Wanted) -> None:
    for what, name in (("APISIX", wanted.apisix_target), ("Istio", wanted.istio_target)):
        if not name:
            raise TrafficError(
                f"the {what} load balancer has no address",
                hint="wait until its Service has an address (kubectl get service), or set "
                f"traffic.route53.{what.lower()}_target",
            )
    if plain_name(wanted.apisix_target) == plain_name(wanted.istio_target):
        raise TrafficError(
            f"APISIX and Istio have the same load balancer address {plain_name(wanted.apisix_target)}",
            hint="check the two Services, or traffic.route53.apisix_target and istio_target",
        )


def _complete(host: str, rtype: str, apisix: Record, istio: Record | None, wanted: Wanted) -> list[Step]:
    """Complete or correct a pair that is already weighted, without moving anybody."""
    check_targets(host, apisix, None, wanted)
    wanted = replace(wanted, ttl=int(apisix.get("TTL", wanted.ttl)))
    new = fresh(host, rtype, ISTIO, weight=0, wanted=wanted)
    if istio is None:
        steps = [step(None, new, _NOBODY)]
        if int(apisix["Weight"]) == 0:
            # Two zeros would mean equal shares.
            steps.insert(0, step(apisix, {**apisix, "Weight": 100}))
        return steps
    if target_of(istio) == target_of(new):
        return []
    if int(istio["Weight"]) != 0 or int(apisix["Weight"]) == 0:
        check_targets(host, None, istio, wanted)
    return [step(istio, new, "the Istio load balancer has a new address")]


def _convert(host: str, rtype: str, simple: Record | None, wanted: Wanted, *, elsewhere: bool) -> list[Step]:
    """Replace *simple* by a weighted pair; *elsewhere* says that a CNAME served this name until now."""
    # Route 53 wants one TTL for all weighted records of a name.
    wanted = replace(wanted, ttl=min(wanted.ttl, int((simple or {}).get("TTL", wanted.ttl))))
    istio = step(None, fresh(host, rtype, ISTIO, weight=0, wanted=wanted), _NOBODY)
    if simple is None:
        if rtype != "AAAA" and not elsewhere:
            raise TrafficError(
                f"{host}: there is no {rtype} record to convert",
                hint="set traffic.route53.record to the kind of record the host has (alias or cname)",
            )
        note = "same target, now weighted" if elsewhere else "IPv6 clients had no answer; ipv6 is true"
        return [step(None, fresh(host, rtype, APISIX, weight=100, wanted=wanted), note), istio]
    _check_serves(host, simple, wanted)
    kept = {k: v for k, v in simple.items() if k in ("Name", "Type", "ResourceRecords", "AliasTarget")}
    if "AliasTarget" in kept:
        kept["AliasTarget"] = {**kept["AliasTarget"], "EvaluateTargetHealth": False}
    else:
        kept["TTL"] = wanted.ttl
    note = "same target, now weighted"
    if target_of(simple) is None:
        note = "same addresses, now weighted; check that they are APISIX's"
    return [
        step(simple, None, "replaced in the same atomic batch"),
        step(None, {**kept, "SetIdentifier": APISIX, "Weight": 100}, note),
        istio,
    ]


def _check_serves(host: str, record: Record, wanted: Wanted) -> None:
    target = target_of(record)
    if target is not None and target != plain_name(wanted.apisix_target):
        raise TrafficError(
            f"{host}: the {record['Type']} record points to {target}, not to the APISIX load balancer "
            f"{plain_name(wanted.apisix_target)}",
            hint="check traffic.route53.apisix_target and hosts; gateshift converts only what serves now",
        )
