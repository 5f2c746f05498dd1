"""Start the lab's data-plane programs as the lab does: own processes, free ports, a ready line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def program(name: str, *flags: str, env: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"gateshift.lab.{name}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 20)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            raise AssertionError(f"{name} did not become ready: {process.communicate()[1][-2000:]}")
        yield json.loads(line)
    finally:
        process.terminate()
        try:
            _, errors = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise AssertionError(f"{name} did not stop on SIGTERM within 5 s") from None
    assert process.returncode == 0, errors[-2000:]
    assert "Traceback" not in errors, errors[-2000:]
