"""HTTPRoutes and GRPCRoutes of the Gateway API as the APISIX routes that the controller (2.x) writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateshift.apisix.model import Kind
from gateshift.apisix.readers.crd_upstream import service_nodes
from gateshift.apisix.readers.manifest import Manifest, objects_of

if TYPE_CHECKING:
    from gateshift.apisix.readers.crd import Context

__all__ = ["KINDS", "read"]

KINDS = frozenset({"HTTPRoute", "GRPCRoute"})
_RULES = 16
"""Rules of an object that the controller's priorities tell apart."""


def read(manifest: Manifest, context: Context) -> None:
    """Read one object: each match of each rule becomes a route."""
    grpc = manifest.kind == "GRPCRoute"
    hosts = [str(h) for h in objects_of(manifest.spec.get("hostnames"), "hostnames")]
    for i, rule in enumerate(objects_of(manifest.spec.get("rules"), "rules")):
        if not isinstance(rule, Mapping):
            context.builder.error(manifest.at(f"rules[{i}]"), "a rule is a mapping; it was not read")
            continue
        base: dict[str, Any] = {}
        plugins = _filters(rule, manifest, i, context)
        weighted = _backends(rule, manifest, i, context)
        if weighted:
            base["upstream"] = weighted[0]["upstream"]
        if len(weighted) > 1:
            shares = [{"weight": weighted[0]["weight"]}, *weighted[1:]]
            plugins["traffic-split"] = {"rules": [{"weighted_upstreams": shares}]}
        if hosts:
            base["hosts"] = hosts
        if plugins:
            base["plugins"] = plugins
        for j, match in enumerate(objects_of(rule.get("matches"), "matches") or [{}]):
            id_ = f"{manifest.id}_{i}_{j}"
            known = match if isinstance(match, Mapping) else {}
            spec = {"id": id_, **base, **(_grpc_match(known) if grpc else _match(known))}
            spec["priority"] = _priority(known, i, hosts, grpc=grpc)
            context.builder.add(Kind.ROUTE, id_, spec, manifest.at(f"rules[{i}].matches[{j}]"))


def _priority(match: Mapping[str, Any], rule: int, hosts: Sequence[str], *, grpc: bool) -> int:
    """Return the controller's priority: exact hosts, longer hosts, more conditions, earlier rules first."""
    exact = max((len(one) for one in hosts if "*" not in one), default=0)
    value = exact << 31 | max((len(one) for one in hosts), default=0) << 23
    headers = len(objects_of(match.get("headers"), "headers"))
    index = max(0, _RULES - rule)
    method = match.get("method")
    if grpc:
        named = method if isinstance(method, Mapping) else {}
        value |= len(str(named.get("service") or "")) << 19 | len(str(named.get("method") or "")) << 15
        return value | headers << 10 | index << 5
    queries = len(objects_of(match.get("queryParams"), "queryParams"))
    return value | bool(method) << 22 | headers << 17 | queries << 12 | index << 7


def _grpc_match(match: Mapping[str, Any]) -> dict[str, Any]:
    method = match.get("method")
    named = method if isinstance(method, Mapping) else {}
    service, name = str(named.get("service") or ""), str(named.get("method") or "")
    uri = f"/{service}" if service else "/*"
    if name:
        uri += f"/{name}"
    elif service:
        uri += "/*"
    return {"uris": [uri], **_variables(match)}


