"""How a run of a notebook ended, and the exit code that says so.

====  =============================================================================
code  meaning
====  =============================================================================
0     done
1     failed
2     bad input: nothing was touched
3     held: a gate, a blocker, missing evidence or another holder of the lock
4     rolled back: traffic is on APISIX again
5     interrupted: SIGTERM, Ctrl-C, time-out or death of the kernel; a rerun resumes
====  =============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from click import ClickException
from papermill.exceptions import PapermillException

from gateshift import errors

__all__ = [
    "OUTCOMES",
    "CellStatus",
    "Ending",
    "NotSaved",
    "NotebookStopped",
    "Outcome",
    "exit_code_of",
    "outcome_word",
]

OUTCOMES: Mapping[int, str] = {
    0: "done",
    1: "failed",
    2: "bad input",
    3: "held",
    4: "rolled back",
    5: "interrupted",
}


class CellStatus(StrEnum):
    """What became of a cell; the first four words are papermill's."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    TIMED_OUT = "timed out"
    KERNEL_DIED = "kernel died"


def outcome_word(exit_code: int) -> str:
    """Return the word for *exit_code* that journal, notebook and report use."""
    return OUTCOMES.get(exit_code, "failed")


def ending_record(exit_code: int, error: str | None) -> dict[str, Any]:
    """Return what the journal is told of a run's end, when its kernel could not tell."""
    text = (error or "")[:2000]
    return {"outcome": outcome_word(exit_code), "exit_code": exit_code, "error": text, "by": "engine"}


def exit_code_of(ename: str) -> int:
    """Return the exit code for an error output's *ename*: that of our error class, else 1."""
    kind = getattr(errors, ename, None)
    if isinstance(kind, type) and issubclass(kind, errors.GateshiftError):
        return kind.exit_code
    return 1


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a notebook stopped. ``cell`` counts from 0; None when no cell is to blame.

    ``signal`` names the signal that asked it to stop, also when it came too late and the notebook was done.
    """

    exit_code: int
    error: str = ""
    hint: str = ""
    ename: str = ""
    cell: int | None = None
    signal: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the notebook's metadata."""
        return {
            "outcome": outcome_word(self.exit_code),
            "exit_code": self.exit_code,
            "error": self.error,
            "hint": self.hint,
            "ename": self.ename,
            "cell": self.cell,
            "signal": self.signal,
        }


class NotebookStopped(ClickException, PapermillException):  # type: ignore[misc]  # papermill is untyped
    """A notebook did not run to its end. papermill's command prints it and exits with its code."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"{ending.error}\n  next: {ending.hint}" if ending.hint else ending.error)
        self.ending = ending
        self.exit_code = ending.exit_code  # type: ignore[misc]  # click declares it for the class


class NotSaved(OSError):  # noqa: N818 - an outcome, not a failure of the notebook
    """A notebook ran to its end, and the disk did not take its executed copy."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What :func:`gateshift.archive.run.execute` returns. ``error`` is None when the run is done.

    ``signal`` names the signal that asked the run to stop; a caller that runs several stops too.
    """

    exit_code: int
    path: Path
    error: str | None = None
    hint: str = ""
    ename: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    signal: str = ""

    @property
    def word(self) -> str:
        """``done``, ``failed``, ``bad input``, ``held``, ``rolled back`` or ``interrupted``."""
        return outcome_word(self.exit_code)
