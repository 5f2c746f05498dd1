"""The executed notebook on the disk: true cell statuses, redacted, and whole at every moment."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from papermill.engines import NotebookExecutionManager
from papermill.iorw import papermill_io

from gateshift.archive.files import atomic_write
from gateshift.archive.io import SCHEME
from gateshift.archive.outcome import CellStatus, Ending, NotSaved, outcome_word
from gateshift.archive.redact import Redactor
from gateshift.migration.identity import Process

__all__ = ["Manager", "clean_notebook", "join_streams", "register_atomic_output"]

_MARKER = "papermill-error-cell-tag"
"""papermill removes cells with this tag when the copy is run again."""

_ENOUGH = 65536
"""Characters of one stream output that are joined; what ends with a line there needs no more behind it."""

_log = logging.getLogger("papermill")


class _AtomicHandler:
    """papermill's writer for one output path. papermill writes the finished notebook once more itself."""

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self._path, self._redactor = path, redactor

    def read(self, path: str) -> str:
        del path
        return self._path.read_text(encoding="utf-8")

    def write(self, text: str, path: str) -> None:
        del path
        atomic_write(self._path, text)

    def listdir(self, path: str) -> list[str]:
        del path
        return [str(p) for p in self._path.parent.iterdir()]

    def pretty_path(self, path: str) -> str:
        return path


def register_atomic_output(output_path: str | None, redactor: Redactor) -> Path | None:
    """Have every write of papermill to *output_path* go through an atomic one; None for remote outputs."""
    if not output_path or ("://" in output_path and not output_path.startswith(SCHEME)):
        return None
    local = papermill_io.get_handler("local")
    # papermill may have changed the working folder for the kernel; the output is relative to the first.
    folder = local.cwd(None)
    local.cwd(folder)
    path = Path(folder or ".", output_path.removeprefix(SCHEME)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    papermill_io.register(output_path, _AtomicHandler(path, redactor))
    return path


def clean_notebook(notebook: Any, redactor: Redactor) -> Any:
    """Return a copy of *notebook* without secrets: sources, outputs, metadata, widget state."""
    return nbformat.from_dict(redactor.value(notebook))


class Manager(NotebookExecutionManager):  # type: ignore[misc]  # papermill is untyped
    """Keeps statuses and saves. Finished cells are cleaned and serialized once, not at each save."""

    def __init__(self, notebook: Any, *, path: Path | None, redactor: Redactor, progress_bar: Any) -> None:
        super().__init__(notebook, output_path=str(path) if path else None, progress_bar=progress_bar)
        self.path = path
        self.redactor = redactor
        self.save_seconds: list[float] = []
        self.save_error = ""
        self._finished: dict[int, str] = {}

    def begin(self, details: dict[str, Any]) -> None:
        """Clear old results, mark every cell pending and save."""
        self.set_timer()
        papermill = self.nb.metadata.setdefault("papermill", {})
        papermill.update(start_time=self.start_time.isoformat(), end_time=None, duration=None, exception=None)
        self.nb.metadata["gateshift"] = {
            "outcome": "running",
            "engine": Process.current().text(),
            "started": self.start_time.isoformat(),
            **details,
        }
        for cell in self.nb.cells:
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = []
            cell.metadata["papermill"] = {
                "exception": None,
                "start_time": None,
                "end_time": None,
                "duration": None,
                "status": CellStatus.PENDING.value,
            }
        self.save()

    def start(self, index: int) -> None:
        """Mark a cell running and save."""
        mark = self.nb.cells[index].metadata["papermill"]
        mark.update(start_time=self.now().isoformat(), status=CellStatus.RUNNING.value, exception=False)
        if self.nb.cells[index].cell_type == "code":
            self.save()

    def finish(self, index: int, status: CellStatus) -> float:
        """Mark a cell's end and save; return its seconds."""
        cell = self.nb.cells[index]
        mark, end = cell.metadata["papermill"], self.now()
        seconds = float((end - datetime.fromisoformat(mark["start_time"])).total_seconds())
        mark.update(end_time=end.isoformat(), duration=seconds, status=status.value)
        if status is not CellStatus.COMPLETED:
            mark["exception"] = True
            self.nb.metadata["papermill"]["exception"] = True
        self._finished[index] = self._cell_text(cell)
        if cell.cell_type == "code":
            self.save()
        if self.pbar:
            self.pbar.update(1)
        return seconds

    def end(self, ending: Ending) -> None:
        """Write the final copy: outcome first, in nbformat's own layout. Cells not run stay pending."""
        self.end_time = self.now()
        duration = (self.end_time - self.start_time).total_seconds()
        self.nb.metadata["papermill"].update(end_time=self.end_time.isoformat(), duration=duration)
        self.nb.metadata["gateshift"].update(ending.as_json(), ended=self.end_time.isoformat())
        self.cleanup_pbar()
        if ending.exit_code:
            self.nb.cells.insert(0, _banner(ending))
        clean = clean_notebook(self.nb, self.redactor)
        # In place: papermill writes this very object once more, and callers get it.
        self.nb.clear()
        self.nb.update(clean)
        self._finished.clear()
        self._store(nbformat.writes(self.nb))
        if self.save_error and not ending.exit_code:
            raise NotSaved(f"the notebook ran to its end, but {self.save_error}")

    def save(self, **_: Any) -> None:
        """Save now, secrets taken out. A disk that does not take it is said once and does not stop a run."""
        cells = [self._finished.get(i) or self._cell_text(c) for i, c in enumerate(self.nb.cells)]
        rest = {k: v for k, v in self.nb.items() if k != "cells"}
        tail = json.dumps(self.redactor.value(rest), indent=1, sort_keys=True, ensure_ascii=False)
        joined = ",\n".join(cells)
        self._store(f'{{\n "cells": [\n{joined}\n ],\n {tail[1:].lstrip()}\n')

    def _store(self, text: str) -> None:
        if self.path is None:
            return
        begun = time.perf_counter()
        try:
            atomic_write(self.path, text)
            self.save_error = ""
        except OSError as error:
            if not self.save_error:
                _log.error("%s cannot be saved: %s", self.path, error.strerror)
            self.save_error = f"{self.path} cannot be saved: {error.strerror}"
        self.save_seconds.append(time.perf_counter() - begun)
        self.last_save_time = datetime.now(UTC)

    def _cell_text(self, cell: Any) -> str:
        return json.dumps(self.redactor.value(cell), indent=1, sort_keys=True, ensure_ascii=False)


def join_streams(outputs: list[Any]) -> None:
    """Append the newest output to the one before when both are of one stream, as JupyterLab shows them.

    nbclient keeps each message by itself; a secret that was printed in pieces would stand there in pieces.
    """
    if len(outputs) < 2:
        return
    before, newest = outputs[-2:]
    if not before.output_type == newest.output_type == "stream" or before.name != newest.name:
        return
    if len(before.text) < _ENOUGH or not before.text.endswith("\n"):
        before.text += newest.text
        outputs.pop()


def _banner(ending: Ending) -> Any:
    word = outcome_word(ending.exit_code)
    where = "" if ending.cell is None else f" in cell {ending.cell + 1}"
    text = f"**Outcome: {word} (exit code {ending.exit_code}){where}**\n\n{ending.error}"
    if ending.hint:
        text += f"\n\nNext: {ending.hint}"
    cell = nbformat.v4.new_markdown_cell(text)
    cell.metadata["tags"] = [_MARKER]
    cell.metadata["papermill"] = {"status": CellStatus.COMPLETED.value, "exception": None}
    return cell
