"""What stands behind the gateway for the plugins: two echo services and a rate limit service.

They listen on loopback; WorkloadEntries put them behind Services of the lab's cluster.
"""

from __future__ import annotations

import json
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

from gateshift.lab.certs import Authority
from tests.lab.plugin_config import NAMESPACE
from tests.lab.plugin_identity import identity_provider

SICK: dict[str, str] = {}
"""Services that answer 503, by the prefix of the paths under which they do; tests make them sick and well."""

RLS = """
syntax = "proto3";
package envoy.service.ratelimit.v3;
message Entry { string key = 1; string value = 2; }
message Descriptor { repeated Entry entries = 1; }
message RateLimitRequest { string domain = 1; repeated Descriptor descriptors = 2; uint32 hits_addend = 3; }
message RateLimitResponse { enum Code { UNKNOWN = 0; OK = 1; OVER_LIMIT = 2; } Code overall_code = 1; }
"""
"""The parts of Envoy's rls.proto that a service needs; field numbers are Envoy's."""


class Echo(BaseHTTPRequestHandler):
    """Tells what arrived; a few paths play an authorization service."""

    protocol_version = "HTTP/1.1"
    name = "echo"
    seen: list[dict[str, Any]]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""

    def _handle(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size).decode(errors="replace") if size else self._chunks()
        headers = {name.lower(): value for name, value in self.headers.items()}
        told = {"service": self.name, "method": self.command, "path": self.path, "headers": headers}
        told["body"] = body
        if isinstance(self.connection, ssl.SSLSocket):
            told["client"] = dict(pair[0] for pair in self.connection.getpeercert()["subject"])
        self.seen.append(told)
        status, more, text = 200, {}, json.dumps(told)
        if self.name in SICK and self.path.startswith(SICK[self.name]):
            status = 503
        elif self.name == "pair-bad" and self.path != "/healthz":
            status = 500
        elif self.path.startswith("/status/"):
            status = int(self.path.split("/")[2])
        elif self.path.startswith("/check"):
            good = headers.get("authorization") == "Bearer good"
            status, more = (204, {"x-user": "ada"}) if good else (401, {"x-why": "no token"})
            text = "" if good else "go away"
        elif self.path.startswith("/hang"):
            threading.Event().wait(1.0)
        elif self.path == "/v1/data/example":
            asked = json.loads(body)["input"]["request"]
            allow = asked["headers"].get("x-role") == "admin" and asked["query"].get("a") == "ü"
            no = {"allow": False, "status_code": 402, "reason": {"why": "role"}, "headers": {"X-No": "1"}}
            text = json.dumps({"result": {"allow": True, "headers": {"X-Role": "checked"}} if allow else no})
        data = text.encode()
        self.send_response(status)
        for key, value in {"content-type": "application/json", "x-backend": self.name, **more}.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(data)

    def _chunks(self) -> str:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return ""
        text = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            text += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return text.decode(errors="replace")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = _handle  # noqa: N815 - the base class calls them so


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that did not wait is part of the test."""


def mutual(authority: Authority) -> ssl.SSLContext:
    """Return the settings of a server that takes only clients with a certificate of *authority*."""
    own = authority.issue("guarded", "guarded", names=["guarded"])
    settings = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    settings.verify_mode = ssl.CERT_REQUIRED
    settings.load_cert_chain(own.certificate, own.key)
    return settings


def client_secret(authority: Authority, name: str) -> dict[str, Any]:
    """Return the Secret that an operator fills with the upstream's client certificate."""
    pair = authority.issue("gateway", "gateway")
    data = {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
    data["ca.crt"] = authority.certificate.read_text()
    metadata = {"name": name, "namespace": "istio-system"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


@contextmanager
def echo(name: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Serve an echo; give its port and what it has seen."""
    seen: list[dict[str, Any]] = []
    kind = type(name, (Echo,), {"name": name, "seen": seen})
    server = _Server(("127.0.0.1", 0), kind)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()


def _messages() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "rls.proto"), Path(folder, "rls.pb")
        source.write_text(RLS)
        assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={target}", str(source)]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    package = "envoy.service.ratelimit.v3"
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{one}"))
        for one in ("RateLimitRequest", "RateLimitResponse")
    )  # type: ignore[return-value]  # two names give two classes


def _limit(tree: list[dict[str, Any]], entries: list[tuple[str, str]]) -> int | None:
    """Return what the service's configuration allows for a descriptor."""
    for one in tree:
        if one["key"] == entries[0][0] and one.get("value", entries[0][1]) == entries[0][1]:
            if len(entries) == 1:
                return int(one["rate_limit"]["requests_per_unit"]) if "rate_limit" in one else None
            return _limit(one.get("descriptors", []), entries[1:])
    return None


@contextmanager
def rate_limits(settings: str) -> Iterator[int]:
    """Serve Envoy's rate limit protocol by the emitted settings, in one endless window; give the port."""
    request_type, response_type = _messages()
    config = yaml.safe_load(settings)
    counted: Counter[tuple[tuple[str, str], ...]] = Counter()

    def decide(request: Any, _: Any) -> Any:
        over = False
        for one in request.descriptors:
            entries = [(entry.key, entry.value) for entry in one.entries]
            allowed = _limit(config["descriptors"], entries) if request.domain == config["domain"] else None
            counted[tuple(entries)] += 1
            over |= allowed is not None and counted[tuple(entries)] > allowed
        return response_type(overall_code=2 if over else 1)

    handler = grpc.unary_unary_rpc_method_handler(
        decide,
        request_deserializer=request_type.FromString,
        response_serializer=lambda one: one.SerializeToString(),
    )
    name = "envoy.service.ratelimit.v3.RateLimitService"
    server = grpc.server(ThreadPoolExecutor(2))
    generic = grpc.method_handlers_generic_handler(name, {"ShouldRateLimit": handler})
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


def _objects(name: str, port: int, kind: str, *targets: int) -> list[dict[str, Any]]:
    """Return a Service and one WorkloadEntry for each of its processes."""
    ports = [{"name": kind, "port": port, "targetPort": port}]
    found: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"app": name}, "ports": ports},
        }
    ]
    for number, target in enumerate(targets):
        entry = {"address": "127.0.0.1", "labels": {"app": name}, "ports": {kind: target}}
        found.append(
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "WorkloadEntry",
                "metadata": {"name": f"{name}-{number}", "namespace": NAMESPACE},
                "spec": entry,
            }
        )
    return found


@contextmanager
def services(settings: str) -> Iterator[tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]]:
    """Serve everything; give the cluster's objects for it and what each echo has seen."""
    with ExitStack() as stack:
        objects, seen = [], {}
        for name in ("echo", "second"):
            port, seen[name] = stack.enter_context(echo(name))
            objects += _objects(name, 8000, "http", port)
        for group, members in (("pair", ("pair-good", "pair-bad")), ("ward", ("ward-a", "ward-b"))):
            targets = []
            for name in members:
                port, seen[name] = stack.enter_context(echo(name))
                targets.append(port)
            objects += _objects(group, 8000, "http", *targets)
        authority = Authority(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        port, seen["guarded"] = stack.enter_context(echo("guarded", mutual(authority)))
        objects += _objects("guarded", 8443, "http", port)
        objects.append(client_secret(authority, "route-mtls-client"))
        port, seen["idp"] = stack.enter_context(identity_provider())
        objects += _objects("idp", 8000, "http", port)
        objects += _objects("ratelimit", 8081, "grpc", stack.enter_context(rate_limits(settings)))
        yield objects, seen
