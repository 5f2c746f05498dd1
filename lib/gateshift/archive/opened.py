"""Which run a kernel opened: it says so in a file of the engine's scratch folder, by hand on the desk.

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
from gateshift.archive.layout import DESK

__all__ = ["OPENED", "Opened", "announce", "on_desk", "opened_in"]

OPENED = "GATESHIFT_OPENED"
"""Names the file in which a kernel says which run it opened."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The run that a kernel opened: its folder, its notebook's name, and ``archive`` of its params."""

    folder: Path
    notebook: str
    archive: Mapping[str, Any] = field(default_factory=dict)


def announce(opened: Opened) -> None:
    """Tell the engine that runs this kernel, or JupyterLab's server, which run was opened."""
    place = os.environ.get(OPENED) or on_desk(opened.folder.parent, opened.notebook)
    if Path(place).parent.is_dir():
        told = {"folder": str(opened.folder.absolute()), "notebook": opened.notebook}
        atomic_write(place, json.dumps({**told, "archive": dict(opened.archive)}), mode=0o600)


def on_desk(migration: Path, notebook: str) -> Path:
    """Return where a run by hand says so: one file for each notebook on the desk of *migration*."""
    return migration / DESK / f".{notebook}.opened.json"


def opened_in(place: Path) -> Opened | None:
    """Return what a kernel announced at *place*; None when it opened no run."""
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        return Opened(Path(told["folder"]), str(told["notebook"]), dict(told["archive"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
