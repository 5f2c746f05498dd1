"""Find every change made to an archive after it was written, and name it.

What covers what: each journal record has the hash of the one before, ``journal.head`` has the newest, a
run's manifest has the hash of each of its files, and the journal has the hash of each manifest and report.
What is no evidence (the desk, the lock, what was told to people) is known by place and form, see
:mod:`gateshift.archive.layout`. Somebody who rewrites all of it consistently is found by what they cannot
rewrite: a signature, the head that the cluster keeps (``--cluster``), a head noted in a ticket (``--head``),
or the copy in S3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateshift.archive.files import file_digest
from gateshift.archive.layout import (
    APPROVALS,
    DESK,
    HEAD_NOTE,
    LOCK,
    NOTIFICATIONS,
    approval_of,
    entries,
    executing,
    head_note,
    is_file,
    is_folder,
    lacking,
    leftover,
    misshapen,
)
from gateshift.archive.manifest import read_manifest
from gateshift.archive.seals import Problem, Run, check_run, covers_itself, runs_of
from gateshift.archive.signing import FOLDER, asked_kinds, check, uncovered
from gateshift.errors import InputError, JournalError
from gateshift.migration.guard import Anchor
from gateshift.migration.records import Head, Record, head_path, parse_line, read_head, read_records, split
from gateshift.migration.state import State, step

__all__ = ["Problem", "head_of", "migrations_in", "one_migration", "survey", "unsealed", "verify"]


def migrations_in(path: str | Path) -> list[Path]:
    """Return the migration folders at *path*: itself, or those one level below it."""
    path = Path(path)
    if _is_migration(path):
        # Its name is part of what is checked, and "." has none.
        return [path if path.name not in {"", ".."} else path.resolve()]
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_dir() and _is_migration(p))


def one_migration(path: Path) -> Path:
    """Return *path* when it is a migration's folder; raises :class:`~gateshift.errors.InputError` else."""
    found = _found(path)
    if not _is_migration(path):
        names = ", ".join(p.name for p in found)
        raise InputError(f"{path}: holds migrations and is none", hint=f"name one migration: {names}")
    return found[0]


def _is_migration(path: Path) -> bool:
    journal = path / "journal.jsonl"
    if any(os.path.lexists(p) for p in (journal, head_path(journal))):
        # A run has its own part of the journal in its folder, and the migration is the folder above.
        return not os.path.lexists(path.absolute().parent / journal.name)
    # Both may have been deleted; a run that was sealed with a journal still says that there was one.
    return any("journal" in (read_manifest(p.parent) or {}) for p in path.glob("*/manifest.json"))


def _found(path: str | Path) -> list[Path]:
    found = migrations_in(path)
    if not found:
        raise InputError(
            f"{path}: no archive here",
            hint="name a migration's folder (outputs/<migration>), or outputs itself",
        )
    return found


def head_of(migration: Path) -> Head:
    """Return the head a ticket should note: number and hash of the newest record."""
    records = read_records(migration / "journal.jsonl")
    return Head(records[-1].seq, records[-1].hash) if records else Head()


def verify(
    path: str | Path,
    *,
    head: str = "",
    anchors: Mapping[str, Anchor] | None = None,
    signers: Path | None = None,
    key: str = "",
    ask_kms: bool = False,
    kms_key: str = "",
) -> list[Problem]:
    """Check the migration, or every migration, at *path*; an empty list means nothing was changed.

    *head* is the hash of any record noted earlier elsewhere: it must still be in the journal. *anchors* are
    the heads the cluster keeps, by migration. *signers*, *key*, *ask_kms* and *kms_key* are
    for :func:`gateshift.archive.signing.check`. Raises :class:`~gateshift.errors.InputError` when there is no
    archive, or a file that may not be read.
    """
    found = survey(
        path, head=head, anchors=anchors, signers=signers, key=key, ask_kms=ask_kms, kms_key=kms_key
    )
    return [problem for problem in found if not problem.note]


