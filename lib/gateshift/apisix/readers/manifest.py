"""One Kubernetes object, as all readers of Kubernetes objects take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.apisix.model import Origin

__all__ = ["Manifest", "objects_of"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One Kubernetes object with its name, namespace and spec made safe to read."""

    kind: str
    name: str
    namespace: str
    spec: Mapping[str, Any]
    origin: Origin
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The prefix of the ids of what the controller makes of it."""
        return f"{self.namespace}_{self.name}"

    def at(self, path: str) -> Origin:
        """Where *path* below spec is written."""
        return Origin(self.origin.source, f"{self.origin.path}.spec.{path}")


def objects_of(value: object, path: str) -> list[object]:
    """Return the items of a list; a missing one is empty. (The caller reports items of a wrong kind.)"""
    return list(value) if isinstance(value, list | tuple) else []
