"""``python -m gateshift.lab.clients``: traffic of many users.

Control API: ``GET /stats[?window=10]``, ``DELETE /stats``, ``GET /errors[?since=UNIX]``,
``GET /timeline[?since=UNIX]``, ``PUT /rate {"rate": 150}``, ``PUT /ttl {"ttl": 60}``,
``PUT /pause {"paused": true}``, ``PUT /lb {"name": ..., "http": ..., "https": ..., "grpc": ...}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web

from gateshift.lab import dataplane
from gateshift.lab.clients.dns import Population
from gateshift.lab.clients.traffic import Traffic
from gateshift.lab.clients.wire import Address

__all__ = ["main"]


def _control(traffic: Traffic) -> dataplane.Handler:
    async def put(path: str, body: bytes) -> dict[str, Any]:
        data = json.loads(body or b"{}")
        if path == "/rate":
            traffic.set_rate(float(data["rate"]))
        elif path == "/ttl":
            traffic.population.set_ttl(float(data["ttl"]))
        elif path == "/pause":
            traffic.set_paused(bool(data.get("paused", True)))
        elif path == "/lb":
            traffic.learn(Address.parse(f"{data['name']}={data['http']},{data['https']},{data['grpc']}"))
        else:
            raise LookupError(path)
        return {"rate": traffic.rate, "paused": traffic.paused}

    def get(path: str, since: float, window: float) -> Any:
        if path == "/stats":
            summary = traffic.stats.summary(window)
            return {"rate": traffic.rate, "paused": traffic.paused, **summary}
        if path == "/errors":
            return traffic.stats.problems(since)
        if path == "/timeline":
            return traffic.stats.timeline(since)
        raise LookupError(path)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.method == "GET":
                since, window = request.query.get("since", "0"), request.query.get("window", "10")
                return dataplane.answer(get(request.path, float(since), float(window)))
            if request.method in {"PUT", "POST"}:
                return dataplane.answer(await put(request.path, await request.read()))
            if (request.method, request.path) == ("DELETE", "/stats"):
                traffic.stats.reset()
                return dataplane.answer({})
        except KeyError as error:
            return dataplane.answer({"error": f"missing key {error}"}, 400)
        except (ValueError, TypeError) as error:
            return dataplane.answer({"error": str(error)}, 400)
        except LookupError:
            pass  # answered below, with the paths there are
        return dataplane.answer({"error": "use /stats, /errors, /timeline, /rate, /ttl, /pause or /lb"}, 404)

    return handle


def _flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateshift.lab.clients", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of the control API (0: a free one)")
    parser.add_argument("--route53", required=True, help="address of the lab's Route 53")
    parser.add_argument("--keys", type=Path, required=True, help="folder of the token signing keys")
    parser.add_argument("--ca", type=Path, help="PEM file of the authority of both gateways' certificates")
    parser.add_argument(
        "--lb",
        type=Address.parse,
        action="append",
        default=[],
        help="a load balancer: name=http_host:port,https_host:port,grpc_host:port (repeat)",
    )
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second")
    parser.add_argument("--https", type=float, default=0.2, help="share of calls over TLS (0-1)")
    # Each draws its own answer: with 400 the share of 50 % alone would stray by 2.5 points.
    parser.add_argument("--users", type=int, default=2000, help="users, each behind a resolver of its own")
    parser.add_argument("--ttl", type=float, default=60.0, help="seconds a resolver keeps an answer")
    parser.add_argument(
        "--stale", type=float, default=0.02, help="share of resolvers that keep it longer (0-1)"
    )
    parser.add_argument("--stale-factor", type=float, default=3.0, help="by how much longer")
    parser.add_argument(
        "--connection-age", type=float, default=5.0, help="seconds a connection is kept at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paused", action="store_true", help="wait for PUT /pause before the first call")
    return parser.parse_args(argv)


async def start(stack: AsyncExitStack, flags: argparse.Namespace) -> dict[str, Any]:
    """Start traffic and its control API; return the data of the ready line."""
    population = Population(
        size=flags.users,
        ttl=flags.ttl,
        stale_share=flags.stale,
        stale_factor=flags.stale_factor,
        connection_age=flags.connection_age,
        seed=flags.seed,
    )
    traffic = Traffic(
        population,
        rate=flags.rate,
        https_share=flags.https,
        keys=flags.keys,
        route53=flags.route53,
        addresses={one.name: one for one in flags.lb},
        ca_file=flags.ca,
        connection_age=flags.connection_age,
    )
    traffic.paused = flags.paused
    port = await dataplane.listen(_control(traffic), stack, flags.port)
    stack.push_async_callback(traffic.close)
    loops = [asyncio.ensure_future(traffic.poll())]
    await traffic.first_answers()
    loops.append(asyncio.ensure_future(traffic.arrive()))

    async def end() -> None:
        for one in loops:
            one.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    stack.push_async_callback(end)
    return {"port": port}


def main(argv: list[str] | None = None) -> int:
    """Parse flags and run until a signal."""
    flags = _flags(argv)

    async def body(stack: AsyncExitStack) -> None:
        dataplane.announce(**await start(stack, flags))

    return dataplane.launch(body)


if __name__ == "__main__":
    sys.exit(main())
