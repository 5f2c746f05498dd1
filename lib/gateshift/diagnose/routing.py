"""Tree 2, 404 or a VirtualService without effect: what Envoy has against what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.gateways import rejected, route_names, wanted_routes
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.istio.evaluator import Evaluator, Request

__all__ = ["PROBES", "host_matches"]

_REFERENCE = "guide: tree 2"


def host_matches(pattern: str, host: str) -> bool:
    """Say whether a Gateway or VirtualService host covers *host* (``*`` stands for any prefix)."""
    if pattern == "*":
        return True
    if pattern.startswith("*"):
        return host.endswith(pattern[1:])
    return pattern == host


def _full(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def _bound(service: Object) -> list[str]:
    namespace = service["metadata"]["namespace"]
    return [_full(g, namespace) for g in service["spec"].get("gateways") or [] if g != "mesh"]


def _status(facts: Facts) -> Iterator[Cause]:
    for line in rejected(facts.statuses):
        proxy, _, what = line.partition(": ")
        error = "ERROR" in what
        yield Cause(
            Level.ERROR if error else Level.WARNING,
            "the gateway rejected configuration and keeps its old one"
            if error
            else "a proxy is not in sync with istiod",
            f"{proxy}: {what}",
            "find the object in istiod's log (most often an EnvoyFilter) and correct it",
            confidence=0.95 if error else 0.4,
            reference="istio-traps.md 51",
        )


def _gateways(facts: Facts) -> Iterator[Cause]:
    known = {f"{g['metadata']['namespace']}/{name_of(g)}": g for g in facts.objects("Gateway")}
    for service in facts.objects("VirtualService"):
        if not service["spec"].get("hosts"):
            continue  # a delegate is bound by its parent
        bound = _bound(service)
        if not bound:
            yield Cause(
                Level.ERROR if _concerns(facts, service) else Level.WARNING,
                f"{title_of(service)} is not bound to any gateway",
                f"gateways: {service['spec'].get('gateways') or 'none (= mesh only)'}",
                "add the Gateway's namespace/name to spec.gateways",
                confidence=0.85,
                reference="istio-traps.md 25",
            )
        for name in bound:
            gateway = known.get(name)
            if gateway is None:
                bare = name.partition("/")[2]
                others = [k for k in known if k.endswith(f"/{bare}")]
                yield Cause(
                    Level.ERROR,
                    f"{title_of(service)} names Gateway {name}, which does not exist",
                    f"there is {', '.join(others or known) or 'no Gateway at all'}",
                    f"write gateways: [{others[0] if others else 'namespace/name'}]",
                    confidence=0.93,
                    reference="istio-traps.md 25",
                )
                continue
            yield from _hosts(service, gateway)


def _concerns(facts: Facts, service: Object) -> bool:
    return not facts.host or any(host_matches(h, facts.host) for h in service["spec"].get("hosts") or [])


def _hosts(service: Object, gateway: Object) -> Iterator[Cause]:
    space = service["metadata"]["namespace"]
    offered = [h for s in gateway["spec"].get("servers") or [] for h in s.get("hosts") or []]
    for host in service["spec"]["hosts"]:
        fits = False
        for entry in offered:
            where, slash, pattern = entry.rpartition("/")
            home = gateway["metadata"]["namespace"] if where == "." else where
            if slash and home not in {"*", space}:
                continue
            fits = fits or host_matches(pattern, host) or host_matches(host, pattern)
        if not fits:
            yield Cause(
                Level.ERROR,
                f"{title_of(gateway)} does not offer host {host} to namespace {space}",
                f"{title_of(service)} wants {host}; the Gateway has {', '.join(offered)}",
                f"add {host} to the Gateway's server hosts",
                confidence=0.92,
                reference="istio-traps.md 23",
            )


def _exported(facts: Facts) -> Iterator[Cause]:
    home = facts.params.istio.namespace
    for service in facts.objects("VirtualService"):
        to = service["spec"].get("exportTo")
        space = service["metadata"]["namespace"]
        if to and "*" not in to and home not in to and not ("." in to and space == home):
            yield Cause(
                Level.ERROR,
                f"{title_of(service)} is not exported to the gateway",
                f"exportTo: {to}",
                f"add {home} to exportTo, or remove exportTo",
                confidence=0.9,
                reference="istio-traps.md 25",
            )


def _in_envoy(facts: Facts) -> Iterator[Cause]:
    wanted = wanted_routes(facts.objects("VirtualService"))
    if not wanted:
        yield Cause(
            Level.ERROR,
            "no VirtualService is bound to a gateway: every request gets 404",
            "0 hosts wanted",
            "run 30_apply",
            confidence=0.95,
            reference="istio-traps.md 22",
        )
        return
    ready = [p for p in facts.pods if p.get("status", {}).get("phase") == "Running"]
    have = facts.once(
        "routes", lambda: route_names(facts.params, name_of(ready[0]), timeout=10) if ready else {}
    )
    for host, services in sorted(wanted.items()):
        if host not in have:
            yield Cause(
                Level.ERROR,
                f"the gateway's Envoy has no virtual host {host}",
                f"wanted by {', '.join(sorted(services))}; Envoy has {', '.join(sorted(have)) or 'none'}",
                "look at Gateway hosts, selector, exportTo and at proxy-status",
                confidence=0.75,
                reference=_REFERENCE,
            )


def _who_takes(facts: Facts) -> Iterator[Cause]:
    if not facts.host:
        return
    # The evaluator reads full gateway names; a short one means the VirtualService's own namespace.
    services = [
        {**v, "spec": {**v["spec"], "gateways": _bound(v)}}
        for v in facts.objects("VirtualService")
        if _bound(v)
    ]
    objects = [*facts.objects("Gateway"), *services]
    decision = Evaluator(objects).decide(Request(authority=facts.host, path=facts.path))
    hosts = {h for v in facts.objects("VirtualService") for h in v["spec"].get("hosts") or []}
    if decision.virtual_service is None:
        exact = facts.host in hosts
        wider = sorted(h for h in hosts if h != facts.host and host_matches(h, facts.host))
        if exact and wider:
            yield Cause(
                Level.ERROR,
                f"the exact host {facts.host} hides the rules of {', '.join(wider)}",
                f"no rule of {facts.host} takes {facts.path}, and Envoy never falls through to a wider host",
                "repeat the wider host's rules in the VirtualService of the exact host",
                confidence=0.9,
                reference="istio-traps.md 6",
            )
        else:
            yield Cause(
                Level.ERROR,
                f"no rule takes {facts.host}{facts.path}",
                f"hosts with rules: {', '.join(sorted(hosts)) or 'none'}",
                "add a match for this path, or correct prefix/exact",
                confidence=0.88,
                reference=_REFERENCE,
            )
        return
    yield Cause(
        Level.INFO,
        f"{facts.host}{facts.path} is taken by rule {decision.entry or '(unnamed)'} "
        f"of VirtualService {decision.virtual_service}",
        f"{decision.action} {', '.join(decision.destinations)}".strip(),
        "if another rule was meant, move it before this one: the first match wins",
        confidence=0.3,
        reference="istio-traps.md 5",
    )


def _shadowed(facts: Facts) -> Iterator[Cause]:
    for service in facts.objects("VirtualService"):
        rules = service["spec"].get("http") or []
        for index, rule in enumerate(rules[:-1]):
            if _takes_all(rule):
                yield Cause(
                    Level.ERROR,
                    f"a catch-all rule hides {len(rules) - index - 1} rules after it",
                    f"{title_of(service)}: rule {rule.get('name', index)} is before "
                    f"{', '.join(str(r.get('name', i)) for i, r in enumerate(rules) if i > index)}",
                    "move the catch-all to the end",
                    confidence=0.85,
                    reference="istio-traps.md 5",
                )
                break
            for later_index in range(index + 1, len(rules)):
                if _hides(rule, rules[later_index]):
                    later = rules[later_index]
                    yield Cause(
                        Level.WARNING,
                        f"rule {rule.get('name', index)} hides rule {later.get('name', later_index)}",
                        f"{title_of(service)}: the earlier prefix covers the later one",
                        "move the more special rule before the general one",
                        confidence=0.6,
                        reference="istio-traps.md 5",
                    )


def _takes_all(rule: Mapping[str, Any]) -> bool:
    matches = rule.get("match")
    return not matches or any(
        not {k for k in m if k not in {"name", "uri"}}
        and (m.get("uri") or {"prefix": "/"}).get("prefix") == "/"
        for m in matches
    )


def _hides(early: Mapping[str, Any], late: Mapping[str, Any]) -> bool:
    """True when a plain prefix of *early* covers every match of *late*."""
    plain = [
        m["uri"]["prefix"]
        for m in early.get("match") or []
        if set(m) <= {"name", "uri"} and "prefix" in (m.get("uri") or {})
    ]
    wanted = [
        (m.get("uri") or {}).get("prefix") or (m.get("uri") or {}).get("exact")
        for m in late.get("match") or []
    ]
    return bool(plain and wanted) and all(w and any(w.startswith(p) for p in plain) for w in wanted)


_TREE = frozenset({"404"})
PROBES = (
    Probe("proxy status", _TREE | {"rate-limit", "gateway"}, "istioctl proxy-status", _status),
    Probe("gateways of VirtualServices", _TREE, "kubectl get virtualservices,gateways -A -o yaml", _gateways),
    Probe("exportTo", _TREE, "kubectl get virtualservices -A -o yaml", _exported),
    Probe("routes in Envoy", _TREE, "istioctl proxy-config routes <gateway pod> -o json", _in_envoy),
    Probe(
        "who takes the request",
        _TREE,
        "istioctl proxy-config routes <gateway pod> --name http.80",
        _who_takes,
    ),
    Probe("rule order", _TREE | {"lint"}, "kubectl get virtualservices -A -o yaml", _shadowed),
)
