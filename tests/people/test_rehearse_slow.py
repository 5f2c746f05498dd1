"""A rehearsal on a machine on which the lab's own clients and backends answer late."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateshift.lab.state import LabState
from gateshift.rehearse import faults
from gateshift.rehearse.ledger import ClientLedger


@pytest.fixture
def late() -> Iterator[tuple[str, list[str]]]:
    """The address of a server whose answers take longer than httpx waits by itself, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(f"{self.command} {self.path}")
            time.sleep(5.3)
            body = json.dumps([] if self.path == "/errors" else {"gateways": {}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_late_lab_fails_neither_the_fault_nor_the_accounts(late: tuple[str, list[str]]) -> None:
    url, asked = late
    values = {"traffic_url": url, "faults_url": url, "rate": 150}
    lab = LabState(name="demo", phase="ready", values=values, parts=(), supervisor=None)
    faults.find("errors").inject(lab)
    assert ClientLedger(lab).unexplained() == []
    assert asked == ["PUT /faults", "DELETE /stats", "DELETE /stats", "GET /errors", "GET /stats"]
