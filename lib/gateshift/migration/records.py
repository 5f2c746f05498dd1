"""One record of a journal, and how it stands in the file: its only spelling, its hash, the head beside it.

Every line is canonical JSON, so a line has exactly one spelling and any changed byte shows. Beside the
journal stands ``journal.head`` with the number and hash of the newest record: cutting off the end shows too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gateshift.errors import JournalError
from gateshift.plan import canonical_json, parse_json

__all__ = [
    "GENESIS",
    "Head",
    "Record",
    "hash_of",
    "head_path",
    "journals_below",
    "parse_line",
    "parse_lines",
    "read_head",
    "read_records",
    "split",
    "write_head",
]

GENESIS = "0" * 64
"""What stands for the hash before the first record."""
_HASH = re.compile(r"[0-9a-f]{64}")


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
        data = parse_json(line)
        given = data.pop("hash")
        record = Record(**data, hash=given)
        written = record.line()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a record: {error}") from None
    if written != line:
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
    if lines and not rest and b"\0" in lines[-1]:
        # JSON has no such byte. A machine that lost its power put the line's last block on the disk and one
        # before it not: nobody was told yet that this record is there.
        return [line + b"\n" for line in lines[:-1]], lines[-1] + b"\n"
    return [line + b"\n" for line in lines], rest


def read_head(path: Path) -> Head | None:
    """Read the head beside the journal *path*; None when it is missing, empty or not one."""
    try:
        if not head_path(path).is_file():
            return None  # a pipe would keep its reader waiting for ever
        raw = head_path(path).read_bytes()
        head = Head(**parse_json(raw))
    except (OSError, ValueError, TypeError):
        return None
    whole = type(head.seq) is int and head.seq >= 0 and isinstance(head.hash, str)
    return head if whole and _HASH.fullmatch(head.hash) and head.text() == raw else None


def write_head(path: Path, head: Head) -> None:
    """Write the head beside the journal *path*, whole or not at all; raises OSError when that fails."""
    target = head_path(path)
    partial = target.with_suffix(".head.part")
    try:
        with partial.open("wb") as file:
            file.write(head.text())
            file.flush()
            os.fdatasync(file.fileno())
        partial.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        # A full disk has no room for a second file. A head fits into one block and only grows, and a process
        # that is killed leaves a write of one block done or not done.
        with target.open("r+b", buffering=0) as file:
            file.write(head.text())
            os.fdatasync(file.fileno())


def head_path(path: Path) -> Path:
    """Return the path of the head file of the journal *path*."""
    return path.with_suffix(".head")


def read_records(path: str | Path) -> tuple[Record, ...]:
    """Read a journal without changing it; a torn last line is left out. Raises :class:`JournalError`."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        raw = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
    return tuple(parse_lines(path, split(raw)[0], Head(), 0))


def journals_below(folder: Path) -> list[Path]:
    """Return the journals of the migrations at or below *folder*, without the parts of it that runs have."""
    found = sorted(folder.rglob("journal.jsonl"))
    return [p for p in found if not p.parent.with_name(p.name).exists()]


def parse_lines(path: Path, lines: list[bytes], head: Head, number: int) -> Iterator[Record]:
    """Read complete *lines* that follow record *number*; raises :class:`JournalError` at the first bad."""
    for line in lines:
        number += 1
        try:
            record = parse_line(line, head)
        except ValueError as error:
            raise JournalError(f"{path}: record {number} is damaged: {error}") from None
        head = Head(record.seq, record.hash)
        yield record
