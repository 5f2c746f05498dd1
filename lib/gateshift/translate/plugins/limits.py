"""limit-req and limit-count as Envoy's local rate limit, switched on for their routes only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gateshift.istio.versions import Feature
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.registry import Use, handles

__all__ = ["local_limit"]

_TYPE = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_ALWAYS = {"numerator": 100, "denominator": "HUNDRED"}
_MAX_CLIENTS = 10_000
"""Buckets kept a route: the least recently used is dropped beyond it (Envoy's own default is 20)."""

_STATUS = frozenset(
    (
        400,
        401,
        402,
        403,
        404,
        405,
        406,
        407,
        408,
        409,
        410,
        411,
        412,
        413,
        414,
        415,
        416,
        417,
        421,
        422,
        423,
        424,
        426,
        428,
        429,
        431,
        500,
        501,
        502,
        503,
        504,
        505,
        506,
        507,
        508,
        510,
        511,
    )
)
_EACH_GATEWAY = "counted in each gateway pod, as APISIX counts in each of its nodes: mind their numbers"


def _bucket(tokens: int, refill: int, seconds: float) -> dict[str, Any]:
    interval = f"{seconds:g}s"
    return {"max_tokens": tokens, "tokens_per_fill": refill, "fill_interval": interval}


def _client(use: Use) -> list[dict[str, Any]] | None:
    """Return the rate limit actions for the key; None when one bucket serves everybody."""
    key = str(use.config.get("key", "remote_addr")).strip()
    kind = str(use.config.get("key_type", "var"))
    if kind == "constant":
        return None
    names = re.findall(r"\w+", key) if kind == "var_combination" else [key.lstrip("$")]
    actions: list[dict[str, Any]] = []
    for name in names:
        if name in ("remote_addr", "http_x_real_ip", "http_x_forwarded_for", "realip_remote_addr"):
            actions.append({"remote_address": {}})
        elif name.startswith("http_"):
            header = name[5:].replace("_", "-")
            actions.append({"request_headers": {"header_name": header, "descriptor_key": name}})
        elif name in ("host", "uri", "request_uri", "request_method"):
            header = {"host": ":authority", "request_method": ":method"}.get(name, ":path")
            actions.append({"request_headers": {"header_name": header, "descriptor_key": name}})
        elif name in ("consumer_name",):
            actions.append(
                {"request_headers": {"header_name": "x-consumer-username", "descriptor_key": name}}
            )
        elif name == "server_addr":
            continue
        else:
            raise Inexpressible(f"clients cannot be told apart by ${name} in Envoy")
    return actions or None


def local_limit(use: Use, bucket: Mapping[str, Any], *, quota_headers: bool) -> dict[str, Any]:
    """Return the per-route configuration of the local rate limit filter."""
    status = int(use.config.get("rejected_code", 503))
    if status not in _STATUS:
        use.approximate("rejected_code", note=f"Envoy cannot reject with {status}: 429 is sent")
        status = 429
    else:
        use.exact("rejected_code", target="local rate limit status")
    actions = _client(use)
    found: dict[str, Any] = {
        "@type": _TYPE,
        "stat_prefix": use.name.replace("-", "_"),
        "status": {"code": status},
        "token_bucket": dict(bucket),
        "filter_enabled": {"default_value": dict(_ALWAYS)},
        "filter_enforced": {"default_value": dict(_ALWAYS)},
    }
    if quota_headers:
        found["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03"
    if actions is None:
        use.exact("key", "key_type", target="one bucket for all clients")
        return found
    if not use.job.has(Feature.LOCAL_LIMIT_WILDCARD):
        raise Inexpressible(
            f"Istio {use.job.version} has no local limit per client "
            f"(needs {Feature.LOCAL_LIMIT_WILDCARD.since}): one shared bucket would let one client stop all"
        )
    entries = [
        {"key": "remote_address"}
        if "remote_address" in action
        else {"key": action["request_headers"]["descriptor_key"]}
        for action in actions
    ]
    # With descriptors the default bucket must never be the tighter one.
    found["token_bucket"] = _bucket(4_000_000_000, 4_000_000_000, 1)
    found["always_consume_default_token_bucket"] = False
    found["rate_limits"] = [{"actions": actions}]
    found["descriptors"] = [{"entries": entries, "token_bucket": dict(bucket)}]
    found["max_dynamic_descriptors"] = _MAX_CLIENTS
    note = f"a request without the key is not limited; at most {_MAX_CLIENTS} clients are told apart"
    use.approximate("key", "key_type", target="local rate limit descriptors", note=note)
    return found


def _switch_on(use: Use, config: Mapping[str, Any]) -> None:
    concern = use.name
    name = f"gateshift.{use.name.replace('-', '_')}" + ("_global" if use.is_global else "")
    base = {"@type": _TYPE, "stat_prefix": use.name.replace("-", "_")}
    use.job.use_filter(HttpFilter(name, concern, use.priority, base))
    use.draft.filters[name] = config


@handles("limit-req")
def limit_req(use: Use) -> None:
    """Leaky bucket as token bucket: the same rate, but nothing is delayed."""
    config = use.config
    rate, burst = float(config["rate"]), float(config.get("burst", 0))
    if rate <= 0:
        raise ValueError("rate must be positive")
    if rate >= 1:
        refill, seconds = max(1, round(rate)), 1.0
    else:
        refill, seconds = 1, round(1 / rate, 3)
    if str(config.get("policy", "local")) != "local":
        note = "one counter in Redis becomes one a gateway pod; run a rate limit service for a common count"
        for key in config:
            if key.startswith("redis_") or key == "policy":
                use.approximate(key, note=note)
    else:
        use.ignored("policy", note="local is what is emitted")
    bucket = _bucket(max(1, math.floor(rate + burst)), refill, seconds)
    _switch_on(use, local_limit(use, bucket, quota_headers=False))
    target = "EnvoyFilter local_ratelimit"
    use.approximate("rate", target=target, note=_EACH_GATEWAY)
    use.approximate(
        "burst", target=target, note="requests above the rate are let through at once, not delayed"
    )
    use.approximate("nodelay", note="Envoy never delays")
    use.approximate("rejected_msg", note='Envoy answers "local_rate_limited"')
    use.exact("allow_degradation", note="the local limit has nothing that can fail")


@handles("limit-count")
def limit_count(use: Use) -> None:
    """Fixed window as token bucket that is refilled once a window."""
    config = use.config
    if "count" not in config or "time_window" not in config:
        raise Inexpressible("limits by `rules` or variables have no equivalent: name count and time_window")
    count, window = int(config["count"]), float(config["time_window"])
    if count <= 0 or window <= 0:
        raise ValueError("count and time_window must be positive")
    quota = bool(config.get("show_limit_quota_header", True))
    _switch_on(use, local_limit(use, _bucket(count, count, window), quota_headers=quota))
    target = "EnvoyFilter local_ratelimit"
    use.approximate("count", "time_window", target=target, note=_EACH_GATEWAY)
    if str(config.get("policy", "local")) == "local":
        use.ignored("policy", note="local is what is emitted")
    note = "one counter in Redis becomes one a gateway pod; run a rate limit service for a common count"
    for key in config:
        if key.startswith("redis_") or (
            key in ("policy", "sync_interval") and config.get("policy") != "local"
        ):
            use.approximate(key, note=note)
    use.approximate("window_type", note="the window starts with the gateway, not with the first request")
    use.approximate("rejected_msg", note='Envoy answers "local_rate_limited"')
    use.approximate("show_limit_quota_header", note="the headers are x-ratelimit-limit/remaining/reset")
    use.approximate("group", note="routes of one group are counted each for itself")
    use.exact("allow_degradation", note="the local limit has nothing that can fail")
