"""The ingress controller's v2 CRDs as the APISIX resources that it writes for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import Kind
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.crd_upstream import backend_upstream, external_upstream, seconds
from gateshift.apisix.readers.manifest import Manifest, objects_of

__all__ = ["KINDS", "Context", "read", "read_plugin_config", "read_unused_upstreams"]

KINDS = frozenset(
    {
        "ApisixRoute", "ApisixUpstream", "ApisixPluginConfig", "ApisixGlobalRule", "ApisixTls",
        "ApisixConsumer",
    }
)  # fmt: skip
_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "Equal": ("==",),
    "NotEqual": ("~=",),
    "GreaterThan": (">",),
    "GreaterThanEqual": (">=",),
    "LessThan": ("<",),
    "LessThanEqual": ("<=",),
    "In": ("in",),
    "NotIn": ("!", "in"),
    "RegexMatch": ("~~",),
    "RegexNotMatch": ("!", "~~"),
    "RegexMatchCaseInsensitive": ("~*",),
    "RegexNotMatchCaseInsensitive": ("!", "~*"),
}
_AUTH = {
    "keyAuth": "key-auth", "basicAuth": "basic-auth", "jwtAuth": "jwt-auth", "hmacAuth": "hmac-auth",
    "ldapAuth": "ldap-auth", "wolfRBAC": "wolf-rbac", "wolfRbac": "wolf-rbac",
}  # fmt: skip
_DEFAULT_WEIGHT = 100


class Context:
    """What objects know of each other."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.upstreams: dict[tuple[str, str], Manifest] = {}
        self.used: set[tuple[str, str]] = set()


def read(manifest: Manifest, context: Context) -> None:
    """Read one object other than an upstream or a plugin config."""
    if manifest.kind == "ApisixRoute":
        for i, rule in enumerate(objects_of(manifest.spec.get("http"), "http")):
            if isinstance(rule, Mapping):
                _route(manifest, rule, i, context)
            else:
                context.builder.error(manifest.at(f"http[{i}]"), "a rule is a mapping; it was not read")
        for i, rule in enumerate(objects_of(manifest.spec.get("stream"), "stream")):
            if isinstance(rule, Mapping):
                _stream(manifest, rule, i, context)
    elif manifest.kind == "ApisixGlobalRule":
        spec = {"plugins": _plugins(manifest.spec.get("plugins"), manifest, "plugins", context)}
        context.builder.add(Kind.GLOBAL_RULE, manifest.id, spec, manifest.origin)
    elif manifest.kind == "ApisixTls":
        _tls(manifest, context)
    elif manifest.kind == "ApisixConsumer":
        _consumer(manifest, context)


def read_plugin_config(manifest: Manifest, context: Context) -> None:
    """Read an ApisixPluginConfig."""
    spec = {"plugins": _plugins(manifest.spec.get("plugins"), manifest, "plugins", context)}
    context.builder.add(Kind.PLUGIN_CONFIG, manifest.id, spec, manifest.origin)


def read_unused_upstreams(context: Context) -> None:
    """Keep ApisixUpstreams that no route of these files names: the ledger must still account for them."""
    for key, manifest in context.upstreams.items():
        if key not in context.used:
            spec = external_upstream(manifest, context.builder)
            context.builder.add(Kind.UPSTREAM, manifest.id, spec, manifest.origin)


def _plugins(value: object, manifest: Manifest, path: str, context: Context) -> dict[str, Any]:
    plugins: dict[str, Any] = {}
    if value is not None and not isinstance(value, list):
        context.builder.error(manifest.at(path), "plugins of a CRD is a list of name, enable and config")
    for i, plugin in enumerate(objects_of(value, path)):
        where = manifest.at(f"{path}[{i}]")
        if not isinstance(plugin, Mapping) or not isinstance(plugin.get("name"), str):
            context.builder.error(where, "a plugin needs its name; it was not read")
            continue
        name = plugin["name"]
        if plugin.get("enable") is False:
            context.builder.warn(
                where, f"plugin {name} is switched off (enable: false); the controller skips it"
            )
            continue
        config = plugin.get("config")
        plugins[name] = dict(config) if isinstance(config, Mapping) else {}
        if plugin.get("secretRef"):
            # The values live in the cluster; the name says where, and no secret is read here.
            plugins[name]["_secret_ref"] = f"{manifest.namespace}/{plugin['secretRef']}"
    return plugins