def _match(match: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    variables: list[Any] = []
    path = match.get("path")
    path = path if isinstance(path, Mapping) else {}
    kind, value = path.get("type") or "PathPrefix", str(path.get("value") or "/")
    if kind == "Exact":
        spec["uris"] = [value]
    elif kind == "RegularExpression":
        spec["uris"] = ["/*"]
        variables.append(["uri", "~~", value])
    else:
        # PathPrefix is segment-wise: /foo matches /foo and /foo/x but not /foobar
        spec["uris"] = [value, f"{value.removesuffix('/')}/*"]
    if match.get("method"):
        spec["methods"] = [match["method"]]
    found = _variables(match)
    variables += found.get("vars", [])
    return {**spec, "vars": variables} if variables else spec


def _variables(match: Mapping[str, Any]) -> dict[str, Any]:
    variables: list[Any] = []
    for key, prefix in (("headers", "http_"), ("queryParams", "arg_")):
        for item in objects_of(match.get(key), key):
            if isinstance(item, Mapping):
                name = str(item.get("name"))
                name = name.lower().replace("-", "_") if prefix == "http_" else name
                operator = "~~" if item.get("type") == "RegularExpression" else "=="
                variables.append([prefix + name, operator, item.get("value")])
    return {"vars": variables} if variables else {}


def _backends(rule: Mapping[str, Any], manifest: Manifest, i: int, context: Context) -> list[dict[str, Any]]:
    weighted: list[dict[str, Any]] = []
    for j, ref in enumerate(objects_of(rule.get("backendRefs"), "backendRefs")):
        if not isinstance(ref, Mapping) or not ref.get("name"):
            context.builder.error(manifest.at(f"rules[{i}].backendRefs[{j}]"), "a backend needs its name")
            continue
        space = str(ref.get("namespace") or manifest.namespace)
        upstream = {"type": "roundrobin", **service_nodes(str(ref["name"]), space, ref.get("port", 80))}
        if manifest.kind == "GRPCRoute":
            upstream["scheme"] = "grpc"
        weighted.append({"upstream": upstream, "weight": ref.get("weight", 1)})
    return weighted


def _headers(modifier: object) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in ("set", "add"):
        pairs = objects_of(modifier.get(key), key) if isinstance(modifier, Mapping) else []
        found = {p["name"]: p.get("value") for p in pairs if isinstance(p, Mapping) and "name" in p}
        if found:
            out[key] = found
    if isinstance(modifier, Mapping) and modifier.get("remove"):
        out["remove"] = modifier["remove"]
    return out


def _filters(rule: Mapping[str, Any], manifest: Manifest, i: int, context: Context) -> dict[str, Any]:
    plugins: dict[str, Any] = {}
    for j, item in enumerate(objects_of(rule.get("filters"), "filters")):
        kind = item.get("type") if isinstance(item, Mapping) else None
        if not isinstance(item, Mapping):
            continue
        if kind == "RequestHeaderModifier":
            plugins.setdefault("proxy-rewrite", {})["headers"] = _headers(item.get("requestHeaderModifier"))
        elif kind == "ResponseHeaderModifier":
            headers = _headers(item.get("responseHeaderModifier"))
            plugins.setdefault("response-rewrite", {})["headers"] = headers
        elif kind == "RequestRedirect" and isinstance(item.get("requestRedirect"), Mapping):
            plugins["redirect"] = _redirect(item["requestRedirect"])
        elif kind == "URLRewrite" and isinstance(item.get("urlRewrite"), Mapping):
            plugins.setdefault("proxy-rewrite", {}).update(_rewrite(item["urlRewrite"], rule))
        elif kind == "RequestMirror" and isinstance(item.get("requestMirror"), Mapping):
            ref = item["requestMirror"].get("backendRef")
            ref = ref if isinstance(ref, Mapping) else {}
            space = ref.get("namespace") or manifest.namespace
            host = f"http://{ref.get('name')}.{space}.svc.cluster.local:{ref.get('port', 80)}"
            plugins["proxy-mirror"] = {"host": host}
        else:
            context.builder.lose(
                manifest.at(f"rules[{i}].filters[{j}]"),
                f"{manifest.kind}/{manifest.namespace}/{manifest.name}",
                f"filter {kind} is not read",
                "carry it over by hand and sign for it; the rule's routes are incomplete without it",
            )
    return plugins


def _redirect(redirect: Mapping[str, Any]) -> dict[str, Any]:
    scheme, host = redirect.get("scheme") or "$scheme", redirect.get("hostname") or "$host"
    port = f":{redirect['port']}" if redirect.get("port") else ""
    path = redirect.get("path")
    uri = "$request_uri"
    if isinstance(path, Mapping) and path.get("replaceFullPath"):
        uri = str(path["replaceFullPath"])
    return {"uri": f"{scheme}://{host}{port}{uri}", "ret_code": redirect.get("statusCode", 302)}


def _rewrite(rewrite: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if rewrite.get("hostname"):
        out["host"] = rewrite["hostname"]
    path = rewrite.get("path")
    if not isinstance(path, Mapping):
        return out
    if path.get("replaceFullPath"):
        out["uri"] = path["replaceFullPath"]
    elif path.get("replacePrefixMatch") is not None:
        matches = objects_of(rule.get("matches"), "matches")
        first = matches[0] if matches and isinstance(matches[0], Mapping) else {}
        where = first.get("path")
        prefix = str(where.get("value") or "/") if isinstance(where, Mapping) else "/"
        base = re.escape(prefix.rstrip("/"))
        out["regex_uri"] = [f"^{base}(/.*)?$", str(path["replacePrefixMatch"]).rstrip("/") + "$1"]
    return out
