"""A seal is for good: what was under one never gets a new one for what was made of it afterwards."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from gateshift.archive import audit
from gateshift.archive.manifest import seal
from gateshift.archive.run import execute, settle
from gateshift.archive.seals import runs_of
from gateshift.migration.journal import Journal, read_records
from tests.archive.books import write_notebook
from tests.archive.test_audit import make

RUN = "50_canary-r1"
DEAD = f"{socket.gethostname()}/{2**22 + 1}/1/"
"""An engine of this machine that has surely ended: no process has such a number."""


def say_running(book: Path) -> None:
    node = json.loads(book.read_text())
    node["metadata"]["gateshift"].update(outcome="running", engine=DEAD)
    book.write_text(json.dumps(node))


@pytest.mark.parametrize("delisted", [False, True])
def test_settling_gives_no_new_seal_to_what_was_sealed(tmp_path: Path, delisted: bool) -> None:
    archive = make(tmp_path / "demo")
    book, plan = (archive / RUN / name for name in ("50_canary.ipynb", "plan.json"))
    say_running(book)
    plan.write_text('{"edited": true}')
    if delisted:  # and the manifest as well, so that the notebook looks as if it had no seal
        manifest = json.loads((archive / RUN / "manifest.json").read_text())
        del manifest["files"]["50_canary.ipynb"]
        (archive / RUN / "manifest.json").write_text(json.dumps(manifest))
    before = {p.path.name for p in audit.verify(archive)}
    assert before >= ({"manifest.json"} if delisted else {book.name, plan.name})
    settle(archive)
    assert {p.path.name for p in audit.verify(archive)} >= ({"manifest.json"} if delisted else before)


def attempt(tmp_path: Path, code: str = "") -> Path:
    """A second attempt in the run's folder that tells the journal what it does, by the real engine."""
    migration = tmp_path / "m"
    run = migration / RUN
    source = (
        "from pathlib import Path\nfrom gateshift.migration.journal import Journal\n"
        f"run = Path({str(run)!r})\n"
        "journal = Journal.open(run.parent / 'journal.jsonl', who='ann', run=run.name)\n"
        "journal.append('migration.opened', params_digest='x')\n"
        "journal.append('run.started', notebook='50_canary')\n"
        "plan = run / 'plan.json'\n"
        "plan.write_text(plan.read_text() + '1' if plan.exists() else '1')\n"
        f"{code}"
    )
    book = write_notebook(tmp_path / "50_canary.ipynb", source)
    execute(book, run / "50_canary.ipynb")
    return migration


@pytest.mark.slow
def test_each_attempt_in_a_folder_is_sealed_and_the_first_seal_stays(tmp_path: Path) -> None:
    migration = attempt(tmp_path)
    first = (migration / RUN / "manifest.json").read_bytes()
    assert audit.survey(migration) == []
    for _ in range(2):
        attempt(tmp_path)
        assert audit.survey(migration) == []
    assert (migration / RUN / "manifest-1.json").read_bytes() == first
    assert (migration / RUN / "plan.json").read_text() == "111"
    sealed = runs_of(read_records(migration / "journal.jsonl"))[RUN].seals
    assert [r.data["earlier"] for r in sealed] == ["", *(r.data["manifest"] for r in sealed[:-1])]
    for path in (p for p in (migration / RUN).iterdir() if p.is_file()):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"1", b"2", 1))
        assert path in {p.path for p in audit.verify(migration)}, path.name
        path.unlink()
        assert path in {p.path for p in audit.verify(migration)}, f"{path.name} deleted"
        path.write_bytes(raw)
    assert audit.survey(migration) == []


def test_an_attempt_does_not_cover_what_was_made_of_the_notebook_before(tmp_path: Path) -> None:
    migration = attempt(tmp_path)
    book = migration / RUN / "50_canary.ipynb"
    book.write_text(book.read_text().replace("journal.append", "journal.append "))
    attempt(tmp_path)
    (problem,) = audit.verify(migration)
    assert problem.path == book
    assert "between its seals" in problem.what


def test_a_file_changed_and_sealed_again_without_an_attempt_is_named(tmp_path: Path) -> None:
    archive = make(tmp_path / "demo")
    (archive / RUN / "plan.json").write_text('{"edited": true}')
    (archive / RUN / "extra.txt").write_text("x")
    # What an attacker finds that makes the engine seal once more: a copy that died, under an attempt's name.
    book = archive / RUN / "50_canary-attempt2.ipynb"
    book.write_bytes((archive / RUN / "50_canary.ipynb").read_bytes())
    say_running(book)
    settle(archive)
    assert {p.path.name for p in audit.verify(archive)} == {"plan.json", "extra.txt"}


def test_an_attempt_under_way_is_a_note_and_is_settled_when_it_died(tmp_path: Path) -> None:
    migration = attempt(tmp_path)
    book = migration / RUN / "50_canary-attempt2.ipynb"
    book.write_bytes((migration / RUN / "50_canary.ipynb").read_bytes())
    say_running(book)
    assert audit.verify(migration) == [], "begun, and not in the journal yet"
    assert [p.path for p in audit.survey(migration)] == [book]
    with Journal.open(migration / "journal.jsonl", who="ann", run=RUN) as journal:
        journal.append("run.started", notebook="50_canary")
    (migration / RUN / "plan.json").write_text("of the second")
    (migration / RUN / "before.json").write_text("{}")
    assert audit.verify(migration) == []
    assert audit.unsealed(migration) == [RUN]
    assert settle(migration) == [book]
    assert audit.survey(migration) == []
    assert read_records(migration / "journal.jsonl")[-2].data["outcome"] == "interrupted"


def test_a_death_between_the_second_seal_and_its_record_is_a_note(tmp_path: Path) -> None:
    migration = attempt(tmp_path)
    attempt(tmp_path)
    book = migration / "journal.jsonl"
    *kept, _ = book.read_bytes().splitlines(keepends=True)
    book.write_bytes(b"".join(kept))
    book.with_suffix(".head").unlink()
    head = {"hash": json.loads(kept[-1])["hash"], "seq": len(kept)}
    book.with_suffix(".head").write_text(json.dumps(head, separators=(",", ":")) + "\n")
    assert audit.verify(migration) == []
    assert audit.unsealed(migration) == [RUN]
    settle(migration)
    assert audit.survey(migration) == []


def test_an_older_archive_sealed_twice_is_told_of(tmp_path: Path) -> None:
    archive = make(tmp_path / "demo")
    with Journal.open(archive / "journal.jsonl", who="ann", run=RUN) as journal:
        (archive / RUN / "plan.json").write_text('{"edited": true}')
        (archive / RUN / "journal.jsonl").unlink()  # which no run had then
        journal.append("archive.sealed", run=RUN, manifest=seal(archive / RUN))
    assert audit.verify(archive) == []
    (note,) = [p for p in audit.survey(archive) if p.path.name == "manifest.json"]
    assert "what the first covered is not known" in note.what
