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
    """Leave the approval of *digest* by *who* in the migration's *folder*: a new file, atomically.

    The account it was given from is kept beside the name, because a name is only what somebody typed.
    """
    who = nameable(who)
    person = hashlib.sha256(who.encode()).hexdigest()[:8]
    now = datetime.now(UTC)
    # Never the same file again: an earlier approval may be under the seal of the run that it was for.
    path = folder / "approvals" / f"{digest}-{person}-{now:%Y%m%dT%H%M%S%f}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {"digest": digest, "who": who, "account": identity(), "at": now.isoformat()}
    atomic_write(path, json.dumps(given) + "\n")


def read_approval(
    folder: Path, digest: str, besides: Container[str] = (), *, since: float = 0.0
) -> str | None:
    """Return who approved *digest*, leaving out people in *besides*; None while nobody has.

    Approvals from before *since* (unix seconds) were for a time when the plan has been carried out.
    """
    for path in sorted((folder / "approvals").glob(f"{digest}*.json")):
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            who = str(given["who"])
            at = datetime.fromisoformat(str(given["at"])).timestamp() if since else 0.0
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not an approval; the audit names it
        if given.get("digest", digest) == digest and who not in besides and at >= since:
            return who
    return None
