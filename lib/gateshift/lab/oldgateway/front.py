"""The listeners: one port takes HTTP/1.1 and HTTP/2 with prior knowledge, as APISIX's does.

The first bytes of a connection tell which. HTTP/1.1 goes on in aiohttp on the same transport; HTTP/2 is
gRPC here and is passed to the internal gRPC listener byte by byte.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from typing import Final, cast

from aiohttp import web

from gateshift.lab import dataplane
from gateshift.lab.oldgateway.metrics import Connections

__all__ = ["Front", "tls_context"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def tls_context(certificate: str, key: str, grpc_host: str) -> ssl.SSLContext:
    """TLS for the HTTPS listener: HTTP/2 is offered only under the SNI of the gRPC host.

    The stand-in speaks HTTP/2 for gRPC only; a browser or curl on the other hosts is kept on HTTP/1.1.
    """

    def context(*protocols: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_cert_chain(certificate, key)
        made.set_alpn_protocols(list(protocols))
        return made

    both = context("h2", "http/1.1")
    plain = context("http/1.1")

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        if name == grpc_host:
            connection.context = both

    plain.sni_callback = choose
    return plain


class _Far(asyncio.Protocol):
    """The internal side of a passed connection."""

    def __init__(self, near: asyncio.Transport) -> None:
        self._near = near

    def data_received(self, data: bytes) -> None:
        self._near.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.close()


class _Sniffer(asyncio.Protocol):
    """The first protocol of every connection."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._seen = b""
        self._transport: asyncio.Transport | None = None
        self._far: asyncio.Transport | None = None
        self._passing = False
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._front.counts.accepted += 1

    def data_received(self, data: bytes) -> None:
        if self._far is not None:
            self._far.write(data)
            return
        self._seen += data
        if self._passing:
            return
        if self._seen.startswith(_PREFACE):
            self._passing = True
            self._front.passed += 1
            self._task = asyncio.get_running_loop().create_task(self._pass())
        elif not _PREFACE.startswith(self._seen):
            self._start_http()

    def _start_http(self) -> None:
        """Hand an HTTP/1.1 connection to aiohttp."""
        transport = cast(asyncio.Transport, self._transport)
        handler = self._front.server()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(self._seen)

    async def _pass(self) -> None:
        near = cast(asyncio.Transport, self._transport)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: _Far(near), "127.0.0.1", self._front.grpc_port
            )
        except OSError:
            near.close()
            return
        if self._gone:
            transport.close()
            return
        transport.write(self._seen)
        self._far = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._front.passed -= self._passing
        if self._far is not None:
            self._far.close()


class Front:
    """The gateway's public listeners."""

    def __init__(self, handler: dataplane.Handler, grpc_port: int, counts: Connections) -> None:
        self.server = web.Server(handler, access_log=None, keepalive_timeout=75)
        self.grpc_port = grpc_port
        self.counts = counts
        self.passed = 0

    def active(self) -> int:
        """Open connections."""
        return len(self.server.connections) + self.passed

    async def listen(self, stack: AsyncExitStack, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Open a listener until *stack* closes; return its port."""
        sock = dataplane.bind(port)
        listener = await asyncio.get_running_loop().create_server(lambda: _Sniffer(self), sock=sock, ssl=tls)

        async def close() -> None:
            listener.close()
            await self.server.shutdown(0.2)

        stack.push_async_callback(close)
        return int(sock.getsockname()[1])
