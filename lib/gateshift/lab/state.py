"""Where a lab's state lives: one folder a lab, one JSON file a writer, each written atomically.

``state.json`` is the supervisor's, ``agent.json`` the node agent's; :func:`load` merges them. Values that
params files take by ``${lab:key}`` are in ``values``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateshift.errors import InputError, LabError

__all__ = [
    "LabState",
    "Part",
    "alive",
    "lab_dir",
    "load",
    "names",
    "process_started",
    "resolver",
    "state_home",
    "write_json",
]

STATE_FILE = "state.json"
AGENT_FILE = "agent.json"

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the lab. ``created`` is its start (seconds since boot), so a reused pid is noticed."""

    name: str
    pid: int
    created: float
    log: str
    status: str = "running"
    exit_code: int | None = None
    restarts: int = 0
    tail: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the part as plain JSON."""
        return {
            "name": self.name,
            "pid": self.pid,
            "created": self.created,
            "log": self.log,
            "status": self.status,
            "exit_code": self.exit_code,
            "restarts": self.restarts,
            "tail": list(self.tail),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        """Read what :meth:`as_json` wrote."""
        return cls(
            name=str(data["name"]),
            pid=int(data["pid"]),
            created=float(data["created"]),
            log=str(data["log"]),
            status=str(data.get("status", "running")),
            exit_code=data.get("exit_code"),
            restarts=int(data.get("restarts", 0)),
            tail=tuple(data.get("tail", ())),
        )


@dataclass(frozen=True, slots=True)
class LabState:
    """What one lab is: its *phase* (starting, ready, failed, stopping), values and parts."""

    name: str
    phase: str
    values: Mapping[str, Any]
    parts: tuple[Part, ...] = ()
    supervisor: Part | None = None
    error: str = ""
    step: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def directory(self) -> Path:
        """The lab's folder (logs, certificates, data)."""
        return lab_dir(self.name)

    @property
    def running(self) -> bool:
        """True while the lab's supervisor lives."""
        return self.supervisor is not None and alive(self.supervisor.pid, self.supervisor.created)

    @property
    def crashed(self) -> tuple[Part, ...]:
        """Parts that ended without being asked to."""
        return tuple(p for p in self.parts if p.status == "crashed")

    def as_json(self) -> dict[str, Any]:
        """Return the whole state as plain JSON."""
        return {
            "name": self.name,
            "phase": self.phase,
            "step": self.step,
            "error": self.error,
            "running": self.running,
            "values": dict(self.values),
            "supervisor": self.supervisor.as_json() if self.supervisor else None,
            "parts": [p.as_json() for p in self.parts],
            "notes": dict(self.notes),
        }


def state_home() -> Path:
    """Return the folder that holds one folder a lab."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "gateshift" / "lab"


def lab_dir(name: str) -> Path:
    """Return the folder of lab *name*; refuses names that are no plain word."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", name):
        raise InputError(
            f"{name!r} is no name for a lab",
            hint="use lower-case letters, digits and dashes, for example demo",
        )
    return state_home() / name


def names() -> tuple[str, ...]:
    """Return the labs that have a state file, sorted."""
    home = state_home()
    if not home.is_dir():
        return ()
    return tuple(sorted(p.name for p in home.iterdir() if (p / STATE_FILE).is_file()))


def process_started(pid: int) -> float | None:
    """Return when process *pid* started (seconds since boot), or None when there is none.

    Not the time of day: that comes from the kernel's time of boot, which moves when the clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended: it waits only for its parent to take notice.
    return None if fields[0] in {"Z", "X"} else int(fields[19]) / _TICKS


def alive(pid: int, created: float) -> bool:
    """Tell whether *pid* is still the process that started at *created* (a reused pid is another one)."""
    started = process_started(pid)
    return started is not None and abs(started - created) < 0.5 / _TICKS


def write_json(path: Path, data: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    """Replace *path* atomically; readable by its owner only, since it names tokens and keys."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(data, out, indent=1)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(name: str = "default") -> LabState:
    """Read the state of lab *name*; raises :class:`~gateshift.errors.LabError` when it was never started."""
    folder = lab_dir(name)
    main = _read(folder / STATE_FILE)
    if main is None:
        raise LabError(
            f"there is no lab called {name}", hint=f"start one with `gateshift lab up --name {name}`"
        )
    agent = _read(folder / AGENT_FILE) or {}
    supervisor = main.get("supervisor")
    return LabState(
        name=name,
        phase=str(main.get("phase", "failed")),
        values={**main.get("values", {}), **agent.get("values", {})},
        parts=tuple(Part.from_json(p) for p in [*main.get("parts", ()), *agent.get("parts", ())]),
        supervisor=Part.from_json(supervisor) if supervisor else None,
        error=str(main.get("error", "")),
        step=str(main.get("step", "")),
        notes=dict(agent.get("notes", {})),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    return data if isinstance(data, dict) else None


def resolver(name: str = "default") -> Callable[[str], object]:
    """Return the function that gives ``${lab:key}``; raises KeyError for an unknown key or a lab not up."""

    def value(key: str) -> object:
        try:
            state = load(name)
        except LabError:
            raise KeyError(key) from None
        if state.phase != "ready" or not state.running:
            raise KeyError(key)
        return state.values[key]

    return value
