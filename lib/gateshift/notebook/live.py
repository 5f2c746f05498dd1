"""One figure that is redrawn in place while a notebook waits; the archive keeps the last frame."""

from __future__ import annotations

import base64
import importlib
import io
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import display

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LiveFigure", "png_bundle"]


def png_bundle(figure: Figure) -> dict[str, str]:
    """Return *figure* as a display bundle.

    IPython knows how to draw a Figure only once pyplot's inline backend is active, which gateshift never
    activates: without this the archive would hold ``<Figure size ...>`` in place of the plot.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    title = figure.get_suptitle() or "plot"
    return {
        "image/png": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "text/plain": f"[plot: {title}]",
    }


class LiveFigure:
    """A single display handle. Frames closer than *every* seconds are dropped.

    On a busy machine a frame can take longer than the scrape interval; then frames come less often, so that
    drawing takes at most a tenth of the time and never delays the sample on which a rollback waits. What
    draws is slow to load (a second or more): that begins beside the caller's own work as soon as there is a
    figure to be drawn.
    """

    def __init__(self, every: float = 2.0) -> None:
        self._every = every
        self._handle: Any = None
        self._due = 0.0
        self._last: Callable[[], Figure] | None = None
        slow = "matplotlib.figure"
        threading.Thread(target=importlib.import_module, args=(slow,), daemon=True, name="plots").start()

    def update(self, draw: Callable[[], Figure]) -> None:
        """Redraw, unless the last frame is fresh; *draw* is called only when its frame is shown."""
        self._last = draw
        if time.monotonic() >= self._due:
            self._show(draw)

    def finish(self) -> None:
        """Show the newest frame whatever its age, so that it is what the archive keeps."""
        if self._last is not None:
            self._show(self._last)

    def _show(self, draw: Callable[[], Figure]) -> None:
        begun = time.monotonic()
        bundle = png_bundle(draw())
        alternative = {"image/png": {"alt": bundle["text/plain"]}}
        ended = time.monotonic()
        self._due = ended + max(self._every, 9 * (ended - begun))
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True, metadata=alternative)
        else:
            self._handle.update(bundle, raw=True, metadata=alternative)
