"""From APISIX routes to drafts: matches, destinations, timeouts, retries and the plugins in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateshift.apisix.lua import from_byte_string
from gateshift.apisix.model import Kind, Resource, Router
from gateshift.apisix.routing import RouteTable, is_active
from gateshift.istio.builders import dns_label
from gateshift.istio.versions import Feature
from gateshift.translate.conditions import (
    Condition,
    Inexpressible,
    combine_all,
    differences,
    from_methods,
    from_vars,
)
from gateshift.translate.hosts import sort_hosts
from gateshift.translate.job import Draft, Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity
from gateshift.translate.nodes import read_nodes
from gateshift.translate.paths import Pattern, parse_pattern
from gateshift.translate.plugins.registry import Use, apply_plugin, facts
from gateshift.translate.sources import Inherited, PluginUse, inherit
from gateshift.translate.unrendered import hold_unrendered
from gateshift.translate.upstream_policy import duration
from gateshift.translate.upstreams import UpstreamBook

__all__ = ["draft_routes"]

_DOCUMENTATION = ("id", "name", "desc", "description", "labels", "create_time", "update_time", "created_at")
_PLAIN = ("uri", "uris", "host", "hosts", "methods", "priority", "vars", "service_id", "upstream_id")
_ELSEWHERE = ("plugins", "upstream", "plugin_config_id", "timeout", "enable_websocket", "status")
_BLOCKING = {
    "remote_addr": "a VirtualService cannot match the client's address",
    "remote_addrs": "a VirtualService cannot match the client's address",
    "filter_func": "a Lua function decides whether the route matches",
    "script": "a Lua script replaces the route's plugins",
    "script_id": "a Lua script replaces the route's plugins",
}


def _patterns(job: Job, route: Resource) -> tuple[Pattern, ...]:
    raw = route.spec.get("uris") or route.spec.get("uri") or ()
    sources = [raw] if isinstance(raw, str) else [one for one in raw if isinstance(one, str)]
    patterns = tuple(parse_pattern(one, job.router) for one in dict.fromkeys(sources))
    for one in patterns:
        if one.warning:
            job.warn(f"routes/{route.id}: {one.warning}")
    return tuple(one for one in patterns if not one.never)


def _ports(job: Job) -> dict[int, int]:
    plain, tls = job.target.http_port, job.target.https_port
    return {9080: plain, 9443: tls, 80: plain, 443: tls, plain: plain, tls: tls}


def _conditions(job: Job, draft: Draft) -> list[Condition]:
    spec = draft.route.spec
    methods = spec.get("methods") or ()
    conditions: list[Condition] = from_methods([methods] if isinstance(methods, str) else methods)
    if spec.get("vars"):
        try:
            conditions = combine_all(conditions, from_vars(spec["vars"], _ports(job)))
            for note in differences(spec["vars"]):
                job.mark(draft.route, ("vars",), Fidelity.APPROXIMATE, "", note)
        except Inexpressible as reason:
            _block_field(job, draft, "vars", str(reason))
    for field, why in _BLOCKING.items():
        if spec.get(field) is not None:
            _block_field(job, draft, field, why)
    return conditions


def _block_field(job: Job, draft: Draft, field: str, reason: str) -> None:
    # A match condition is never dropped, not even with a signature: the route stays refused.
    draft.blocked = True
    remedy = "express the condition by headers or paths, or sign that the route stays refused"
    job.block(draft.route, field, draft.resource, reason, remedy)
    job.mark(draft.route, (field,), Fidelity.MANUAL, "", reason)


def _account_route(job: Job, draft: Draft) -> None:
    spec, route = draft.route.spec, draft.route
    for key in spec:
        if key in _DOCUMENTATION:
            job.mark(route, (key,), Fidelity.IGNORED_DEFAULT, "", "documentation only")
        elif key in ("service_id", "upstream_id", "plugin_config_id"):
            job.mark(route, (key,), Fidelity.EXACT, "", "followed")
        elif key == "enable_websocket":
            note = "Istio lets WebSocket upgrades through on every route"
            fidelity = Fidelity.EXACT if spec[key] else Fidelity.APPROXIMATE
            job.mark(route, (key,), fidelity, "", note)
        elif key == "status":
            job.mark(route, (key,), Fidelity.EXACT, "", "enabled")
        elif key == "priority":
            job.mark(route, (key,), Fidelity.EXACT, "order of VirtualService rules")
        elif key in ("hosts", "host"):
            job.mark(route, (key,), Fidelity.EXACT, "VirtualService hosts")
        elif spec[key] is None and key in (*_ELSEWHERE, *_BLOCKING):
            job.mark(route, (key,), Fidelity.IGNORED_DEFAULT, "", "null: as if it were not written")
        elif key in _PLAIN:
            job.mark(route, (key,), Fidelity.EXACT, "VirtualService http[].match")
        elif key not in _ELSEWHERE and key not in _BLOCKING:
            job.mark(route, (key,), Fidelity.MANUAL, "", "no field of an APISIX route: check what was meant")
            job.warn(f"{route.origin}: {key} is no field of a route")


def _timeouts(job: Job, draft: Draft) -> None:
    owner, path, timeout = draft.route, ("timeout",), draft.route.spec.get("timeout")
    upstream = draft.effective.upstream
    streaming = draft.effective.websocket or (
        upstream is not None and str(upstream.get("scheme", "http")).startswith("grpc")
    )
    if isinstance(timeout, Mapping):
        note = "APISIX limits each read, Istio the whole request"
        job.mark(owner, path, Fidelity.APPROXIMATE, "VirtualService http[].timeout", note)
        if "connect" in timeout:
            note = "the upstream's connect timeout stands: Istio has none a route"
            job.mark(owner, (*path, "connect"), Fidelity.APPROXIMATE, "", note)
    elif isinstance(timeout, int | float) and not isinstance(timeout, bool):
        job.mark(owner, path, Fidelity.APPROXIMATE, "VirtualService http[].timeout", "")
        timeout = {"read": timeout}
    elif timeout is not None:
        job.mark(owner, path, Fidelity.MANUAL, "", "no timeout that APISIX would take")
        timeout = None
    if timeout is None and upstream is not None and isinstance(upstream.get("timeout"), Mapping):
        timeout = upstream["timeout"]
    # No timeout means no limit; Istio's webhook refuses to have that written as 0s.
    if timeout and not streaming and timeout.get("read"):
        draft.http["timeout"] = duration(timeout["read"])


def _retries(job: Job, draft: Draft) -> None:
    upstream, owner = draft.effective.upstream, draft.effective.upstream_owner
    if upstream is None or owner is None:
        return
    count = upstream.get("retries")
    if not isinstance(count, int) or isinstance(count, bool):
        count = max(0, len(read_nodes(upstream, ())) - 1)
    if count <= 0:
        # Istio's default would try twice again, for POST as well.
        draft.http["retries"] = {"attempts": 0}
        return
    conditions = "connect-failure,refused-stream"
    if job.has(Feature.RETRY_RESET_BEFORE_REQUEST):
        conditions += ",reset-before-request"
    draft.http["retries"] = {"attempts": count, "retryOn": conditions}


def _upstream(job: Job, draft: Draft, book: UpstreamBook) -> None:
    inherited = draft.effective
    for owner, key, wanted in inherited.dangling:
        job.mark(owner, (key,), Fidelity.MANUAL, "", f"{wanted} is not in the configuration")
        draft.blocked |= job.block(
            owner,
            key,
            draft.resource,
            f"{key} {wanted} is not in the configuration",
            "add the file or resource that holds it; APISIX itself answers 503 without it",
        )
    if inherited.upstream is None or inherited.upstream_owner is None:
        return
    spec, owner, path = inherited.upstream, inherited.upstream_owner, inherited.upstream_path
    scheme = str(spec.get("scheme", "http"))
    if scheme not in ("http", "https", "grpc", "grpcs"):
        draft.blocked |= job.block(
            owner,
            "scheme",
            draft.resource,
            f"an HTTP route with upstream scheme {scheme} has no equivalent",
            "serve it by a gateway that speaks the protocol, then sign for it",
        )
    backends = book.resolve(spec, owner, path, draft)
    if backends is None:
        _mark_tree(job, owner, path, "the upstream has no nodes")
        return
    draft.backends = draft.default_backends = backends


def _mark_tree(job: Job, owner: Resource, path: Path, note: str) -> None:
    for leaf in job.ledger.open_leaves(owner, path):
        job.mark(owner, leaf, Fidelity.MANUAL, "", note)


def _client_headers(draft: Draft) -> None:
    """Set what APISIX adds to every proxied request and Istio does not."""
    table = draft.headers("request", "set")
    table["x-real-ip"] = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
    table["x-forwarded-host"] = "%REQ(:AUTHORITY)%"


def _disabled(config: Mapping[str, Any]) -> bool:
    meta = config.get("_meta")
    return isinstance(meta, Mapping) and bool(meta.get("disable"))


def _in_order(uses: list[PluginUse]) -> list[PluginUse]:
    known = facts()
    return sorted(uses, key=lambda u: (-(known[u.name].priority if u.name in known else 0), u.name))


def _plugins(job: Job, draft: Draft, book: UpstreamBook, rules: list[PluginUse]) -> None:
    for one in _in_order(rules):
        if not _disabled(one.config):
            apply_plugin(Use(job, book, draft, one.name, one.config, one.owner, is_global=True))
    for one in _in_order(list(draft.effective.plugins)):
        if _disabled(one.config):
            job.mark(one.owner, one.path, Fidelity.IGNORED_DEFAULT, "", "switched off by _meta.disable")
        else:
            apply_plugin(Use(job, book, draft, one.name, one.config, one.owner))


def _global_rules(job: Job) -> list[PluginUse]:
    found = []
    for rule in job.configuration.of(Kind.GLOBAL_RULE).values():
        plugins = rule.spec.get("plugins")
        for name, config in (plugins if isinstance(plugins, Mapping) else {}).items():
            found.append(PluginUse(name, config if isinstance(config, Mapping) else {}, rule))
    return found


def _served(job: Job, table: RouteTable, route: Resource) -> Inherited | None:
    """Return a route with what it inherits; None for one that serves no request in APISIX either."""
    if not is_active(route.spec, job.router):
        job.mark(route, (), Fidelity.EXACT, "", "the route is disabled (status 0): nothing is emitted")
        return None
    if route.id in table.dropped:
        note = f"{table.dropped[route.id]}: nothing is emitted"
        job.mark(route, (), Fidelity.MANUAL, "", f"{note}; {table.remedies[route.id]}")
        job.lost(f"{route.kind}/{route.id}", note, table.remedies[route.id], str(route.origin))
        return None
    inherited = inherit(job.configuration, route)
    written = table.hosts_of(route)
    if written is None or (not written and job.router is not Router.HOST_URI):
        return replace(inherited, hosts=())
    hosts = sort_hosts([from_byte_string(one) for one in written], job.router)
    for one in hosts.unreachable:
        job.warn(
            f"{route.origin}: no request can have the host {one}: APISIX compares it without port or dot"
        )
    if not hosts.served and not hosts.refused:
        note = "none of its hosts can be met by a request: nothing is emitted"
        job.mark(route, (), Fidelity.EXACT, "", note)
        job.warn(f"{route.origin}: {note}")
        return None
    return replace(inherited, hosts=hosts.served)


def _limits_of_istio(job: Job, draft: Draft, table: RouteTable) -> None:
    """Hold back a route whose hosts or paths Istio cannot hold, and tell hosts with a port apart."""
    written = table.hosts_of(draft.route) or []
    hosts = sort_hosts([from_byte_string(one) for one in written], job.router)
    field = "hosts" if "hosts" in draft.route.spec else "host"
    if hosts.refused:
        _block_field(job, draft, field, f"{hosts.refused[0]} is no host that a VirtualService can have")
    elif hosts.authority:
        try:
            draft.conditions = combine_all(draft.conditions, hosts.authority)
        except Inexpressible as reason:
            _block_field(job, draft, field, str(reason))
    for pattern in draft.patterns:
        if pattern.unusable:
            field = "uris" if "uris" in draft.route.spec else "uri"
            _block_field(job, draft, field, f"{pattern.source}: {pattern.unusable}")


def draft_routes(job: Job, book: UpstreamBook) -> list[Draft]:
    """Return a draft for every enabled route, in source order; each leaf of a route is accounted for."""
    drafts = []
    rules = _global_rules(job)
    table = RouteTable(job.configuration, job.router)
    for route in job.configuration.of(Kind.ROUTE).values():
        inherited = _served(job, table, route)
        if inherited is None:
            continue
        draft = Draft(route, dns_label(route.id), inherited, _patterns(job, route), [{}])
        _account_route(job, draft)
        draft.conditions = _conditions(job, draft)
        if not draft.conditions:
            job.warn(f"{route.origin}: no request can meet its vars and methods: no rule is emitted for it")
        _limits_of_istio(job, draft, table)
        drafts.append(draft)
        if hold_unrendered(job, draft, authenticates=any(one.name in _AUTH for one in inherited.plugins)):
            continue
        _upstream(job, draft, book)
        _timeouts(job, draft)
        _retries(job, draft)
        _client_headers(draft)
        _plugins(job, draft, book, rules)
        _consumers(job, draft)
    return drafts


_AUTH = frozenset(("jwt-auth", "key-auth", "basic-auth", "hmac-auth", "ldap-auth", "wolf-rbac", "multi-auth"))


def _consumers(job: Job, draft: Draft) -> None:
    """Hold back routes whose consumers carry plugins that only run after authentication."""
    used = {one.name for one in draft.effective.plugins} & _AUTH
    if not used:
        return
    known = facts()
    for kind in (Kind.CONSUMER, Kind.CONSUMER_GROUP):
        for consumer in job.configuration.of(kind).values():
            plugins = consumer.spec.get("plugins")
            names = set(plugins) if isinstance(plugins, Mapping) else set()
            if kind is Kind.CONSUMER and not names & used:
                continue
            for name in sorted(names - _AUTH):
                fact = known.get(name)
                reason = f"{name} applies to one consumer after authentication, which Istio cannot express"
                job.mark(consumer, ("plugins", name), Fidelity.MANUAL, "", reason)
                if fact is None or fact.guards_access_or_money:
                    remedy = "move it to the routes, or sign for the loss"
                    draft.blocked |= job.block(consumer, name, draft.resource, reason, remedy)
