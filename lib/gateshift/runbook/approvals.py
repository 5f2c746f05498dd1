"""Approvals given outside the notebook: one small file a digest and person, read by the gate that waits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Container
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from gateshift.archive.files import atomic_write
from gateshift.archive.layout import is_file
from gateshift.errors import InputError
from gateshift.migration.identity import identity
from gateshift.plan import parse_json

__all__ = ["JOURNAL", "Approval", "nameable", "read_approval", "shown_digest", "write_approval"]

JOURNAL = "journal"
"""Who approves what the journal already allows: a stage in force resumed, a rollback that has begun."""


_PREFIX = 4
"""Characters of a digest that are enough to name a plan, at the prompt and on the command line."""


class Approval(NamedTuple):
    """An answer to a gate: *who* is a name that somebody typed, *account* where it was given from.

    The account is ``user@host``, with the CI job where there is one.
    """

    who: str
    account: str


def nameable(who: str) -> str:
    """Return *who* as a person's name; raises :class:`~gateshift.errors.InputError` when it cannot be one."""
    name = who.strip()
    if not name or name == JOURNAL or not name.isprintable():
        raise InputError(f"{who!r} cannot be the name of who approves", hint="name the person or the CI job")
    return name


def shown_digest(shown: Collection[str], typed: str, *, migration: str) -> str:
    """Return the digest among those *shown* that *typed* names, in full or by its first characters.

    *migration* is named in an error: who forgot ``-f`` asks for a plan of another one.

    Raises :class:`~gateshift.errors.InputError` when it names none or several: an approval of a plan that
    was never shown would stay in the archive and spoil it.
    """
    start = typed.strip().lower()
    found = [digest for digest in shown if digest.startswith(start)]
    if len(start) < _PREFIX or not found:
        raise InputError(
            f"{typed!r} names no plan that was shown in migration {migration}; nothing was approved",
            hint="copy the digest from the plan: all of it, or its first 4 characters; "
            "`-f FILE` names the params file of another migration",
        )
    if len(found) > 1:
        raise InputError(
            f"{typed!r} names {len(found)} plans that were shown: {', '.join(sorted(found))}",
            hint="copy the whole digest",
        )
    return found[0]


def write_approval(folder: Path, digest: str, who: str) -> None:
    """Leave the approval of *digest* by *who* in the migration's *folder*: a new file, atomically.

    The account it was given from is kept beside the name, because a name is only what somebody typed. Raises
    :class:`~gateshift.errors.InputError` for what cannot be a name or a digest.
    """
    who = nameable(who)
    if not re.fullmatch(r"[0-9a-f]{16}", digest):
        raise InputError(f"{digest!r} is no digest of a plan", hint="copy the whole digest")
    person = hashlib.sha256(who.encode()).hexdigest()[:8]
    now = datetime.now(UTC)
    # Never the same file again: an earlier approval may be under the seal of the run that it was for.
    path = folder / "approvals" / f"{digest}-{person}-{now:%Y%m%dT%H%M%S%f}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {"digest": digest, "who": who, "account": identity(), "at": now.isoformat()}
    atomic_write(path, json.dumps(given) + "\n")


def read_approval(
    folder: Path,
    digest: str,
    besides: Container[str] = (),
    *,
    accounts: Container[str] = (),
    since: float = 0.0,
) -> Approval | None:
    """Return who approved *digest*, leaving out people in *besides* and *accounts*; None while nobody has.

    Approvals from before *since* (unix seconds) were for a time when the plan has been carried out.
    """
    for path in sorted((folder / "approvals").glob(f"{digest}*.json")):
        if not is_file(path):
            continue
        try:
            given = parse_json(path.read_bytes())
            # Written by hand it may say anything; "journal" would pass for the journal's own word, which
            # needs no second person.
            who, account = nameable(given["who"]), str(given.get("account") or "")
            at = datetime.fromisoformat(str(given["at"])).timestamp() if since else 0.0
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            continue  # not an approval; the audit names it
        known = who in besides or account in accounts
        if given.get("digest", digest) == digest and not known and at >= since:
            return Approval(who, account)
    return None
