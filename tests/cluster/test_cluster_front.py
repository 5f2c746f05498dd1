"""The gateway from outside: a TLS server on loopback stands for the load balancer."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi
import pytest

from gateshift.cluster import front, verify
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.params.model import Params, VerifyParams
from gateshift.traffic.probes import Address
from tests.cluster.conftest import make_params
from tests.cluster.test_cluster_preflight import tls_secret

LB = "new.elb.example.com"


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Front:
    port: int
    secret: dict[str, Any]
    ca: str

    def address(self, ca: str | None = None) -> Address:
        to = f"127.0.0.1:{self.port}"
        return Address(LB, connect_to={f"{LB}:443": to, f"{LB}:80": to}, ca_file=ca or self.ca)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Front]:
    data = tls_secret("api.shop.com", days=60)
    crt, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    crt.write_bytes(base64.b64decode(data["tls.crt"]))
    key.write_bytes(base64.b64decode(data["tls.key"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    httpd.daemon_threads = True
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield Front(httpd.server_address[1], {"data": data}, str(crt))
    httpd.shutdown()
    httpd.server_close()


def look(
    front_: Front, secret: dict[str, Any] | None, ca: str | None = None, host: str = "api.shop.com"
) -> Check:
    secrets = {"shop": secret} if secret else {}
    (found,) = front.certificates(make_params(), front_.address(ca), {host: "shop"}, secrets)
    return found


def test_the_secrets_certificate_is_served(served: Front) -> None:
    check = look(served, served.secret)
    assert check.status == "pass", check
    assert "60 days left" in check.measured or "59 days left" in check.measured


def test_another_certificate_than_the_secrets_is_a_failure(served: Front) -> None:
    check = look(served, {"data": tls_secret("api.shop.com")})
    assert check.status == "fail"
    assert "another certificate than Secret shop holds" in check.measured


def test_wrong_name_untrusted_chain_and_missing_secret_are_failures(served: Front, tmp_path: Path) -> None:
    assert "Hostname mismatch" in look(served, served.secret, host="ws.shop.com").measured
    other = tmp_path / "other.pem"
    other.write_bytes(base64.b64decode(tls_secret("other")["tls.crt"]))
    assert "self-signed" in look(served, served.secret, ca=str(other)).measured
    assert "is not in istio-system" in look(served, None).measured


def test_no_tls_at_all_is_said(served: Front) -> None:
    gone = Front(1, served.secret, served.ca)
    check = look(gone, served.secret)
    assert check.status == "fail"
    assert "TLS to 127.0.0.1:1 failed" in check.measured


def test_any_answer_counts_and_silence_does_not(served: Front) -> None:
    (fine,) = front.answers(served.address(), ["api.shop.com"], tls=True)
    assert fine.status == "pass"
    assert "1 addresses" in fine.measured
    (bad,) = front.answers(Front(1, served.secret, served.ca).address(), ["api.shop.com"], tls=False)
    assert bad.status == "fail"
    assert "127.0.0.1:1 for api.shop.com" in bad.measured
    (lost,) = front.answers(Address("no-such-name.invalid"), ["api.shop.com"], tls=False)
    assert "does not resolve" in lost.measured


def test_hosts_that_are_silent_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_TIMEOUT", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(32)  # connections are taken and never answered
        address = Front(mute.getsockname()[1], {}, "").address(certifi.where())
        begun = time.monotonic()
        (bad,) = front.answers(address, [f"h{n}.shop.com" for n in range(12)], tls=False)
    assert "for h0.shop.com: no answer within 0.5 s" in bad.measured
    assert time.monotonic() - begun < 4


def test_a_name_that_the_cloud_has_still_to_publish_is_waited_for(
    served: Front, params: Params, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify as a pipeline runs it right behind the install; the system's resolver is what is told here."""
    monkeypatch.setattr(front, "_LOOK_AGAIN", 0.05)
    monkeypatch.setattr(verify, "_STARTING", 0.0)
    monkeypatch.setattr(verify, "_PATIENCE", 0.0)
    real, asked = socket.getaddrinfo, []

    def resolver(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if host != LB:
            return real(host, port, *more, **named)
        asked.append(host)
        if len(asked) < 4:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", served.port, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    probes = [{"name": "one", "kind": "http", "host": "api.shop.com", "path": "/", "expect": 404}]
    given = params.model_copy(update={"verify": VerifyParams.model_validate({"probes": probes})})
    said: list[str] = []
    checks = verify.run(given, cluster, istio_target=LB, progress=said.append, probing=lambda _: [])
    assert said[0].startswith(f"load balancer: {LB} does not resolve yet")
    assert not [c for c in checks if "does not resolve" in c.measured]


def test_a_name_that_never_comes_is_said_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_PUBLISHED", 0.2)
    monkeypatch.setattr(front, "_LOOK_AGAIN", 0.05)
    nowhere = Address("no-such-name.invalid")
    front.await_name(nowhere)
    (lost,) = front.answers(nowhere, ["api.shop.com"], tls=False)
    assert (lost.status, "does not resolve" in lost.measured) == ("fail", True)


class Slow:
    """A server that takes each connection, and never serves the *silent* ones (the first is 1)."""

    def __init__(self, port: int, silent: Callable[[int], bool]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._to, self._silent, self._open = port, silent, []  # type: ignore[var-annotated]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for n in itertools.count(1):
            try:
                taken, _ = self.socket.accept()
            except OSError:
                return
            self._open.append(taken)
            if not self._silent(n):
                behind = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((taken, behind), (behind, taken)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("silent", "status"),
    [
        (lambda n: n == 1, "pass"),  # one slow moment
        (lambda n: n in {1, 3}, "fail"),  # some are dropped: luck is no proof
        (lambda n: True, "fail"),
    ],
)
def test_a_late_answer_is_asked_for_again(
    served: Front, monkeypatch: pytest.MonkeyPatch, silent: Callable[[int], bool], status: str
) -> None:
    monkeypatch.setattr(front, "_TIMEOUT", 2.0)
    slow = Slow(served.port, silent)
    address = Front(slow.port, served.secret, served.ca).address()
    (check,) = front.answers(address, ["api.shop.com"], tls=True)
    slow.socket.close()
    assert check.status == status
    assert ("no answer within 2 s" in check.measured) == (status == "fail")


@pytest.mark.slow
def test_a_handshake_that_is_late_is_made_again(served: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_TIMEOUT", 2.0)
    for silent, status in ((lambda n: n == 1, "pass"), (lambda n: True, "fail")):
        slow = Slow(served.port, silent)
        check = look(Front(slow.port, served.secret, served.ca), served.secret)
        slow.socket.close()
        assert check.status == status, check


def test_a_listener_of_the_gateway_api_is_a_server() -> None:
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "api"}]}
    listeners = [
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "api.shop.com", "tls": tls},
    ]
    gateway = {"spec": {"listeners": listeners}}
    assert [(s["port"]["number"], s["hosts"]) for s in front.servers_of(gateway)] == [
        (80, ["*"]),
        (443, ["api.shop.com"]),
    ]
    assert front.tls_hosts([gateway], ["api.shop.com", "other.com"]) == {"api.shop.com": "api"}


def test_the_most_exact_server_names_the_secret() -> None:
    def server(name: str, *hosts: str, mode: str = "SIMPLE") -> dict[str, Any]:
        return {"hosts": list(hosts), "tls": {"mode": mode, "credentialName": name}}

    servers = [
        server("wild", "*.shop.com"),
        server("api", "apps/api.shop.com"),
        server("any", "*"),
        server("through", "tcp.shop.com", mode="PASSTHROUGH"),
        {"hosts": ["plain.com"]},
    ]
    hosts = ["api.shop.com", "ws.shop.com", "a.b.shop.com", "plain.com"]
    assert front.tls_hosts([{"spec": {"servers": servers}}], hosts) == {
        "api.shop.com": "api",
        "ws.shop.com": "wild",
        "a.b.shop.com": "any",
        "plain.com": "any",
    }
