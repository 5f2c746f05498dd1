"""The append-only journal of one migration: one JSON line a record, each with the hash of the one before.

Every line is canonical JSON, so a line has exactly one spelling and any changed byte shows. Beside the
journal stands ``journal.head`` with the number and hash of the newest record: cutting off the end shows too.
Writers of several processes take turns by a file lock and read what others wrote before they chain on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from gateshift.archive.redact import Redactor
from gateshift.errors import JournalError, LockHeld, LockInDoubt
from gateshift.migration.state import State, step
from gateshift.plan import canonical_json

__all__ = ["GENESIS", "Head", "Journal", "Lock", "Record", "parse_line", "read_head", "read_records", "split"]

GENESIS = "0" * 64
"""What stands for the hash before the first record."""

_RETREAT = ("rollback.", "run.ended", "note.")
"""Kinds that are written though the lock is in doubt: the way back never waits for the cluster."""


class Lock(Protocol):
    """What the journal needs of a lock: who holds it, and an error when it is lost."""

    @property
    def holder(self) -> str:
        """Who holds it."""

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` when it is not ours any more, ``LockInDoubt`` when
        that cannot be known.
        """


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``time`` is UTC; ``mono`` are seconds of the machine's monotonic clock since its boot.

    ``inputs`` is the digest of what the run works from: its params, then its plan once one is made.
    """

    seq: int
    time: str
    mono: float
    run: str
    who: str
    kind: str
    data: Mapping[str, Any]
    token: int
    prev: str
    hash: str = field(default="")
    inputs: str = ""

    @property
    def unix(self) -> float:
        """``time`` in unix seconds."""
        return datetime.fromisoformat(self.time).timestamp()

    def body(self) -> dict[str, Any]:
        """Return everything the hash covers."""
        # Archives from before this field have records without it; they verify as they were written.
        inputs = {"inputs": self.inputs} if self.inputs else {}
        return {
            "seq": self.seq,
            "time": self.time,
            "mono": self.mono,
            "run": self.run,
            "who": self.who,
            "kind": self.kind,
            "data": dict(self.data),
            "token": self.token,
            "prev": self.prev,
            **inputs,
        }

    def line(self) -> bytes:
        """Return the record as it stands in the file, newline included."""
        return canonical_json({**self.body(), "hash": self.hash}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Head:
    """Number and hash of the newest record."""

    seq: int = 0
    hash: str = GENESIS

    def text(self) -> bytes:
        """Return the only spelling of this head."""
        return canonical_json({"seq": self.seq, "hash": self.hash}).encode() + b"\n"


def hash_of(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the canonical JSON of a record's *body*."""
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def parse_line(line: bytes, previous: Head) -> Record:
    """Read one complete line that follows *previous*; raises ValueError saying what is wrong with it."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is not complete")
    try:
        data = json.loads(line)
        given = data.pop("hash")
        record = Record(**data, hash=given)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a record: {error}") from None
    if record.line() != line:
        raise ValueError("its bytes are not the ones that were written")
    if hash_of(data) != given:
        raise ValueError("its hash does not match its content")
    if record.prev != previous.hash:
        raise ValueError("the record before it is not the one it was chained to")
    if record.seq != previous.seq + 1:
        raise ValueError(f"it has number {record.seq} where {previous.seq + 1} is due")
    return record


def split(raw: bytes) -> tuple[list[bytes], bytes]:
    """Split a journal's bytes into complete lines and a torn rest."""
    *lines, rest = raw.split(b"\n")
    return [line + b"\n" for line in lines], rest


def read_head(path: Path) -> Head | None:
    """Read the head beside the journal *path*; None when it is missing, empty or not one."""
    try:
        raw = head_path(path).read_bytes()
        head = Head(**json.loads(raw))
    except (OSError, ValueError, TypeError):
        return None
    return head if head.text() == raw else None


def head_path(path: Path) -> Path:
    """Return the path of the head file of the journal *path*."""
    return path.with_suffix(".head")


