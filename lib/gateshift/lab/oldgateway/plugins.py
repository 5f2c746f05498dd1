"""The plugins of the stand-in (authentication is in ``auth``), by phase and with APISIX's priorities.

APISIX runs the rewrite phase of all plugins by falling priority, then the access phase, then (on the way
back) the header filters. A function returns a :class:`Reply` to end the request, or None to go on.
"""

from __future__ import annotations

import ipaddress
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from multidict import CIMultiDict

from gateshift.lab.oldgateway.exchange import Exchange, Reply, message

__all__ = ["ACCESS", "HEADER_FILTERS", "KNOWN", "PRIORITY", "REWRITE", "Limits"]

Conf = Mapping[str, Any]
Step = Callable[[Conf, Exchange], Reply | None]
Filter = Callable[[Conf, Exchange, CIMultiDict[str], int], int]

PRIORITY = {
    "request-id": 12015,
    "cors": 4000,
    "ip-restriction": 3000,
    "jwt-auth": 2510,
    "key-auth": 2500,
    "proxy-rewrite": 1008,
    "limit-count": 1002,
    "limit-req": 1001,
    "traffic-split": 966,
    "redirect": 900,
    "response-rewrite": 899,
    "prometheus": 500,
}
KNOWN = frozenset(PRIORITY)

_random = random.Random()  # noqa: S311 - load balancing, not cryptography


def request_id(conf: Conf, exchange: Exchange) -> Reply | None:
    """Keep the client's id or make one."""
    name = str(conf.get("header_name", "X-Request-Id"))
    value = exchange.headers.get(name) or str(uuid.uuid4())
    exchange.headers[name] = value
    exchange.request_id = value
    if conf.get("include_in_response", True):
        exchange.response_headers[name] = value
    return None


_ALL_METHODS = "GET,POST,PUT,DELETE,PATCH,HEAD,OPTIONS,CONNECT,TRACE"


def _allowed_origin(conf: Conf, origin: str) -> str | None:
    allowed = str(conf.get("allow_origins", "*"))
    if allowed == "**":
        return origin or "*"
    if allowed == "*":
        return "*"
    if origin and origin in [one.strip() for one in allowed.split(",")]:
        return origin
    if origin and any(re.search(one, origin) for one in conf.get("allow_origins_by_regex") or ()):
        return origin
    return None


def cors(conf: Conf, exchange: Exchange) -> Reply | None:
    """Answer every OPTIONS with 200; the headers are set by the filter."""
    return Reply(200) if exchange.method == "OPTIONS" else None


def cors_filter(conf: Conf, exchange: Exchange, headers: CIMultiDict[str], status: int) -> int:
    """Set the Access-Control headers for an allowed origin."""
    origin = _allowed_origin(conf, exchange.headers.get("Origin", ""))
    if origin is None:
        return status
    methods, allow = str(conf.get("allow_methods", "*")), str(conf.get("allow_headers", "*"))
    headers["Access-Control-Allow-Origin"] = origin
    if origin != "*":
        headers.add("Vary", "Origin")
    headers["Access-Control-Allow-Methods"] = _ALL_METHODS if methods == "**" else methods
    if allow == "**":
        allow = exchange.headers.get("Access-Control-Request-Headers", "")
    if allow:
        headers["Access-Control-Allow-Headers"] = allow
    headers["Access-Control-Max-Age"] = str(conf.get("max_age", 5))
    expose = str(conf.get("expose_headers", ""))
    if expose:
        headers["Access-Control-Expose-Headers"] = expose
    if conf.get("allow_credential"):
        headers["Access-Control-Allow-Credentials"] = "true"
    return status


@lru_cache(maxsize=256)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def ip_restriction(conf: Conf, exchange: Exchange) -> Reply | None:
    """Whitelist or blacklist the client's address."""
    address = ipaddress.ip_address(exchange.remote)
    blocked = any(address in _network(one) for one in conf.get("blacklist") or ())
    white = conf.get("whitelist")
    if white:
        blocked = not any(address in _network(one) for one in white)
    if not blocked:
        return None
    return message(
        int(conf.get("response_code", 403)), str(conf.get("message", "Your IP address is not allowed"))
    )


def proxy_rewrite(conf: Conf, exchange: Exchange) -> Reply | None:
    """Rewrite path, host, method and headers of the upstream request."""
    if conf.get("method"):
        exchange.method = str(conf["method"])
    if conf.get("host"):
        exchange.headers["Host"] = str(conf["host"])
    path: str | None = None
    if conf.get("uri"):
        path = exchange.fill(str(conf["uri"]))
    elif conf.get("regex_uri"):
        pairs = list(conf["regex_uri"])
        for pattern, replacement in zip(pairs[::2], pairs[1::2], strict=True):
            template = re.sub(r"\$(\d+)", r"\\g<\1>", replacement)
            new, count = re.subn(pattern, template, exchange.path, count=1)
            if count:
                path = new
                break
    if path is not None:
        path, _, own_args = path.partition("?")
        args = "&".join(part for part in (own_args, exchange.args) if part)
        exchange.upstream_target = quote(path, safe="/:@!$&'()*+,;=-._~") + (f"?{args}" if args else "")
    _headers(conf.get("headers"), exchange)
    return None


def _headers(conf: Any, exchange: Exchange) -> None:
    if not conf:
        return
    if not any(name in conf for name in ("set", "add", "remove")):
        conf = {"set": conf}  # the old form: a plain mapping
    for name, value in (conf.get("add") or {}).items():
        exchange.headers.add(name, exchange.fill(str(value)))
    for name, value in (conf.get("set") or {}).items():
        exchange.headers[name] = exchange.fill(str(value))
    for name in conf.get("remove") or ():
        exchange.headers.popall(name, None)


