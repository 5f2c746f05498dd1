"""What a translation is made for and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import yaml

from gateshift.apisix.model import Router

__all__ = [
    "FILES",
    "ROUTES_FILE",
    "Blocker",
    "Fidelity",
    "HostForm",
    "LedgerEntry",
    "Target",
    "Translation",
    "dump_yaml",
]

FILES = (
    "gateway.yaml",
    "virtual-service.yaml",
    "destination-rule.yaml",
    "security.yaml",
    "telemetry.yaml",
    "envoy-filter.yaml",
)
"""The guide's six files, in the order in which they are applied."""

ROUTES_FILE = "gateway-api.yaml"
"""Where the objects of the Gateway API are; there is no such file when there are none."""


class Fidelity(StrEnum):
    """How much of a source value survives. Ordered from best to worst by :meth:`rank`."""

    IGNORED_DEFAULT = "ignored-default"
    EXACT = "exact"
    APPROXIMATE = "approximate"
    MANUAL = "manual"
    NONE = "none"

    @property
    def rank(self) -> int:
        """Zero is best; a leaf that is used twice takes the worse."""
        return _RANKS[self]


_RANKS = {one: position for position, one in enumerate(Fidelity)}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The fate of one leaf of the source. Values are never part of it: a leaf may be a secret."""

    resource: str
    path: str
    status: Fidelity
    target: str
    note: str
    source: str

    @property
    def origin(self) -> str:
        """Where the leaf was written: source, resource and path inside the resource."""
        return f"{self.source} ({self.resource}: {self.path})"

    def as_json(self) -> dict[str, str]:
        """Return the entry as plain JSON."""
        return {
            "resource": self.resource,
            "path": self.path,
            "status": str(self.status),
            "target": self.target,
            "note": self.note,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why routes are refused instead of emitted, until a person signs for it.

    *resource* is where the thing is written (``services/2``), *plugin* its plugin or, for what is no
    plugin, the field (``vars``); *routes* are the route ids that it holds back.
    """

    resource: str
    plugin: str
    reason: str
    remedy: str
    routes: tuple[str, ...]
    origin: str
    accepted: str = ""
    fingerprints: tuple[str, ...] = ()
    """One a reason; a signature that names them (``covers``) is void when a reason changes."""
    pinned: bool = False
    """The signature names its reasons."""

    def __str__(self) -> str:
        routes = ", ".join(self.routes) or "no route"
        return f"{self.resource} {self.plugin}: {self.reason} (holds back {routes}); {self.remedy}"

    @property
    def covers(self) -> str:
        """What a signature under these reasons names, ready to paste."""
        quoted = ", ".join(f'"{one}"' for one in self.fingerprints)
        return f"covers: [{quoted}]"

    @property
    def held_by(self) -> str:
        """The signature as a person reads it, and whether it would outlive what was read."""
        if self.pinned or not self.accepted:
            return self.accepted
        return (
            f"{self.accepted} (this signature holds for any reason, also one that nobody has read; "
            f"{self.covers} holds it to those of today)"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the blocker as plain JSON."""
        return {
            "resource": self.resource,
            "plugin": self.plugin,
            "reason": self.reason,
            "remedy": self.remedy,
            "routes": list(self.routes),
            "origin": self.origin,
            "accepted": self.accepted,
            "fingerprints": list(self.fingerprints),
            "pinned": self.pinned,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """The Istio that the objects are for, and how APISIX routed. Ports are those of the gateway's Service.

    ``router`` overrides what the configuration says; with neither, radixtree_host_uri (the default since
    APISIX 3.3) is assumed and a warning says so.
    """

    version: str
    namespace: str
    gateway_namespace: str = "istio-system"
    gateway_selector: Mapping[str, str] = field(default_factory=lambda: {"istio": "ingressgateway"})
    gateway_service: str = "istio-ingressgateway"
    http_port: int = 80
    https_port: int = 443
    router: Router | None = None


@dataclass(frozen=True, slots=True)
class HostForm:
    """How one host is emitted: *form* is the kind of its routes, *why* what keeps it a VirtualService."""

    host: str
    form: str
    why: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the host as plain JSON."""
        return {"host": self.host, "form": self.form, "why": self.why}


_Base: type = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):  # type: ignore[misc]  # the C dumper when PyYAML has it: ten times as fast
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    # kubectl reads YAML 1.1, in which these are booleans; PyYAML writes them plain.
    style = "'" if value in ("y", "Y", "n", "N") else None
    node: yaml.ScalarNode = dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)
    return node


_Dumper.add_representer(str, _text)


_WIDTH = 110
_INDENT = "  "


def _yaml(value: Any, width: int) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def dump_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return *documents* as YAML: same input, same bytes, no aliases.

    One rule stands in the VirtualService of every host that it is copied into: it is written out once, and
    its text is copied.
    """
    known: dict[int, str] = {}
    return "".join(f"---\n{_document(one, known)}" for one in documents)


def _document(document: Mapping[str, Any], known: dict[int, str]) -> str:
    spec = document.get("spec")
    rules = spec.get("http") if document.get("kind") == "VirtualService" and isinstance(spec, Mapping) else ()
    if not rules or list(document)[-1] != "spec" or list(spec or ())[-1] != "http":
        return _yaml(dict(document), _WIDTH)
    head = {**document, "spec": {key: value for key, value in (spec or {}).items() if key != "http"}}
    parts = [_yaml(head, _WIDTH), f"{_INDENT}http:\n"]
    for rule in rules:
        text = known.get(id(rule))
        if text is None:
            lines = _yaml([rule], _WIDTH - len(_INDENT)).splitlines(keepends=True)
            # An empty line inside a folded text stays empty.
            text = known[id(rule)] = "".join(line if line == "\n" else _INDENT + line for line in lines)
        parts.append(text)
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Translation:
    """The emitted objects by file, the ledger, and what still blocks.

    ``entries`` maps the name of each VirtualService rule to the id of the APISIX route it stands for, and
    ``refused`` names the routes that are held back by a blocker (or, once signed, by a person's decision).
    """

    files: Mapping[str, tuple[Mapping[str, Any], ...]]
    ledger: tuple[LedgerEntry, ...]
    blockers: tuple[Blocker, ...]
    warnings: tuple[str, ...] = ()
    accepted: tuple[Blocker, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    router: str = ""
    forms: tuple[HostForm, ...] = ()
    """The form of every host; empty when only Istio's own objects were asked for."""

    @property
    def objects(self) -> tuple[Mapping[str, Any], ...]:
        """Every emitted object, in the order of the files."""
        return tuple(one for name in (*FILES, ROUTES_FILE) for one in self.files.get(name, ()))

    def counts(self) -> dict[str, int]:
        """Return how many ledger entries there are of each fidelity."""
        found = {str(kind): 0 for kind in Fidelity}
        for entry in self.ledger:
            found[str(entry.status)] += 1
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the ledger file's content."""
        return {
            "router": self.router,
            "hosts": [one.as_json() for one in self.forms],
            "counts": self.counts(),
            "blockers": [one.as_json() for one in self.blockers],
            "accepted": [one.as_json() for one in self.accepted],
            "warnings": list(self.warnings),
            "entries": [one.as_json() for one in self.ledger],
        }
