"""Route 53 records as data: what is there, what would have to change. Pure; the client is in ``route53``.

A record is the API's own ResourceRecordSet as plain JSON, with names lower-cased and without trailing dot.
Weights are written as percentages (apisix + istio = 100): exact, and within Route 53's 0-255.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateshift.errors import TrafficError
from gateshift.plan import Step, digest_of
from gateshift.traffic.elb import canonical_zone_id, is_load_balancer, plain_name
from gateshift.traffic.protocol import HostWeights

__all__ = [
    "APISIX",
    "ISTIO",
    "MANAGED_TYPES",
    "Record",
    "Wanted",
    "check_targets",
    "describe",
    "digest",
    "fresh",
    "host_weights",
    "normal",
    "pair",
    "refuse_obstacles",
    "restore_host",
    "step",
    "target_of",
    "weight_host",
    "weights_for",
]

Record = dict[str, Any]

APISIX = "apisix"
ISTIO = "istio"
MANAGED_TYPES = ("A", "AAAA", "CNAME")
_PLAIN_KEYS = {
    "Name",
    "Type",
    "SetIdentifier",
    "Weight",
    "TTL",
    "ResourceRecords",
    "AliasTarget",
    "HealthCheckId",
}
_PREPARE = "run the preflight notebook with mode=act: it converts the records with the same target first"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What params ask for. Empty targets mean "not known now": then only existing records are re-weighted."""

    apisix_target: str
    istio_target: str
    record: str = "alias"
    ipv6: bool = False
    ttl: int = 60
    target_zone_id: str | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """Record types that carry the weights."""
        if self.record == "cname":
            return ("CNAME",)
        return ("A", "AAAA") if self.ipv6 else ("A",)


def weights_for(percent: int, of: int = 100) -> tuple[int, int]:
    """Return the weights (apisix, istio) that give Istio *percent* of *of*; exact, 0 <= weight <= 100."""
    if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= of <= 100:
        raise TrafficError(
            f"{percent!r} is not a whole percentage from 0 to {of}",
            hint="correct stages[].weight_percent in the params file",
        )
    return of - percent, percent


def _name(name: str) -> str:
    # Route 53 lists a wildcard's asterisk as the octal escape \052.
    return re.sub(r"\\052", "*", name).rstrip(".").lower()


def normal(raw: Mapping[str, Any]) -> Record:
    """Return the API's record set with names normalized and absent fields dropped."""
    record = {key: value for key, value in raw.items() if value is not None and value != []}
    record["Name"] = _name(str(record["Name"]))
    if "AliasTarget" in record:
        alias = dict(record["AliasTarget"])
        alias["DNSName"] = _name(str(alias["DNSName"]))
        record["AliasTarget"] = alias
    if "ResourceRecords" in record:
        # Kept to the letter, because a deletion must repeat them; only their order has no meaning.
        values = sorted(str(v["Value"]) for v in record["ResourceRecords"])
        record["ResourceRecords"] = [{"Value": v} for v in values]
    return record


def digest(records: Mapping[str, Sequence[Record]]) -> str:
    """Return a digest of all *records* by host that does not depend on their order."""
    return digest_of({host: sorted(map(_key_text, rs)) for host, rs in records.items()})


def _key_text(record: Record) -> str:
    return f"{record['Type']} {record.get('SetIdentifier', '')} {digest_of(record)}"


def target_of(record: Record) -> str | None:
    """Return the name a record points to, or None when it holds addresses."""
    if "AliasTarget" in record:
        return plain_name(record["AliasTarget"]["DNSName"])
    if record["Type"] == "CNAME":
        return plain_name(record["ResourceRecords"][0]["Value"])
    return None


def describe(record: Record) -> str:
    """Return a record as one readable line part: ``A istio -> lb.example weight 10``."""
    where = target_of(record) or ", ".join(v["Value"] for v in record.get("ResourceRecords", ()))
    parts = [record["Type"], record.get("SetIdentifier", "(simple)"), "->", where or "?"]
    if "Weight" in record:
        parts += ["weight", str(record["Weight"])]
    if "TTL" in record:
        parts += ["TTL", str(record["TTL"])]
    return " ".join(parts)


def pair(records: Sequence[Record], rtype: str) -> tuple[Record | None, Record | None]:
    """Return our two weighted records (apisix, istio) of one type, each None when absent."""
    ours = {r.get("SetIdentifier"): r for r in records if r["Type"] == rtype and "Weight" in r}
    return ours.get(APISIX), ours.get(ISTIO)


