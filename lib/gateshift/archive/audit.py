"""Find every change made to an archive after it was written, and name it.

What covers what: each journal record has the hash of the one before, ``journal.head`` has the newest, a
run's manifest has the hash of each of its files, and the journal has the hash of each manifest and report.
Somebody who rewrites all of it consistently is found by what they cannot rewrite: a signature, the head that
the cluster keeps (``--cluster``), a head noted in a ticket (``--head``), or the copy in S3.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateshift.archive.files import file_digest
from gateshift.archive.manifest import MANIFEST, files_of, read_manifest, shared_files
from gateshift.archive.signing import FOLDER, check
from gateshift.errors import InputError, JournalError
from gateshift.migration.guard import Anchor
from gateshift.migration.records import Head, Record, head_path, parse_line, read_head, read_records, split
from gateshift.migration.state import State, step

__all__ = ["Problem", "export", "head_of", "migrations_in", "unsealed", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def migrations_in(path: str | Path) -> list[Path]:
    """Return the migration folders at *path*: itself, or those one level below it."""
    path = Path(path)
    if (path / "journal.jsonl").exists() or head_path(path / "journal.jsonl").exists():
        return [path]
    if not path.is_dir():
        return []
    return sorted(
        p.parent
        for p in {
            *path.glob("*/journal.jsonl"),
            *(q.with_suffix(".jsonl") for q in path.glob("*/journal.head")),
        }
    )


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
) -> list[Problem]:
    """Check the migration, or every migration, at *path*; an empty list means nothing was changed.

    *head* is the hash of any record noted earlier elsewhere: it must still be in the journal. *anchors* are
    the heads the cluster keeps, by migration. *signers*, *key* and *ask_kms* are for
    :func:`gateshift.archive.signing.check`.
    """
    found = migrations_in(path)
    if not found:
        raise InputError(
            f"{path}: no archive here",
            hint="name a migration's folder (outputs/<migration>), or outputs itself",
        )
    problems: list[Problem] = []
    for migration in found:
        records: list[Record] = []
        problems += _migration(migration, records)
        wrong = check(migration, records, signers=signers, key=key, ask_kms=ask_kms)
        problems += [Problem(path, what) for path, what in wrong]
        problems += _anchor(migration, records, anchors or {})
    if head and not any(_has(migration, head) for migration in found):
        problems.append(Problem(Path(path), f"no record has the hash {head}: the archive was replaced"))
    return problems


def unsealed(migration: Path) -> list[str]:
    """Return runs of *migration* without a seal: under way, or dead and not yet settled by a rerun."""
    records = read_records(migration / "journal.jsonl")
    sealed = {str(r.data["run"]) for r in records if r.kind == "archive.sealed"}
    started = {r.run for r in records if r.kind == "run.started"}
    return sorted(started - sealed)


def export(migration: Path, target: Path) -> Path:
    """Pack *migration* for a ticket, with its head hash as the first member."""
    problems = verify(migration)
    if problems:
        raise JournalError(f"not exported: {problems[0]}", hint="`gateshift audit verify` lists all")
    note = json.dumps({"migration": migration.name, "head": head_of(migration).hash}) + "\n"
    with tarfile.open(target, "w:gz") as pack:
        head = target.with_suffix(".head.part")
        head.write_text(note)
        pack.add(head, arcname=f"{migration.name}/HEAD.json")
        head.unlink()
        for file in sorted(p for p in migration.rglob("*") if p.is_file() and p.name != "lock"):
            pack.add(file, arcname=f"{migration.name}/{file.relative_to(migration)}")
    return target


# -- one migration ---------------------------------------------------------------------------------------


def _has(migration: Path, head: str) -> bool:
    try:
        return any(r.hash == head for r in read_records(migration / "journal.jsonl"))
    except JournalError:
        return False


def _anchor(migration: Path, records: list[Record], anchors: Mapping[str, Anchor]) -> Iterator[Problem]:
    anchor = anchors.get(migration.name)
    if anchor is None:
        return
    if anchor.seq > len(records) or records[anchor.seq - 1].hash != anchor.hash:
        yield Problem(migration, f"the cluster knows another record {anchor.seq}: the archive was replaced")


def _migration(migration: Path, records: list[Record]) -> Iterator[Problem]:
    """Check everything but signatures and anchor; fills *records* as far as they are whole."""
    journal = migration / "journal.jsonl"
    yield from _journal(journal, records)
    seals = {str(r.data["run"]): str(r.data["manifest"]) for r in records if r.kind == "archive.sealed"}
    for run, digest in sorted(seals.items()):
        yield from _run(migration / run, digest, records)
    yield from _reports(migration, records)
    yield from _strangers(migration, {r.run for r in records} | set(seals), records)


def _journal(path: Path, records: list[Record]) -> Iterator[Problem]:
    """Check the chain, the head and every transition; fills *records* as far as they are whole."""
    try:
        raw = path.read_bytes()
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
    if not beside.exists():
        yield Problem(beside, "is missing")
        return
    head = read_head(path)
    if head is None:
        yield Problem(beside, "its bytes are not the ones that were written")
    elif head.seq > newest.seq:
        yield Problem(path, f"records {newest.seq + 1} to {head.seq} are missing at its end")
    elif head.seq and records[head.seq - 1].hash != head.hash:
        yield Problem(beside, f"names another record {head.seq} than the journal has")
    elif head.seq < newest.seq - 1:
        # One behind is a death between the two writes; more never happens by itself.
        yield Problem(beside, f"names record {head.seq}, the journal has {newest.seq}")


def _run(folder: Path, digest: str, records: list[Record]) -> Iterator[Problem]:
    manifest_path = folder / MANIFEST
    if not folder.is_dir():
        yield Problem(folder, "the whole run is missing")
        return
    try:
        actual = hashlib.sha256(manifest_path.read_bytes()).hexdigest()
    except OSError:
        yield Problem(manifest_path, "is missing")
        return
    manifest = read_manifest(folder)
    if actual == digest:
        yield from _listed(folder, manifest or {}, records)
        return
    yield Problem(manifest_path, "was changed after the journal recorded its hash")
    if manifest is None:
        return
    # What it lists is still compared, for whatever else was changed; but it may be any nonsense now.
    with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError, OSError):
        yield from _listed(folder, manifest, records)


def _listed(folder: Path, manifest: Mapping[str, Any], records: list[Record]) -> Iterator[Problem]:
    """Compare a run's files, and its place in the journal, with what its manifest says."""
    manifest_path = folder / MANIFEST
    yield from _files(folder, manifest)
    anchor = manifest.get("journal") or {}
    seq = anchor.get("seq", 0)
    if seq and (seq > len(records) or records[seq - 1].hash != anchor.get("hash")):
        yield Problem(manifest_path, f"names a record {seq} that the journal does not have")