def redirect(conf: Conf, exchange: Exchange) -> Reply | None:
    """Redirect to HTTPS or to another URI."""
    code = int(conf.get("ret_code", 302))
    if conf.get("http_to_https"):
        if exchange.headers.get("X-Forwarded-Proto", exchange.scheme) == "https":
            return None
        code = 301 if exchange.method in {"GET", "HEAD"} else 308
        return Reply(code, headers={"Location": f"https://{exchange.host}{exchange.target}"})
    target: str | None = None
    if conf.get("uri"):
        target = exchange.fill(str(conf["uri"]))
    elif conf.get("regex_uri"):
        pattern, replacement = conf["regex_uri"][:2]
        new, count = re.subn(pattern, re.sub(r"\$(\d+)", r"\\g<\1>", replacement), exchange.path, count=1)
        target = new if count else None
    if target is None:
        return None
    if conf.get("append_query_string") and exchange.args:
        target += ("&" if "?" in target else "?") + exchange.args
    return Reply(code, headers={"Location": target})


def traffic_split(conf: Conf, exchange: Exchange) -> Reply | None:
    """Choose an upstream by weight from the first rule that matches."""
    for rule in conf.get("rules") or ():
        if not _split_matches(rule.get("match"), exchange):
            continue
        choices = rule.get("weighted_upstreams") or ()
        chosen = _random.choices(choices, [float(one.get("weight", 1)) for one in choices])[0]
        if "upstream" in chosen:
            exchange.upstream = chosen["upstream"]
        elif "upstream_id" in chosen:
            exchange.upstream = {"upstream_id": chosen["upstream_id"]}
        return None
    return None


def _split_matches(match: Any, exchange: Exchange) -> bool:
    if not match:
        return True
    tests: dict[str, Callable[[str, Any], bool]] = {
        "==": lambda a, b: a == str(b),
        "~=": lambda a, b: a != str(b),
        "~~": lambda a, b: re.search(str(b), a) is not None,
        "in": lambda a, b: a in [str(one) for one in b],
    }
    return any(
        all(tests[op](exchange.variable(name), value) for name, op, value in one.get("vars") or ())
        for one in match
    )


def response_rewrite(conf: Conf, exchange: Exchange, headers: CIMultiDict[str], status: int) -> int:
    """Set headers and status of the answer."""
    given = conf.get("headers") or {}
    if given and not any(name in given for name in ("set", "add", "remove")):
        given = {"set": given}
    for line in given.get("add") or ():
        name, _, value = str(line).partition(":")
        headers.add(name.strip(), exchange.fill(value.strip()))
    for name, value in (given.get("set") or {}).items():
        headers[name] = exchange.fill(str(value))
    for name in given.get("remove") or ():
        headers.popall(name, None)
    return int(conf.get("status_code", status))


class Limits:
    """Counters of limit-req and limit-count; they outlive a change of the configuration."""

    def __init__(self) -> None:
        self._leaky: dict[tuple[str, str], tuple[float, float]] = {}
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    @staticmethod
    def _key(conf: Conf, exchange: Exchange) -> str:
        name = str(conf.get("key", "remote_addr"))
        if conf.get("key_type") == "constant":
            return name
        if conf.get("key_type") == "var_combination":
            return exchange.fill(name) or exchange.remote
        return exchange.variable(name) or exchange.remote

    @staticmethod
    def _rejected(conf: Conf) -> Reply:
        code = int(conf.get("rejected_code", 503))
        if conf.get("rejected_msg"):
            return message(code, str(conf["rejected_msg"]), "error_msg")
        return Reply(code)

    def limit_req(self, conf: Conf, exchange: Exchange) -> Reply | None:
        """The leaky bucket of lua-resty-limit-traffic: delays up to *burst*, rejects beyond."""
        key = (exchange.route_id, self._key(conf, exchange))
        rate, burst = float(conf["rate"]), float(conf["burst"])
        now = time.monotonic()
        excess, last = self._leaky.get(key, (0.0, 0.0))
        excess = max(excess - rate * (now - last) + 1.0, 0.0) if last else 0.0
        if excess > burst:
            return self._rejected(conf)
        self._leaky[key] = (excess, now)
        if not conf.get("nodelay"):
            exchange.delay += excess / rate
        return None

    def limit_count(self, conf: Conf, exchange: Exchange) -> Reply | None:
        """A fixed window of *count* requests in *time_window* seconds."""
        key = (exchange.route_id, self._key(conf, exchange))
        count, window = int(conf["count"]), float(conf["time_window"])
        now = time.monotonic()
        begun, used = self._windows.get(key, (now, 0))
        if now - begun >= window:
            begun, used = now, 0
        self._windows[key] = (begun, used + 1)
        if conf.get("show_limit_quota_header", True):
            exchange.response_headers |= {
                "X-RateLimit-Limit": str(count),
                "X-RateLimit-Remaining": str(max(count - used - 1, 0)),
                "X-RateLimit-Reset": str(int(begun + window - now)),
            }
        return self._rejected(conf) if used >= count else None


REWRITE: dict[str, Step] = {
    "request-id": request_id,
    "cors": cors,
    "proxy-rewrite": proxy_rewrite,
    "redirect": redirect,
}
ACCESS: dict[str, Step] = {"ip-restriction": ip_restriction, "traffic-split": traffic_split}
"""Beside these, limit-count and limit-req run in the access phase: they are methods of :class:`Limits`."""

HEADER_FILTERS: dict[str, Filter] = {"cors": cors_filter, "response-rewrite": response_rewrite}
