"""Each run's folder has the run's own part of the journal, byte for byte, and it is checked against it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateshift.archive import audit
from gateshift.archive.commands import audit_group
from gateshift.archive.excerpt import excerpt
from gateshift.archive.files import file_digest
from gateshift.archive.manifest import seal
from gateshift.judge.replay import replay
from gateshift.metrics.annotations import annotations_of
from gateshift.migration.journal import Journal, read_records
from tests.archive.test_audit import make
from tests.archive.test_seals import RUN, attempt


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make(tmp_path / "outputs" / "demo")


def own(archive: Path) -> Path:
    return archive / RUN / "journal.jsonl"


def test_the_run_has_its_lines_of_the_journal_up_to_its_seal(archive: Path) -> None:
    whole = archive / "journal.jsonl"
    sealed = next(r for r in read_records(whole) if r.kind == "archive.sealed")
    lines = whole.read_bytes().splitlines(keepends=True)[: sealed.seq - 1]
    assert own(archive).read_bytes() == b"".join(lines)  # this migration has one run
    assert len(lines) > 5


def test_what_others_record_of_the_run_is_in_it_and_what_they_do_is_not(archive: Path) -> None:
    before = own(archive).read_bytes()
    with Journal.open(archive / "journal.jsonl", who="ben", run="80_rollback-r2") as journal:
        journal.append("run.started", notebook="80_rollback")
        journal.append("run.ended", notebook="50_canary", outcome="interrupted", run=RUN)
    records = read_records(archive / "journal.jsonl")
    added = excerpt(records, RUN, records[-1].seq).removeprefix(before)
    assert [b'"archive.sealed"' in line or b'"interrupted"' in line for line in added.splitlines()] == [
        True
    ] * 2


@pytest.mark.parametrize("change", ["byte", "line", "order", "gone", "link"])
def test_any_change_of_it_is_named(archive: Path, change: str) -> None:
    path = own(archive)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    if change == "byte":
        path.write_bytes(path.read_bytes().replace(b"ann", b"ben", 1))
    elif change == "line":
        path.write_bytes(b"".join([first, *rest]))
    elif change == "order":
        path.write_bytes(b"".join([second, first, *rest]))
    else:
        path.unlink()
        if change == "link":
            path.symlink_to("../journal.jsonl")
    assert path in {p.path for p in audit.verify(archive)}


def test_a_seal_over_other_records_than_the_journal_has_is_named(archive: Path) -> None:
    with Journal.open(archive / "journal.jsonl", who="ann", run=RUN) as journal:
        journal.append("run.started", notebook="50_canary")
        digest = seal(archive / RUN, journal=journal)
    # Somebody seals it himself, with a record left out.
    path, manifest = own(archive), archive / RUN / "manifest.json"
    known = file_digest(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    manifest.write_text(manifest.read_text().replace(known, file_digest(path)))
    assert file_digest(manifest) != digest
    with Journal.open(archive / "journal.jsonl", who="ann", run=RUN) as journal:
        journal.append("archive.sealed", run=RUN, manifest=file_digest(manifest), earlier="")
    (problem,) = [p for p in audit.verify(archive) if p.path == path]
    assert problem.what == "has not the records of this run that the migration's journal has"


@pytest.mark.slow
def test_one_left_by_a_seal_that_died_is_a_note_and_the_next_seal_settles_it(tmp_path: Path) -> None:
    migration = attempt(tmp_path)
    kept = (migration / RUN / "manifest.json").read_bytes()
    with Journal.open(migration / "journal.jsonl", who="ann", run=RUN) as journal:
        journal.append("run.started", notebook="50_canary")
        journal.append("run.ended", notebook="50_canary", outcome="done")
        seal(migration / RUN, journal=journal)
    (migration / RUN / "manifest.json").write_bytes(kept)  # it died before this
    (migration / RUN / "manifest-1.json").unlink()
    assert audit.verify(migration) == []
    assert "journal.jsonl: was left by a seal that was cut short" in "\n".join(
        map(str, audit.survey(migration))
    )
    attempt(tmp_path)
    assert audit.survey(migration) == []


def test_an_archive_of_before_has_none_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateshift.archive.manifest.atomic_write", _without_excerpt)
    archive = make(tmp_path / "demo")
    assert not own(archive).exists()
    assert audit.survey(archive) == []


def _without_excerpt(path: Path, data: bytes) -> None:
    if path.name != "journal.jsonl":
        path.write_bytes(data)


def test_a_run_is_no_migration_of_its_own(archive: Path) -> None:
    done = CliRunner().invoke(audit_group, ["verify", str(archive / RUN)])
    assert done.exit_code == 2
    assert "no archive here" in done.output
    assert audit.migrations_in(archive.parent) == [archive]


def test_verdicts_are_not_counted_twice(archive: Path, tmp_path: Path) -> None:
    assert b'"verdict"' in own(archive).read_bytes()
    alone = tmp_path / "alone"
    shutil.copytree(archive, alone)
    own(alone).unlink()
    assert len(annotations_of(archive)) == len(annotations_of(alone)) > 0
    sample = next((Path(__file__).parents[2] / "outputs" / "sample").glob("*/journal.jsonl")).parent
    assert len(replay(sample)) == sum(r.kind == "verdict" for r in read_records(sample / "journal.jsonl"))