def _files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    listed: Mapping[str, Any] = manifest.get("files") or {}
    there = {str(p.relative_to(folder)) for p in files_of(folder)}
    for name in sorted(listed):
        if name not in there:
            yield Problem(folder / name, "is missing")
        elif file_digest(folder / name) != listed[name]["sha256"]:
            yield Problem(folder / name, "was changed after it was sealed")
    for name in sorted(there - set(listed)):
        yield Problem(folder / name, "was added after the run was sealed")
    for name, digest in sorted((manifest.get("shared") or {}).items()):
        path = folder.parent / name
        if not path.is_file():
            yield Problem(path, "is missing")
        elif file_digest(path) != digest:
            yield Problem(path, "was changed after it was sealed")


def _reports(migration: Path, records: list[Record]) -> Iterator[Problem]:
    newest = next((r for r in reversed(records) if r.kind == "report.done"), None)
    listed = dict((newest.data.get("files") or {}) if newest else {})
    for name, digest in sorted(listed.items()):
        path = migration / name
        if not path.is_file():
            yield Problem(path, "is missing")
        elif file_digest(path) != digest:
            yield Problem(path, "was changed after it was written")
    for path in [migration / "report.html", *sorted((migration / "html").glob("*"))]:
        if path.is_file() and str(path.relative_to(migration)) not in listed:
            yield Problem(path, "is not one that the journal knows")


def _under_way(folder: Path) -> bool:
    """Return whether *folder* is a run that has begun and not yet opened the journal."""
    for path in folder.glob("*.ipynb"):
        if '"outcome": "running"' in path.read_text(encoding="utf-8", errors="replace"):
            return True
    return False


_OWN = {"journal.jsonl", "journal.head", "lock", "report.html", "html", "approvals", FOLDER}


def _strangers(migration: Path, runs: set[str], records: list[Record]) -> Iterator[Problem]:
    """Name what lies in the folder and belongs to no run; approvals are covered by the next seal."""
    for path in sorted(migration.iterdir()):
        known = path.name in _OWN or path.name in runs or path.name.endswith(".part")
        if path.is_dir() and not files_of(path):
            continue  # a run that died before it wrote anything
        if not known and not _under_way(path):
            yield Problem(path, "belongs to no run in the journal")
    approved = {str(r.data.get("digest")) for r in records if r.kind in {"plan.approved", "plan.shown"}}
    approved |= {str(r.data["plan"].get("digest")) for r in records if r.kind == "plan.shown"}
    for path in shared_files(migration):
        if path.stem.partition("-")[0] not in approved:
            yield Problem(path, "approves a plan that was never shown")
