"""What the lab's data-plane programs share: loopback listeners, one ready line, a clean stop.

Each program is ``python -m gateshift.lab.NAME``. It binds loopback addresses only, prints one JSON line
when it accepts connections (the supervisor waits for it) and stops on SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import uvloop
from aiohttp import web

from gateshift.errors import LabError

__all__ = ["Handler", "announce", "answer", "bind", "launch", "listen"]

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_BACKLOG = 1024


def bind(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """Bind a listening socket on loopback; port 0 takes a free one."""
    if not host.startswith("127."):
        raise LabError(f"the lab binds loopback addresses only, not {host}")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise LabError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    found.listen(_BACKLOG)
    found.setblocking(False)
    return found


async def listen(
    handler: Handler,
    stack: AsyncExitStack,
    port: int = 0,
    *,
    tls: ssl.SSLContext | None = None,
    keepalive: float = 300.0,
) -> int:
    """Serve *handler* until *stack* closes; return the port.

    aiohttp's low-level server is used (no application, no router): it costs a third less per request.
    """
    runner = web.ServerRunner(
        web.Server(handler, access_log=None, keepalive_timeout=keepalive), shutdown_timeout=0.2
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    sock = bind(port)
    await web.SockSite(runner, sock, ssl_context=tls).start()
    return int(sock.getsockname()[1])


def answer(data: Any, status: int = 200) -> web.Response:
    """A JSON response for a control API."""
    return web.Response(body=json.dumps(data).encode(), status=status, content_type="application/json")


def announce(**data: Any) -> None:
    """Print the ready line."""
    sys.stdout.write(json.dumps({"ready": True, **data}) + "\n")
    sys.stdout.flush()


def launch(main: Callable[[AsyncExitStack], Awaitable[None]]) -> int:
    """Run *main* on uvloop, wait for a signal, close what it put on the stack; return the exit code."""

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, stop.set)
        async with AsyncExitStack() as stack:
            await main(stack)
            await stop.wait()

    try:
        uvloop.run(body())
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
