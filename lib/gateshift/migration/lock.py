"""One migration at a time: the lock on this machine, and what it has in common with the Lease.

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
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateshift.errors import ExternalError, LockHeld, LockInDoubt, Unwritable
from gateshift.migration.identity import Process
from gateshift.plan import parse_json

__all__ = ["TTL", "LocalLock", "Renewing", "holder_of", "ticks", "watched_for"]

TTL = 60.0
"""Seconds until an unrenewed lock counts as expired; renewed every third of it."""


def ticks() -> float:
    """Seconds of a clock that no one sets back and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def watched_for(left: float, ttl: float) -> float:
    """Return for how many seconds another machine's lock is watched before it is taken; 0 when it is held.

    *left* are the seconds until it expires by our clock, *ttl* those it lives unrenewed. Clocks differ: a
    holder whose lock has expired by ours renews within a third if it lives. One whose clock was far ahead of
    ours would keep everybody out for as long after its death: there no clock is believed, and a whole *ttl*
    without a renewal is what counts.
    """
    if 0 < left <= 2 * ttl:
        return 0.0
    return (ttl if left > 0 else ttl / 3) + 1.0


class Renewing:
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
        """Take the lock or raise :class:`~gateshift.errors.LockHeld`."""
        raise AssertionError("each lock has its own")

    def release(self) -> None:
        """Give the lock back."""
        raise AssertionError("each lock has its own")

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` unless the lock is ours and was renewed in time.

        A lock that could not be renewed for its whole time is renewed now, which proves that nobody took it
        over meanwhile; as long as that is impossible, :class:`~gateshift.errors.LockInDoubt` is raised.
        """
        if not self.held:
            raise LockHeld(self._lost or "this run does not hold the migration's lock")
        silent = ticks() - self._renewed
        if silent <= self.ttl:
            return
        try:
            self._renew()
        except LockHeld as error:
            self._lose(str(error))
            raise
        except (ExternalError, OSError) as error:
            raise LockInDoubt(
                f"the lock could not be renewed for {silent:.0f} s and may have been taken over: {error}"
            ) from None

    def _renew(self) -> None:
        raise AssertionError("each lock has its own")

    def _lose(self, why: str) -> None:
        self._lost = why
        self.held = False
        self._stop.set()

    def _begin(self) -> None:
        self.held = True
        self._lost = ""
        self._renewed = ticks()
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


_LENGTH = 600
"""Bytes of a lock file without its line end."""

_HELD: dict[str, LocalLock] = {}
"""Locks of this process by path: a cell that is run again takes its lock over from itself."""


class LocalLock(Renewing):
    """A lock file: the kernel's lock for this machine, and its content for machines sharing the folder."""

    def __init__(
        self,
        path: str | Path,
        *,
        who: str = "",
        ttl: float = TTL,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = Path(path)
        self.process = Process.current()
        super().__init__(who or f"pid {self.process.pid} on {self.process.host}", ttl)
        self._clock, self._sleep = clock, sleep
        self._nonce = uuid.uuid4().hex
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock or raise :class:`~gateshift.errors.LockHeld` naming the holder."""
        before = _HELD.get(str(self.path.absolute()))
        if before is not None and before is not self and before.process.pid == os.getpid():
            before.release()
            before._lose("this process opened the migration again; the newer run has the lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise Unwritable.of(self.path, error) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LockHeld(self._describe(_content(descriptor))) from None
            found = _content(descriptor)
            if found and self._may_live(found):
                raise LockHeld(self._describe(found))
            self._descriptor = descriptor
            try:
                self._write()
            except OSError as error:
                raise Unwritable.of(self.path, error) from None
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
            with suppress(OSError):
                # Written over, not cut: on a full disk the next holder could not write it again.
                os.pwrite(descriptor, b"{}".ljust(_LENGTH) + b"\n", 0)
        os.close(descriptor)
        if _HELD.get(str(self.path.absolute())) is self:
            del _HELD[str(self.path.absolute())]

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` unless the file still names this holder."""
        super().check()
        try:
            found = parse_json(self.path.read_text() or "{}")
        except (OSError, ValueError):
            found = {}
        if not isinstance(found, dict) or found.get("nonce") != self._nonce:
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
        line = text.ljust(_LENGTH) + b"\n"
        os.pwrite(self._descriptor, line, 0)
        if os.fstat(self._descriptor).st_size > len(line):
            # What stood here was longer (a name of many words): its end behind ours would be no lock.
            os.ftruncate(self._descriptor, len(line))
        os.fdatasync(self._descriptor)
        self._renewed = ticks()

    def _may_live(self, found: Mapping[str, Any]) -> bool:
        process = Process.parse(str(found.get("process", "")))
        if process is not None and (process.surely_dead or process.text() == self.process.text()):
            return False
        if process is not None and process.host == self.process.host and process.boot == self.process.boot:
            return False  # the kernel's lock was free, and on one machine that is proof
        left = float(found.get("expires", 0.0)) - self._clock()
        pause = watched_for(left, self.ttl)
        if process is None or not pause:
            return left > 0
        self._sleep(pause)
        try:
            with self.path.open("rb") as again:  # opened anew: a network file system keeps what it read
                return _content(again.fileno()) != found
        except OSError:
            return False

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
        found = parse_json(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    # What was written by nobody of us is nobody's lock.
    timed = isinstance(found, dict) and isinstance(found.get("expires", 0.0), (int, float))
    return found if timed else {}


def holder_of(path: Path, *, now: float | None = None) -> tuple[str, float] | None:
    """Return who holds the lock file at *path* and for how many seconds more; None when nobody does.

    Only reads. A lock whose time is over, or whose process has surely ended, is nobody's.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8") or "{}")
        left = float(found.get("expires", 0.0)) - (time.time() if now is None else now)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    process = Process.parse(str(found.get("process", "")))
    if not left > 0 or (process is not None and process.surely_dead):
        return None
    return str(found.get("who", "?")), left
