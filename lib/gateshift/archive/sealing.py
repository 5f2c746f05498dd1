"""End a run on record and seal its folder. Without papermill: JupyterLab's server seals, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateshift.archive.layout import executing
from gateshift.archive.manifest import last_seal, seal
from gateshift.archive.seals import Run, covers_itself, runs_of
from gateshift.errors import GateshiftError
from gateshift.migration.identity import identity
from gateshift.migration.journal import Journal, read_records

__all__ = ["conclude", "seal_ended"]


def conclude(
    book: Path, folder: Path, notebook: str = "", ending: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Tell the journal *book* how the run in *folder* ended, if it does not know, and seal the folder.

    *ending* is the data of that record for a run of *notebook* that is open. Returns what did not work.
    """
    warnings = []
    run = folder.name
    try:
        if not book.exists():
            seal(folder)
            return ()
        with Journal.open(book, who=identity(), run=run) as journal:
            if journal.repaired:
                warnings.append(f"journal: {journal.repaired}")
            for mark in journal.state.open_runs if ending else ():
                if mark.run == run and mark.notebook == notebook:
                    journal.append("run.ended", notebook=notebook, **(ending or {}))
            if any(executing(p) for p in folder.glob("*.ipynb")):
                return (*warnings, f"{run} is not sealed: its executed copy could not be saved to its end")
            earlier = last_seal(folder, journal)
            digest = seal(folder, journal=journal)
            journal.append("archive.sealed", run=run, manifest=digest, earlier=earlier)
    except (GateshiftError, OSError) as error:
        # The run's own outcome matters more than its seal; that it is missing shows in `audit verify`.
        warnings.append(f"the run could not be sealed: {error}")
    return tuple(warnings)


def seal_ended(migration: Path, *, ready: Callable[[Run], bool] = lambda _: True) -> list[str]:
    """Seal runs that ended on record but died before their seal, or were run by hand without an engine.

    Those that are not *ready* are left for later. Returns the names of the runs that were sealed.
    """
    book = migration / "journal.jsonl"
    if not book.exists():
        return []
    try:
        runs = runs_of(read_records(book))
    except GateshiftError:
        return []  # the run itself will say so, with the place
    due = {name for name, run in runs.items() if run.ended > run.sealed and ready(run)}
    # A run that failed before it opened the journal has a manifest that no journal could record.
    due |= {p.parent.name for p in migration.glob("*/manifest.json") if covers_itself(p.parent)} - set(runs)
    folders = [migration / name for name in sorted(due)]
    return [
        folder.name
        for folder in folders
        if folder.is_dir()
        and not any(executing(p) for p in folder.glob("*.ipynb"))
        and not conclude(book, folder)
    ]
