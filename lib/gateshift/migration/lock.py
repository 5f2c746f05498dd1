"""One migration at a time: a lock on this machine and a Lease in the cluster.

Both are renewed while they are held and may be taken over only when their holder is surely dead or they
have expired. A holder that lost its lock is told so by :meth:`check` before its next write, and the journal
refuses its older fencing token in any case.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from gateshift.errors import ExternalError, LockHeld
from gateshift.migration.identity import Process

__all__ = ["LeaseApi", "LeaseLock", "LocalLock"]

_TTL = 60.0
"""Seconds until an unrenewed lock counts as expired; renewed every third of it."""


class _Renewing:
    """A lock with a thread that renews it. ``check`` is what every write asks first."""

    def __init__(self, who: str, ttl: float) -> None:
        self.who = who
        self.ttl = ttl
        self.held = False
        self._lost = ""
        self._renewed = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Any:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def holder(self) -> str:
        """Who holds it, when it is us."""
        return self.who

    def acquire(self) -> None:
        raise AssertionError("each lock has its own")

    def release(self) -> None:
        raise AssertionError("each lock has its own")

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` unless the lock is ours and was renewed in time."""
        if not self.held:
            raise LockHeld(self._lost or "this run does not hold the migration's lock")
        if time.monotonic() - self._renewed > self.ttl:
            self._lose(f"the lock could not be renewed for {self.ttl:.0f} s and may have been taken over")
            raise LockHeld(self._lost)

    def _renew(self) -> None:
        raise AssertionError("each lock has its own")

    def _lose(self, why: str) -> None:
        self._lost = why
        self.held = False
        self._stop.set()

    def _begin(self) -> None:
        self.held = True
        self._lost = ""
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gateshift-lock", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self.ttl / 3)
        self._thread = None
        self.held = False

    def _keep(self) -> None:
        stop = self._stop
        while not stop.wait(self.ttl / 3):
            try:
                self._renew()
            except LockHeld as error:
                self._lose(str(error))
            except (ExternalError, OSError):
                continue  # tried again until the time is over; check() tells the writer then


_HELD: dict[str, LocalLock] = {}
"""Locks of this process by path: a cell that is run again takes its lock over from itself."""


