"""Working copies of the notebooks, and the executed copy that goes into the archive."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateshift.archive.files import atomic_write
from gateshift.archive.layout import DESK

__all__ = ["DESK", "keep", "lay", "run_of"]

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


def keep(model: Mapping[str, Any], os_path: str, contents_manager: Any = None, **_: Any) -> None:
    """JupyterLab's hook after a save: the executed copy goes into its run's folder, until that is sealed."""
    del contents_manager
    path = Path(os_path)
    if model.get("type") != "notebook" or path.parent.name != DESK:
        return
    try:
        text = path.read_text(encoding="utf-8")
        run = run_of(json.loads(text))
        folder = path.parent.parent / run
        if run and folder.is_dir() and not (folder / "manifest.json").exists():
            atomic_write(folder / path.name, text)
    except (OSError, ValueError):
        return  # the desk's own copy is saved; the archive's follows with the next save
