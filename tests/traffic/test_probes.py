"""Probes against real HTTP, WebSocket and gRPC servers on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from websockets.sync.server import serve

from gateshift.params.model import Probe
from gateshift.traffic.probes import Address, parity, run

LB = "istio-lab.elb.us-east-1.amazonaws.com"
TOKEN = "very-secret-token"


def probe(**more: Any) -> Probe:
    return Probe.model_validate({"name": "one", "host": "api.voiceassistant.com", **more})


def at(port: int) -> Address:
    return Address(LB, connect_to={f"{LB}:80": f"127.0.0.1:{port}"})


@pytest.fixture
def http() -> Iterator[tuple[int, list[tuple[str, str, str]]]]:
    seen: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append((self.command, self.headers["Host"], self.headers.get("Authorization", "")))
            status = 200 if self.path == "/ok" else 401 if self.path == "/auth" else 404
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, seen
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_http_goes_to_the_gateway_with_the_real_host(http: tuple[int, list[Any]]) -> None:
    port, seen = http
    (result,) = run([probe(path="/ok", token=SecretStr(TOKEN))], at(port))
    assert result.ok, result.why
    assert seen == [("GET", "api.voiceassistant.com", f"Bearer {TOKEN}")]


def test_a_wrong_status_fails_and_does_not_show_the_token(http: tuple[int, list[Any]]) -> None:
    (result,) = run([probe(path="/auth", token=SecretStr(TOKEN))], at(http[0]))
    assert not result.ok
    assert result.status == 401
    assert "401 instead of 200" in result.why
    assert TOKEN not in repr(result)


def test_an_expected_refusal_passes(http: tuple[int, list[Any]]) -> None:
    assert run([probe(path="/auth", expect=401)], at(http[0]))[0].ok


@pytest.mark.parametrize("kind", ["http", "websocket", "grpc"])
def test_nobody_listens(kind: str, unused_port: int) -> None:
    (result,) = run([probe(kind=kind, path="/a.B/C")], at(unused_port), timeout=3)
    assert not result.ok
    assert result.why


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "method", "ok", "asked"),
    [
        ({1}, "GET", True, 3),  # one slow moment
        ({1, 3}, "GET", False, 3),  # a gateway that drops some does not pass by luck
        ({1, 2, 3}, "GET", False, 2),
        ({1}, "POST", False, 1),  # it may change data
    ],
)
def test_a_late_answer_is_asked_for_again(late: set[int], method: str, ok: bool, asked: int) -> None:
    taken: list[socket.socket] = []

    def answer() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return
            if len(taken) not in late:
                taken[-1].recv(65536)
                taken[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        address = at(server.getsockname()[1])
        (result,) = run([probe(method=method)], address, timeout=2.0, patient=True)
        server.shutdown(socket.SHUT_RDWR)
    assert (result.ok, len(taken)) == (ok, asked)
    assert ("within 2 s" in result.why) == (not ok)


def test_websocket_upgrade_and_echo() -> None:
    hosts: list[str] = []

    def echo(connection: Any) -> None:
        hosts.append(connection.request.headers["Host"])
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.socket.getsockname()[1]
        ws = probe(kind="websocket", host="ws.voiceassistant.com", path="/ws/voice/stream", body="hello")
        (result,) = run([ws], at(port))
        server.shutdown()
    assert result.ok, result.why
    assert result.status == 101
    assert result.answer.body == b"hello"
    assert hosts == ["ws.voiceassistant.com"]


def test_websocket_refused_with_a_status(http: tuple[int, list[Any]]) -> None:
    (result,) = run([probe(kind="websocket", path="/auth")], at(http[0]))
    assert result.status == 401
    assert not result.ok


class _Identity(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    def __init__(self) -> None:
        self.authority: list[str] = []

    def service(self, details: Any) -> Any:
        if details.method != "/identity.v1.Identity/GetUser":
            return None

        def answer(request: bytes, context: Any) -> bytes:
            if not any(k == "authorization" for k, _ in context.invocation_metadata()):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return b"\x0a" + request

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def rpc() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Identity(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait(5)


GRPC = {"kind": "grpc", "host": "grpc.voiceassistant.com", "path": "/identity.v1.Identity/GetUser"}


def test_grpc_call_with_raw_bytes(rpc: int) -> None:
    (result,) = run([probe(**GRPC, token=SecretStr(TOKEN), body="hex:0a0131")], at(rpc))
    assert result.ok, result.why
    assert result.answer.body == b"\x0a\x0a\x011"


@pytest.mark.parametrize(("path", "code"), [("/identity.v1.Identity/GetUser", 16), ("/no.Such/Call", 12)])
def test_grpc_status_codes(rpc: int, path: str, code: int) -> None:
    (result,) = run([probe(**{**GRPC, "path": path})], at(rpc))
    assert not result.ok
    assert result.status == code
    assert run([probe(**{**GRPC, "path": path}, expect=code)], at(rpc))[0].ok


def test_parity_compares_and_does_not_send_unsafe_methods(http: tuple[int, list[Any]]) -> None:
    port, seen = http
    probes = [probe(name="ok", path="/ok"), probe(name="write", method="POST", path="/ok")]
    ok, write = parity(probes, at(port), at(port))
    assert ok.agrees
    assert write.skipped
    assert not write.agrees
    assert [method for method, _, _ in seen] == ["GET", "GET"]
    assert all(p.agrees for p in parity(probes, at(port), at(port), unsafe=True))


def test_parity_names_the_difference(http: tuple[int, list[Any]], unused_port: int) -> None:
    (result,) = parity([probe(path="/ok")], at(http[0]), at(unused_port))
    assert not result.agrees
    assert "Istio did not answer" in result.why


def test_no_probes_no_results() -> None:
    assert run([], at(1)) == ()
