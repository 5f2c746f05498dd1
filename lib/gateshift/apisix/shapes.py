"""The types that APISIX's schema (apisix/schema_def.lua) gives the fields of its objects.

Only types, and the bounds without which a value means nothing: APISIX skips an object that breaks them and
serves without it. Names that do not exist (a balancer, a plugin) are no matter of type; they are reported
where they are read. Null counts as absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gateshift.apisix.model import Kind
from gateshift.apisix.templates import gap_in

__all__ = ["UNFILLED", "faults"]

UNFILLED = "a template that was never filled in"
"""How a message ends whose value is no value yet."""

Fault = tuple[str, str]
"""A path inside the object, and what is wrong there."""
Check = Callable[[Any, str], Iterator[Fault]]

_LARGEST = 2**53  # Lua's numbers are doubles: no integer above is itself


def _of(test: Callable[[Any], bool], wanted: str) -> Check:
    def check(value: Any, path: str) -> Iterator[Fault]:
        if value is not None and not test(value):
            yield path, f"{path or 'the object'} is {wanted}, this is {_shown(value)}"

    return check


def _shown(value: Any) -> str:
    """Name a wrong value; a long one, which may be a secret, only by its type."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and (found := gap_in(value)):
        return f"{found}, {UNFILLED}"
    text = repr(value)
    return text if len(text) <= 24 else f"a {type(value).__name__}"


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= _LARGEST


def _integer(value: Any) -> bool:
    return _number(value) and value == int(value)


_TEXT = _of(lambda value: isinstance(value, str), "text")
_FLAG = _of(lambda value: isinstance(value, bool), "true or false")
_NUMBER = _of(_number, "a number")
_INTEGER = _of(_integer, "an integer")
_COUNT = _of(lambda value: _integer(value) and value >= 0, "an integer from 0 on")
_PORT = _of(lambda value: _integer(value) and 1 <= value <= 65535, "a port from 1 to 65535")
_SECONDS = _of(lambda value: _number(value) and value > 0, "a number of seconds above 0")
_SWITCH = _of(lambda value: isinstance(value, bool) or (_number(value) and value in (0, 1)), "1 or 0")
_REFERENCE = _of(
    lambda value: (isinstance(value, str) and value != "") or (_integer(value) and value >= 1),
    "text that is not empty or an integer from 1 on",
)
_FUNCTION = _of(
    lambda value: isinstance(value, str) and len(value) >= 10 and value.startswith("function"),
    "a Lua function of at least 10 characters",
)
_SCRIPT = _of(lambda value: isinstance(value, str) and len(value) >= 10, "a text of at least 10 characters")
_LIST = _of(lambda value: isinstance(value, list | tuple | Mapping), "a list")  # {} is Lua's empty list
_MAPPING = _of(lambda value: isinstance(value, Mapping), "a mapping")


def _texts(value: Any, path: str) -> Iterator[Fault]:
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if not isinstance(item, str):
                yield f"{path}[{i}]", f"{path}[{i}] is text, this is {_shown(item)}"
    elif value is not None and value != {}:
        yield path, f"{path} is a list of texts, this is {_shown(value)}"


def _either(first: Check, second: Check) -> Check:
    def check(value: Any, path: str) -> Iterator[Fault]:
        wrong = list(first(value, path))
        if wrong and any(True for _ in second(value, path)):
            yield from wrong

    return check


def _object(fields: Mapping[str, Check]) -> Check:
    def check(value: Any, path: str) -> Iterator[Fault]:
        if value is None or value == []:
            return  # [] is what YAML and JSON make of Lua's empty table
        if not isinstance(value, Mapping):
            yield from _MAPPING(value, path)
            return
        for key, test in fields.items():
            if key in value:
                yield from test(value[key], f"{path}.{key}" if path else key)

    return check


def _plugins(value: Any, path: str) -> Iterator[Fault]:
    if value is None or value == []:
        return
    if not isinstance(value, Mapping):
        yield path, f"{path} is a mapping by plugin name, this is {_shown(value)}"
        return
    for name, options in value.items():
        where = f"{path}.{name}"
        if not isinstance(name, str):
            yield where, f"a plugin's name is text, this is {_shown(name)}"
        elif options is not None and not isinstance(options, Mapping) and options != []:
            yield where, f"{where} is a mapping of options, this is {_shown(options)}"


def _some(value: Any, path: str) -> Iterator[Fault]:
    yield from _texts(value, path)
    if value is not None and not value:
        yield path, f"{path} is empty, where APISIX wants at least one"


_NODE = _object({"host": _TEXT, "port": _PORT, "weight": _COUNT, "priority": _INTEGER, "metadata": _MAPPING})


