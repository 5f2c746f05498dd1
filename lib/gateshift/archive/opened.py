"""Which run a kernel opened: it says so in a file of the engine's scratch folder.

Imports little: every kernel has it, also that of a rollback, whose users wait.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write

__all__ = ["OPENED", "Opened", "announce", "opened_in"]

OPENED = "GATESHIFT_OPENED"
"""Names the file in which a kernel says which run it opened."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The run that a kernel opened: its folder, its notebook's name, and ``archive`` of its params."""

    folder: Path
    notebook: str
    archive: Mapping[str, Any] = field(default_factory=dict)


def announce(opened: Opened) -> None:
    """Tell the engine that runs this kernel, if one does, which run was opened."""
    place = os.environ.get(OPENED)
    if place and Path(place).parent.is_dir():
        told = {"folder": str(opened.folder.absolute()), "notebook": opened.notebook}
        atomic_write(place, json.dumps({**told, "archive": dict(opened.archive)}), mode=0o600)


def opened_in(place: Path) -> Opened | None:
    """Return what a kernel announced at *place*; None when it opened no run."""
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        return Opened(Path(told["folder"]), str(told["notebook"]), dict(told["archive"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
