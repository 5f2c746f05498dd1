"""``python -m gateshift.lab.oldgateway``: the stand-in for APISIX.

Ports: HTTP and HTTPS (each also takes gRPC), the Admin API, and metrics with
``GET /apisix/prometheus/metrics``, ``GET /healthz`` and ``PUT /lab/resolve`` (JSON ``host:port`` to
``address:port``, for upstream names that appear while it runs).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from gateshift.apisix.readers import read_files
from gateshift.errors import GateshiftError
from gateshift.lab import dataplane, topology
from gateshift.lab.oldgateway import admin, grpcproxy, material
from gateshift.lab.oldgateway.balancer import Resolver
from gateshift.lab.oldgateway.front import Front, tls_context
from gateshift.lab.oldgateway.gateway import Gateway
from gateshift.lab.oldgateway.proxy import HttpProxy
from gateshift.lab.oldgateway.store import Store

__all__ = ["main"]


def _metrics(gateway: Gateway, front: Front) -> dataplane.Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/apisix/prometheus/metrics" | "/metrics":
                gateway.metrics.connections.active = front.active()
                return web.Response(
                    body=gateway.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"}
                )
            case "GET", "/healthz":
                return dataplane.answer({"status": "ok"})
            case "PUT", "/lab/resolve":
                gateway.resolver.learn(json.loads(await request.read()))
                return dataplane.answer({})
        return dataplane.answer({"error_msg": "404 Route Not Found"}, 404)

    return handle


async def start(stack: AsyncExitStack, flags: argparse.Namespace) -> dict[str, Any]:
    """Start all listeners; return the data of the ready line."""
    environment = material.variables(flags.variables) if flags.variables else {}
    configuration = read_files([flags.config], env=material.marks(environment))
    store = Store(configuration, lambda spec: material.fill(spec, environment))
    gateway = Gateway(store, Resolver(flags.resolve))
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    stack.push_async_callback(session.close)
    grpc_port = await grpcproxy.serve(gateway, flags.grpc_host, stack)
    front = Front(HttpProxy(gateway, session).handle, grpc_port, gateway.metrics.connections)
    ports = {"http_port": await front.listen(stack, flags.http_port)}
    if flags.tls_certificate:
        tls = tls_context(flags.tls_certificate, flags.tls_key, flags.grpc_host)
        ports["https_port"] = await front.listen(stack, flags.https_port, tls)
    ports["metrics_port"] = await dataplane.listen(_metrics(gateway, front), stack, flags.metrics_port)
    # The file first: the environment's key may be meant for the operator's own APISIX.
    file = flags.admin_key_file
    key = file.read_text(encoding="ascii").strip() if file else os.environ["APISIX_ADMIN_KEY"]
    ports["admin_port"] = await dataplane.listen(admin.handler(gateway, key), stack, flags.admin_port)
    return ports


def main(argv: list[str] | None = None) -> int:
    """Parse flags and serve until a signal."""
    parser = argparse.ArgumentParser(prog="gateshift.lab.oldgateway", description=__doc__)
    parser.add_argument("--config", required=True, help="standalone apisix.yaml")
    parser.add_argument(
        "--variables", type=Path, help="JSON file of values for ${{NAME}} in the configuration"
    )
    parser.add_argument(
        "--resolve", type=json.loads, default={}, help="JSON: upstream host:port to address:port"
    )
    for name in ("http", "https", "admin", "metrics"):
        parser.add_argument(f"--{name}-port", type=int, default=0, help="0: a free one")
    parser.add_argument("--tls-certificate", help="PEM file; without it there is no HTTPS listener")
    parser.add_argument("--tls-key", help="PEM file")
    parser.add_argument(
        "--grpc-host", default=topology.HOST_GRPC, help="host that gRPC routes are matched by"
    )
    parser.add_argument(
        "--admin-key-file",
        type=Path,
        help="file of the Admin API's key; without it the environment's APISIX_ADMIN_KEY",
    )
    flags = parser.parse_args(argv)
    if not os.environ.get("APISIX_ADMIN_KEY") and not flags.admin_key_file:
        parser.error("give the Admin API's key: --admin-key-file or environment APISIX_ADMIN_KEY")

    async def body(stack: AsyncExitStack) -> None:
        dataplane.announce(**await start(stack, flags))

    try:
        return dataplane.launch(body)
    except GateshiftError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