def read_records(path: str | Path) -> tuple[Record, ...]:
    """Read a journal without changing it; a torn last line is left out. Raises :class:`JournalError`."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
    return tuple(_parse_all(path, split(raw)[0], Head(), 0))


def _parse_all(path: Path, lines: list[bytes], head: Head, number: int) -> Iterator[Record]:
    for line in lines:
        number += 1
        try:
            record = parse_line(line, head)
        except ValueError as error:
            raise JournalError(f"{path}: record {number} is damaged: {error}") from None
        head = Head(record.seq, record.hash)
        yield record


class Journal:
    """The open journal. Thread-safe; several processes may have the same journal open."""

    def __init__(self, path: Path, *, who: str, run: str, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.who = who
        self.run = run
        self.redactor = Redactor()
        self.token = 0
        self.listener: Callable[[Record], None] | None = None
        """Called with each record this object wrote, once it is on the disk; it must not raise."""
        self.inputs = ""
        """Digest that goes into each record: see :class:`Record`."""
        self.repaired = ""
        """What was repaired when this journal was opened, in words; empty when nothing was."""
        self._clock = clock
        self._lock: Lock | None = None
        self._threads = threading.RLock()
        self._records: list[Record] = []
        self._state = State()
        self._known: tuple[Record | None, State] = (None, self._state)
        self._size = 0
        self._descriptor = -1

    @classmethod
    def open(cls, path: str | Path, *, who: str, run: str, clock: Callable[[], float] = time.time) -> Journal:
        """Open or begin the journal at *path*; a torn last line is repaired and the repair recorded.

        Raises :class:`~gateshift.errors.JournalError` when a record is damaged or the end is missing.
        """
        journal = cls(Path(path), who=who, run=run, clock=clock)
        try:
            journal.path.parent.mkdir(parents=True, exist_ok=True)
            if not journal.path.exists() and not head_path(journal.path).exists():
                # The head stands before the first record does: a journal without one was tampered with.
                journal._write_head(Head())
            journal._descriptor = os.open(
                journal.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640
            )
        except OSError as error:
            raise _unwritable(journal.path, error) from None
        try:
            with journal._exclusive():
                journal._catch_up()
                journal._check_head()
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def records(self) -> tuple[Record, ...]:
        """Every record, those of other processes included."""
        with self._threads:
            if self._descriptor >= 0 and os.fstat(self._descriptor).st_size != self._size:
                with self._exclusive():
                    self._catch_up()
            return tuple(self._records)

    @property
    def state(self) -> State:
        """The fold of :attr:`records`."""
        self.records  # noqa: B018 - reads what other processes wrote
        return self._state

    @property
    def known(self) -> tuple[Record | None, State]:
        """Newest record and state as far as read or written; waits for nothing, so any thread may ask."""
        return self._known

    def hold(self, lock: Lock) -> None:
        """Write under *lock* from now on: its fencing token goes into each record.

        The token is one more than the newest in the journal. From this moment a write of an earlier
        holder is refused, whatever its clock says.
        """
        with self._threads, self._exclusive():
            self._catch_up()
            lock.check()
            self._lock = lock
            self.token = self._state.token + 1
            self._append("lock.acquired", {"holder": lock.holder})

    def append(self, kind: str, **data: Any) -> Record:
        """Write one record and return it once it is on the disk.

        Raises :class:`~gateshift.errors.JournalError` when the transition is not legal or the disk does not
        take it (the journal is then as it was), :class:`~gateshift.errors.LockHeld` when the lock was lost.
        """
        with self._threads:
            self._check_lock(kind, data)
            with self._exclusive():
                self._catch_up()
                if self.token and self.token < self._state.token:
                    raise LockHeld(
                        f"this run's lock was taken over (token {self.token}, now {self._state.token}); "
                        f"{kind} was not written"
                    )
                record = self._append(kind, data)
        if self.listener is not None:
            self.listener(record)
        return record

    def close(self) -> None:
        """Close the file; records stay readable."""
        with self._threads:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------

    def _check_lock(self, kind: str, data: Mapping[str, Any]) -> None:
        if self._lock is None:
            return
        try:
            self._lock.check()
        except LockInDoubt:
            back = kind == "verdict" and str(data.get("decision", "")).lower() == "rollback"
            if not back and not kind.startswith(_RETREAT):
                raise

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._descriptor < 0:
            raise JournalError(f"{self.path}: the journal is closed")
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _append(self, kind: str, data: Mapping[str, Any]) -> Record:
        # Through JSON and back: what is judged now is exactly what a later reader will see.
        plain = json.loads(canonical_json(self.redactor.value(dict(data))))
        head = self._head()
        stamp = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        bare = Record(
            head.seq + 1,
            stamp,
            round(time.monotonic(), 3),
            self.run,
            self.who,
            kind,
            plain,
            self.token,
            head.hash,
            inputs=self.inputs,
        )
        record = Record(**bare.body(), hash=hash_of(bare.body()))
        state = step(self._state, record)
        self._write(record.line())
        self._records.append(record)
        self._state = state
        self._known = (record, state)
        self._write_head(self._head())
        return record

    def _write(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fdatasync(self._descriptor)
        except OSError as error:
            # A record that is not surely on the disk does not exist.
            os.ftruncate(self._descriptor, self._size)
            raise _unwritable(self.path, error) from None
        self._size += len(line)

    def _write_head(self, head: Head) -> None:
        target = head_path(self.path)
        partial = target.with_suffix(".head.part")
        try:
            with partial.open("wb") as file:
                file.write(head.text())
                file.flush()
                os.fdatasync(file.fileno())
            partial.replace(target)
        except OSError as error:
            if head.seq == 0:
                raise
            # The record is on the disk; a head that is behind is caught up by the next write.
            self.repaired = f"journal.head could not be written: {error.strerror}"

    def _head(self) -> Head:
        if not self._records:
            return Head()
        return Head(self._records[-1].seq, self._records[-1].hash)

    def _catch_up(self) -> None:
        """Read what is new in the file; repair a line that a dying writer left torn. Needs the lock."""
        size = os.fstat(self._descriptor).st_size
        if size == self._size:
            return
        if size < self._size:
            raise JournalError(f"{self.path}: the journal became shorter while it was open")
        raw = os.pread(self._descriptor, size - self._size, self._size)
        lines, rest = split(raw)
        for record in _parse_all(self.path, lines, self._head(), len(self._records)):
            self._state = step(self._state, record)
            self._records.append(record)
            self._known = (record, self._state)
        self._size += len(raw) - len(rest)
        if rest:
            self._repair(rest)

    def _repair(self, rest: bytes) -> None:
        head = read_head(self.path)
        if head is not None and head.seq > self._head().seq:
            raise JournalError(
                f"{self.path}: record {self._head().seq + 1} was cut after it had been written completely"
            )
        os.ftruncate(self._descriptor, self._size)
        os.fdatasync(self._descriptor)
        self.repaired = (
            f"the last line was torn ({len(rest)} bytes of record {self._head().seq + 1}) and was removed; "
            "the step it would have recorded counts as not recorded"
        )
        # Redacted before it is kept: the torn bytes may be the beginning of anything.
        kept = b64encode(self.redactor.text(rest[:2000].decode("utf-8", "replace")).encode()).decode()
        self._append("journal.repaired", {"dropped_bytes": len(rest), "dropped_base64": kept})

    def _check_head(self) -> None:
        head = read_head(self.path)
        mine = self._head()
        if head is None:
            if mine.seq and not head_path(self.path).exists():
                raise JournalError(f"{self.path}: journal.head is missing beside it")
            if mine.seq and head_path(self.path).stat().st_size:
                raise JournalError(f"{self.path}: journal.head is damaged")
            self._write_head(mine)
            return
        if head.seq > mine.seq:
            raise JournalError(
                f"{self.path}: records {mine.seq + 1} to {head.seq} are missing at its end",
                hint="restore the journal from a copy; `gateshift audit verify` names what is missing",
            )
        if head.seq and self._records[head.seq - 1].hash != head.hash:
            raise JournalError(f"{self.path}: record {head.seq} is not the one journal.head names")
        if head.seq < mine.seq:
            self._write_head(mine)


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"{path}: cannot be written: {error.strerror or error}",
        hint="free disk space or correct the permissions; nothing was done that is not in the journal",
    )
