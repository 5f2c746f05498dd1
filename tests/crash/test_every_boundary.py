"""A migration that dies at every single I/O boundary, and is resumed.

Each death is a real one: a forked child runs the migration with the real journal and ends by ``_exit`` at
its n-th write, flush, rename or truncation, before, in the middle of, or after it. DNS is a file outside
of the journal's reach, changed at once or not at all, which notes every change.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateshift.archive.audit import verify
from gateshift.migration.journal import Journal, read_records
from gateshift.migration.state import Phase, State, fold
from tests.archive import story

pytestmark = pytest.mark.slow

POINTS = int(os.environ.get("GATESHIFT_CRASH_POINTS", "60"))
"""Random points beside the systematic ones; ``make torture`` sets 10000."""
PARTS = 10 if POINTS >= 10_000 else 1
"""Parts of them, for processes side by side."""


class Dns:
    """The outside world: one weight, and every change ever made to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def changes(self) -> list[int]:
        return [int(line) for line in self.path.read_text().split()] if self.path.exists() else []

    @property
    def weight(self) -> int:
        return self.changes[-1] if self.changes else 0

    def set(self, weight: int) -> None:
        if self.weight != weight:
            with self.path.open("a") as file:
                file.write(f"{weight}\n")


def drive(folder: Path, bad_stage: int | None, run: str) -> None:
    """Run or resume the migration to its end, as the runbooks do: look at journal and DNS, go on."""
    dns = Dns(folder.parent / "dns")
    with Journal.open(folder / "journal.jsonl", who="ann", run=run) as journal:
        if not journal.records or journal.state.phase is Phase.NEW:
            journal.append("migration.opened", params_digest="x")
        while move(journal, dns, journal.state, bad_stage):
            pass


def move(journal: Journal, dns: Dns, state: State, bad_stage: int | None) -> bool:
    add: Callable[..., Any] = journal.append
    if state.rolling_back:
        if not state.rollback_shifted:
            dns.set(0)
            add("rollback.shifted", seconds_to_dns=0.1)
        else:
            add("rollback.done", seconds_to_dns=0.1, seconds_to_users=1.0, checklist=[])
    elif state.phase is Phase.OPENED:
        add("preflight.done", ok=True)
    elif state.phase in {Phase.PREFLIGHTED, Phase.INSTALLED}:
        what = "install" if state.phase is Phase.PREFLIGHTED else "apply"
        if state.pending != what:
            add(f"{what}.intent", snapshot="s")
        add(f"{what}.done")
    elif state.phase is Phase.APPLIED:
        add("verify.done", ok=True)
    elif state.phase in {Phase.VERIFIED, Phase.CANARY} and state.stage_index < len(story.WEIGHTS):
        stage(journal, dns, state, bad_stage)
    else:
        return False
    return True


def stage(journal: Journal, dns: Dns, state: State, bad_stage: int | None) -> None:
    add: Callable[..., Any] = journal.append
    index = state.stage_index
    weight = story.WEIGHTS[index]
    judged = [v for v in state.verdicts if v.stage == index]
    if state.stage_entered is None:
        add("stage.entered", stage=index, weight=weight)
    elif state.weight_percent != weight:
        if state.shifting_to is None:
            before = state.weight_percent
            add("shift.intent", stage=index, **{"from": before}, to=weight, snapshot={"weight": dns.weight})
        dns.set(weight)
        add("shift.done", to=weight)
    elif not state.arrived:
        add("stage.arrived", stage=index, share=float(weight))
    elif not judged:
        add("verdict", stage=index, decision="rollback" if index == bad_stage else "promote", reasons=["r"])
    elif judged[-1].decision == "rollback":
        add("rollback.started", reason="bad", **{"from": weight})
    else:
        add("stage.promoted", stage=index)


