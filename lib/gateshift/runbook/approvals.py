"""Approvals given outside the notebook: one small file a digest and person, read by the gate that waits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path

from gateshift.archive.files import atomic_write
from gateshift.errors import InputError
from gateshift.migration.identity import identity

__all__ = ["JOURNAL", "nameable", "read_approval", "write_approval"]

JOURNAL = "journal"
"""Who approves what the journal already allows: a stage in force resumed, a rollback that has begun."""


def nameable(who: str) -> str:
    """Return *who* as a person's name; raises :class:`~gateshift.errors.InputError` when it cannot be one."""
    name = who.strip()
    if not name or name == JOURNAL:
        raise InputError(f"{who!r} cannot be the name of who approves", hint="name the person or the CI job")
    return name


def write_approval(folder: Path, digest: str, who: str) -> None:
    """Leave the approval of *digest* by *who* in the migration's *folder*, atomically.

    The account it was given from is kept beside the name, because a name is only what somebody typed.
    """
    who = nameable(who)
    person = hashlib.sha256(who.encode()).hexdigest()[:8]
    path = folder / "approvals" / f"{digest}-{person}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat()
    atomic_write(path, json.dumps({"digest": digest, "who": who, "account": identity(), "at": now}) + "\n")


def read_approval(folder: Path, digest: str, besides: Container[str] = ()) -> str | None:
    """Return who approved *digest*, leaving out people in *besides*; None while nobody has."""
    for path in sorted((folder / "approvals").glob(f"{digest}*.json")):
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            who = str(given["who"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not an approval; the audit names it
        if given.get("digest", digest) == digest and who not in besides:
            return who
    return None