def _obstacles(host: str, records: Sequence[Record], wanted: Wanted) -> list[str]:
    """Return what forbids giving *host* a weight; each a full sentence without the remedy."""
    found = []
    for record in records:
        label = f"{host}: the {record['Type']} record"
        identifier = record.get("SetIdentifier")
        if identifier is not None and identifier not in (APISIX, ISTIO):
            found.append(f"{label} has a foreign set identifier {identifier!r}")
        foreign = sorted(set(record) - _PLAIN_KEYS)
        if foreign or (identifier is not None and "Weight" not in record):
            found.append(
                f"{label} {identifier or ''} uses another routing policy ({', '.join(foreign) or '?'})"
            )
        if "HealthCheckId" in record:
            found.append(f"{label} {identifier or ''} hangs on a health check, which overrides weights")
        if record["Type"] not in wanted.types and not (
            record["Type"] == "CNAME" and wanted.record == "alias" and identifier is None
        ):
            moved = " and ".join(wanted.types)
            found.append(f"{label} would answer beside the weights, because only {moved} are moved")
    return found


_OBSTACLE_HINT = (
    "gateshift never overwrites records it did not make: remove the record or the health check, or set "
    "traffic.route53.record / ipv6 to match, then plan again"
)


def refuse_obstacles(host: str, records: Sequence[Record], wanted: Wanted) -> None:
    """Raise when anything that is not ours would answer for *host* beside the weights."""
    found = _obstacles(host, records, wanted)
    if found:
        raise TrafficError("; ".join(found), hint=_OBSTACLE_HINT)


def host_weights(host: str, records: Sequence[Record], wanted: Wanted) -> HostWeights:
    """Read the share of Istio that *records* give *host*."""
    obstacles = _obstacles(host, records, wanted)
    shares: set[float | None] = set()
    weights: dict[str, int] = {}
    prepared = not obstacles and bool(records)
    for rtype in wanted.types:
        apisix, istio = pair(records, rtype)
        simple = [r for r in records if "SetIdentifier" not in r and r["Type"] in (rtype, "CNAME")]
        if apisix is not None and istio is not None:
            low, high = int(apisix["Weight"]), int(istio["Weight"])
            # All weights zero means equal shares to Route 53, not silence.
            shares.add(100.0 * high / (low + high) if low + high else 50.0)
            weights |= {APISIX: low, ISTIO: high}
            continue
        prepared = False
        one = apisix or istio or (simple[0] if simple else None)
        shares.add(_sole_share(one, wanted))
    share = next(iter(shares)) if len(shares) == 1 else None
    problem = "; ".join(obstacles)
    if not problem and not records:
        problem = f"{host}: there is no A, AAAA or CNAME record in this hosted zone"
    elif not problem and len(shares) > 1:
        problem = f"{host}: its A and AAAA records disagree about the weights"
    elif not problem and share is None:
        problem = f"{host}: its record points to neither gateway"
    ttl = max((int(r["TTL"]) for r in records if "TTL" in r), default=None)
    return HostWeights(host, None if obstacles else share, prepared, weights, problem, ttl)


def _sole_share(record: Record | None, wanted: Wanted) -> float | None:
    if record is None:
        return None
    target = target_of(record)
    identifier = record.get("SetIdentifier")
    if identifier == APISIX or (target and target == plain_name(wanted.apisix_target)):
        return 0.0
    if identifier == ISTIO or (target and target == plain_name(wanted.istio_target)):
        return 100.0
    return None


def step(before: Record | None, after: Record | None, note: str = "") -> Step:
    """Return one record's change as a plan step."""
    one = after or before or {}
    verb = "create" if before is None else "delete" if after is None else "weigh"
    identifier = one.get("SetIdentifier")
    target = f"{one['Name']} {one['Type']}" + (f" {identifier}" if identifier else " (simple)")
    return Step(verb, target, before, after, note)


