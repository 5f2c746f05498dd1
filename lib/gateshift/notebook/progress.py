"""A wait that shows how far it is, how long it will take, why it waits, and that it is still alive."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Any

from IPython import get_ipython
from IPython.display import display

from gateshift.words import gloss, tell

__all__ = ["Waiting", "narrated", "say", "sit_out", "spoken"]


def say(text: str) -> None:
    """Print one progress line at once, so that papermill's archive and the terminal see it live."""
    print(f"{datetime.now(UTC):%H:%M:%S}Z {gloss(text)}", flush=True)


def spoken(seconds: float) -> str:
    """Return a duration as a person says it: ``48 s``, ``12 min``, ``3.5 h``, ``13 d``."""
    if seconds < 90:
        return tell("time.seconds", count=f"{max(0.0, seconds):.0f}")
    if seconds < 5400:
        return tell("time.minutes", count=f"{seconds / 60:.0f}")
    if seconds < 172800:
        return tell("time.hours", count=f"{seconds / 3600:.1f}")
    return tell("time.days", count=f"{seconds / 86400:.0f}")


@dataclass
class Waiting:
    """One wait, shown as one bar that is redrawn in place and as a line every *every* seconds (heartbeat).

    *say* prints a line; without it the caller prints its own. ``beat`` may be called as often as wished.
    """

    what: str
    say: Callable[[str], None] | None = None
    every: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(init=False)
    _spoke: float = field(init=False, default=float("-inf"))
    _drew: float = field(init=False, default=float("-inf"))
    _handle: Any = field(init=False, default=None)
    _reason: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def beat(self, done: float, total: float | None, reason: str = "", *, left: float | None = None) -> None:
        """Show that *done* of *total* is over and why it still waits.

        *left* (seconds) is the forecast; without it the speed so far is drawn on, and without *total* only
        the time spent is shown.
        """
        now = self.clock()
        self._reason = reason
        part = min(1.0, done / total) if total else None
        if left is None and part:
            left = (now - self._begun) * (1 - part) / part
        time_left = (
            tell("wait.open", spent=spoken(now - self._begun))
            if left is None
            else tell("wait.left", left=spoken(left))
        )
        if now - self._drew >= 1.0:
            self._drew = now
            self._draw(part, f"{self.what}: {time_left}", reason)
        if self.say is not None and now - self._spoke >= self.every:
            self._spoke = now
            percent = "–" if part is None else f"{100 * part:.0f}"
            self.say(tell("wait.line", what=self.what, percent=percent, left=time_left, reason=reason))

    def line(self, reason: str) -> str:
        """Return a heartbeat of a wait whose end is not known."""
        spent = tell("wait.open", spent=spoken(self.clock() - self._begun))
        return tell("wait.line", what=self.what, percent="–", left=spent, reason=reason)

    def close(self, *, well: bool = True) -> None:
        """End the wait; the bar says how it ended."""
        key = "wait.done" if well else "wait.stopped"
        spent = spoken(self.clock() - self._begun)
        text = tell(key, what=self.what, spent=spent, **({} if well else {"reason": self._reason}))
        if self._handle is not None:
            self._draw(1.0 if well else None, text, "")
        if self.say is not None and self._spoke > float("-inf"):
            self.say(text)

    def _draw(self, part: float | None, head: str, reason: str) -> None:
        if get_ipython() is None:
            return
        value = "" if part is None else f' value="{part:.3f}"'
        heard = tell("wait.heard", clock=f"{datetime.now(UTC):%H:%M:%S}")
        bundle = {
            "text/html": (
                f'<div class="gateshift-wait"><b>{escape(head)}</b><br><progress max="1"{value} '
                f'style="width:24em;max-width:100%"></progress><br>{escape(reason)} '
                f'<span style="opacity:.7">· {escape(heard)}</span></div>'
            ),
            "text/plain": f"{head} {reason}".strip(),
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def sit_out(waiting: Waiting, seconds: float, reason: str) -> None:
    """Wait *seconds* with *waiting* on show."""
    begun = time.monotonic()
    while (left := seconds - (time.monotonic() - begun)) > 0:
        waiting.beat(seconds - left, seconds, reason, left=left)
        time.sleep(min(1.0, left))
    waiting.close()


@contextmanager
def narrated(
    what: str, say: Callable[[str], None], *, every: float = 10.0, tick: float = 1.0
) -> Iterator[Callable[[str], None]]:
    """Show work that tells its steps line by line as one wait; yields the function that takes the lines.

    The newest line stands below the bar as the reason. A thread redraws it each *tick* seconds and prints a
    heartbeat when no line came for *every* seconds, because the work itself is inside somebody else's call.
    """
    waiting, stop = Waiting(what), threading.Event()
    newest, spoke = [""], [time.monotonic()]

    def take(line: str) -> None:
        newest[0], spoke[0] = line, time.monotonic()
        say(line)

    def keep() -> None:
        while not stop.wait(tick):
            waiting.beat(0, None, newest[0])
            if time.monotonic() - spoke[0] >= every:
                spoke[0] = time.monotonic()
                say(waiting.line(newest[0]))

    # In the cell's own context, so that the front end shows what the thread draws below that cell.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(keep,), daemon=True)
    thread.start()
    well = False
    try:
        yield take
        well = True
    finally:
        stop.set()
        thread.join()
        waiting.close(well=well)
