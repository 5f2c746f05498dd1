"""One request on its way through the stand-in, as its plugins see it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict

__all__ = ["Exchange", "Reply", "message"]

_VARIABLE = re.compile(r"(?<!\\)\$(?:\{(\w+)\}|(\w+))")


@dataclass(slots=True)
class Reply:
    """An answer made by the gateway itself."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def message(status: int, text: str, key: str = "message") -> Reply:
    """APISIX's JSON answer (its own end with a newline)."""
    body = json.dumps({key: text}, separators=(",", ":")).encode() + b"\n"
    return Reply(status, body, {"Content-Type": "application/json"})


@dataclass(slots=True)
class Exchange:
    """Mutable state of one request. *path* is decoded and normalized, *target* is what the client sent."""

    method: str
    scheme: str
    host: str
    path: str
    target: str
    query: Mapping[str, str]
    cookies: Mapping[str, str]
    headers: CIMultiDict[str]
    remote: str
    route_id: str = ""
    consumer: str = ""
    upstream_target: str | None = None
    upstream: Mapping[str, Any] | None = None
    request_id: str = ""
    delay: float = 0.0
    response_headers: dict[str, str] = field(default_factory=dict)
    matched_uri: str = ""
    matched_host: str = ""
    service_id: str = ""
    node: str = ""
    upstream_ms: float | None = None

    @property
    def args(self) -> str:
        """The query string as sent, without its question mark."""
        return self.target.partition("?")[2]

    def variable(self, name: str) -> str:
        """The value of an nginx variable that plugin keys use; empty when unknown."""
        if name.startswith("http_"):
            return self.headers.get(name[5:].replace("_", "-"), "")
        if name.startswith("arg_"):
            return self.query.get(name[4:], "")
        if name.startswith("cookie_"):
            return self.cookies.get(name[7:], "")
        return {
            "remote_addr": self.remote,
            "host": self.host,
            "uri": self.path,
            "request_uri": self.target,
            "scheme": self.scheme,
            "request_method": self.method,
            "consumer_name": self.consumer,
            "server_addr": "127.0.0.1",
            "args": self.args,
        }.get(name, "")

    def fill(self, template: str) -> str:
        """Replace ``$name`` and ``${name}`` by variables, as APISIX's resolve_var does."""
        if "$" not in template:
            return template
        return _VARIABLE.sub(lambda m: self.variable(m[1] or m[2]), template)
