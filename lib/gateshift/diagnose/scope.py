"""What of a cluster concerns the gateway that is diagnosed: others have their own gateways, rules and limits.

A finding about what belongs to somebody else explains nothing here, and an operator who follows its remedy
breaks something healthy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gateshift.cluster.front import servers_of
from gateshift.cluster.objects import MANAGED_BY, MANAGER, Object, name_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level
from gateshift.diagnose.routes import host_matches

__all__ = [
    "bound",
    "eased",
    "full_name",
    "in_mesh_only",
    "made_by_us",
    "matters",
    "offered",
    "offers",
    "our_rules",
    "serves",
]

_ELSEWHERE = 0.3
"""Confidence of a finding about rules that do not serve what is asked about."""


def full_name(name: str, namespace: str) -> str:
    """Return a gateway's name as ``namespace/name``."""
    return name if "/" in name else f"{namespace}/{name}"


def bound(rules: Object) -> list[str]:
    """Return the Gateways that a VirtualService names, as ``namespace/name``; the mesh left out."""
    namespace = rules["metadata"]["namespace"]
    return [full_name(g, namespace) for g in rules["spec"].get("gateways") or [] if g != "mesh"]


def in_mesh_only(rules: Object) -> bool:
    """Say whether a VirtualService is for sidecars alone; a delegate (without hosts) is as its parent."""
    return bool(rules["spec"].get("hosts")) and not bound(rules)


def serves(rules: Object, host: str) -> bool:
    """Say whether a VirtualService has *host*, as it is or by a wildcard."""
    return any(host_matches(h, host) for h in rules["spec"].get("hosts") or [])


def made_by_us(rules: Object) -> bool:
    """Say whether gateshift applied an object: then its Gateways are to serve all of its hosts."""
    return bool((rules["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER)


def matters(facts: Facts, rules: Object) -> bool:
    """Say whether a VirtualService is about what is asked: the host, else what this migration serves.

    Those that this migration made always are: one of them may be meant for the host, and misspell it.
    """
    metadata, traffic = rules["metadata"], facts.params.traffic
    if made_by_us(rules):
        return True
    if facts.host:
        return serves(rules, facts.host)
    by_name = [h for one in (traffic.route53, traffic.cloudflare) if one for h in one.hosts]
    ours = {f"{g['metadata']['namespace']}/{name_of(g)}" for g in facts.gateways}
    return (
        metadata["namespace"] == facts.params.cluster.application_namespace
        or any(serves(rules, host) for host in by_name)
        or bool(ours & set(bound(rules)))
        or not rules["spec"].get("hosts")
    )


def eased(facts: Facts, rules: Object, cause: Cause) -> Cause:
    """Make a finding about a VirtualService of others a warning: it is wrong, and explains nothing here."""
    if matters(facts, rules) or cause.level != Level.ERROR:
        return cause
    return replace(cause, level=Level.WARNING, confidence=min(cause.confidence, _ELSEWHERE))


def our_rules(facts: Facts) -> list[Object]:
    """Return the VirtualServices on a Gateway of ours, and delegates, which are on their parents'.

    A Gateway that does not exist may be meant to be ours.
    """
    foreign = {f"{g['metadata']['namespace']}/{name_of(g)}" for g in facts.foreign_gateways}
    return [
        v
        for v in facts.objects("VirtualService")
        if not v["spec"].get("hosts") or any(name not in foreign for name in bound(v))
    ]


def offers(gateway: Object, namespace: str) -> Iterator[tuple[int, str]]:
    """Yield (port, host pattern) of what a Gateway lets VirtualServices of *namespace* serve."""
    for server in servers_of(gateway):
        for entry in server.get("hosts") or []:
            where, slash, pattern = str(entry).rpartition("/")
            home = gateway["metadata"]["namespace"] if where == "." else where
            if not slash or home in {"*", namespace}:
                yield int((server.get("port") or {}).get("number") or 0), pattern


def offered(gateway: Object, namespace: str, host: str) -> dict[int, set[str]]:
    """Return, per port, the names by which a Gateway serves *host*: of two wildcards the narrower."""
    found: dict[int, set[str]] = {}
    for port, pattern in offers(gateway, namespace):
        if host_matches(pattern, host):
            found.setdefault(port, set()).add(host)
        elif host_matches(host, pattern):
            found.setdefault(port, set()).add(pattern)
    return found