class Shim:
    """Numbers the process's I/O on files and dies at one of them. ``how``: before, half or after."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.count = at, how, 0

    def install(self) -> None:
        for name in ("write", "fdatasync", "ftruncate", "replace", "open"):
            setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return real(*arguments, **options)
            if self.how == "half" and name != "write":
                os._exit(8)
            if self.how == "half":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif self.how == "after":
                real(*arguments, **options)
            os._exit(9)

        return call


def run_and_die(folder: Path, bad_stage: int | None, at: int, how: str, run: str) -> int:
    """Return 9 when it died, 8 when only a write can be halved, 0 at its end, 1 when it failed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Shim(at, how).install()
            drive(folder, bad_stage, run)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_between(folder: Path) -> None:
    book = folder / "journal.jsonl"
    state = fold(read_records(book)) if book.exists() else State()
    assert Dns(folder.parent / "dns").weight in state.possible_weights


def check_end(folder: Path, bad_stage: int | None) -> None:
    records = read_records(folder / "journal.jsonl")
    state, dns = fold(records), Dns(folder.parent / "dns")
    kinds = [r.kind for r in records if r.kind not in {"journal.repaired", "migration.opened"}]
    stages = len(story.WEIGHTS) if bad_stage is None else bad_stage + 1
    reached = list(story.WEIGHTS[:stages])
    # Nothing lost and nothing doubled, in the journal and in the world.
    for kind in ("stage.entered", "shift.intent", "shift.done", "stage.arrived", "verdict"):
        assert kinds.count(kind) == stages, kind
    for kind in ("install.intent", "install.done", "apply.intent", "apply.done", "preflight.done"):
        assert kinds.count(kind) == 1, kind
    assert kinds.count("rollback.done") == kinds.count("rollback.started") == (bad_stage is not None)
    assert dns.changes == (reached if bad_stage is None else [*reached, 0])
    assert dns.weight == state.weight_percent
    assert state.phase is (Phase.CANARY if bad_stage is None else Phase.ROLLED_BACK)
    assert verify(folder) == []


@pytest.mark.parametrize("bad_stage", [None, 1])
@pytest.mark.parametrize("how", ["before", "half"])
def test_death_at_every_boundary(tmp_path: Path, bad_stage: int | None, how: str) -> None:
    at, died = 1, True
    while died:
        folder = tmp_path / str(at) / "m"
        folder.mkdir(parents=True)
        code = run_and_die(folder, bad_stage, at, how, "r1")
        assert code in {0, 8, 9}
        died = code != 0
        at += 1
        if code == 8:
            continue
        check_between(folder)
        assert run_and_die(folder, bad_stage, 0, how, "r2") == 0
        check_end(folder, bad_stage)
    assert at > 80, "the shim saw too little"


@pytest.mark.parametrize("part", range(PARTS))
def test_death_again_and_again_at_random_points(tmp_path: Path, part: int) -> None:
    chance = random.Random(11 + part)  # noqa: S311 - a seed, not a secret
    points, migration = 0, 0
    while points < POINTS // PARTS:
        migration += 1
        folder = tmp_path / str(migration) / "m"
        folder.mkdir(parents=True)
        bad_stage = chance.choice([None, 0, 2, 4])
        code = 9
        while code:
            how = chance.choice(["before", "half", "after"])
            code = run_and_die(folder, bad_stage, chance.randrange(2, 90), how, f"r{points}")
            assert code in {0, 8, 9}
            check_between(folder)
            points += 1
        check_end(folder, bad_stage)


def test_journal_of_a_death_says_what_happened(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    raw = b""
    for at in range(2, 60):
        run_and_die(folder, None, at, "half", f"r{at}")
        book = folder / "journal.jsonl"
        raw = book.read_bytes() if book.exists() else b""
        if raw and not raw.endswith(b"\n"):
            break
    else:
        pytest.fail("no write was torn")
    drive(folder, None, "resume")
    repairs = [r for r in read_records(folder / "journal.jsonl") if r.kind == "journal.repaired"]
    assert repairs[-1].data["dropped_bytes"] == len(raw) - raw.rfind(b"\n") - 1
    assert json.dumps(repairs[-1].data["dropped_base64"])
