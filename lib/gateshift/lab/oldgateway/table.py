"""The configuration in force, compiled for serving: routes with plugin chains, consumers, global rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.merge import effective
from gateshift.apisix.model import Configuration, Kind
from gateshift.apisix.routing import Request, RouteTable
from gateshift.errors import ConfigurationError
from gateshift.lab.oldgateway.auth import Consumers
from gateshift.lab.oldgateway.exchange import Exchange
from gateshift.lab.oldgateway.plugins import KNOWN, PRIORITY

__all__ = ["Chain", "Route", "Table"]

Chain = tuple[tuple[str, Mapping[str, Any]], ...]
"""Plugins with their configurations, by falling priority."""


def _chain(plugins: Mapping[str, Any]) -> Chain:
    live = {
        name: conf or {}
        for name, conf in plugins.items()
        if not ((conf or {}).get("_meta") or {}).get("disable")
    }
    return tuple(sorted(live.items(), key=lambda item: -PRIORITY[item[0]]))


@dataclass(frozen=True, slots=True)
class Route:
    """One route, merged and ready."""

    id: str
    service_id: str
    hosts: tuple[str, ...]
    paths: tuple[str, ...]
    upstream: Mapping[str, Any] | None
    timeout: Mapping[str, Any]
    websocket: bool
    chain: Chain


class Table:
    """Everything that a change of the configuration makes anew."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        _refuse_unknown(configuration)
        self.consumers = Consumers.build(configuration)
        self._routing = RouteTable(configuration)
        self._routes: dict[str, Route] = {}
        for id_, resource in configuration.of(Kind.ROUTE).items():
            merged = effective(configuration, resource)
            upstream = merged.upstream.spec if merged.upstream else None
            self._routes[id_] = Route(
                id=id_,
                service_id=str(resource.spec.get("service_id", "")),
                hosts=merged.hosts,
                paths=merged.paths,
                upstream=upstream,
                timeout={**((upstream or {}).get("timeout") or {}), **(merged.timeout or {})},
                websocket=merged.enable_websocket,
                chain=_chain(merged.plugins),
            )
        self.global_chains = tuple(
            _chain(one.spec.get("plugins") or {}) for one in configuration.of(Kind.GLOBAL_RULE).values()
        )
        self.counts_metrics = any(
            name == "prometheus"
            for chain in itertools.chain(self.global_chains, (r.chain for r in self._routes.values()))
            for name, _ in chain
        )
        self._with_consumer: dict[tuple[str, str], Chain] = {}

    def find(self, exchange: Exchange) -> Route | None:
        """Choose the route, and note on the exchange what APISIX's metrics call matched_uri and _host."""
        args = exchange.args
        winner = self._routing.match(
            Request(
                method=exchange.method,
                host=exchange.host,
                path=f"{exchange.path}?{args}" if args else exchange.path,
                headers=exchange.headers,
                remote_addr=exchange.remote,
                scheme=exchange.scheme,
            )
        ).winner
        if winner is None:
            return None
        route = self._routes[winner]
        exchange.route_id = route.id
        exchange.service_id = route.service_id
        exchange.matched_uri = _matched_path(route.paths, exchange.path)
        exchange.matched_host = _matched_host(route.hosts, exchange.host)
        return route

    def merged(self, route: Route, exchange: Exchange, plugins: Mapping[str, Any]) -> Chain:
        """The route's chain with a recognized consumer's *plugins* over it."""
        key = (route.id, exchange.consumer)
        found = self._with_consumer.get(key)
        if found is None:
            found = self._with_consumer[key] = _chain({**dict(route.chain), **plugins})
        return found

    def upstream(self, spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Follow an ``upstream_id`` (of a traffic-split entry) to its upstream."""
        if "upstream_id" not in spec:
            return spec
        found = self.configuration.get(Kind.UPSTREAM, spec["upstream_id"])
        return found.spec if found else None


def _refuse_unknown(configuration: Configuration) -> None:
    for resource in configuration:
        if resource.kind in {Kind.PLUGIN_METADATA, Kind.SECRET}:
            continue
        unknown = sorted(set(resource.spec.get("plugins") or {}) - KNOWN)
        if unknown:
            raise ConfigurationError(
                f"{resource.origin}: the lab's old gateway has no plugin {unknown[0]}",
                hint=f"it knows {', '.join(sorted(KNOWN))}; translate such a configuration without the lab",
            )


def _matched_path(paths: Iterable[str], path: str) -> str:
    best = ""
    for one in paths:
        if one == path:
            return one
        prefix, star, _ = one.partition("*")
        if star and path.startswith(prefix) and len(one) > len(best):
            best = one
    return best


def _matched_host(hosts: Iterable[str], host: str) -> str:
    best = ""
    for one in hosts:
        if one == host:
            return one
        if one.startswith("*") and host.endswith(one[1:]) and len(one) > len(best):
            best = one
    return best
