"""The documentation's commands that need a cluster, executed as they are written: one story on the lab."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gateshift import lab as laboratory
from gateshift.migration.journal import read_records
from tests.docs.commands import GATED, ON_LAB, ROOT, Expected, workspace

pytestmark = [pytest.mark.lab, pytest.mark.docs]
LAB = "docs"


class Hook(http.server.BaseHTTPRequestHandler):
    """A web hook that takes every message."""

    def do_POST(self) -> None:
        self.server.taken.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.taken = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


@pytest.fixture
def lab_is_ended() -> Iterator[None]:
    yield
    laboratory.down(LAB)


def clone_for(clone: Path, port: int) -> None:
    """A clone whose params files all are the lab's, with two short stages."""
    workspace(clone, outputs=None)
    data = yaml.safe_load((ROOT / "params/lab.yaml").read_text(encoding="utf-8"))
    data["stages"] = [{**data["stages"][1], "dwell": "5s"}, {**data["stages"][-1], "dwell": "5s"}]
    data["notify"] = {"urls": [f"json://127.0.0.1:{port}"]}
    for name in ("lab", "production", "shop"):
        (clone / "params" / f"{name}.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


class Terminals:
    """Two terminals of one reader: a command that waits at its gate stays open in the first."""

    def __init__(self, clone: Path, tmp_path: Path) -> None:
        self.clone, self.digest, self.open_ = clone, "", None
        self.journal = clone / "outputs" / "rehearsal" / "journal.jsonl"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("GATESHIFT", "APISIX"))},
            "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}",
            "GATESHIFT_LAB": LAB,
            "USER": "reader",
        }
        self.vars = tmp_path / "vars"
        self.vars.touch()
        self.waiting: tuple[subprocess.Popen[str], str, Expected] | None = None

    def type(self, command: str, expected: Expected) -> None:
        line = command
        for mark in ("<digest>", "<摘要>", "DIGEST"):
            if "approve" in command and self.digest and "$" not in command:
                line = line.replace(mark, self.digest)
        process = self._start(line)
        if expected.says == GATED:
            self.digest = self._await_plan(process, command)
            self.waiting = (process, command, Expected("", expected.code))
            return
        self._end(process, command, expected)
        if self.waiting and command.startswith("gateshift approve"):
            (first, typed, ends), self.waiting = self.waiting, None
            self._end(first, typed, ends)

    def _start(self, line: str) -> subprocess.Popen[str]:
        script = f"set -a; . {shlex.quote(str(self.vars))}; {line}\ncode=$?; "
        script += f"declare -p DIGEST >{shlex.quote(str(self.vars))} 2>/dev/null; exit $code"
        return subprocess.Popen(
            ["/bin/bash", "-c", script],
            cwd=self.clone,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def _end(self, process: subprocess.Popen[str], command: str, expected: Expected) -> None:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == expected.code, f"{command}: {process.returncode}\n{said[-3000:]}"
        assert expected.says in said, f"{command}: {said[-3000:]}"

    def _plans(self) -> list[str]:
        if not self.journal.exists():
            return []
        return [r.data["plan"]["digest"] for r in read_records(self.journal) if r.kind == "plan.shown"]

    def _await_plan(self, process: subprocess.Popen[str], command: str) -> str:
        before, deadline = len(self._plans()), time.monotonic() + 120
        while len(self._plans()) == before:
            assert time.monotonic() < deadline, f"{command} shows no plan"
            if process.poll() is not None:
                said, _ = process.communicate()
                raise AssertionError(f"{command} ended with {process.returncode}: {said[-3000:]}")
            time.sleep(0.2)
        return self._plans()[-1]


@pytest.mark.usefixtures("lab_is_ended")
def test_the_story_of_the_pages(hook: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone_for(clone, hook.server_port)
    reader = Terminals(clone, tmp_path)
    for command, expected in ON_LAB:
        begun = time.monotonic()
        reader.type(command, expected)
        print(f"{time.monotonic() - begun:5.1f} s  {command}")
        if command == "gateshift lab up":
            reader.env["APISIX_ADMIN_KEY"] = str(laboratory.status(LAB)["admin_key"])
    kinds = [r.kind for r in read_records(reader.journal)]
    assert kinds.count("stage.promoted") == 2
    assert "rollback.proven" in kinds or "rollback.done" in kinds
    assert [m for m in hook.taken if b"rolled back" in m.lower()]  # type: ignore[attr-defined]
    assert json.loads((clone / "result.txt").read_text(encoding="utf-8").splitlines()[-1])["exit_code"] == 0
