"""Which hosts are emitted as Gateway API routes, and the objects for them.

A host is an HTTPRoute (or GRPCRoute) or a VirtualService, never both: its whole list of rules has to be
exact, in its order. What is not stays a VirtualService and says why. The Gateway is bound to the ingress
gateway's Service by ``spec.addresses`` ("manual deployment"; ``extractGatewayServices`` in istio's
pilot/pkg/config/kube/gateway/conversion.go), so the same pods serve both forms. That keeps every policy in
force: RequestAuthentication, AuthorizationPolicy and EnvoyFilter select those pods by their labels, not the
routes. EnvoyFilters that speak to one route use the name that istiod gives to each rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateshift.istio.builders import build, dns_label
from gateshift.istio.gateway_api import GROUP
from gateshift.istio.versions import Feature
from gateshift.translate.certificates import certificate_of, secret_of
from gateshift.translate.http_routes import Action, action_of, retry_patch
from gateshift.translate.job import Job
from gateshift.translate.model import HostForm
from gateshift.translate.paths import Pattern
from gateshift.translate.precedence import MAX_MATCHES, Entry, Inexact, Mode, check_order, entries_of
from gateshift.translate.tables import ANY_HOST

__all__ = [
    "API_GATEWAY",
    "Routed",
    "Table",
    "forms_of",
    "gates_of",
    "gateway_objects",
    "grants",
    "retry_patches",
    "route_objects",
    "within",
]

API_GATEWAY = "gateshift-gateway-api"
"""The Gateway of the Gateway API; the HTTP port and each certificate have a listener of their own."""

_API = f"{GROUP}/v1"
_HTTP_LISTENER = "http"
_HOSTNAME = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_GRPC_PATH = re.compile(r"/(\.?[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:/([A-Za-z_]\w*))?", re.ASCII)
_RULES = 16
_MATCHES_OF_RULE = 64
_MATCHES_OF_ROUTE = 128
_HOSTNAMES = 16
_LISTENERS = 64


@dataclass(frozen=True, slots=True)
class Table:
    """One list of rules and the hosts that share it; *grpc* when every rule forwards gRPC.

    *rules* are VirtualService rules in APISIX's order, each with the pattern of its matches, and *owners*
    the ids of the routes that they stand for. *resources* are those routes as annotations name them.
    """

    hosts: tuple[str, ...]
    rules: Sequence[tuple[Pattern, Mapping[str, Any]]]
    owners: tuple[str, ...]
    resources: tuple[str, ...]
    grpc: bool = False


@dataclass(slots=True)
class _Part:
    """One route object in the making: its rules, and the places of those rules in the table."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    matches: int = 0


@dataclass(frozen=True, slots=True)
class Routed:
    """A table as Gateway API rules: ``parts`` are the objects that its rules are spread over."""

    table: Table
    kind: str
    parts: tuple[_Part, ...]
    actions: Mapping[int, Action]


def _spread(entries: Sequence[Entry], actions: Mapping[int, Action]) -> tuple[list[_Part], dict[int, int]]:
    """Spread rules over as many objects as their limits need; returns them and each rule's object."""
    parts = [_Part()]
    object_of: dict[int, int] = {}
    matches: dict[int, list[Mapping[str, Any]]] = {}
    for one in entries:
        matches.setdefault(one.rule, []).append(one.match)
    for place, mine in matches.items():
        pieces = [mine[i : i + _MATCHES_OF_RULE] for i in range(0, len(mine), _MATCHES_OF_RULE)]
        full = len(parts[-1].rules) + len(pieces) > _RULES
        if full or parts[-1].matches + len(mine) > _MATCHES_OF_ROUTE:
            parts.append(_Part())
        part = parts[-1]
        for piece in pieces:
            part.rules.append({"matches": piece, **actions[place].spec})
            part.places.append(place)
        part.matches += len(mine)
        object_of[place] = len(parts) - 1
    if max(part.matches for part in parts) > _MATCHES_OF_ROUTE:
        raise Inexact(f"one rule has more than {_MATCHES_OF_ROUTE} matches")
    return parts, object_of


def _grpc(entries: Sequence[Entry], actions: Mapping[int, Action]) -> list[Entry] | None:
    """Return the entries as GRPCRoute matches; None when an HTTPRoute is needed."""
    if any(set(one.spec) - {"filters", "backendRefs"} for one in actions.values()):
        return None
    if any(f["type"] == "URLRewrite" for a in actions.values() for f in a.spec.get("filters", ())):
        return None
    found = []
    for one in entries:
        path = _GRPC_PATH.fullmatch(one.path["value"])
        wanted = {"Exact": 2, "PathPrefix": 1}.get(one.path["type"])
        if path is None or wanted != 1 + (path[2] is not None) or set(one.match) - {"path", "headers"}:
            return None
        method = {"type": "Exact", "service": path[1], **({"method": path[2]} if path[2] else {})}
        headers = {"headers": one.match["headers"]} if "headers" in one.match else {}
        found.append(Entry(one.rule, {"method": method, **headers}, one.literal, one.title, one.key))
    return found


