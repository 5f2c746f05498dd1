from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import ClusterError, LockHeld
from gateshift.migration.identity import Process
from gateshift.migration.lease import LeaseLock
from gateshift.migration.lock import LocalLock, holder_of

_HOLD = (
    "import sys, time; from gateshift.migration.lock import LocalLock\n"
    "LocalLock(sys.argv[1], who='bob@other').acquire(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_operator_is_told_the_holder(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    with pytest.raises(LockHeld, match=rf"bob@other holds .* process {process.pid} on .* expires in"):
        LocalLock(path).acquire()


def test_lock_of_a_killed_holder_is_taken_at_once(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    process.kill()
    process.wait()
    with LocalLock(path) as lock:
        lock.check()


def test_lock_of_another_machine_waits_for_its_expiry(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    now = 1000.0
    there = Process("elsewhere", 1, "1", "boot")
    path.write_text(json.dumps({"who": "eve", "process": there.text(), "nonce": "n", "expires": now + 30}))
    with pytest.raises(LockHeld, match="eve holds"):
        LocalLock(path, clock=lambda: now).acquire()
    waited: list[float] = []
    with LocalLock(path, clock=lambda: now + 31, sleep=waited.append) as lock:
        lock.check()
    assert waited == [21.0], "a third of its time, in which one that lives renews"


@pytest.mark.parametrize("apart", [-86_400.0, -120.0, 86_400.0])
@pytest.mark.parametrize("lives", [True, False])
def test_a_lock_of_a_machine_with_another_clock_is_judged_by_its_renewals(
    tmp_path: Path, apart: float, lives: bool
) -> None:
    path = tmp_path / "lock"
    now = 1_000_000.0
    held = {"who": "eve", "process": Process("elsewhere", 1, "1", "boot").text(), "nonce": "n"}

    def renew(after: float = 0.0) -> None:
        path.write_text(json.dumps({**held, "renewed": after, "expires": now + apart + after + 60.0}))

    renew()
    lock = LocalLock(path, clock=lambda: now, sleep=renew if lives else lambda _: None)
    if lives:
        with pytest.raises(LockHeld, match="eve holds"):
            lock.acquire()
    else:
        with lock:
            lock.check()


def test_released_lock_is_free_and_unheld_lock_writes_nothing(tmp_path: Path) -> None:
    first = LocalLock(tmp_path / "lock")
    first.acquire()
    first.release()
    with pytest.raises(LockHeld):
        first.check()
    assert json.loads((tmp_path / "lock").read_text()) == {}


def test_cell_that_is_run_again_takes_over_from_itself(tmp_path: Path) -> None:
    first = LocalLock(tmp_path / "lock")
    first.acquire()
    with LocalLock(tmp_path / "lock") as second:
        second.check()
        with pytest.raises(LockHeld, match="newer run"):
            first.check()


def test_removed_lock_file_counts_as_lost(tmp_path: Path) -> None:
    lock = LocalLock(tmp_path / "lock")
    lock.acquire()
    (tmp_path / "lock").unlink()
    with pytest.raises(LockHeld, match="gone"):
        lock.check()
    lock.release()


class Api:
    """The Lease calls of an API server: optimistic locking by resourceVersion, and outages."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False

    def _refuse(self, status: int, text: str) -> ClusterError:
        error = ClusterError(text)
        error.status = status  # type: ignore[attr-defined]
        return error

    def lease_get(self, namespace: str, name: str) -> dict[str, Any] | None:
        del namespace, name
        if self.away:
            raise ClusterError("the API server does not answer")
        return deepcopy(self.lease)

    def lease_create(self, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        if self.lease is not None:
            raise self._refuse(409, "exists")
        self.lease = {"metadata": {"namespace": namespace, "name": name}, "spec": deepcopy(dict(spec))}
        return self._stored()

    def lease_update(self, lease: dict[str, Any]) -> dict[str, Any]:
        if self.away:
            raise ClusterError("the API server does not answer")
        assert self.lease is not None
        if lease["metadata"].get("resourceVersion") != self.lease["metadata"].get("resourceVersion"):
            raise self._refuse(409, "changed")
        self.lease = deepcopy(lease)
        return self._stored()

    def _stored(self) -> dict[str, Any]:
        assert self.lease is not None
        self.version += 1
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return deepcopy(self.lease)


def lease(api: Api, who: str, *, ttl: float = 60.0, now: float = 1000.0, host: str = "") -> LeaseLock:
    lock = LeaseLock(api, "gateshift", "migration", ttl, who=who, sleep=lambda _: None, clock=lambda: now)
    if host:
        lock._identity = f"{who} {Process(host, 1, '1', 'b').text()} abc"
    return lock


def test_lease_keeps_the_second_out_until_it_is_given_back() -> None:
    api = Api()
    first = lease(api, "ann", host="elsewhere")
    first.acquire()
    with pytest.raises(LockHeld, match="ann holds the migration's Lease; it expires in 60 s"):
        lease(api, "bob").acquire()
    first.release()
    with lease(api, "bob") as second:
        assert second.transitions == 2


def test_expired_lease_is_taken_over_and_its_holder_finds_out() -> None:
    api = Api()
    first = lease(api, "ann", ttl=0.3, host="elsewhere")
    first.acquire()
    second = lease(api, "bob", now=1100.0)
    first._stop.set()  # ann's machine sleeps: she renews no more
    second.acquire()
    with pytest.raises(LockHeld, match="bob"):
        first._renew()
    second.release()


def test_lease_that_only_looks_expired_is_left_alone() -> None:
    api = Api()
    first = lease(api, "ann", host="elsewhere")
    first.acquire()
    second = lease(api, "bob", now=5000.0)
    second._sleep = lambda _: first._renew()
    with pytest.raises(LockHeld, match="still being renewed"):
        second.acquire()
    first.check()
    first.release()


@pytest.mark.parametrize("lives", [True, False])
def test_a_holder_whose_clock_is_a_day_ahead_is_judged_by_its_renewals(lives: bool) -> None:
    api = Api()
    first = lease(api, "ann", now=1000.0 + 86400, host="elsewhere")
    first.acquire()
    first._stop.set()
    second, waits = lease(api, "bob"), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if lives:
            first._renew()

    second._sleep = wait
    if lives:
        with pytest.raises(LockHeld, match="still being renewed"):
            second.acquire()
    else:
        second.acquire()
        second.release()
    assert waits == [61.0], "a whole duration, not a day"


def test_api_server_away_is_borne_until_the_lease_has_run_out() -> None:
    api = Api()
    lock = lease(api, "ann")
    lock.acquire()
    api.away = True
    lock._renewed -= 50  # fifty of its sixty seconds have passed
    lock.check()
    lock._renewed -= 11
    with pytest.raises(LockHeld, match="could not be renewed"):
        lock.check()


def test_of_two_at_once_one_gets_it() -> None:
    api = Api()
    first, second = lease(api, "ann"), lease(api, "bob")
    real = api.lease_get
    # Both look before either writes.
    api.lease_get = lambda namespace, name: None  # type: ignore[method-assign]
    first.acquire()
    with pytest.raises(LockHeld, match="faster"):
        second.acquire()
    api.lease_get = real  # type: ignore[method-assign]
    first.release()


@pytest.mark.parametrize(
    "text",
    ['{"expires": "abc"}', '{"expires": null, "process": "a/\u00b2/b/c"}', '{"process": "a/\u00b2/b/c"}'],
)
def test_what_is_no_lock_holds_nobody_up(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock"
    path.write_text(text)
    with LocalLock(path) as lock:
        lock.check()


def test_a_long_name_leaves_nothing_behind_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with LocalLock(path, who=f"ann@ci (ci BUILD_TAG=jenkins-{'folder-' * 120})") as first:
        first.check()
    with LocalLock(path, who="bob@ops") as second:
        second.check()
        assert holder_of(path) is not None


def test_a_lock_until_no_time_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"who": "eve", "expires": NaN}')
    assert holder_of(tmp_path / "lock") is None
