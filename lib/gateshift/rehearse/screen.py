"""Progress of a rehearsal: a live line on a terminal, plain lines in CI and pipes."""

from __future__ import annotations

import os
import textwrap
import time
from typing import IO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.status import Status
from rich.text import Text

__all__ = ["Screen"]

_INDENT = 10
"""Columns of the time before a phase; what belongs to it stands below its text."""
_SPINNER = 2


class Screen:
    """Shows the phases, and below them the newest line and nothing of the lines before it.

    The live line is always one line of the terminal: a longer one would wrap, and what wrapped stays behind
    when it is redrawn.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._console = Console(file=file, highlight=False)
        self._live = self._console.is_terminal and not os.environ.get("CI")
        self._begun = time.monotonic()
        self._status: Status | None = None
        if self._live:
            self._status = self._console.status("")
            self._status.start()

    def phase(self, text: str) -> None:
        """Begin a phase."""
        spent = f"[{time.monotonic() - self._begun:5.0f} s]"
        self._print(f"{spent:{_INDENT - 1}} {text}")
        if self._live:
            self.line(text)

    def line(self, text: str) -> None:
        """Show one progress line; on a terminal it replaces the one before."""
        text = " ".join(text.split())
        if not text:
            return
        if self._status is None:
            self._print(" " * _INDENT + text)
            return
        self._status.update(Text(_begun(text, max(1, self._console.width - _SPINNER - 1))))

    def close(self) -> None:
        """End the live line."""
        if self._status:
            self._status.stop()

    def _print(self, text: str) -> None:
        if not self._live:  # whoever reads a log later has a width of his own
            self._console.print(text, markup=False, soft_wrap=True)
            return
        width, indent = self._console.width, " " * _INDENT
        for line in textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False):
            self._console.print(line, markup=False, soft_wrap=True)


def _begun(text: str, width: int) -> str:
    """Return as much of *text* as *width* columns hold: it ends between words, and an ellipsis says so."""
    if cell_len(text) <= width:
        return text
    kept, _, rest = set_cell_size(text, max(1, width - 2)).rpartition(" ")
    if cell_len(kept) < width // 2:  # hardly a word, or a language without spaces
        kept = f"{kept} {rest}".strip()
    return f"{kept} …"
