"""What the lint's checks share: the registry, the objects around the one judged, and how a trap is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.model import Cause, Level

__all__ = [
    "CHECKS",
    "World",
    "check",
    "gateways_of",
    "providers",
    "selector_of",
    "space_of",
    "template_labels",
    "trap",
]

Check = Callable[[Object, "World"], Iterator[Cause]]

CHECKS: dict[str, list[Check]] = {}
"""Checks by the kind they judge."""


@dataclass(frozen=True)
class World:
    """All objects given, the Istio version (major, minor) they are for, and where the gateways run.

    ``whole`` are the kinds of which every object is given, as of a cluster that was read: of those alone a
    missing one is known to be missing. Files are a part of what a cluster has.
    """

    objects: Sequence[Object]
    version: tuple[int, ...]
    home: str
    whole: frozenset[str] = frozenset()

    def of(self, *kinds: str) -> Iterator[Object]:
        """Yield the objects of these kinds."""
        return (o for o in self.objects if o.get("kind") in kinds)

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object."""
        return next(
            (
                o
                for o in self.of(kind)
                if name_of(o) == name and namespace in {None, o["metadata"].get("namespace", "default")}
            ),
            None,
        )

    def missing(self, kind: str) -> Level:
        """Return how grave it is that no object of *kind* fits: elsewhere than in the files it may exist."""
        return Level.ERROR if kind in self.whole else Level.WARNING

    def knows(self, kind: str) -> bool:
        """Say whether any object of this kind was given: only then is a missing one a finding."""
        return any(True for _ in self.of(kind))

    def service(self, host: str, namespace: str) -> Object | None:
        """Return the Service that a destination's host means."""
        name, _, rest = host.partition(".")
        return self.find("Service", name, rest.partition(".")[0] or namespace)

    def before(self, major: int, minor: int) -> bool:
        """Say whether the Istio is older than this version."""
        return self.version[:2] < (major, minor)


def check(*kinds: str) -> Callable[[Check], Check]:
    """Register a check for *kinds*."""

    def register(function: Check) -> Check:
        for kind in kinds:
            CHECKS.setdefault(kind, []).append(function)
        return function

    return register


_CONFIDENCE = {Level.ERROR: 0.85, Level.WARNING: 0.4, Level.INFO: 0.1}


def trap(  # noqa: PLR0917 - one line a trap reads as a table
    number: int, level: Level, title: str, where: Object | str, remedy: str, confidence: float | None = None
) -> Cause:
    """Return the cause of trap *number*; its confidence is its level's unless given."""
    return Cause(
        level,
        title,
        where if isinstance(where, str) else title_of(where),
        remedy,
        confidence=_CONFIDENCE[level] if confidence is None else confidence,
        reference=f"Istio trap {number}; docs/troubleshooting.md#lint",
        symptom="lint",
        code=f"trap-{number}",
    )


def selector_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the workload labels that a security policy selects."""
    return dict((spec.get("selector") or {}).get("matchLabels") or {})


def space_of(obj: Object) -> str:
    """Return an object's namespace; empty in a file that leaves it to ``kubectl -n``."""
    return str(obj["metadata"].get("namespace") or "")


def template_labels(obj: Object) -> dict[str, str]:
    """Return the labels of the pods that a Deployment or DaemonSet makes."""
    template = (obj.get("spec") or {}).get("template") or {}
    return dict((template.get("metadata") or {}).get("labels") or {})


def providers(world: World) -> frozenset[str] | None:
    """Return the extension providers that any mesh configuration names; None when none can be read.

    Several control planes (revisions) have one each, and which of them a proxy follows is not seen here.
    """
    found: set[str] = set()
    read = False
    for config in world.of("ConfigMap"):
        try:
            mesh = yaml.safe_load(str((config.get("data") or {}).get("mesh", "")))
        except yaml.YAMLError:
            continue
        if isinstance(mesh, dict):
            read = True
            named = mesh.get("extensionProviders") or []
            found |= {str(p.get("name")) for p in named if isinstance(p, dict)}
    return frozenset(found) | _BUILT_IN if read else None


_BUILT_IN = frozenset({"prometheus", "stackdriver", "envoy"})
"""Providers that every mesh has without naming them (pilot's default mesh configuration)."""


def gateways_of(obj: Object) -> list[str]:
    """Return the gateways that a VirtualService is bound to, as ``namespace/name`` or ``mesh``."""
    space = obj["metadata"].get("namespace", "default")
    named = (obj.get("spec") or {}).get("gateways") or ["mesh"]
    return [g if "/" in g or g == "mesh" else f"{space}/{g}" for g in named]
