"""A stand-in for Prometheus at the wire: answers queries from a function, over real HTTP on loopback."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

Responder = Callable[[str, float], Any]


class Wire:
    """What the server saw and what it answers."""

    def __init__(self) -> None:
        self.responder: Responder = lambda query, at: []
        self.headers: list[dict[str, str]] = []
        self.extra: dict[str, Any] = {}
        self.raw: tuple[int, bytes] | None = None
        self.url = ""


@contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    wire = Wire()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            wire.headers.append(dict(self.headers))
            status, body = 200, b""
            if wire.raw is not None:
                status, body = wire.raw
            else:
                query = form["query"][0]
                if self.path.endswith("query_range"):
                    bounds = (float(form[key][0]) for key in ("start", "end", "step"))
                    data = {"resultType": "matrix", "result": _ranged(wire.responder, query, *bounds)}
                else:
                    result = wire.responder(query, float(form.get("time", ["0"])[0]))
                    data = {"resultType": "vector", "result": result}
                answer = {"status": "success", "data": data, **wire.extra}
                body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        # The handshake belongs to the connection's own thread: a client that breaks it off stops nobody.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    wire.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _ranged(responder: Responder, query: str, start: float, end: float, step: float) -> Any:
    """A range is the instant query at each step, as in Prometheus."""
    found: dict[str, Any] = {}
    for number in range(int((end - start) / step + 1e-6) + 1):
        for row in responder(query, start + number * step):
            series = found.setdefault(json.dumps(row["metric"]), {"metric": row["metric"], "values": []})
            series["values"].append([start + number * step, row["value"][1]])
    return list(found.values())


class Scrapes:
    """Gateways as Prometheus would know them: counters by (metric, labels), with scrape times and targets."""

    def __init__(self) -> None:
        self.istio: dict[str, dict[str, float]] = {}
        self.apisix: dict[str, dict[str, float]] = {}
        self.istio_reporter = "source"
        self.both_reporters = False
        self.up: dict[str, int] = {}
        self.scraped_at: float | None = None

    def __call__(self, query: str, at: float) -> Any:
        stamp = self.scraped_at if self.scraped_at is not None else at

        def point(labels: dict[str, str], value: float) -> Any:
            return {"metric": labels, "value": [at, str(value)]}

        if "up{" in query:
            return [
                point({"job": "g", "instance": i}, float(v))
                for i, v in self.up.items()
                if f'"{i}"' in query or 'instance="' not in query
            ]
        istio = "istio_" in query
        pods = self.istio if istio else self.apisix
        if "timestamp(" in query:
            return [point({"job": "g", "instance": pod}, stamp) for pod in pods]
        label = "le" if "_bucket" in query else "response_code" if istio else "code"
        rows = []
        for pod, counters in pods.items():
            reporters = (
                [self.istio_reporter, *(["destination"] if self.both_reporters else [])] if istio else [""]
            )
            for reporter in reporters:
                base = {"job": "g", "instance": pod, **({"reporter": reporter} if reporter else {})}
                if label == "le":
                    total = sum(counters.values())
                    rows += [
                        point({**base, "le": le}, share * total) for le, share in (("10", 0.5), ("+Inf", 1.0))
                    ]
                else:
                    rows += [point({**base, label: code}, value) for code, value in counters.items()]
        return rows
