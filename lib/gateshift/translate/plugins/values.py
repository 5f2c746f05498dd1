"""Header values: nginx variables as Envoy command operators, and a guard against credentials in objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from gateshift.istio.versions import Feature
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.plugins.envoy import quoted
from gateshift.translate.plugins.registry import Use
from gateshift.translate.secretive import looks_secret

__all__ = ["Address", "address_of", "guard_credential", "header_value", "lua_values", "template"]

_VARIABLES = {
    "remote_addr": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "remote_port": "%DOWNSTREAM_REMOTE_PORT%",
    "host": "%REQ(:AUTHORITY)%",
    "http_host": "%REQ(:AUTHORITY)%",
    "uri": "%PATH(NQ:PATH)%",
    "request_uri": "%REQ(:PATH)%",
    "request_method": "%REQ(:METHOD)%",
    "scheme": "%REQ(:SCHEME)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "upstream_addr": "%UPSTREAM_HOST%",
    "status": "%RESPONSE_CODE%",
    "server_protocol": "%PROTOCOL%",
    "request_length": "%BYTES_RECEIVED%",
}
_VARIABLE = re.compile(r"\$(?:\{\s*(\w+)\s*\}|(\w+))")
_DEFAULT = re.compile(r"\$\{[^}]*\?\?")


def _no_default(text: str) -> None:
    if _DEFAULT.search(text):
        raise Inexpressible("a variable with a default (??) is nothing that Envoy's formats know")


def header_value(use: Use, text: object) -> str:
    """Write a value with ``$variables`` as Envoy's format; ``%`` is doubled. Raises Inexpressible."""
    path = Feature.PATH_FORMAT
    _no_default(str(text))

    def operator(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name == "uri" and not use.job.has(path):
            raise Inexpressible(f"the variable $uri in a header needs Istio {path.since}")
        if name in _VARIABLES:
            return _VARIABLES[name]
        if name.startswith("http_"):
            return f"%REQ({name[5:].replace('_', '-').upper()})%"
        raise Inexpressible(f"the variable ${name} is unknown to Envoy's header formats")

    return _VARIABLE.sub(operator, str(text).replace("%", "%%"))


_LUA_VALUES = {
    "remote_addr": "(client_address(handle))",
    "host": "plain_host(headers)",
    "http_host": 'headers:get(":authority")',
    "uri": 'decoded((headers:get(":path"):gsub("%?.*$", "")))',
    "request_uri": 'headers:get(":path")',
    "request_method": 'headers:get(":method")',
    "scheme": 'headers:get(":scheme")',
    "request_id": 'headers:get("x-request-id")',
}


def lua_values(values: Mapping[str, object], wrap: str = "plain") -> str:
    """Write a Lua table of texts with ``$variables``; ``headers`` and ``handle`` are in scope there.

    *wrap* is the Lua function that each variable's value goes through.
    """

    def one(text: str) -> str:
        _no_default(text)
        parts, last = [], 0
        for found in _VARIABLE.finditer(text):
            name = found[1] or found[2]
            read = _LUA_VALUES.get(name)
            if read is None and name.startswith("http_"):
                read = f"headers:get({quoted(name[5:].replace('_', '-'))})"
            if read is None and name.startswith("arg_"):
                read = f"argument(headers, {quoted(name[4:])})"
            if read is None:
                raise Inexpressible(f"the variable ${name} is unknown to Envoy's Lua")
            parts += [quoted(text[last : found.start()]), f'{wrap}({read} or "")']
            last = found.end()
        return " .. ".join([*parts, quoted(text[last:])])

    return "{" + ",".join(f"[{quoted(key)}]={one(str(value))}" for key, value in values.items()) + "}"


_CAPTURE = re.compile(r"\$(?:(\$)|\{(\d+)\}|(\d+)|\{?(\w*))")


def template(text: str, groups: int, shift: int = 0) -> str:
    """Write a replacement with ``$1`` as RE2's ``\\1``, groups moved up by *shift*.

    As in ``ngx.re.sub`` all digits name one group, one above *groups* is empty text, and ``$$`` is a dollar.
    """

    def capture(found: re.Match[str]) -> str:
        digits = found[2] or found[3]
        if found[1]:
            return "$"
        if digits is None:
            raise Inexpressible(f"the variable ${found[4]} cannot stand in a rewritten path")
        if int(digits) > groups:
            return ""
        if int(digits) + shift > 9:
            raise Inexpressible("Envoy's rewrites know nine groups")
        return f"\\{int(digits) + shift}"

    return _CAPTURE.sub(capture, text.replace("\\", "\\\\"))


def guard_credential(use: Use, name: str, value: object) -> bool:
    """Tell whether a literal header value may be emitted: what looks like a credential needs a decision."""
    if not looks_secret(name) or str(value).startswith("$") or not str(value):
        return True
    if use.job.params.inline_credentials:
        use.job.warn(f"{use.owner.kind}/{use.owner.id}: header {name} puts a credential into an object")
        return True
    use.block(
        f"header {name} carries a literal credential, which would be readable in the VirtualService",
        "let the backend add it from a Secret, or set translate.inline_credentials: true",
    )
    return False


class Address(NamedTuple):
    """Where a plugin's own service is. ``authority`` leaves out the ports 80 and 443, as APISIX does."""

    host: str
    port: int
    tls: bool
    authority: str
    path: str
    query: str


def address_of(url: str) -> Address:
    """Read the plain http or https address of a plugin's service. Raises Inexpressible for any other."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "$" in url:
        raise Inexpressible(f"{url!r} is no plain http or https address")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    authority = parts.hostname if port in (80, 443) else f"{parts.hostname}:{port}"
    return Address(parts.hostname, port, tls, authority, parts.path or "/", parts.query)