def _route(manifest: Manifest, rule: Mapping[str, Any], i: int, context: Context) -> None:
    path = f"http[{i}]"
    origin = manifest.at(path)
    builder = context.builder
    match = rule.get("match")
    match = match if isinstance(match, Mapping) else {}
    id_ = f"{manifest.id}_{rule.get('name') or i}"
    paths = [str(p) for p in objects_of(match.get("paths"), "paths")]
    spec: dict[str, Any] = {"id": id_, "name": id_, "uris": paths}
    for key, target in (("methods", "methods"), ("remoteAddrs", "remote_addrs"), ("hosts", "hosts")):
        if match.get(key):
            spec[target] = match[key]
    if match.get("filter_func"):
        spec["filter_func"] = match["filter_func"]
    if rule.get("priority"):
        spec["priority"] = rule["priority"]
    variables = _exprs(match.get("exprs"), manifest, f"{path}.match.exprs", builder)
    if variables:
        spec["vars"] = variables
    if rule.get("websocket") is True:
        spec["enable_websocket"] = True
    if isinstance(rule.get("timeout"), Mapping):
        spec["timeout"] = {k: seconds(v) for k, v in rule["timeout"].items()}
    plugins = _plugins(rule.get("plugins"), manifest, f"{path}.plugins", context)
    auth = rule.get("authentication")
    if isinstance(auth, Mapping) and auth.get("enable") is True:
        plugins |= _authentication(auth, manifest, f"{path}.authentication", builder)
    config = rule.get("plugin_config_name") or rule.get("pluginConfigName")
    if config:
        space = rule.get("plugin_config_namespace") or manifest.namespace
        spec["plugin_config_id"] = f"{space}_{config}"
    _attach(spec, plugins, _backends(rule, manifest, path, context))
    if "upstream" not in spec:
        builder.error(origin, f"rule {id_} names no backend", "add backends or upstreams")
    if plugins:
        spec["plugins"] = plugins
    builder.add(Kind.ROUTE, id_, spec, origin)


def _attach(
    spec: dict[str, Any], plugins: dict[str, Any], backends: list[tuple[dict[str, Any], int]]
) -> None:
    """Put the first backend on the route and the others, by weight, into traffic-split."""
    if not backends:
        return
    (first, weight), *others = backends
    spec["upstream"] = first
    if others:
        weighted: list[dict[str, Any]] = [{"weight": weight}]
        weighted += [{"upstream": upstream, "weight": share} for upstream, share in others]
        plugins.setdefault("traffic-split", {"rules": [{"weighted_upstreams": weighted}]})


def _backends(
    rule: Mapping[str, Any], manifest: Manifest, path: str, context: Context
) -> list[tuple[dict[str, Any], int]]:
    found: list[tuple[dict[str, Any], int]] = []
    listed = objects_of(rule.get("backends"), "backends")
    if not listed and isinstance(rule.get("backend"), Mapping):
        listed = [rule["backend"]]
    for i, backend in enumerate(listed):
        if not isinstance(backend, Mapping) or not backend.get("serviceName"):
            context.builder.error(manifest.at(f"{path}.backends[{i}]"), "a backend needs serviceName")
            continue
        key = (manifest.namespace, str(backend["serviceName"]))
        settings = context.upstreams.get(key)
        context.used.add(key)
        weight = backend.get("weight", _DEFAULT_WEIGHT)
        upstream = backend_upstream(backend, manifest, settings, context.builder)
        found.append((upstream, weight if isinstance(weight, int) else _DEFAULT_WEIGHT))
    for i, named in enumerate(objects_of(rule.get("upstreams"), "upstreams")):
        where = manifest.at(f"{path}.upstreams[{i}]")
        name = named.get("name") if isinstance(named, Mapping) else None
        settings = context.upstreams.get((manifest.namespace, str(name)))
        if not isinstance(named, Mapping) or settings is None:
            context.builder.error(
                where, f"ApisixUpstream {name} is in none of these files", "add its file; it holds the nodes"
            )
            continue
        context.used.add((manifest.namespace, str(name)))
        weight = named.get("weight", _DEFAULT_WEIGHT)
        upstream = external_upstream(settings, context.builder)
        found.append((upstream, weight if isinstance(weight, int) else _DEFAULT_WEIGHT))
    return found


