"""Start and stop the lab's processes so that none outlives the lab.

Each runs in a session of its own (a Ctrl-C in the terminal does not reach it) and asks the kernel for a
signal when its parent dies, so that even ``kill -9`` of the supervisor ends it. Whoever starts processes
must do so from its main thread: the kernel watches the thread that forked, not the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar

from gateshift.errors import LabError
from gateshift.lab.state import Part, alive, process_started

__all__ = [
    "Child",
    "Ports",
    "become_subreaper",
    "die_with_parent",
    "kill_parts",
    "spawn",
    "stop",
    "tail",
    "wait_for",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Resolved here, so that nothing is looked up between fork and exec.
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl

# Below Linux's ephemeral range (32768), so that an outgoing connection never sits on a port we chose.
_PORT_RANGE = range(20000, 32000)
_PORT_BLOCK = 100


class Ports:
    """Free TCP ports of 127.0.0.1, each given once, and to one process of this machine only.

    A port is chosen long before its program listens on it, and labs that start side by side would choose the
    same ones. So a process claims whole blocks of ports, each by an abstract Unix socket (unix(7)), which the
    kernel frees when the process ends, however it ends.
    """

    _claims: ClassVar[list[socket.socket]] = []
    _left: ClassVar[list[int]] = []

    def take(self) -> int:
        """Return a port nobody listens on now and that was not given before; LabError when there is none."""
        while True:
            if not self._left:
                self._claim()
            port = self._left.pop()
            with socket.socket() as probe:
                try:
                    # The wildcard address: a listener on any address makes the port useless to us.
                    probe.bind(("0.0.0.0", port))  # noqa: S104  (closed again at once, never listens)
                except OSError:
                    continue
            return port

    def _claim(self) -> None:
        blocks = list(range(_PORT_RANGE.start, _PORT_RANGE.stop, _PORT_BLOCK))
        random.SystemRandom().shuffle(blocks)
        for first in blocks:
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0gateshift-lab-ports-{first}")
            except OSError:
                claim.close()
                continue
            self._claims.append(claim)
            self._left.extend(range(first, first + _PORT_BLOCK))
            return
        raise LabError(
            "other labs on this machine have claimed every port", hint="`gateshift lab down` ends one"
        )


def become_subreaper() -> None:
    """Adopt grandchildren whose parent dies (Envoy, when pilot-agent is killed), so they can be ended."""
    _PRCTL(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process *number* when its parent dies; kept across exec."""
    _PRCTL(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def tail(path: str | Path, lines: int = 12) -> tuple[str, ...]:
    """Return the last *lines* of a log, without reading all of it."""
    try:
        with Path(path).open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(handle.tell() - 16384, 0))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])


class Child:
    """A process we started: its :class:`~gateshift.lab.state.Part` and its handle."""

    def __init__(self, part: Part, process: subprocess.Popen[bytes]) -> None:
        self.part = part
        self.process = process

    @property
    def ended(self) -> bool:
        """True when the process is gone; its exit code is then in ``process.returncode``."""
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; silence when it is already gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def spawn(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    on_parent_death: int = signal.SIGKILL,
    output: IO[bytes] | int | None = None,
) -> Child:
    """Start *command*; its output goes to *log* (or to *output*)."""

    def prepare() -> None:
        die_with_parent(on_parent_death)

    with log.open("ab") as sink:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=sink if output is None else output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509  (one prctl call, nothing that takes a lock)
        )
    created = process_started(process.pid) or time.time()
    return Child(Part(name=name, pid=process.pid, created=created, log=str(log)), process)


def stop(children: Iterable[Child], *, grace: float = 5.0) -> None:
    """End process groups: SIGTERM, then SIGKILL after *grace* seconds."""
    remaining = list(children)
    for child in remaining:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while remaining and time.monotonic() < deadline:
        remaining = [c for c in remaining if not c.ended]
        time.sleep(0.02)
    for child in remaining:
        child.signal(signal.SIGKILL)
        child.process.wait()


def kill_parts(parts: Iterable[Part]) -> int:
    """SIGKILL what still runs of *parts*, by pid and start time; return how many there were."""
    killed = 0
    for part in parts:
        if not alive(part.pid, part.created):
            continue
        killed += 1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(part.pid) == part.pid:
                os.killpg(part.pid, signal.SIGKILL)
            else:
                os.kill(part.pid, signal.SIGKILL)
    return killed


def wait_for(ready: Callable[[], bool], *, timeout: float, every: float = 0.1) -> bool:
    """Ask *ready* every *every* seconds; False when it was not within *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
