"""What may lie in a migration's folder without being evidence: known by place and form, and nothing else."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gateshift.archive import audit
from gateshift.archive.layout import evidence
from gateshift.archive.manifest import seal
from gateshift.archive.packing import export
from gateshift.archive.report import write_report
from gateshift.desk import lay
from gateshift.migration.identity import Process
from gateshift.migration.journal import Journal
from gateshift.migration.lock import LocalLock
from gateshift.notify import Event, Notifier
from gateshift.runbook.approvals import write_approval
from tests.archive.test_audit import make

ROOT = Path(__file__).parent.parent.parent
RUN = "50_canary-r1"
SHOWN = f"{1:016x}"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make(tmp_path / "demo")


def notes(archive: Path) -> list[str]:
    return [p.path.name for p in audit.survey(archive) if p.note]


def running(path: Path, **mark: str) -> Path:
    mark = {"outcome": "running", "engine": Process.current().text(), **mark}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": [], "metadata": {"gateshift": mark}}))
    return path


def test_desk_messages_and_lock_are_no_evidence_and_no_strangers(archive: Path, tmp_path: Path) -> None:
    lay(ROOT / "notebooks", archive)
    (archive / "desk" / ".layout").mkdir()
    (archive / "desk" / ".layout" / "lab.jupyterlab-workspace").write_text("{}")
    notifier = Notifier(["json://x"], archive, title="t", send=lambda *_: [])
    notifier.tell(Event("held", "key", "warning", "held: no data"))
    assert notifier.flush()
    with (archive / "notifications.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T00:0')  # a death while it was written
    with LocalLock(archive / "lock"):
        assert audit.survey(archive) == []
    assert audit.survey(archive) == []
    write_report(archive)
    assert not [p.name for p in (archive / "html").iterdir() if "desk" in p.name], "never executed there"
    packed = {p.relative_to(archive).parts[0] for p in evidence(archive)}
    assert packed == {"journal.jsonl", "journal.head", "report.html", "html", "approvals", RUN}
    with tarfile.open(export(archive, tmp_path / "x.tar.gz")) as pack:
        assert {n.split("/")[1] for n in pack.getnames()} == {*packed, "HEAD.json"}


@pytest.mark.parametrize("name", ["desk", "notifications.jsonl", "HEAD.json", "lock"])
def test_these_names_are_known_at_their_place_only(archive: Path, name: str) -> None:
    stray = archive / RUN / name
    stray.write_text("{}")
    assert [p.path for p in audit.verify(archive)] == [stray]
    stray.unlink()
    other = archive / "html" / name
    other.write_text("{}")
    assert [p.path for p in audit.verify(archive)] == [other]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("desk", "a file"),
        ("lock", "anything"),
        ("lock", '{"who": "eve"}'),
        ("lock", "[]"),
        ("notifications.jsonl", "anything\n"),
        ("notifications.jsonl", '{"key": "x"}\n'),
        ("HEAD.json", '{"migration": "demo", "head": "0"}'),
    ],
)
def test_these_names_are_known_in_their_form_only(archive: Path, name: str, text: str) -> None:
    (archive / name).write_text(text)
    assert [p.path for p in audit.verify(archive)] == [archive / name]


def _link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "content").write_text("x")


def _file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"who": "eve"}')


@pytest.mark.parametrize(
    ("place", "make_it"),
    [
        ("x.part", _file),
        ("x.tmp", _file),
        ("x.part", _folder),
        (".x.txt.12.part", _folder),
        (".x.txt.12.part", _link),
        ("report", _folder),  # a name in the journal's column "run", of no run
        ("extra", _link),
        ("approvals/x.txt", _file),
        ("approvals/sub/x.json", _file),
        (f"approvals/{SHOWN}-zzz.json", _file),
        (f"approvals/{SHOWN}-12345678-{SHOWN}.json", _file),
        ("approvals/deadbeefdeadbeef.json", _file),
        ("html/sub/x.html", _file),
        (f"{RUN}/x.part", _file),
        (f"{RUN}/x.tmp", _file),
        (f"{RUN}/sub/x.tmp", _file),
        (f"{RUN}/link", _link),
        (f"{RUN}/manifest-1.json", _file),
    ],
)
def test_what_is_added_is_named(archive: Path, place: str, make_it: Callable[[Path], None]) -> None:
    make_it(archive / place)
    (problem,) = audit.verify(archive)
    assert archive / place in {problem.path, problem.path / "content"}


def test_an_approval_that_is_none_is_named(archive: Path) -> None:
    path = archive / "approvals" / f"{SHOWN}-12345678.json"
    for text in ("", "[]", '{"who": 7}', '{"who": "ann", "digest": "deadbeefdeadbeef"}'):
        path.write_text(text)
        assert [(p.path, p.what) for p in audit.verify(archive)] == [(path, "is no approval")], text


def test_an_approval_is_a_note_until_the_next_seal(archive: Path) -> None:
    write_approval(archive, SHOWN, "bob")
    assert audit.verify(archive) == []
    assert notes(archive) == [p.name for p in (archive / "approvals").iterdir() if "-" in p.name]
    with Journal.open(archive / "journal.jsonl", who="ann", run="r2") as journal:
        journal.append("run.started", notebook="50_canary")
        (archive / "r2").mkdir()
        journal.append("archive.sealed", run="r2", manifest=seal(archive / "r2", journal=journal), earlier="")
    assert audit.survey(archive) == []


def test_what_a_killed_write_leaves_is_a_note(archive: Path) -> None:
    for place in (".x.txt.12.part", f"{RUN}/.plan.json.12.part", "html/.a.html.1.part", "journal.head.part"):
        (archive / place).write_text("x")
    (archive / "approvals" / ".y.json.12.part").write_text("x")
    assert audit.verify(archive) == []
    assert len(notes(archive)) == 5
    assert not [p for p in evidence(archive) if p.name.endswith(".part")]


def test_only_a_run_that_has_just_begun_may_be_unknown(archive: Path) -> None:
    book = running(archive / "60_soak-r2" / "60_soak.ipynb")
    (book.parent / f".60_soak.ipynb.{os.getpid()}.part").write_text("{")
    assert audit.verify(archive) == []
    assert notes(archive) == ["60_soak-r2"]
    (book.parent / "plan.json").write_text("{}")
    assert [p.path.name for p in audit.verify(archive)] == ["60_soak-r2"], (
        "no file but its notebook is its own"
    )
    (book.parent / "plan.json").unlink()
    for text in ('{"x": {"outcome": "running"}}', '"outcome": "running"', '[{"outcome": "running"}]'):
        book.write_text(text)
        assert [p.path.name for p in audit.verify(archive)] == ["60_soak-r2"], text
    running(book, engine="nobody")
    assert [p.path.name for p in audit.verify(archive)] == ["60_soak-r2"]
