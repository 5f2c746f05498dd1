"""A run's own part of its migration's journal, in the run's folder: its records, byte for byte.

It is written when the run is sealed, so that whoever is handed one run's folder has what it did. The chain is
the migration's journal: the records here keep their numbers and hashes and are compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from gateshift.migration.records import Record

__all__ = ["JOURNAL", "excerpt", "judged"]

JOURNAL = "journal.jsonl"


def excerpt(records: Sequence[Record], run: str, upto: int) -> bytes:
    """Return the lines of *run* among *records* up to number *upto*, those about it by others included."""
    return b"".join(r.line() for r in _of(records, run) if r.seq <= upto)


def _of(records: Sequence[Record], run: str) -> Iterator[Record]:
    # How a dead run ended, and its seal, are recorded by the run that settles it.
    return (r for r in records if run in {r.run, r.data.get("run")})


def judged(
    records: Sequence[Record], run: str, upto: int, listed: str | None, found: str | None
) -> tuple[str, bool]:
    """Say what is wrong with a run's excerpt: (sentence, whether it is a mere note); empty when it is right.

    *listed* is its SHA-256 in a manifest that was written after record *upto*, None in one of a version that
    wrote none; *found* is that of the file, None when there is none.
    """
    if found is None:
        return ("is missing", False) if listed else ("", False)
    if listed and listed != hashlib.sha256(excerpt(records, run, upto)).hexdigest():
        return "has not the records of this run that the migration's journal has", False
    if found == listed:
        return "", False
    if found in _later(records, run, upto):
        return "was left by a seal that was cut short", True
    return ("was changed after it was sealed" if listed else "was added after the run was sealed"), False


def _later(records: Sequence[Record], run: str, upto: int) -> Iterator[str]:
    """Give the SHA-256 of the excerpt as it was at each later record."""
    growing = hashlib.sha256()
    for record in _of(records, run):
        growing.update(record.line())
        if record.seq >= upto:
            yield growing.hexdigest()
