"""Collects resources and findings while files are read, and gives the finished Configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateshift.apisix.model import (
    Configuration,
    Finding,
    Kind,
    Origin,
    Resource,
    Router,
    Severity,
    Unfilled,
)
from gateshift.apisix.shapes import UNFILLED, faults
from gateshift.apisix.templates import REMEDY

__all__ = ["Builder", "check_fields"]

_ALGORITHMS = frozenset({"roundrobin", "chash", "least_conn", "ewma"})
_SCHEMES = frozenset({"http", "https", "grpc", "grpcs", "tcp", "tls", "udp", "kafka"})


class Builder:
    """Mutable while reading; :meth:`build` freezes."""

    def __init__(self) -> None:
        self._resources: dict[Kind, dict[str, Resource]] = {}
        self._findings: list[Finding] = []
        self._unfilled: list[Unfilled] = []
        self._refused: list[Resource] = []
        self._order = 0
        self.router: Router | None = None
        self.version: str | None = None

    def find(self, severity: Severity, origin: Origin, message: str, remedy: str = "") -> None:
        """Record something a person should know."""
        self._findings.append(Finding(severity, origin, message, remedy))

    def warn(self, origin: Origin, message: str, remedy: str = "") -> None:
        """Record a warning."""
        self.find(Severity.WARNING, origin, message, remedy)

    def error(self, origin: Origin, message: str, remedy: str = "") -> None:
        """Record that something could not be taken as written."""
        self.find(Severity.ERROR, origin, message, remedy)

    def lose(self, origin: Origin, what: str, message: str, remedy: str) -> None:
        """Record that *what* is not part of the configuration although APISIX would act on it."""
        self._findings.append(Finding(Severity.ERROR, origin, message, remedy, unread=what))

    def unfilled(self, origin: Origin, text: str, *, exists: bool, part: str = "") -> None:
        """Record that a template was to make a part of the source, or to say whether it exists."""
        self._unfilled.append(Unfilled(origin, text, exists, part))

    def has(self, kind: Kind, id_: str) -> bool:
        """True when a resource of this kind and id has been read."""
        return id_ in self._resources.get(kind, {})

    def get(self, kind: Kind, id_: str) -> Resource | None:
        """Return a resource already read."""
        return self._resources.get(kind, {}).get(id_)

    def add(self, kind: Kind, id_: object, spec: Mapping[str, Any], origin: Origin) -> Resource:
        """Add a resource. A second one with the same id replaces the first in its place, as in APISIX.

        One whose fields have types that APISIX's schema refuses is not added: APISIX skips it as well, and a
        person has to say what was meant.
        """
        name = str(id_)
        wrong = faults(kind, spec)
        if wrong:
            for path, message in wrong:
                template = message.endswith(UNFILLED)
                refused = "" if template else "; APISIX refuses the whole object and serves without it"
                remedy = REMEDY if template else "correct the value at the place named"
                self.lose(_below(origin, path), f"{kind.value}/{name}", message + refused, remedy)
            self._refused.append(Resource(kind, name, spec, origin, self._order))
            return self._refused[-1]
        by_id = self._resources.setdefault(kind, {})
        before = by_id.get(name)
        if before is not None:
            self.warn(
                origin,
                f"{kind.value} {name} was already written at {before.origin}; the later one counts",
                "give each resource its own id",
            )
        order = before.order if before is not None else self._order
        self._order += 1
        resource = Resource(kind, name, spec, origin, order)
        by_id[name] = resource
        check_fields(self, resource)
        return resource

    def build(self) -> Configuration:
        """Return the configuration, after checking references between resources."""
        self._check_references()
        return Configuration(
            resources={kind: dict(by_id) for kind, by_id in self._resources.items()},
            findings=tuple(dict.fromkeys(self._findings)),
            router=self.router,
            version=self.version,
            unfilled=tuple(self._unfilled),
            refused=tuple(self._refused),
        )

    def _check_references(self) -> None:
        keys = (
            ("service_id", Kind.SERVICE),
            ("upstream_id", Kind.UPSTREAM),
            ("plugin_config_id", Kind.PLUGIN_CONFIG),
        )
        for kind in (Kind.ROUTE, Kind.SERVICE, Kind.STREAM_ROUTE):
            for resource in self._resources.get(kind, {}).values():
                for key, target in keys:
                    named = resource.spec.get(key)
                    if named is not None and not self.has(target, str(named)):
                        self.error(
                            resource.origin,
                            f"{key} {named!r} names none of the {target.value} that were read",
                            f"add {target.value} {named} or the file that holds it",
                        )


def check_fields(builder: Builder, resource: Resource) -> None:
    """Report what APISIX's own schema would refuse or what is plainly unfinished."""
    spec, origin = resource.spec, resource.origin
    if resource.kind is Kind.ROUTE:
        if not spec.get("uri") and not spec.get("uris"):
            builder.error(origin, f"route {resource.id} has neither uri nor uris", "add the route's uri")
        if spec.get("uri") and spec.get("uris"):
            builder.warn(origin, f"route {resource.id} has uri and uris; uris counts", "remove one of them")
    upstreams: list[tuple[Any, str]] = []
    if resource.kind is Kind.UPSTREAM:
        upstreams.append((spec, ""))
    elif isinstance(spec.get("upstream"), Mapping):
        upstreams.append((spec["upstream"], "upstream"))
    for upstream, path in upstreams:
        _check_upstream(builder, upstream, _below(origin, path))


def _below(origin: Origin, path: str) -> Origin:
    return Origin(origin.source, f"{origin.path}.{path}".strip(".")) if path else origin


def _check_upstream(builder: Builder, upstream: Mapping[str, Any], origin: Origin) -> None:
    algorithm = upstream.get("type")
    if algorithm is not None and algorithm not in _ALGORITHMS:
        builder.error(
            _below(origin, "type"),
            f"upstream type {algorithm!r} does not exist in APISIX",
            f"write one of {', '.join(sorted(_ALGORITHMS))}",
        )
    scheme = upstream.get("scheme")
    if scheme is not None and scheme not in _SCHEMES:
        builder.error(
            _below(origin, "scheme"),
            f"upstream scheme {scheme!r} does not exist in APISIX",
            f"write one of {', '.join(sorted(_SCHEMES))}",
        )
