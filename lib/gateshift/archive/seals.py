"""The seals of a run: what each covers, and whether the run's folder still is as it was sealed.

A run is sealed when it ends. One that is run again in the same folder (a second attempt) is sealed again
then; the manifest that is replaced is kept beside it (``manifest-1.json``), so what it covered stays covered:
an executed notebook never changes any more, and the run's other files only by an attempt on record.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateshift.archive.excerpt import JOURNAL, judged
from gateshift.archive.files import file_digest
from gateshift.archive.layout import entries, executing, is_file, lacking, leftover
from gateshift.archive.manifest import KEPT, MANIFEST, read_manifest
from gateshift.migration.records import Record

__all__ = ["Problem", "Run", "check_run", "covers_itself", "runs_of"]

_NO_FILE = "no file"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written; a *note* is one that nobody need have changed."""

    path: Path
    what: str
    note: bool = False

    def __str__(self) -> str:
        # A name may be made to look like a line of its own, or be no text at all.
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(self.path))
        return f"{name}: {self.what}"


@dataclass(frozen=True, slots=True)
class Run:
    """What the journal knows of one run. *seals* and *started* are records, in order."""

    name: str
    seals: tuple[Record, ...]
    started: tuple[Record, ...]
    end: Record | None
    """Of its newest end; None before the first."""

    @property
    def ended(self) -> int:
        """Number of the record of its newest end; 0 before the first."""
        return self.end.seq if self.end else 0

    @property
    def sealed(self) -> int:
        """Number of the record of its newest seal; 0 before the first."""
        return self.seals[-1].seq if self.seals else 0

    @property
    def unsealed(self) -> str:
        """Why its files, or the newest of them, have no seal yet, in words; empty when they have one."""
        if self.ended > self.sealed:
            return "ended and is not sealed yet: the next run seals it"
        if self.opened_after(self.sealed):
            return "has no seal: it is under way, or died; the next run settles it"
        return ""

    def opened_after(self, seq: int, before: float = float("inf")) -> bool:
        """Return whether it was begun between the records *seq* and *before*."""
        return any(seq < r.seq < before for r in self.started)

    def is_attempt(self, name: str, listed: Mapping[str, Any]) -> bool:
        """Return whether *name* is the executed copy of an attempt at one of its notebooks."""
        stems = {str(r.data["notebook"]) for r in self.started}
        stems |= {Path(n).stem.partition("-attempt")[0] for n in listed if n.endswith(".ipynb")}
        return any(re.fullmatch(rf"{re.escape(stem)}(-attempt\d+)?\.ipynb", name) for stem in stems)


def runs_of(records: Sequence[Record]) -> dict[str, Run]:
    """Return the runs that were begun or sealed, by name."""
    seals: dict[str, list[Record]] = {}
    started: dict[str, list[Record]] = {}
    ended: dict[str, Record] = {}
    for record in records:
        if record.kind == "archive.sealed":
            seals.setdefault(str(record.data["run"]), []).append(record)
        elif record.kind == "run.started":
            started.setdefault(record.run, []).append(record)
        elif record.kind == "run.ended":
            ended[str(record.data.get("run", record.run))] = record
    names = {*seals, *started, *ended}
    return {n: Run(n, (*seals.get(n, ()),), (*started.get(n, ()),), ended.get(n)) for n in sorted(names)}


def covers_itself(folder: Path) -> bool:
    """Return whether *folder* has a manifest that no journal knows (the run failed before there was one)."""
    manifest = read_manifest(folder)
    if manifest is None or "journal" in manifest:
        return False
    try:
        listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError):
        return False  # somebody else's
    files = [p for p in entries(folder) if p != folder / MANIFEST and not leftover(p) and not executing(p)]
    # All of them: what is beside would be sealed with it by the next run.
    return listed == {str(p.relative_to(folder)): _digest(p) for p in files}


def check_run(folder: Path, run: Run, records: Sequence[Record]) -> Iterator[Problem]:
    """Compare *folder* with its seals."""
    if run.unsealed:
        yield Problem(folder, run.unsealed, note=True)
    if not run.seals:
        return
    if not folder.is_dir():
        yield Problem(folder, "the whole run is missing")
        return
    known = _manifests(folder)
    path, wanted = folder / MANIFEST, str(run.seals[-1].data["manifest"])
    if not is_file(path):
        yield Problem(path, lacking(path))
        return
    yield from _earlier(folder, run, known)
    if wanted not in known:
        yield Problem(path, "was changed after the journal recorded its hash")
        # What it lists is still compared, for whatever else was changed; but it may be any nonsense now.
        with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError, OSError):
            yield from _sealed(folder, run, read_manifest(folder) or {"files": None}, records)
        return
    if known[wanted].name != MANIFEST and not run.opened_after(run.sealed):
        yield Problem(path, "was changed after the journal recorded its hash")
    yield from _sealed(folder, run, _read(known[wanted]), records)


