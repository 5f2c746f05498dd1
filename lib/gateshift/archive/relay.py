"""What a kernel's process says outside of its messages: handed on with secrets taken out.

A kernel that does not start, or that crashes, writes to its raw standard error; so do exit handlers and
libraries in C. None of that passes through the notebook.
"""

from __future__ import annotations

import os
import threading

from gateshift.archive.redact import Redactor

__all__ = ["Lines", "Relay"]

_BEGIN, _END = "PRIVATE KEY-----", "-----END"
_LONGEST = 65536
"""Characters held back at most while a private key seems to go on."""


class Lines:
    """Holds text back until its line has ended: a secret may come in pieces, a key line by line."""

    def __init__(self) -> None:
        self._held = ""

    def take(self, text: str) -> str:
        """Add *text* and return what can be cleaned as a whole by now."""
        self._held += text
        cut = self._held.rfind("\n") + 1
        if len(self._held) < _LONGEST and (not cut or _open_key(self._held[:cut])):
            return ""
        ready, self._held = self._held[: cut or None], self._held[cut:] if cut else ""
        return ready

    def rest(self) -> str:
        """Return what is held back: nothing more comes."""
        ready, self._held = self._held, ""
        return ready


class Relay:
    """A pipe for one stream of a process; whole lines of it go, cleaned, to *target* (a descriptor)."""

    def __init__(self, redactor: Redactor, target: int) -> None:
        self._redactor, self._target = redactor, target
        self._reader, self.writer = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="gateshift-relay", daemon=True)
        self._thread.start()

    def started(self) -> None:
        """Close this side's copy of the writing end: the process has its own."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def end(self) -> None:
        """Wait shortly for the last words; a grandchild that lives on keeps nobody waiting."""
        self.started()
        self._thread.join(timeout=2.0)

    def _pump(self) -> None:
        held = b""
        while True:
            try:
                read = os.read(self._reader, 65536)
            except OSError:
                read = b""
            held += read
            if not read:
                self._say(held)
                os.close(self._reader)
                return
            cut = held.rfind(b"\n") + 1
            if cut and not _open_key(held[:cut].decode("utf-8", "replace")):
                self._say(held[:cut])
                held = held[cut:]

    def _say(self, raw: bytes) -> None:
        if raw:
            text = self._redactor.text(raw.decode("utf-8", "replace"))
            try:
                os.write(self._target, text.encode())
            except OSError:
                return  # nobody listens any more


def _open_key(text: str) -> bool:
    """Return whether *text* ends inside a private key, which is recognized only as a whole."""
    start = text.rfind(_BEGIN)
    return start >= 0 and len(text) < _LONGEST and _END not in text[max(0, start - 64) :]
