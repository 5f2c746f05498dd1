"""A route with what it inherits, and where each inherited part is written.

APISIX merges whole plugins by name: the route's copy replaces the plugin_config's, which replaces the
service's; ``_meta.disable`` removes a plugin, also an inherited one. The ledger needs the owner of each
part, which a merged specification no longer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Resource

__all__ = ["Inherited", "PluginUse", "inherit"]


@dataclass(frozen=True, slots=True)
class PluginUse:
    """One plugin in force: its configuration and the resource in which it is written."""

    name: str
    config: Mapping[str, Any]
    owner: Resource

    @property
    def path(self) -> tuple[str | int, ...]:
        """Where the plugin stands inside its owner."""
        return ("plugins", self.name)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What is in force for one route. ``upstream_owner`` holds the ``upstream`` at ``upstream_path``."""

    route: Resource
    service: Resource | None
    plugin_config: Resource | None
    plugins: tuple[PluginUse, ...]
    overridden: tuple[PluginUse, ...]
    hosts: tuple[str, ...]
    hosts_owner: Resource
    upstream: Mapping[str, Any] | None
    upstream_owner: Resource | None
    upstream_path: tuple[str | int, ...] = ()
    dangling: tuple[tuple[Resource, str, str], ...] = ()
    websocket: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)


def _plugins(resource: Resource | None) -> Mapping[str, Any]:
    found = resource.spec.get("plugins") if resource else None
    return found if isinstance(found, Mapping) else {}


def _hosts(spec: Mapping[str, Any]) -> tuple[str, ...]:
    raw = spec.get("hosts")
    if isinstance(raw, list | tuple) and raw:
        return tuple(dict.fromkeys(str(one).lower() for one in raw))
    if isinstance(raw, str) and raw:
        return (raw.lower(),)
    return (str(spec["host"]).lower(),) if spec.get("host") else ()


def inherit(configuration: Configuration, route: Resource) -> Inherited:
    """Resolve services, plugin configs and upstreams of *route*."""
    dangling: list[tuple[Resource, str, str]] = []

    def follow(owner: Resource, key: str, kind: Kind) -> Resource | None:
        wanted = owner.spec.get(key)
        if wanted is None:
            return None
        found = configuration.get(kind, wanted)
        if found is None:
            dangling.append((owner, key, str(wanted)))
        return found

    service = follow(route, "service_id", Kind.SERVICE)
    plugin_config = follow(route, "plugin_config_id", Kind.PLUGIN_CONFIG)
    in_force: dict[str, PluginUse] = {}
    overridden: list[PluginUse] = []
    for owner in (service, plugin_config, route):
        for name, config in _plugins(owner).items():
            assert owner is not None  # noqa: S101 - _plugins gives nothing for None
            if name in in_force:
                overridden.append(in_force[name])
            in_force[name] = PluginUse(name, config if isinstance(config, Mapping) else {}, owner)
    hosts_owner = route
    hosts = _hosts(route.spec)
    if not hosts and service is not None:
        hosts, hosts_owner = _hosts(service.spec), service

    upstream: Mapping[str, Any] | None = None
    owner_of: Resource | None = None
    path: tuple[str | int, ...] = ()
    # A route's inline upstream replaces both forms of its service; upstream_id wins over inline.
    for holder in (route, service):
        if holder is None:
            continue
        if holder.spec.get("upstream_id") is not None:
            found = follow(holder, "upstream_id", Kind.UPSTREAM)
            if found is not None:
                upstream, owner_of, path = found.spec, found, ()
            break
        inline = holder.spec.get("upstream")
        if isinstance(inline, Mapping) and inline:
            upstream, owner_of, path = inline, holder, ("upstream",)
            break
    websocket = route.spec.get("enable_websocket")
    if websocket is None and service is not None:
        websocket = service.spec.get("enable_websocket")
    return Inherited(
        route,
        service,
        plugin_config,
        tuple(in_force.values()),
        tuple(overridden),
        hosts,
        hosts_owner,
        upstream,
        owner_of,
        path,
        tuple(dangling),
        bool(websocket),
    )