def _routed(job: Job, table: Table, mode: Mode) -> Routed:
    """Return *table* as Gateway API rules with its paths in *mode*. Raises :class:`Inexact`."""
    target = job.target
    usual = (target.http_port, target.https_port) == (80, 443)
    entries: list[Entry] = []
    actions: dict[int, Action] = {}
    for number, (pattern, rule) in enumerate(table.rules):
        try:
            entries += entries_of(number, rule["match"], pattern, mode)
            actions[number] = action_of(rule, target.namespace, usual_ports=usual)
        except Inexact as reason:
            raise Inexact(f"route {table.owners[number]}: {reason}") from None
        if len(entries) > MAX_MATCHES:
            raise Inexact(f"the host has more than {MAX_MATCHES} matches")
    parts, object_of = _spread(entries, actions)
    check_order(entries, object_of)
    grpc = _grpc(entries, actions) if table.grpc else None
    if grpc is not None:
        return Routed(table, "GRPCRoute", tuple(_spread(grpc, actions)[0]), actions)
    return Routed(table, "HTTPRoute", tuple(parts), actions)


def _exact(job: Job, table: Table, tls: Mapping[str, Sequence[str]]) -> Routed:
    if API_GATEWAY in tls:
        raise Inexact(f"the Gateway of a certificate has the name {API_GATEWAY}")  # titles would be equal
    if not job.has(Feature.GATEWAY_API):
        raise Inexact(f"it takes Istio {Feature.GATEWAY_API.since}")
    for host in table.hosts:
        if host != ANY_HOST and not _HOSTNAME.fullmatch(host):
            raise Inexact(f"{host} is no hostname of the Gateway API")
    try:
        return _routed(job, table, "prefix")
    except Inexact as reason:
        first = reason
    try:
        return _routed(job, table, "regex")  # plain text prefixes need regular expressions, all of them then
    except Inexact:
        raise first from None


def _certificate(job: Job, gate: str, snis: Sequence[str], place: int) -> str:
    """Return why a certificate needs Istio's own Gateway; empty when a listener says the same."""
    ssl = certificate_of(job, gate)
    spec = ssl.spec
    if spec.get("client") or spec.get("ssl_protocols") or spec.get("certs") or spec.get("keys"):
        return f"its certificate {ssl.id} has settings that a listener does not have"
    if len(snis) > 1:
        return f"its certificate {ssl.id} serves several names on one connection, a listener serves one"
    if not _HOSTNAME.fullmatch(snis[0]):
        return f"{snis[0]} of its certificate {ssl.id} is no hostname of the Gateway API"
    return f"a Gateway has room for {_LISTENERS} listeners" if place >= _LISTENERS - 1 else ""


def within(host: str, bound: str) -> bool:
    """Tell whether every request for *host* is one for *bound*."""
    if bound in (ANY_HOST, host):
        return True
    return bound.startswith("*") and host.removeprefix("*").endswith(bound[1:])


