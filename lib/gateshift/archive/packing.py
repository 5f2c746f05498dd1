"""The pack for a ticket: a migration's evidence as one file, with the head of its journal."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from gateshift.archive.audit import head_of, one_migration, verify
from gateshift.archive.layout import HEAD_NOTE, evidence, head_note
from gateshift.errors import InputError, JournalError

__all__ = ["export"]


def export(migration: Path, target: Path) -> Path:
    """Pack the evidence of *migration* into *target* (.tar.gz), with its head as the first member.

    Unpacked, it verifies as it stands. Raises :class:`~gateshift.errors.InputError` when *target* cannot be
    written or lies in the archive, :class:`~gateshift.errors.JournalError` when the archive was changed.
    """
    migration = one_migration(migration)
    if target.is_dir() or not target.parent.is_dir() or migration.resolve() in target.resolve().parents:
        raise InputError(
            f"{target}: the pack cannot be written there",
            hint="name a file in a folder that is there, outside of the archive",
        )
    problems = verify(migration)
    if problems:
        raise JournalError(f"not exported: {problems[0]}", hint="`gateshift audit verify` lists all")
    note = head_note(migration.name, head_of(migration).hash)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gateshift-") as folder:
            packed = Path(folder) / target.name
            with tarfile.open(packed, "w:gz") as pack:
                about = tarfile.TarInfo(f"{migration.name}/{HEAD_NOTE}")
                about.size = len(note)
                pack.addfile(about, io.BytesIO(note))
                for file in evidence(migration):
                    pack.add(file, arcname=f"{migration.name}/{file.relative_to(migration)}")
            packed.replace(target)
    except OSError as error:
        raise InputError(
            f"{target}: the pack cannot be written: {error.strerror}",
            hint="name a file in a folder that can be written, with room for the archive",
        ) from None
    return target
