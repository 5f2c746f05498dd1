"""ADC files: services hold their routes, consumers their credentials, global rules are a map by plugin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import Kind, Origin
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.source import Document

__all__ = ["is_adc", "read_adc"]

_KEYS = frozenset(
    {
        "name", "version", "services", "routes", "upstreams", "ssls", "consumers", "consumer_groups",
        "consumer_credentials", "global_rules", "plugin_metadata", "stream_routes", "_format_version",
    }
)  # fmt: skip


def is_adc(data: Mapping[str, Any]) -> bool:
    """True for the shapes that only ADC has."""
    services = data.get("services")
    if isinstance(services, list):
        for service in services:
            if isinstance(service, Mapping) and ("routes" in service or "stream_routes" in service):
                return True
    rules = data.get("global_rules")
    if isinstance(rules, Mapping) and rules and "plugins" not in rules:
        return all(isinstance(conf, Mapping) and "plugins" not in conf for conf in rules.values())
    if isinstance(data.get("version"), str | int | float) and isinstance(data.get("name"), str):
        return isinstance(services, list) or isinstance(data.get("routes"), list)
    return any(
        isinstance(item, Mapping) and ("credentials" in item or "certificates" in item)
        for key in ("consumers", "ssls")
        for item in (data[key] if isinstance(data.get(key), list) else [])
    )


def read_adc(document: Document, builder: Builder) -> None:
    """Read one ADC document. An object without id gets its name, below its service's."""
    reader = _Reader(document, builder)
    for key in document.data:
        if key not in _KEYS:
            builder.warn(Origin(document.source, str(key)), f"{key} is no part of an ADC file; not read")
    reader.services()
    reader.routes(document.data.get("routes"), "routes", None)
    reader.simple("upstreams", Kind.UPSTREAM)
    reader.ssls()
    reader.consumers(document.data.get("consumers"), "consumers", None)
    reader.groups()
    reader.maps()