def survey(
    path: str | Path,
    *,
    head: str = "",
    anchors: Mapping[str, Anchor] | None = None,
    signers: Path | None = None,
    key: str = "",
    ask_kms: bool = False,
    kms_key: str = "",
) -> list[Problem]:
    """Check as :func:`verify` does; the notes say what no seal covers, as while a run is under way."""
    found = _found(path)
    kinds = asked_kinds(signers=signers, key=key, ask_kms=ask_kms)
    problems: list[Problem] = []
    try:
        for migration in found:
            records: list[Record] = []
            problems += _migration(migration, records)
            wrong = check(migration, records, signers=signers, key=key, ask_kms=ask_kms, kms_key=kms_key)
            problems += [Problem(path, what) for path, what in wrong]
            if open_end := uncovered(records, kinds):
                problems.append(Problem(migration, open_end, note=True))
            if anchors is not None:
                problems += _anchor(migration, records, anchors)
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: may not be read, so the archive cannot be verified",
            hint="verify as a user who may read every file of the archive",
        ) from None
    if head and not any(_has(migration, head) for migration in found):
        problems.append(Problem(Path(path), f"no record has the hash {head}: the archive was replaced"))
    return problems


def unsealed(migration: Path) -> list[str]:
    """Return runs of *migration* without a seal, or begun again after it."""
    runs = runs_of(read_records(migration / "journal.jsonl"))
    return [name for name, run in runs.items() if run.unsealed]


# -- one migration ---------------------------------------------------------------------------------------


def _has(migration: Path, head: str) -> bool:
    try:
        return any(r.hash == head for r in read_records(migration / "journal.jsonl"))
    except JournalError:
        return False


def _anchor(migration: Path, records: list[Record], anchors: Mapping[str, Anchor]) -> Iterator[Problem]:
    anchor = anchors.get(migration.name)
    if anchor is None:
        yield Problem(migration, "the cluster keeps no head of it: nothing was compared there", note=True)
        return
    if anchor.seq > len(records) or records[anchor.seq - 1].hash != anchor.hash:
        yield Problem(migration, f"the cluster knows another record {anchor.seq}: the archive was replaced")


def _migration(migration: Path, records: list[Record]) -> Iterator[Problem]:
    """Check everything but signatures and anchor; fills *records* as far as they are whole."""
    journal = migration / "journal.jsonl"
    yield from _journal(journal, records)
    runs = runs_of(records)
    yield from _other_name(migration, runs)
    for name, run in runs.items():
        yield from check_run(migration / name, run, records)
    yield from _reports(migration, records)
    yield from _strangers(migration, runs, records)
    yield from _approvals(migration, runs, records)


def _journal(path: Path, records: list[Record]) -> Iterator[Problem]:
    """Check the chain, the head and every transition; fills *records* as far as they are whole."""
    if os.path.lexists(path) and not is_file(path):
        yield Problem(path, "is not a file")
        return
    try:
        raw = path.read_bytes()
    except PermissionError:
        raise
    except OSError as error:
        yield Problem(path, f"cannot be read: {error.strerror}")
        return
    lines, rest = split(raw)
    head, state = Head(), State()
    for number, line in enumerate(lines, 1):
        try:
            record = parse_line(line, head)
        except ValueError as error:
            yield Problem(path, f"record {number}: {error}")
            return
        try:
            state = step(state, record)
        except JournalError as error:
            yield Problem(path, str(error))
            return
        head = Head(record.seq, record.hash)
        records.append(record)
    if rest:
        yield Problem(path, f"record {head.seq + 1} is torn; the next run repairs it")
    yield from _check_head(path, head, records)


def _check_head(path: Path, newest: Head, records: list[Record]) -> Iterator[Problem]:
    beside = head_path(path)
    if not is_file(beside):
        yield Problem(beside, lacking(beside))
        return
    with beside.open("rb"):  # one that may not be read is not a damaged one
        head = read_head(path)
    if head is None:
        yield Problem(beside, "its bytes are not the ones that were written")
    elif head.seq > newest.seq and (named := [r.seq for r in records if r.hash == head.hash]):
        # The number was changed; records that are missing have a hash that is nowhere.
        yield Problem(beside, f"names record {head.seq} with the hash of record {named[0]}")
    elif head.seq > newest.seq:
        yield Problem(path, f"records {newest.seq + 1} to {head.seq} are missing at its end")
    elif head.seq and records[head.seq - 1].hash != head.hash:
        yield Problem(beside, f"names another record {head.seq} than the journal has")
    elif head.seq < newest.seq - 1:
        # One behind is a death between the two writes; more never happens by itself.
        yield Problem(beside, f"names record {head.seq}, the journal has {newest.seq}")