def gates_of(hosts: Iterable[str], tls: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the Gateways of *tls* (certificates by Gateway) that serve any of *hosts*."""
    hosts = tuple(hosts)
    return [gate for gate, snis in tls.items() if any(within(h, s) for h in hosts for s in snis)]


def forms_of(
    job: Job, tables: Sequence[Table], tls: Mapping[str, Sequence[str]]
) -> tuple[dict[tuple[str, ...], Routed], list[HostForm]]:
    """Return the tables (by their hosts) that become Gateway API routes, and the form of every host.

    The hosts of one certificate share their form: a client may ask for any of them on one connection, and
    finds only those that the connection's listener serves.
    """
    if job.params.output != "gateway-api":
        return {}, []
    routed: dict[tuple[str, ...], Routed] = {}
    why: dict[tuple[str, ...], str] = {}
    for table in tables:
        try:
            routed[table.hosts] = _exact(job, table, tls)
        except Inexact as reason:
            why[table.hosts] = str(reason)
    again = True
    while again:
        again = False
        for place, (gate, snis) in enumerate(tls.items()):
            mine = [t.hosts for t in tables if any(within(h, s) for h in t.hosts for s in snis)]
            cause = _certificate(job, gate, snis, place)
            other = next((hosts for hosts in mine if hosts not in routed), None)
            if not cause and other is not None:
                cause = f"{other[0]}, which shares its certificate, stays a VirtualService"
            for hosts in mine if cause else ():
                if routed.pop(hosts, None) is not None:
                    why[hosts], again = cause, True
    forms = [
        HostForm(host, routed[hosts].kind, "")
        if hosts in routed
        else HostForm(host, "VirtualService", why[hosts])
        for hosts in (table.hosts for table in tables)
        for host in hosts
    ]
    return routed, sorted(forms, key=lambda one: one.host)


def _listener(gate: str) -> str:
    return f"https-{gate}"


def gateway_objects(
    job: Job, gates: Sequence[str], tls: Mapping[str, Sequence[str]], sources: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the Gateway for the routes of *sources*, bound to the ingress gateway that is there.

    *gates* are the certificates whose hosts all are routes of the Gateway API.
    """
    if not sources:
        return []
    target = job.target
    allowed = {"matchLabels": {"kubernetes.io/metadata.name": target.namespace}}
    routes = {"namespaces": {"from": "Selector", "selector": allowed}}
    listeners: list[dict[str, Any]] = [
        {"name": _HTTP_LISTENER, "port": target.http_port, "protocol": "HTTP", "allowedRoutes": routes}
    ]
    for gate in gates:
        secret = secret_of(job, certificate_of(job, gate))
        listeners.append(
            {
                "name": _listener(gate),
                "hostname": tls[gate][0],
                "port": target.https_port,
                "protocol": "HTTPS",
                "tls": {"mode": "Terminate", "certificateRefs": [{"name": secret}]},
                "allowedRoutes": routes,
            }
        )
    address = f"{target.gateway_service}.{target.gateway_namespace}.svc.cluster.local"
    spec = {
        "gatewayClassName": "istio",
        "addresses": [{"type": "Hostname", "value": address}],
        "listeners": listeners,
    }
    kind = f"{_API}/Gateway"
    return [build(job.version, kind, API_GATEWAY, target.gateway_namespace, spec, sources)]


def route_objects(
    job: Job, routed: Routed, name_of_host: Callable[[str], str], tls: Mapping[str, Sequence[str]]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, int]]]]:
    """Yield each route object with (name, place in the table) of its rules as istiod names them."""
    hosts = sorted(routed.table.hosts)
    for start in range(0, len(hosts), _HOSTNAMES):
        names = hosts[start : start + _HOSTNAMES]
        sections = [_HTTP_LISTENER, *map(_listener, gates_of(names, tls))]
        parents = [
            {"name": API_GATEWAY, "namespace": job.target.gateway_namespace, "sectionName": one}
            for one in sections
        ]
        for number, part in enumerate(routed.parts, start=1):
            base = name_of_host(names[0])
            name = base if number == 1 else dns_label(base.replace(".", "-"), "part", str(number))
            spec: dict[str, Any] = {"parentRefs": parents}
            if names != [ANY_HOST]:
                spec["hostnames"] = names
            spec["rules"] = part.rules
            namespace = job.target.namespace
            kind = f"{_API}/{routed.kind}"
            made = build(job.version, kind, name, namespace, spec, routed.table.resources)
            yield made, [(f"{namespace}.{name}.{i}", place) for i, place in enumerate(part.places)]


def grants(job: Job, routed: Sequence[Routed]) -> list[dict[str, Any]]:
    """Return a ReferenceGrant in each other namespace for the Services that the routes refer to."""
    wanted: dict[str, dict[str, set[str]]] = {}
    sources: dict[str, set[str]] = {}
    for one in routed:
        for action in one.actions.values():
            for space, service in action.services:
                if space != job.target.namespace:
                    wanted.setdefault(space, {}).setdefault(one.kind, set()).add(service)
                    sources.setdefault(space, set()).update(one.table.resources)
    found = []
    for space, kinds in sorted(wanted.items()):
        spec = {
            "from": [
                {"group": GROUP, "kind": kind, "namespace": job.target.namespace} for kind in sorted(kinds)
            ],
            "to": [
                {"group": "", "kind": "Service", "name": name}
                for name in sorted({service for names in kinds.values() for service in names})
            ],
        }
        kind = f"{GROUP}/v1beta1/ReferenceGrant"
        name = dns_label("gateshift", job.target.namespace)
        found.append(build(job.version, kind, name, space, spec, sources[space]))
    return found


def retry_patches(rules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what each named rule needs so that it retries as often as APISIX does."""
    patches = {name: retry_patch(retries) for name, retries in rules.items()}
    return {name: patch for name, patch in patches.items() if patch is not None}
