"""A notebook that is run again in its kernel, after a refused gate or an error, does not lock itself out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateshift.errors import LockHeld
from gateshift.migration.lease import LeaseLock
from gateshift.runbook.base import Runbook
from tests.archive import story
from tests.cluster.conftest import make_params


class Cluster:
    """The Lease of one cluster, as an API server keeps it."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None

    def lease_get(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        del namespace, name
        return self.lease

    def lease_create(self, namespace: str, name: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        self.lease = {"metadata": {"namespace": namespace, "name": name}, "spec": dict(spec)}
        return self.lease

    def lease_update(self, lease: dict[str, Any]) -> Mapping[str, Any]:
        self.lease = lease
        return lease


class Again(Runbook):
    name: ClassVar[str] = "50_canary"
    title: ClassVar[str] = "Canary stage"
    cluster: ClassVar[Cluster]

    def _take_lease(self) -> LeaseLock:
        lease = LeaseLock(self.cluster, "kube-system", "gateshift", who="ann")
        lease.acquire()
        return lease


def test_the_run_before_in_this_kernel_gives_its_locks_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATESHIFT_RUN", raising=False)
    Again.cluster = Cluster()
    story.write(tmp_path / "m" / "journal.jsonl", story.setup())
    params = make_params(mode="act", outputs=str(tmp_path), migration="m")
    first = Again(params, {})
    held = str(Again.cluster.lease)
    second = Again(params, {})
    try:
        assert str(Again.cluster.lease) != held
        second.record("note.x")
        with pytest.raises(LockHeld):
            first.record("note.x")  # what is left of the run before writes nothing any more
        somebody = LeaseLock(Again.cluster, "kube-system", "gateshift", who="bob")
        with pytest.raises(LockHeld, match="ann holds"):
            somebody.acquire()
    finally:
        second._let_go()
    assert Again.cluster.lease is not None
    assert Again.cluster.lease["spec"]["holderIdentity"] == ""
