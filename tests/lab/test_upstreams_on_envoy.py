"""Upstreams and logins on a real Envoy: client certificates, health checks, an identity provider."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateshift.lab.sidecars import Sidecar, lab_api
from gateshift.lab.state import LabState
from tests.lab import plugin_config as config
from tests.lab.plugin_gateway import Gateway, applied
from tests.lab.plugin_services import SICK, echo
from tests.lab.test_controlplane_lab import eventually

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def gateway(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with applied(running, tmp_path_factory.mktemp("tools")) as found:
        yield found


@pytest.fixture(autouse=True)
def everybody_well() -> Iterator[None]:
    yield
    SICK.clear()


def test_upstreams_get_the_client_certificate_from_its_secret(gateway: Gateway) -> None:
    assert eventually(lambda: gateway.status("mtls") == 200, 20), gateway.ask("mtls").text
    told = gateway.arrived("mtls", "/pay")
    assert told["service"] == "guarded"
    assert told["client"]["commonName"] == "gateway"


def test_each_backend_gets_its_own_host(gateway: Gateway) -> None:
    told = [gateway.arrived("hosts") for _ in range(40)]
    assert {(one["service"], one["headers"]["host"]) for one in told} == {
        ("echo", config.service("echo")),
        ("second", config.service("second")),
    }
    told = [gateway.arrived("hosts-split", headers=more) for more in ({}, {"X-Beta": "1"})]
    assert [(one["service"], one["headers"]["host"]) for one in told] == [
        ("echo", config.host("hosts-split")),
        ("second", "canary.test"),
    ]


def test_a_process_that_fails_is_taken_out_by_passive_checks(gateway: Gateway) -> None:
    answers = [gateway.status("passive") for _ in range(30)]
    assert set(answers) == {200, 500}, "both processes answer, and one of them fails"
    # Three failures of one process in turn with the other, and a few that were on their way.
    assert 3 <= answers.count(500) <= 8
    assert answers[-10:] == [200] * 10
    served = len(gateway.seen["pair-bad"])
    assert [gateway.status("passive") for _ in range(10)] == [200] * 10
    assert len(gateway.seen["pair-bad"]) == served


def served_by(gateway: Gateway, name: str, requests: int) -> list[str]:
    """Ask, demand 200 each time, and return who answered."""
    return [gateway.arrived(name)["service"] for _ in range(requests)]


def settled(gateway: Gateway, wanted: list[bool]) -> bool:
    """Wait until Envoy's checks say *wanted* of the ward's two endpoints, and its workers know."""
    told = eventually(lambda: sorted(gateway.healthy("ward")) == sorted(wanted), 20)
    time.sleep(1.2)  # changes within a second after another reach the workers together, at its end
    return told


def test_an_endpoint_that_fails_active_checks_gets_no_request_until_it_is_well(gateway: Gateway) -> None:
    assert settled(gateway, [True, True])
    assert set(served_by(gateway, "active", 10)) == {"ward-a", "ward-b"}
    checks = [one for one in gateway.seen["ward-b"] if one["path"] == "/healthz"]
    assert checks[-1]["headers"]["host"] == config.service("ward").partition(":")[0]
    SICK["ward-b"] = "/"
    # No request of a client finds it out: two checks in turn do.
    assert settled(gateway, [True, False])
    assert served_by(gateway, "active", 40) == ["ward-a"] * 40
    SICK.clear()
    assert settled(gateway, [True, True])
    assert set(served_by(gateway, "active", 10)) == {"ward-a", "ward-b"}


def test_all_endpoints_are_used_when_none_is_healthy(gateway: Gateway) -> None:
    SICK["ward-a"] = SICK["ward-b"] = "/healthz"
    assert settled(gateway, [False, False])
    assert set(served_by(gateway, "active", 20)) == {"ward-a", "ward-b"}


def test_checks_speak_mutual_tls_with_pods_of_the_mesh(gateway: Gateway, running: LabState) -> None:
    with echo("meshed") as (port, seen):
        sidecar = Sidecar(running, "meshed", "127.0.0.8", port, service_port=8000)
        strict = {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "meshed", "namespace": config.NAMESPACE},
            "spec": {"selector": {"matchLabels": {"app": "meshed"}}, "mtls": {"mode": "STRICT"}},
        }
        where = f"/apis/security.istio.io/v1/namespaces/{config.NAMESPACE}/peerauthentications/meshed"
        with lab_api(running) as api:
            api.apply(where, strict)
        try:
            sidecar.start()
            assert eventually(lambda: gateway.status("active-tls") == 200, 30)
            plain = httpx.Client(timeout=5, trust_env=False)
            with pytest.raises(httpx.HTTPError):
                plain.get(f"http://127.0.0.8:{sidecar.port}/healthz")
            assert eventually(lambda: gateway.healthy("meshed") == [True], 20)
            before = gateway.statistic("meshed", "health_check.success")
            assert eventually(lambda: gateway.statistic("meshed", "health_check.success") > before, 20)
            told = next(one for one in seen if one["path"] == "/healthz")
            assert "x-forwarded-client-cert" in told["headers"], (
                "the check came without the mesh's certificate"
            )
            SICK["meshed"] = "/healthz"
            assert eventually(lambda: gateway.healthy("meshed") == [False], 20)
        finally:
            sidecar.stop()


def visited(gateway: Gateway, url: str) -> httpx.Response:
    """Go where the gateway sends a browser: to the identity provider's page."""
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", config.host("idp"), "/auth")
    return gateway.ask("idp", f"/auth?{parts.query}")


