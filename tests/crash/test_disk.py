"""A disk that is full or read-only: nothing leads forward that is not on record, and the way back goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateshift.archive.audit import verify
from gateshift.errors import Unwritable
from gateshift.migration.journal import Journal, read_records
from gateshift.migration.state import Phase, fold
from gateshift.runbook.canary import Canary
from gateshift.runbook.observe import StageWatch
from gateshift.runbook.rollback import Rollback
from tests.archive import story
from tests.crash.driving import Stand, live, standing
from tests.crash.tiny_disk import fill, free, make_read_only, on_tiny_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold a migration with its first stage in force."""
    book = tmp_path / "o" / "m" / "journal.jsonl"
    story.write(book, story.setup())
    with Journal.open(book, who="ann", run="r") as journal:
        for kind, data in story.stage(0):
            journal.append(kind, **data)
    return tmp_path / "o"


def way_back(journal: Journal) -> None:
    journal.append("rollback.started", reason="full disk", **{"from": 10})
    journal.append("rollback.shifted", seconds_to_dns=1.0)
    journal.append("rollback.done", seconds_to_dns=1.0, seconds_to_users=2.0, checklist=["x" * 20_000])


def test_full_disk_stops_the_way_forward_and_records_the_way_back(folder: Path) -> None:
    def deed() -> int:
        book = folder / "m" / "journal.jsonl"
        with Journal.open(book, who="ann", run="r1") as journal:
            journal.append("note.while", there="is room")
            fill(folder)
            before = book.read_bytes()
            # What was set aside twice over may be used up to its half; then nothing leads forward any more.
            refused = None
            for _ in range(60):
                try:
                    journal.append("stage.entered", stage=1, weight=25, note="x" * 10_000)
                except Unwritable as error:
                    refused = error
                    break
                except Exception:  # noqa: BLE001 - a second entry of the stage is not legal, a note is
                    journal.append("note.filling", text="x" * 10_000)
            assert refused is not None
            assert "No space left on device" in str(refused)
            assert "free disk space" in refused.hint
            assert book.read_bytes().startswith(before)
            for _ in range(5):
                way_back(journal)
            assert journal.adrift == 0
        return 0

    code, kept = on_tiny_disk(folder, deed)
    assert code == 0
    state = fold(read_records(kept / "m" / "journal.jsonl"))
    assert (state.phase, state.attempts) == (Phase.ROLLED_BACK, 6)
    with Journal.open(kept / "m" / "journal.jsonl", who="ann", run="r2") as journal:
        journal.append("note.again")
    assert verify(kept / "m") == []


def test_what_no_disk_takes_is_said_and_written_once_it_does(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def deed() -> int:
        fill(folder)  # before anything could be set aside
        book = folder / "m" / "journal.jsonl"
        journal = Journal.open(book, who="ann", run="r1")
        before = book.read_bytes()
        with pytest.raises(Unwritable):
            journal.append("note.forward", text="x" * 5000)
        # Longer than what is left of the journal's last block.
        journal.append("rollback.started", reason="full disk " * 500, **{"from": 10})
        journal.append("rollback.shifted", seconds_to_dns=1.0)
        assert (journal.adrift, journal.state.weight_percent, book.read_bytes()) == (2, 0, before)
        known = journal.known[0]
        assert known is not None
        assert known.seq == len(read_records(book)), "the cluster is told of what is on the disk only"
        free(folder)
        with Journal.open(book, who="bob", run="r2") as other:
            other.append("note.meanwhile")
        journal.append("rollback.done", seconds_to_dns=1.0, seconds_to_users=2.0, checklist=[])
        assert journal.adrift == 0
        journal.close()
        return 0

    code, kept = on_tiny_disk(folder, deed)
    assert code == 0
    records = read_records(kept / "m" / "journal.jsonl")
    assert [r.kind for r in records[-4:]] == [
        "note.meanwhile",
        "rollback.started",
        "rollback.shifted",
        "rollback.done",
    ]
    assert verify(kept / "m") == []
    said = capfd.readouterr().err
    assert said.count("NOT IN THE JOURNAL") == 2
    assert "rollback.started" in said
    assert "No space left on device" in said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("nothing")) as made:
        yield made


def begun(world: Stand, folder: Path, *, bad: int | None = None) -> None:
    """Promote the first stage."""
    folder.mkdir()
    world.reset(folder, bad)
    assert world.run(Canary) == 0
    assert world.world()["weight"] == 25


def run_on(
    world: Stand, kind: type[Canary] | type[Rollback], trouble: Callable[[Path], None]
) -> tuple[int, Path]:
    """Run *kind* on a tiny disk after *trouble* befell it."""
    params, now = world.params(), world.world()["now"] + 1.0

    def deed() -> int:
        trouble(world.folder)
        return live(kind, params, now, f"{kind.name}-disk")

    return on_tiny_disk(world.folder, deed)


@pytest.mark.parametrize("trouble", [fill, make_read_only])
def test_rollback_on_a_disk_that_takes_nothing(
    world: Stand, tmp_path: Path, capfd: pytest.CaptureFixture[str], trouble: Callable[[Path], None]
) -> None:
    begun(world, tmp_path / "o")
    code, kept = run_on(world, Rollback, trouble)
    said = capfd.readouterr().err
    assert code == 0, said
    assert world.world()["weight"] == 0
    assert "NOT IN THE JOURNAL" in said
    # The next run after the disk is mended sees weights that no record explains, says so and moves nothing.
    assert verify(kept / "m") == []
    assert world.run(Canary) == 3
    assert world.world()["weight"] == 0
    assert world.run(Rollback) == 0
    assert world.state.phase is Phase.ROLLED_BACK


def test_forward_run_on_a_full_disk_moves_nothing(
    world: Stand, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun(world, tmp_path / "o")
    code, _ = run_on(world, Canary, fill)
    assert code == 1
    assert world.world()["weight"] == 25
    assert "Unwritable" in capfd.readouterr().err


def test_disk_that_fills_in_mid_stage_does_not_stop_the_verdict_to_roll_back(
    world: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(world, tmp_path / "o", bad=1)
    real = StageWatch._sample

    def sample(watch: StageWatch, since: float, now: float) -> object:
        if not watch.history:
            fill(world.folder)
        return real(watch, since, now)

    monkeypatch.setattr(StageWatch, "_sample", sample)
    code, kept = run_on(world, Canary, lambda _: None)
    assert code == 4
    assert world.world()["weight"] == 0
    state = fold(read_records(kept / "m" / "journal.jsonl"))
    assert state.rolling_back
    assert state.rollback_shifted, "all of it is on record: space was set aside for it"


def test_disk_that_fills_in_mid_stage_promotes_nothing(
    world: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun(world, tmp_path / "o")
    real = StageWatch._sample

    def sample(watch: StageWatch, since: float, now: float) -> object:
        if not watch.history:
            fill(world.folder)
        return real(watch, since, now)

    monkeypatch.setattr(StageWatch, "_sample", sample)
    code, kept = run_on(world, Canary, lambda _: None)
    assert code == 1
    assert "promotes nothing" in capfd.readouterr().err
    state = fold(read_records(kept / "m" / "journal.jsonl"))
    assert (state.stage_entered, state.stage_index) == (1, 1)
    assert state.weight_percent == world.world()["weight"] == 100
