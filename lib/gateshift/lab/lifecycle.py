"""Start, stop and look at labs: what `gateshift lab up | down | status` and the tests call."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from gateshift.errors import LabError
from gateshift.lab import build
from gateshift.lab.api import Api
from gateshift.lab.dataparts import sample_configuration
from gateshift.lab.process import kill_parts, wait_for
from gateshift.lab.seed import has_address, pods_ready, seed, simple_records
from gateshift.lab.state import STATE_FILE, LabState, alive, lab_dir, load, state_home, write_json

__all__ = ["down", "forget_migrations", "lines", "reset", "status", "up"]

_START_LIMIT = 180.0
_LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/gateshift"
_STOP_LIMIT = 20.0
_RESET_LIMIT = 60.0

Say = Callable[[str], None]


def status(name: str = "default") -> LabState:
    """Return the state of lab *name*; raises :class:`~gateshift.errors.LabError` when there is none."""
    return load(name)


def up(
    name: str = "default",
    *,
    config: str | None = None,
    rate: float = 150.0,
    ttl: float = 2.0,
    progress: Say = lambda _text: None,
    building: build.Report | None = None,
) -> LabState:
    """Start lab *name* and return when it is ready; a lab that runs already is returned as it is.

    *config* is the old gateway's APISIX configuration (default: the project's sample); *rate* is the client
    traffic in requests a second, *ttl* how many seconds its resolvers keep an answer (a real alias record
    has 60; compressed as everything in params/lab.yaml). *progress* is told each step, *building* how far a
    Go build is (default: lines through *progress*). On any failure or interruption nothing is left running;
    logs stay in the lab's folder until the next ``up`` or ``down``.
    """
    options = {"config": str(sample_configuration(config)), "rate": rate, "ttl": ttl}
    with _locked(name):
        with suppress(LabError):
            state = load(name)
            if state.running and state.phase == "ready":
                return state
        binaries = build.ensure(report=building or lines(progress))
        _end(name)
        folder = lab_dir(name)
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        (folder / "logs").mkdir()
        write_json(folder / "config.json", {"binaries": binaries.as_json(), "options": options})
        with (folder / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateshift.lab.supervisor", "--name", name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
        try:
            return _wait_ready(name, process, progress)
        except BaseException as error:
            _stop_process(process)
            kill_parts(_parts(name))
            if not isinstance(error, LabError):  # Ctrl-C: nobody will read the logs
                shutil.rmtree(folder, ignore_errors=True)
            raise


def lines(say: Say) -> build.Report:
    """Return a build report that says one line at each fifth of a group's packages, with the time taken."""
    began: dict[str, float] = {}
    told: dict[str, int] = {}

    def report(group: str, part: float) -> None:
        if part >= 1.0 and group not in began:
            return  # it was in the cache
        fifth = int(part * 5)
        began.setdefault(group, time.monotonic())
        if told.get(group) != fifth:
            told[group] = fifth
            say(f"building {group}: {part:.0%}, {time.monotonic() - began[group]:.0f} s")

    return report


def reset(name: str = "default") -> None:
    """Put the old gateway's objects and simple DNS records back and clear faults; Istio stays installed.

    What a second migration in the same lab needs after a first one has cleaned up.
    """
    state = load(name)
    if state.phase != "ready" or not state.running:
        raise LabError(f"the lab {name} does not run", hint=f"`gateshift lab up --name {name}`")
    pki = state.directory / "pki"
    with Api(state["api_url"], pki / "ca.crt", pki / "admin.crt", pki / "admin.key") as api:
        seed(api, limit=60.0)
        api.delete(_LEASE)
        # A preflight that follows at once must not find the old gateway's pods while they start.
        if not wait_for(lambda: pods_ready(api) and has_address(api), timeout=_RESET_LIMIT):
            raise LabError(
                f"the old gateway of lab {name} was not ready {_RESET_LIMIT:.0f} s after the reset",
                hint=f"all logs are in {state.directory / 'logs'}",
            )
    with httpx.Client(timeout=10, trust_env=False) as client:
        client.delete(f"{state['faults_url']}/faults").raise_for_status()
        client.put(f"{state['traffic_url']}/rate", json={"rate": state["rate"]}).raise_for_status()
    simple_records(state["route53_url"])


def forget_migrations(name: str = "default") -> None:
    """Remove the lock and the heads of earlier migrations, which would keep a new one out of lab *name*."""
    state = load(name)
    pki = state.directory / "pki"
    with Api(state["api_url"], pki / "ca.crt", pki / "admin.crt", pki / "admin.key") as api:
        api.delete(_LEASE)


def down(name: str = "default") -> bool:
    """End lab *name* and remove its folder; False when there was none."""
    with _locked(name):
        return _end(name)


def _end(name: str) -> bool:
    folder = lab_dir(name)
    if not folder.exists():
        return False
    with suppress(LabError):
        state = load(name)
        if state.supervisor and alive(state.supervisor.pid, state.supervisor.created):
            os.kill(state.supervisor.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_LIMIT
            while alive(state.supervisor.pid, state.supervisor.created):
                if time.monotonic() > deadline:
                    os.kill(state.supervisor.pid, signal.SIGKILL)
                    break
                time.sleep(0.05)
        # A supervisor killed with -9 leaves nothing to it but this list; start times guard reused pids.
        kill_parts(_parts(name))
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # a dying process wrote once more while the folder was removed
        time.sleep(0.5)
        shutil.rmtree(folder)
    return True


def _parts(name: str) -> tuple[Any, ...]:
    try:
        return load(name).parts
    except LabError:
        return ()


def _wait_ready(name: str, process: subprocess.Popen[bytes], say: Say) -> LabState:
    deadline = time.monotonic() + _START_LIMIT
    said = ""
    while True:
        state = load(name) if (lab_dir(name) / STATE_FILE).exists() else None
        if state and state.step and state.step != said:
            said = state.step
            say(said)
        if state and state.phase == "ready":
            return state
        if process.poll() is not None:
            reason = state.error if state and state.error else _last(lab_dir(name) / "supervisor.log")
            raise LabError(
                f"the lab did not start: {reason}", hint=f"all logs are in {lab_dir(name) / 'logs'}"
            )
        if time.monotonic() > deadline:
            raise LabError(
                f"the lab was not ready after {_START_LIMIT:.0f} s; it was at: {said or 'the beginning'}",
                hint=f"all logs are in {lab_dir(name) / 'logs'}",
            )
        time.sleep(0.1)


def _last(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
    except OSError:
        return "no log was written"


def _stop_process(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _locked(name: str) -> Iterator[None]:
    lab_dir(name)  # refuses an impossible name before anything is made
    home = state_home()
    home.mkdir(parents=True, exist_ok=True)
    lock = home / f".{name}.lock"
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if not lab_dir(name).exists():
                lock.unlink(missing_ok=True)