def _other_name(migration: Path, runs: Mapping[str, Run]) -> Iterator[Problem]:
    """Say it when a sealed run is of a migration called otherwise: what is kept elsewhere is kept by name."""
    manifests = [read_manifest(migration / run.name) or {} for run in runs.values() if run.seals]
    for name in sorted({str(m["migration"]) for m in manifests if "migration" in m} - {migration.name}):
        yield Problem(migration, f"is the archive of migration {name} under another name")


def _reports(migration: Path, records: list[Record]) -> Iterator[Problem]:
    newest = next((r for r in reversed(records) if r.kind == "report.done"), None)
    listed = dict((newest.data.get("files") or {}) if newest else {})
    for name, digest in sorted(listed.items()):
        path = migration / name
        if not is_file(path):
            yield Problem(path, lacking(path))
        elif file_digest(path) != digest:
            yield Problem(path, "was changed after it was written")
    pages = migration / "html"
    for path in [migration / "report.html", *(entries(pages) if pages.is_dir() else ())]:
        if not os.path.lexists(path) or str(path.relative_to(migration)) in listed:
            continue
        if leftover(path):
            yield Problem(path, "was left by a write that was cut short", note=True)
        else:
            yield Problem(path, "is not one that the journal knows")


_FILES = {"journal.jsonl", "journal.head", "report.html"}
_FOLDERS = {"html", APPROVALS, FOLDER}
_BESIDE = {DESK, LOCK, NOTIFICATIONS}


def _strangers(migration: Path, runs: Mapping[str, Run], records: list[Record]) -> Iterator[Problem]:
    """Name what lies in the folder and belongs to no run, and what has not the form of its place."""
    for path in sorted(migration.iterdir()):
        if path.name in _FILES:
            continue  # each was looked at by itself
        if path.name in _FOLDERS | set(runs) and is_folder(path):
            continue
        if path.name in _BESIDE:
            if misshapen(path):
                yield Problem(path, "is not what gateshift writes there")
        elif path.name == HEAD_NOTE and is_file(path):
            if path.read_bytes() not in {head_note(migration.name, r.hash) for r in records}:
                yield Problem(path, "is not the note of an export of this journal")
        elif leftover(path):
            yield Problem(path, "was left by a write that was cut short", note=True)
        elif is_folder(path):
            yield from _unknown(path)
        else:
            yield Problem(path, "belongs to no run in the journal")


def _unknown(folder: Path) -> Iterator[Problem]:
    """Say what a folder is that the journal does not know: of a run that has not opened it, or nobody's."""
    files = [p for p in entries(folder) if not leftover(p)]
    if not files:
        return  # a run that died before it wrote anything
    if all(p.parent == folder and executing(p) for p in files):
        what = "has begun and is not in the journal: it is under way, or died; the next run settles it"
        yield Problem(folder, what, note=True)
    elif covers_itself(folder):
        what = "ended before it was in the journal and is not sealed yet: the next run seals it"
        yield Problem(folder, what, note=True)
    else:
        yield Problem(folder, "belongs to no run in the journal")


def _approvals(migration: Path, runs: Mapping[str, Run], records: list[Record]) -> Iterator[Problem]:
    """Name what is no approval of a plan that was shown; one that no seal covers yet is a note."""
    folder = migration / APPROVALS
    if not folder.is_dir():
        return
    shown = {str(r.data.get("digest")) for r in records if r.kind in {"plan.approved", "plan.shown"}}
    shown |= {str(r.data["plan"].get("digest")) for r in records if r.kind == "plan.shown"}
    sealed = {name for run in runs.values() if run.seals for name in _shared(migration / run.name)}
    for path in entries(folder):
        if leftover(path):
            yield Problem(path, "was left by a write that was cut short", note=True)
        elif path.parent != folder or path.is_symlink() or not path.is_file() or not approval_of(path):
            yield Problem(path, "is no approval")
        elif approval_of(path) not in shown:
            yield Problem(path, "approves a plan that was never shown")
        elif str(path.relative_to(migration)) not in sealed:
            yield Problem(path, "is an approval that no seal covers yet: the next run's does", note=True)


def _shared(folder: Path) -> set[str]:
    shared = (read_manifest(folder) or {}).get("shared")
    return set(shared) if isinstance(shared, dict) else set()