class LocalLock(_Renewing):
    """A lock file: the kernel's lock for this machine, and its content for machines sharing the folder."""

    def __init__(
        self, path: str | Path, *, who: str = "", ttl: float = _TTL, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.process = Process.current()
        super().__init__(who or f"pid {self.process.pid} on {self.process.host}", ttl)
        self._clock = clock
        self._nonce = uuid.uuid4().hex
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock or raise :class:`~gateshift.errors.LockHeld` naming the holder."""
        before = _HELD.get(str(self.path.absolute()))
        if before is not None and before is not self and before.process.pid == os.getpid():
            before.release()
            before._lose("this process opened the migration again; the newer run has the lock")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LockHeld(self._describe(_content(descriptor))) from None
            found = _content(descriptor)
            if found and self._may_live(found):
                raise LockHeld(self._describe(found))
            self._descriptor = descriptor
            self._write()
        except BaseException:
            self._descriptor = -1
            os.close(descriptor)
            raise
        _HELD[str(self.path.absolute())] = self
        self._begin()

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor < 0:
            return
        self._end()
        descriptor, self._descriptor = self._descriptor, -1
        if _content(descriptor).get("nonce") == self._nonce:
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
        if _HELD.get(str(self.path.absolute())) is self:
            del _HELD[str(self.path.absolute())]

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` unless the file still names this holder."""
        super().check()
        try:
            found = json.loads(self.path.read_text() or "{}")
        except (OSError, ValueError):
            found = {}
        if found.get("nonce") != self._nonce:
            self._lose("the lock file is gone or names another holder")
            raise LockHeld(self._lost)

    def _renew(self) -> None:
        if self._descriptor < 0:
            return
        found = _content(self._descriptor)
        if found.get("nonce") != self._nonce:
            raise LockHeld(f"the lock was taken over: {self._describe(found)}")
        self._write()

    def _write(self) -> None:
        now = self._clock()
        text = json.dumps(
            {
                "who": self.who,
                "process": self.process.text(),
                "nonce": self._nonce,
                "renewed": now,
                "expires": now + self.ttl,
            }
        ).encode()
        # Padded to a fixed size and written at once, so that a reader never sees a half.
        os.pwrite(self._descriptor, text.ljust(600) + b"\n", 0)
        os.fdatasync(self._descriptor)
        self._renewed = time.monotonic()

    def _may_live(self, found: Mapping[str, Any]) -> bool:
        process = Process.parse(str(found.get("process", "")))
        if process is not None and (process.surely_dead or process.text() == self.process.text()):
            return False
        if process is not None and process.host == self.process.host and process.boot == self.process.boot:
            return False  # the kernel's lock was free, and on one machine that is proof
        return float(found.get("expires", 0.0)) > self._clock()

    def _describe(self, found: Mapping[str, Any]) -> str:
        if not found:
            return f"another process holds the migration's lock ({self.path})"
        left = float(found.get("expires", 0.0)) - self._clock()
        process = Process.parse(str(found.get("process", "")))
        where = f", process {process.pid} on {process.host}" if process else ""
        return (
            f"{found.get('who', 'somebody')} holds the migration's lock{where}; "
            f"it expires in {max(0.0, left):.0f} s unless renewed"
        )


def _content(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class LeaseApi(Protocol):
    """The three calls a Lease lock makes. A lost race is an error with ``status`` 409."""

    def lease_get(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return the Lease or None."""

    def lease_create(self, namespace: str, name: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Create it."""

    def lease_update(self, lease: dict[str, Any]) -> Mapping[str, Any]:
        """Replace it, refused when its resourceVersion is not the newest."""


class LeaseLock(_Renewing):
    """A ``coordination.k8s.io/v1`` Lease: one migration at a time for everybody who uses the cluster."""

    def __init__(
        self,
        api: LeaseApi,
        namespace: str,
        name: str,
        ttl: float = _TTL,
        *,
        who: str = "",
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.process = Process.current()
        super().__init__(who or f"pid {self.process.pid} on {self.process.host}", ttl)
        self.api, self.namespace, self.name = api, namespace, name
        self._sleep, self._clock = sleep, clock
        self._identity = f"{self.who} {self.process.text()} {uuid.uuid4().hex[:8]}"
        self._lease: dict[str, Any] = {}

    @property
    def transitions(self) -> int:
        """How often the Lease changed hands: the cluster's own fencing token."""
        return int(self._lease.get("spec", {}).get("leaseTransitions") or 0)

    def acquire(self) -> None:
        """Take the Lease or raise :class:`~gateshift.errors.LockHeld` naming the holder."""
        found = self.api.lease_get(self.namespace, self.name)
        if found is None:
            self._lease = self._race(lambda: self.api.lease_create(self.namespace, self.name, self._spec({})))
        else:
            lease = self._expired(dict(found))
            lease["spec"] = self._spec(lease.get("spec") or {})
            self._lease = self._race(lambda: self.api.lease_update(lease))
        self._begin()

    def release(self) -> None:
        """Give the Lease back; a Lease that somebody else has is left alone."""
        if not self._lease:
            return
        held = self.held
        self._end()
        lease, self._lease = self._lease, {}
        if not held:
            return
        lease["spec"] = {**lease["spec"], "holderIdentity": "", "renewTime": _micro(self._clock())}
        try:
            self.api.lease_update(lease)
        except ExternalError:
            return  # it expires by itself; a migration must not fail at its last step for that

    def _renew(self) -> None:
        lease = {**self._lease, "spec": {**self._lease["spec"], "renewTime": _micro(self._clock())}}
        begun = time.monotonic()
        try:
            self._lease = dict(self.api.lease_update(lease))
        except ExternalError as error:
            if getattr(error, "status", None) not in {404, 409}:
                raise
            # Our own renewal may have arrived though its answer did not; only another holder is a loss.
            found = self.api.lease_get(self.namespace, self.name)
            if found is None or (found.get("spec") or {}).get("holderIdentity") != self._identity:
                raise LockHeld(f"the lock was taken over: {_holder(found)}") from None
            self._lease = dict(found)
        self._renewed = begun

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        now = _micro(self._clock())
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self.ttl)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + 1,
        }

    def _expired(self, lease: dict[str, Any]) -> dict[str, Any]:
        """Return the Lease to take over, or raise: it must be free, of a dead process, or expired."""
        spec = lease.get("spec") or {}
        identity = str(spec.get("holderIdentity") or "")
        if not identity:
            return lease
        words = identity.split(" ")
        process = Process.parse(words[-2]) if len(words) >= 3 else None
        if process is not None and process.surely_dead:
            return lease
        duration = float(spec.get("leaseDurationSeconds") or self.ttl)
        left = _unix(spec.get("renewTime")) + duration - self._clock()
        if left > 0:
            raise LockHeld(f"{_holder(lease)}; it expires in {left:.0f} s unless renewed")
        # By our clock it has expired, but clocks differ: a holder that lives renews within a third.
        self._sleep(duration / 3 + 1.0)
        again = self.api.lease_get(self.namespace, self.name)
        version = (again or {}).get("metadata", {}).get("resourceVersion")
        if again is None or version != lease.get("metadata", {}).get("resourceVersion"):
            raise LockHeld(f"{_holder(again or lease)}; it is still being renewed")
        return lease

    def _race(self, call: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return dict(call())
        except ExternalError as error:
            if getattr(error, "status", None) != 409:
                raise
            found = self.api.lease_get(self.namespace, self.name)
            raise LockHeld(f"{_holder(found)}; it was faster") from None


def _holder(lease: Mapping[str, Any] | None) -> str:
    identity = str(((lease or {}).get("spec") or {}).get("holderIdentity") or "somebody")
    words = identity.split(" ")
    return f"{' '.join(words[:-2]) or identity} holds the migration's Lease"


def _micro(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _unix(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
