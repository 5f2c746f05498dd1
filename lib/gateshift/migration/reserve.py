"""Disk space set aside for the way back: blocks beyond a journal's end, which only its last records use.

A full disk must not keep a rollback from being recorded. The blocks belong to the journal itself, so no
other program can take them, and nobody has to give them up at the moment they are needed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Any

__all__ = ["SIZE", "Reserve", "set_aside"]

SIZE = 256 * 1024
"""Bytes kept free for a rollback's records: some 20 KB each time it is tried, plan and checklist included."""

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE in linux/falloc.h: allocate, and leave the file's length as it is
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}


def _system_call() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    # musl has one name for both.
    call: Any = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return call


_FALLOCATE = _system_call()


def set_aside(descriptor: int, start: int, length: int) -> bool:
    """Allocate *length* bytes from *start* without changing the file's length; False where nothing can.

    Raises OSError when the disk is full, a quota is used up, or the disk does not take it otherwise.
    """
    if _FALLOCATE is None:
        return False
    while _FALLOCATE(descriptor, _KEEP_SIZE, start, length):
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


class Reserve:
    """What one journal has set aside behind its end."""

    def __init__(self) -> None:
        self._until = 0

    def forget(self) -> None:
        """Count on nothing: the file was cut, which frees what lay behind its end."""
        self._until = 0

    def keep(self, descriptor: int, end: int, length: int) -> None:
        """Have :data:`SIZE` bytes left after the next *length* from *end*; raises OSError when it cannot."""
        if end + length + SIZE <= self._until:
            return
        try:
            able, more = set_aside(descriptor, end, length + 2 * SIZE), 2 * SIZE
        except OSError:
            able, more = set_aside(descriptor, end, length + SIZE), SIZE  # nearly full: half of it will do
        # Where blocks cannot be allocated in advance, nothing is asked again.
        self._until = end + length + more if able else sys.maxsize
