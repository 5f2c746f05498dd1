"""The API server's way to Services and pods: an HTTP CONNECT proxy that stands in for kube-proxy.

The API server is configured (egress selection ``cluster``) to open its calls to admission webhooks and
kubelets through this proxy. Addresses of pods and Services of the lab's istiod and gateway are answered by
the processes that run beside the cluster; loopback addresses (the kubelet) pass through.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable

from gateshift.lab import topology

__all__ = ["EgressProxy"]

_HERE = ("127.0.0.1", "localhost", topology.NODE_NAME)

Resolve = Callable[[str, int], int | None]
"""Gives the port on 127.0.0.1 that stands for (address, port), None when nothing does."""


class EgressProxy:
    """Serves on ``127.0.0.1:port`` in a thread of its own until the process ends."""

    def __init__(self, port: int, ca: str, certificate: str, key: str, resolve: Resolve) -> None:
        self._port = port
        # The API server insists on TLS to its proxy; only it holds a certificate of the lab's CA for this.
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
        self._tls.load_cert_chain(certificate, key)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._resolve = resolve
        self._ready = threading.Event()

    def start(self) -> None:
        """Start serving; returns when the port is bound."""
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="egress").start()
        self._ready.wait(5.0)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, ssl=self._tls)
        self._ready.set()
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self._tunnel(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, *_ = head.split(" ", 2)
        host, _, port_text = target.rpartition(":")
        host = host.strip("[]")
        if method != "CONNECT" or not port_text.isdigit():
            await _refuse(writer, "400 Bad Request")
            return
        port = int(port_text)
        local = port if host in _HERE else self._resolve(host, port)
        if local is None:
            await _refuse(writer, "502 Bad Gateway")
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", local)
        except OSError:
            await _refuse(writer, "502 Bad Gateway")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            far_writer.close()


async def _refuse(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
