"""What gateshift itself puts into APISIX to move traffic, so that it is never taken for the source.

A shift by traffic-split lives where the configuration lives. Read as part of it in mid-migration, it would be
translated: the new gateway would send a share of its requests to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gateshift.apisix.model import Configuration, Finding, Kind, Resource, Severity

__all__ = ["PLUGIN", "UPSTREAM", "is_ours", "without_own_shift"]

PLUGIN = "traffic-split"
UPSTREAM = "gateshift-istio"
"""Id of the upstream that stands for the Istio gateway (gRPC has a suffix), and name of an inline one."""


def is_ours(split: object) -> bool:
    """Tell whether the options of a traffic-split are those of a shift, by the upstream that they name."""
    rules = split.get("rules") if isinstance(split, Mapping) else None
    return any(
        isinstance(one, Mapping) and (_named(one.get("upstream_id")) or _named(_name_of(one.get("upstream"))))
        for rule in (rules if isinstance(rules, list | tuple) else ())
        if isinstance(rule, Mapping)
        for one in _items(rule.get("weighted_upstreams"))
    )


def _items(value: object) -> Iterator[object]:
    yield from value if isinstance(value, list | tuple) else ()


def _name_of(upstream: object) -> object:
    return upstream.get("name") if isinstance(upstream, Mapping) else None


def _named(value: object) -> bool:
    return isinstance(value, str) and (value == UPSTREAM or value.startswith(f"{UPSTREAM}-"))


def without_own_shift(configuration: Configuration) -> Configuration:
    """Return *configuration* as it is without the shift; a warning says on which routes there is one."""
    routes = configuration.of(Kind.ROUTE)
    plain = {id_: _plain(route) for id_, route in routes.items()}
    shifted = [route for id_, route in routes.items() if plain[id_] is not route]
    upstreams = {id_: one for id_, one in configuration.of(Kind.UPSTREAM).items() if not _named(id_)}
    if not shifted and len(upstreams) == len(configuration.of(Kind.UPSTREAM)):
        return configuration
    findings = configuration.findings
    if shifted:
        names = ", ".join(route.id for route in shifted[:5]) + (" …" if len(shifted) > 5 else "")
        findings += (
            Finding(
                Severity.WARNING,
                shifted[0].origin,
                f"the traffic-split of a shift in progress is left out, it is no part of the source: {names}",
                "nothing to do: `gateshift status` says where the shift stands",
            ),
        )
    kept = {**configuration.resources, Kind.ROUTE: plain, Kind.UPSTREAM: upstreams}
    return replace(
        configuration, resources={kind: one for kind, one in kept.items() if one}, findings=findings
    )


def _plain(route: Resource) -> Resource:
    plugins = route.spec.get("plugins")
    if not isinstance(plugins, Mapping) or not is_ours(plugins.get(PLUGIN)):
        return route
    rest: dict[str, Any] = {name: options for name, options in plugins.items() if name != PLUGIN}
    spec = {key: value for key, value in route.spec.items() if key != "plugins"}
    return replace(route, spec={**spec, "plugins": rest} if rest else spec)
