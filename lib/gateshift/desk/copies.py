"""Working copies of the notebooks, and the executed copy that goes into the archive."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write
from gateshift.archive.layout import DESK
from gateshift.archive.opened import Opened, on_desk, opened_in
from gateshift.archive.sealing import seal_ended
from gateshift.archive.seals import Run

__all__ = ["DESK", "keep", "lay", "run_of"]

SETTLED = 60.0
"""Seconds after its end by which JupyterLab has saved a notebook that is open."""
_RUN = re.compile(r"\b(\d\d_[a-z]+-\d{8}T\d{6}(?:\d{3})?Z)\b")


def lay(notebooks: Path, migration: Path) -> Path:
    """Put a copy of each notebook on the desk of *migration* and return the desk's folder.

    A copy that is there keeps its outputs and its parameters cell; when the original's other cells have
    changed since (a newer gateshift), the copy is made anew.
    """
    desk = migration / DESK
    desk.mkdir(parents=True, exist_ok=True)
    for original in sorted(notebooks.glob("*.ipynb")):
        copy = desk / original.name
        wanted = original.read_text(encoding="utf-8")
        if not copy.exists() or _code(copy.read_text(encoding="utf-8")) != _code(wanted):
            atomic_write(copy, wanted)
    return desk


def _code(text: str) -> list[str]:
    """Return the sources of the cells a person does not edit; an unreadable copy has none."""
    try:
        cells = json.loads(text)["cells"]
        return [
            "".join(cell["source"])
            for cell in cells
            if "parameters" not in cell.get("metadata", {}).get("tags", [])
        ]
    except (ValueError, KeyError, TypeError):
        return []


def run_of(book: Mapping[str, Any]) -> str:
    """Return the run that an executed notebook shows on its status card; empty when it shows none."""
    for cell in book.get("cells", ()):
        if cell.get("id") != "open":
            continue
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/plain", ""))
            found = _RUN.findall(text)
            if found:
                return str(found[-1])
    return ""


def closed(book: Mapping[str, Any]) -> bool:
    """Return whether an executed notebook shows that its last cell has ended the run."""
    shown = [cell for cell in book.get("cells", ()) if cell.get("id") == "close"]
    return bool(shown and shown[-1].get("outputs"))


def _ready(run: str) -> Callable[[Run], bool]:
    """Return which runs may be sealed: *run*, of which this save shows the end, and what ended earlier.

    The save that shows a run's end follows it by seconds, another notebook's may come in between.
    """
    return lambda one: one.name == run or (one.end is not None and time.time() - one.end.unix > SETTLED)


def keep(model: Mapping[str, Any], os_path: str, contents_manager: Any = None, **_: Any) -> None:
    """JupyterLab's hook after a save: the executed copy goes into its run's folder, until that is sealed.

    Runs that have ended are sealed, signed and copied here, as the command line does it: by hand nobody else
    would before the next command.
    """
    path = Path(os_path)
    if model.get("type") != "notebook" or path.parent.name != DESK:
        return
    try:
        text = path.read_text(encoding="utf-8")
        book = json.loads(text)
        run = run_of(book)
        folder = path.parent.parent / run
        if run and folder.is_dir() and not (folder / "manifest.json").exists():
            atomic_write(folder / path.name, text)
        sealed = seal_ended(path.parent.parent, ready=_ready(run if closed(book) else ""))
    except (OSError, ValueError):
        return  # the desk's own copy is saved; the archive's follows with the next save
    opened = opened_in(on_desk(path.parent.parent, path.stem))
    if opened is not None and opened.folder.name in sealed:
        # Not in the server's own loop: a bucket out of reach would hold up every notebook that is open.
        log = getattr(contents_manager, "log", logging.getLogger(__name__))
        threading.Thread(target=_keep_safe, args=(opened, log), name="gateshift-archive").start()


def _keep_safe(opened: Opened, log: Any) -> None:
    """Sign and copy as the run's params asked; what does not work is tried again by the next command."""
    from gateshift.archive.adoption import keep_as_asked  # noqa: PLC0415 - JupyterLab starts without it

    for warning in keep_as_asked(opened):
        log.warning("archive: %s", warning)