def _manifests(folder: Path) -> dict[str, Path]:
    """Return the run's manifests by their SHA-256, the replaced ones included."""
    found = [p for p in sorted(folder.glob("manifest*.json")) if p.name == MANIFEST or KEPT.fullmatch(p.name)]
    return {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in found if is_file(p)}


def _read(path: Path) -> Mapping[str, Any]:
    return read_manifest(path.parent, path.name) or {}


def _sealed(
    folder: Path, run: Run, manifest: Mapping[str, Any], records: Sequence[Record]
) -> Iterator[Problem]:
    """Compare a run's files, and its place in the journal, with what its manifest says."""
    if manifest["files"] is None:
        return
    listed = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
    there: dict[str, str] = {}
    for path in entries(folder):
        name = str(path.relative_to(folder))
        if leftover(path):
            yield Problem(path, "was left by a write that was cut short", note=True)
        elif name != MANIFEST:
            there[name] = _digest(path)

    def may_be_new(name: str) -> bool:
        return run.is_attempt(name, listed) and executing(folder / name)

    anchor = manifest.get("journal") or {}
    seq = anchor.get("seq", 0)
    own = listed.pop(JOURNAL, None), there.pop(JOURNAL, None)
    what, note = judged(records, run.name, seq, *own)
    if what:
        yield Problem(folder / JOURNAL, what, note=note)
    opened = run.opened_after(run.sealed)
    for name, what, note in _differences(listed, there, opened, may_be_new):
        yield Problem(folder / name, what, note=note)
    for name, digest in sorted((manifest.get("shared") or {}).items()):
        path = folder.parent / name
        if not path.is_file():
            yield Problem(path, "is missing")
        elif file_digest(path) != digest:
            yield Problem(path, "was changed after it was sealed")
    if seq and (seq > len(records) or records[seq - 1].hash != anchor.get("hash")):
        yield Problem(folder / MANIFEST, f"names a record {seq} that the journal does not have")


def _digest(path: Path) -> str:
    try:
        return file_digest(path) if path.is_file() and not path.is_symlink() else _NO_FILE
    except PermissionError:
        raise
    except OSError as error:
        return f"{_NO_FILE}: {error.strerror}"


def _differences(
    old: Mapping[str, str], new: Mapping[str, str], opened: bool, may_be_new: Callable[[str], bool]
) -> Iterator[tuple[str, str, bool]]:
    """Give name, sentence and whether it is a mere note. *opened*: an attempt began after the seal."""
    for name in sorted(old):
        if name not in new:
            yield name, "is missing", False
        elif new[name] != old[name]:
            by_attempt = opened and not name.endswith(".ipynb") and not KEPT.fullmatch(name)
            what = (
                "is of an attempt that is not sealed yet" if by_attempt else "was changed after it was sealed"
            )
            yield name, what, by_attempt
    for name in sorted(set(new) - set(old)):
        if new[name].startswith(_NO_FILE):
            yield name, "is not a file", False
        elif opened or may_be_new(name):
            yield name, "is of an attempt that is not sealed yet", True
        else:
            yield name, "was added after the run was sealed", False


def _earlier(folder: Path, run: Run, known: Mapping[str, Path]) -> Iterator[Problem]:
    """Compare each seal with the one before it: only an attempt on record changes what was sealed."""
    for before, after in zip(run.seals, run.seals[1:], strict=False):
        digest, later = str(before.data["manifest"]), str(after.data["manifest"])
        if digest == later:
            continue
        where = f"between its seals in the records {before.seq} and {after.seq}"
        if digest not in known:
            # Versions before this rule replaced the manifest and said nothing about the one before.
            told = "earlier" in after.data
            what = (
                "the manifest of its first seal is missing" if told else "what the first covered is not known"
            )
            yield Problem(folder / MANIFEST, f"was replaced {where}: {what}", note=not told)
            continue
        if later not in known:
            continue  # named as changed, or as missing, by itself
        old, new = (
            {n: str(e["sha256"]) for n, e in (_read(known[d]).get("files") or {}).items() if n != JOURNAL}
            for d in (digest, later)
        )
        opened = run.opened_after(before.seq, after.seq)

        def may_be_new(name: str, old: Mapping[str, str] = old) -> bool:
            return run.is_attempt(name, old) or bool(KEPT.fullmatch(name))

        for name, what, note in _differences(old, new, opened, may_be_new):
            if not note:
                yield Problem(folder / name, f"{what}, {where}")
