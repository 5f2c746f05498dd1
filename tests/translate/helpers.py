"""Small configurations for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, Translation, translate
from gateshift.translate.ledger import leaves
from gateshift.translate.plugins.registry import facts

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
TARGET = Target(version="1.31.0", namespace="app")

GUARDS = tuple(name for name, fact in sorted(facts().items()) if fact.guards_access_or_money)
"""Every security plugin."""

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


def signed(config: Configuration, params: TranslateParams, target: Target = TARGET) -> TranslateParams:
    """Return *params* with a signature under every difference of the security plugins, as a person adds them.

    A signature may let another difference show, so the translation is read again until none is new.
    """
    read: dict[str, set[str]] = {}
    while True:
        covers = [(name, tuple(sorted(read[name]))) for name in sorted(read)]
        accept = [
            {"resource": "*", "plugin": n, "covers": c, "who": "Ada", "why": "the differences were read"}
            for n, c in covers
        ]
        given = TranslateParams.model_validate({**params.model_dump(), "accept": accept})
        before = {name: set(prints) for name, prints in read.items()}
        for one in translate(config, given, target).blockers:
            if one.plugin in (*GUARDS, "workflow"):
                read.setdefault(one.plugin, set()).update(one.fingerprints)
        if read == before:
            return given


def run(config: Configuration, target: Target = TARGET, **params: Any) -> Translation:
    """Translate with plain params; differences (not losses) are signed unless ``accept`` is given."""
    given = TranslateParams(**params)
    return translate(config, given if "accept" in params else signed(config, given, target), target)


def leaf_count(config: Configuration) -> int:
    """Return how many values a ledger of *config* has to account for."""
    return sum(1 for one in (*config, *config.refused) for _ in leaves(one.spec))


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
