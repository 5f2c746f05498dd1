"""Every converted plugin on a real Envoy that a real istiod configures: one configuration, one pass."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from gateshift.lab.state import LabState
from gateshift.translate.plugins.registry import facts, handled
from tests.lab import plugin_config as config
from tests.lab.plugin_gateway import Gateway, applied
from tests.lab.test_controlplane_lab import eventually

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def gateway(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with applied(running, tmp_path_factory.mktemp("tools")) as found:
        yield found


def token(key: str | None = "web", *, issuer: str = config.ISSUER, **claims: Any) -> str:
    body = {"iss": issuer, "exp": int(time.time()) + 300, **({"key": key} if key else {}), **claims}
    key_of_issuer = config.OWN_KEY if issuer == config.OWN_ISSUER else config.KEY
    return jwt.encode(body, key_of_issuer, algorithm="RS256")


def bearer(*args: Any, **more: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*args, **more)}"}


def test_a_route_without_plugins_gets_the_headers_that_apisix_adds(gateway: Gateway) -> None:
    told = gateway.arrived("plain", "/a?b=1")
    assert (told["path"], told["method"]) == ("/a?b=1", "GET")
    assert told["headers"]["x-real-ip"] == "127.0.0.1"
    assert told["headers"]["x-forwarded-host"] == config.host("plain")


def test_cors(gateway: Gateway) -> None:
    preflight = {"Origin": "https://app.test", "Access-Control-Request-Method": "POST"}
    allowed = gateway.ask("cors", method="OPTIONS", headers=preflight)
    assert allowed.status_code == 200
    expected = {
        "access-control-allow-origin": "https://app.test",
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "x-a",
        "access-control-allow-credentials": "true",
        "access-control-max-age": "60",
    }
    assert expected.items() <= dict(allowed.headers).items()
    before = len(gateway.seen["echo"])
    other = gateway.ask("cors", method="OPTIONS", headers={**preflight, "Origin": "https://evil.test"})
    assert other.status_code == 200
    assert "access-control-allow-origin" not in other.headers
    assert gateway.status("cors", method="OPTIONS") == 200
    assert gateway.status("cors", method="OPTIONS", headers={"Origin": "https://app.test"}) == 200
    assert len(gateway.seen["echo"]) == before, "an OPTIONS request reached the backend"
    served = gateway.ask("cors", headers={"Origin": "https://app.test"})
    assert served.headers["access-control-allow-origin"] == "https://app.test"
    assert served.headers["access-control-expose-headers"] == "x-b"
    assert "access-control-allow-origin" not in gateway.ask("cors", headers={"Origin": "https://x"}).headers


def test_a_preflight_needs_no_credentials_and_nothing_else_does_without(gateway: Gateway) -> None:
    preflight = {"Origin": "https://app.test", "Access-Control-Request-Method": "POST"}
    assert gateway.status("cors-any", method="OPTIONS", headers=preflight) == 200
    assert gateway.status("cors-any", method="OPTIONS") == 200
    assert gateway.status("cors-any", headers={"Origin": "https://app.test"}) == 401
    assert gateway.status("jwt", method="OPTIONS", headers=preflight) == 200
    assert gateway.status("jwt", headers={"Origin": "https://app.test"}) == 403
    other = {**preflight, "Origin": "https://evil.test"}
    before = len(gateway.seen["echo"])
    assert gateway.status("jwt", method="OPTIONS", headers=other) == 200
    for name in preflight:
        assert gateway.status("jwt", method="OPTIONS", headers={**preflight, name: ""}) == 200, name
    assert len(gateway.seen["echo"]) == before


def test_rewrites(gateway: Gateway) -> None:
    told = gateway.arrived("rewrite", "/old/path?q=1", headers={"X-Gone": "1"})
    assert told["path"] == "/new?q=1"
    assert told["headers"]["host"] == "inner.test"
    assert (told["headers"]["x-set"], told["headers"]["x-from"]) == ("50%", "127.0.0.1")
    assert "x-gone" not in told["headers"]
    assert gateway.arrived("rewrite-regex", "/v1/a/v1/b")["path"] == "/v2/a/v1/b"
    assert gateway.arrived("rewrite-many", "/a/x")["path"] == "/A/x"
    assert gateway.arrived("rewrite-many", "/b/x?y=1")["path"] == "/B/x?y=1"
    assert gateway.arrived("rewrite-many", "/c/x")["path"] == "/c/x"
    # A literal part is encoded as nginx does it, a value of the request after it has been decoded.
    told = gateway.arrived("rewrite-encoded", "/m?a=x%2Fy+%3F%25&z=1")
    assert told["path"] == "/f%20r/%C3%A9/x/y%20%253F%25?fixed=1&a=x%2Fy+%3F%25&z=1"
    assert gateway.arrived("rewrite-encoded", "/m?")["path"] == "/f%20r/%C3%A9/?fixed=1"
    assert gateway.arrived("rewrite-uri", "/caf%C3%A9%20x?y")["path"] == "/v2/caf%C3%A9%20x?y"
    told = gateway.arrived("rewrite-method", "/m?z=1", method="GET")
    assert (told["method"], told["path"]) == ("PUT", "/m?z=1")
    assert gateway.arrived("rewrite-vars", "/m?z=1")["path"] == "/for/127.0.0.1?fixed=1&z=1"


def test_answers_are_changed(gateway: Gateway) -> None:
    answer = gateway.ask("answer-headers", "/x?y=1")
    assert (answer.headers["x-set"], answer.headers["x-path"]) == ("/x?y=1", "/x")
    assert answer.headers["x-add"] == "1"
    assert "x-backend" not in answer.headers
    short = gateway.ask("answer-body", "/status/500")
    assert (short.status_code, short.json()) == (418, {"short": "and stout"})
    assert gateway.status("answer-body", "/status/502") == 502
    text = gateway.ask("answer-filter").text
    assert '"service": "secret"' in text
    assert '"service": "echo"' not in text


def test_redirects(gateway: Gateway) -> None:
    def target(name: str, path: str, **more: Any) -> tuple[int, str]:
        answer = gateway.ask(name, path, follow_redirects=False, **more)
        return answer.status_code, answer.headers["location"]

    assert target("redirect", "/a?b=1") == (307, f"http://{config.host('redirect')}/elsewhere")
    assert target("redirect-query", "/a?b=1") == (302, "https://other.test/x?b=1")
    young = f"http://{config.host('redirect-regex')}/young/x"
    assert target("redirect-regex", "/old/x?b=1") == (301, young)
    assert target("redirect-away", "/old/x?b=1") == (308, "https://new.test/x?b=1")
    assert target("redirect-constant", "/old/x?b=1") == (302, "https://new.test/a?b=c")
    for name in ("redirect-regex", "redirect-away", "redirect-constant"):
        assert gateway.arrived(name, "/other?to=/old/x")["path"] == "/other?to=/old/x"
    assert target("redirect-host", "/p?q=1") == (308, "https://www.other.test/p?q=1")
    secure = f"https://{config.host('redirect-https')}/p?q=1"
    assert target("redirect-https", "/p?q=1") == (301, secure)
    assert target("redirect-https", "/p?q=1", method="POST") == (308, secure)


def test_answers_without_a_backend(gateway: Gateway) -> None:
    mock = gateway.ask("mocking")
    assert (mock.status_code, mock.json(), mock.headers["x-m"]) == (201, {"mock": True}, "1")
    assert mock.headers["content-type"] == "application/json;charset=utf8"
    broken = gateway.ask("abort")
    assert (broken.status_code, broken.text, broken.headers["x-f"]) == (503, "broken", "1")
    assert gateway.status("abort-vars", "/?n=1") == 409
    assert gateway.status("abort-vars", "/?n=2") == 200
    began = time.monotonic()
    assert gateway.status("delay") == 200
    assert time.monotonic() - began >= 0.25
    assert gateway.ask("echo-headers").headers["x-echo"] == "1"


def test_restrictions(gateway: Gateway) -> None:
    assert gateway.status("addresses") == 403
    assert gateway.status("addresses", headers={"X-Forwarded-For": "10.0.0.1"}) == 403, "spoofed address"
    assert gateway.status("addresses", headers={"Host": f"{config.host('addresses')}:8080"}) == 403
    assert gateway.status("addresses-open") == 200
    for agent, status in (("a Bot", 403), ("curl/8", 403), ("Mozilla", 200)):
        assert gateway.status("agents", headers={"User-Agent": agent}) == status
    assert gateway.ask("agents", headers={"User-Agent": "bot"}).json() == {"message": "no robots"}
    assert gateway.raw("agents", "/") == 403, "without User-Agent"
    for agent, status in (("Good one", 200), ("not Good", 403)):
        assert gateway.status("agents-allowed", headers={"User-Agent": agent}) == status
    for referer, status in (
        ("https://good.test/a", 200),
        ("https://a.fine.test", 200),
        ("https://good.test.evil.test/", 403),
        ("https://evil.test/?https://good.test/", 403),
        ("", 403),
    ):
        assert gateway.status("referers", headers={"Referer": referer}) == status, referer
    assert gateway.status("referers") == 403
    for path, status in (
        ("/ok", 200),
        ("/a/ROOT.EXE", 403),
        ("/?q=select+x+from", 403),
        ("/root%2eexe", 403),
        ("/%72oot.exe", 403),
        ("//root.exe", 403),
    ):
        assert gateway.raw("uris", path) == status, path
    assert gateway.status("filtered", "/bad") == 403
    assert gateway.status("filtered", "/bad", headers={"X-Trusted": "1"}) == 200


def test_size(gateway: Gateway) -> None:
    assert gateway.status("size", method="POST", content=b"x" * 100) == 200
    assert gateway.status("size", method="POST", content=b"x" * 101) == 413
    assert gateway.status("size", method="POST", content=iter([b"x" * 60, b"x" * 60])) == 413
    assert gateway.status("plain", method="POST", content=b"x" * 101) == 200


def test_key_auth(gateway: Gateway) -> None:
    told = gateway.arrived(
        "key",
        headers={"APIKEY": config.API_KEY, "X-Consumer-Username": "root", "X-Credential-Identifier": "1"},
    )
    assert told["headers"]["x-consumer-username"] == "pay"
    assert "apikey" not in told["headers"]
    assert "x-credential-identifier" not in told["headers"]
    assert gateway.status("key", f"/?apikey={config.OTHER_KEY}") == 200
    missing = gateway.ask("key")
    assert (missing.status_code, missing.json()) == (401, {"message": "Missing API key found in request"})
    assert gateway.status("key", headers={"apikey": ""}) == 401
    assert gateway.status("key", headers={"apikey": config.API_KEY + "x"}) == 401
    assert gateway.status("key", "/a/../%2e%2e//b") == 401


def test_basic_auth(gateway: Gateway) -> None:
    told = gateway.arrived(
        "basic", headers={"Authorization": f"Basic {config.BASIC}", "X-Consumer-Username": "root"}
    )
    assert told["headers"]["x-consumer-username"] == "pay"
    assert "authorization" not in told["headers"]
    for value in ("", "Basic", "Basic cGF5Ondyb25n", "Bearer x", "Basic bm9ib2R5Og=="):
        assert gateway.status("basic", headers={"Authorization": value}) == 401, value
    assert gateway.status("basic") == 401


def test_jwt_auth(gateway: Gateway) -> None:
    told = gateway.arrived("jwt", headers={**bearer(), "X-Consumer-Username": "root"})
    assert told["headers"]["x-consumer-username"] == "web"
    assert told["headers"]["authorization"].startswith("Bearer ")
    assert gateway.status("jwt", f"/?jwt={token()}") == 200
    assert gateway.status("jwt", headers={"Cookie": f"jwt={token()}"}) == 200
    assert gateway.status("jwt") == 403
    assert gateway.status("jwt", headers={"Authorization": ""}) == 403
    assert gateway.status("jwt", headers=bearer(None)) == 403, "no key claim"
    assert gateway.status("jwt", headers=bearer("stranger")) == 403
    assert gateway.status("jwt", headers=bearer(issuer="https://evil.test")) == 401
    assert gateway.status("jwt", headers=bearer(exp=1)) == 401
    assert gateway.status("jwt", headers={"Authorization": f"Bearer {token()}x"}) == 401
    assert gateway.status("jwt", headers={"Authorization": f"Basic {config.BASIC}"}) == 403


def test_a_guarded_path_has_no_other_spelling(gateway: Gateway) -> None:
    """What is spelled otherwise must not reach the backend as the guarded path."""
    assert gateway.status("mixed", "/free") == 200
    for path in (
        "/admin/x",
        "/admin/",
        "//admin/x",
        "/./admin/x",
        "/free/../admin/x",
        "/free/%2e%2e/admin/x",
        "/%61dmin/x",
        "/free\\..\\admin/x",
        "/free/..%2fadmin/x",
        "/admin%2fx",
        "/admin/x?jwt=",
        "/admin/x?jwt=a.b.c",
    ):
        before = len(gateway.seen["echo"])
        status = gateway.raw("mixed", path)
        arrived = gateway.seen["echo"][before:]
        assert status in (400, 401, 403) or not any(_is_admin(one["path"]) for one in arrived), (
            path,
            arrived,
        )


def test_a_guarded_host_has_no_other_spelling(gateway: Gateway) -> None:
    name = config.host("mixed")
    for host in (name.upper(), f"{name}:80", f"{name}:8080", f"{name}:443", f"{name}."):
        before = len(gateway.seen["echo"])
        status = gateway.raw("mixed", "/admin/x", host=host)
        reached = any(_is_admin(one["path"]) for one in gateway.seen["echo"][before:])
        assert status in (400, 403, 404) and not reached, (host, status)  # noqa: PT018 - one fact


def test_a_wildcard_host_is_guarded_on_every_port(gateway: Gateway) -> None:
    passed = bearer()["Authorization"]
    for host in ("a.wild.test", "A.Wild.Test", "a.wild.test:80", "a.wild.test:8080", "b.a.wild.test:31443"):
        assert gateway.raw("wild", "/x", host=host) == 403, host
        assert gateway.raw("wild", "/x", host=host, Authorization=passed) == 200, host
    for host in ("free.wild.test", "free.wild.test:8080"):
        assert gateway.raw("wild", "/x", host=host) == 200, host


def test_a_route_without_host_is_guarded_whatever_stands_in_the_host_header(gateway: Gateway) -> None:
    free = "free.wild.test"
    for host in ("unknown.test", "unknown.test:8080", f"{free}.", f"{free}:1:2", f"{free}:x", ".wild.test"):
        before = len(gateway.seen["echo"])
        assert gateway.raw("hostless", "/private/x", host=host) in (400, 403), host
        assert len(gateway.seen["echo"]) == before, host
    passed = bearer()["Authorization"]
    assert gateway.raw("hostless", "/private/x", host="unknown.test:8080", Authorization=passed) == 200
    assert gateway.raw("hostless", "/private/x", host="[::1]:8080", Authorization=passed) == 200


def test_an_issuer_vouches_for_its_own_consumers_only(gateway: Gateway) -> None:
    own = {"issuer": config.OWN_ISSUER}
    assert gateway.status("jwt", headers=bearer("boss", **own)) == 200
    assert gateway.status("jwt", headers=bearer("web", **own)) == 403
    assert gateway.status("jwt", headers=bearer("boss")) == 403
    assert gateway.status("jwt-some", headers=bearer("web", **own)) == 403
    assert gateway.status("jwt", headers=bearer("web", issuer=config.OIDC_ISSUER)) == 403


def _is_admin(path: str) -> bool:
    """Read a path as a lenient backend would."""
    plain = httpx.URL(f"http://x{path}").path if path.startswith("/") else path
    parts: list[str] = []
    for part in plain.replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return parts[:1] == ["admin"]


def test_consumer_restriction(gateway: Gateway) -> None:
    assert gateway.status("jwt-some", headers=bearer("web")) == 200
    assert gateway.status("jwt-some", headers=bearer("app")) == 403
    assert gateway.status("jwt-some") == 403
    assert gateway.status("key-some", headers={"apikey": config.API_KEY}) == 200
    other = gateway.ask("key-some", headers={"apikey": config.OTHER_KEY, "X-Consumer-Username": "pay"})
    assert (other.status_code, other.json()) == (403, {"message": "not you"})
    assert gateway.status("key-some", method="POST", headers={"apikey": config.API_KEY}) == 403
    assert gateway.status("key-some", headers={"X-Consumer-Username": "pay"}) == 401


def test_bearer_tokens(gateway: Gateway) -> None:
    good = bearer(None, issuer=config.OIDC_ISSUER, scope="write read")
    told = gateway.arrived("bearer", headers={**good, "X-Userinfo": "forged"})
    assert told["headers"]["x-userinfo"] != "forged"
    assert told["headers"]["x-access-token"] == good["Authorization"]
    assert gateway.status("bearer") == 403
    assert gateway.status("bearer", headers=bearer(None, issuer=config.OIDC_ISSUER, scope="write")) == 403
    assert gateway.status("bearer", headers=bearer("web")) == 403, "another route's issuer"
    assert gateway.status("bearer", headers={"Authorization": "Bearer opaque"}) == 401


def test_another_service_decides(gateway: Gateway) -> None:
    told = gateway.arrived(
        "forward", "/a/b?c=1", headers={"Authorization": "Bearer good", "X-User": "root"}, method="DELETE"
    )
    assert told["headers"]["x-user"] == "ada"
    asked = next(one for one in reversed(gateway.seen["echo"]) if one["path"] == "/check?x=1")
    assert asked["method"] == "GET"
    wanted = {
        "x-forwarded-uri": "/a/b?c=1",
        "x-forwarded-method": "DELETE",
        "x-forwarded-host": config.host("forward"),
        "x-forwarded-proto": "http",
        "authorization": "Bearer good",
    }
    assert wanted.items() <= asked["headers"].items()
    assert asked["headers"]["x-forwarded-for"].split(",")[0] == "127.0.0.1"
    refused = gateway.ask("forward")
    assert (refused.status_code, refused.text, refused.headers["x-why"]) == (401, "go away", "no token")
    assert gateway.status("forward-down") == 403, "a service that does not answer"
    assert gateway.status("forward-nowhere") == 500, "a script that fails must not let the request pass"
    told = gateway.arrived("opa", "/p?a=%C3%BC", headers={"X-Role": "admin"})
    assert told["headers"]["x-role"] == "checked"
    refused = gateway.ask("opa", "/p?a=%C3%BC", headers={"X-Role": "guest"})
    assert (refused.status_code, refused.json(), refused.headers["x-no"]) == (402, {"why": "role"}, "1")
    asked = next(one for one in reversed(gateway.seen["echo"]) if one["path"] == "/v1/data/example")
    input_ = json.loads(asked["body"])["input"]
    assert input_["request"]["path"] == "/p"
    assert input_["var"]["remote_addr"] == "127.0.0.1"


def test_limits(gateway: Gateway) -> None:
    codes = [gateway.status("rate") for _ in range(5)]
    assert codes[0] == 200
    assert codes[-1] == 429
    one = [gateway.status("count", headers={"X-Client": "one"}) for _ in range(3)]
    assert one == [200, 200, 403]
    assert gateway.status("count", headers={"X-Client": "two"}) == 200
    assert [gateway.status("count") for _ in range(3)] == [200, 200, 403], "no key is no way around"
    shared = [gateway.status("rate-shared") for _ in range(8)]
    assert 1 <= shared.count(200) <= 3, shared  # a service that is late on a busy machine refuses as well
    assert 429 in shared
    assert gateway.status("workflow", "/hidden") == 410
    assert [gateway.status("workflow") for _ in range(2)] == [200, 503]


def test_functions_that_are_recognised(gateway: Gateway) -> None:
    spoofed = {"X-User-Id": "root", "X-Tenant": "one", "X-Gate": "mine"}
    told = gateway.arrived("function", headers=spoofed)["headers"]
    assert "x-user-id" not in told
    assert "x-tenant" not in told
    assert told["x-gate"] == 'a; "b"'
    # What was removed first cannot choose a bucket of its own afterwards.
    answers = [gateway.status("function", headers={"X-Tenant": str(one)}) for one in range(4)]
    assert answers[-1] == 429
    answer = gateway.ask("function-answer")
    assert (answer.status_code, answer.text) == (418, "short and stout\n")


def test_where_requests_go(gateway: Gateway) -> None:
    assert gateway.arrived("split")["service"] == "echo"
    assert gateway.arrived("split", headers={"X-Beta": "1"})["service"] == "second"
    assert gateway.arrived("label", "/?v=2")["headers"]["x-label"] == "two"
    assert gateway.arrived("label", "/?v=3")["headers"]["x-label"] == "other"
    assert gateway.arrived("mirror", "/copied")["service"] == "echo"
    assert eventually(lambda: any(one["path"] == "/copied" for one in gateway.seen["second"]), 5)
    assert gateway.arrived("breaker")["service"] == "second"
    assert gateway.arrived("connections")["service"] == "second"
    told = gateway.arrived("azure", "/x?y=1", headers={"x-functions-key": "mine"})
    assert (told["path"], told["headers"]["x-functions-key"]) == ("/api/fn?y=1", "fn-key")
    assert gateway.arrived("openfunction")["headers"]["authorization"] == "Basic dTpw"
    told = gateway.arrived("whisk")
    assert told["method"] == "POST"
    assert told["path"] == "/api/v1/namespaces/ns/actions/do?blocking=true&result=true&timeout=3000"


def test_compression(gateway: Gateway) -> None:
    for name, encoding in (("gzip", "gzip"), ("brotli", "br")):
        answer = gateway.ask(name, "/" + "a" * 200, headers={"Accept-Encoding": encoding})
        assert answer.headers.get("content-encoding") == encoding
        plain = gateway.ask("plain", "/" + "a" * 200, headers={"Accept-Encoding": encoding})
        assert "content-encoding" not in plain.headers


def test_ids_traces_and_errors(gateway: Gateway) -> None:
    answer = gateway.ask("ids", headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["headers"]["x-request-id"] == "mine"
    answer = gateway.ask("ids-other")
    assert answer.headers["x-trace"] == answer.json()["headers"]["x-trace"] != ""
    nothing = gateway.ask("nowhere")
    assert (nothing.status_code, nothing.text) == (404, "<h1>nothing here</h1>")
    assert nothing.headers["content-type"] == "text/html"
    assert "traceparent" in gateway.arrived("traces")["headers"]
    assert eventually(lambda: any(one["path"] == "/v1/traces" for one in gateway.seen["second"]), 10)


def test_json_becomes_grpc(gateway: Gateway) -> None:
    read = gateway.ask("transcode", "/user?id=u-7")
    assert read.status_code == 200, read.text
    assert read.json()["id"] == "u-7"
    assert gateway.ask("transcode", "/user", "POST", json={"id": "u-8"}).json()["id"] == "u-8"


def test_grpc_web(gateway: Gateway) -> None:
    headers = {"Content-Type": "application/grpc-web+proto", "Accept": "application/grpc-web+proto"}
    frame = b"\0\0\0\0\5\x0a\3u-9"
    answer = gateway.ask("web", "/identity.v1.Identity/GetUser", "POST", headers=headers, content=frame)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    assert b"u-9" in answer.content
    assert b"grpc-status:0" in answer.content


def test_the_log_goes_to_stdout(gateway: Gateway, running: LabState) -> None:
    gateway.ask("logs", "/find-me-in-the-log")
    log = Path(running["kubeconfig"]).parent / "logs" / "istio-proxy.cri"
    assert eventually(lambda: "/find-me-in-the-log" in log.read_text(errors="replace"), 15)


def test_tcp_ports(gateway: Gateway) -> None:
    assert eventually(lambda: gateway.tcp(config.TCP_PORT) == "second", 20)
    with socket.create_connection(("127.0.0.1", config.TCP_CLOSED), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not connection.recv(100), "the listener is there, and cuts the connection"
    assert gateway.status("addresses") == 403, "rules about hosts still hold on HTTP"


NOTHING_TO_SEE = {
    "ai": "takes no options and emits nothing",
    "proxy-buffering": "emits nothing",
    "proxy-control": "emits nothing",
    "prometheus": "its Telemetry needs istio.stats, which upstream Envoy lacks",
    "zipkin": "the same Telemetry as opentelemetry",
    "skywalking": "the same Telemetry as opentelemetry",
    "real-ip": "blocks in this configuration; its number is a setting of the whole gateway",
}


def test_every_converted_plugin_is_here() -> None:
    """A plugin with a rule has an example in this configuration, or a reason."""
    used = {name for plugins in config.PLUGINS.values() for name in plugins}
    used |= {f"stream:{name}" for one in config.STREAMS for name in one["plugins"]}
    inner = {name for name in handled() if facts()[name].risk in ("none", "observability")}
    missing = set(handled()) - used - set(NOTHING_TO_SEE) - inner
    assert not missing
