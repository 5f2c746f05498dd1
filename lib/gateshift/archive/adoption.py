"""A run of plain papermill joins its archive: executed copy, end on record, seal, signature, copy elsewhere.

papermill knows the output that it was told, and nothing of migrations. The kernel knows its run and has said
so (:mod:`gateshift.archive.opened`); the engine reads that when the kernel has ended.
"""

from __future__ import annotations

from pathlib import Path

from gateshift.archive.copying import keep_safe
from gateshift.archive.files import atomic_write, free_name
from gateshift.archive.opened import Opened
from gateshift.archive.outcome import Ending, ending_record
from gateshift.archive.sealing import conclude

__all__ = ["adopt", "keep_as_asked"]


def adopt(opened: Opened, output: Path | None, text: str, ending: Ending) -> tuple[str, ...]:
    """Put the executed copy *text* into its run's folder and end, seal, sign and copy as its params ask.

    *output* is where papermill was told to write it: a copy that is in the folder already is not doubled.
    Returns what did not work; the run's own outcome stands.
    """
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
    return (*warnings, *keep_as_asked(opened))


def keep_as_asked(opened: Opened) -> list[str]:
    """Sign and copy the migration as the params of its run *opened* ask; return what did not work."""
    from gateshift.params.model import ArchiveParams  # noqa: PLC0415 - only plain papermill waits for it

    # As the kernel's params had them, checked there: durations are seconds by now.
    return keep_safe(opened.folder.parent, ArchiveParams.model_construct(**opened.archive))
