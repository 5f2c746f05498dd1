"""APISIX's own object forms: the standalone file, Admin API answers of v2 and v3, and etcd dumps."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.apisix.model import Kind, Origin, Router
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.source import Document

__all__ = ["add_item", "kind_of", "read_admin", "read_etcd", "read_standalone", "settings_of"]

ALIASES: Mapping[str, Kind] = {
    **{kind.value: kind for kind in Kind},
    "ssl": Kind.SSL,
    "proto": Kind.PROTO,
    "route": Kind.ROUTE,
    "service": Kind.SERVICE,
    "upstream": Kind.UPSTREAM,
    "consumer": Kind.CONSUMER,
    "global_rule": Kind.GLOBAL_RULE,
    "plugin_config": Kind.PLUGIN_CONFIG,
    "consumer_group": Kind.CONSUMER_GROUP,
    "stream_route": Kind.STREAM_ROUTE,
}
# Parts of config.yaml and of APISIX's bookkeeping that may stand beside the resources.
_IGNORED = frozenset(
    {"plugins", "deployment", "nginx_config", "plugin_attr", "ext-plugin", "wasm", "discovery", "apisix"}
)


def kind_of(name: str) -> Kind | None:
    """Return the kind a key of a standalone file, an Admin path or an etcd directory names."""
    return ALIASES.get(name)


def settings_of(builder: Builder, data: Mapping[str, Any], source: str) -> None:
    """Take the router and version from a config.yaml section, wherever it stands."""
    section = data.get("apisix")
    router = section.get("router") if isinstance(section, Mapping) else None
    name = router.get("http") if isinstance(router, Mapping) else router
    if not isinstance(name, str):
        return
    try:
        builder.router = Router(name)
    except ValueError:
        known = ", ".join(r.value for r in Router)
        builder.error(
            Origin(source, "apisix.router.http"), f"unknown router {name!r}", f"write one of {known}"
        )


def add_item(builder: Builder, kind: Kind, item: object, origin: Origin, fallback: str) -> None:
    """Add one object; *fallback* is its id when it has none of its own."""
    if not isinstance(item, Mapping):
        builder.error(
            origin,
            f"one of {kind.value} is a mapping, this is {type(item).__name__}; APISIX ignores it",
            "correct or remove it",
        )
        return
    id_ = item.get("id")
    if kind is Kind.CONSUMER:
        id_ = item.get("username", id_)
    if kind is Kind.PLUGIN_METADATA and id_ is None:
        id_ = item.get("name")
    if isinstance(id_, float) and id_.is_integer():
        id_ = int(id_)
    if id_ is None or isinstance(id_, bool | Mapping | list):
        id_ = fallback
    builder.add(kind, id_, dict(item), origin)


def read_standalone(document: Document, builder: Builder) -> None:
    """Read a mapping of kind to list. Ids that are missing are ``arr_<position>``, as APISIX names them."""
    data: Mapping[str, Any] = document.data
    settings_of(builder, data, document.source)
    for key, items in data.items():
        name = str(key)
        kind = kind_of(name)
        if kind is None:
            if name in _IGNORED or name.endswith("_conf_version"):
                continue
            builder.warn(
                Origin(document.source, name),
                f"{name} is no kind of APISIX resource and was not read",
                "remove it, or correct its spelling: " + ", ".join(k.value for k in Kind),
            )
            continue
        if items is None:
            continue
        if isinstance(items, Mapping):
            if kind is Kind.PLUGIN_METADATA and "id" not in items:
                for plugin, conf in items.items():
                    add_item(builder, kind, conf, Origin(document.source, f"{name}.{plugin}"), str(plugin))
                continue
            builder.error(
                Origin(document.source, name),
                f"{name} is a mapping, APISIX reads a list; its entries were taken as the list",
                "write a list: each entry with a leading dash",
            )
            for id_, item in items.items():
                add_item(builder, kind, item, Origin(document.source, f"{name}.{id_}"), str(id_))
            continue
        if not isinstance(items, list):
            builder.error(
                Origin(document.source, name), f"{name} is a list of objects, this is {type(items).__name__}"
            )
            continue
        for i, item in enumerate(items):
            fallback = f"arr_{i + 1}"
            if builder.has(kind, fallback):
                fallback = f"arr_{i + 1}.{document.source.rsplit('/', 1)[-1]}"
            add_item(builder, kind, item, Origin(document.source, f"{name}[{i}]"), fallback)


def _from_key(key: object) -> tuple[Kind | None, str]:
    """Split ``/apisix/routes/1`` (or ``/apisix/consumers/jack/credentials/a``) into kind and id."""
    parts = [part for part in str(key).split("/") if part]
    for i, part in enumerate(parts):
        kind = kind_of(part)
        if kind is None:
            continue
        rest = parts[i + 1 :]
        if kind is Kind.CONSUMER and len(rest) >= 3 and rest[1] == "credentials":
            return Kind.CREDENTIAL, f"{rest[0]}/{rest[2]}"
        return kind, "/".join(rest)
    return None, ""


def _entries(node: object, path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Walk v2's node/nodes and v3's list down to objects that carry a key and a value."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _entries(item, f"{path}[{i}]")
    elif isinstance(node, Mapping):
        if isinstance(node.get("value"), Mapping) and "key" in node:
            yield node, path
            return
        for name in ("node", "nodes", "list"):
            if isinstance(node.get(name), Mapping | list):
                yield from _entries(node[name], f"{path}.{name}".lstrip("."))


def is_admin(data: object) -> bool:
    """True for an answer of the Admin API, alone or under the name of its kind."""
    if isinstance(data, list):
        return bool(data) and all(isinstance(x, Mapping) and "key" in x and "value" in x for x in data)
    if not isinstance(data, Mapping):
        return False
    if next(_entries(data, ""), None) is not None:
        return True
    if "total" in data and isinstance(data.get("list"), list):
        return True
    return any(
        kind_of(str(k)) is not None and isinstance(v, Mapping) and next(_entries(v, ""), None) is not None
        for k, v in data.items()
    )


def read_admin(document: Document, builder: Builder) -> None:
    """Read Admin API answers: one, several by kind, or the bare list of entries."""
    data = document.data
    parts: list[tuple[object, str]] = [(data, "")]
    if isinstance(data, Mapping) and next(_entries(data, ""), None) is None:
        parts = [(value, str(key)) for key, value in data.items()]
    for part, path in parts:
        for entry, where in _entries(part, path):
            kind, id_ = _from_key(entry["key"])
            origin = Origin(document.source, f"{where}.value".lstrip("."))
            if kind is None:
                builder.warn(origin, f"{entry['key']} is no kind of APISIX resource and was not read")
                continue
            fallback = id_ or str(entry["value"].get("id", "")) or where
            if kind is Kind.CREDENTIAL:
                builder.add(kind, fallback, dict(entry["value"]), origin)
            else:
                add_item(builder, kind, entry["value"], origin, fallback)


def is_etcd(data: object) -> bool:
    """True for ``etcdctl get --prefix -w json`` and for a mapping of etcd keys to objects."""
    if not isinstance(data, Mapping):
        return False
    if isinstance(data.get("kvs"), list):
        return True
    keys = [key for key in data if isinstance(key, str)]
    return bool(keys) and all(key.startswith("/") and _from_key(key)[0] is not None for key in keys)


def _decoded(text: object) -> str:
    if not isinstance(text, str):
        return ""
    try:
        return base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return text


def read_etcd(document: Document, builder: Builder) -> None:
    """Read a dump of an etcd prefix; key order stands for insertion order, as after a full load."""
    data: Mapping[str, Any] = document.data
    if isinstance(data.get("kvs"), list):
        pairs = []
        for entry in data["kvs"]:
            if isinstance(entry, Mapping):
                key = entry.get("key")
                text = key if isinstance(key, str) and key.startswith("/") else _decoded(key)
                pairs.append((text, entry.get("value")))
    else:
        pairs = list(data.items())
    for key, stored in pairs:
        origin = Origin(document.source, key)
        kind, id_ = _from_key(key)
        value = stored
        if isinstance(stored, str):
            text = stored if stored.lstrip().startswith(("{", '"')) else _decoded(stored)
            try:
                value = json.loads(text)
            except ValueError:
                if text != "init_dir":  # what APISIX writes into a directory that it creates
                    builder.error(origin, "the value of this etcd key is not JSON", "export the prefix again")
                continue
        if kind is None:
            builder.warn(origin, "no kind of APISIX resource is kept under this etcd key; it was not read")
        elif kind is Kind.CREDENTIAL and isinstance(value, Mapping):
            builder.add(kind, id_, dict(value), origin)
        else:
            add_item(builder, kind, value, origin, id_)
