"""Run one notebook into the archive: papermill, our engine, the journal's word on how it ended, the seal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import ValidationError
from papermill.exceptions import PapermillException

from gateshift.archive.client import CellEvent
from gateshift.archive.files import atomic_write, free_name
from gateshift.archive.layout import executing
from gateshift.archive.manifest import read_manifest
from gateshift.archive.outcome import (
    CellStatus,
    NotebookStopped,
    NotSaved,
    Outcome,
    ending_record,
    outcome_word,
)
from gateshift.archive.sealing import conclude, seal_ended
from gateshift.errors import InputError
from gateshift.migration.identity import Process

__all__ = ["Outcome", "execute", "settle"]

_FREE = "free disk space or correct the permissions, then run the same notebook again"

# The notebooks take every key of the params file by injection; papermill logs each that the parameters
# cell does not name, which would bury the run's own lines.
logging.getLogger("papermill").setLevel(logging.ERROR)


def execute(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    secrets: Iterable[str] = (),
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    cell_timeout: float | None = None,
    grace: float = 10.0,
    on_output: Callable[[str], None] | None = None,
    on_cell: Callable[[CellEvent], None] | None = None,
    journal: str | Path | None = None,
) -> Outcome:
    """Run *notebook* into *output* and return how it ended; only wrong arguments raise.

    A second attempt at the same *output* gets its own file (``name-attempt2.ipynb``). *secrets* are values
    that appear nowhere in the archive. Times are seconds. *on_output* gets text as the notebook prints it,
    *on_cell* each cell's beginning and end. *journal* is the migration's, by default ``journal.jsonl``
    above the run's folder when there is one: it is told how the run ended when the kernel could not tell.
    """
    notebook, target = Path(notebook), free_name(Path(output))
    if not notebook.is_file():
        raise InputError(f"{notebook}: no such notebook")
    folder = target.parent
    book = Path(journal) if journal else folder.parent / "journal.jsonl"
    known = tuple(secrets)
    begun = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        settle(folder.parent)
        done = papermill.execute_notebook(
            str(notebook.absolute()),
            str(target.absolute()),
            parameters=dict(parameters or {}),
            engine_name="gateshift",
            progress_bar=False,
            secrets=known,
            adopts=False,
            timeout=timeout,
            execution_timeout=cell_timeout,
            grace=grace,
            kernel_cwd=str(Path(cwd).absolute()) if cwd else None,
            kernel_env=dict(env or {}),
            on_cell=on_cell,
            on_output=on_output,
        )
        outcome = Outcome(0, target, signal=str(done.metadata.get("gateshift", {}).get("signal", "")))
    except NotebookStopped as stopped:
        ending = stopped.ending
        outcome = Outcome(
            ending.exit_code,
            target,
            ending.error,
            ending.hint,
            ending.ename,
            signal=ending.signal,
        )
    except NotSaved as error:
        outcome = Outcome(1, target, str(error), _FREE, ename=type(error).__name__)
    except OSError as error:
        why = f"{notebook.name} could not be run: {error}"
        outcome = Outcome(1, target, why, _FREE, ename=type(error).__name__)
    except (ValueError, KeyError, PapermillException) as error:
        # A file that is no notebook, a kernel that does not exist, what papermill itself finds wrong.
        outcome = Outcome(1, target, f"{notebook.name} could not be run: {error}", ename=type(error).__name__)
    warnings = conclude(book, folder, notebook.stem, ending_record(outcome.exit_code, outcome.error))
    return Outcome(
        outcome.exit_code,
        outcome.path,
        outcome.error,
        outcome.hint,
        outcome.ename,
        time.monotonic() - begun,
        warnings,
        outcome.signal,
    )


def settle(migration: Path) -> list[Path]:
    """Correct copies that died with their engine: a cell left ``running`` by ``kill -9`` was interrupted.

    Returns the corrected notebooks. Copies whose engine may still live are left alone, and so is every copy
    under a seal: it had ended by then, and whoever made it say otherwise must not get a new seal for it.
    """
    corrected = []
    for path in sorted(migration.glob("*/*.ipynb")):
        try:
            if not executing(path) or path.name in _under_seal(path.parent):
                continue
            book = nbformat.read(path, as_version=4)
            mark = book.metadata["gateshift"]
            process = Process.parse(str(mark["engine"]))
            if process is None or not process.surely_dead:
                continue
            for cell in book.cells:
                status = cell.metadata.get("papermill", {})
                if status.get("status") == CellStatus.RUNNING.value:
                    status.update(status=CellStatus.INTERRUPTED.value, exception=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
            continue  # no notebook of an engine; the audit names it, and no run waits for it
        mark.update(
            outcome=outcome_word(5),
            exit_code=5,
            error="the engine that ran this notebook was killed; what its last cell did is in the journal",
            ename="EngineDied",
        )
        atomic_write(path, nbformat.writes(book))
        notebook, end = path.stem.partition("-attempt")[0], ending_record(5, "the engine was killed")
        conclude(migration / "journal.jsonl", path.parent, notebook, end)
        corrected.append(path)
    seal_ended(migration)
    return corrected


def _under_seal(folder: Path) -> set[str]:
    """Return the names that the manifest of *folder* lists; it need not be whole."""
    listed = (read_manifest(folder) or {}).get("files")
    return set(listed) if isinstance(listed, dict) else set()
