"""Limits that all gateway pods count together: Envoy's rate limit filter and a rate limit service.

Asked for by ``policy: redis`` in APISIX and ``translate.rate_limit_service`` in params. What the service has
to know (envoyproxy/ratelimit's format) is emitted as a ConfigMap beside the filter.
"""

from __future__ import annotations

from typing import Any

import yaml

from gateshift.istio.builders import build
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.envoy import cluster_of
from gateshift.translate.plugins.registry import Use
from gateshift.translate.upstream_policy import duration

__all__ = ["DOMAIN", "ask_service", "entry", "wanted"]

DOMAIN = "gateshift"
_TYPE = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit"
_UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


def wanted(use: Use) -> bool:
    """Tell whether this limit is counted together and a service is named for it."""
    shared = str(use.config.get("policy", "local")).startswith("redis")
    return shared and bool(use.job.params.rate_limit_service)


def _rate(use: Use, count: int, seconds: float) -> dict[str, Any]:
    if seconds in _UNITS:
        return {"unit": _UNITS[int(seconds)], "requests_per_unit": count}
    unit = max((one for one in _UNITS if one <= seconds), default=1)
    scaled = max(1, round(count * unit / seconds))
    note = f"the service knows no window of {seconds:g} s: {scaled} a {_UNITS[unit]}"
    use.approximate("time_window", note=note)
    return {"unit": _UNITS[unit], "requests_per_unit": scaled}


def entry(action: dict[str, Any]) -> dict[str, str]:
    """Return the descriptor entry that a rate limit action gives; without a value any value is meant."""
    if "remote_address" in action:
        return {"key": "remote_address"}
    if "header_value_match" in action:
        rule = action["header_value_match"]
        return {"key": rule["descriptor_key"], "value": rule["descriptor_value"]}
    return {"key": action["request_headers"]["descriptor_key"]}


def ask_service(
    use: Use, status: int, clients: list[list[dict[str, Any]]], count: int, seconds: float
) -> None:
    """Ask the service about *count* requests a window of *seconds* s for each client that *clients* tell."""
    job, draft = use.job, use.draft
    host, _, port = str(job.params.rate_limit_service).rpartition(":")
    deny = not use.config.get("allow_degradation", False)
    key = f"{status}.{'deny' if deny else 'pass'}"
    name = f"gateshift.rate_limit.{key}"
    stages = [one for one in job.filters if one.startswith("gateshift.rate_limit.")]
    stage = stages.index(name) if name in stages else len(stages)
    base = {
        "@type": _TYPE,
        "domain": DOMAIN,
        "stage": stage,
        "failure_mode_deny": deny,
        "rate_limited_status": {"code": status},
        "rate_limit_service": {
            "grpc_service": {
                "envoy_grpc": {
                    "cluster_name": cluster_of(use, host, int(port), tls=False, grpc=True),
                    "authority": host,
                },
                "timeout": duration(float(use.config.get("redis_timeout", 1000)) / 1000),
            },
            "transport_api_version": "V3",
        },
    }
    job.use_filter(HttpFilter(name, "rate-limit", use.priority, base))
    value = f"{draft.label}.{use.name}"
    first = {"generic_key": {"descriptor_key": "route", "descriptor_value": value}}
    known = draft.patches.get("rate-limit", {"route": {"rate_limits": []}})
    limits = [{"stage": stage, "actions": [first, *actions]} for actions in clients or [[]]]
    draft.patches["rate-limit"] = {"route": {"rate_limits": [*known["route"]["rate_limits"], *limits]}}
    rate = {"rate_limit": _rate(use, count, seconds)}
    rule: dict[str, Any] = {"key": "route", "value": value}
    for actions in clients:
        leaf: dict[str, Any] = rate
        for action in reversed(actions):
            leaf = {"descriptors": [{**entry(action), **leaf}]}
        rule["descriptors"] = [*rule.get("descriptors", ()), *leaf["descriptors"]]
    job.rate_limits[value] = rule if clients else {**rule, **rate}
    _write_settings(use)


def _write_settings(use: Use) -> None:
    """Emit what the service has to know, anew with each limit."""
    job = use.job
    job.source("rate-limit", use.draft.resource)
    limits = [job.rate_limits[key] for key in sorted(job.rate_limits)]
    text = yaml.safe_dump({"domain": DOMAIN, "descriptors": limits}, sort_keys=False)
    others = [one for one in job.extra.get("envoy-filter.yaml", []) if one["kind"] != "ConfigMap"]
    made = build(
        job.version,
        "ConfigMap",
        "gateshift-rate-limits",
        job.target.gateway_namespace,
        {"config.yaml": text},
        job.sources["rate-limit"],
    )
    job.extra["envoy-filter.yaml"] = [*others, made]
