"""REST and WebSocket services of the lab: answers that tell what arrived."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import WSMsgType, web

from gateshift.lab.backends.faults import Account, Fault, Faults, origin
from gateshift.lab.dataplane import Handler

__all__ = ["handler"]

_SECRET_HEADERS = frozenset({"authorization", "cookie", "apikey", "proxy-authorization"})


def _debug(request: web.BaseRequest) -> dict[str, str]:
    """The headers as they arrived; credentials are named but not shown."""
    out = {}
    for name, value in request.headers.items():
        lower = name.lower()
        out[lower] = "(redacted)" if lower in _SECRET_HEADERS else value
    return out


def _content(service: str, request: web.BaseRequest, body: bytes) -> dict[str, Any]:
    path = request.path
    if path.endswith("/auth/login"):
        return {"user": "u-1001", "session": "lab", "expires_in": 3600}
    if "/users" in path:
        return {"id": path.rsplit("/", 1)[-1] or "me", "name": "Ada", "plan": "pro"}
    if path == "/healthz":
        return {"status": "ok"}
    return {"received": len(body)}


async def strike(request: web.BaseRequest, fault: Fault, account: Account) -> bool:
    """Let the fault act before the answer: delay, cut or hang. Tell whether the request is over."""
    if fault.latency_ms:
        await asyncio.sleep(fault.latency_ms / 1000)
    if fault.refuse:
        account.cut += 1
        if request.transport is not None:
            request.transport.abort()
        return True
    if fault.hang:
        account.hung += 1
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.25)
        return True
    return False


def handler(service: str, faults: Faults) -> Handler:
    """Return the handler of one service."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        gateway = origin(name.lower() for name in request.headers)
        account = faults.account(service, gateway)
        probe = request.path == "/healthz"  # health checks are not traffic
        if not probe:
            account.requests += 1
        fault = faults.find(service, gateway)
        if fault is not None:
            if await strike(request, fault, account):
                return web.Response(status=500)  # goes nowhere: the connection is closed
            if not probe and faults.strikes(fault):
                account.errors += fault.status >= 500
                return web.Response(
                    status=fault.status,
                    body=json.dumps({"error": "fault injected", "service": service}).encode(),
                    content_type="application/json",
                )
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _echo(request, service, gateway)
        body = await request.read() if request.can_read_body else b""
        document = {
            "service": service,
            "method": request.method,
            "path": request.path_qs,
            "gateway": gateway,
            **_content(service, request, body),
            "debug": {"headers": _debug(request)},
        }
        return web.Response(
            body=json.dumps(document).encode(),
            content_type="application/json",
            headers={"X-Backend-Service": service},
        )

    return handle


async def _echo(request: web.BaseRequest, service: str, gateway: str) -> web.StreamResponse:
    socket = web.WebSocketResponse(compress=False)
    socket.headers["X-Backend-Service"] = service
    await socket.prepare(request)
    await socket.send_str(json.dumps({"service": service, "gateway": gateway, "path": request.path_qs}))
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket
