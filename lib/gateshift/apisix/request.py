"""A request as APISIX sees it when it chooses a route, and nginx's variables of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from gateshift.apisix.expr import Value
from gateshift.apisix.lua import byte_string, lower

__all__ = ["Request", "Variables", "is_readable", "normalize_uri", "server_host"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    ``path`` is nginx's ``$uri``: decoded and normalized (:func:`normalize_uri` makes one from a raw request
    line). A query string in it is split off and gives the arguments when ``args`` is empty. ``host`` may
    carry a port; without it, a Host header counts. Values of headers, args and cookies may be lists.
    """

    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    cookies: Mapping[str, Any] = field(default_factory=dict)
    remote_addr: str = "127.0.0.1"
    scheme: str = "http"
    server_port: int = 9080


def server_host(raw: str) -> str:
    """Return nginx's ``$host`` of a Host header: lower case, without port and trailing dot."""
    host = lower(byte_string(raw))
    if ":" in host:
        if host.startswith("["):
            end = host.find("]")
            host = host[: end + 1] if end >= 0 else host
        else:
            host = host.partition(":")[0]
    return host.removesuffix(".")


def normalize_uri(raw: str) -> str:
    """Return nginx's ``$uri`` of a raw request target: decoded, dot segments resolved, slashes merged."""
    path = raw.partition("#")[0].partition("?")[0]
    text = unquote_to_bytes(path).decode("utf-8", "surrogateescape")
    out: list[str] = []
    segments = text.split("/")
    for segment in segments[1:] if text.startswith("/") else segments:
        if segment == "..":
            if out:
                out.pop()
        elif segment not in ("", "."):
            out.append(segment)
    directory = text.endswith(("/", "/.", "/..")) and out
    return "/" + "/".join(out) + ("/" if directory else "")


def _text(value: object) -> str:
    if isinstance(value, str):
        return byte_string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _first(value: object) -> Value:
    """The first of several values; an argument without a value stays True, as in ngx.req.get_uri_args."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None or value is True:
        return value
    return _text(value)


def _parse_query(query: str) -> dict[str, Value]:
    """First value of each argument, decoded as ngx.req.get_uri_args does (``+`` is a space)."""
    args: dict[str, Value] = {}
    for piece in query.split("&"):
        name, equals, text = piece.partition("=")
        key = unquote_to_bytes(name.replace("+", " ")).decode("latin-1")
        if not key:
            continue
        value: Value = unquote_to_bytes(text.replace("+", " ")).decode("latin-1") if equals else True
        args.setdefault(key, value)
    return args


def _parse_cookies(header: str) -> dict[str, str]:
    """Cookies of one header as lua-resty-cookie reads them: a later one of the same name wins."""
    cookies: dict[str, str] = {}
    for piece in header.replace("\t", " ").split(";"):
        name, equals, rest = piece.lstrip(" ").partition("=")
        if equals:
            cookies[name] = rest.partition(" ")[0]
    return cookies


class Variables:
    """nginx's and APISIX's variables of one request, read on demand: call it with a name."""

    __slots__ = ("_args", "_cookies", "_headers", "_known", "_query", "_request", "host", "uri")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._headers: dict[str, str] | None = None
        self._args: dict[str, Value] | None = None
        self._known: dict[str, Value] = {}
        self._cookies: dict[str, str] | None = None
        path, mark, query = request.path.partition("?")
        self._query = query if mark else None
        self.uri = byte_string(path)
        raw = request.host or self.header("host") or ""
        self.host = server_host(raw)

    def header(self, name: str) -> str | None:
        """Value of a header by its name in lower case with ``_`` for ``-``; several are joined."""
        if self._headers is None:
            headers: dict[str, str] = {}
            for key, value in self._request.headers.items():
                text = ", ".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
                folded = key.lower().replace("-", "_")
                headers[folded] = f"{headers[folded]}, {text}" if folded in headers else text
            self._headers = headers
        return self._headers.get(name)

    @property
    def http_host(self) -> str | None:
        """The Host header as sent, port included."""
        return self.header("host") or self._request.host or None

    @property
    def query(self) -> str:
        """The query string, built from the arguments when the path has none."""
        if self._query is not None:
            return byte_string(self._query)
        pieces = []
        for key, value in self._request.args.items():
            for item in value if isinstance(value, list | tuple) else (value,):
                name = quote(str(key), safe="")
                pieces.append(name if item is True else f"{name}={quote(str(item or ''), safe='')}")
        return "&".join(pieces)

    def _argument(self, name: str) -> Value:
        if self._args is None:
            if self._request.args:
                self._args = {byte_string(str(k)): _first(v) for k, v in self._request.args.items()}
            else:
                self._args = _parse_query(self._query) if self._query else {}
        return self._args.get(name)

    def _cookie(self, name: str) -> Value:
        if self._cookies is None:
            header = self.header("cookie")
            cookies = _parse_cookies(header) if header else {}
            cookies |= {byte_string(str(k)): _text(_first(v)) for k, v in self._request.cookies.items()}
            self._cookies = cookies
        return self._cookies.get(name)

    def _cookie_header(self) -> str | None:
        header = self.header("cookie")
        if header is None and self._request.cookies:
            return "; ".join(f"{k}={_text(_first(v))}" for k, v in self._request.cookies.items())
        return header

    def __call__(self, name: str) -> Value:
        """Return the value of a variable named by a byte string, None when the request does not have it."""
        try:
            return self._known[name]
        except KeyError:
            value = self._known[name] = self._read(name)
            return value

    def _read(self, name: str) -> Value:
        if name.startswith("arg_"):
            return self._argument(name[4:])
        if name.startswith("http_"):
            key = name[5:].lower().replace("-", "_")
            if key == "host":
                return self.http_host
            return self._cookie_header() if key == "cookie" else self.header(key)
        if name.startswith("cookie_"):
            return self._cookie(name[7:])
        reader = _NAMED.get(name)
        return None if reader is None else reader(self)

    def _request_uri(self) -> str:
        query = self.query
        return f"{self.uri}?{query}" if query else self.uri

    @property
    def request(self) -> Request:
        """The request these are the variables of."""
        return self._request


_NAMED: Mapping[str, Callable[[Variables], Value]] = {
    "uri": lambda v: v.uri,
    "document_uri": lambda v: v.uri,
    "request_uri": lambda v: v._request_uri(),
    "host": lambda v: v.host,
    "request_method": lambda v: v.request.method,
    "method": lambda v: v.request.method,
    "scheme": lambda v: v.request.scheme,
    "https": lambda v: "on" if v.request.scheme == "https" else None,
    "remote_addr": lambda v: v.request.remote_addr,
    "realip_remote_addr": lambda v: v.request.remote_addr,
    "server_port": lambda v: str(v.request.server_port),
    "args": lambda v: v.query or None,
    "query_string": lambda v: v.query or None,
    "is_args": lambda v: "?" if v.query else "",
    "content_type": lambda v: v.header("content_type"),
    "content_length": lambda v: v.header("content_length"),
    "server_protocol": lambda _: "HTTP/1.1",
}


def is_readable(name: str) -> bool:
    """True for a variable that :class:`Variables` can know; others (a body, geography) count as absent."""
    return name.startswith(("arg_", "http_", "cookie_")) or name in _NAMED
