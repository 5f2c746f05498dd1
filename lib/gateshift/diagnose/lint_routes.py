"""Traps in VirtualServices, and in what every object shares: size and API version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.lint_rules import World, check, gateways_of, space_of, trap
from gateshift.diagnose.model import Cause, Level
from gateshift.diagnose.routes import host_matches

_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO
_LOOK_AROUND = re.compile(r"\(\?(?:[=!>]|<[=!])|(?<!\\)(?:\\\\)*\\[1-9](?![0-7])")
_VARIABLE = re.compile(r"%[A-Z][A-Z0-9_]*(?:\(.*?\))?(?::\d+)?%")


def _rules(obj: Object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, rule in enumerate((obj.get("spec") or {}).get("http") or []):
        yield f"{title_of(obj)}, rule {rule.get('name', f'#{index}')}", rule


def _matches(obj: Object) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    for where, rule in _rules(obj):
        for match in rule.get("match") or []:
            yield where, rule, match


def _regexes(match: Mapping[str, Any]) -> Iterator[str]:
    texts = [match.get(k) for k in ("uri", "method", "authority", "scheme")]
    for key in ("headers", "withoutHeaders", "queryParams"):
        texts += list((match.get(key) or {}).values())
    for text in texts:
        if isinstance(text, Mapping) and "regex" in text:
            yield str(text["regex"])


@check("VirtualService")
def _match(obj: Object, world: World) -> Iterator[Cause]:
    del world
    for where, _, match in _matches(obj):
        prefix = (match.get("uri") or {}).get("prefix", "")
        if len(prefix) > 1 and not prefix.endswith("/"):
            yield trap(
                7,
                _I,
                f"prefix {prefix} also matches {prefix}bar",
                where,
                f"if only {prefix} and {prefix}/... are meant: exact {prefix} and prefix {prefix}/",
            )
        for regex in _regexes(match):
            if _LOOK_AROUND.search(regex):
                yield trap(
                    8, _E, "RE2 has no look-around or back-reference", f"{where}: {regex}", "rewrite it"
                )
            elif regex.startswith("^") or (regex.endswith("$") and not regex.endswith("\\$")):
                yield trap(
                    8,
                    _I,
                    "the whole value must match: ^ and $ say nothing more",
                    f"{where}: {regex}",
                    "drop them",
                )
        for header in (match.get("headers") or {}) | (match.get("withoutHeaders") or {}):
            # Envoy matches it all the same; other readers of the object need not.
            if header != header.lower():
                yield trap(9, _W, f"header {header} is not in lower case", where, f"write {header.lower()}")
            if header in {"uri", "scheme", "method", "authority"}:
                yield trap(
                    9,
                    _W,
                    f"the key {header} in headers does not mean the request's {header}",
                    where,
                    f"match by {header}: itself",
                )
        for header, wanted in (match.get("withoutHeaders") or {}).items():
            if wanted and wanted.get("regex") != "*":
                yield trap(
                    10,
                    _I,
                    f"a request without {header} counts as one with an empty {header}",
                    where,
                    "mind it",
                )


@check("VirtualService")
def _order(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    bound = [g for g in spec.get("gateways") or ["mesh"] if g != "mesh"]
    for other in world.of("VirtualService"):
        if other is obj or title_of(other) <= title_of(obj):
            continue
        theirs = other.get("spec") or {}
        shared = sorted(set(spec.get("hosts") or []) & set(theirs.get("hosts") or []))
        both = set(gateways_of(obj)) & set(gateways_of(other))
        if shared and both - {"mesh"}:
            yield trap(
                5,
                _W,
                f"two VirtualServices serve {', '.join(shared)}: the older one's rules are tried first",
                f"{title_of(obj)} and {title_of(other)}",
                "join them, or see that no rule of one covers the other's",
            )
        elif shared and "mesh" in both:
            yield trap(
                5,
                _W,
                f"in the mesh {', '.join(shared)} may have one VirtualService: only the older one counts",
                f"{title_of(obj)} and {title_of(other)}",
                "join them",
            )
    for host in spec.get("hosts") or []:
        wide = sorted(
            {
                h
                for o in world.of("VirtualService")
                for h in (o.get("spec") or {}).get("hosts") or []
                if bound
                and h.startswith("*")
                and h != host
                and host_matches(h, host)
                and set(gateways_of(o)) & set(gateways_of(obj))
            }
        )
        if wide and not host.startswith("*"):
            yield trap(
                6,
                _I,
                f"{host} hides the rules of {', '.join(wide)}",
                obj,
                "repeat those rules that must hold here too",
            )


@check("VirtualService")
def _binding(obj: Object, world: World) -> Iterator[Cause]:
    # What a file leaves to `kubectl -n` may be in the very namespace that is named.
    known = {f"{space_of(g)}/{name_of(g)}" for g in world.of("Gateway")}
    for name in gateways_of(obj):
        bare = name.rpartition("/")[2]
        others = [k for k in sorted(known) if k.endswith(f"/{bare}")]
        if name == "mesh" or {name, f"/{bare}"} & known or not others or not space_of(obj):
            continue
        yield trap(
            25,
            world.missing("Gateway"),
            f"{name} does not exist; meant is {others[0]}",
            obj,
            f"write gateways: [{others[0]}]",
        )
    for where, rule in _rules(obj):
        if "delegate" not in rule:
            continue
        target = rule["delegate"]
        found = world.find("VirtualService", target.get("name", ""), target.get("namespace"))
        if found is not None and (found.get("spec") or {}).get("hosts"):
            yield trap(26, _E, "a delegate must have no hosts", where, f"remove hosts from {title_of(found)}")
        if found is not None and any("delegate" in r for _, r in _rules(found)):
            yield trap(26, _E, "delegation goes one level deep only", where, f"flatten {title_of(found)}")


@check("VirtualService")
def _actions(obj: Object, world: World) -> Iterator[Cause]:
    for where, rule in _rules(obj):
        yield from _redirect(where, rule, world)
        yield from _rewrite(where, rule, world)
        body = (rule.get("directResponse") or {}).get("body") or {}
        size = max((len(str(v)) for v in body.values()), default=0)
        if size > 100_000:
            yield trap(
                14,
                _E if size > 1_048_576 else _W,
                f"a response body of {size} bytes",
                where,
                "1 MB is refused; serve it elsewhere",
            )
        cors = rule.get("corsPolicy")
        if cors and "unmatchedPreflights" not in cors:
            yield trap(
                18,
                _I,
                "a preflight that does not match is forwarded to the backend",
                where,
                "nothing can change it before Istio 1.23"
                if world.before(1, 23)
                else "set unmatchedPreflights: IGNORE if not wanted",
            )
        yield from _fault(where, rule)
        yield from _times(where, rule, world)
        if (rule.get("mirror") or rule.get("mirrors")) and world.before(1, 28):
            yield trap(
                17,
                _W,
                "the mirrored Host gets the suffix -shadow",
                where,
                "the mirror must accept it (Istio before 1.28)",
            )
        yield from _headers(where, rule)


def _redirect(where: str, rule: Mapping[str, Any], world: World) -> Iterator[Cause]:
    redirect = rule.get("redirect")
    if redirect and redirect.get("redirectCode", 301) not in {301, 302, 303, 307, 308}:
        yield trap(
            12,
            _E,
            f"redirect code {redirect['redirectCode']} leaves the rule without action",
            where,
            "use 301, 302, 303, 307 or 308",
        )
    if redirect and "prefixRewrite" in redirect and world.before(1, 31):
        yield trap(
            12, _E, "redirect.prefixRewrite is of Istio 1.31", where, "use uri, or one rule for each target"
        )
    for action in ("redirect", "directResponse"):
        mixed = sorted({"route", "rewrite", "fault"} & set(rule)) if action in rule else []
        if mixed:
            yield trap(
                12, _E, f"{action} excludes {', '.join(mixed)}: it is refused", where, "make two rules"
            )


def _rewrite(where: str, rule: Mapping[str, Any], world: World) -> Iterator[Cause]:
    rewrite = rule.get("rewrite") or {}
    if "uri" in rewrite and "uriRegexRewrite" in rewrite:
        yield trap(11, _E, "rewrite has uri and uriRegexRewrite: one excludes the other", where, "keep one")
    if "uriRegexRewrite" in rewrite and world.before(1, 19):
        yield trap(11, _E, "uriRegexRewrite is of Istio 1.19", where, "use prefix rewrites, or upgrade")
    if "uri" in rewrite and any("regex" in (m.get("uri") or {}) for m in rule.get("match") or []):
        yield trap(
            11, _W, "rewrite.uri on a regex match replaces the whole path", where, "use uriRegexRewrite"
        )
    sets = ((rule.get("headers") or {}).get("request") or {}).get("set") or {}
    if "authority" in rewrite and any(k.lower() == "host" for k in sets):
        yield trap(20, _E, "Host is set twice: rewrite.authority and headers.request.set", where, "keep one")


def _fault(where: str, rule: Mapping[str, Any]) -> Iterator[Cause]:
    fault = rule.get("fault") or {}
    for kind in ("delay", "abort"):
        if kind in fault and "percentage" not in fault[kind]:
            yield trap(19, _W, f"fault {kind} without percentage is 0 %", where, "set percentage")
        elif (
            kind in fault
            and ("retries" in rule or "timeout" in rule)
            and (rule.get("retries") or {}).get("attempts") != 0
        ):
            yield trap(
                19, _W, f"fault {kind} has no effect together with retries or timeout", where, "remove one"
            )


def _times(where: str, rule: Mapping[str, Any], world: World) -> Iterator[Cause]:
    retries = rule.get("retries")
    if rule.get("route") and retries is None:
        also = ", 503 too" if world.before(1, 24) else ""
        yield trap(
            16,
            _I,
            f"Istio retries twice by default, for any method{also}",
            where,
            "set retries.attempts: 0 if the old gateway did not retry",
        )
    total, each = _seconds(rule.get("timeout")), _seconds((retries or {}).get("perTryTimeout"))
    attempts = int((retries or {}).get("attempts", 0) or 0)
    if total and each and attempts and each * (attempts + 1) > total:
        yield trap(
            15,
            _I,
            f"timeout {total:g} s ends {attempts + 1} tries of {each:g} s early: it is the total",
            where,
            f"raise it to {each * (attempts + 1):g}s, or lower perTryTimeout",
        )
    socket = any("upgrade" in (m.get("headers") or {}) for m in rule.get("match") or [])
    words = re.split(r"[^a-z]+", str(rule.get("name", "")).lower())
    if total and (socket or {"ws", "websocket", "stream"} & set(words)):
        yield trap(
            27,
            _W,
            f"timeout {total:g} s also cuts WebSocket connections",
            where,
            "remove timeout from this rule (0s)",
        )


def _seconds(text: object) -> float:
    found = re.fullmatch(r"([\d.]+)(ms|s|m|h)", str(text or ""))
    return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0


def _headers(where: str, rule: Mapping[str, Any]) -> Iterator[Cause]:
    for side in (
        (rule.get("headers") or {}).get("request") or {},
        (rule.get("headers") or {}).get("response") or {},
    ):
        for values in (side.get("set") or {}, side.get("add") or {}):
            for key, value in values.items():
                # The value itself is not quoted: it may be a credential.
                if "%" in _VARIABLE.sub("", str(value).replace("%%", "")):
                    yield trap(20, _E, f"% in header {key} starts a variable", where, "write %%")


@check("VirtualService")
def _targets(obj: Object, world: World) -> Iterator[Cause]:
    space = space_of(obj) or "default"
    rules = list(world.of("DestinationRule"))
    for where, rule in _rules(obj):
        for route in rule.get("route") or []:
            to = route.get("destination") or {}
            host, subset = str(to.get("host", "")), to.get("subset")
            if host and "." not in host:
                yield trap(
                    29,
                    _I,
                    f"short host {host} means namespace {space}",
                    where,
                    f"write {host}.{space}.svc.cluster.local",
                )
            concerned = [r for r in rules if _means(str((r.get("spec") or {}).get("host", "")), host)]
            defined = {s.get("name") for r in concerned for s in (r.get("spec") or {}).get("subsets") or []}
            if subset and subset not in defined:
                yield trap(
                    30,
                    _E if concerned else world.missing("DestinationRule"),
                    f"subset {subset} of {host} is not defined: 503 (NC)"
                    if concerned or "DestinationRule" in world.whole
                    else f"no file has the DestinationRule that defines subset {subset} of {host}",
                    where,
                    "add it to a DestinationRule",
                )
            yield from _service(where, world.service(host, space))


def _means(rule: str, host: str) -> bool:
    """Say whether a DestinationRule's host may be a destination's: short, in full, or by a wildcard."""
    if rule.startswith("*"):
        return host_matches(rule, host) or "." not in host
    return rule == host or ("." not in host and rule.startswith(f"{host}.")) or rule == host.partition(".")[0]


def _service(where: str, service: Object | None) -> Iterator[Cause]:
    if service is None:
        return
    spec = service.get("spec") or {}
    if spec.get("clusterIP") == "None":
        yield trap(
            37,
            _W,
            f"{title_of(service)} is headless",
            where,
            "declare the port, or use a Service with an address",
        )
    if spec.get("type") == "ExternalName":
        yield trap(38, _W, f"{title_of(service)} is an ExternalName", where, "use a ServiceEntry")


@check("VirtualService", "Gateway", "DestinationRule", "EnvoyFilter")
def _size(obj: Object, world: World) -> Iterator[Cause]:
    del world
    size = len(json.dumps(obj))
    if size > 1_000_000:
        yield trap(66, _E, f"{size} bytes: etcd refuses objects above 1.5 MB", obj, "split it")
    elif size > 400_000:
        yield trap(66, _W, f"{size} bytes: large objects slow every push", obj, "split it")


_V1_SINCE = {
    "networking.istio.io/v1": (1, 22),
    "telemetry.istio.io/v1": (1, 22),
    "security.istio.io/v1": (1, 22),
}


@check(
    "VirtualService",
    "Gateway",
    "EnvoyFilter",
    "DestinationRule",
    "ServiceEntry",
    "PeerAuthentication",
    "Telemetry",
)
def _versions(obj: Object, world: World) -> Iterator[Cause]:
    if obj["kind"] == "EnvoyFilter":
        if obj.get("apiVersion") in {"networking.istio.io/v1", "networking.istio.io/v1beta1"}:
            filters = "networking.istio.io/v1alpha3"
            yield trap(3, _E, f"EnvoyFilter is served as {filters} only", obj, f"write {filters}")
        return
    since = _V1_SINCE.get(str(obj.get("apiVersion")))
    if since and world.before(*since):
        older = str(obj["apiVersion"]).replace(
            "/v1", "/v1beta1" if "telemetry" not in obj["apiVersion"] else "/v1alpha1"
        )
        yield trap(
            3, _E, f"{obj['apiVersion']} is served from Istio {since[0]}.{since[1]}", obj, f"write {older}"
        )
