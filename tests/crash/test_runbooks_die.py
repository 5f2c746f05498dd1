"""The real canary and rollback runbooks, killed at their I/O boundaries and resumed, in a world at the wire.

A short form runs always; ``make torture`` dies at every boundary and at a tenth of its random points, too.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateshift.archive.audit import verify
from gateshift.migration.journal import read_records
from gateshift.migration.state import Phase, fold
from gateshift.runbook.canary import Canary
from gateshift.runbook.rollback import Rollback
from tests.crash.driving import DIED, FAILED, ONLY_WRITES_HALVE, WEIGHTS, Stand, standing

pytestmark = pytest.mark.slow

POINTS = int(os.environ.get("GATESHIFT_CRASH_POINTS", "60"))
FULL = POINTS >= 10_000
HOWS = ("before", "half", "after")
PARTS = 10 if FULL else 1
"""Parts of the random points, for processes side by side."""


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("nothing")) as made:
        yield made


def check_between(stand: Stand) -> None:
    """DNS is at a weight the journal knows, and only at weights in their order."""
    world, state = stand.world(), stand.state
    assert world["weight"] in state.possible_weights
    path = [0, *WEIGHTS]
    seen = (
        world["changes"][:-1]
        if world["changes"][-1:] == [0] and len(world["changes"]) > 1
        else world["changes"]
    )
    assert seen == path[: len(seen)]


def check_end(stand: Stand, bad_stage: int | None, repeated: int = 0) -> None:
    """Nothing lost, nothing doubled, in the journal and in DNS; a started rollback is finished."""
    records = read_records(stand.folder / "m" / "journal.jsonl")
    state, world, kinds = fold(records), stand.world(), [r.kind for r in records]
    stages = len(WEIGHTS) if bad_stage is None else bad_stage + 1
    back = bad_stage is not None
    assert world["changes"] == [0, *WEIGHTS[:stages], *([0] if back else [])]
    assert state.weight_percent == world["weight"] == (0 if back else 100)
    assert state.phase is (Phase.ROLLED_BACK if back else Phase.CANARY)
    for kind in ("stage.entered", "shift.done"):
        # A shift that died after the provider had it is ended by its reconciliation instead.
        settled = sum(r.kind == "reconciled" and r.data["weight"] == r.data["asked"] for r in records)
        assert kinds.count(kind) + (settled if kind == "shift.done" else 0) == stages, kind
    unheard = sum(r.kind == "reconciled" and r.data["weight"] != r.data["asked"] for r in records)
    assert kinds.count("shift.intent") == stages + unheard
    assert kinds.count("stage.promoted") == (len(WEIGHTS) if not back else bad_stage)
    assert kinds.count("rollback.started") == kinds.count("rollback.shifted") == int(back) + repeated
    assert kinds.count("rollback.done") == int(back) + repeated
    assert not state.open_runs
    assert verify(stand.folder / "m") == []


def finish(stand: Stand, chance: random.Random) -> int:
    """Run whatever is due until nothing is, as an operator does; sometimes the wrong notebook.

    Returns how many rollbacks were repeated although they were done, by a run that died before it said so.
    """
    for _ in range(12):
        kind = stand.due()
        if kind is None:
            again = [Rollback if m.notebook == Rollback.name else Canary for m in stand.state.open_runs]
            assert all(stand.run(kind) in {0, 3, 4} for kind in again)
            return again.count(Rollback)
        if stand.state.rolling_back and not stand.state.rollback_shifted and chance.random() < 0.5:
            assert stand.run(Canary) == 4, "any notebook puts the weights back first"
            assert stand.world()["weight"] == 0
            continue
        assert stand.run(kind) in {0, 4}
        check_between(stand)
    pytest.fail("the migration does not come to its end")


def die_once(stand: Stand, folder: Path, bad_stage: int | None, leg: int, *, at: int, how: str) -> int:
    """Die in the *leg*-th run at its *at*-th I/O, then resume to the end; return the dead run's exit code."""
    folder.mkdir(parents=True)
    stand.reset(folder, bad_stage)
    for _ in range(leg):
        kind = stand.due()
        assert kind is not None
        assert stand.run(kind) in {0, 4}
    kind = stand.due()
    assert kind is not None
    code = stand.run(kind, at, how)
    assert code != FAILED
    check_between(stand)
    if code == ONLY_WRITES_HALVE:
        return code  # it died as before that boundary, which is another point
    repeated = finish(stand, random.Random(at))  # noqa: S311 - a seed, not a secret
    check_end(stand, bad_stage, repeated)
    return code


def test_whole_migrations_without_a_death(stand: Stand, tmp_path: Path) -> None:
    for bad_stage in (None, 1):
        folder = tmp_path / str(bad_stage)
        folder.mkdir()
        stand.reset(folder, bad_stage)
        finish(stand, random.Random(1))  # noqa: S311 - a seed, not a secret
        check_end(stand, bad_stage)


@pytest.mark.skipif(not FULL, reason="every boundary is for make torture")
@pytest.mark.parametrize("leg", [0, 1, 2])
@pytest.mark.parametrize("how", ["half", "after"])  # before an I/O the world is as after the one before it
def test_death_at_every_boundary(stand: Stand, tmp_path: Path, leg: int, how: str) -> None:
    at, code = 1, DIED
    while code not in {0, 4}:
        code = die_once(stand, tmp_path / str(at), 1, leg, at=at, how=how)
        at += 1
    assert at > 40, "the shim saw too little"


@pytest.mark.parametrize("part", range(PARTS))
def test_death_at_random_points(stand: Stand, tmp_path: Path, part: int) -> None:
    chance = random.Random(17 + part)  # noqa: S311 - a seed, not a secret
    died: list[int] = []
    for point in range(max(6, POINTS // 10) // PARTS):
        bad_stage = chance.choice([None, 0, 1])
        legs = 2 if bad_stage is None else bad_stage + 2
        at = chance.randrange(1, 190)
        leg, how = chance.randrange(legs), chance.choice(HOWS)
        died.append(die_once(stand, tmp_path / str(point), bad_stage, leg, at=at, how=how))
    assert died.count(DIED) * 2 > len(died), f"too few of the points were deaths: {died}"


def test_a_finished_rollback_can_be_repeated(stand: Stand, tmp_path: Path) -> None:
    """As an operator does whose run died after the rollback was done and before it said so."""
    stand.reset(tmp_path, 1)
    assert [stand.run(kind) for kind in (Canary, Canary)] == [0, 4]
    assert stand.run(Rollback) in {0, 4}
    assert stand.run(Rollback) in {0, 4}
    check_end(stand, 1, repeated=1)
