"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

__all__ = ["atomic_write", "file_digest", "free_name"]


def atomic_write(path: str | Path, data: str | bytes, *, mode: int = 0o640) -> None:
    """Replace *path* by *data* at once; a reader, or a crash, sees the old or the new file, never a half.

    Raises OSError when the disk does not take it; the old file is then untouched.
    """
    path = Path(path)
    # What is no text (a file name's odd bytes) is escaped as JSON does: no character costs a notebook.
    raw = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_name(path: Path) -> Path:
    """Return *path*, or the next attempt's name (``name-attempt2.ipynb``) when it is taken."""
    attempt, free = 1, path
    while free.exists():
        attempt += 1
        free = path.with_name(f"{path.stem}-attempt{attempt}{path.suffix}")
    return free
