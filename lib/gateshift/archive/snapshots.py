"""The objects of the cluster as they were before an apply, kept while it goes on: a line for each step.

The first line names the cluster; then comes, for each change, the object as it was (written before the
change) and what became of it (``after``, written when the API server answered). So a process that dies
leaves its way back, and a long apply does not write all of it again at each step. Archives of before have the
whole in one document; both are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write

__all__ = ["SnapshotFile", "read_snapshot"]


class SnapshotFile:
    """A snapshot being written at *path*; what stood there is replaced by its first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = False

    def write(self, part: Mapping[str, Any]) -> None:
        """Put one line on the disk. Raises OSError when the disk does not take it."""
        line = json.dumps(part, default=str) + "\n"
        if not self._begun:
            atomic_write(self._path, line)
            self._begun = True
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fdatasync(file.fileno())


def read_snapshot(path: Path) -> dict[str, Any]:
    """Return a snapshot with all its ``objects``, from lines or from one document.

    A last line that is torn is left out: the change after it was not begun. Raises OSError or ValueError
    when it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if lines and lines[0].strip() == "{":  # one document, indented
        return dict(json.loads(text))
    parts = [json.loads(line) for line in lines[:-1]]
    try:
        parts += [json.loads(line) for line in lines[-1:]]
    except ValueError:
        if not parts or text.endswith("\n"):
            raise
    if not parts:
        raise ValueError("it is empty")
    snapshot = {"objects": [], **parts[0]}
    for part in parts[1:]:
        if "name" in part:
            snapshot["objects"].append(part)
        else:
            snapshot["objects"][-1] |= part
    return snapshot
