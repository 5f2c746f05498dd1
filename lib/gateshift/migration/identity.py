"""Who acts (a person or a CI job), and which process, so that another one can see whether it still lives."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "boot_id", "identity"]

_CI_JOBS = ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILD_TAG", "ARGO_WORKFLOW_NAME")


def identity() -> str:
    """Return ``user@host``, followed by the CI job when there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"  # a container's user without a name
    person = f"{user}@{socket.gethostname()}"
    job = next((f"{name}={os.environ[name]}" for name in _CI_JOBS if os.environ.get(name)), "")
    return f"{person} (ci {job})" if job else person


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
        if len(parts) != 4 or not (parts[1].isascii() and parts[1].isdigit()):
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
