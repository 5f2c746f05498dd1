"""Which process this is, told so that another process can find out whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "boot_id"]


def boot_id() -> str:
    """Return an id of this boot of this machine, or an empty text where the kernel gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return the process's start time in clock ticks since boot; empty when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended: it waits only for its parent to take notice.
    return "" if fields[0] in {"Z", "X"} else fields[19]


@dataclass(frozen=True, slots=True)
class Process:
    """A process by host, pid and start: a pid alone is used again."""

    host: str
    pid: int
    start: str
    boot: str

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), boot_id())

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Read :meth:`text`; None when it is something else."""
        parts = text.split("/")
        if len(parts) != 4 or not parts[1].isdigit():
            return None
        return cls(parts[0], int(parts[1]), parts[2], parts[3])

    def text(self) -> str:
        """Return one word that :meth:`parse` reads."""
        return f"{self.host}/{self.pid}/{self.start}/{self.boot}"

    @property
    def surely_dead(self) -> bool:
        """True only when this machine can tell that the process has ended."""
        if self.host != socket.gethostname() or not self.start:
            return False
        if self.boot and self.boot != boot_id():
            # Another boot of this machine, or a container with the same name elsewhere: only the
            # first is dead for sure, and they cannot be told apart.
            return False
        return _started(self.pid) != self.start
