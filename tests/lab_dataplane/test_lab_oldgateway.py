"""The stand-in for APISIX on its sockets, with the sample configuration and real backends."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import grpc
import httpx
import pytest

from gateshift.lab import topology
from gateshift.lab.backends.messages import METHOD, GetUserRequest, User

from .conftest import Plane


def route_of(plane: Plane, answer: httpx.Response) -> tuple[str, str]:
    body = answer.json()
    return body["service"], body["path"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/v1/auth/login", 200),
        ("POST", "/api/v1/auth/refresh", 401),
        ("GET", "/api/v1/users/me", 401),
        ("GET", "/api/v1/catalog/skills/1", 200),
        ("GET", "/api/v1/catalog/search", 302),
        ("GET", "/api/v1/voice/legacy/x", 401),  # the disabled route is no route: voice-rest takes it
        ("DELETE", "/api/v1/catalog/skills/1", 404),
        ("GET", "/login", 301),
        ("GET", "/internal/status", 200),
        ("GET", "/nothing", 404),
        ("GET", "/docs/start", 200),
        ("POST", "/api/v1/billing/webhooks/paid", 401),
    ],
)
def test_the_sample_routes_answer_as_apisix_would(plane: Plane, method: str, path: str, status: int) -> None:
    assert plane.ask(method, path).status_code == status


def test_no_route_has_apisix_body_and_runs_global_rules(plane: Plane) -> None:
    answer = plane.ask("GET", "/nothing", host="other.example")
    assert answer.text == '{"error_msg":"404 Route Not Found"}\n'
    assert answer.headers["X-Request-Id"]


def test_exact_beats_prefix_and_vars_fall_through(plane: Plane) -> None:
    me = plane.ask("GET", "/api/v1/users/me", token=plane.token()).json()
    assert me["debug"]["headers"]["x-profile-view"] == "self"
    beta = plane.ask("GET", "/api/v1/catalog/skills/1", headers={"X-Beta": "1"}).json()
    assert beta["debug"]["headers"]["x-variant"] == "beta"
    plain = plane.ask("GET", "/api/v1/catalog/skills/1", headers={"X-Beta": "2"}).json()
    assert "x-variant" not in plain["debug"]["headers"]
    preview = plane.ask("GET", "/api/v1/catalog/a/b/preview")
    assert preview.status_code == 200


def test_rewrites_reach_the_backend_and_keep_the_query(plane: Plane) -> None:
    answer = plane.ask("GET", "/api/v2/invoices/77?page=2", token=plane.token())
    assert route_of(plane, answer) == ("billing-service", "/api/v1/billing/invoices/77?page=2")
    answer = plane.ask("GET", "/api/v1/voices", headers={"X-Client-Version": "2.0"})
    assert route_of(plane, answer) == ("voice-service", "/api/v2/voices")


def test_the_backend_gets_the_headers_that_apisix_adds(plane: Plane) -> None:
    seen = plane.ask("GET", "/api/v1/users/u-1", token=plane.token("voice-mobile-app")).json()["debug"]
    headers = seen["headers"]
    assert headers["host"] == topology.HOST_API
    assert headers["x-real-ip"] == "127.0.0.1"
    assert headers["x-forwarded-host"] == topology.HOST_API
    assert headers["x-consumer-username"] == "voice-mobile-app"
    assert headers["authorization"] == "(redacted)"


def test_tokens_forged_expired_or_of_nobody_are_refused(plane: Plane) -> None:
    web, mobile = plane.token(), plane.token("voice-mobile-app")
    forged = ".".join([*web.split(".")[:2], mobile.split(".")[2]])
    for bad in (forged, plane.token(life=-60), "not.a.token"):
        assert plane.ask("GET", "/api/v1/users/me", token=bad).status_code == 401
    assert plane.ask("GET", "/api/v1/users/me", token=web).status_code == 200


def test_cors_answers_preflight_and_decorates_allowed_origins_only(plane: Plane) -> None:
    origin = {"Origin": "https://app.voiceassistant.com"}
    preflight = plane.ask("OPTIONS", "/api/v1/auth/login", headers=origin)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert preflight.headers["Access-Control-Max-Age"] == "600"
    other = plane.ask("GET", "/api/v1/catalog/x", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_limit_req_rejects_beyond_rate_and_burst(plane: Plane) -> None:
    time.sleep(1.2)  # an empty bucket to begin with
    begun = time.monotonic()
    with ThreadPoolExecutor(
        25
    ) as pool:  # one after the other they are too slow for the limit on a busy machine
        asked = [pool.submit(plane.ask, "GET", "/api/v1/catalog/search?q=timer") for _ in range(25)]
    statuses = Counter(one.result().status_code for one in asked)
    assert set(statuses) == {200, 429}
    assert 6 <= statuses[200] <= 7 + 5 * (time.monotonic() - begun)  # burst, and the rate since


def test_traffic_split_follows_its_weights(plane: Plane) -> None:
    seen = Counter(plane.ask("GET", "/api/v1/recommendations").json()["service"] for _ in range(120))
    assert set(seen) == {"catalog-service", "user-service"}
    assert seen["user-service"] < 35  # expected 12; 35 is beyond seven sigma


def test_errors_of_upstreams_become_apisix_statuses(plane: Plane) -> None:
    plane.client.put(f"{plane.faults}/faults", json={"service": "catalog-service", "refuse": True})
    assert plane.ask("GET", "/api/v1/catalog/x").status_code == 502
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    route = {"uri": "/dead", "upstream": {"nodes": {f"127.0.0.1:{port}": 1}}}
    unknown = {"uri": "/unknown", "upstream": {"nodes": {"no-such.example:80": 1}}}
    plane.manage("PUT", "/routes/dead", json=route).raise_for_status()
    plane.manage("PUT", "/routes/unknown", json=unknown).raise_for_status()
    assert plane.ask("GET", "/dead").status_code == 502
    assert plane.ask("GET", "/unknown").status_code == 503
    for name in ("dead", "unknown"):
        plane.manage("DELETE", f"/routes/{name}").raise_for_status()


def test_admin_api_needs_its_key(plane: Plane) -> None:
    answer = httpx.get(f"{plane.admin}/routes", headers={"X-API-KEY": "wrong"})
    assert answer.status_code == 401
    assert answer.json()["error_msg"] == "failed to check token"


def test_admin_api_lists_every_kind_in_v3_shape(plane: Plane) -> None:
    routes = plane.manage("GET", "/routes").json()
    assert routes["total"] == len(routes["list"]) == 28
    one = routes["list"][0]
    assert set(one) == {"key", "value", "createdIndex", "modifiedIndex"}
    assert one["key"] == "/apisix/routes/" + one["value"]["id"]
    page = plane.manage("GET", "/routes", params={"page": 2, "page_size": 10}).json()
    assert (page["total"], len(page["list"])) == (28, 10)
    for kind in ("services", "upstreams", "consumers", "global_rules", "ssls", "plugin_configs"):
        assert plane.manage("GET", f"/{kind}").json()["total"] > 0, kind
    assert plane.manage("GET", "/stream_routes").json() == {"total": 0, "list": []}
    assert plane.manage("GET", "/nonsense").status_code == 404


def test_admin_writes_take_effect_at_once_and_bad_ones_change_nothing(plane: Plane) -> None:
    path = "/routes/health-copy"
    body = {"uri": "/copy", "upstream_id": "catalog-service"}
    assert plane.manage("PUT", path, json=body).status_code == 201
    assert plane.ask("GET", "/copy").status_code == 200
    patched = plane.manage("PATCH", path, json={"plugins": {"redirect": {"uri": "/x", "ret_code": 302}}})
    assert patched.json()["value"]["upstream_id"] == "catalog-service"
    assert plane.ask("GET", "/copy").status_code == 302
    refused = plane.manage("PATCH", path, json={"plugins": {"no-such-plugin": {}}})
    assert refused.status_code == 400
    assert "no-such-plugin" in refused.json()["error_msg"]
    assert plane.ask("GET", "/copy").status_code == 302
    assert plane.manage("PATCH", path, json={"plugins": None}).status_code == 200
    assert plane.ask("GET", "/copy").status_code == 200
    assert plane.manage("DELETE", path).json()["deleted"] == "1"
    assert plane.ask("GET", "/copy").status_code == 404
    assert plane.manage("DELETE", path).status_code == 404


def test_traffic_split_can_move_a_route_to_a_name_learnt_later(plane: Plane) -> None:
    target = "istio-lab.elb.us-east-1.amazonaws.com:80"
    port = plane.backends["ports"]["billing-service"]
    metrics = f"http://127.0.0.1:{plane.gateway['metrics_port']}"
    plane.client.put(f"{metrics}/lab/resolve", json={target: f"127.0.0.1:{port}"}).raise_for_status()
    split = {"rules": [{"weighted_upstreams": [{"upstream": {"nodes": {target: 1}}, "weight": 100}]}]}
    before = plane.manage("GET", "/routes/voice-models").json()["value"]
    plane.manage("PATCH", "/routes/voice-models", json={"plugins": {"traffic-split": split}})
    assert plane.ask("GET", "/api/v1/voices").json()["service"] == "billing-service"
    plane.manage("PUT", "/routes/voice-models", json=before)
    assert plane.ask("GET", "/api/v1/voices").json()["service"] == "voice-service"


def test_metrics_have_apisix_names_and_count_answers_without_a_backend(plane: Plane) -> None:
    def count(code: str, route: str) -> float:
        rows = re.findall(r"^apisix_http_status\{(.*)\} (\S+)$", plane.metrics(), re.M)
        return sum(float(v) for labels, v in rows if f'code="{code}",route="{route}"' in labels)

    before = count("401", "users-me"), count("404", "")
    plane.ask("POST", "/api/v1/auth/login")
    plane.ask("GET", "/api/v1/users/me")
    plane.ask("GET", "/nothing")
    assert (count("401", "users-me"), count("404", "")) == (before[0] + 1, before[1] + 1)
    text = plane.metrics()
    for kind in ("request", "upstream", "apisix"):
        assert f'apisix_http_latency_bucket{{type="{kind}"' in text
    bounds = re.findall(r'apisix_http_latency_bucket\{type="request",route="auth-login".*?le="(.*?)"\}', text)
    assert bounds[:16] == [
        "1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000", "5000", "10000", "30000",
        "60000", "+Inf",
    ]  # fmt: skip
    assert 'apisix_nginx_http_current_connections{state="active"}' in text
    assert re.search(r"^apisix_bandwidth\{type=\"egress\"", text, re.M)


def test_https_serves_the_sample_certificate(plane: Plane) -> None:
    url = f"https://127.0.0.1:{plane.gateway['https_port']}/healthz"
    context = ssl.create_default_context(cafile=str(plane.ca))
    with httpx.Client(verify=context) as client:
        host = topology.HOST_API
        answer = client.get(url, headers={"Host": host}, extensions={"sni_hostname": host})
    assert answer.json()["debug"]["headers"]["x-forwarded-proto"] == "https"


def test_websockets_are_proxied_only_where_the_route_allows(plane: Plane) -> None:
    async def session(path: str, host: str, **headers: str) -> Any:
        url = f"http://127.0.0.1:{plane.gateway['http_port']}{path}"
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(url, headers={"Host": host, **headers}) as stream,
        ):
            greeting = await stream.receive_json(timeout=5)
            await stream.send_str("hello")
            return greeting["service"], await stream.receive_str(timeout=5)

    bearer = {"Authorization": f"Bearer {plane.token()}"}
    found = asyncio.run(session("/ws/voice/stream", topology.HOST_WS, **bearer))
    assert found == ("voice-service", "hello")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        asyncio.run(session("/ws/voice/stream", topology.HOST_WS))
    assert refused.value.status == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as plain:  # answered as an ordinary request
        asyncio.run(session("/api/v1/voices", topology.HOST_API))
    assert plain.value.status == 200


@pytest.mark.parametrize("tls", [False, True])
def test_grpc_goes_through_the_ordinary_ports(plane: Plane, tls: bool) -> None:
    name = topology.HOST_GRPC
    if tls:
        channel = grpc.secure_channel(
            f"127.0.0.1:{plane.gateway['https_port']}",
            grpc.ssl_channel_credentials(plane.ca.read_bytes()),
            options=[("grpc.ssl_target_name_override", name)],
        )
    else:
        address = f"127.0.0.1:{plane.gateway['http_port']}"
        channel = grpc.insecure_channel(address, options=[("grpc.default_authority", name)])
    with channel:
        call = channel.unary_unary(
            METHOD, request_serializer=lambda m: m.SerializeToString(), response_deserializer=User.FromString
        )
        metadata = (("authorization", f"Bearer {plane.token()}"),)
        user = call(GetUserRequest(id="7"), metadata=metadata, timeout=5)
        assert (user.id, user.gateway) == ("7", "apisix")
        with pytest.raises(grpc.RpcError) as refused:
            call(GetUserRequest(id="7"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_in_the_header_opens_the_webhook(plane: Plane) -> None:
    consumer = plane.manage("GET", "/consumers/payment-provider").json()["value"]
    key = consumer["plugins"]["key-auth"]["key"]
    answer = plane.ask("POST", "/api/v1/billing/webhooks/paid", headers={"apikey": key}, content=b"{}")
    assert answer.status_code == 200
    assert "apikey" not in answer.json()["debug"]["headers"]  # hide_credentials


def test_the_sample_holds_no_secret() -> None:
    from .conftest import SAMPLE

    text = SAMPLE.read_text()
    assert "-----BEGIN" not in text
    for name in ("TLS_KEY", "TLS_CERTIFICATE", "PAYMENT_PROVIDER_KEY", "JWT_WEB_APP_PUBLIC_KEY"):
        assert f"${{{{{name}}}}}" in text
