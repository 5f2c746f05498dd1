"""What the lint's checks share: the registry, the objects around the one judged, and how a trap is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.model import Cause, Level

__all__ = ["CHECKS", "World", "check", "gateways_of", "selector_of", "trap"]

Check = Callable[[Object, "World"], Iterator[Cause]]

CHECKS: dict[str, list[Check]] = {}
"""Checks by the kind they judge."""


@dataclass(frozen=True)
class World:
    """All objects given, the Istio version (major, minor) they are for, and where the gateways run."""

    objects: Sequence[Object]
    version: tuple[int, ...]
    home: str

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


def gateways_of(obj: Object) -> list[str]:
    """Return the gateways that a VirtualService is bound to, as ``namespace/name`` or ``mesh``."""
    space = obj["metadata"].get("namespace", "default")
    named = (obj.get("spec") or {}).get("gateways") or ["mesh"]
    return [g if "/" in g or g == "mesh" else f"{space}/{g}" for g in named]
