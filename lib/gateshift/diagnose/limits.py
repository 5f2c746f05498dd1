"""Tree 5, the rate limit does not fire: from the EnvoyFilter through Envoy's tables to the limit service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.gateways import pod_ready
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.causes import found
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.limit_service import GLOBAL, LOCAL, installed_filters, limit_service
from gateshift.diagnose.model import Cause, Level, Probe, mappings_in
from gateshift.diagnose.routes import Rule, route_tables
from gateshift.errors import GateshiftError

__all__ = ["ABOUT_LIMITS", "PROBES", "limit_filters"]

ABOUT_LIMITS = re.compile(r"(?<!network\.)local_ratelimit|filters\.http\.ratelimit")
"""Filters of requests; the one of connections has neither percentages nor routes."""


def limit_filters(facts: Facts) -> list[Object]:
    """Return the EnvoyFilters that are about rate limits of the gateway, or meant to be.

    One that selects other workloads in its namespace limits those: sidecars, or another gateway.
    """

    def read() -> list[Object]:
        every = facts.objects("EnvoyFilter")
        return [f for f in every if ABOUT_LIMITS.search(json.dumps(f["spec"])) and not _foreign(facts, f)]

    return facts.once("limit filters", read)


def _foreign(facts: Facts, one: Object) -> bool:
    space, home = one["metadata"]["namespace"], facts.params.istio.namespace
    chosen = (one["spec"].get("workloadSelector") or {}).get("labels") or {}
    if space == home and any(chosen.items() <= have.items() for have in facts.pod_labels):
        contexts = {
            (p.get("match") or {}).get("context", "ANY") for p in one["spec"].get("configPatches") or []
        }
        return not chosen and not contexts & {"ANY", "GATEWAY"}  # for every sidecar of the mesh
    return bool(facts.selected(chosen, space))


def _edit(obj: Object) -> str:
    return f"kubectl -n {obj['metadata']['namespace']} edit envoyfilter {name_of(obj)}"


def _objects(facts: Facts) -> Iterator[Cause]:
    limiting = limit_filters(facts)
    if not limiting:
        # Without a complaint about limits their absence is nothing wrong.
        yield found(
            "limit-missing",
            f"{len(facts.objects('EnvoyFilter'))} EnvoyFilters, none about rate limits",
            "gateshift apply --act (the ledger of 20_translate says what limit-req and limit-count became)",
            level=None if facts.symptom == "rate-limit" else Level.INFO,
            confidence=None if facts.symptom == "rate-limit" else 0.05,
        )
        return
    home = facts.params.istio.namespace
    labels = [p["metadata"].get("labels") or {} for p in facts.workload]
    for one in limiting:
        spec, space = one["spec"], one["metadata"]["namespace"]
        chosen = (spec.get("workloadSelector") or {}).get("labels") or {}
        if space != home:
            yield found(
                "limit-namespace",
                f"it selects workloads of {space} only; the gateway is in {home}",
                f"kubectl -n {space} get envoyfilter {name_of(one)} -o yaml | "
                f"sed 's/namespace: {space}/namespace: {home}/' | kubectl apply -f -",
                name=title_of(one),
            )
        elif chosen and labels and not any(chosen.items() <= have.items() for have in labels):
            yield found(
                "limit-selector",
                f"workloadSelector {chosen}; the pods have { {k: labels[0].get(k) for k in chosen} }",
                f"{_edit(one)}: set workloadSelector to the gateway pods' labels",
                name=title_of(one),
            )
        for patch in spec.get("configPatches") or []:
            context = (patch.get("match") or {}).get("context", "ANY")
            if context not in {"GATEWAY", "ANY"}:
                yield found(
                    "limit-context",
                    f"applyTo {patch.get('applyTo')}",
                    f"{_edit(one)}:\n-  context: {context}\n+  context: GATEWAY",
                    name=title_of(one),
                    context=context,
                )
            yield from _percentages(one, patch.get("patch") or {})


def _percentages(owner: Object, patch: object) -> Iterator[Cause]:
    for bucketed in mappings_in(patch):
        if not {"token_bucket", "stat_prefix"} <= set(bucketed) or ".network." in str(bucketed.get("@type")):
            continue
        for field in ("filter_enabled", "filter_enforced"):
            share = _share(bucketed.get(field))
            if share >= 100:
                continue
            yield found(
                "limit-percentage",
                f"{field} defaults to 0 %: nothing is ever limited"
                if field not in bucketed
                else f"{field}: {json.dumps(bucketed[field])}",
                f"{_edit(owner)}:\n+  {field}: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}",
                level=None if share < 50 else Level.WARNING,
                name=title_of(owner),
                field=field,
                is_="not set (0 %)" if field not in bucketed else f"{share:g} %",
            )


def _share(value: object) -> float:
    if not isinstance(value, Mapping):
        return 0.0
    fraction = value.get("default_value") or {}
    per = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}.get(
        str(fraction.get("denominator", "HUNDRED")), 100
    )
    return 100.0 * float(fraction.get("numerator", 0)) / per


def _matches(facts: Facts) -> Iterator[Cause]:
    """Patches whose match names what the gateway's Envoy does not have: they are dropped in silence."""
    tables = list(route_tables(facts.envoy))
    names = {t for t, _, _ in tables}
    hosts = {r.host for _, _, r in tables}
    routes = {r.name for _, _, r in tables}
    ports = {
        (listener.get("address") or {}).get("socket_address", {}).get("port_value")
        for listener in facts.envoy.listeners
    }
    service_ports = {p["port"] for p in (facts.service or {}).get("spec", {}).get("ports") or []}
    for one in limit_filters(facts):
        for patch in one["spec"].get("configPatches") or []:
            match = patch.get("match") or {}
            table = match.get("routeConfiguration") or {}
            vhost = table.get("vhost") or {}
            route = (vhost.get("route") or {}).get("name")
            if vhost.get("name") and vhost["name"] not in hosts:
                bare = vhost["name"].rpartition(":")[0]
                yield found(
                    "limit-vhost",
                    f"Envoy has {', '.join(sorted(hosts)[:6])}",
                    f"{_edit(one)}: use vhost.domainName {bare or vhost['name']} (identical hosts are merged "
                    "under the first name), or correct the name",
                    name=title_of(one),
                    vhost=vhost["name"],
                )
            if route and route not in routes:
                yield found(
                    "limit-route",
                    f"Envoy has {', '.join(sorted(r for r in routes if r)[:12])}",
                    f"{_edit(one)}: route.name is the VirtualService's http[].name",
                    name=title_of(one),
                    route=route,
                )
            wanted = table.get("name")
            if wanted and wanted not in names:
                yield found(
                    "limit-listener",
                    f"route table {wanted}; Envoy has {', '.join(sorted(names))}",
                    f"{_edit(one)}: correct routeConfiguration.name",
                    name=title_of(one),
                    port=wanted,
                )
            port = (match.get("listener") or {}).get("portNumber") or table.get("portNumber")
            if port and port not in ports and port not in service_ports:
                yield found(
                    "limit-listener",
                    f"Envoy listens on {sorted(filter(None, ports))}",
                    f"{_edit(one)}: use Envoy's port (the Service's targetPort) for a listener match",
                    name=title_of(one),
                    port=port,
                )


