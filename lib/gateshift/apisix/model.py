"""One model for every form an APISIX configuration comes in (standalone, Admin API, CRDs, ADC, etcd).

Readers produce :class:`Configuration`; everything downstream reads only this. Specs stay plain mappings
in APISIX's own field names, because the ledger must account for each source leaf as it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Configuration", "Finding", "Kind", "Origin", "Resource", "Router", "Severity", "Unfilled"]


class Kind(StrEnum):
    """Resource kinds of APISIX, named as in its Admin API and standalone file."""

    ROUTE = "routes"
    SERVICE = "services"
    UPSTREAM = "upstreams"
    PLUGIN_CONFIG = "plugin_configs"
    GLOBAL_RULE = "global_rules"
    CONSUMER = "consumers"
    CONSUMER_GROUP = "consumer_groups"
    CREDENTIAL = "credentials"
    SSL = "ssls"
    PROTO = "protos"
    STREAM_ROUTE = "stream_routes"
    PLUGIN_METADATA = "plugin_metadata"
    SECRET = "secrets"  # noqa: S105 - a resource kind, not a secret


class Router(StrEnum):
    """``apisix.router.http``. The default is radixtree_host_uri since APISIX 3.3.0, radixtree_uri before."""

    URI = "radixtree_uri"
    HOST_URI = "radixtree_host_uri"
    URI_WITH_PARAMETER = "radixtree_uri_with_parameter"


class Severity(StrEnum):
    """How much a reader's finding matters: an error means that the resource could not be taken as written."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written: a file name or address, and a path inside it (``routes[3].plugins``)."""

    source: str
    path: str

    def __str__(self) -> str:
        return f"{self.source}: {self.path}" if self.path else self.source


@dataclass(frozen=True, slots=True)
class Resource:
    """One APISIX object. ``spec`` has APISIX's field names; ``id`` is unique within its kind.

    For a CRD, ``spec`` is what the ingress controller would write to APISIX, and ``origin`` still points
    to the CRD. ``order`` is the position in the source and stands for the insertion order of etcd.
    """

    kind: Kind
    id: str
    spec: Mapping[str, Any]
    origin: Origin
    order: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader noticed: lax input, an unresolved variable, an unknown field."""

    severity: Severity
    origin: Origin
    message: str
    remedy: str = ""
    unread: str = ""
    """What the configuration lost by it (``GRPCRoute/shop``): a person has to decide about that."""


@dataclass(frozen=True, slots=True)
class Unfilled:
    """A part of the source that a template was to make: *text* at *origin* was never filled in.

    With *exists* the part is there, only its content is not known; without, conditions and loops decide
    what of it exists at all.
    """

    origin: Origin
    text: str
    exists: bool
    part: str = ""
    """The path of the object that it is about; empty for the whole source."""

    def covers(self, other: Origin) -> bool:
        """Tell whether what is written at *other* belongs to the part."""
        if other.source != self.origin.source:
            return False
        return not self.part or other.path == self.part or other.path.startswith(f"{self.part}.")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole APISIX configuration: resources by kind and id in source order, and the readers' findings."""

    resources: Mapping[Kind, Mapping[str, Resource]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    router: Router | None = None
    version: str | None = None
    unfilled: tuple[Unfilled, ...] = ()
    refused: tuple[Resource, ...] = ()
    """Objects of the source that take no part, because APISIX's schema refuses them."""

    def of(self, kind: Kind) -> Mapping[str, Resource]:
        """Return the resources of one kind by id (empty when there are none)."""
        return self.resources.get(kind, {})

    def get(self, kind: Kind, id_: object) -> Resource | None:
        """Return one resource, or None."""
        return self.of(kind).get(str(id_))

    def __iter__(self) -> Iterator[Resource]:
        for by_id in self.resources.values():
            yield from by_id.values()
