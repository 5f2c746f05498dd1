"""gRPC proxying of the stand-in: any method, messages as raw bytes.

The listener behind it is internal; clients reach it through the gateway's ordinary ports (see ``front``).
grpcio does not tell a server the request's ``:authority``, so the host that routes are matched against is
a setting: the lab serves gRPC on one host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import grpc
from multidict import CIMultiDict

from gateshift.lab.oldgateway.exchange import Exchange, Reply
from gateshift.lab.oldgateway.gateway import Gateway

__all__ = ["serve"]

# gRPC's mapping of HTTP statuses (grpc/doc/http-grpc-status-mapping.md).
_CODES = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}
_OWN = ("grpc-", ":")
_DROPPED = frozenset({"user-agent", "content-type", "te", "host"})


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    """Gives the same handler for every method."""

    def __init__(self, proxy: _Proxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        """Return the handler; the method's name is bound here since the context does not carry it."""

        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for one in self._proxy.call(details.method, requests, context):
                yield one

        return grpc.stream_stream_rpc_method_handler(call)


class _Proxy:
    def __init__(self, gateway: Gateway, host: str, stack: AsyncExitStack) -> None:
        self._gateway = gateway
        self._host = host
        self._stack = stack
        self._channels: dict[tuple[str, int], Any] = {}

    def _channel(self, address: tuple[str, int]) -> Any:
        if address not in self._channels:
            channel = grpc.aio.insecure_channel(
                f"{address[0]}:{address[1]}",
                options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)],
            )
            self._stack.push_async_callback(channel.close)
            self._channels[address] = channel
        return self._channels[address]

    async def call(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        gateway = self._gateway
        started = perf_counter()
        gateway.metrics.requests += 1
        exchange = Exchange(
            method="POST",
            scheme="http",
            host=self._host,
            path=method,
            target=method,
            query={},
            cookies={},
            headers=CIMultiDict(
                (k, v if isinstance(v, str) else v.hex()) for k, v in context.invocation_metadata()
            ),
            remote="127.0.0.1",
        )
        code = 200
        try:
            route, _, reply = await gateway.admit(exchange)
            upstream = gateway.upstream(route, exchange) if route else None
            nodes = gateway.balancer.order(upstream, exchange) if upstream else []
            address = gateway.resolver.address(nodes[0]) if nodes else None
            if reply is None and address is None:
                reply = Reply(503)
            if reply is not None or address is None:
                code = reply.status if reply else 503
                await context.abort(_CODES.get(code, grpc.StatusCode.UNKNOWN), f"HTTP status {code}")
                return
            exchange.node = address[0]
            begun = perf_counter()
            call = self._channel(address).stream_stream(method)(
                requests, metadata=_forwarded(exchange), timeout=context.time_remaining()
            )
            try:
                async for answer in call:
                    yield answer
                context.set_trailing_metadata(await call.trailing_metadata())
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or ""):
                    code = 502
                await context.abort(error.code(), error.details() or "", error.trailing_metadata() or ())
            finally:
                exchange.upstream_ms = (perf_counter() - begun) * 1000
        except asyncio.CancelledError:
            code = 499
            raise
        finally:
            gateway.log(exchange, code, started, 0, 0)


def _forwarded(exchange: Exchange) -> list[tuple[str, str]]:
    out = [
        (name.lower(), value)
        for name, value in exchange.headers.items()
        if not name.lower().startswith(_OWN) and name.lower() not in _DROPPED
    ]
    return [*out, ("x-real-ip", exchange.remote), ("x-forwarded-host", exchange.host)]


async def serve(gateway: Gateway, host: str, stack: AsyncExitStack, port: int = 0) -> int:
    """Serve until *stack* closes; return the port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Handlers(_Proxy(gateway, host, stack)),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stack.push_async_callback(server.stop, 0.2)
    return int(bound)