def _per_route(rule: Rule) -> dict[str, Mapping[str, Any]]:
    return {
        name: config
        for name, config in (rule.raw.get("typed_per_filter_config") or {}).items()
        if any(m in str(config.get("@type")) for m in (LOCAL, GLOBAL))
    }


def _in_envoy(facts: Facts) -> Iterator[Cause]:
    limiting = limit_filters(facts)
    installed = dict(installed_filters(facts))
    anywhere = [(rule, c) for _, _, rule in route_tables(facts.envoy) for c in [_per_route(rule)] if c]
    if limiting and not installed:
        yield found(
            "limit-no-filter" if anywhere else "limit-not-in-envoy",
            f"{', '.join(title_of(f) for f in limiting[:3])}; no listener of the gateway has such a filter",
            "see the other findings; else correct the HTTP_FILTER patch (context, listener match) and look "
            "at "
            "istioctl proxy-status",
        )
        return
    if facts.symptom != "rate-limit" or not facts.host:
        return
    told = facts.explanation(facts.host, facts.path or "/")
    if told.taker is None:
        return
    request = f"{told.host}{told.path}"
    own = _per_route(told.taker)
    absent = sorted(set(own) - set(installed))
    if absent:
        yield found(
            "limit-no-filter",
            f"route {told.taker} configures {', '.join(absent)}; the listener has {', '.join(installed)}",
            "give the HTTP_FILTER patch the same name as typed_per_filter_config uses",
        )
    buckets = [c for n, c in own.items() if n in installed] or [
        c for c in installed.values() if c.get("token_bucket")
    ]
    local = [c for c in buckets if LOCAL in str(c.get("@type")) and c.get("token_bucket")]
    if not local and not any(GLOBAL in str(c.get("@type")) for c in installed.values()):
        yield found(
            "limit-no-bucket",
            f"it is taken by rule {told.taker}; limited are "
            f"{', '.join(sorted({str(r) for r, _ in anywhere})[:8]) or 'no routes'}",
            f"add an HTTP_ROUTE patch for route {told.taker.name or '(give the rule a name)'}",
            request=request,
        )
    for config in local:
        yield from _effect(facts, told.taker, config)


