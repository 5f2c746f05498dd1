"""HTTP and WebSocket proxying of the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from gateshift.apisix.request import normalize_uri, server_host
from gateshift.lab.oldgateway.balancer import Node
from gateshift.lab.oldgateway.exchange import Exchange, Reply
from gateshift.lab.oldgateway.gateway import Gateway
from gateshift.lab.oldgateway.table import Chain, Route

__all__ = ["HttpProxy"]

_HOP = ("Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "TE", "Trailer",
        "Transfer-Encoding", "Upgrade")  # fmt: skip
_HANDSHAKE = (
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Extensions",
    "Sec-WebSocket-Accept",
)
_SKIP_AUTO = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
_ERROR_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>openresty</center>\r\n</body>\r\n</html>\r\n"
)
_REASONS = {502: "502 Bad Gateway", 503: "503 Service Temporarily Unavailable", 504: "504 Gateway Time-out"}


@dataclass(frozen=True, slots=True)
class _Hop:
    """The request to an upstream node."""

    url: URL
    headers: CIMultiDict[str]
    body: bytes | None


def _page(status: int) -> Reply:
    return Reply(status, _ERROR_PAGE.format(_REASONS[status]).encode(), {"Content-Type": "text/html"})


class HttpProxy:
    """Handles requests of the HTTP and HTTPS listeners."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self._gateway = gateway
        self._session = session

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request and count it."""
        gateway = self._gateway
        started = perf_counter()
        gateway.metrics.requests += 1
        gateway.metrics.connections.writing += 1
        exchange = _exchange(request)
        code = 500
        sent = 0
        try:
            route, chain, reply = await gateway.admit(exchange)
            response: web.StreamResponse
            if reply is None and route is not None:
                response = await self._forward(request, route, chain, exchange)
            else:
                response = self._local(chain, exchange, reply or _page(503))
            code, sent = response.status, response.body_length or 0
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                sent = len(response.body)
            return response
        except ConnectionResetError:
            code = 499  # nginx's number for a client that went away
            return web.Response(status=code)
        finally:
            gateway.metrics.connections.writing -= 1
            gateway.log(exchange, code, started, request.content_length or 0, sent)

    def _local(self, chain: Chain, exchange: Exchange, reply: Reply) -> web.Response:
        headers = CIMultiDict(reply.headers)
        status = self._gateway.decorate(chain, exchange, headers, reply.status)
        return web.Response(status=status, body=reply.body, headers=headers)

    async def _forward(
        self, request: web.BaseRequest, route: Route, chain: Chain, exchange: Exchange
    ) -> web.StreamResponse:
        gateway = self._gateway
        upstream = gateway.upstream(route, exchange)
        nodes = gateway.balancer.order(upstream, exchange) if upstream else []
        if not upstream or not nodes:
            return self._local(chain, exchange, _page(503))
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket" and route.websocket
        body = await request.read() if request.can_read_body else None
        retries = int(upstream.get("retries", len(nodes) - 1))
        tries = [nodes[i % len(nodes)] for i in range(retries + 1)]
        failure = 502
        for node in tries:
            address = gateway.resolver.address(node)
            if address is None:
                failure = 503
                continue
            exchange.node = address[0]
            headers = _upstream_headers(exchange, upstream, node)
            url = _url(upstream, address, exchange)
            gateway.balancer.busy[node] += 1
            begun = perf_counter()
            try:
                hop = _Hop(url, headers, body)
                if upgrade:
                    return await self._websocket(request, chain, exchange, hop)
                return await self._ask(request, route, chain, exchange, hop)
            except aiohttp.ClientConnectorError:
                failure = 502
            except TimeoutError:
                failure = 504
                if exchange.method not in _IDEMPOTENT:
                    break
            except aiohttp.WSServerHandshakeError as refused:
                return self._local(chain, exchange, Reply(refused.status))
            except aiohttp.ClientError:
                failure = 502
                if exchange.method not in _IDEMPOTENT:
                    break
            finally:
                gateway.balancer.busy[node] -= 1
                exchange.upstream_ms = (perf_counter() - begun) * 1000
        return self._local(chain, exchange, _page(failure))

    async def _ask(
        self,
        request: web.BaseRequest,
        route: Route,
        chain: Chain,
        exchange: Exchange,
        hop: _Hop,
    ) -> web.StreamResponse:
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=float(route.timeout.get("connect", 60)),
            sock_read=float(route.timeout.get("read", 60)),
        )
        async with self._session.request(
            exchange.method,
            hop.url,
            headers=hop.headers,
            data=hop.body,
            allow_redirects=False,
            timeout=timeout,
            skip_auto_headers=_SKIP_AUTO,
        ) as answer:
            out = CIMultiDict(answer.headers)
            for name in _HOP:
                out.popall(name, None)
            if answer.content_length is not None or answer.status in {204, 304}:
                content = await answer.read()
                status = self._gateway.decorate(chain, exchange, out, answer.status)
                if exchange.method != "HEAD":
                    out.popall("Content-Length", None)
                return web.Response(status=status, body=content, headers=out)
            status = self._gateway.decorate(chain, exchange, out, answer.status)
            stream = web.StreamResponse(status=status, headers=out)
            await stream.prepare(request)
            async for chunk in answer.content.iter_any():
                await stream.write(chunk)
            await stream.write_eof()
            return stream

    async def _websocket(
        self,
        request: web.BaseRequest,
        chain: Chain,
        exchange: Exchange,
        hop: _Hop,
    ) -> web.StreamResponse:
        headers = hop.headers
        protocols = tuple(
            p.strip() for p in headers.popall("Sec-WebSocket-Protocol", [""])[0].split(",") if p.strip()
        )
        for name in _HANDSHAKE:
            headers.popall(name, None)
        async with self._session.ws_connect(hop.url, headers=headers, protocols=protocols, compress=0) as far:
            near = web.WebSocketResponse(protocols=protocols, compress=False)
            self._gateway.decorate(chain, exchange, near.headers, 101)
            await near.prepare(request)
            pumps = [asyncio.ensure_future(_pump(near, far)), asyncio.ensure_future(_pump(far, near))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in pumps:
                    one.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await far.close()
                await near.close()
            return near


async def _pump(source: Any, sink: Any) -> None:
    async for one in source:
        if one.type is WSMsgType.TEXT:
            await sink.send_str(one.data)
        elif one.type is WSMsgType.BINARY:
            await sink.send_bytes(one.data)


def _exchange(request: web.BaseRequest) -> Exchange:
    headers = request.headers.copy()
    target = request.raw_path
    args = target.partition("?")[2]
    return Exchange(
        method=request.method,
        scheme="https" if request.transport and request.transport.get_extra_info("sslcontext") else "http",
        host=server_host(headers.get("Host", "")),
        path=normalize_uri(target),
        target=target,
        query=dict(parse_qsl(args, keep_blank_values=True)) if args else {},
        cookies=request.cookies if "Cookie" in headers else {},
        headers=headers,
        remote=request.remote or "127.0.0.1",
    )


def _upstream_headers(exchange: Exchange, upstream: Mapping[str, Any], node: Node) -> CIMultiDict[str]:
    headers = exchange.headers.copy()
    for name in _HOP:
        headers.popall(name, None)
    headers.popall("Content-Length", None)
    kind = str(upstream.get("pass_host", "pass"))
    if kind == "node":
        headers["Host"] = node.host if node.port in {80, 443} else node.name
    elif kind == "rewrite":
        headers["Host"] = str(upstream.get("upstream_host", node.host))
    forwarded = headers.get("X-Forwarded-For")
    headers["X-Forwarded-For"] = f"{forwarded}, {exchange.remote}" if forwarded else exchange.remote
    headers["X-Real-IP"] = exchange.remote
    headers.setdefault("X-Forwarded-Proto", exchange.scheme)
    headers["X-Forwarded-Host"] = exchange.host
    headers["X-Forwarded-Port"] = "9443" if exchange.scheme == "https" else "9080"
    return headers


def _url(upstream: Mapping[str, Any], address: tuple[str, int], exchange: Exchange) -> URL:
    scheme = "https" if str(upstream.get("scheme", "http")) in {"https", "grpcs"} else "http"
    target = exchange.upstream_target or exchange.target
    return URL(f"{scheme}://{address[0]}:{address[1]}{target}", encoded=True)
