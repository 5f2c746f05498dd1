"""Traps in EnvoyFilters, telemetry, and how Istio itself is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.lint_rules import World, check, providers, trap
from gateshift.diagnose.model import Cause, Level, mappings_in

__all__ = ["metrics_selector"]

_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO

_NEVER = ("api_key_auth", "custom_response", "geoip", "file_system_buffer", "uri_template", "generic_proxy")
_SINCE = {
    "filters.http.basic_auth": (1, 21),
    "json_to_metadata": (1, 21),
    "credential_injector": (1, 22),
    "header_mutation": (1, 19),
    "set_filter_state": (1, 20),
    "peak_ewma": (1, 29),
    "dynamic_modules": (1, 31),
}


@check("EnvoyFilter")
def _filter(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    extensions = _extensions(spec)
    space = obj["metadata"].get("namespace", "default")
    patches = spec.get("configPatches") or []
    for patch in patches:
        match = patch.get("match") or {}
        where = f"{title_of(obj)}, applyTo {patch.get('applyTo')}"
        if match.get("context", "ANY") == "ANY":
            yield trap(51, _I, "context ANY also patches sidecars", where, "set context: GATEWAY")
        vhost = (match.get("routeConfiguration") or {}).get("vhost") or {}
        if vhost.get("name") and patch.get("applyTo") in {"HTTP_ROUTE", "VIRTUAL_HOST"}:
            way = "omit vhost" if world.before(1, 25) else "use vhost.domainName"
            yield trap(
                52,
                _W,
                f"virtual hosts with the same routes are merged: {vhost['name']} may not exist in Envoy",
                where,
                way,
            )
    if space == world.home and not spec.get("workloadSelector"):
        yield trap(
            51,
            _W,
            "in the root namespace and without workloadSelector it patches every proxy",
            obj,
            "set workloadSelector",
        )
    for extension in _NEVER:
        if any(f".{extension}." in name for name in extensions):
            yield trap(
                53,
                _E,
                f"istio-proxy has no extension {extension}: the gateway rejects the configuration",
                obj,
                "use what istio-proxy contains",
            )
    for extension, since in _SINCE.items():
        if world.before(*since) and any(f".{extension}." in name for name in extensions):
            yield trap(
                53,
                _E,
                f"{extension} is in istio-proxy from {since[0]}.{since[1]}",
                obj,
                "use another way, or upgrade",
            )
    yield from _limits(obj, patches, world)
    yield from _lua(obj, patches)
    if len(patches) > 8:
        yield trap(
            56,
            _I,
            f"{len(patches)} patches in one EnvoyFilter",
            obj,
            "keep one for each concern, with a priority; test at each upgrade",
        )


def _extensions(spec: object) -> set[str]:
    """The names and types of Envoy extensions in a patch, dotted: not what Lua or a header speaks of."""
    return {
        f".{one[key].removeprefix('type.googleapis.com/')}."
        for one in mappings_in(spec)
        for key in ("@type", "type_url", "name")
        if isinstance(one.get(key), str) and "envoy." in one[key]
    }


def _limits(obj: Object, patches: list[Any], world: World) -> Iterator[Cause]:
    for config in mappings_in(patches):
        # The bucket of a descriptor has "entries"; its filter has the percentages, unless it limits
        # connections: that one has none.
        if "token_bucket" not in config or "entries" in config or ".network." in str(config.get("@type")):
            continue
        absent = [f for f in ("filter_enabled", "filter_enforced") if f not in config]
        if absent:
            yield trap(
                54,
                _E,
                f"the rate limit has no {' and no '.join(absent)}: 0 % by default",
                obj,
                "set both to 100 %",
            )
        code = int((config.get("status") or {}).get("code", 429) or 429)
        if code < 400:
            yield trap(54, _W, f"status {code} becomes 429", obj, "use a status of 400 or above")
        wildcard = any(
            "value" not in e for d in config.get("descriptors") or [] for e in d.get("entries") or []
        )
        if wildcard and world.before(1, 26):
            yield trap(
                54,
                _E,
                "a bucket for each value is of Istio 1.26",
                obj,
                "list the values, or use a rate limit service",
            )
        elif wildcard and "max_dynamic_descriptors" not in config:
            yield trap(
                54, _W, "only 20 values have a bucket at a time (max_dynamic_descriptors)", obj, "raise it"
            )


def _lua(obj: Object, patches: list[Any]) -> Iterator[Cause]:
    for config in mappings_in(patches):
        source = (
            config.get("inline_code")
            or config.get("inlineCode")
            or (config.get("default_source_code") or {}).get("inline_string")
        )
        if not isinstance(source, str):
            continue
        if re.search(r"\bngx\.|\bcore\.(request|response|log)\b|require\W{1,3}(resty|apisix)\b", source):
            yield trap(
                55,
                _E,
                "this Lua is APISIX's: Envoy has no ngx API and none of its modules",
                obj,
                "rewrite it with request_handle",
            )
        elif re.search(r"\brequire\s*[(\"']", source):
            yield trap(
                55,
                _I,
                "this Lua needs a module: it must lie in the gateway's image",
                obj,
                "or write it inline",
            )


@check("Telemetry")
def _telemetry(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    for tracing in spec.get("tracing") or []:
        if "randomSamplingPercentage" not in tracing and not tracing.get("disableSpanReporting"):
            yield trap(
                59, _I, "1 % of the requests are traced by default", obj, "set randomSamplingPercentage"
            )
        known = providers(world)
        for provider in tracing.get("providers") or []:
            if known is not None and provider.get("name") not in known:
                yield trap(
                    59,
                    _E,
                    f"tracing provider {provider.get('name')} is not in the mesh's extensionProviders",
                    obj,
                    "add it to meshConfig",
                )
    if not spec.get("selector") and not spec.get("targetRefs"):
        others = [
            t
            for t in world.of("Telemetry")
            if t["metadata"].get("namespace") == obj["metadata"].get("namespace")
            and not (t.get("spec") or {}).get("selector")
            and title_of(t) > title_of(obj)
        ]
        for other in others:
            yield trap(
                58,
                _W,
                "two Telemetry objects without selector in one namespace: only the older one counts",
                f"{title_of(obj)} and {title_of(other)}",
                "join them",
            )


@check("ConfigMap")
def _mesh(obj: Object, world: World) -> Iterator[Cause]:
    try:
        mesh = yaml.safe_load(str((obj.get("data") or {}).get("mesh", ""))) or {}
    except yaml.YAMLError:
        return
    if not isinstance(mesh, dict) or not mesh:
        return
    logs = any((t.get("spec") or {}).get("accessLogging") for t in world.of("Telemetry"))
    if not mesh.get("accessLogFile") and not logs:
        yield trap(
            58,
            _W,
            "the access log is off: causes of 503 cannot be read",
            obj,
            "set meshConfig.accessLogFile: /dev/stdout",
        )
    proxy = mesh.get("defaultConfig") or {}
    drain = str(proxy.get("terminationDrainDuration", ""))
    own = any(
        e.get("name") == "TERMINATION_DRAIN_DURATION_SECONDS"
        for d in world.of("Deployment")
        if d["metadata"].get("namespace") == world.home
        for c in (((d.get("spec") or {}).get("template") or {}).get("spec") or {}).get("containers") or []
        for e in c.get("env") or []
    )
    if not own and drain in {"", "5s"}:
        yield trap(
            63,
            _W,
            "a gateway pod drains 5 s: shorter than a load balancer deregisters it",
            obj,
            "set terminationDrainDuration: 30s",
        )
    if _sidecars(world) and not proxy.get("holdApplicationUntilProxyStarts") and world.before(1, 27):
        yield trap(
            62,
            _I,
            "applications may start before their sidecar",
            obj,
            "set holdApplicationUntilProxyStarts: true",
        )


def _sidecars(world: World) -> bool:
    return any(
        (n["metadata"].get("labels") or {}).get("istio-injection") == "enabled" for n in world.of("Namespace")
    )


@check("Namespace")
def _namespace(obj: Object, world: World) -> Iterator[Cause]:
    del world
    labels = obj["metadata"].get("labels") or {}
    if "istio-injection" in labels and "istio.io/rev" in labels:
        yield trap(
            61, _W, "istio-injection and istio.io/rev together: istio-injection wins", obj, "remove one"
        )


@check("HorizontalPodAutoscaler")
def _scaling(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if obj["metadata"].get("namespace") != world.home or "gateway" not in name_of(obj):
        return
    if int(spec.get("minReplicas", 1)) < 2:
        yield trap(
            63, _W, "one gateway pod is enough for the autoscaler", obj, "set minReplicas to 2 or more"
        )
    if not any("gateway" in name_of(b) for b in world.of("PodDisruptionBudget")):
        yield trap(63, _I, "no PodDisruptionBudget guards the gateway", obj, "add one")


@check("Deployment")
def _old_gateway(obj: Object, world: World) -> Iterator[Cause]:
    del world
    labels = obj["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/name") == "apisix" and (obj.get("spec") or {}).get("replicas") == 0:
        yield trap(69, _W, "APISIX is scaled to 0: there is no way back", obj, "keep it until the clean-up")


@check("IstioOperator")
def _operator(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    profile = spec.get("profile", "default")
    if profile == "production":
        yield trap(1, _E, "there is no profile production", obj, "use default and set resources yourself")
    elif profile == "demo":
        yield trap(1, _W, "profile demo traces everything and has tiny resources", obj, "use default")
    elif profile in {"minimal", "remote", "ambient", "empty"}:
        yield trap(1, _I, f"profile {profile} installs no ingress gateway", obj, "install one besides")
    elif profile == "external" and not world.before(1, 22):
        yield trap(1, _E, "profile external is gone since Istio 1.22", obj, "use remote")
    if obj["metadata"].get("namespace") and "status" in obj and not world.before(1, 24):
        yield trap(
            2,
            _E,
            "the operator in the cluster is gone since Istio 1.24",
            obj,
            "use istioctl install -f with this file",
        )


def metrics_selector(selector: str) -> Iterator[Cause]:
    """Judge the params' own selector of Istio's metrics."""
    if 'reporter="destination"' in selector.replace(" ", ""):
        yield trap(
            57,
            _W,
            'reporter="destination" is empty where backends have no sidecar',
            f"metrics.istio_selector: {selector}",
            'use reporter="source"',
        )