def _effect(facts: Facts, rule: Rule, config: Mapping[str, Any]) -> Iterator[Cause]:
    for field in ("filter_enabled", "filter_enforced"):
        if (share := _share(config.get(field))) < 50:
            yield found(
                "limit-percentage",
                f"as Envoy has it for route {rule}: {json.dumps(config.get(field))}",
                f"set {field} to 100 % in the EnvoyFilter",
                confidence=0.92,
                name=f"route {rule}",
                field=field,
                is_=f"{share:g} %",
            )
    descriptors = config.get("descriptors") or []
    made = [
        {_key(a) for a in r.get("actions") or []}
        for r in [*(config.get("rate_limits") or []), *_route_limits(rule)]
    ]
    for one in descriptors:
        keys = {str(e.get("key")) for e in one.get("entries") or []}
        if not any(keys == got for got in made):
            yield found(
                "limit-descriptors",
                f"descriptor {sorted(keys)}; the actions make {[sorted(m) for m in made] or 'none'}",
                "make rate_limits.actions produce exactly the keys of a descriptor, in its order",
                name=f"route {rule}",
            )
    tightest = min(
        (d.get("token_bucket") or {} for d in descriptors), key=_per_second, default=config["token_bucket"]
    )
    yield from _compared(facts, rule, tightest)


def _route_limits(rule: Rule) -> list[Mapping[str, Any]]:
    return [*((rule.raw.get("route") or {}).get("rate_limits") or [])]


def _key(action: Mapping[str, Any]) -> str:
    for kind, default in (
        ("remote_address", "remote_address"),
        ("generic_key", "generic_key"),
        ("header_value_match", "header_match"),
        ("destination_cluster", "destination_cluster"),
        ("source_cluster", "source_cluster"),
    ):
        if kind in action:
            return str((action[kind] or {}).get("descriptor_key") or default)
    return str((action.get("request_headers") or {}).get("descriptor_key", ""))


def _per_second(bucket: Mapping[str, Any]) -> float:
    seconds = float(str(bucket.get("fill_interval", "1s")).removesuffix("s") or 1)
    return float(bucket.get("tokens_per_fill", 1)) / max(seconds, 1e-9)


def _compared(facts: Facts, rule: Rule, bucket: Mapping[str, Any]) -> Iterator[Cause]:
    """The limit against the load seen; each pod has a bucket of its own."""
    replicas = max(sum(1 for p in facts.workload if pod_ready(p)), 1)
    rate, burst = _per_second(bucket), float(bucket.get("max_tokens", 0))
    host, path = facts.host, facts.path
    entries = [e for e in facts.requests if e.concerns(host, path) and e.time is not None]
    times = sorted(e.time or 0.0 for e in entries)
    busiest = max((sum(1 for t in times if start <= t < start + 1.0) for start in times), default=0)
    text = f"route {rule}: {rate:g}/s with {burst:g} at once, in each of {replicas} pods"
    limited = any(e.code == 429 or "RL" in e.flags for e in entries)
    if times and not limited and burst + rate > 2 * max(busiest, 1):
        yield found(
            "limit-too-high",
            f"{text}; the busiest second had {busiest} requests",
            "lower max_tokens and tokens_per_fill in the EnvoyFilter to the limit wanted, divided by the "
            "pods",
        )
    if replicas > 1:
        yield found(
            "limit-buckets",
            text,
            f"divide the limit by {replicas}, or use a rate limit service for one common count",
            replicas=replicas,
            tokens=f"{rate:g}/s",
        )


def _shadow(facts: Facts) -> Iterator[Cause]:
    """Buckets overflow and nothing is refused: enabled, not enforced."""
    stats = facts.envoy.grown
    for name, grown in sorted(stats.items()):
        if name.endswith(".http_local_rate_limit.rate_limited") and grown:
            enforced = stats.get(name.replace("rate_limited", "enforced"), 0)
            if not enforced:
                yield found(
                    "limit-percentage",
                    f"{name} grew by {grown}, enforced by 0: counted, and let through",
                    "set filter_enforced to 100 % in the EnvoyFilter",
                    confidence=0.9,
                    name=name.split(".")[0],
                    field="filter_enforced",
                    is_="0 %",
                )


def _quiet(look: Any) -> Any:
    """The tree speaks only when limits are complained about; a gateway without limits needs none."""

    def judged(facts: Facts) -> Iterator[Cause]:
        if facts.symptom not in {"rate-limit", ""}:
            return
        try:
            if not limit_filters(facts) and facts.symptom == "":
                return
        except GateshiftError:
            return
        yield from look(facts)

    return judged


_TREE = frozenset({"rate-limit"})
_LISTENERS = "istioctl proxy-config listeners <pod> -o json | grep -A20 ratelimit"
PROBES = (
    Probe("rate limit objects", _TREE, "kubectl get envoyfilters -A -o yaml", _objects),
    Probe(
        "rate limit service",
        _TREE,
        "istioctl proxy-config clusters <pod> | grep ratelimit",
        _quiet(limit_service),
    ),
    Probe("rate limit matches", _TREE, "istioctl proxy-config routes <pod> -o json", _quiet(_matches)),
    Probe("rate limit in Envoy", _TREE, _LISTENERS, _quiet(_in_envoy)),
    Probe("rate limit counters", _TREE, "istioctl experimental envoy-stats <pod> | grep rate_limit", _shadow),
)
