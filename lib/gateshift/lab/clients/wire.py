"""Making the calls: pools of connections to a gateway, and one function a protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from aiohttp.abc import AbstractResolver, ResolveResult

from gateshift.lab.backends.messages import GetUserRequest
from gateshift.lab.clients.mix import Call
from gateshift.lab.clients.stats import Outcome
from gateshift.lab.topology import HOST_GRPC

__all__ = ["Address", "Pool"]

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a load balancer's ports are on this machine (``address:port``)."""

    name: str
    http: str
    https: str
    grpc: str

    @property
    def gateway(self) -> str:
        """``apisix`` of ``apisix-lab.elb...``: the name under which counts are kept."""
        return self.name.split("-", 1)[0].split(".", 1)[0]

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``name=http,https,grpc``; raises ValueError."""
        name, equals, rest = text.partition("=")
        parts = rest.split(",")
        if not equals or len(parts) != 3 or not all(p.rpartition(":")[2].isdigit() for p in parts):
            raise ValueError(f"{text}: write name=http_host:port,https_host:port,grpc_host:port")
        return cls(name.rstrip(".").lower(), *parts)


class _Here(AbstractResolver):
    """Every name is the load balancer's address: the weighted choice was made before."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Answer with the fixed address."""
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Pool:
    """Connections to one gateway, replaced when their age is over."""

    def __init__(self, address: Address, ca_file: Path | None, max_age: float) -> None:
        self.address = address
        self._max_age = max_age
        self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        self._ca = ca_file.read_bytes() if ca_file else None
        self._born = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._channels: dict[bool, Any] = {}
        self._closing: dict[asyncio.Task[None], list[Any]] = {}

    def session(self) -> aiohttp.ClientSession:
        """The session in use; an old one is closed when its last call must have ended."""
        now = time.monotonic()
        if self._session is None or now - self._born > self._max_age:
            self._retire()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_Here(self.address.http.rpartition(":")[0]),
                    limit=0,
                    keepalive_timeout=15,
                    use_dns_cache=False,
                    ssl=self._tls,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
                auto_decompress=False,
            )
            self._born = now
        return self._session

    def channel(self, tls: bool) -> Any:
        """The gRPC channel in use; it lives as long as the session."""
        if tls not in self._channels:
            options = [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            if tls:
                self._channels[tls] = grpc.aio.secure_channel(
                    self.address.https,
                    grpc.ssl_channel_credentials(self._ca),
                    options=[*options, ("grpc.ssl_target_name_override", HOST_GRPC)],
                )
            else:
                self._channels[tls] = grpc.aio.insecure_channel(
                    self.address.grpc, options=[*options, ("grpc.default_authority", HOST_GRPC)]
                )
        return self._channels[tls]

    def _retire(self) -> None:
        old = [one for one in (self._session, *self._channels.values()) if one is not None]
        self._session, self._channels = None, {}

        async def close() -> None:
            await asyncio.sleep(_TIMEOUT)
            for one in old:
                await one.close()

        if old:
            task = asyncio.get_running_loop().create_task(close())
            self._closing[task] = old
            task.add_done_callback(lambda done: self._closing.pop(done, None))

    async def close(self) -> None:
        """Close everything now."""
        for task, old in list(self._closing.items()):
            task.cancel()
            for one in old:
                await one.close()
        for one in (self._session, *self._channels.values()):
            if one is not None:
                await one.close()

    # -- calls

    async def http(self, call: Call, path: str, headers: dict[str, str], tls: bool) -> Outcome:
        """One HTTP request, its body read to the end."""
        scheme, target = ("https", self.address.https) if tls else ("http", self.address.http)
        url = f"{scheme}://{call.host}:{target.rpartition(':')[2]}{path}"
        begun = time.perf_counter()
        try:
            async with self.session().request(
                call.method, url, headers=headers, data=call.body, allow_redirects=False
            ) as answer:
                await answer.read()
                return Outcome(answer.status, seconds=time.perf_counter() - begun)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Outcome(None, _name(error), time.perf_counter() - begun)

    async def websocket(
        self, call: Call, path: str, headers: dict[str, str], tls: bool, stay: float
    ) -> Outcome:
        """One session: greeting, two echoes, *stay* seconds in between. Any break of it is an error."""
        scheme, target = ("wss", self.address.https) if tls else ("ws", self.address.http)
        url = f"{scheme}://{call.host}:{target.rpartition(':')[2]}{path}"
        begun = time.perf_counter()
        try:
            async with self.session().ws_connect(url, headers=headers, compress=0) as stream:
                opened = time.perf_counter() - begun
                await stream.receive_str(timeout=_TIMEOUT)
                for text in ("first", "second"):
                    await stream.send_str(text)
                    if await stream.receive_str(timeout=_TIMEOUT) != text:
                        return Outcome(None, "echo differs", opened)
                    await asyncio.sleep(stay / 2)
                return Outcome(101, seconds=opened)
        except aiohttp.WSServerHandshakeError as refused:
            return Outcome(refused.status, seconds=time.perf_counter() - begun)
        except (aiohttp.ClientError, TimeoutError, OSError, TypeError) as error:
            # receive_str raises TypeError when the stream was closed instead of answered.
            return Outcome(None, _name(error), time.perf_counter() - begun)

    async def grpc(self, call: Call, path: str, headers: dict[str, str], tls: bool) -> Outcome:
        """One unary call; the status is gRPC's number."""
        begun = time.perf_counter()
        stub = self.channel(tls).unary_unary(path, request_serializer=None, response_deserializer=None)
        metadata = [(k.lower(), v) for k, v in headers.items() if k.lower() != "host"]
        try:
            await stub(GetUserRequest(id="u-1001").SerializeToString(), metadata=metadata, timeout=_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return Outcome(int(error.code().value[0]), seconds=time.perf_counter() - begun)
        return Outcome(0, seconds=time.perf_counter() - begun)


def _name(error: BaseException) -> str:
    """A short name that says what happened to the connection."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        with contextlib.suppress(AttributeError):
            return f"connect: {error.os_error.strerror or type(error.os_error).__name__}"
    return type(error).__name__
