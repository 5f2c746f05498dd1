"""Progress of a rehearsal: a live line on a terminal, plain lines in CI and pipes."""

from __future__ import annotations

import os
import time

from rich.console import Console
from rich.status import Status

__all__ = ["Screen"]


class Screen:
    """Shows the phase, its newest line and the time since the start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not os.environ.get("CI")
        self._begun = time.monotonic()
        self._phase = ""
        self._status: Status | None = None
        if self._live:
            self._status = self._console.status("starting")
            self._status.start()

    def phase(self, text: str) -> None:
        """Begin a phase."""
        self._phase = text
        self._console.print(f"[{time.monotonic() - self._begun:5.0f} s] {text}", markup=False)
        if self._status:
            self._status.update(text)

    def line(self, text: str) -> None:
        """Show one progress line; on a terminal it replaces the one before."""
        text = text.strip()
        if not text:
            return
        if self._status:
            self._status.update(
                f"{self._phase}: {text[: max(20, self._console.width - len(self._phase) - 8)]}"
            )
        else:
            self._console.print(f"          {text}", markup=False)

    def close(self) -> None:
        """End the live line."""
        if self._status:
            self._status.stop()
