"""A door before the lab's API server: it counts writes and holds one back; there its writer can be killed."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import select
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gateshift.lab.certs import Authority

# Questions that are asked by POST: nothing is stored.
_QUESTIONS = ("authorization.k8s.io", "authentication.k8s.io", "/token")
_HOP = {"connection", "transfer-encoding", "keep-alive", "upgrade"}


@dataclass
class Door:
    """*hold* is the write, counted from one, that is not let through until :meth:`release`."""

    own_ca: Path
    hold: int = 0
    writes: list[str] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def arm(self, hold: int) -> None:
        """Count anew, and hold back write number *hold* (0: none)."""
        self.hold, self.writes = hold, []
        self.held, self._open = threading.Event(), threading.Event()

    def release(self) -> None:
        """Let the held write through, if its sender still waits."""
        self._open.set()

    def passes(self, method: str, path: str) -> None:
        if method in {"GET", "HEAD"} or "dryRun=" in path or any(q in path for q in _QUESTIONS):
            return
        with self._lock:
            self.writes.append(f"{method} {path.partition('?')[0]}")
            mine, opened, held = len(self.writes) == self.hold, self._open, self.held
        if mine:
            held.set()
            opened.wait(120)

    def kubeconfig(self, source: str, target: Path) -> str:
        """The account of *source* through this door."""
        config = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        for one in config["clusters"]:
            ours = base64.b64encode(self.own_ca.read_bytes()).decode()
            one["cluster"] = {"server": self.address, "certificate-authority-data": ours}
        target.write_text(json.dumps(config), encoding="utf-8")
        return str(target)


@contextlib.contextmanager
def door(upstream: str, ca: Path, folder: Path) -> Iterator[Door]:
    """Open a door before the API server at *upstream*; *folder* takes its certificates."""
    authority = Authority(folder)
    found = Door(authority.certificate)
    context = ssl.create_default_context(cafile=str(ca))
    # TLS here as well: clients keep their token to themselves where there is none.
    pair = authority.issue("door", "door", names=["127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    parts = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def setup(self) -> None:
            self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # Read whole before it counts: who is killed while his write is held sent all of it.
            found.passes(self.command, self.path)
            if found.hold and found.held.is_set() and self._gone():
                self.close_connection = True
                return
            there = http.client.HTTPSConnection(parts.netloc, context=context, timeout=300)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                there.request(self.command, self.path, body or None, headers)
                self._relay(there.getresponse())
            except OSError:
                self.close_connection = True
            finally:
                there.close()

        def _gone(self) -> bool:
            """Whether the sender hung up: then the write was never made."""
            asked = select.poll()
            asked.register(self.connection, select.POLLRDHUP)
            return bool(asked.poll(0))

        def _relay(self, answer: http.client.HTTPResponse) -> None:
            self.send_response_only(answer.status)
            length = answer.getheader("Content-Length")
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            if length is not None or answer.status in {204, 304}:
                self.end_headers()
                self.wfile.write(answer.read())
                self.wfile.flush()
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    found.address = f"https://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield found
    finally:
        found.release()
        server.shutdown()
        server.server_close()


def number_of(writes: list[str], wanted: Mapping[str, str]) -> dict[str, int]:
    """The number, counted from one, of the first write whose path holds each wanted text."""
    return {
        what: next(n for n, write in enumerate(writes, start=1) if text in write)
        for what, text in wanted.items()
    }
