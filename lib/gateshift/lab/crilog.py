"""Run a program and write its output as a container runtime would, so that `kubectl logs` can read it.

``python -m gateshift.lab.crilog LOG PROGRAM ARGUMENTS...``; ends with the program's exit code. kwok serves
log files only in the CRI format (``<RFC 3339 time> stdout F <line>``).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gateshift.lab.process import die_with_parent

__all__ = ["main"]


# An access log line a request fills a disk in a day; as a kubelet does, one older file is kept.
_LIMIT = 64 * 1024 * 1024


def _copy(source: IO[bytes], log: Path, limit: int = _LIMIT) -> None:
    out = log.open("ab", buffering=0)
    size = out.tell()
    for line in source:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        data = f"{stamp} stdout F ".encode() + line.rstrip(b"\r\n") + b"\n"
        if size and size + len(data) > limit:
            out.close()
            log.replace(log.with_name(f"{log.name}.1"))
            out, size = log.open("ab", buffering=0), 0
        out.write(data)
        size += len(data)
    out.close()


def main() -> int:
    """Run the program until it ends."""
    log, *command = sys.argv[1:]
    # Signals go to the whole process group: the program decides how it ends, we end after it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,  # noqa: PLW1509  (no thread runs yet)
    )
    if process.stdout is None:
        return 1
    pump = threading.Thread(target=_copy, args=(process.stdout, Path(log)), daemon=True)
    pump.start()
    code = process.wait()
    pump.join(0.5)  # a grandchild may still hold the pipe
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
