"""An Envoy's admin interface at the wire: an HTTP server behind a stand-in for `kubectl port-forward`."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HCM = "envoy.filters.network.http_connection_manager"


def route(name: str, owner: str, match: Mapping[str, Any], **action: Any) -> dict[str, Any]:
    """One route as Istio writes it; *owner* is ``namespace/name`` of its VirtualService."""
    space, _, vs = owner.partition("/")
    config = f"/apis/networking.istio.io/v1/namespaces/{space}/virtual-service/{vs}"
    if not action:
        action = {"route": {"cluster": f"outbound|80||cart.{space}.svc.cluster.local;"}}
    return {
        "name": name,
        "match": dict(match),
        "metadata": {"filter_metadata": {"istio": {"config": config}}},
        **action,
    }


def config_dump(
    hosts: Mapping[str, list[dict[str, Any]]],
    *,
    port: int = 8080,
    filters: list[dict[str, Any]] | None = None,
    rejected: str = "",
) -> dict[str, Any]:
    """The parts of ``/config_dump`` that are read: one listener, one route table."""
    manager = {"rds": {"route_config_name": "http.80"}, "http_filters": filters or []}
    listener = {
        "name": f"0.0.0.0_{port}",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [{"filters": [{"name": HCM, "typed_config": manager}]}],
    }
    table = {
        "name": "http.80",
        "virtual_hosts": [
            {"name": f"{host}:80", "domains": [host], "routes": routes} for host, routes in hosts.items()
        ],
    }
    routes: dict[str, Any] = {"route_config": table}
    if rejected:
        routes["error_state"] = {"failed_configuration": {"name": "http.80"}, "details": rejected}
    prefix = "type.googleapis.com/envoy.admin.v3."
    return {
        "configs": [
            {
                "@type": f"{prefix}ListenersConfigDump",
                "dynamic_listeners": [{"name": listener["name"], "active_state": {"listener": listener}}],
            },
            {"@type": f"{prefix}RoutesConfigDump", "dynamic_route_configs": [routes]},
            {"@type": f"{prefix}ClustersConfigDump", "dynamic_active_clusters": []},
        ]
    }


class Admin:
    """What the admin interface answers; ``stats`` are the texts of successive readings.

    Without ``config`` every connection is broken off.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config: dict[str, Any] | None = config or config_dump({})
        self.clusters: dict[str, Any] = {"cluster_statuses": []}
        self.certificates: list[dict[str, Any]] = []
        self.stats = [""]
        self.asked: list[str] = []

    def answer(self, path: str) -> bytes:
        self.asked.append(path)
        if path == "/stats":
            return (self.stats.pop(0) if len(self.stats) > 1 else self.stats[0]).encode()
        known = {
            "/config_dump": self.config,
            "/clusters": self.clusters,
            "/certs": {"certificates": self.certificates},
        }
        return json.dumps(known[path]).encode()


@contextlib.contextmanager
def serve(admin: Admin, folder: Path) -> Iterator[str]:
    """Serve *admin*; yield the path of the stand-in for kubectl."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if admin.config is None:
                self.connection.close()
                return
            body = admin.answer(urlsplit(self.path).path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    kubectl = folder / "kubectl"
    line = f"Forwarding from 127.0.0.1:{server.server_address[1]} -> 15000"
    kubectl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/calls\necho "{line}"\nexec sleep 30\n')
    kubectl.chmod(0o755)
    try:
        yield str(kubectl)
    finally:
        server.shutdown()
        server.server_close()