_KEY_PORT = re.compile(r"^(?:\[.*\]|[^:]*):(\d+)$", re.ASCII)


def _nodes(value: Any, path: str) -> Iterator[Fault]:
    if isinstance(value, Mapping):
        for key, weight in value.items():
            if weight is None:
                yield f"{path}.{key}", f"{path}.{key} has no weight"
            else:
                yield from _COUNT(weight, f"{path}.{key}")
            port = _KEY_PORT.search(str(key))
            if port:
                yield from _PORT(int(port[1]), f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, node in enumerate(value):
            where = f"{path}[{i}]"
            if not isinstance(node, Mapping):
                yield where, f"{where} is a mapping with host, port and weight, this is {_shown(node)}"
            elif not isinstance(node.get("host"), str) or not node["host"]:
                yield f"{where}.host", f"{where}.host is missing"
            else:
                yield from _NODE(node, where)
    elif value is not None:
        yield path, f"{path} is a mapping of host:port to weight, or a list, this is {_shown(value)}"


_TIMEOUT = _object({"connect": _SECONDS, "send": _SECONDS, "read": _SECONDS})
_PROBE = _object({"timeout": _NUMBER, "port": _PORT, "healthy": _MAPPING, "unhealthy": _MAPPING})
_UPSTREAM_FIELDS: Mapping[str, Check] = {
    "nodes": _nodes,
    "type": _TEXT,
    "scheme": _TEXT,
    "hash_on": _TEXT,
    "key": _TEXT,
    "retries": _COUNT,
    "retry_timeout": _NUMBER,
    "timeout": _TIMEOUT,
    "keepalive_pool": _object({"size": _COUNT, "idle_timeout": _NUMBER, "requests": _COUNT}),
    "checks": _object({"active": _PROBE, "passive": _object({"healthy": _MAPPING, "unhealthy": _MAPPING})}),
    "pass_host": _TEXT,
    "upstream_host": _TEXT,
    "service_name": _TEXT,
    "discovery_type": _TEXT,
    "discovery_args": _MAPPING,
    "tls": _MAPPING,
}
_INLINE = _object(_UPSTREAM_FIELDS)
_BEARERS: Mapping[str, Check] = {"plugins": _plugins, "upstream": _INLINE, "upstream_id": _REFERENCE}

_FIELDS: Mapping[Kind, Check] = {
    Kind.ROUTE: _object(
        {
            **_BEARERS,
            "uri": _TEXT,
            "uris": _some,
            "host": _TEXT,
            "hosts": _texts,
            "methods": _texts,
            "priority": _NUMBER,
            "remote_addr": _TEXT,
            "remote_addrs": _some,
            "vars": _LIST,
            "filter_func": _FUNCTION,
            "script": _SCRIPT,
            "script_id": _REFERENCE,
            "service_id": _REFERENCE,
            "plugin_config_id": _REFERENCE,
            "timeout": _either(_TIMEOUT, _SECONDS),
            "enable_websocket": _FLAG,
            "status": _SWITCH,
        }
    ),
    Kind.SERVICE: _object({**_BEARERS, "hosts": _texts, "enable_websocket": _FLAG, "script": _SCRIPT}),
    Kind.UPSTREAM: _INLINE,
    Kind.PLUGIN_CONFIG: _object({"plugins": _plugins}),
    Kind.GLOBAL_RULE: _object({"plugins": _plugins}),
    Kind.CONSUMER: _object({"plugins": _plugins, "group_id": _REFERENCE}),
    Kind.CONSUMER_GROUP: _object({"plugins": _plugins}),
    Kind.CREDENTIAL: _object({"plugins": _plugins}),
    Kind.SSL: _object(
        {
            "sni": _TEXT,
            "snis": _some,
            "cert": _TEXT,
            "key": _TEXT,
            "certs": _texts,
            "keys": _texts,
            "type": _TEXT,
            "status": _SWITCH,
            "ssl_protocols": _texts,
            "client": _object({"ca": _TEXT, "depth": _COUNT, "skip_mtls_uri_regex": _texts}),
        }
    ),
    Kind.PROTO: _object({"content": _TEXT}),
    Kind.STREAM_ROUTE: _object(
        {
            **_BEARERS,
            "service_id": _REFERENCE,
            "server_port": _PORT,
            "server_addr": _TEXT,
            "remote_addr": _TEXT,
            "sni": _TEXT,
            "protocol": _MAPPING,
        }
    ),
    Kind.PLUGIN_METADATA: _object({}),
    Kind.SECRET: _object({}),
}


def faults(kind: Kind, spec: Mapping[str, Any]) -> list[Fault]:
    """Return where *spec* has a type that APISIX's schema refuses; empty for what it would take."""
    return list(_FIELDS[kind](spec, ""))
