"""Runs the real runbooks in forked children that die where they are told to; sleeping moves their clock."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gateshift.errors import GateshiftError
from gateshift.migration.journal import read_records
from gateshift.migration.state import Phase, State, fold
from gateshift.notebook.live import LiveFigure
from gateshift.params.model import Params
from gateshift.runbook.approvals import write_approval
from gateshift.runbook.canary import Canary
from gateshift.runbook.rollback import Rollback
from tests.archive import story
from tests.crash.world import HOST
from tests.traffic.conftest import APISIX_LB, ISTIO_LB, ZONE

DIED, ONLY_WRITES_HALVE, FAILED = 109, 108, 101
WEIGHTS = (25, 100)


class Shim:
    """Numbers the process's I/O (files, sockets) and dies at one of them. ``how``: before, half or after."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.count = at, how, 0

    def install(self) -> None:
        for name in ("write", "pwrite", "fdatasync", "fsync", "ftruncate", "replace", "unlink", "open"):
            setattr(os, name, self.wrap(name, getattr(os, name)))
        for name in ("send", "sendall"):
            setattr(socket.socket, name, self.wrap(name, getattr(socket.socket, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        halves = name in {"write", "pwrite"}

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return real(*arguments, **options)
            if self.how == "half" and not halves:
                os._exit(ONLY_WRITES_HALVE)
            if self.how == "half":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
            elif self.how == "after":
                real(*arguments, **options)
            os._exit(DIED)

        return call


class Clock:
    """Time that passes only by sleeping. The monotonic clock stays real: drawing is paced by it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def install(self) -> None:
        def sleep(seconds: float) -> None:
            self.now += seconds

        time.sleep = sleep
        time.time = lambda: self.now


@dataclass
class Stand:
    """One world and one migration in it."""

    url: str
    api: str
    folder: Path
    runs: int = 0
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30, trust_env=False))

    def reset(self, folder: Path, bad_stage: int | None) -> None:
        """Begin a new migration that is verified and ready for its first stage."""
        self.folder = folder
        bad = None if bad_stage is None else WEIGHTS[bad_stage]
        self.client.post(f"{self.url}/world/reset", json={"bad_weight": bad}).raise_for_status()
        story.write(folder / "m" / "journal.jsonl", story.setup())

    def world(self) -> dict[str, Any]:
        return dict(self.client.get(f"{self.url}/world").json())

    @property
    def state(self) -> State:
        return fold(read_records(self.folder / "m" / "journal.jsonl"))

    def params(self) -> Params:
        kubeconfig = self.folder / "kubeconfig"
        if not kubeconfig.exists():
            kubeconfig.write_text(json.dumps(_kubeconfig(self.api)))
        stage = {"dwell": "10s", "error_rate_limit_percent": 1.0, "p95_limit_ms": 2000.0}
        return Params.model_validate(
            {
                "migration": "m",
                "environment": "lab",
                "mode": "act",
                "outputs": str(self.folder),
                "cluster": {"kubeconfig": str(kubeconfig), "uid": "cluster-uid"},
                "apisix": {"files": ["apisix.yaml"]},
                "istio": {"version": "1.31.0"},
                "traffic": {
                    "arrival_timeout": "120s",
                    "rollback_target": "60s",
                    "route53": {
                        "zone": ZONE,
                        "hosts": [HOST],
                        "endpoint_url": self.url,
                        "apisix_target": APISIX_LB,
                        "istio_target": ISTIO_LB,
                        "ttl": "60s",
                    },
                },
                "metrics": {"url": self.url, "step": "5s"},
                "stages": [{**stage, "weight_percent": w} for w in WEIGHTS],
            }
        )

    def due(self) -> type[Canary] | type[Rollback] | None:
        """Return the runbook an operator would run now."""
        state = self.state
        if state.rolling_back:
            return Rollback
        if state.phase in {Phase.VERIFIED, Phase.CANARY} and state.stage_index < len(WEIGHTS):
            return Canary
        return None

    def load(self) -> None:
        """Import what runs import on their way: children born with it take a fifth of the time."""
        loaded = self.folder / "loaded"
        for _ in range(3):
            kind = self.due()
            assert kind is not None
            assert self.run(kind, loaded=loaded) in {0, 4}
            for name in json.loads(loaded.read_text()):
                if name not in sys.modules:
                    with suppress(ImportError):
                        importlib.import_module(name)

    def run(
        self,
        kind: type[Canary] | type[Rollback],
        at: int = 0,
        how: str = "before",
        *,
        loaded: Path | None = None,
    ) -> int:
        """Run *kind* in a child that dies at its *at*-th I/O; return its exit code."""
        self.runs += 1
        params, now = self.params(), max(time.time(), self.world()["now"]) + 1.0
        child = os.fork()
        if child == 0:
            code = live(kind, params, now, f"{kind.name}-r{self.runs}", Shim(at, how))
            if loaded is not None:
                loaded.write_text(json.dumps(sorted(sys.modules)))
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def live(kind: Any, params: Params, now: float, run: str, shim: Shim | None = None) -> int:
    """Run *kind* from opening to closing, in this process, which is a child; return its exit code."""
    try:
        os.environ.update(GATESHIFT_RUN=run, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        Clock(now).install()
        # No front end looks at the pictures, and drawing them would take half of the time.
        LiveFigure.update = lambda _self, _draw: None
        LiveFigure.finish = lambda _self: None
        if shim is not None:
            shim.install()
        book = kind(params, {})
        book.read()
        plan = book.plan().plan
        if isinstance(book, Rollback):
            book.confirm()
        else:
            write_approval(Path(params.outputs) / "m", plan.digest, "ann")
        book.gate()
        book.act()
        book.verify()
        book.close()
    except GateshiftError as error:
        if error.exit_code not in {3, 4}:
            traceback.print_exc()
        elif os.environ.get("GATESHIFT_CRASH_SHOW"):
            print(f"{run}: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException:  # noqa: BLE001 - the child says what happened and ends, whatever it was
        traceback.print_exc()
        return FAILED
    return 0


def _kubeconfig(api: str) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": api}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


@contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    """A stand on a world in a process of its own, until the block ends; *folder* is its first."""
    command = [sys.executable, "-m", "tests.crash.world"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    where = json.loads(process.stdout.readline())
    made = Stand(where["url"], where["api"], folder)
    made.reset(folder, 1)
    made.load()
    yield made
    made.client.close()
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()
