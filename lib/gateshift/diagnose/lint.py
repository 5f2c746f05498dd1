"""Traps of ``istio-traps.md`` that can be seen in objects alone. Pure: works on files and on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gateshift.cluster.objects import Object, title_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe

__all__ = ["PROBES", "lint"]

KINDS = (
    "Gateway",
    "VirtualService",
    "DestinationRule",
    "PeerAuthentication",
    "RequestAuthentication",
    "AuthorizationPolicy",
    "EnvoyFilter",
)

_MISSING_EXTENSIONS = (
    "api_key_auth",
    "custom_response",
    "geoip",
    "file_system_buffer",
    "uri_template",
)


def lint(objects: Iterable[Object]) -> tuple[Cause, ...]:
    """Return every trap visible in *objects*, in their order."""
    every = list(objects)
    return tuple(cause for obj in every for cause in _one(obj, every))


def _one(obj: Object, every: Sequence[Object]) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    title = title_of(obj)
    match obj.get("kind"):
        case "VirtualService":
            for rule in spec.get("http") or []:
                yield from _rule(title, rule)
        case "Gateway":
            yield from _gateway(title, spec)
        case "DestinationRule":
            yield from _destination(title, spec)
        case "RequestAuthentication":
            yield from _tokens(obj, title, spec, every)
        case "AuthorizationPolicy":
            yield from _policy(title, spec)
        case "EnvoyFilter":
            yield from _filter(title, spec)


def _trap(  # noqa: PLR0917 - one line a trap reads as a table
    number: int, level: Level, title: str, evidence: str, remedy: str, confidence: float = 0.5
) -> Cause:
    return Cause(
        level,
        title,
        evidence,
        remedy,
        confidence=confidence,
        reference=f"istio-traps.md {number}",
        symptom="lint",
    )


def _rule(title: str, rule: Mapping[str, Any]) -> Iterator[Cause]:
    name = f"{title}, rule {rule.get('name', '(unnamed)')}"
    for match in rule.get("match") or []:
        prefix = (match.get("uri") or {}).get("prefix", "")
        if len(prefix) > 1 and not prefix.endswith("/"):
            yield _trap(
                7,
                Level.INFO,
                f"prefix {prefix} also matches {prefix}bar",
                name,
                f"if only {prefix} and {prefix}/... are meant: exact {prefix} and prefix {prefix}/",
                0.1,
            )
        for header in (match.get("headers") or {}) | (match.get("withoutHeaders") or {}):
            if header != header.lower():
                yield _trap(
                    9, Level.ERROR, f"header {header} never matches", name, f"write {header.lower()}", 0.8
                )
    redirect = rule.get("redirect")
    if redirect and redirect.get("redirectCode", 301) not in {301, 302, 303, 307, 308}:
        yield _trap(
            12,
            Level.ERROR,
            f"redirect code {redirect['redirectCode']} leaves the rule without action",
            name,
            "use 301, 302, 303, 307 or 308",
            0.8,
        )
    if rule.get("route") and "retries" not in rule:
        yield _trap(
            16,
            Level.INFO,
            "Istio retries twice by default, for any method",
            name,
            "set retries.attempts: 0 if the old gateway did not retry",
            0.1,
        )
    fault = rule.get("fault") or {}
    for kind in ("delay", "abort"):
        if kind in fault and "percentage" not in fault[kind]:
            yield _trap(19, Level.WARNING, f"fault {kind} without percentage is 0 %", name, "set percentage")
    timeout = str(rule.get("timeout", ""))
    if timeout and timeout not in {"0s", "0"} and "ws" in str(rule.get("name", "")):
        yield _trap(
            27,
            Level.WARNING,
            f"timeout {timeout} also cuts WebSocket connections",
            name,
            "remove timeout from this rule",
        )


def _gateway(title: str, spec: Mapping[str, Any]) -> Iterator[Cause]:
    for server in spec.get("servers") or []:
        tls = server.get("tls") or {}
        port = server.get("port") or {}
        if tls.get("httpsRedirect"):
            yield _trap(
                13,
                Level.WARNING,
                "httpsRedirect answers every request of this port with 301",
                f"{title}, port {port.get('number')}",
                "behind a load balancer that ends TLS this loops: redirect by rule instead",
                0.4,
            )
        if port.get("protocol") in {"HTTPS", "TLS"} and not tls:
            yield _trap(
                23,
                Level.ERROR,
                "a TLS port without tls settings opens no listener",
                f"{title}, port {port.get('number')}",
                "set tls.mode and credentialName",
                0.85,
            )


def _destination(title: str, spec: Mapping[str, Any]) -> Iterator[Cause]:
    host = str(spec.get("host", ""))
    policy = spec.get("trafficPolicy") or {}
    if host and "." not in host and host != "*":
        yield _trap(
            29,
            Level.WARNING,
            f"short host {host} means the namespace of the rule",
            title,
            "write the full name: service.namespace.svc.cluster.local",
            0.3,
        )
    if (policy.get("tls") or {}).get("mode") in {"DISABLE", "SIMPLE"} and host.endswith(".cluster.local"):
        yield _trap(
            32, Level.WARNING, f"tls settings turn automatic mTLS off for {host}", title, "remove tls", 0.4
        )
    levels = policy.get("portLevelSettings")
    if levels and set(policy) - {"portLevelSettings"}:
        yield _trap(
            31,
            Level.WARNING,
            "portLevelSettings replace the settings above, they do not inherit",
            title,
            "repeat connectionPool and outlierDetection at port level",
            0.3,
        )


def _selects(spec: Mapping[str, Any]) -> dict[str, str]:
    return dict((spec.get("selector") or {}).get("matchLabels") or {})


def _tokens(obj: Object, title: str, spec: Mapping[str, Any], every: Sequence[Object]) -> Iterator[Cause]:
    space = obj["metadata"].get("namespace")
    guards = [
        p
        for p in every
        if p.get("kind") == "AuthorizationPolicy"
        and p["metadata"].get("namespace") == space
        and _selects(p.get("spec") or {}) == _selects(spec)
    ]
    if not guards:
        yield _trap(
            39,
            Level.ERROR,
            "a request without any token passes: RequestAuthentication never requires one",
            f"{title}, no AuthorizationPolicy for the same workload",
            "add an AuthorizationPolicy that denies requests without a principal",
            0.9,
        )
    for rule in spec.get("jwtRules") or []:
        if not rule.get("forwardOriginalToken"):
            yield _trap(
                41,
                Level.WARNING,
                "the token is removed before the backend sees the request",
                f"{title}, issuer {rule.get('issuer')}",
                "set forwardOriginalToken: true if backends read it",
                0.3,
            )
        if '"oct"' in str(rule.get("jwks", "")).replace(" ", ""):
            yield _trap(
                43,
                Level.WARNING,
                "a symmetric signing key stands in the object, readable by all who may read it",
                f"{title}, issuer {rule.get('issuer')}",
                "re-key to RS256 or ES256",
                0.4,
            )


def _policy(title: str, spec: Mapping[str, Any]) -> Iterator[Cause]:
    action = spec.get("action", "ALLOW")
    if action == "ALLOW" and _selects(spec).get("istio") == "ingressgateway":
        yield _trap(
            45,
            Level.WARNING,
            "one ALLOW policy on the gateway denies everything that it does not name",
            title,
            "use DENY policies per route on a shared gateway",
            0.5,
        )
    for rule in spec.get("rules") or []:
        for to in rule.get("to") or []:
            hosts = (to.get("operation") or {}).get("hosts") or []
            for host in hosts:
                if ":" not in host and f"{host}:*" not in hosts and not host.endswith("*"):
                    yield _trap(
                        46,
                        Level.ERROR if action == "DENY" else Level.WARNING,
                        f"host {host} does not match {host}:443",
                        title,
                        f"name both {host} and {host}:*",
                        0.7,
                    )
        for source in rule.get("from") or []:
            if (source.get("source") or {}).get("ipBlocks"):
                yield _trap(
                    47,
                    Level.WARNING,
                    "ipBlocks sees the load balancer's address, not the client's",
                    title,
                    "use remoteIpBlocks with numTrustedProxies",
                    0.5,
                )


def _filter(title: str, spec: Mapping[str, Any]) -> Iterator[Cause]:
    text = json.dumps(spec)
    for patch in spec.get("configPatches") or []:
        if (patch.get("match") or {}).get("context", "ANY") == "ANY":
            yield _trap(
                51,
                Level.INFO,
                "context ANY also patches sidecars",
                f"{title}, applyTo {patch.get('applyTo')}",
                "set context: GATEWAY",
                0.1,
            )
    for extension in _MISSING_EXTENSIONS:
        if extension in text:
            yield _trap(
                53,
                Level.ERROR,
                f"istio-proxy has no extension {extension}: the gateway rejects the configuration",
                title,
                "use what istio-proxy contains",
                0.85,
            )
    if "token_bucket" in text and "filter_enforced" not in text:
        yield _trap(
            54, Level.ERROR, "the rate limit is 0 % enforced by default", title, "filter_enforced", 0.85
        )


def _look(facts: Facts) -> Iterable[Cause]:
    return lint([o for kind in KINDS for o in facts.objects(kind)])


PROBES = (Probe("traps", frozenset({"lint"}), "istioctl analyze --all-namespaces", _look),)
