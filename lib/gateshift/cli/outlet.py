"""Standard output and error that may go away under a command: a closed pipe, a full disk, a lost terminal.

What is said about a change must not decide whether it is made: a rollback whose reader ended goes on. So a
text that is not taken is dropped with all that follows it, and the exit code stays that of the command.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import click

from gateshift.words import tell

__all__ = ["Outlet", "outlets"]


class Outlet:
    """A text stream that takes everything; ``lost`` is the error after which nothing was passed on.

    *filters* lets a closed pipe end the program, as it ends any filter.
    """

    def __init__(self, stream: TextIO, *, filters: bool = False) -> None:
        self._stream = stream
        self._filters = filters
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Pass *text* on, as long as it is taken."""
        if not isinstance(text, str):
            raise TypeError("this stream takes text")  # click asks this way which kind a stream is
        if self.lost is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Pass *lines* on, as long as they are taken."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, as long as it is taken."""
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        if self._filters and error.errno == errno.EPIPE:
            raise error
        self.lost = error
        # What is left in its buffer would fail once more when Python ends, and replace the exit code by 120.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outlets(*, filters: bool = False) -> Iterator[None]:
    """Run a command whose output may go away.

    That a reader ended is its own affair. An output that could not be written down for another reason is
    said, and fails a command that has not failed otherwise: a file made of it is not whole.
    """
    before = sys.stdout, sys.stderr
    # A stream that was closed before the start is None: Python and click drop what is said to it.
    out = Outlet(sys.stdout, filters=filters) if sys.stdout else None
    err = Outlet(sys.stderr) if sys.stderr else None
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield
    except SystemExit as left:
        lost = out.lost if out else None
        if lost is None or lost.errno == errno.EPIPE:
            raise
        click.echo(tell("cli.unwritten", why=f"standard output: {lost.strerror or lost}"), err=True)
        raise SystemExit(left.code or 1) from None
    finally:
        sys.stdout, sys.stderr = before
