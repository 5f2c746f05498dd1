"""Faults of the surroundings, met by the real journal and locks: no wrong state, and one clear message."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import JournalError, LockHeld, LockInDoubt
from gateshift.migration.guard import ANCHOR, Guard, anchor_of, anchors, annotations_of, refusal
from gateshift.migration.journal import Journal, read_records
from gateshift.migration.lease import LeaseLock
from gateshift.migration.lock import LocalLock
from gateshift.migration.state import fold
from tests.archive import story
from tests.migration.test_lock import Api, lease


@pytest.fixture
def stage_in_force(tmp_path: Path) -> Path:
    path = tmp_path / "m" / "journal.jsonl"
    story.write(path, story.setup())
    with Journal.open(path, who="ann", run="r") as journal:
        for kind, data in story.stage(0):
            if kind == "verdict":
                break
            journal.append(kind, **data)
    return path


def held(path: Path, api: Api) -> tuple[Journal, LeaseLock, LocalLock]:
    journal, cluster, local = (
        Journal.open(path, who="ann", run="r1"),
        lease(api, "ann"),
        LocalLock(path.parent / "lock"),
    )
    local.acquire()
    cluster.acquire()
    journal.hold(Guard(local, cluster))
    return journal, cluster, local


def test_api_server_away_stops_everything_but_the_way_back(stage_in_force: Path) -> None:
    api = Api()
    journal, cluster, local = held(stage_in_force, api)
    api.away = True
    cluster._renewed -= 300  # five minutes
    before = stage_in_force.read_bytes()
    with pytest.raises(LockInDoubt, match="could not be renewed for 300 s"):
        journal.append("verdict", stage=0, decision="promote", reasons=["r"])
    assert stage_in_force.read_bytes() == before
    journal.append("verdict", stage=0, decision="rollback", reasons=["bad"])
    journal.append("rollback.started", reason="bad", **{"from": 10})
    journal.append("rollback.shifted", seconds_to_dns=1.0)
    assert journal.state.weight_percent == 0
    local.release()


def test_api_server_back_after_five_minutes_lets_the_run_go_on(stage_in_force: Path) -> None:
    api = Api()
    journal, cluster, local = held(stage_in_force, api)
    cluster._renewed -= 300
    journal.append("verdict", stage=0, decision="promote", reasons=["r"])
    assert journal.state.stage_verdict is not None
    cluster.release()
    local.release()


def test_lease_lost_in_mid_stage_refuses_even_the_way_back(stage_in_force: Path) -> None:
    """Another operator has it now, and with it the traffic."""
    api = Api()
    journal, cluster, local = held(stage_in_force, api)
    assert api.lease is not None
    api.lease["spec"]["holderIdentity"] = "bob elsewhere/1/1/b abc"
    api._stored()
    cluster._renewed -= 300
    for kind, data in (("stage.promoted", {"stage": 0}), ("rollback.started", {"reason": "r", "from": 10})):
        with pytest.raises(LockHeld, match="bob holds the migration's Lease") as refused:
            journal.append(kind, **data)
        assert not isinstance(refused.value, LockInDoubt)
    local.release()


def test_deleted_lease_is_made_anew_unless_somebody_was_faster(stage_in_force: Path) -> None:
    api = Api()
    journal, cluster, local = held(stage_in_force, api)

    class Gone(Api):
        def lease_update(self, given: dict[str, Any]) -> dict[str, Any]:
            if self.lease is None:
                raise self._refuse(404, "not found")
            return super().lease_update(given)

    cluster.api = gone = Gone()
    cluster._renewed -= 300
    journal.append("note.still", here=True)
    assert gone.lease is not None
    assert gone.lease["spec"]["holderIdentity"] == cluster._identity
    cluster.release()
    local.release()


def test_head_in_the_lease_keeps_out_a_stale_copy_and_another_migration(
    stage_in_force: Path, tmp_path: Path
) -> None:
    api = Api()
    journal, cluster, local = held(stage_in_force, api)
    cluster.annotate = lambda: annotations_of(journal, "m")
    cluster.release()
    local.release()
    kept = anchors(api.lease["metadata"]["annotations"])  # type: ignore[index]  # held above
    assert refusal(kept, "m", journal.records) is None
    older = refusal(kept, "m", journal.records[:-3])
    assert older is not None
    assert f"annotate lease gateshift {ANCHOR}m-" in older[1]
    other = refusal(kept, "other", ())
    assert other is not None
    assert other[0] == "migration m has 10 % on Istio: one migration at a time"
    done = story.write(tmp_path / "done" / "journal.jsonl", story.rolled_back())
    records = read_records(done)
    finished = anchor_of(records[-1], fold(records))
    assert finished is not None
    assert refusal({"done": finished}, "other", ()) is None


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_disk_full_leaves_the_journal_as_it_was(
    stage_in_force: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real: Callable[..., Any] = getattr(os, call)
    with Journal.open(stage_in_force, who="ann", run="r1") as journal:
        before = stage_in_force.read_bytes()

        def full(*arguments: Any) -> Any:
            if call == "write":
                real(arguments[0], arguments[1][:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(JournalError, match="No space left on device") as refused:
                journal.append("note.forward", text="r")
        assert "free disk space" in refused.value.hint
        assert stage_in_force.read_bytes() == before
        journal.append("note.again")
    assert fold(read_records(stage_in_force)).weight_percent == 10


def test_clock_that_jumps_back_does_not_free_a_lock_or_end_a_lease(stage_in_force: Path) -> None:
    times = [5000.0]
    local = LocalLock(stage_in_force.parent / "lock", clock=lambda: times[0])
    local.acquire()
    times[0] = 10.0
    local.check()
    api = Api()
    cluster = lease(api, "ann", host="elsewhere")
    cluster.acquire()
    other = lease(api, "bob", now=10.0)
    other._sleep = lambda _: cluster._renew()  # who lives renews meanwhile, whatever the clocks show
    with pytest.raises(LockHeld, match="still being renewed"):
        other.acquire()
    cluster.check()
    cluster.release()
    local.release()
