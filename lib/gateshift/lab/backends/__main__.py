"""``python -m gateshift.lab.backends``: all services of the topology, and the fault API.

Fault API (control port): ``GET /faults``, ``PUT /faults`` with ``{"service": "*", "gateway": "istio",
"error_ratio": 0.05, "status": 500, "latency_ms": 0, "refuse": false, "hang": false}``,
``DELETE /faults?service=&gateway=`` (all without arguments), ``GET /stats``, ``DELETE /stats``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack

from aiohttp import web

from gateshift.lab import dataplane
from gateshift.lab.backends import rest, rpc
from gateshift.lab.backends.faults import ANY, Faults
from gateshift.lab.topology import BACKENDS

__all__ = ["main", "start"]


def _control(faults: Faults) -> dataplane.Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await serve(request)
        except (ValueError, TypeError) as error:
            return dataplane.answer({"error": str(error)}, 400)

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        match request.method, request.path:
            case "GET", "/stats":
                return dataplane.answer(faults.stats())
            case "DELETE", "/stats":
                faults.reset()
                return dataplane.answer({})
            case "GET", "/faults":
                return dataplane.answer(faults.rules())
            case "PUT" | "POST", "/faults":
                data = json.loads(await request.read() or b"{}")
                if not isinstance(data, dict):
                    raise ValueError("a fault is a JSON object")
                faults.put(data)
                return dataplane.answer(faults.rules())
            case "DELETE", "/faults":
                faults.clear(request.query.get("service", ANY), request.query.get("gateway", ANY))
                return dataplane.answer(faults.rules())
        return dataplane.answer({"error": "use /faults or /stats"}, 404)

    return handle


async def start(stack: AsyncExitStack, ports: Mapping[str, int], control: int = 0) -> dict[str, object]:
    """Start all services; return the data of the ready line."""
    faults = Faults(one.name for one in BACKENDS)
    bound = {}
    for one in BACKENDS:
        port = ports.get(one.name, 0)
        if one.protocol == "grpc":
            bound[one.name] = await rpc.serve(one.name, faults, stack, port)
        else:
            bound[one.name] = await dataplane.listen(rest.handler(one.name, faults), stack, port)
    return {"ports": bound, "control_port": await dataplane.listen(_control(faults), stack, control)}


def main(argv: list[str] | None = None) -> int:
    """Parse flags and serve until a signal."""
    parser = argparse.ArgumentParser(prog="gateshift.lab.backends", description=__doc__)
    parser.add_argument("--ports", type=json.loads, default={}, help='JSON: {"identity-service": 19000, ...}')
    parser.add_argument("--port", type=int, default=0, help="port of the fault API (0: a free one)")
    flags = parser.parse_args(argv)

    async def body(stack: AsyncExitStack) -> None:
        dataplane.announce(**await start(stack, flags.ports, flags.port))

    return dataplane.launch(body)


if __name__ == "__main__":
    sys.exit(main())
