"""The stand-in's resources: what etcd is to APISIX."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router

__all__ = ["Entry", "Store"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object with etcd's revisions."""

    value: Mapping[str, Any]
    created: int
    modified: int


class Store:
    """Objects by kind and id, in insertion order; a revision counter as etcd has one."""

    def __init__(self, configuration: Configuration, fill: Callable[[Any], Any] = lambda spec: spec) -> None:
        self.router = configuration.router or Router.HOST_URI
        self._revision = 10
        self._kinds: dict[Kind, dict[str, Entry]] = {kind: {} for kind in Kind}
        for resource in configuration:
            self.put(resource.kind, resource.id, fill(resource.spec))

    def of(self, kind: Kind) -> Mapping[str, Entry]:
        """The objects of one kind."""
        return self._kinds[kind]

    def put(self, kind: Kind, id_: str, value: Mapping[str, Any]) -> Entry:
        """Create or replace one object."""
        self._revision += 1
        old = self._kinds[kind].get(id_)
        now = int(time.time())
        own = "username" if kind is Kind.CONSUMER else "id"
        full = {
            **value,
            own: value.get(own, id_),
            "create_time": old.value["create_time"] if old else now,
            "update_time": now,
        }
        entry = Entry(full, old.created if old else self._revision, self._revision)
        self._kinds[kind][id_] = entry
        return entry

    def delete(self, kind: Kind, id_: str) -> bool:
        """Remove one object; tell whether it was there."""
        self._revision += 1
        return self._kinds[kind].pop(id_, None) is not None

    def configuration(self) -> Configuration:
        """The present state as the model that routing and translation read."""
        resources: dict[Kind, dict[str, Resource]] = {}
        for kind, entries in self._kinds.items():
            resources[kind] = {
                id_: Resource(
                    kind=kind,
                    id=id_,
                    spec={k: v for k, v in entry.value.items() if k not in {"create_time", "update_time"}},
                    origin=Origin("lab", f"{kind}/{id_}"),
                    order=order,
                )
                for order, (id_, entry) in enumerate(entries.items())
            }
        return Configuration(resources=resources, router=self.router, version="3.18.0")
