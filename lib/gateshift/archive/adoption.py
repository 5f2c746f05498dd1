"""A run of plain papermill joins its archive: executed copy, end on record, seal, signature, copy elsewhere.

papermill knows the output that it was told, and nothing of migrations. The kernel knows its run: it says so
in a file of the engine's scratch folder, which the engine reads when the kernel has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateshift.archive.copying import keep_safe
from gateshift.archive.files import atomic_write, free_name
from gateshift.archive.outcome import Ending, ending_record
from gateshift.archive.sealing import conclude

__all__ = ["OPENED", "Opened", "adopt", "announce", "opened_in"]

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


def adopt(opened: Opened, output: Path | None, text: str, ending: Ending) -> tuple[str, ...]:
    """Put the executed copy *text* into its run's folder and end, seal, sign and copy as its params ask.

    *output* is where papermill was told to write it: a copy that is in the folder already is not doubled.
    Returns what did not work; the run's own outcome stands.
    """
    from gateshift.params.model import ArchiveParams  # noqa: PLC0415 - only plain papermill waits for it

    if not opened.folder.is_dir():
        return (f"{opened.folder} is not there any more: the run is not archived",)
    if output is None or output.parent != opened.folder:
        try:
            atomic_write(free_name(opened.folder / f"{opened.notebook}.ipynb"), text)
        except OSError as error:
            return (f"the executed copy could not be archived: {error}",)
    book = opened.folder.parent / "journal.jsonl"
    record = ending_record(ending.exit_code, ending.error)
    warnings = conclude(book, opened.folder, opened.notebook, record)
    return (*warnings, *keep_safe(opened.folder.parent, ArchiveParams.model_validate(opened.archive)))
