"""A configuration that makes gateshift emit what it can: every plugin, balancer, check and certificate."""

from __future__ import annotations

from typing import Any

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, Translation, translate
from tests.lab import plugin_config
from tests.translate.helpers import route, signed

_NODES = {"shop:80": 1}


def _upstream(**fields: Any) -> dict[str, Any]:
    return {"upstream": {"type": "roundrobin", "nodes": _NODES, **fields}}


def _chash(on: str, key: str) -> dict[str, Any]:
    return _upstream(type="chash", hash_on=on, key=key)


ROUTES: tuple[dict[str, Any], ...] = (
    route("chash-header", "/1", **_chash("header", "X-User")),
    route("chash-cookie", "/2", **_chash("cookie", "cookie_sid")),
    route("chash-arg", "/3", **_chash("vars", "arg_user")),
    route("chash-address", "/4", **_chash("vars", "remote_addr")),
    route("least", "/5", **_upstream(type="least_conn", nodes={"10.0.0.1:80": 1, "10.0.0.2:81": 2})),
    route(
        "pools",
        "/6",
        **_upstream(
            keepalive_pool={"size": 5, "idle_timeout": 9, "requests": 100},
            timeout={"connect": 1, "send": 2, "read": 3},
            retries=2,
            pass_host="rewrite",
            upstream_host="inner.test",
        ),
    ),
    route(
        "checked",
        "/7",
        **_upstream(
            scheme="https",
            checks={
                "active": {
                    "type": "https",
                    "http_method": "HEAD",
                    "req_headers": ["X-A: b"],
                    "host": "a.test",
                },
                "passive": {"unhealthy": {"http_failures": 3}},
            },
        ),
    ),
    route("tcp-checked", "/8", **_upstream(checks={"active": {"type": "tcp"}}, nodes={"a.test:80": 1})),
    route("websocket", "/9", enable_websocket=True, timeout={"connect": 1, "send": 1, "read": 1}),
    route("grpc", "/10/*", **_upstream(scheme="grpcs", nodes={"grpc.test:443": 1})),
    route("discovered", "/11", upstream={"type": "roundrobin", "discovery_type": "dns", "service_name": "a"}),
    route("nowhere", "/12", **_upstream(nodes={"shop:80": 0})),
    route("held", "/13", filter_func="function(vars) return true end"),
    route(
        "conditions",
        "/14/*",
        methods=["GET", "PUT"],
        vars=[
            ["arg_a", "==", "1"],
            ["http_x_a", "~~", "^b"],
            ["cookie_c", "in", ["d", "e"]],
            ["http_x_no", "~=", "1"],
        ],
    ),
    route("pattern", "/a/*/b"),
    route("guarded", "/20", methods=["POST"], plugins={"jwt-auth": {}}),
    route("unguarded", "/20", methods=["GET"]),
    route("share", "/21", plugins={"fault-injection": {"abort": {"http_status": 503, "percentage": 10}}}),
    route("brotli", "/22", plugins={"brotli": {"lgwin": 19}}),
    route("gzip", "/23", plugins={"gzip": {"types": "*", "comp_level": 5}}),
    route(
        "traces",
        "/24",
        plugins={
            "opentelemetry": {
                "sampler": {"name": "always_on"},
                "additional_header_prefix_attributes": ["X-Tenant"],
            }
        },
    ),
    route(
        "bearer",
        "/25",
        plugins={
            "openid-connect": {
                **plugin_config.PLUGINS["bearer"]["openid-connect"],
                "claim_validator": {"audience": {"match_with_client_id": True}},
            }
        },
    ),
    route(
        "enums",
        "/26",
        **_upstream(scheme="grpc", nodes={"identity:50051": 1}),
        plugins={
            "grpc-transcode": {
                **plugin_config.PLUGINS["transcode"]["grpc-transcode"],
                "pb_option": ["enum_as_value", "no_default_values"],
            }
        },
    ),
    route("path-value", "/27", plugins={"response-rewrite": {"headers": {"set": {"X-Path": "$uri"}}}}),
    route("asks-tls", "/19", plugins={"forward-auth": {"uri": "https://auth.test/check"}}),
    route("wildcard", "/15", hosts=["*.wide.test", "narrow.wide.test"]),
    route("balanced", "/16", upstream={"type": "roundrobin", "nodes": {"shop:80": 3, "other:80": 1}}),
    route(
        "metrics", "/17", plugins={"prometheus": {}, "zipkin": {"endpoint": "http://z", "sample_ratio": 0.5}}
    ),
    route(
        "global-address", "/18", plugins={"real-ip": {"source": "http_x_forwarded_for", "recursive": True}}
    ),
)
SSLS: tuple[dict[str, Any], ...] = (
    {"id": "one", "snis": ["one.test"], "cert": "c", "key": "k", "ssl_protocols": ["TLSv1.2", "TLSv1.3"]},
    {"id": "two", "snis": ["two.test"], "cert": "c", "key": "k", "certs": ["c2"], "keys": ["k2"]},
    {"id": "mutual", "snis": ["mutual.test"], "cert": "c", "key": "k", "client": {"ca": "ca"}},
)


def configuration() -> Configuration:
    """The plugins' examples of the lab, with more upstreams, conditions and certificates."""
    base = plugin_config.configuration()
    found = {kind: dict(base.of(kind)) for kind in Kind}
    for kind, specs in ((Kind.ROUTE, ROUTES), (Kind.SSL, SSLS)):
        for order, spec in enumerate(specs, start=1000):
            origin = Origin("everything.yaml", f"{kind}[{order}]")
            found[kind][spec["id"]] = Resource(kind, spec["id"], spec, origin, order)
    return Configuration({kind: one for kind, one in found.items() if one}, router=Router.HOST_URI)


def translated(version: str) -> Translation:
    """Translate it for *version* with every difference signed and every optional service named."""
    discovery = plugin_config.DISCOVERY
    endpoints = {"authorization": "https://idp.test/auth", "token": "https://idp.test/token"}
    params = TranslateParams(
        jwt_issuers={"*": plugin_config.ISSUER},
        inline_credentials=True,
        rate_limit_service="ratelimit:8081",
        tracing_provider="otel",
        emit_metrics_telemetry=True,
        trusted_proxies=1,
        login={"secrets": "/secrets", "endpoints": {discovery: endpoints}},  # type: ignore[arg-type]  # pydantic reads plain mappings
    )
    target = Target(version=version, namespace="app")
    return translate(configuration(), signed(configuration(), params, target), target)
