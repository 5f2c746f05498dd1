"""VirtualServices from host lists: one a host, rules in APISIX's order, guards directly above their route."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateshift.istio.builders import build, dns_label
from gateshift.translate.certificates import GATEWAY_NAME
from gateshift.translate.conditions import MAX_ALTERNATIVES, Condition, Inexpressible, combine_all
from gateshift.translate.gateway_api import Routed, Table, forms_of, gates_of, grants, route_objects, within
from gateshift.translate.job import Draft, Job
from gateshift.translate.model import HostForm
from gateshift.translate.paths import Pattern
from gateshift.translate.tables import ANY_HOST, HostList
from gateshift.translate.upstreams import UpstreamBook

__all__ = ["GUARD", "Emission", "hold_back_unemittable", "virtual_services"]

GUARD = "guard-"
"""How the last part of a guard's name begins; its own name follows."""
_REFUSAL = {
    "status": 503,
    "body": {"string": "gateshift: this route is held back until its blocker is decided\n"},
}


@dataclass(slots=True)
class Emission:
    """VirtualServices and routes of the Gateway API, and which rule names stand for which route.

    ``names`` leaves out guards, which are in ``guards``: what an EnvoyFilter does to a route it does not do
    to those. ``hosts`` are those of VirtualServices, ``api_hosts`` those of the Gateway API, whose
    certificates are ``api_gates`` and whose forwarding rules want ``retries``.
    """

    objects: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    guards: dict[str, list[str]] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    lists: dict[str, HostList] = field(default_factory=dict)
    routes: list[dict[str, Any]] = field(default_factory=list)
    api_hosts: list[str] = field(default_factory=list)
    api_gates: set[str] = field(default_factory=set)
    retries: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    forms: list[HostForm] = field(default_factory=list)

    def record(self, name: str, route: str, *, guard: bool) -> None:
        """Note that the emitted rule *name* stands for the APISIX route with the id *route*."""
        if name in self.entries:
            return  # one rule stands in the list of every host that it is copied into
        self.entries[name] = route
        (self.guards if guard else self.names).setdefault(route, []).append(name)