class _Reader:
    def __init__(self, document: Document, builder: Builder) -> None:
        self.data: Mapping[str, Any] = document.data
        self.source = document.source
        self.builder = builder

    def origin(self, path: str) -> Origin:
        return Origin(self.source, path)

    def _objects(self, items: object, path: str) -> list[tuple[dict[str, Any], str]]:
        """Return the objects of a list with their paths; anything else is reported."""
        if items is None:
            return []
        if not isinstance(items, list):
            self.builder.error(self.origin(path), f"{path} is a list, this is {type(items).__name__}")
            return []
        found = []
        for i, item in enumerate(items):
            where = f"{path}[{i}]"
            if isinstance(item, Mapping):
                spec = dict(item)
                if "description" in spec:
                    spec.setdefault("desc", spec.pop("description"))
                found.append((spec, where))
            else:
                self.builder.error(self.origin(where), f"an object is expected, not {type(item).__name__}")
        return found

    def services(self) -> None:
        for spec, where in self._objects(self.data.get("services"), "services"):
            routes, streams = spec.pop("routes", None), spec.pop("stream_routes", None)
            prefix, strip = spec.pop("path_prefix", None), spec.pop("strip_path_prefix", True)
            id_ = str(spec.setdefault("id", spec.get("name") or where))
            for upstream, path in self._objects(spec.pop("upstreams", None), f"{where}.upstreams"):
                # Further upstreams of a service are named by traffic-split; they become resources.
                name = str(upstream.setdefault("id", upstream.get("name") or path))
                self.builder.add(Kind.UPSTREAM, name, upstream, self.origin(path))
            self.builder.add(Kind.SERVICE, id_, spec, self.origin(where))
            self.routes(routes, f"{where}.routes", id_, str(prefix or ""), strip=strip is not False)
            for stream, path in self._objects(streams, f"{where}.stream_routes"):
                name = str(stream.get("id") or f"{id_}.{stream.get('name') or path}")
                stream.update(id=name, service_id=id_)
                self.builder.add(Kind.STREAM_ROUTE, name, stream, self.origin(path))

    def routes(
        self, items: object, path: str, service: str | None, prefix: str = "", *, strip: bool = True
    ) -> None:
        for spec, where in self._objects(items, path):
            own = spec.get("id") or spec.get("name") or where
            id_ = str(own if spec.get("id") or service is None else f"{service}.{own}")
            spec["id"] = spec.get("id", id_)
            if service is not None:
                spec["service_id"] = service
            if prefix:
                _prefix(spec, prefix, strip=strip)
            self.builder.add(Kind.ROUTE, id_, spec, self.origin(where))

    def simple(self, key: str, kind: Kind) -> None:
        for spec, where in self._objects(self.data.get(key), key):
            id_ = str(spec.setdefault("id", spec.get("name") or where))
            self.builder.add(kind, id_, spec, self.origin(where))

    def ssls(self) -> None:
        for spec, where in self._objects(self.data.get("ssls"), "ssls"):
            certificates = spec.pop("certificates", None)
            pairs = (
                [c for c in certificates if isinstance(c, Mapping)] if isinstance(certificates, list) else []
            )
            if pairs:
                spec["cert"], spec["key"] = pairs[0].get("certificate"), pairs[0].get("key")
            if len(pairs) > 1:
                spec["certs"] = [c.get("certificate") for c in pairs[1:]]
                spec["keys"] = [c.get("key") for c in pairs[1:]]
            snis = spec.get("snis")
            name = ",".join(map(str, snis)) if isinstance(snis, list) and snis else where
            id_ = str(spec.setdefault("id", name))
            self.builder.add(Kind.SSL, id_, spec, self.origin(where))

    def consumers(self, items: object, path: str, group: str | None) -> None:
        for spec, where in self._objects(items, path):
            credentials = spec.pop("credentials", None)
            name = str(spec.setdefault("username", spec.get("name") or where))
            if group is not None:
                spec["group_id"] = group
            self.builder.add(Kind.CONSUMER, name, spec, self.origin(where))
            for credential, at in self._objects(credentials, f"{where}.credentials"):
                plugin, config = credential.pop("type", None), credential.pop("config", None)
                if plugin is not None:
                    credential["plugins"] = {str(plugin): config if config is not None else {}}
                id_ = f"{name}/{credential.get('id') or credential.get('name') or at}"
                self.builder.add(Kind.CREDENTIAL, id_, credential, self.origin(at))

    def groups(self) -> None:
        for spec, where in self._objects(self.data.get("consumer_groups"), "consumer_groups"):
            members = spec.pop("consumers", None)
            id_ = str(spec.setdefault("id", spec.get("name") or where))
            self.builder.add(Kind.CONSUMER_GROUP, id_, spec, self.origin(where))
            self.consumers(members, f"{where}.consumers", id_)

    def maps(self) -> None:
        for key, kind in (("global_rules", Kind.GLOBAL_RULE), ("plugin_metadata", Kind.PLUGIN_METADATA)):
            conf = self.data.get(key)
            if conf is None:
                continue
            if not isinstance(conf, Mapping):
                self.builder.error(self.origin(key), f"{key} of an ADC file is a map by plugin name")
                continue
            for plugin, value in conf.items():
                name = str(plugin)
                rule = {"id": name, "plugins": {name: value}} if kind is Kind.GLOBAL_RULE else value
                if isinstance(rule, Mapping):
                    self.builder.add(kind, name, dict(rule), self.origin(f"{key}.{name}"))
                else:
                    self.builder.error(self.origin(f"{key}.{name}"), "a plugin's settings are a mapping")


def _prefix(spec: dict[str, Any], prefix: str, *, strip: bool) -> None:
    """Put a service's path_prefix before the route's uris, and take it off again for the upstream."""
    base = "/" + prefix.strip("/")
    uris = spec.get("uris")
    if isinstance(uris, list):
        spec["uris"] = [base + ("" if uri == "/" else str(uri)) for uri in uris]
    if strip:
        plugins = dict(spec.get("plugins") or {})
        plugins.setdefault("proxy-rewrite", {"regex_uri": [f"^{re.escape(base)}/?(.*)", "/$1"]})
        spec["plugins"] = plugins
