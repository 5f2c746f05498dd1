"""Small configurations for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, Translation, translate
from gateshift.translate.plugins.registry import facts

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
TARGET = Target(version="1.31.0", namespace="app")

SIGNED = tuple(
    {"resource": "*", "plugin": name, "who": "Ada", "why": "the differences were read"}
    for name, fact in sorted(facts().items())
    if fact.guards_access_or_money
)
"""A signature under the differences of every security plugin; it covers no plugin's loss."""

RSA_PUBLIC = """-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDdlatRjRjogo3WojgGHFHYLugdUWAY9iR3fy4arWNA
1KoS8kVw33cJibXr8bvwUAUparCwlvdbH6dvEOfou0/gCFQsHUfQrSDv+MuSUMAe8jzKE4qW+jK+xQU9
a03GUnKHkkle+Q0pX/g6jXZ7r1/xAK5Do2kQ+X5xK9cipRgEKwIDAQAB
-----END PUBLIC KEY-----
"""


def configuration(**kinds: Any) -> Configuration:
    """Build a configuration from ``routes=[...]``, ``upstreams=[...]`` and so on."""
    found: dict[Kind, dict[str, Resource]] = {}
    for name, items in kinds.items():
        kind = Kind(name)
        for order, spec in enumerate(items):
            id_ = str(spec.get("id") or spec.get("username") or order)
            origin = Origin("test.yaml", f"{name}[{order}]")
            found.setdefault(kind, {})[id_] = Resource(kind, id_, spec, origin, order)
    return Configuration(found, router=Router.HOST_URI)


def route(id_: str, uri: str, **fields: Any) -> dict[str, Any]:
    """Build a route with an upstream of one node."""
    upstream = {"type": "roundrobin", "nodes": {f"{id_}:80": 1}}
    return {"id": id_, "uri": uri, "upstream": upstream, **fields}


def run(config: Configuration, target: Target = TARGET, **params: Any) -> Translation:
    """Translate with plain params; differences (not losses) are signed unless ``accept`` is given."""
    return translate(config, TranslateParams(**{"accept": SIGNED, **params}), target)


def of_kind(translation: Translation, kind: str) -> list[Mapping[str, Any]]:
    """Return the emitted objects of one kind."""
    return [one for one in translation.objects if one["kind"] == kind]


def filters(translation: Translation) -> dict[str, Mapping[str, Any]]:
    """Return the emitted EnvoyFilters by name."""
    return {one["metadata"]["name"]: one for one in of_kind(translation, "EnvoyFilter")}


def rules(translation: Translation, host: str = "*") -> list[Mapping[str, Any]]:
    """Return the rules of the VirtualService that serves *host*."""
    for one in of_kind(translation, "VirtualService"):
        if host in one["spec"]["hosts"]:
            return list(one["spec"]["http"])
    return []
