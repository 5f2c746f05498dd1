"""What Route 53 does with a change batch: all of it or nothing, with AWS's texts when it refuses.

Pure functions on record sets as mappings in boto3's field names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateshift.lab.route53.wire import Change, Refused

__all__ = ["Key", "apply", "key"]

Key = tuple[str, str, str]
"""Name, type and set identifier (empty for a simple record): what makes a record set unique."""

Record = Mapping[str, Any]

MAX_WEIGHT = 255
MAX_CHANGES = 1000
_POLICIES = (
    "Weight",
    "Region",
    "Failover",
    "GeoLocation",
    "MultiValueAnswer",
    "GeoProximityLocation",
    "CidrRoutingConfig",
)


def key(record: Record) -> Key:
    """The key of a record set."""
    return str(record["Name"]), str(record["Type"]), str(record.get("SetIdentifier") or "")


def apply(records: Sequence[Record], changes: Iterable[Change], zone: str) -> tuple[Record, ...]:
    """Return the zone's records after the batch; raises :class:`Refused` and changes nothing otherwise.

    *zone* is the zone's name with its final dot. Changes take effect in their order, so a DELETE before a
    CREATE of the same name replaces the record without a moment in between.
    """
    changes = tuple(changes)
    if not changes:
        raise Refused(
            "InvalidInput",
            "Invalid XML ; cvc-complex-type.2.4.b: The content of element 'Changes' is not complete. "
            "One of '{Change}' is expected.",
        )
    if len(changes) > MAX_CHANGES:
        raise Refused("InvalidChangeBatch", f"Number of changes limit of {MAX_CHANGES} exceeded.")
    for change in changes:
        _check_form(change)
    state: dict[Key, Record] = {key(one): one for one in records}
    problems: list[str] = []
    touched: set[tuple[str, Key]] = set()
    for change in changes:
        mark = (change.action, key(change.record))
        if mark in touched:
            name, kind, _ = key(change.record)
            problems.append(
                f"The request contains an invalid set of changes for a resource record set '{kind} {name}'"
            )
            continue
        touched.add(mark)
        problem = _check_zone(change, zone) or _step(state, change)
        if problem:
            problems.append(problem)
    if problems:
        raise Refused("InvalidChangeBatch", f"[{', '.join(problems)}]")
    return tuple(state[one] for one in sorted(state, key=_order))


def _order(one: Key) -> tuple[str, str, str]:
    """Sort by reversed labels, as Route 53 lists a zone."""
    return ".".join(reversed(one[0].rstrip(".").split("."))), one[1], one[2]


def _check_form(change: Change) -> None:
    """Refuse what the XML schema or the request's own rules refuse, before the zone is looked at."""
    record = change.record
    if change.action not in {"CREATE", "UPSERT", "DELETE"}:
        raise Refused(
            "InvalidInput",
            f"Invalid XML ; cvc-enumeration-valid: Value '{change.action}' is not facet-valid with respect "
            "to enumeration '[CREATE, DELETE, UPSERT]'. It must be a value from the enumeration.",
        )
    for name in ("Name", "Type"):
        if not record.get(name):
            raise Refused("InvalidInput", f"Invalid request: Missing field '{name}' in Change with {change}")
    weight = record.get("Weight")
    if weight is not None and not 0 <= weight <= MAX_WEIGHT:
        facet, limit = ("maxInclusive", MAX_WEIGHT) if weight > MAX_WEIGHT else ("minInclusive", 0)
        raise Refused(
            "InvalidInput",
            f"Invalid XML ; cvc-{facet}-valid: Value '{weight}' is not facet-valid with respect to "
            f"{facet} '{limit}' for type 'RRWeight'.",
        )
    policies = [name for name in _POLICIES if record.get(name) is not None]
    if policies and not record.get("SetIdentifier"):
        raise Refused(
            "InvalidInput", f"Invalid request: Missing field 'SetIdentifier' in Change with {change}"
        )
    if record.get("SetIdentifier") and len(policies) != 1:
        found = "none" if not policies else "more than one"
        raise Refused(
            "InvalidInput",
            f"Invalid request: Expected exactly one of [{', '.join(_POLICIES)}], "
            f"but found {found} in Change with {change}",
        )
    alias = "AliasTarget" in record
    plain = [name for name in ("TTL", "ResourceRecords") if name in record]
    if (alias and plain) or (not alias and len(plain) != 2):
        found = "more than one" if alias else "none"
        raise Refused(
            "InvalidInput",
            "Invalid request: Expected exactly one of [AliasTarget, all of [TTL, and ResourceRecords], or "
            f"TrafficPolicyInstanceId], but found {found} in Change with {change}",
        )


def _check_zone(change: Change, zone: str) -> str | None:
    name = str(change.record["Name"])
    if name != zone and not name.endswith("." + zone):
        return f"RRSet with DNS name {name} is not permitted in zone {zone}"
    return None


def _same(ours: Record, theirs: Record) -> bool:
    """DELETE must repeat every value that the record set has."""
    names = ("TTL", "Weight", "AliasTarget", "HealthCheckId", "Region", "Failover")
    if any(ours.get(name) != theirs.get(name) for name in names):
        return False
    return sorted(ours.get("ResourceRecords") or ()) == sorted(theirs.get("ResourceRecords") or ())


def _named(record: Record) -> str:
    name, kind, identifier = key(record)
    known = f", set-identifier='{identifier}'" if identifier else ""
    return f"[name='{name}', type='{kind}'{known}]"


def _step(state: dict[Key, Record], change: Change) -> str | None:
    """Apply one change; return what AWS says when it cannot be."""
    record = change.record
    mine = key(record)
    present = state.get(mine)
    if change.action == "DELETE":
        if present is None:
            return f"Tried to delete resource record set {_named(record)} but it was not found"
        if not _same(present, record):
            return (
                f"Tried to delete resource record set {_named(record)} "
                "but the values provided do not match the current values"
            )
        del state[mine]
        return None
    if change.action == "CREATE" and present is not None:
        return f"Tried to create resource record set {_named(record)} but it already exists"
    problem = _conflict(state, record)
    if problem is None:
        state[mine] = record
    return problem


def _conflict(state: Mapping[Key, Record], record: Record) -> str | None:
    name, kind, identifier = key(record)
    same_name = [one for k, one in state.items() if k[0] == name and k != (name, kind, identifier)]
    for one in same_name:
        if (one["Type"] == "CNAME") != (kind == "CNAME"):
            zone_hint = name.split(".", 1)[1]
            return (
                f"RRSet of type {kind} with DNS name {name} is not permitted because a conflicting RRSet of "
                f"type {one['Type']} with the same DNS name already exists in zone {zone_hint}"
            )
    siblings = [one for one in same_name if one["Type"] == kind]
    subject = f"RRSet with DNS name {name}, type {kind}, SetIdentifier {identifier or 'null'}"
    weighted = record.get("Weight") is not None
    for one in siblings:
        other_weighted = one.get("Weight") is not None
        if weighted and not other_weighted:
            return f"{subject} cannot be created as a non-weighted set exists with the same name and type."
        if not weighted and other_weighted:
            return f"{subject} cannot be created as a weighted set exists with the same name and type."
        if not identifier or not one.get("SetIdentifier"):
            return f"{subject} cannot be created as other RRSets exist with the same name and type."
        if weighted and "TTL" in record and "TTL" in one and record["TTL"] != one["TTL"]:
            return f"{subject} cannot be created as weighted sets must contain the same TTL."
    return None
