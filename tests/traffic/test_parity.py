"""The same requests at both gateways: 40_verify shows them, 50_canary asks them before the first shift."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster.checks import Status
from gateshift.errors import Blocked
from gateshift.params import validate
from gateshift.runbook.context import Context
from gateshift.runbook.parity import parity_checks, require_parity

HOST = "api.voiceassistant.com"
ROUTES = """
routes:
  - {id: catalog, host: api.voiceassistant.com, uri: /catalog/*, upstream_id: one}
  - {id: users, host: api.voiceassistant.com, uri: /users, upstream_id: one}
upstreams:
  - {id: one, nodes: {"catalog:80": 1}, type: roundrobin}
#END
"""


class Gateway:
    """Answers 200 except where *statuses* says otherwise, and keeps what it was asked."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.location = ""
        self.asked: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                gateway.asked.append(f"{self.command} {self.headers['Host']}{self.path}")
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(gateway.statuses.get(path, 200))
                self.send_header("Content-Length", "0")
                if gateway.location:
                    self.send_header("Location", gateway.location)
                self.end_headers()

            do_POST = do_GET  # noqa: N815 - the base class's name

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gateways() -> Iterator[tuple[Gateway, Gateway]]:
    both = Gateway(), Gateway()
    yield both
    for one in both:
        one.server.shutdown()
        one.server.server_close()


def context(gateways: tuple[Gateway, Gateway], folder: Path, **verify: Any) -> Context:
    (folder / "apisix.yaml").write_text(ROUTES)
    entry = {"request": {"method": "GET", "url": f"http://{HOST}/catalog/7?q=1", "headers": []}}
    post = {
        "request": {
            "method": "POST",
            "url": f"http://{HOST}/users",
            "headers": [],
            "postData": {"text": "{}"},
        }
    }
    (folder / "seen.har").write_text(json.dumps({"log": {"entries": [entry, post]}}))
    old, new = (f"127.0.0.1:{g.server.server_port}" for g in gateways)
    data = {
        "migration": "demo",
        "environment": "lab",
        "outputs": str(folder / "outputs"),
        "apisix": {"files": [str(folder / "apisix.yaml")]},
        "istio": {"version": "1.31.0"},
        "metrics": {"url": "http://127.0.0.1:9"},
        "traffic": {
            "route53": {
                "zone": "voiceassistant.com",
                "hosts": [HOST],
                "apisix_target": "old.lb",
                "istio_target": "new.lb",
            }
        },
        "verify": {"connect_to": {"old.lb:80": old, "new.lb:80": new}, **verify},
        "stages": [{"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 1.0}],
    }
    return Context(validate(data, source="test"), run="parity")


def test_recorded_and_generated_requests_reach_both(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    one = context(gateways, tmp_path, recorded=str(tmp_path / "seen.har"), generated=10)
    (check,) = parity_checks(one)
    assert check.status is Status.PASS
    assert check.measured == "3 requests answered alike; 1 not sent, their methods may change data"
    old, new = gateways
    assert sorted(old.asked) == sorted(new.asked)
    assert f"GET {HOST}/catalog/7?q=1" in new.asked
    assert not any(asked.startswith("POST") for asked in old.asked + new.asked)
    require_parity(one)
    one.journal.close()


def test_methods_that_may_change_data_are_sent_where_that_is_allowed(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    one = context(gateways, tmp_path, recorded=str(tmp_path / "seen.har"), unsafe_methods=True)
    assert parity_checks(one)[0].measured == "2 requests answered alike"
    assert all(f"POST {HOST}/users" in gateway.asked for gateway in gateways)
    one.journal.close()


def test_a_difference_fails_the_check_and_holds_the_first_shift(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    gateways[1].statuses["/users"] = 404
    one = context(gateways, tmp_path, generated=10)
    (check,) = parity_checks(one)
    assert check.status is Status.FAIL
    assert "1 of 2 requests differ" in check.measured
    assert "APISIX answers 200, Istio 404" in check.measured
    with pytest.raises(Blocked, match="nothing was moved"):
        require_parity(one)
    assert one.journal.records[-1].kind == "note.parity"
    one.journal.close()


def test_nothing_to_compare_and_a_silent_gateway_are_never_a_pass(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    one = context(gateways, tmp_path)
    assert parity_checks(one)[0].status is Status.WARN
    one.journal.close()
    silent = context(
        gateways, tmp_path, generated=10, connect_to={"old.lb:80": "127.0.0.1:9", "new.lb:80": "127.0.0.1:9"}
    )
    (check,) = parity_checks(silent)
    assert check.status is Status.FAIL
    assert "APISIX did not answer" in check.measured
    silent.journal.close()


def test_a_relative_redirect_is_the_absolute_one_to_the_same_place(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    for gateway in gateways:
        gateway.statuses = {"/users": 302, "/catalog/gateshift-parity": 302}
    gateways[0].location = "/login"  # as APISIX's redirect plugin writes it
    gateways[1].location = f"http://{HOST}/login"  # as Envoy does
    one = context(gateways, tmp_path, generated=10)
    assert parity_checks(one)[0].status is Status.PASS
    gateways[1].location = f"https://{HOST}/login"
    (check,) = parity_checks(one)
    assert check.status is Status.FAIL
    assert "APISIX redirects to http://" in check.measured
    one.journal.close()