def _exprs(value: object, manifest: Manifest, path: str, builder: Builder) -> list[Any]:
    variables: list[Any] = []
    for i, item in enumerate(objects_of(value, path)):
        where = manifest.at(f"{path}[{i}]")
        subject = item.get("subject") if isinstance(item, Mapping) else None
        operator = _OPERATORS.get(str(item.get("op"))) if isinstance(item, Mapping) else None
        name = _variable(subject) if isinstance(subject, Mapping) else None
        if not isinstance(item, Mapping) or operator is None or name is None:
            builder.error(
                where, "this condition cannot be read; the controller refuses the route", "correct it"
            )
            variables.append(
                [f"unreadable_condition_{i}", "==", "never"]
            )  # never match more than APISIX would
            continue
        operand = item.get("set") if "in" in operator else item.get("value")
        variables.append([name, *operator, operand])
    return variables


def _variable(subject: Mapping[str, Any]) -> str | None:
    name = str(subject.get("name") or "")
    scope = str(subject.get("scope"))
    if scope == "Header":
        return "http_" + name.lower().replace("-", "_")
    prefixes = {"Query": "arg_", "Cookie": "cookie_", "Variable": "", "Body": "post_arg."}
    if scope == "Path":
        return "uri"
    return prefixes[scope] + name if scope in prefixes else None


def _authentication(
    auth: Mapping[str, Any], manifest: Manifest, path: str, builder: Builder
) -> dict[str, Any]:
    kind = str(auth.get("type"))
    known = set(_AUTH.values()) | {"openid-connect"}
    plugin = kind if kind in known else "basic-auth"
    if plugin != kind:
        builder.warn(
            manifest.at(f"{path}.type"),
            f"authentication type {kind!r} is unknown; the controller falls back to basic-auth",
            f"write one of {', '.join(sorted(known))}",
        )
    for key, name in _AUTH.items():
        if name == plugin and isinstance(auth.get(key), Mapping):
            return {plugin: {k: v for k, v in auth[key].items() if v not in ("", None)}}
    return {plugin: {}}


def _stream(manifest: Manifest, rule: Mapping[str, Any], i: int, context: Context) -> None:
    id_ = f"{manifest.id}_{rule.get('name') or i}"
    match = rule.get("match")
    match = match if isinstance(match, Mapping) else {}
    spec: dict[str, Any] = {"id": id_}
    if match.get("ingressPort") is not None:
        spec["server_port"] = match["ingressPort"]
    if match.get("host"):
        spec["sni"] = match["host"]
    backend = rule.get("backend")
    if isinstance(backend, Mapping) and backend.get("serviceName"):
        key = (manifest.namespace, str(backend["serviceName"]))
        context.used.add(key)
        upstream = backend_upstream(backend, manifest, context.upstreams.get(key), context.builder)
        upstream["scheme"] = "udp" if str(rule.get("protocol")).upper() == "UDP" else "tcp"
        spec["upstream"] = upstream
    context.builder.add(Kind.STREAM_ROUTE, id_, spec, manifest.at(f"stream[{i}]"))


def _secret(reference: object, manifest: Manifest, key: str) -> str:
    ref = reference if isinstance(reference, Mapping) else {}
    return f"$secret://kubernetes/{ref.get('namespace') or manifest.namespace}/{ref.get('name')}/{key}"


def _tls(manifest: Manifest, context: Context) -> None:
    spec = manifest.spec
    out: dict[str, Any] = {
        "id": manifest.id,
        "snis": list(objects_of(spec.get("hosts"), "hosts")),
        "cert": _secret(spec.get("secret"), manifest, "tls.crt"),
        "key": _secret(spec.get("secret"), manifest, "tls.key"),
    }
    client = spec.get("client")
    if isinstance(client, Mapping):
        out["client"] = {"ca": _secret(client.get("caSecret"), manifest, "ca.crt")}
        for key in ("depth", "skip_mtls_uri_regex"):
            if key in client:
                out["client"][key] = client[key]
    context.builder.add(Kind.SSL, manifest.id, out, manifest.origin)


def _consumer(manifest: Manifest, context: Context) -> None:
    # The controller replaces characters that a consumer's name may not have.
    name = re.sub(r"[^a-zA-Z0-9_]", "_", manifest.id)
    plugins: dict[str, Any] = {}
    parameters = manifest.spec.get("authParameter")
    for key, value in parameters.items() if isinstance(parameters, Mapping) else ():
        plugin = _AUTH.get(str(key))
        if plugin is None or not isinstance(value, Mapping):
            context.builder.error(manifest.at(f"authParameter.{key}"), f"{key} is no known authentication")
            continue
        if isinstance(value.get("value"), Mapping):
            plugins[plugin] = dict(value["value"])
        else:
            plugins[plugin] = {"_secret_ref": _secret(value.get("secretRef"), manifest, "*")}
    spec = {"username": name, "plugins": plugins}
    context.builder.add(Kind.CONSUMER, name, spec, manifest.origin)
