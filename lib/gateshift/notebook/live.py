"""One figure that is redrawn in place while a notebook waits; the archive keeps the last frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

__all__ = ["LiveFigure"]


class LiveFigure:
    """A single display handle. Frames closer than *every* seconds are dropped: drawing costs CPU too."""

    def __init__(self, every: float = 2.0) -> None:
        self._every = every
        self._handle: Any = None
        self._drawn = 0.0
        self._last: Callable[[], Figure] | None = None

    def update(self, draw: Callable[[], Figure]) -> None:
        """Redraw, unless the last frame is fresh; *draw* is called only when its frame is shown."""
        self._last = draw
        if time.monotonic() - self._drawn >= self._every:
            self._show(draw)

    def finish(self) -> None:
        """Show the newest frame whatever its age, so that it is what the archive keeps."""
        if self._last is not None:
            self._show(self._last)

    def _show(self, draw: Callable[[], Figure]) -> None:
        figure = draw()
        self._drawn = time.monotonic()
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
