"""limit-req and limit-count as Envoy's local rate limit, switched on for their routes only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gateshift.istio.versions import Feature
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.globals import ask_service, entry, wanted
from gateshift.translate.plugins.registry import Use, handles

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


_ADDRESS = ("remote_addr", "http_x_real_ip", "http_x_forwarded_for", "realip_remote_addr")
Actions = list[dict[str, Any]]


def _part(use: Use, name: str) -> dict[str, Any] | None:
    """Return the rate limit action for one variable; None when it is the same for every request."""
    if name in _ADDRESS:
        return {"remote_address": {}}
    if name.startswith("http_") or name == "consumer_name":
        header = "x-consumer-username" if name == "consumer_name" else name[5:].replace("_", "-")
        return {"request_headers": {"header_name": header, "descriptor_key": name}}
    if name in ("request_method", "request_uri"):
        header = {"request_method": ":method", "request_uri": ":path"}[name]
        return {"request_headers": {"header_name": header, "descriptor_key": name}}
    fixed = {
        "server_addr": True,
        # A port in the Host header, or a query string, would give a client any number of buckets.
        "host": len(use.draft.effective.hosts) == 1 and "*" not in use.draft.effective.hosts[0],
        "uri": len(use.draft.patterns) == 1 and use.draft.patterns[0].kind == "exact",
    }
    if fixed.get(name):
        return None
    raise Inexpressible(f"clients cannot be told apart by ${name} in Envoy")


def _clients(use: Use) -> list[Actions]:
    """Return how clients are told apart, as lists of rate limit actions; none when one bucket is for all.

    As in APISIX a request that lacks the key is counted by its address: leaving a header out is no way
    around the limit.
    """
    key = str(use.config.get("key", "remote_addr")).strip()
    kind = str(use.config.get("key_type", "var"))
    if kind == "constant":
        return []
    names = re.findall(r"\w+", key) if kind == "var_combination" else [key.lstrip("$")]
    actions = [one for one in (_part(use, name) for name in names) if one is not None]
    found = [actions] if actions else []
    for one in actions:
        rule = one.get("request_headers")
        if rule is None or rule["header_name"].startswith(":"):
            continue
        absent = {
            "descriptor_key": f"without_{rule['descriptor_key']}",
            "descriptor_value": "true",
            "headers": [{"name": rule["header_name"], "present_match": False}],
        }
        found.append([{"header_value_match": absent}, {"remote_address": {}}])
    return found


def _limit(
    use: Use, bucket: Mapping[str, Any], count: int, seconds: float, *, quota_headers: bool
) -> dict[str, Any] | None:
    """Return the per-route configuration of the local rate limit filter.

    None when a rate limit service was asked instead, about *count* requests in *seconds* seconds.
    """
    status = int(use.config.get("rejected_code", 503))
    if status not in _STATUS:
        use.approximate("rejected_code", note=f"Envoy cannot reject with {status}: 429 is sent")
        status = 429
    else:
        use.exact("rejected_code", target="local rate limit status")
    clients = _clients(use)
    if wanted(use):
        ask_service(use, status, clients, count, seconds)
        use.exact("key", "key_type", target="EnvoyFilter ratelimit")
        return None
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
    if not clients:
        use.exact("key", "key_type", target="one bucket for all clients")
        return found
    if not use.job.has(Feature.LOCAL_LIMIT_WILDCARD):
        raise Inexpressible(
            f"Istio {use.job.version} has no local limit per client "
            f"(needs {Feature.LOCAL_LIMIT_WILDCARD.since}): one shared bucket would let one client stop all"
        )
    # With descriptors the default bucket must never be the tighter one.
    found["token_bucket"] = _bucket(4_000_000_000, 4_000_000_000, 1)
    found["always_consume_default_token_bucket"] = False
    found["rate_limits"] = [{"actions": actions} for actions in clients]
    found["descriptors"] = [
        {"entries": [entry(one) for one in actions], "token_bucket": dict(bucket)} for actions in clients
    ]
    found["max_dynamic_descriptors"] = _MAX_CLIENTS
    note = f"at most {_MAX_CLIENTS} clients are told apart"
    use.approximate("key", "key_type", target="local rate limit descriptors", note=note)
    return found


def _switch_on(use: Use, config: Mapping[str, Any] | None) -> None:
    if config is None:
        return
    concern = use.name
    name = f"gateshift.{use.name.replace('-', '_')}" + ("_global" if use.is_global else "")
    base = {"@type": _TYPE, "stat_prefix": use.name.replace("-", "_")}
    use.job.use_filter(HttpFilter(name, concern, use.priority, base))
    use.draft.filters[name] = config


_SHARED = (
    "one counter in Redis becomes one a gateway pod; name translate.rate_limit_service for a common count"
)


def _account_policy(use: Use) -> None:
    """Account for where requests are counted."""
    shared = str(use.config.get("policy", "local")) != "local"
    for key in use.config:
        if key.startswith("redis_") or key in ("policy", "sync_interval"):
            if not shared:
                use.ignored(key, note="counted in the gateway itself")
            elif wanted(use):
                use.exact(key, target="EnvoyFilter ratelimit", note="the rate limit service counts")
            else:
                use.approximate(key, note=_SHARED)


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
    _account_policy(use)
    bucket = _bucket(max(1, math.floor(rate + burst)), refill, seconds)
    _switch_on(use, _limit(use, bucket, refill, seconds, quota_headers=False))
    together = wanted(use)
    target = "EnvoyFilter ratelimit" if together else "EnvoyFilter local_ratelimit"
    use.approximate("rate", target=target, note="whole seconds are counted" if together else _EACH_GATEWAY)
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
    _switch_on(use, _limit(use, _bucket(count, count, window), count, window, quota_headers=quota))
    if wanted(use):
        use.exact("count", "time_window", target="EnvoyFilter ratelimit")
    else:
        target = "EnvoyFilter local_ratelimit"
        use.approximate("count", "time_window", target=target, note=_EACH_GATEWAY)
    _account_policy(use)
    use.approximate("window_type", note="the window starts with the gateway, not with the first request")
    use.approximate("rejected_msg", note='Envoy answers "local_rate_limited"')
    use.approximate("show_limit_quota_header", note="the headers are x-ratelimit-limit/remaining/reset")
    use.approximate("group", note="routes of one group are counted each for itself")
    use.exact("allow_degradation", note="the local limit has nothing that can fail")