def weight_host(
    host: str, records: Sequence[Record], wanted: Wanted, percent: int, of: int = 100
) -> list[Step]:
    """Return the steps that give Istio *percent* of *of* parts of *host*.

    Going to 0 is the rollback: it changes nothing but our weights, keeps targets as they are and does not
    mind obstacles, because nothing may stand between a person and the way back.
    """
    low, high = weights_for(percent, of)
    back = percent == 0
    if not back:
        refuse_obstacles(host, records, wanted)
    steps: list[Step] = []
    for rtype in MANAGED_TYPES if back else wanted.types:
        apisix, istio = pair(records, rtype)
        if back and (apisix is None or istio is None):
            steps += _way_back(host, rtype, records, wanted)
            continue
        if apisix is None or istio is None:
            if host_weights(host, records, wanted).istio_percent == 100 * percent / of:
                continue
            raise TrafficError(
                f"{host}: its {rtype} records are not yet weighted between {APISIX} and {ISTIO}",
                hint=_PREPARE,
            )
        if not back:
            check_targets(host, apisix, istio, wanted)
        for record, weight in ((apisix, 100 if back else low), (istio, high)):
            if int(record["Weight"]) != weight:
                steps.append(step(record, {**record, "Weight": weight}))
    return steps


def _way_back(host: str, rtype: str, records: Sequence[Record], wanted: Wanted) -> list[Step]:
    """Return the steps to APISIX for a name where one or both of our weighted records are missing."""
    apisix, istio = pair(records, rtype)
    simple = next((r for r in records if r["Type"] == rtype and "SetIdentifier" not in r), None)
    if apisix is not None:
        # Alone it answers everybody at any weight but says so only at 100.
        return [] if int(apisix["Weight"]) == 100 else [step(apisix, {**apisix, "Weight": 100})]
    if istio is not None and wanted.apisix_target:
        return [
            step(None, fresh(host, rtype, APISIX, weight=100, wanted=wanted), "it was missing"),
            step(istio, {**istio, "Weight": 0}),
        ]
    if istio is not None or (simple is not None and _sole_share(simple, wanted) == 100.0):
        raise TrafficError(
            f"{host}: its {rtype} record leads to Istio and there is none for APISIX to give weight to",
            hint="restore the snapshot in the journal with `gateshift rollback`, or point the record to the "
            "APISIX load balancer by hand",
        )
    return []


def check_targets(host: str, apisix: Record | None, istio: Record | None, wanted: Wanted) -> None:
    """Raise when a record points to another load balancer than the one known now."""
    for record, name in ((apisix, wanted.apisix_target), (istio, wanted.istio_target)):
        target = target_of(record) if record else None
        if record and name and target and target != plain_name(name):
            raise TrafficError(
                f"{host}: the {record['SetIdentifier']} record points to {target}, but the load balancer's "
                f"address is now {plain_name(name)}",
                hint="the Service was recreated or the params name another one; roll back to 0 %, "
                "then run the preflight notebook, which plans the correction",
            )


def fresh(host: str, rtype: str, identifier: str, *, weight: int, wanted: Wanted) -> Record:
    """Return a new weighted record to the load balancer that *identifier* stands for."""
    target = wanted.apisix_target if identifier == APISIX else wanted.istio_target
    base: Record = {"Name": host, "Type": rtype, "SetIdentifier": identifier, "Weight": weight}
    target = target.rstrip(".").lower()
    if rtype == "CNAME":
        return {**base, "TTL": wanted.ttl, "ResourceRecords": [{"Value": target}]}
    zone = wanted.target_zone_id or canonical_zone_id(target)
    if zone is None:
        known = is_load_balancer(target)
        raise TrafficError(
            f"{host}: an alias to {target} needs its canonical hosted zone id, which is not known",
            hint="set traffic.route53.target_zone_id (`aws elbv2 describe-load-balancers`)"
            if known
            else "it is not an AWS load balancer: set traffic.route53.record to cname",
        )
    alias = {"HostedZoneId": zone, "DNSName": target, "EvaluateTargetHealth": False}
    return {**base, "AliasTarget": alias}


def restore_host(host: str, records: Sequence[Record], saved: Sequence[Record]) -> list[Step]:
    """Return the steps from *records* back to *saved* exactly; foreign set identifiers are left alone."""

    def by_key(rs: Sequence[Record]) -> dict[tuple[str, str], Record]:
        return {(r["Type"], r.get("SetIdentifier", "")): r for r in map(normal, rs)}

    now, then = by_key(records), by_key(saved)
    steps = []
    for key in sorted(set(now) | set(then)):
        before, after = now.get(key), then.get(key)
        if before == after:
            continue
        if before is not None and after is None and key[1] not in ("", APISIX, ISTIO):
            raise TrafficError(
                f"{host}: somebody added the {key[0]} record {key[1]!r} since the snapshot",
                hint="gateshift does not delete what it did not make: remove it, then restore again; "
                "or set the weights only: `gateshift rollback`",
            )
        steps.append(step(before, after, "as it was"))
    return steps
