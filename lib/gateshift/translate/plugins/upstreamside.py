"""Plugins about the way to the backend: breakers, connection limits, body size, buffering, compression."""

from __future__ import annotations

from typing import Any

from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import HttpFilter
from gateshift.translate.plugins.envoy import on_gateway
from gateshift.translate.plugins.registry import Use, handles

_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"


@handles("client-control")
def client_control(use: Use) -> None:
    """Refuse bodies beyond a size with 413; Envoy has to buffer them to know."""
    size = int(use.config.get("max_body_size", 0))
    if size <= 0:
        use.exact(note="no limit, as in Envoy")
        return
    name = "gateshift.buffer" + ("_global" if use.is_global else "")
    # The filter needs a limit of its own; routes that do not ask for it never reach it (see below).
    base = {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": 4_294_967_295}
    use.job.use_filter(HttpFilter(name, "client-control", use.priority, base, disabled=True))
    use.draft.filters[name] = {
        "@type": f"{_FILTERS}.buffer.v3.BufferPerRoute",
        "buffer": {"max_request_bytes": size},
    }
    note = "the whole body is buffered first: streaming uploads and gRPC streams wait"
    use.approximate("max_body_size", target="EnvoyFilter buffer", note=note)


@handles("proxy-buffering")
def proxy_buffering(use: Use) -> None:
    """Envoy streams answers in any case."""
    use.exact(note="Envoy streams answers")


@handles("proxy-control")
def proxy_control(use: Use) -> None:
    """Envoy streams requests; buffering them first is not carried over."""
    note = "requests are streamed to the backend, not collected first"
    use.approximate(note="" if use.config.get("request_buffering") is False else note)


@handles("ai")
def ai(use: Use) -> None:
    """A cache of route matches inside APISIX, which takes no options."""
    use.exact(note="an optimisation inside APISIX")


@handles("grpc-web")
def grpc_web(use: Use) -> None:
    """gRPC-Web framing by Envoy's own filter, which acts on requests of that content type alone."""
    name = "gateshift.grpc_web"
    base = {"@type": f"{_FILTERS}.grpc_web.v3.GrpcWeb"}
    use.job.use_filter(HttpFilter(name, "grpc-web", use.priority, base))
    use.draft.filters[name] = {}  # it has no settings of a route
    use.approximate("cors_allow_headers", note="add the cors plugin: Envoy's filter sends no CORS headers")
    use.exact(target="EnvoyFilter grpc_web")


def _compressor(use: Use, library: str, config: dict[str, Any]) -> None:
    types = use.config.get("types", ["text/html"])
    base: dict[str, Any] = {
        "@type": f"{_FILTERS}.compressor.v3.Compressor",
        "response_direction_config": {
            "common_config": {
                "min_content_length": max(30, int(use.config.get("min_length", 20))),
                **({} if types == "*" else {"content_type": [str(one) for one in types]}),
            }
        },
        "compressor_library": {
            "name": library,
            "typed_config": {
                "@type": f"type.googleapis.com/envoy.extensions.compression.{library}.compressor.v3."
                f"{library.title()}",
                **config,
            },
        },
    }
    name = f"gateshift.{library}"
    known = use.job.filters.get(name)
    if known is not None and known.config != base:
        use.job.warn(f"routes ask for different {library} settings: the first route's are used")
    use.job.use_filter(HttpFilter(name, library, use.priority, base, disabled=True))
    use.draft.filters[name] = {
        "@type": f"{_FILTERS}.compressor.v3.CompressorPerRoute",
        "overrides": {"response_direction_config": {}},
    }
    note = "Envoy always adds `vary: accept-encoding`"
    use.approximate("types", "min_length", "comp_level", target="EnvoyFilter compressor", note=note)


@handles("gzip")
def gzip(use: Use) -> None:
    """Compress answers with gzip, on this route only."""
    levels = {1: "BEST_SPEED", 9: "BEST_COMPRESSION"}
    level = int(use.config.get("comp_level", 1))
    _compressor(use, "gzip", {"compression_level": levels.get(level, f"COMPRESSION_LEVEL_{level}")})
    use.none("buffers", "http_version", "vary", note="Envoy has no such setting")
    if not use.config:
        use.approximate(target="EnvoyFilter compressor", note="the plugin's defaults")


@handles("brotli")
def brotli(use: Use) -> None:
    """Compress answers with Brotli, on this route only."""
    config: dict[str, Any] = {"quality": int(use.config.get("comp_level", 6))}
    if use.config.get("lgwin"):
        config["window_bits"] = max(10, int(use.config["lgwin"]))
    _compressor(use, "brotli", config)
    use.exact("lgwin", target="EnvoyFilter compressor")
    use.none("mode", "lgblock", "http_version", "vary", note="Envoy has no such setting")
    if not use.config:
        use.approximate(target="EnvoyFilter compressor", note="the plugin's defaults")


def overlay_policy(use: Use, key: str, change: dict[str, Any]) -> None:
    """Add to the traffic policy of every destination of this route, without touching other routes'."""
    if not use.draft.backends:
        raise Inexpressible("the route has no upstream that could carry the setting")
    use.draft.backends = [
        use.book.with_policy(one, use.draft.resource, key, change) for one in use.draft.backends
    ]
    use.draft.default_backends = use.draft.backends


@handles("api-breaker")
def api_breaker(use: Use) -> None:
    """Take failing hosts out for a while; the route itself is never cut."""
    config = use.config
    raw = config.get("unhealthy")
    unhealthy = raw if isinstance(raw, dict) else {}
    change = {
        "consecutive5xxErrors": int(unhealthy.get("failures", 3)),
        "interval": "2s",
        "baseEjectionTime": "2s",
        "maxEjectionPercent": 99,
    }
    overlay_policy(use, "outlierDetection", change)
    target = "DestinationRule trafficPolicy.outlierDetection"
    note = (
        "hosts are taken out, not the route: clients get the backend's errors until then, and no break code"
    )
    use.approximate(target=target, note=note)
    use.none(
        "break_response_code", "break_response_body", "break_response_headers", note="no answer of its own"
    )
    use.job.warn(f"{use.draft.resource}: api-breaker becomes outlier detection, which never cuts a last host")


@handles("limit-conn")
def limit_conn(use: Use) -> None:
    """Bound concurrent requests for all clients together, where the key allows it."""
    config = use.config
    if str(config.get("key_type", "var")) != "constant" and str(config.get("key")) not in (
        "server_addr",
        "host",
    ):
        raise Inexpressible("Envoy bounds concurrency for a whole backend, not for one client")
    burst = int(config.get("burst", 0))
    limit = {
        "http": {"http2MaxRequests": int(config["conn"]) + burst, "http1MaxPendingRequests": max(1, burst)}
    }
    overlay_policy(use, "connectionPool", limit)
    use.approximate(
        target="DestinationRule connectionPool.http",
        note="for each gateway pod; beyond it Envoy answers 503 at once, nothing is delayed",
    )


@handles("real-ip")
def real_ip(use: Use) -> None:
    """The client's address is found by counting proxies, for the whole gateway."""
    config, hops = use.config, use.job.params.trusted_proxies
    if str(config.get("source")) != "http_x_forwarded_for" or not config.get("recursive"):
        raise Inexpressible("only X-Forwarded-For with recursive=true can be read by counting proxies")
    if hops is None:
        use.block(
            "how many proxies stand in front is not in the configuration",
            "set translate.trusted_proxies to their number; a wrong one lets clients choose their address",
        )
        return
    on_gateway(use, "real-ip", {"use_remote_address": True, "xff_num_trusted_hops": hops})
    note = f"{hops} proxies are counted, whatever their addresses, and for every route of the gateway"
    use.approximate(target="EnvoyFilter xff_num_trusted_hops", note=note)


@handles("node-status", "server-info", "inspect", "log-rotate", "example-plugin", "error-log-logger")
def internal(use: Use) -> None:
    """A helper inside APISIX: nothing to migrate."""
    use.none(note="a helper inside APISIX: nothing to migrate")