def cookies_of(answer: httpx.Response) -> dict[str, str]:
    """Keep cookies as a browser on https would: the client of this test speaks plain HTTP."""
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        name, _, value = line.partition(";")[0].partition("=")
        if value == "deleted":
            continue
        assert "secure" in line.lower()
        assert "httponly" in line.lower()
        found[name] = value
    return found


def jar(cookies: dict[str, str]) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}


def test_a_login_by_envoy(gateway: Gateway) -> None:
    before = len(gateway.seen["echo"])
    sent = gateway.ask("login", "/orders?id=7")
    assert sent.status_code == 302
    asked = parse_qs(urlsplit(sent.headers["location"]).query)
    host = config.host("login")
    assert (asked["client_id"], asked["scope"]) == (["shop"], ["openid email"])
    assert asked["redirect_uri"] == [f"http://{host}/callback"]
    assert asked["code_challenge_method"] == ["S256"]
    forged = {"Authorization": "Bearer of-my-own", "X-Access-Token": "mine", "X-Userinfo": "root"}
    assert gateway.status("login", headers=forged) == 302
    assert gateway.status("login", headers=jar({"BearerToken": "x", "OauthHMAC": "x"})) == 302
    back = urlsplit(visited(gateway, sent.headers["location"]).headers["location"])
    assert (back.netloc, back.path) == (host, "/callback")
    # A code that somebody else brings, without the cookies of the browser that asked, is worth nothing.
    assert gateway.status("login", f"{back.path}?{back.query}") == 401
    assert len(gateway.seen["echo"]) == before, "somebody without a login reached the backend"
    cookies = cookies_of(sent)
    done = gateway.ask("login", f"{back.path}?{back.query}", headers=jar(cookies))
    assert done.status_code == 302, done.text
    assert done.headers["location"] == f"http://{host}/orders?id=7"
    cookies |= cookies_of(done)
    told = gateway.arrived("login", "/orders?id=7", headers={**jar(cookies), "X-Userinfo": "root"})
    assert told["headers"]["authorization"] == "Bearer an-opaque-token"
    assert told["headers"]["x-access-token"] == "Bearer an-opaque-token"
    assert "x-userinfo" not in told["headers"]
    changed = {name: f"{value[:-2]}xx" if "Hmac" in name else value for name, value in cookies.items()}
    assert changed != cookies
    assert gateway.status("login", headers=jar(changed)) == 302
    out = gateway.ask("login", "/logout", headers=jar(cookies))
    assert out.status_code == 302
    assert out.headers["location"] == f"http://{host}/"
    cleared = [one for one in out.headers.get_list("set-cookie") if "=deleted;" in one]
    assert len(cleared) >= 3, out.headers


def test_a_login_of_one_client_is_none_of_another(gateway: Gateway) -> None:
    sent = gateway.ask("login", "/")
    back = urlsplit(visited(gateway, sent.headers["location"]).headers["location"])
    cookies = cookies_of(sent)
    done = gateway.ask("login", f"{back.path}?{back.query}", headers=jar(cookies))
    cookies |= cookies_of(done)
    assert gateway.status("login", headers=jar(cookies)) == 200
    before = len(gateway.seen["echo"])
    assert gateway.status("login-deny", headers=jar(cookies)) == 401
    assert gateway.status("login-deny") == 401
    assert len(gateway.seen["echo"]) == before


def test_an_upstream_that_wants_a_certificate_refuses_whoever_has_none(gateway: Gateway) -> None:
    before = len(gateway.seen["guarded"])
    answer = gateway.ask("mtls-none")
    assert answer.status_code == 503, answer.text
    assert len(gateway.seen["guarded"]) == before, "the backend took a request without certificate"
    assert gateway.status("mtls") == 200
