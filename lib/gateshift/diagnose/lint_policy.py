"""Traps in DestinationRules, Services, and the security policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.objects import Object, title_of
from gateshift.diagnose.lint_rules import World, check, providers, selector_of, space_of, trap
from gateshift.diagnose.model import Cause, Level

_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO


@check("DestinationRule")
def _destination(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    host, policy = str(spec.get("host", "")), spec.get("trafficPolicy") or {}
    space = obj["metadata"].get("namespace", "default")
    short = bool(host) and "." not in host and host != "*"
    if short:
        yield trap(
            29,
            _W,
            f"short host {host} means namespace {space}",
            obj,
            f"write {host}.{space}.svc.cluster.local",
        )
    inside = short or host.endswith(".cluster.local")
    if inside and "*" not in host and world.knows("Service") and world.service(host, space) is None:
        yield trap(29, _W, f"no Service {host}: the rule is ignored without a word", obj, "correct the host")
    for other in world.of("DestinationRule"):
        theirs = other.get("spec") or {}
        if (
            title_of(other) > title_of(obj)
            and theirs.get("host") == host
            and policy
            and theirs.get("trafficPolicy")
        ):
            yield trap(
                30,
                _W,
                f"two DestinationRules set a policy for {host}: only the older one's counts",
                f"{title_of(obj)} and {title_of(other)}",
                "join them",
            )
    if policy.get("portLevelSettings") and set(policy) - {"portLevelSettings"}:
        yield trap(
            31,
            _W,
            "portLevelSettings replace the settings above, they do not inherit",
            obj,
            "repeat connectionPool and outlierDetection at port level",
        )
    yield from _tls(obj, host, policy.get("tls") or {}, inside, world)
    outlier = policy.get("outlierDetection")
    if outlier is not None and "maxEjectionPercent" not in outlier:
        yield trap(
            33, _I, "at most 10 % of the endpoints are ejected by default", obj, "set maxEjectionPercent"
        )
    if (policy.get("loadBalancer") or {}).get("simple") == "LEAST_CONN":
        yield trap(35, _W, "LEAST_CONN is deprecated", obj, "write LEAST_REQUEST")
    if ((policy.get("connectionPool") or {}).get("http") or {}).get("useClientProtocol"):
        yield trap(
            28, _I, "useClientProtocol turns the upgrade to HTTP/2 off", obj, "remove it before gRPC backends"
        )


def _tls(obj: Object, host: str, tls: Mapping[str, Any], inside: bool, world: World) -> Iterator[Cause]:
    mode = tls.get("mode")
    if mode in {"DISABLE", "SIMPLE"} and inside:
        yield trap(32, _W, f"tls settings turn automatic mTLS off for {host}", obj, "remove tls")
    verified = tls.get("caCertificates") or tls.get("credentialName")
    if mode in {"SIMPLE", "MUTUAL"} and not verified and not tls.get("insecureSkipVerify"):
        if world.before(1, 21):
            yield trap(
                34,
                _E,
                "the server's certificate is not verified (Istio before 1.21)",
                obj,
                "set caCertificates",
            )
        else:
            yield trap(
                34,
                _I,
                "the server's certificate must be of a system CA",
                obj,
                "set caCertificates for a private one",
            )
    if tls.get("insecureSkipVerify"):
        yield trap(34, _W, "insecureSkipVerify: anybody can answer for this host", obj, "set caCertificates")


_PREFIXES = ("http", "http2", "https", "grpc", "tcp", "tls", "udp", "mongo", "mysql", "redis")


@check("Service")
def _service(obj: Object, world: World) -> Iterator[Cause]:
    spec, space = obj.get("spec") or {}, obj["metadata"].get("namespace", "default")
    if space in {"kube-system", world.home}:
        yield from _gateway_service(obj, world)
        return
    if not _is_target(obj, world):
        return
    for port in spec.get("ports") or []:
        name = str(port.get("appProtocol") or port.get("name") or "")
        if name.partition("-")[0] not in _PREFIXES and "/" not in name:
            yield trap(
                36,
                _I,
                f"port {port.get('port')} is named {name or 'nothing'}: its protocol is guessed",
                obj,
                "name it http-, grpc- or tcp-, or set appProtocol",
            )


def _is_target(obj: Object, world: World) -> bool:
    name, space = obj["metadata"]["name"], obj["metadata"].get("namespace", "default")
    hosts = {name, f"{name}.{space}", f"{name}.{space}.svc", f"{name}.{space}.svc.cluster.local"}
    return any(
        (route.get("destination") or {}).get("host") in hosts
        for service in world.of("VirtualService")
        for rule in (service.get("spec") or {}).get("http") or []
        for route in rule.get("route") or []
    )


def _gateway_service(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if (
        spec.get("type") == "LoadBalancer"
        and spec.get("externalTrafficPolicy", "Cluster") != "Local"
        and _needs_address(world)
    ):
        yield trap(
            64,
            _W,
            "externalTrafficPolicy Cluster hides the client's address, and policies or limits use it",
            obj,
            "set Local, PROXY protocol or numTrustedProxies",
        )


def _needs_address(world: World) -> bool:
    for policy in world.of("AuthorizationPolicy"):
        for rule in (policy.get("spec") or {}).get("rules") or []:
            for source in rule.get("from") or []:
                if {"ipBlocks", "notIpBlocks"} & set(source.get("source") or {}):
                    return True
    return False


def _guards(policy: Object, tokens: Object, world: World) -> bool:
    """Say whether *policy* holds for the workloads of *tokens*: of the mesh, the namespace, or narrower."""
    spec, theirs = tokens.get("spec") or {}, policy.get("spec") or {}
    here = space_of(policy) == space_of(tokens)
    selector = selector_of(theirs)
    targets = theirs.get("targetRefs") or [r for r in [theirs.get("targetRef")] if r]
    if targets:
        return here and any(r in (spec.get("targetRefs") or [spec.get("targetRef")]) for r in targets)
    return (here and selector.items() <= selector_of(spec).items()) or (
        space_of(policy) == world.home and not selector
    )


@check("RequestAuthentication")
def _tokens(obj: Object, world: World) -> Iterator[Cause]:
    spec, space = obj.get("spec") or {}, obj["metadata"].get("namespace", "default")
    rules = spec.get("jwtRules") or []
    # Not an error: claims may only choose a route, and a backend may ask for the token itself.
    if not any(_guards(p, obj, world) for p in world.of("AuthorizationPolicy")):
        yield trap(
            39,
            _W,
            "a request without any token passes: RequestAuthentication never requires one",
            f"{title_of(obj)}, no AuthorizationPolicy for the same workload",
            "add an AuthorizationPolicy that denies requests without a principal, unless the backend does",
            0.6,
        )
    if space == world.home and any("fromHeaders" not in r for r in rules):
        yield trap(
            40,
            _W,
            "on a shared gateway every Bearer token of every route is judged: foreign and opaque ones get "
            "401",
            obj,
            "scope it with fromHeaders, a gateway of its own, or at the sidecars",
        )
    for rule in rules:
        where = f"{title_of(obj)}, issuer {rule.get('issuer') or '(none)'}"
        if not rule.get("forwardOriginalToken"):
            yield trap(
                41,
                _W,
                "the token is removed before the backend sees the request",
                where,
                "set forwardOriginalToken: true if backends read it",
            )
        given = sorted({"fromHeaders", "fromParams", "fromCookies"} & set(rule))
        if given:
            yield trap(
                41,
                _I,
                f"{', '.join(given)} replaces the usual places of the token",
                where,
                "name all that clients use",
            )
        if "fromCookies" in rule and world.before(1, 23):
            yield trap(41, _E, "fromCookies is of Istio 1.23", where, "use a header")
        if not rule.get("issuer") and (world.before(1, 27) or "jwksUri" not in rule):
            yield trap(
                42, _E, "issuer is missing", where, "set it; only Istio 1.27 with jwksUri does without"
            )
        text = str(rule.get("jwks", "")).replace(" ", "")
        if '"oct"' in text:
            yield trap(
                43,
                _W,
                "a symmetric signing key stands in the object, readable by all who may read it",
                where,
                "re-key to RS256 or ES256",
            )
        if text.count('"kty"') > 1 and '"kid"' not in text:
            yield trap(
                43,
                _W,
                "several keys without kid: each consumer's key signs for every other",
                where,
                "give each a kid",
            )
        if "jwksUri" in rule:
            yield trap(
                44, _I, f"istiod itself fetches {rule['jwksUri']}", where, "let istiod's egress reach it"
            )


@check("AuthorizationPolicy")
def _policy(obj: Object, world: World) -> Iterator[Cause]:
    spec, space = obj.get("spec") or {}, obj["metadata"].get("namespace", "default")
    action, rules = spec.get("action", "ALLOW"), spec.get("rules") or []
    gateway = space == world.home and (not selector_of(spec) or "ingress" in str(selector_of(spec)))
    if action == "ALLOW" and gateway:
        yield trap(
            45,
            _W,
            "one ALLOW policy on the gateway denies everything that it does not name",
            obj,
            "use DENY policies per route on a shared gateway",
            0.5,
        )
    if action == "ALLOW" and not rules and space != world.home:
        yield trap(
            50,
            _W,
            "deny by default also blocks APISIX, which has no principal",
            obj,
            "allow its addresses by ipBlocks during the overlap",
        )
    if action == "CUSTOM":
        yield from _custom(obj, world)
    for rule in rules:
        for to in rule.get("to") or []:
            yield from _operation(obj, action, to.get("operation") or {}, world)
        for source in rule.get("from") or []:
            inner = source.get("source") or {}
            if gateway and {"ipBlocks", "notIpBlocks"} & set(inner):
                yield trap(
                    47,
                    _W,
                    "ipBlocks sees the load balancer's address, not the client's",
                    obj,
                    "use remoteIpBlocks with numTrustedProxies",
                    0.5,
                )
            if "*" in (inner.get("requestPrincipals") or []):
                yield trap(
                    39,
                    _I,
                    'requestPrincipals ["*"] wants iss and sub both',
                    obj,
                    "use when: request.auth.claims",
                )


def _operation(obj: Object, action: str, operation: Mapping[str, Any], world: World) -> Iterator[Cause]:
    hosts = operation.get("hosts") or []
    for host in hosts:
        if ":" not in host and f"{host}:*" not in hosts and not host.endswith("*"):
            yield trap(
                46,
                _E if action == "DENY" else _W,
                f"host {host} does not match {host}:443",
                obj,
                f"name both {host} and {host}:*",
                0.7,
            )
    for path in [*(operation.get("paths") or []), *(operation.get("notPaths") or [])]:
        if "{" in path and world.before(1, 22):
            yield trap(46, _E, f"path template {path} is of Istio 1.22", obj, "use a prefix")
        elif "*" in path.strip("*"):
            yield trap(46, _W, f"* inside {path} is no wildcard", obj, "use pre*, *suf or {*}")


def _custom(obj: Object, world: World) -> Iterator[Cause]:
    provider, known = _provider(obj), providers(world)
    if known is not None and provider not in known:
        yield trap(
            48,
            _E,
            f"provider {provider} is not in the mesh's extensionProviders: all requests are denied",
            obj,
            "add it to meshConfig",
        )
    mine = selector_of(obj.get("spec") or {})
    others = {
        _provider(p)
        for p in world.of("AuthorizationPolicy")
        if (p.get("spec") or {}).get("action") == "CUSTOM"
        and space_of(p) == space_of(obj)
        and _overlap(mine, selector_of(p.get("spec") or {}))
    }
    if len(others) > 1 and world.before(1, 30):
        yield trap(
            48,
            _E,
            "two CUSTOM providers for one workload deny all (Istio before 1.30)",
            obj,
            "use one provider",
        )


def _provider(policy: Object) -> str:
    return str(((policy.get("spec") or {}).get("provider") or {}).get("name", ""))


def _overlap(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Say whether one workload may have both sets of labels."""
    return all(other.get(key, value) == value for key, value in one.items())


@check("PeerAuthentication")
def _peer(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("portLevelMtls") and not selector_of(spec):
        yield trap(49, _E, "portLevelMtls needs a selector: it is ignored", obj, "name the workload")
    if (spec.get("mtls") or {}).get("mode") == "STRICT" and world.find("Namespace", "apisix") is not None:
        yield trap(
            49,
            _W,
            "STRICT while APISIX is still there: it has no sidecar and is cut off",
            obj,
            "keep PERMISSIVE until the clean-up",
            0.5,
        )
