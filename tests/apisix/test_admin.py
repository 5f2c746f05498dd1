"""The Admin client against a local HTTP server that answers as APISIX v3 does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateshift.apisix.admin import AdminClient
from gateshift.apisix.model import Kind
from gateshift.errors import ApisixError
from tests.served import served

KEY = "test-admin-key"


class Api(BaseHTTPRequestHandler):
    server_version = "APISIX/3.9.1"
    sys_version = ""
    failures = 0

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.headers["X-API-KEY"] != KEY:
            return self.answer(401, {"error_msg": "failed to check token"})
        if Api.failures:
            Api.failures -= 1
            return self.answer(503, {})
        url = urlsplit(self.path)
        kind = url.path.removeprefix("/apisix/admin/")
        page = int(parse_qs(url.query).get("page", ["1"])[0])
        if kind == "routes":
            items = [
                {"key": f"/apisix/routes/{i}", "value": {"id": str(i), "uri": f"/{i}"}} for i in range(250)
            ]
            return self.answer(200, {"total": 250, "list": items[(page - 1) * 100 : page * 100]})
        if kind == "consumers":
            return self.answer(
                200, {"total": 1, "list": [{"key": "/apisix/consumers/jack", "value": {"username": "jack"}}]}
            )
        if kind == "consumers/jack/credentials":
            entry = {"key": "/apisix/consumers/jack/credentials/c1", "value": {"plugins": {"key-auth": {}}}}
            return self.answer(200, {"total": 1, "list": [entry]})
        return self.answer(404, {"message": "not found"})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "uri" not in body:
            return self.answer(400, {"error_msg": "invalid configuration: uri is required"})
        return self.answer(201, {"key": self.path, "value": body})


@pytest.fixture
def address() -> Iterator[str]:
    with served(Api) as where:
        yield where


def test_all_pages_and_credentials_are_read(address: str) -> None:
    with AdminClient(address, KEY) as client:
        found = client.read()
    assert len(found.of(Kind.ROUTE)) == 250
    assert list(found.of(Kind.CREDENTIAL)) == ["jack/c1"]
    assert found.version == "3.9.1"
    assert not found.findings


def test_reads_survive_two_failures_and_not_three(address: str) -> None:
    with AdminClient(address + "/apisix/admin/", KEY) as client:
        Api.failures = 2
        assert client.get("routes")["total"] == 250
        Api.failures = 3
        with pytest.raises(ApisixError, match="503"):
            client.get("routes")


def test_errors_say_what_and_never_the_key(address: str) -> None:
    with AdminClient(address, "wrong-secret") as client, pytest.raises(ApisixError) as refused:
        client.get("routes")
    assert "wrong-secret" not in str(refused.value)
    with AdminClient(address, KEY) as client:
        with pytest.raises(ApisixError, match="uri is required"):
            client.put("routes/1", {})
        assert client.put("routes/1", {"uri": "/a"})["value"] == {"uri": "/a"}
        assert client.get("routes/none") is None
    with (
        AdminClient("http://127.0.0.1:9", KEY, timeout=1) as client,
        pytest.raises(ApisixError, match="no answer"),
    ):
        client.put("routes/1", {})
