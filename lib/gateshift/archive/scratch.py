"""A run's temporary folder: its kernel's sockets, and whatever the kernel's libraries write for a while.

The Kubernetes client keeps a kubeconfig's certificates and keys in temporary files and removes them at
exit. A kernel that is killed does not get there, so the folder is the engine's; and an engine that is killed
leaves it to the next one on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from gateshift.migration.identity import Process

__all__ = ["scratch_folder"]

_PREFIX = "gateshift-run-"
_OWNER = "owner"


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder that only this user can read, and remove those of engines that are surely dead."""
    _sweep()
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
    (Path(folder.name) / _OWNER).write_text(Process.current().text(), encoding="utf-8")
    return folder


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            about = folder.lstat()
            if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode):
                continue
            owner = Process.parse((folder / _OWNER).read_text(encoding="utf-8"))
            if owner is not None and owner.surely_dead:
                shutil.rmtree(folder)
