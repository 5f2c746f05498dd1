"""Probes over TLS: the certificate is verified against the real host name, not the gateway's address."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateshift.params.model import Probe
from gateshift.traffic.probes import Address, run

HOST = "api.voiceassistant.com"
LB = "istio-lab.elb.us-east-1.amazonaws.com"


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str, list[str | None]]]:
    folder = tmp_path_factory.mktemp("tls")
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(folder))
    context.sni_callback = lambda _sock, name, _context: names.append(name)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Host"] == HOST else 421)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_port, str(folder / "ca.pem"), names
    made.shutdown()
    made.server_close()


def probe(host: str = HOST) -> Probe:
    return Probe.model_validate({"name": "tls", "host": host, "tls": True})


def test_the_host_name_is_in_sni_and_verified(server: tuple[int, str, list[str | None]]) -> None:
    port, ca, names = server
    address = Address(LB, connect_to={f"{LB}:443": f"127.0.0.1:{port}"}, ca_file=ca)
    (result,) = run([probe()], address)
    assert result.ok, result.why
    assert names[-1] == HOST


def test_a_certificate_for_another_name_fails(server: tuple[int, str, list[str | None]]) -> None:
    port, ca, _ = server
    address = Address(LB, connect_to={f"{LB}:443": f"127.0.0.1:{port}"}, ca_file=ca)
    (result,) = run([probe("ws.voiceassistant.com")], address)
    assert result.status is None
    assert "certificate" in result.why.lower()


def test_an_unknown_authority_fails(server: tuple[int, str, list[str | None]]) -> None:
    port, _, _ = server
    (result,) = run([probe()], Address(LB, connect_to={f"{LB}:443": f"127.0.0.1:{port}"}))
    assert result.status is None
    assert "certificate" in result.why.lower()