def _matches(pattern: Pattern, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    return [{**pattern.match, **condition} for condition in conditions]


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay *top* over *base*, joining the mappings that both have."""
    merged = dict(base)
    for key, value in top.items():
        known = merged.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[key] = _overlay(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            merged[key] = [*known, *(one for one in value if one not in known)]
        else:
            merged[key] = value
    return merged


def _destinations(book: UpstreamBook, backends: Sequence[Any]) -> list[dict[str, Any]]:
    alive = [one for one in backends if one.weight > 0]
    if len(alive) == 1 and len(backends) == 1:
        return [{"destination": book.destination(alive[0])}]
    return [{"destination": book.destination(one), "weight": one.weight} for one in backends]


def _forwarding(book: UpstreamBook, http: Mapping[str, Any], backends: Sequence[Any]) -> dict[str, Any]:
    """Return *http* with its destinations, and with the Host header that each of them gets.

    An upstream's ``pass_host`` comes after proxy-rewrite in APISIX, so its Host stands. One for all is the
    rule's; Envoy would take the rule's before a destination's, so several leave the rule without.
    """
    destinations = _destinations(book, backends)
    rewrite = dict(http.get("rewrite") or {})
    named = [one.authority or rewrite.get("authority", "") for one in backends]
    hosts = {name for one, name in zip(backends, named, strict=True) if one.weight > 0}
    rewrite.pop("authority", None)
    if len(hosts) == 1:
        (name,) = hosts
        if name:
            rewrite["authority"] = name
    else:
        for one, name in zip(destinations, named, strict=True):
            if name:
                one["headers"] = {"request": {"set": {"host": name}}}
    found = {key: value for key, value in http.items() if key != "rewrite"}
    return found | ({"rewrite": rewrite} if rewrite else {}) | {"route": destinations}


_FORWARDING = ("route", "rewrite", "timeout", "retries", "fault", "mirrors")


def _without_forwarding(http: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in http.items() if key not in _FORWARDING}
    headers = found.get("headers")
    if isinstance(headers, Mapping):
        response = {key: value for key, value in headers.items() if key == "response"}
        found.pop("headers")
        if response:
            found["headers"] = response
    return found


_ORDER = ("name", "match", "redirect", "directResponse", "rewrite", "route", "timeout", "retries", "fault")


def _rule(name: str, matches: list[dict[str, Any]], http: Mapping[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": name, "match": matches, **http}
    return {key: rule[key] for key in (*_ORDER, *sorted(set(rule) - set(_ORDER))) if key in rule}


def _action(book: UpstreamBook, draft: Draft, backends: Sequence[Any]) -> dict[str, Any]:
    if draft.terminal is not None:
        # Envoy's CORS filter passes by routes that do not forward.
        plain = {key: value for key, value in draft.http.items() if key != "corsPolicy"}
        return _overlay(_without_forwarding(plain), draft.terminal)
    if not any(one.weight > 0 for one in backends):
        # APISIX answers 503 as well when a route has nowhere to go.
        return _without_forwarding(draft.http) | {"directResponse": {"status": 503}}
    return _forwarding(book, draft.http, backends)


class _Rules:
    """The rules that one (route, pattern) pair gives; equal for every host it is copied into.

    ``guards`` are the names of those that stand above their route's own.
    """

    def __init__(self, job: Job, book: UpstreamBook) -> None:
        self._job, self._book = job, book
        self._known: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.guards: set[str] = set()

    def of(self, draft: Draft, pattern: Pattern) -> list[dict[str, Any]]:
        key = (draft.id, pattern.source)
        if key not in self._known:
            self._known[key] = self._make(draft, pattern)
        return self._known[key]

    def _name(self, draft: Draft, pattern: Pattern, suffix: str = "") -> str:
        position = draft.patterns.index(pattern)
        name = draft.label + (f".{position + 1}" if position else "") + (f".{suffix}" if suffix else "")
        if suffix.startswith(GUARD):
            self.guards.add(name)
        return name

    def _make(self, draft: Draft, pattern: Pattern) -> list[dict[str, Any]]:
        if draft.blocked:
            matches = _matches(pattern, draft.conditions)
            return [_rule(self._name(draft, pattern), matches, {"directResponse": _REFUSAL})]
        rules: list[dict[str, Any]] = []
        base = _action(self._book, draft, draft.backends)
        answering = _without_forwarding(draft.http)
        for guard in sorted(draft.guards, key=lambda one: (one.late, -one.priority)):
            matches = _matches(pattern, combine_all(draft.conditions, guard.conditions))
            if matches:
                ends = "directResponse" in guard.http or "redirect" in guard.http
                http = _overlay(answering if ends else base, guard.http)
                rules.append(_rule(self._name(draft, pattern, f"{GUARD}{guard.name}"), matches, http))
            if {} in guard.conditions:
                return rules  # nothing below it could ever be reached
        for label, conditions, action in self._alternatives(draft, base):
            matches = _matches(pattern, conditions)
            if matches:
                rules.append(_rule(self._name(draft, pattern, label), matches, action))
        return rules

    def _alternatives(
        self, draft: Draft, base: Mapping[str, Any]
    ) -> list[tuple[str, list[Condition], Mapping[str, Any]]]:
        """Return (name, conditions, action) of every combination, best first; last the plain one."""
        found: list[tuple[str, list[Condition], Mapping[str, Any]]] = [
            (
                f"split-{number}",
                combine_all(draft.conditions, one.conditions),
                _action(self._book, draft, one.route),
            )
            for number, one in enumerate(draft.splits, start=1)
        ]
        found.append(("", list(draft.conditions), base))
        for group, variants in enumerate(draft.variants if draft.terminal is None else (), start=1):
            mark = "variant" if group == 1 else f"variant{group}"
            grown: list[tuple[str, list[Condition], Mapping[str, Any]]] = []
            for label, conditions, http in found:
                for number, (more, overlay) in enumerate(variants, start=1):
                    name = f"{label}.{mark}-{number}".removeprefix(".")
                    grown.append((name, combine_all(conditions, more), _overlay(http, overlay)))
                if not any({} in more for more, _ in variants):
                    grown.append((label, conditions, http))
            found = grown
        return found


def _combinations(draft: Draft) -> None:
    """Raise Inexpressible where splits and variants cannot be joined, or are too many."""
    found = [combine_all(draft.conditions, one.conditions) for one in draft.splits]
    found.append(list(draft.conditions))
    for variants in draft.variants if draft.terminal is None else ():
        joined = [combine_all(one, more) for one in found for more, _ in variants]
        found += joined
        if len(found) > MAX_ALTERNATIVES:
            raise Inexpressible(f"its conditions give more than {MAX_ALTERNATIVES} combinations")


def hold_back_unemittable(job: Job, drafts: Sequence[Draft]) -> None:
    """Block drafts whose guards cannot be joined with their own conditions."""
    for draft in drafts:
        if draft.terminal is not None and "corsPolicy" in draft.http:
            job.warn(f"{draft.resource}: the gateway answers itself, and then without CORS headers")
        try:
            for guard in draft.guards:
                combine_all(draft.conditions, guard.conditions)
            _combinations(draft)
        except Inexpressible as reason:
            draft.blocked = True
            remedy = "split the route so that the plugin's condition stands alone"
            job.block(draft.route, "vars", draft.resource, str(reason), remedy)


def _service_name(host: str) -> str:
    if host == ANY_HOST:
        return "all-hosts"
    plain = host.replace("*.", "wildcard.").replace("*", "wildcard-")
    labels = plain.split(".")
    if len(plain) <= 200 and all(label == dns_label(label) for label in labels):
        return plain
    return dns_label(host)


def virtual_services(
    job: Job,
    book: UpstreamBook,
    lists: Mapping[str, HostList],
    tls: Mapping[str, Sequence[str]],
    wanted: Collection[str],
) -> Emission:
    """Return one VirtualService a host; hosts with identical lists and no overlap share one.

    *wanted* are the hosts of routes that serve: what closes one of those is said by a refusal.
    *tls* names the Gateways of certificates with their hosts. A VirtualService is bound to those that
    cover its host, never to a narrower one: Istio would put its rules into the narrower host's table.
    """
    emission = Emission()
    rules = _Rules(job, book)
    groups = _groups(lists, tls, wanted)
    tables = [_table(hosts, lists[hosts[0]], rules) for hosts in groups]
    routed, emission.forms = forms_of(job, tables, tls)
    for table in tables:
        pairs = lists[table.hosts[0]]
        chosen = routed.get(table.hosts)
        if chosen is not None:
            _emit_routes(job, emission, chosen, rules, tls)
        else:
            _emit_service(job, emission, table, pairs, rules, tls)
        for name in table.hosts:
            emission.lists[name] = pairs
    emission.routes += grants(job, list(routed.values()))
    return emission


def _groups(
    lists: Mapping[str, HostList], tls: Mapping[str, Sequence[str]], wanted: Collection[str]
) -> list[tuple[str, ...]]:
    """Return the hosts that share a list and certificates, sorted; without those that serve nothing."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for host, pairs in lists.items():
        covering = tuple(("", gate) for gate in gates_of((host,), tls))
        signature = (*covering, *((draft.id, pattern.source) for draft, pattern in pairs))
        if host.startswith("*"):
            groups[(("", host), *signature)] = [host]
        else:
            groups.setdefault(signature, []).append(host)
    serving = {host for host, pairs in lists.items() if any(not draft.blocked for draft, _ in pairs)}
    serving |= set(wanted)
    found = []
    for hosts in sorted(groups.values(), key=lambda one: sorted(one)[0]):
        pairs, names = lists[hosts[0]], sorted(hosts)
        if all(draft.blocked for draft, _ in pairs):
            # Nothing to serve: without a VirtualService the gateway answers 404, which is as closed as a
            # refusal, unless a wider host would take the requests over, or a route below them serves.
            names = [one for one in names if any(within(one, wide) for wide in serving)] if pairs else []
        if names:
            found.append(tuple(names))
    return found


def _table(hosts: tuple[str, ...], pairs: HostList, rules: _Rules) -> Table:
    grpc = all(
        draft.effective.upstream is not None
        and str(draft.effective.upstream.get("scheme", "http")).startswith("grpc")
        for draft, _ in pairs
    )
    made = [(pattern, rule) for draft, pattern in pairs for rule in rules.of(draft, pattern)]
    resources = tuple(sorted({draft.resource for draft, _ in pairs}))
    owners = tuple(draft.id for draft, pattern in pairs for _ in rules.of(draft, pattern))
    return Table(hosts, made, owners, resources, grpc)


def _emit_service(  # noqa: PLR0917 - the table, and what it is emitted into
    job: Job,
    emission: Emission,
    table: Table,
    pairs: HostList,
    rules: _Rules,
    tls: Mapping[str, Sequence[str]],
) -> None:
    names = list(table.hosts)
    bound = [GATEWAY_NAME, *gates_of(names, tls)]
    open_: set[str] = set()
    refused: set[str] = set()
    for draft, _ in pairs:
        (refused if draft.blocked else open_).add(draft.resource)
    for owner, (_, rule) in zip(table.owners, table.rules, strict=True):
        emission.record(rule["name"], owner, guard=rule["name"] in rules.guards)
    spec = {
        "hosts": names,
        "gateways": [f"{job.target.gateway_namespace}/{one}" for one in bound],
        "http": [rule for _, rule in table.rules],
    }
    name = _service_name(names[0])
    emission.objects.append(
        build(job.version, "VirtualService", name, job.target.namespace, spec, open_, refused=refused)
    )
    emission.hosts += names


def _emit_routes(
    job: Job,
    emission: Emission,
    chosen: Routed,
    rules: _Rules,
    tls: Mapping[str, Sequence[str]],
) -> None:
    table = chosen.table
    for made, named in route_objects(job, chosen, _service_name, tls):
        emission.routes.append(made)
        for name, place in named:
            guard = table.rules[place][1]["name"] in rules.guards
            emission.record(name, table.owners[place], guard=guard)
            retries = chosen.actions[place].retries
            if retries is not None:
                emission.retries[name] = retries
    emission.api_hosts += table.hosts
    emission.api_gates.update(gates_of(table.hosts, tls))
