"""Tree 2, 404 or a VirtualService without effect: what Envoy has against what was meant."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gateshift.cluster.front import servers_of
from gateshift.cluster.gateways import proxy_states, rejected, wanted_routes
from gateshift.cluster.objects import GATEWAY_API, Object, name_of, title_of
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.diagnose.routes import host_matches, route_tables
from gateshift.diagnose.scope import bound, eased, full_name, made_by_us, matters, offered, our_rules, serves
from gateshift.diagnose.takers import who_takes
from gateshift.errors import GateshiftError

__all__ = ["PROBES"]


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
    """Name the EnvoyFilters that may have made what was refused; most refusals come from one.

    Only those that reach the gateway: of its namespace, which is the root's too.
    """
    home = facts.params.istio.namespace
    every = [f for f in facts.objects("EnvoyFilter") if f["metadata"]["namespace"] == home]
    named = [f for f in every if _words(f) & set(text.split("'"))] or every
    if not named:
        return "find the object in istiod's log and correct it"
    if len(named) > 1:
        listed = ", ".join(f"{home}/{name_of(f)}" for f in named[:6])
        return f"kubectl -n {home} get envoyfilters -o yaml: one of {listed} makes it; correct that one"
    return (
        f"kubectl -n {home} edit envoyfilter {name_of(named[0])}: correct what was refused, or take it back"
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


AGAIN = 2.0
"""Seconds after which a proxy that is not in sync is looked at once more."""


def _status(facts: Facts) -> Iterator[Cause]:
    gateways = {name_of(p) for p in facts.workload}
    home = facts.params.istio.namespace
    states = facts.states
    if any(s == "STALE" and _ours(p, gateways) for p, kinds in states.items() for s, _ in kinds.values()):
        states = _still(states, facts)
    behind: dict[tuple[str, str], list[str]] = {}
    for line in rejected({p: {k: s for k, (s, _) in kinds.items()} for p, kinds in states.items()}):
        proxy, _, what = line.partition(": ")
        code = "xds-behind"
        if _ours(proxy, gateways):
            code = "xds-rejected" if "ERROR" in what else "xds-stale" if "STALE" in what else code
        behind.setdefault((proxy, code), []).append(what.replace(_BUSY, "STALE"))
    for (proxy, code), kinds in sorted(behind.items()):
        text = "; ".join(kinds)[:600]
        pod = proxy.split(".")[0]
        remedy = {
            "xds-rejected": _who_made(facts, text) if code == "xds-rejected" else "",
            "xds-stale": f"kubectl -n {home} delete pod {pod} (a new one connects afresh; see first that "
            "another gateway pod is ready)",
            "xds-behind": "istioctl proxy-status; look again in some seconds",
        }[code]
        yield found(code, f"{proxy}: {text}", remedy)


_BUSY = "sent anew"


def _ours(proxy: str, gateways: set[str]) -> bool:
    return proxy.split(".", maxsplit=1)[0] in gateways


def _still(
    before: Mapping[str, Mapping[str, tuple[str, float]]], facts: Facts
) -> dict[str, dict[str, tuple[str, float]]]:
    """Look again: in a busy mesh each push makes a proxy stale until it has answered, which is no defect."""
    time.sleep(AGAIN)
    after = proxy_states(facts.params, timeout=5)

    def told(proxy: str, kind: str, status: str, sent: float) -> str:
        unmoved = before.get(proxy, {}).get(kind, ("", 0.0))[1] == sent
        return _BUSY if status == "STALE" and not unmoved else status

    return {
        proxy: {kind: (told(proxy, kind, status, sent), sent) for kind, (status, sent) in kinds.items()}
        for proxy, kinds in after.items()
    }


def _gateways(facts: Facts) -> Iterator[Cause]:
    known = {f"{g['metadata']['namespace']}/{name_of(g)}": g for g in facts.objects("Gateway")}
    for rules in facts.objects("VirtualService"):
        if not rules["spec"].get("hosts"):
            continue  # a delegate is bound by its parent
        names = bound(rules)
        if not names:
            # Rules for the mesh alone are no defect by themselves.
            if _only_rules(facts, rules):
                yield found(
                    "vs-no-gateway",
                    f"gateways: {rules['spec'].get('gateways') or 'none (= mesh only)'}",
                    patch_command(
                        rules,
                        {
                            "gateways": [
                                *(rules["spec"].get("gateways") or []),
                                *(sorted(known)[:1] or ["<namespace>/<gateway>"]),
                            ]
                        },
                    ),
                    name=title_of(rules),
                )
            continue
        there = [known[name] for name in names if name in known]
        for name in sorted(set(names) - set(known)):
            others = [k for k in known if k.endswith(f"/{name.partition('/')[2]}")] or sorted(known)
            kept = [
                n for n in rules["spec"]["gateways"] if full_name(n, rules["metadata"]["namespace"]) != name
            ]
            cause = found(
                "vs-wrong-gateway",
                f"there is {', '.join(others) or 'no Gateway at all'}",
                patch_command(
                    rules, {"gateways": [*kept, *([] if there else others[:1] or ["<namespace>/<gateway>"])]}
                ),
                name=title_of(rules),
                gateway=name,
            )
            # The other Gateways that it names serve it all the same.
            yield eased(facts, rules, replace(cause, level=Level.WARNING, confidence=0.4) if there else cause)
        yield from (eased(facts, rules, cause) for cause in _hosts(facts, rules, there))


def _only_rules(facts: Facts, rules: Object) -> bool:
    """Say whether rules for the mesh alone are all there is for a host that the gateway is to serve."""
    if not matters(facts, rules):
        return False
    hosts = [facts.host] if facts.host else [h for h in rules["spec"]["hosts"] if "." in h]
    inside = (".svc", ".svc.cluster.local", ".local")
    # A wildcard of others serves the host as well, with other rules.
    served = {h for v in facts.objects("VirtualService") if bound(v) for h in v["spec"].get("hosts") or []}
    return any(not host.endswith(inside) and host not in served for host in hosts)


def _hosts(facts: Facts, rules: Object, gateways: list[Object]) -> Iterator[Cause]:
    space, meshed = rules["metadata"]["namespace"], "mesh" in rules["spec"]["gateways"]
    for host in rules["spec"]["hosts"]:
        asked = bool(facts.host) and host_matches(host, facts.host)
        if meshed and not asked:
            continue  # a host of the mesh beside those of the gateway
        ports = [set(offered(g, space, host)) for g in gateways]
        for gateway, have in zip(gateways, ports, strict=True):
            own = {int((s.get("port") or {}).get("number") or 0) for s in servers_of(gateway)}
            missed = own - set().union(*ports)
            # Each of several Gateways may serve some of the hosts, at the same port or by HTTPS alone.
            if have or (any(ports) and not missed) or not own:
                continue
            partly = any(ports) and not asked and not made_by_us(rules)
            entries = [h for s in gateway["spec"].get("servers") or [] for h in s.get("hosts") or []]
            yield found(
                "vs-host-not-offered",
                f"{title_of(rules)} wants {host}; the Gateway has {', '.join(entries)}"
                + ("; at other ports another Gateway has it" if any(ports) else ""),
                f"kubectl -n {gateway['metadata']['namespace']} edit gateways.networking.istio.io "
                f"{name_of(gateway)}:\n   hosts:\n+  - {space}/{host}",
                level=Level.WARNING if partly else None,
                confidence=0.5 if partly else None,
                gateway=title_of(gateway),
                host=host,
                space=space,
            )


def _exported(facts: Facts) -> Iterator[Cause]:
    home = facts.params.istio.namespace
    for rules in our_rules(facts):
        to = rules["spec"].get("exportTo")
        space = rules["metadata"]["namespace"]
        if bound(rules) and to and "*" not in to and home not in to and not ("." in to and space == home):
            cause = found(
                "vs-not-exported",
                f"exportTo: {to}; the gateway is in {home}",
                patch_command(rules, {"exportTo": [*to, home]}),
                name=title_of(rules),
            )
            yield eased(facts, rules, cause)


def _in_envoy(facts: Facts) -> Iterator[Cause]:
    kinds = ("VirtualService", "HTTPRoute", "GRPCRoute")
    if not wanted_routes(route for kind in kinds for route in facts.objects(kind)):
        yield found("vs-none", "0 hosts wanted", "gateshift apply --act")
        return
    have: dict[str, set[str]] = {}
    for _, domain, rule in route_tables(facts.envoy):
        have.setdefault(domain.rpartition(":")[0] or domain, set()).add(rule.owner)
        have.setdefault(domain, set()).add(rule.owner)
    for host, services in sorted(_wanted(facts).items()):
        missing = services - have.get(host, set())
        if missing:
            yield found(
                "vs-not-in-envoy",
                f"wanted by {', '.join(sorted(missing))}; "
                f"Envoy has {', '.join(sorted(h for h in have if h != '*')[:20]) or 'none'}",
                "see the other findings: Gateway hosts, selector, exportTo, proxy status",
                confidence=None if host not in have else 0.7,
                host=host,
            )


def _wanted(facts: Facts) -> dict[str, set[str]]:
    """Return, per domain that our Gateways offer, the VirtualServices whose routes Envoy must have."""
    known = {
        f"{g['metadata']['namespace']}/{name_of(g)}": g
        for g in facts.gateways
        if not g["apiVersion"].startswith(GATEWAY_API)
    }
    found_: dict[str, set[str]] = {}
    for rules in our_rules(facts):
        if not rules["spec"].get("http") or _age(rules) < _PUSH_SECONDS:
            continue
        space = rules["metadata"]["namespace"]
        for gateway in (known[name] for name in bound(rules) if name in known):
            for host in rules["spec"].get("hosts") or []:
                for domain in set().union(*offered(gateway, space, host).values()):
                    found_.setdefault(domain, set()).add(f"{space}/{name_of(rules)}")
    return found_


_PUSH_SECONDS = 10.0
"""A VirtualService younger than this may still be on its way to the gateways."""


def _age(obj: Object) -> float:
    try:
        made = datetime.fromisoformat(str(obj["metadata"].get("creationTimestamp")))
    except ValueError:
        return math.inf
    return (datetime.now(UTC) - made).total_seconds()


def _shadowed(facts: Facts) -> Iterator[Cause]:
    for service in our_rules(facts):
        yield from (eased(facts, service, cause) for cause in _hidden(facts, service))


def _hidden(facts: Facts, service: Object) -> Iterator[Cause]:
    rules = service["spec"].get("http") or []
    for index, rule in enumerate(rules[:-1]):
        if "delegate" in rule:
            continue  # it takes what its delegate takes
        if _takes_all(rule):
            yield found(
                "rule-unreachable",
                f"{title_of(service)}: rule {rule.get('name', index)} is before "
                f"{', '.join(str(r.get('name', i)) for i, r in enumerate(rules) if i > index)}",
                f"kubectl -n {service['metadata']['namespace']} edit virtualservice {name_of(service)}: "
                "move the catch-all to the end",
                confidence=0.93 if facts.host and serves(service, facts.host) else 0.85,
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
