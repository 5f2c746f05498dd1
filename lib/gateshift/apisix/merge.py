"""What a route does after APISIX has merged its service and plugin config into it.

Follows apisix/plugin.lua (merge_service_route) and apisix/plugin_config.lua: plugins are replaced whole, by
name, route over plugin config over service; an upstream of the route replaces the service's. Global rules
and consumers are not merged here: the first run in addition, the second only after authentication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.apisix.model import Configuration, Finding, Kind, Origin, Resource, Severity

__all__ = ["EffectiveRoute", "UpstreamRef", "effective", "resolve_upstream"]


@dataclass(frozen=True, slots=True)
class UpstreamRef:
    """An upstream and where it is written: inline in ``owner``, or a resource of its own."""

    spec: Mapping[str, Any]
    owner: Resource
    inline: bool

    @property
    def origin(self) -> Origin:
        """Where the upstream is written."""
        own = self.owner.origin
        if not self.inline:
            return own
        return Origin(own.source, f"{own.path}.upstream" if own.path else "upstream")


@dataclass(frozen=True, slots=True)
class EffectiveRoute:
    """A route with everything it inherits.

    ``plugins`` are those that run; ``disabled`` those switched off by ``_meta.disable``. ``plugin_owner``
    says which resource each came from. ``upstream`` is None when there is none (APISIX answers 503 unless a
    plugin ends the request).
    """

    route: Resource
    service: Resource | None
    plugin_config: Resource | None
    plugins: Mapping[str, Any]
    disabled: Mapping[str, Any]
    plugin_owner: Mapping[str, Resource]
    upstream: UpstreamRef | None
    hosts: tuple[str, ...]
    paths: tuple[str, ...]
    timeout: Mapping[str, Any] | None
    enable_websocket: bool
    findings: tuple[Finding, ...] = field(default=())


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def resolve_upstream(
    configuration: Configuration, owner: Resource
) -> tuple[UpstreamRef | None, tuple[Finding, ...]]:
    """Return the upstream *owner* itself names; ``upstream_id`` wins over an inline one."""
    named = owner.spec.get("upstream_id")
    if named is not None:
        resource = configuration.get(Kind.UPSTREAM, named)
        if resource is not None:
            return UpstreamRef(resource.spec, resource, False), ()
        message = f"{owner.kind.value} {owner.id} names upstream {named}, which is not in the configuration"
        return None, (Finding(Severity.ERROR, owner.origin, message, "add the upstream or its file"),)
    inline = owner.spec.get("upstream")
    if isinstance(inline, Mapping):
        return UpstreamRef(inline, owner, True), ()
    return None, ()


def _missing(owner: Resource, kind: Kind, id_: object) -> Finding:
    message = f"route {owner.id} names {kind.value} {id_}, which is not in the configuration"
    return Finding(Severity.ERROR, owner.origin, message, f"add it under {kind.value}, or its file")


def _layer(resource: Resource | None) -> Mapping[str, Any]:
    plugins = resource.spec.get("plugins") if resource else None
    return plugins if isinstance(plugins, Mapping) else {}


def _is_disabled(conf: object) -> bool:
    meta = conf.get("_meta") if isinstance(conf, Mapping) else None
    return isinstance(meta, Mapping) and meta.get("disable") is True


def effective(configuration: Configuration, route: Resource) -> EffectiveRoute:
    """Merge *route* with its service and plugin config."""
    findings: list[Finding] = []
    layers: dict[Kind, Resource | None] = {}
    for kind, key in ((Kind.SERVICE, "service_id"), (Kind.PLUGIN_CONFIG, "plugin_config_id")):
        named = route.spec.get(key)
        layers[kind] = configuration.get(kind, named) if named is not None else None
        if named is not None and layers[kind] is None:
            findings.append(_missing(route, kind, named))
    service, plugin_config = layers[Kind.SERVICE], layers[Kind.PLUGIN_CONFIG]
    merged: dict[str, Any] = {}
    owners: dict[str, Resource] = {}
    for resource in (service, plugin_config, route):
        for name, conf in _layer(resource).items():
            merged[name] = conf
            if resource is not None:
                owners[name] = resource
    disabled = {name: conf for name, conf in merged.items() if _is_disabled(conf)}
    upstream, found = resolve_upstream(configuration, route)
    findings.extend(found)
    if upstream is None and not found and service is not None:
        upstream, found = resolve_upstream(configuration, service)
        findings.extend(found)
    spec = route.spec
    inherited = service.spec if service else {}
    hosts = _texts(spec["hosts"]) if spec.get("hosts") is not None else _texts(spec.get("host"))
    timeout = spec.get("timeout") or inherited.get("timeout")
    websocket = spec.get("enable_websocket")
    if websocket is None:
        websocket = inherited.get("enable_websocket")
    return EffectiveRoute(
        route=route,
        service=service,
        plugin_config=plugin_config,
        plugins={name: conf for name, conf in merged.items() if name not in disabled},
        disabled=disabled,
        plugin_owner=owners,
        upstream=upstream,
        hosts=hosts or _texts(inherited.get("hosts")),
        paths=_texts(spec.get("uris")) or _texts(spec.get("uri")),
        timeout=timeout if isinstance(timeout, Mapping) else None,
        enable_websocket=websocket is True,
        findings=tuple(findings),
    )
