"""Tree 2, 404 or a VirtualService without effect: what Envoy has against what was meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from gateshift.cluster.gateways import rejected, wanted_routes
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.diagnose.routes import host_matches, route_tables
from gateshift.diagnose.takers import who_takes
from gateshift.errors import GateshiftError

__all__ = ["PROBES"]


def _full(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def _bound(service: Object) -> list[str]:
    namespace = service["metadata"]["namespace"]
    return [_full(g, namespace) for g in service["spec"].get("gateways") or [] if g != "mesh"]


def _rejections(facts: Facts) -> Iterator[Cause]:
    """What Envoy itself says it refused; it keeps the old configuration for that resource type.

    Envoy remembers a refusal until that resource changes; istiod knows whether it is the newest answer.
    """
    refusals = facts.envoy.rejections
    if not refusals:
        return
    try:
        past = not any("ERROR" in line for line in rejected(facts.statuses))
    except GateshiftError:
        past = False  # istiod cannot be asked: Envoy's word stands
    for refused in refusals:
        yield found(
            "xds-rejected",
            f"{refused[:600]}{' (before; istiod has later answers without an error)' if past else ''}",
            _who_made(facts, refused),
            level=Level.INFO if past else None,
            confidence=0.2 if past else None,
        )


def _who_made(facts: Facts, text: str) -> str:
    """Name the EnvoyFilters that are not the ones Envoy could take; most rejections come from one."""
    filters = [title_of(f) for f in facts.objects("EnvoyFilter") if _words(f) & set(text.split("'"))]
    every = [title_of(f) for f in facts.objects("EnvoyFilter")]
    named = filters or every
    if not named:
        return "find the object in istiod's log and correct it"
    kind, _, where = named[0].partition(" ")
    space, _, name = where.partition("/")
    return (
        f"kubectl -n {space} get {kind.lower()} {name} -o yaml: correct or delete it ({', '.join(named[:4])})"
    )


def _words(obj: Object) -> set[str]:
    out: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, Mapping):
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)
        elif isinstance(value, str):
            out.add(value)
            out.add(value.rpartition("/")[2])

    walk(obj.get("spec"))
    return out


def _status(facts: Facts) -> Iterator[Cause]:
    gateways = {name_of(p) for p in facts.workload}
    home = facts.params.istio.namespace
    behind: dict[tuple[str, str], list[str]] = {}
    for line in rejected(facts.statuses):
        proxy, _, what = line.partition(": ")
        ours = proxy.split(".")[0] in gateways
        code = (
            "xds-rejected" if "ERROR" in what else "xds-stale" if "STALE" in what and ours else "xds-behind"
        )
        behind.setdefault((proxy, code), []).append(what)
    for (proxy, code), kinds in sorted(behind.items()):
        text = "; ".join(kinds)[:600]
        pod = proxy.split(".")[0]
        remedy = {
            "xds-rejected": _who_made(facts, text) if code == "xds-rejected" else "",
            "xds-stale": f"kubectl -n {home} delete pod {pod} (a new one connects afresh)",
            "xds-behind": "istioctl proxy-status; look again in some seconds",
        }[code]
        yield found(code, f"{proxy}: {text}", remedy)


def _gateways(facts: Facts) -> Iterator[Cause]:
    known = {f"{g['metadata']['namespace']}/{name_of(g)}": g for g in facts.objects("Gateway")}
    for service in facts.objects("VirtualService"):
        if not service["spec"].get("hosts"):
            continue  # a delegate is bound by its parent
        bound = _bound(service)
        if not bound and not service["spec"].get("gateways") and not facts.host:
            continue  # rules for the mesh alone are no defect by themselves
        if not bound:
            concerned = facts.host and _serves(service, facts.host)
            yield found(
                "vs-no-gateway",
                f"gateways: {service['spec'].get('gateways') or 'none (= mesh only)'}",
                patch_command(service, {"gateways": sorted(known)[:1] or ["<namespace>/<gateway>"]}),
                level=None if concerned or not facts.host else Level.WARNING,
                confidence=None if concerned or not facts.host else 0.3,
                name=title_of(service),
            )
        for name in bound:
            gateway = known.get(name)
            if gateway is None:
                bare = name.partition("/")[2]
                others = [k for k in known if k.endswith(f"/{bare}")] or sorted(known)
                yield found(
                    "vs-wrong-gateway",
                    f"there is {', '.join(others) or 'no Gateway at all'}",
                    patch_command(service, {"gateways": others[:1] or ["<namespace>/<gateway>"]}),
                    name=title_of(service),
                    gateway=name,
                )
                continue
            yield from _hosts(service, gateway)


def _serves(service: Object, host: str) -> bool:
    return any(host_matches(h, host) for h in service["spec"].get("hosts") or [])


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
            yield found(
                "vs-host-not-offered",
                f"{title_of(service)} wants {host}; the Gateway has {', '.join(offered)}",
                f"kubectl -n {gateway['metadata']['namespace']} edit gateway {name_of(gateway)}:\n"
                f"   hosts:\n+  - {space}/{host}",
                gateway=title_of(gateway),
                host=host,
                space=space,
            )


def _exported(facts: Facts) -> Iterator[Cause]:
    home = facts.params.istio.namespace
    for service in facts.objects("VirtualService"):
        to = service["spec"].get("exportTo")
        space = service["metadata"]["namespace"]
        if to and "*" not in to and home not in to and not ("." in to and space == home):
            yield found(
                "vs-not-exported",
                f"exportTo: {to}; the gateway is in {home}",
                patch_command(service, {"exportTo": [*to, home]}),
                name=title_of(service),
            )


def _in_envoy(facts: Facts) -> Iterator[Cause]:
    kinds = ("VirtualService", "HTTPRoute", "GRPCRoute")
    wanted = wanted_routes(route for kind in kinds for route in facts.objects(kind))
    if not wanted:
        yield found("vs-none", "0 hosts wanted", "gateshift apply --act")
        return
    have: dict[str, set[str]] = {}
    for _, domain, rule in route_tables(facts.envoy):
        have.setdefault(domain.rpartition(":")[0] or domain, set()).add(rule.owner)
        have.setdefault(domain, set()).add(rule.owner)
    young = {
        f"{v['metadata']['namespace']}/{name_of(v)}"
        for v in facts.objects("VirtualService")
        if _age(v) < _PUSH_SECONDS
    }
    for host, services in sorted(wanted.items()):
        missing = services - have.get(host, set()) - young
        if missing:
            yield found(
                "vs-not-in-envoy",
                f"wanted by {', '.join(sorted(missing))}; "
                f"Envoy has {', '.join(sorted(h for h in have if h != '*')) or 'none'}",
                "see the other findings: Gateway hosts, selector, exportTo, proxy status",
                confidence=None if host not in have else 0.7,
                host=host,
            )


_PUSH_SECONDS = 10.0
"""A VirtualService younger than this may still be on its way to the gateways."""


def _age(obj: Object) -> float:
    try:
        made = datetime.fromisoformat(str(obj["metadata"].get("creationTimestamp")))
    except ValueError:
        return math.inf
    return (datetime.now(UTC) - made).total_seconds()


def _shadowed(facts: Facts) -> Iterator[Cause]:
    for service in facts.objects("VirtualService"):
        rules = service["spec"].get("http") or []
        for index, rule in enumerate(rules[:-1]):
            if _takes_all(rule):
                yield found(
                    "rule-unreachable",
                    f"{title_of(service)}: rule {rule.get('name', index)} is before "
                    f"{', '.join(str(r.get('name', i)) for i, r in enumerate(rules) if i > index)}",
                    f"kubectl -n {service['metadata']['namespace']} edit virtualservice {name_of(service)}: "
                    "move the catch-all to the end",
                    confidence=0.93 if facts.host and _serves(service, facts.host) else 0.85,
                    name=title_of(service),
                    count=len(rules) - index - 1,
                )
                break
            for later_index in range(index + 1, len(rules)):
                if _hides(rule, rules[later_index]):
                    later = rules[later_index]
                    if later.get("route") and _refuses(rule):
                        yield _refused(service, rule, later)
                        continue
                    yield found(
                        "rule-hidden",
                        f"{title_of(service)}: the earlier prefix covers the later one",
                        "move the more special rule before the general one",
                        early=rule.get("name", index),
                        late=later.get("name", later_index),
                    )


def _refuses(rule: Mapping[str, Any]) -> bool:
    return int((rule.get("directResponse") or {}).get("status", 0)) >= 400


def _refused(service: Object, early: Mapping[str, Any], late: Mapping[str, Any]) -> Cause:
    """A rule that answers an error for all that a later one would serve: seen in the object alone."""
    first, meant = (f"{title_of(service)}/{r.get('name', 'without a name')}" for r in (early, late))
    uri = (late.get("match") or [{}])[0].get("uri") or {}
    return found(
        "rule-order",
        f"{first} answers {early['directResponse']['status']} for all that {meant} would route",
        f"move {late.get('name', 'the later rule')} before {early.get('name', 'the earlier one')}",
        confidence=0.88,
        taker=first,
        request=f"{(service['spec'].get('hosts') or ['*'])[0]}{next(iter(uri.values()), '/')}",
        meant=meant,
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
_ROUTES = "istioctl proxy-config routes <pod> -o json"
PROBES = (
    Probe("rejected configuration", _TREE | {"rate-limit", "gateway"}, "istioctl proxy-status", _rejections),
    Probe("proxy status", _TREE | {"rate-limit", "gateway"}, "istioctl proxy-status", _status),
    Probe("gateways of VirtualServices", _TREE, "kubectl get virtualservices,gateways -A -o yaml", _gateways),
    Probe("exportTo", _TREE, "kubectl get virtualservices -A -o yaml", _exported),
    Probe("who takes the request", _TREE, _ROUTES, who_takes),
    Probe("rule order", _TREE | {"lint"}, "kubectl get virtualservices -A -o yaml", _shadowed),
    Probe("routes in Envoy", _TREE, _ROUTES, _in_envoy),
)
