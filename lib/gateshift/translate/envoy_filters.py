"""The gateway-wide EnvoyFilters: HTTP filters that do nothing until a route switches them on, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.translate.emit import GUARD, Emission
from gateshift.translate.gateway_api import retry_patches
from gateshift.translate.job import Draft, HttpFilter, Job
from gateshift.translate.model import Fidelity

__all__ = ["envoy_filters"]

_JWT = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3"
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _insertion(one: HttpFilter) -> dict[str, Any]:
    value: dict[str, Any] = {"name": one.name}
    if one.disabled:
        value["disabled"] = True
    value["typed_config"] = dict(one.config)
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": "GATEWAY",
            "listener": {
                "filterChain": {
                    "filter": {
                        "name": "envoy.filters.network.http_connection_manager",
                        "subFilter": {"name": "envoy.filters.http.router"},
                    }
                }
            },
        },
        "patch": {"operation": "INSERT_BEFORE", "value": value},
    }


def envoy_filters(job: Job, drafts: Sequence[Draft], emission: Emission) -> list[dict[str, Any]]:
    """Return one EnvoyFilter a concern: the filter, off for everybody, and on for its routes by name."""
    live = [d for d in drafts if not d.blocked and emission.names.get(d.id)]
    _tokens_only_where_wanted(job, live)
    by_concern: dict[str, list[Any]] = {}
    for one in sorted(job.filters.values(), key=lambda f: (-f.priority, f.name)):
        by_concern.setdefault(one.concern, []).append(one)
    patched = {name for draft in live for name in draft.patches}
    for concern in sorted(patched | {one.name for draft in live for one in draft.guards if one.patch}):
        by_concern.setdefault(concern, [])
    found = []
    for concern, filters in by_concern.items():
        patches: list[dict[str, Any]] = []
        sources: set[str] = set()
        for one in filters:
            users = [d for d in live if one.name in d.filters]
            if not users and any(concern in d.patches for d in live):
                patches.append(_insertion(one))  # the routes' patches speak to it
            if not users:
                continue
            patches.append(_insertion(one))
            for draft in users:
                sources.add(draft.resource)
                if draft.filters[one.name]:
                    value = {"typed_per_filter_config": {one.name: dict(draft.filters[one.name])}}
                    patches += _on_route(emission.names[draft.id], value)
        for draft in live:
            if concern in draft.patches:
                sources.add(draft.resource)
                patches += _on_route(emission.names[draft.id], draft.patches[concern])
            on_guards = _on_guards(draft, concern, emission.guards.get(draft.id, ()))
            sources |= {draft.resource} if on_guards else set()
            patches += on_guards
        # Lower numbers are applied first, so filters stand in APISIX's order before the router.
        priority = -max((one.priority for one in filters), default=0)
        found += job.envoy_filters(("gateshift", concern), patches, sources, priority=priority)
    return found + _retries(job, live, emission) + _slashes(job, live)


def _on_guards(draft: Draft, concern: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is merged into the rules that stand above the route's own."""
    return [
        patch
        for guard in draft.guards
        if guard.patch and guard.name == concern
        for patch in _on_route([one for one in names if one.endswith(f".{GUARD}{guard.name}")], guard.patch)
    ]


def _retries(job: Job, live: Sequence[Draft], emission: Emission) -> list[dict[str, Any]]:
    """Give routes of the Gateway API the retries of APISIX, for which its standard channel has no field."""
    patches = [p for name, patch in retry_patches(emission.retries).items() for p in _on_route([name], patch)]
    sources = {d.resource for d in live if any(emission.entries[name] == d.id for name in emission.retries)}
    return job.envoy_filters(("gateshift-retries",), patches, sources)


def _tokens_only_where_wanted(job: Job, live: Sequence[Draft]) -> None:
    """Switch the token check off on routes that did not ask for it.

    A RequestAuthentication holds for the whole gateway: it would refuse the tokens of other issuers, and
    opaque ones, on routes whose backends check their own.
    """
    if not job.jwt_rules:
        return
    off = {"@type": f"{_JWT}.PerRouteConfig", "disabled": True}
    for draft in live:
        if not any(one.checks_tokens for one in draft.policies):
            draft.patches["tokens"] = {"typed_per_filter_config": {"envoy.filters.http.jwt_authn": off}}


def _slashes(job: Job, live: Sequence[Draft]) -> list[dict[str, Any]]:
    """Read paths as nginx does where something is guarded: another spelling must not lead around a guard."""
    guarded = [d for d in live if d.policies or d.filters or d.guards]
    if not guarded:
        return []
    reading = {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    }
    match = {
        "context": "GATEWAY",
        "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}},
    }
    patch = {"operation": "MERGE", "value": {"typed_config": {"@type": _HCM, **reading}}}
    patches = [{"applyTo": "NETWORK_FILTER", "match": match, "patch": patch}]
    note = "a path with // or %2F reaches the backend as it is compared (/ once), APISIX forwards it as sent"
    for draft in guarded:
        job.mark(
            draft.route, ("uris" if "uris" in draft.route.spec else "uri",), Fidelity.APPROXIMATE, "", note
        )
    return job.envoy_filters(("gateshift-paths",), patches, {d.resource for d in guarded})


def _on_route(names: Sequence[str], value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Merge *value* into the routes that VirtualService rules of these names make."""
    return [
        {
            "applyTo": "HTTP_ROUTE",
            "match": {"context": "GATEWAY", "routeConfiguration": {"vhost": {"route": {"name": name}}}},
            "patch": {"operation": "MERGE", "value": dict(value)},
        }
        for name in sorted(names)
    ]
