"""The rehearsal of death: command line, kernel and papermill are killed in the middle of a stage.

Each victim is a process of its own, as an operator's or a pipeline's is. The next run must go on where the
dead one stopped, and the archive must say what happened to each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from gateshift.archive.audit import verify
from gateshift.errors import LabError
from gateshift.migration.journal import read_records
from gateshift.migration.state import fold
from gateshift.rehearse.director import Director
from gateshift.runbook.inputs import project_root

__all__ = ["VICTIMS", "Victim", "die", "problems"]

_KERNEL = "gateshift.archive.kernel"
_LIMIT = 240.0
"""Seconds a stage may take until the moment of its death."""


@dataclass(frozen=True, slots=True)
class Victim:
    """What is killed: *kind* is kernel, cli or papermill; *at* is the record after which it dies."""

    kind: str
    at: str
    text: str


VICTIMS = (
    Victim("cli", "shift.intent", "the command line dies while the weights change"),
    Victim("kernel", "stage.arrived", "the kernel dies while the stage is watched"),
    Victim("papermill", "stage.arrived", "papermill dies while the stage is watched"),
)


def die(director: Director, victim: Victim) -> int:
    """Run the next canary stage in a process of its own and kill it; return its exit code (negative: signal).

    Raises :class:`~gateshift.errors.LabError` when it did not get that far or did not end.
    """
    before = _count(director, victim.at)
    run = f"50_canary-{victim.kind}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z"
    command = _command(director, victim, run)
    env = {k: v for k, v in os.environ.items() if k not in {"GATESHIFT_RUN", "GATESHIFT_PARAMS"}}
    if victim.kind == "papermill":
        env["GATESHIFT_RUN"] = run
    with director.watching():
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
        )
        try:
            _until(lambda: _count(director, victim.at) > before or process.poll() is not None)
            if process.poll() is not None:
                raise LabError(f"{victim.kind}: the stage ended before its death: {process.communicate()[1]}")
            kernels = [pid for pid in _descendants(process.pid) if _KERNEL in _cmdline(pid)]
            if not kernels:
                raise LabError(f"{victim.kind}: the stage has no kernel")
            os.kill(kernels[0] if victim.kind == "kernel" else process.pid, signal.SIGKILL)
            code = process.wait(timeout=60)
            # A kernel ends by itself once its parent is gone; until then it would go on with the stage.
            _until(lambda: not any(_alive(pid) for pid in kernels))
            return code
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def problems(director: Director, codes: Mapping[str, int]) -> list[str]:
    """Return what the archive gets wrong after every victim died and the migration ended."""
    found = []
    for kind, code in codes.items():
        wanted = 5 if kind == "kernel" else -signal.SIGKILL
        if code != wanted:
            found.append(f"the exit code after the death of {kind} is {code}, not {wanted}")
    records = read_records(director.folder / "journal.jsonl")
    state = fold(records)
    stages = len(director.overrides["stages"])
    kinds = [r.kind for r in records]
    for kind in ("stage.entered", "stage.promoted"):
        if kinds.count(kind) != stages:
            found.append(f"{kinds.count(kind)} records of {kind} for {stages} stages")
    shifts = [int(r.data["to"]) for r in records if r.kind == "shift.done"]
    shifts += [int(r.data["weight"]) for r in records if r.kind == "reconciled"]
    if len(set(shifts)) != len(shifts):
        found.append(f"a weight was set twice: {shifts}")
    if state.weight_percent != 100 or state.stage_index != stages:
        found.append(f"it ended at {state.weight_percent} % and {state.stage_index} of {stages} stages")
    interrupted = [r for r in records if r.kind == "run.ended" and r.data["outcome"] == "interrupted"]
    if len(interrupted) < len(codes):
        found.append(f"the journal knows {len(interrupted)} of {len(codes)} deaths")
    told = [_outcome(path) for path in director.folder.glob("50_canary-*/*.ipynb")]
    if told.count("interrupted") != len(codes) or "running" in told:
        found.append(f"the executed copies say {sorted(told)}")
    found += [f"audit: {problem}" for problem in verify(director.folder)]
    return found


def _command(director: Director, victim: Victim, run: str) -> list[str]:
    values = {"migration": director.migration, "mode": "act", **director.overrides}
    if victim.kind != "papermill":
        pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        start = [sys.executable, "-c", "from gateshift.cli import main; main()", "canary"]
        return [*start, "-f", director.params_file, *(word for pair in pairs for word in ("-p", pair))]
    notebooks = project_root() / "notebooks"
    target = director.folder / run / "50_canary.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, "-m", "papermill", "--engine", "gateshift", "--no-progress-bar"),
        *("--cwd", str(notebooks), "-f", director.params_file, "-y", json.dumps(values)),
        *(str(notebooks / "50_canary.ipynb"), str(target)),
    ]


def _count(director: Director, kind: str) -> int:
    book = director.folder / "journal.jsonl"
    return sum(r.kind == kind for r in read_records(book)) if book.exists() else 0


def _until(what: Callable[[], bool], seconds: float = _LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise LabError(f"nothing happened within {seconds:.0f} s")
        time.sleep(0.02)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def _outcome(path: Path) -> str:
    book: Any = nbformat.read(path, as_version=4)
    return str(book.metadata.get("gateshift", {}).get("outcome", "unknown"))
