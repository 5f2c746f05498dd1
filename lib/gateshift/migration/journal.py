"""The append-only journal of one migration: one JSON line a record, each with the hash of the one before.

Writers of several processes take turns by a file lock and read what others wrote before they chain on.

A disk that does not take a record stops what leads forward, before it is done. The way back goes on: blocks
are set aside for its records (:mod:`gateshift.migration.reserve`), and where even these fail the records stay
in memory, are said aloud, and are written as soon as the disk takes them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from gateshift.archive.redact import Redactor
from gateshift.errors import JournalError, LockHeld, LockInDoubt, Unwritable
from gateshift.migration.records import (
    Head,
    Record,
    hash_of,
    head_path,
    parse_lines,
    read_head,
    read_records,
    split,
    write_head,
)
from gateshift.migration.reserve import Reserve
from gateshift.migration.state import State, fold, step
from gateshift.plan import canonical_json

__all__ = ["Journal", "Lock", "Record", "read_records"]

_RETREAT = ("rollback.", "run.ended", "note.")
"""Kinds that are written though the lock is in doubt: the way back never waits for the cluster."""

_URGENT = ("rollback.", "run.ended", "verdict", "stage.arrived", "journal.repaired")
"""Kinds that use the space set aside: what a stage needs to be judged, and all of the way back."""

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class Lock(Protocol):
    """What the journal needs of a lock: who holds it, and an error when it is lost."""

    @property
    def holder(self) -> str:
        """Who holds it."""

    def check(self) -> None:
        """Raise :class:`~gateshift.errors.LockHeld` when it is not ours any more, ``LockInDoubt`` when
        that cannot be known.
        """


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
        self.way_back = False
        """True for a run whose every record belongs to the way back: a full disk does not stop it."""
        self.unwritable = ""
        """Why the file can only be read, in words; empty when it can be written."""
        self._clock = clock
        self._lock: Lock | None = None
        self._threads = threading.RLock()
        self._records: list[Record] = []
        self._state = State()
        self._known: tuple[Record | None, State] = (None, self._state)
        self._adrift: list[Record] = []  # the newest of _records, which the disk has not taken yet
        self._size = 0
        self._reserve = Reserve()
        self._descriptor = -1
        self._place = path.absolute()  # whoever runs cells may change the working folder

    @classmethod
    def open(cls, path: str | Path, *, who: str, run: str, clock: Callable[[], float] = time.time) -> Journal:
        """Open or begin the journal at *path*; a torn last line is repaired and the repair recorded.

        One that may only be read is opened, too: a rollback must start from it. Raises
        :class:`~gateshift.errors.JournalError` when a record is damaged or the end is missing.
        """
        journal = cls(Path(path), who=who, run=run, clock=clock)
        try:
            journal.path.parent.mkdir(parents=True, exist_ok=True)
            if not journal.path.exists() and not head_path(journal.path).exists():
                # The head stands before the first record does: a journal without one was tampered with.
                journal._write_head(Head())
            journal._open()
        except OSError as error:
            raise Unwritable.of(journal.path, error) from None
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
        """Newest record and state as far as on the disk; waits for nothing, so any thread may ask."""
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

        A record of the way back is returned in any case. Raises :class:`~gateshift.errors.JournalError` when
        the transition is not legal, :class:`~gateshift.errors.Unwritable` when the disk does not take it (the
        journal is then as it was), :class:`~gateshift.errors.LockHeld` when the lock was lost.
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
                if self._adrift:
                    with suppress(JournalError, OSError), self._exclusive():
                        self._catch_up()
                        self._land()
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def adrift(self) -> int:
        """How many of :attr:`records` are not on the disk."""
        return len(self._adrift)

    # -- inside ------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            if error.errno not in _READ_ONLY or not self.path.exists():
                raise
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.unwritable = error.strerror or str(error)

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
        # What is no text (bytes of a file's name in an error) becomes "?": it must not keep a record away.
        plain = json.loads(canonical_json(self.redactor.value(dict(data))).encode(errors="replace"))
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
        urgent = self.way_back or self._state.rolling_back or kind.startswith(_URGENT)
        try:
            self._land()
            try:
                self._reserve.keep(self._descriptor, self._size, len(record.line()))
            except OSError as error:
                if not urgent:  # what is left is for the way back
                    raise Unwritable.of(self.path, error) from None
            self._write(record.line())
        except Unwritable as error:
            if not urgent:
                raise
            self._adrift.append(record)
            _cry(record, error)
        self._records.append(record)
        self._state = state
        if not self._adrift:
            self._known = (record, state)
            self._write_head(self._head())
        return record

    def _land(self) -> None:
        """Write what the disk did not take earlier; raises :class:`Unwritable` when it still does not."""
        if self.unwritable:
            raise Unwritable.of(self.path, OSError(errno.EROFS, self.unwritable))
        if not self._in_place():
            raise Unwritable.of(
                self.path, OSError(errno.ESTALE, "the file was replaced or removed meanwhile")
            )
        while self._adrift:
            self._write(self._adrift[0].line())
            self._adrift.pop(0)

    def _in_place(self) -> bool:
        """Return whether the open file is the one that others find: a copy put in its place is not."""
        try:
            return os.path.samestat(self._place.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _chain_anew(self, adrift: list[Record]) -> None:
        """Put records that are still in memory behind what other processes wrote meanwhile."""
        for old in adrift:
            head = self._head()
            bare = replace(old, seq=head.seq + 1, prev=head.hash, hash="")
            record = replace(bare, hash=hash_of(bare.body()))
            try:
                self._state = step(self._state, record)
            except JournalError as error:
                print(f"journal: {old.kind} is not kept: {error}", file=sys.stderr, flush=True)
                continue
            self._records.append(record)
            self._adrift.append(record)

    def _write(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fdatasync(self._descriptor)
        except OSError as error:
            # A record that is not surely on the disk does not exist. Cutting it off frees what is set aside.
            self._reserve.forget()
            with suppress(OSError):  # else the torn rest is repaired when the journal is opened
                os.ftruncate(self._descriptor, self._size)
            raise Unwritable.of(self.path, error) from None
        self._size += len(line)

    def _write_head(self, head: Head) -> None:
        try:
            write_head(self.path, head)
        except OSError as error:
            if head.seq == 0 and not self.path.exists():
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
        adrift, self._adrift = self._adrift, []
        if adrift:
            del self._records[-len(adrift) :]
            self._state = fold(self._records)
        raw = os.pread(self._descriptor, size - self._size, self._size)
        lines, rest = split(raw)
        for record in parse_lines(self.path, lines, self._head(), len(self._records)):
            self._state = step(self._state, record)
            self._records.append(record)
            self._known = (record, self._state)
        self._size += len(raw) - len(rest)
        if rest and not self.unwritable:
            self._repair(rest)
        self._chain_anew(adrift)

    def _repair(self, rest: bytes) -> None:
        head = read_head(self.path)
        if head is not None and head.seq > self._head().seq:
            raise JournalError(
                f"{self.path}: record {self._head().seq + 1} was cut after it had been written completely"
            )
        try:
            os.ftruncate(self._descriptor, self._size)
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise Unwritable.of(self.path, error) from None
        self._reserve.forget()
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


def _cry(record: Record, why: Unwritable) -> None:
    """Say what the journal lacks where a person or a job's log sees it."""
    said = canonical_json(dict(record.data))
    text = said if len(said) <= 400 else f"{said[:400]}..."
    print(f"NOT IN THE JOURNAL ({why}): {record.time} {record.kind} {text}", file=sys.stderr, flush=True)
