"""The real runbooks while what they depend on is away, slow or busy, or somebody else is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

from gateshift.archive.audit import verify
from gateshift.migration import lease, lock
from gateshift.migration.journal import read_records
from gateshift.migration.state import Phase
from gateshift.runbook.canary import Canary
from gateshift.runbook.rollback import Rollback
from tests.crash.driving import Stand, standing

pytestmark = pytest.mark.slow

FIVE_MINUTES = 300.0


def _now() -> float:
    return time.time()  # looked up when called: a run replaces it by its simulated clock


def weights_set(stand: Stand) -> list[int]:
    """Return the weights DNS had, one after another; a request that was refused changed none."""
    return [weight for weight, _ in groupby(stand.world()["changes"])]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("nothing")) as made:
        yield made


@pytest.fixture
def stand(shared: Stand, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Stand:
    # A lock's time passes with the run's: five minutes of silence are five minutes for it, too.
    monkeypatch.setattr(lock, "ticks", _now)
    monkeypatch.setattr(lease, "ticks", _now)
    shared.reset(tmp_path_factory.mktemp("m"), None)
    return shared


def befall(stand: Stand, **trouble: Any) -> None:
    stand.client.post(f"{stand.url}/world/trouble", json=trouble).raise_for_status()


def kinds(stand: Stand) -> list[str]:
    return [r.kind for r in read_records(stand.folder / "m" / "journal.jsonl")]


def test_metrics_away_for_five_minutes_promote_nothing_meanwhile(stand: Stand) -> None:
    befall(stand, away={"metrics": [5.0, 5.0 + FIVE_MINUTES]})
    code = stand.run(Canary)
    records = read_records(stand.folder / "m" / "journal.jsonl")
    verdicts = [r for r in records if r.kind == "verdict"]
    assert stand.world()["weight"] == stand.state.weight_percent == 25
    # The outage begins before the dwell is over (from 20 s on the stage would be promoted first) and lasts
    # longer than a stage is held, so this run ends held, and with no promotion.
    assert code == 3
    assert [r.data["decision"] for r in verdicts if r.data["decision"] == "promote"] == []
    assert "stage.promoted" not in [r.kind for r in records]
    # Metrics are back: the next run goes on to the end of the stage.
    befall(stand)
    while stand.state.stage_index == 0:
        assert stand.run(Canary) == 0
    assert kinds(stand).count("stage.promoted") == 1
    assert weights_set(stand) == [0, 25]
    assert verify(stand.folder / "m") == []


def test_api_server_away_in_mid_stage_promotes_nothing(
    stand: Stand, capfd: pytest.CaptureFixture[str]
) -> None:
    os.environ["GATESHIFT_CRASH_SHOW"] = "1"
    try:
        befall(stand, away={"api": [10.0, 10_000.0]}, pending=0)
        assert stand.run(Canary) == 0 or "stage.promoted" not in kinds(stand)
    finally:
        del os.environ["GATESHIFT_CRASH_SHOW"]
    if stand.state.stage_index == 0:
        assert "may have been taken over" in capfd.readouterr().err
    assert stand.world()["weight"] == stand.state.weight_percent == 25
    # A rollback needs neither the cluster nor its Lease.
    assert stand.run(Rollback) == 0
    assert stand.world()["weight"] == 0
    assert stand.state.phase is Phase.ROLLED_BACK


def test_throttled_provider_and_slow_insync_end_at_the_weight_of_the_stage(stand: Stand) -> None:
    befall(stand, throttle=3, pending=3)
    assert stand.run(Canary) == 0
    done = next(r for r in read_records(stand.folder / "m" / "journal.jsonl") if r.kind == "shift.done")
    assert weights_set(stand) == [0, 25]
    assert done.data["to"] == 25
    assert stand.state.stage_index == 1


def test_rollback_with_a_throttled_provider(stand: Stand) -> None:
    assert stand.run(Canary) == 0
    befall(stand, throttle=3, pending=3)
    assert stand.run(Rollback) == 0
    assert stand.world()["weight"] == 0


def test_a_clock_that_jumped_back_an_hour_between_runs(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stand.run(Canary) == 0
    before = len(kinds(stand))
    # The second operator's clock is an hour behind: records are ordered by their chain, not by their time.
    real = stand.world
    monkeypatch.setattr(stand, "world", lambda: {**real(), "now": 0.0})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0)
    code = stand.run(Canary)
    assert code in {0, 3}
    assert len(kinds(stand)) > before
    assert real()["weight"] == stand.state.weight_percent
    assert stand.state.possible_weights == {real()["weight"]}
    assert verify(stand.folder / "m") == []


def test_two_operators_at_once(stand: Stand, capfd: pytest.CaptureFixture[str]) -> None:
    holder = lock.LocalLock(stand.folder / "m" / "lock", who="ann@elsewhere")
    holder.acquire()
    os.environ["GATESHIFT_CRASH_SHOW"] = "1"
    try:
        assert stand.run(Canary) == 3
        assert "ann@elsewhere holds the migration's lock" in capfd.readouterr().err
        assert weights_set(stand) == []
        assert "stage.entered" not in kinds(stand)
    finally:
        del os.environ["GATESHIFT_CRASH_SHOW"]
        holder.release()
    assert stand.run(Canary) == 0
