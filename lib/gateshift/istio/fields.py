"""Every field that gateshift emits, with the first Istio version that has it: one frozen table, one check.

``fields.tsv`` was read in the CRDs of the tags of istio/istio and, for what stands inside an EnvoyFilter, in
the Envoy API that each tag's go.mod names (istiod refuses what its own copy does not know). Since ``1.20``
means 1.20 or earlier. What no field shows (a value, a behaviour) is a
:class:`~gateshift.istio.versions.Feature`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from gateshift.errors import GateshiftError
from gateshift.istio.versions import IstioVersion, parse_version

__all__ = ["Field", "check_fields", "fields_of", "known_fields"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an Istio kind or an Envoy message. An empty ``name`` is the message itself.

    ``type`` is the message that an Envoy field holds (``map:`` before it for a map of them), empty for
    everything else.
    """

    message: str
    name: str
    since: IstioVersion
    type: str
    source: str

    def __str__(self) -> str:
        return f"{self.message} {self.name}".strip()


@cache
def known_fields() -> Mapping[tuple[str, str], Field]:
    """Return the table by (message, field)."""
    text = (files("gateshift.istio") / "fields.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {
        (row["message"], row["field"]): Field(
            row["message"], row["field"], parse_version(row["since"]), row["type"], row["source"]
        )
        for row in rows
    }


_ROOTS = {
    "CLUSTER": "envoy.config.cluster.v3.Cluster",
    "HTTP_FILTER": "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    "HTTP_ROUTE": "envoy.config.route.v3.Route",
    "NETWORK_FILTER": "envoy.config.listener.v3.Filter",
}
_PATCH_VALUE = "configPatches[].patch.value"
Use = tuple[str, str]


class _Walk:
    """Collects the (message, field) pairs of objects. A rule that many objects share is read once."""

    def __init__(self) -> None:
        self.found: dict[Use, None] = {}
        self._read: set[int] = set()

    def istio(self, kind: str, value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            dynamic = f"{path}{{}}" if (kind, f"{path}{{}}") in known_fields() else ""
            if dynamic:
                self.found[kind, dynamic] = None
            for key, item in value.items():
                here = dynamic or (f"{path}.{key}" if path else str(key))
                if not dynamic:
                    self.found[kind, here] = None
                if here != _PATCH_VALUE:
                    self.istio(kind, item, here)
        elif isinstance(value, list | tuple):
            for item in value:
                if id(item) not in self._read:
                    self._read.add(id(item))
                    self.istio(kind, item, f"{path}[]")

    def envoy(self, message: str, value: Mapping[str, Any]) -> None:
        self.found[message, ""] = None
        for key, item in value.items():
            if key == "@type":
                continue
            self.found[message, key] = None
            known = known_fields().get((message, key))
            type_ = known.type if known else ""
            inner: Iterable[Any] = item if isinstance(item, list | tuple) else [item]
            if type_.startswith(_MAP) and isinstance(item, Mapping):
                inner, type_ = item.values(), type_.removeprefix(_MAP)
            for one in inner:
                if isinstance(one, Mapping) and str(one.get("@type", "")).startswith(_ENVOY):
                    self.envoy(str(one["@type"]).rpartition("/")[2], one)
                elif isinstance(one, Mapping) and type_:
                    self.envoy(type_, one)


_ENVOY = "type.googleapis.com/envoy."
_MAP = "map:"


def fields_of(objects: Iterable[Mapping[str, Any]]) -> Iterator[Use]:
    """Yield each (message, field) that *objects* use; objects of other makers than Istio are passed by."""
    walk = _Walk()
    kept = list(objects)  # what is remembered by its address must stay where it is
    for one in kept:
        group = str(one["apiVersion"])
        if ".istio.io/" not in group:
            continue
        walk.istio(str(one["kind"]), one["spec"], "")
        if one["kind"] == "EnvoyFilter":
            for patch in one["spec"].get("configPatches", ()):
                walk.envoy(_ROOTS.get(patch["applyTo"], patch["applyTo"]), patch["patch"].get("value") or {})
    yield from walk.found


def check_fields(version: IstioVersion, objects: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Make sure that *version* has every field of *objects*; return those of which the table says nothing.

    Raises GateshiftError for a field that is newer: istiod would drop it, refuse it, or freeze the
    gateway's configuration with it.
    """
    table = known_fields()
    unknown = []
    for use in fields_of(objects):
        known = table.get(use)
        if known is None:
            unknown.append(" ".join(use).strip())
        elif known.since > version:
            raise GateshiftError(
                f"the translation would emit a field that Istio {version} lacks: {known} needs {known.since}",
                hint="this is a defect of gateshift: nothing was written; report it with the field named",
            )
    return tuple(unknown)
