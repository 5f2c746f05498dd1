from __future__ import annotations

import json
import os
import random
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateshift.archive import audit
from gateshift.archive.commands import audit_group, history_command
from gateshift.archive.manifest import seal
from gateshift.archive.outcome import ending_record
from gateshift.archive.packing import export
from gateshift.archive.report import write_report
from gateshift.archive.run import settle
from gateshift.archive.sealing import conclude
from gateshift.errors import InputError, JournalError
from gateshift.migration.identity import Process
from gateshift.migration.journal import Journal
from tests.archive import story
from tests.archive.books import read, write_notebook

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def make(folder: Path, *, bad: bool = True) -> Path:
    """Lay down a migration's archive as runs leave it: journal, executed copy, samples, seal, report."""
    run = folder / "50_canary-r1"
    book = write_notebook(run / "50_canary.ipynb", "figure")
    node = read(book)
    node.cells[-1].outputs = [
        {"output_type": "display_data", "data": {"image/png": PNG, "text/plain": "fig"}, "metadata": {}}
    ]
    node.metadata["gateshift"] = {"outcome": "rolled back", "started": "2026-01-01"}
    book.write_text(json.dumps(node))
    (run / "samples.jsonl").write_text('{"time": 1}\n')
    (run / "plan.json").write_text("{}\n")
    (folder / "approvals").mkdir()
    (folder / "approvals" / f"{1:016x}.json").write_text('{"who": "ann"}')
    story.write(folder / "journal.jsonl", story.rolled_back() if bad else story.promoted(), run=run.name)
    with Journal.open(folder / "journal.jsonl", who="ann", run=run.name) as journal:
        digest = seal(run, journal=journal)
        journal.append("archive.sealed", run=run.name, manifest=digest)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("outputs") / "demo")


def test_untouched_archive_passes(archive: Path) -> None:
    assert audit.verify(archive) == []
    assert audit.verify(archive.parent) == []


EDITS = int(os.environ.get("GATESHIFT_CRASH_POINTS", "120"))
"""Random one-byte edits of an archive; ``make torture`` makes 10,000."""


def test_any_byte_of_any_file_is_found_and_its_file_named(archive: Path) -> None:
    chance = random.Random(3)  # noqa: S311 - a seed, not a secret
    files = [p for p in archive.rglob("*") if p.is_file()]
    assert {"report.html", "manifest.json", "journal.head", "samples.jsonl"} <= {p.name for p in files}
    for edit in range(EDITS):
        path = files[edit % len(files)]
        raw = path.read_bytes()
        place = chance.randrange(len(raw))
        changed = bytearray(raw)
        changed[place] = (changed[place] + chance.randrange(1, 256)) % 256
        path.write_bytes(bytes(changed))
        problems = audit.verify(archive)
        assert any(p.path == path for p in problems), f"{path.name} byte {place}: {problems}"
        path.write_bytes(raw)
    assert audit.verify(archive) == []


@pytest.mark.parametrize(
    "nonsense",
    [
        {"files": {"50_canary.ipynb": {"sha156": "x"}}},
        {"files": {"50_canary.ipynb": 7}},
        {"files": {"a\0b": {"sha256": "x"}}},
        {"files": ["50_canary.ipynb", 7]},
        {"files": {}, "journal": 7},
        {"files": {}, "journal": {"seq": "x", "hash": "y"}},
        {"files": {}, "shared": [1]},
    ],
)
def test_a_changed_manifest_is_named_whatever_it_lists(archive: Path, nonsense: dict[str, Any]) -> None:
    path = next(iter(sorted(archive.glob("*/manifest.json"))))
    raw = path.read_bytes()
    try:
        path.write_text(json.dumps({**json.loads(raw), **nonsense}))
        assert any(p.path == path and "was changed" in p.what for p in audit.verify(archive))
    finally:
        path.write_bytes(raw)
    assert audit.verify(archive) == []


def test_records_that_change_places_are_found(archive: Path) -> None:
    path = archive / "journal.jsonl"
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    for first in range(len(lines) - 1):
        moved = [*lines]
        moved[first], moved[first + 1] = moved[first + 1], moved[first]
        path.write_bytes(b"".join(moved))
        assert any(p.path == path and f"record {first + 1}" in p.what for p in audit.verify(archive)), first
        path.write_bytes(b"".join(lines[:first] + lines[first + 1 :]))
        assert any(p.path == path for p in audit.verify(archive)), f"record {first + 1} is gone"
        path.write_bytes(b"".join(lines[: first + 1]))
        assert any(p.path == path and "missing at its end" in p.what for p in audit.verify(archive)), first
    path.write_bytes(raw)
    assert audit.verify(archive) == []


def test_deletion_addition_and_truncation_are_found(archive: Path) -> None:
    for path in [p for p in archive.rglob("*") if p.is_file()]:
        raw = path.read_bytes()
        path.unlink()
        assert any(p.path == path for p in audit.verify(archive)), f"{path.name} deleted"
        path.write_bytes(raw[:-1])
        assert audit.verify(archive), f"{path.name} shortened"
        path.write_bytes(raw)
    for extra in (archive / "extra.txt", archive / "50_canary-r1" / "extra.txt"):
        extra.write_text("x")
        assert any(p.path == extra for p in audit.verify(archive))
        extra.unlink()
    assert audit.verify(archive) == []


def test_whole_replacement_shows_by_a_head_noted_elsewhere(archive: Path, tmp_path: Path) -> None:
    noted = audit.head_of(archive).hash
    assert audit.verify(archive, head=noted) == []
    other = make(tmp_path / "demo", bad=False)
    assert audit.verify(other) == []
    assert "was replaced" in str(audit.verify(other, head=noted)[0])


def test_a_head_with_another_number_is_named_and_stops_nobody_by_a_traceback(tmp_path: Path) -> None:
    book = story.write(tmp_path / "demo" / "journal.jsonl", story.rolled_back())
    head = book.with_suffix(".head")
    raw = head.read_text()
    for wrong in ('"seq":1.1', '"seq":-1', '"seq":true', '"seq":"1"', '"seq":null'):
        head.write_text(re.sub(r'"seq":\d+', wrong, raw))
        assert [p.path for p in audit.verify(tmp_path)] == [head], wrong
        with pytest.raises(JournalError, match=r"journal\.head is damaged"):
            Journal.open(book, who="ann", run="r")
    head.write_text(re.sub(r'"seq":(\d+)', lambda m: f'"seq":{int(m[1]) + 10}', raw))
    assert [p.path for p in audit.verify(tmp_path)] == [head], "no record is missing: this one is named twice"
    for wrong in ('"hash":7', '"hash":"' + "A" * 64 + '"', '"hash":"0"'):
        head.write_text(re.sub(r'"hash":"\w+"', wrong, raw))
        assert [p.path for p in audit.verify(tmp_path)] == [head], wrong


def test_a_manifest_tells_the_versions_of_the_systems(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    sample = next((Path(__file__).parent.parent.parent / "outputs" / "sample").glob("*/00_*/checks.json"))
    (folder / "00_preflight-r1").mkdir(parents=True)
    (folder / "00_preflight-r1" / "checks.json").write_bytes(sample.read_bytes())
    story.write(folder / "journal.jsonl", story.setup(), run="00_preflight-r1")
    (folder / "50_canary-r2").mkdir()
    with Journal.open(folder / "journal.jsonl", who="ann", run="50_canary-r2") as journal:
        seal(folder / "50_canary-r2", journal=journal)
    assert json.loads((folder / "50_canary-r2" / "manifest.json").read_text())["systems"] == {
        "kubernetes": "v1.36.3",
        "apisix": "3.18.0",
        "istio": "1.29.0",
        "kubectl": "1.37",
        "istioctl": "1.31.0",
    }
    with Journal.open(folder / "journal.jsonl", who="ann", run="00_preflight-r1") as journal:
        (folder / "00_preflight-r1" / "checks.json").write_text('[{"name": "kubectl"}, 7]')
        seal(folder / "00_preflight-r1", journal=journal)
    assert json.loads((folder / "00_preflight-r1" / "manifest.json").read_text())["systems"] == {
        "istio": "1.29.0"
    }


def test_nothing_to_audit_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no archive here"):
        audit.verify(tmp_path)
    assert CliRunner().invoke(audit_group, ["verify", str(tmp_path)]).exit_code == 2


def test_commands(archive: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(audit_group, ["verify", str(archive)])
    assert (done.exit_code, done.output.split()[:2]) == (0, ["ok", "demo"])
    listed = CliRunner().invoke(history_command, [str(archive.parent), "--json"])
    assert json.loads(listed.output)[0]["outcome"] == "rolled back"
    assert "rolled back" in CliRunner().invoke(history_command, [str(archive.parent)]).output
    packed = tmp_path / "ticket.tar.gz"
    assert CliRunner().invoke(audit_group, ["export", str(archive), str(packed)]).exit_code == 0
    with tarfile.open(packed) as pack:
        pack.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / "demo"
    assert audit.verify(tmp_path / "unpacked") == [], "what was packed verifies as it is unpacked"
    note = unpacked / "HEAD.json"
    raw = note.read_bytes()
    for place in range(len(raw)):
        note.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert [p.path for p in audit.verify(unpacked)] == [note], place
    note.write_bytes(raw)
    again = tmp_path / "again.tar.gz"
    assert CliRunner().invoke(audit_group, ["export", str(unpacked), str(again)]).exit_code == 0
    with tarfile.open(again) as pack:
        assert pack.getnames().count("demo/HEAD.json") == 1
    samples = archive / "50_canary-r1" / "samples.jsonl"
    raw = samples.read_bytes()
    samples.write_bytes(raw.replace(b"1", b"2"))
    failed = CliRunner().invoke(audit_group, ["verify", str(archive)])
    samples.write_bytes(raw)
    assert failed.exit_code == 1
    assert "samples.jsonl: was changed" in failed.output


def test_report_stands_alone_with_the_outcome_first(archive: Path) -> None:
    page = (archive / "report.html").read_text()
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script" not in page
    assert page.index("rolled back") < page.index("Timeline") < page.index("Who approved what<")
    assert "error rate 5.1 % is above 1 %" in page
    assert f"data:image/png;base64,{PNG}" in page
    assert "DNS back at 100 % APISIX" in page
    assert "ann@ops" in page
    assert "until users were back" in page
    assert "41 s" in page
    assert page.count("▲") == 1
    assert page.count("▼") == 1
    link = re.search(r'href="(html/[^"]+)"', page)
    assert link is not None
    assert "figure" in (archive / link[1]).read_text()


def test_a_page_that_was_edited_is_not_taken_into_the_next_report(tmp_path: Path) -> None:
    folder = make(tmp_path / "demo")
    (page,) = (folder / "html").iterdir()
    written, book = page.read_bytes(), folder / "50_canary-r1" / "50_canary.ipynb"
    page.write_bytes(written.replace(b"rolled back", b"promoted"))
    os.utime(page, (book.stat().st_mtime + 60,) * 2)
    assert [p.path for p in audit.verify(folder)] == [page]
    write_report(folder)
    assert page.read_bytes() == written
    assert audit.verify(folder) == []


def test_a_page_of_the_last_report_is_not_rendered_again(tmp_path: Path) -> None:
    folder = make(tmp_path / "demo")
    (page,) = (folder / "html").iterdir()
    os.utime(page, (page.stat().st_mtime + 60,) * 2)
    before = page.stat()
    write_report(folder)
    after = page.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_report_of_a_finished_migration(tmp_path: Path) -> None:
    page = (make(tmp_path / "m", bad=False) / "report.html").read_text()
    assert "all stages promoted" in page
    assert "Rollback checklist" not in page
    assert page.count("▲") == 5


def _named(archive: Path, path: Path) -> bool:
    return any(p.path == path for p in audit.verify(archive))


@pytest.mark.parametrize(
    "name",
    ["journal.jsonl", "journal.head", "report.html", "50_canary-r1/manifest.json", "html/*.html"],
)
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_found_and_keeps_nobody_waiting(
    tmp_path: Path, name: str
) -> None:
    archive = make(tmp_path / "outputs" / "demo")
    path = next(archive.glob(name))
    aside = path.rename(tmp_path / "aside")
    path.symlink_to(aside)
    assert _named(archive, path)
    with pytest.raises(JournalError, match="not exported"):
        export(archive, tmp_path / "pack.tar.gz")
    path.unlink()
    os.mkfifo(path)
    assert _named(archive, path)


def test_a_link_to_nowhere_beside_the_pages_is_found(tmp_path: Path) -> None:
    archive = make(tmp_path / "demo")
    (archive / "html" / "more").symlink_to("nowhere")
    assert _named(archive, archive / "html" / "more")


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "name",
    [
        "journal.jsonl",
        "journal.head",
        "lock",
        "50_canary-r1/manifest.json",
        "approvals/0123456789abcdef.json",
    ],
)
def test_what_cannot_be_read_for_its_depth_is_found_without_a_traceback(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / "demo")
    path = archive / name
    raw = path.read_bytes() if path.exists() and name == "journal.jsonl" else b""
    path.write_bytes(raw + DEEP + b"\n")
    assert _named(archive, path)
    answer = CliRunner().invoke(history_command, [str(tmp_path)])
    assert answer.exit_code == 0
    assert ("damaged" in answer.output) == (name == "journal.jsonl")


def test_a_record_whose_data_are_no_mapping_is_named(tmp_path: Path) -> None:
    archive = make(tmp_path / "demo")
    journal = archive / "journal.jsonl"
    journal.write_bytes(re.sub(rb'^\{"data":\{[^}]*\}', b'{"data":5', journal.read_bytes()))
    assert _named(archive, journal)


def test_a_name_that_looks_like_a_line_or_is_no_text_stays_one_line(tmp_path: Path) -> None:
    archive = make(tmp_path / "demo")
    (archive / "a\nok       demo  head 0").write_text("")
    (archive / os.fsdecode(b"b\xff")).write_text("")
    answer = CliRunner().invoke(audit_group, ["verify", str(archive)])
    assert answer.exit_code == 1
    assert [line.split()[0] for line in answer.output.splitlines()] == ["CHANGED", "CHANGED"]


def test_an_archive_under_another_name_is_named(tmp_path: Path) -> None:
    make(tmp_path / "demo").rename(tmp_path / "other")
    found = audit.verify(tmp_path / "other")
    assert [p.what for p in found] == ["is the archive of migration demo under another name"]


def test_an_archive_without_journal_and_head_is_not_passed_over(tmp_path: Path) -> None:
    make(tmp_path / "outputs" / "kept")
    lost = make(tmp_path / "outputs" / "lost")
    (lost / "journal.jsonl").unlink()
    (lost / "journal.head").unlink()
    for where in (tmp_path / "outputs", lost):
        assert _named(where, lost / "journal.jsonl")
    answer = CliRunner().invoke(history_command, [str(tmp_path / "outputs")])
    assert "lost" in answer.output
    assert "damaged" in answer.output


@pytest.mark.parametrize("option", ["--head", "--key", "--cluster"])
def test_an_option_from_a_variable_that_is_not_set_is_no_comparison(archive: Path, option: str) -> None:
    answer = CliRunner().invoke(audit_group, ["verify", str(archive), option, ""])
    assert answer.exit_code == 2
    assert f"{option}: nothing is given to compare with" in answer.output


def test_a_cluster_that_keeps_no_head_of_an_archive_is_a_note(archive: Path) -> None:
    notes = [p.what for p in audit.survey(archive, anchors={}) if p.note]
    assert "the cluster keeps no head of it: nothing was compared there" in notes
    assert audit.verify(archive, anchors={}) == []


def test_what_a_cell_displayed_neither_runs_nor_loads_in_its_page_and_the_report(tmp_path: Path) -> None:
    folder = make(tmp_path / "demo")
    book = folder / "50_canary-r1" / "50_canary.ipynb"
    node = read(book)
    bundle = {"image/png": "x</style><script>alert(1)</script>", "text/plain": ""}
    node.cells[-1].outputs = [{"output_type": "display_data", "data": bundle, "metadata": {}}]
    book.write_text(json.dumps(node))
    os.utime(book)
    write_report(folder)
    assert "<script" not in (folder / "report.html").read_text()
    for page in (folder / "report.html", *(folder / "html").iterdir()):
        head = page.read_text().partition("</head>")[0]
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in head


def test_a_file_whose_name_is_no_text_is_sealed_and_verified(tmp_path: Path) -> None:
    run = tmp_path / "demo" / "r1"
    run.mkdir(parents=True)
    (run / os.fsdecode(b"evidence-\xff.log")).write_text("x")
    with Journal.open(tmp_path / "demo" / "journal.jsonl", who="ann", run="r1") as journal:
        journal.append("migration.opened", params_digest="x")
        journal.append("archive.sealed", run="r1", manifest=seal(run, journal=journal))
    assert audit.verify(tmp_path / "demo") == []
    (run / os.fsdecode(b"evidence-\xff.log")).write_text("y")
    assert len(audit.verify(tmp_path / "demo")) == 1


BROKEN = [
    {},
    {"cells": None},
    {"cells": ["x"]},
    {"cells": [{"cell_type": "code", "source": "", "outputs": [], "execution_count": None}]},
    {"cells": [{"cell_type": "code", "metadata": {"papermill": [1]}, "source": "", "outputs": [{}]}]},
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("outcome", ["running", "done"])
def test_a_broken_notebook_keeps_neither_the_next_run_nor_the_report_away(
    tmp_path: Path, broken: dict[str, Any], outcome: str
) -> None:
    folder = make(tmp_path / "demo")
    dead = replace(Process.current(), pid=2**22 + 1).text()
    mark = {"outcome": outcome, "engine": dead}
    text = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"gateshift": mark}, **broken})
    (folder / "50_canary-r2").mkdir()
    (folder / "50_canary-r2" / "50_canary.ipynb").write_text(text)
    settle(folder)
    write_report(folder)
    assert "50_canary-r1" in (folder / "report.html").read_text()


def test_a_notebook_with_half_a_character_is_settled(tmp_path: Path) -> None:
    book = write_notebook(tmp_path / "m" / "r" / "a.ipynb", "1")
    node = read(book)
    node.metadata["gateshift"] = {
        "outcome": "running",
        "engine": replace(Process.current(), pid=2**22 + 1).text(),
    }
    node.cells[-1].source = "odd \udcff"
    book.write_text(json.dumps(node))
    assert settle(tmp_path / "m") == [book]
    assert read(book).metadata.gateshift.outcome == "interrupted"
    assert read(book).cells[-1].source == "odd \udcff"


def test_samples_that_are_none_do_not_cost_a_run_its_seal(tmp_path: Path) -> None:
    run = tmp_path / "demo" / "r1"
    run.mkdir(parents=True)
    (run / "samples.jsonl").write_text('7\n{"sample": {"time": "x"}}\n')
    with Journal.open(tmp_path / "demo" / "journal.jsonl", who="ann", run="r1") as journal:
        journal.append("migration.opened", params_digest="x")
        journal.append("run.started", notebook="50_canary")
    assert conclude(tmp_path / "demo" / "journal.jsonl", run, "50_canary", ending_record(1, "x")) == ()
    assert audit.survey(tmp_path / "demo") == []


@pytest.mark.parametrize(
    "files", [[1], 5, {}, {"manifest.json": {}}, {"a": 1}, {"a" * 5000: {"sha256": "1"}}], ids=range(6)
)
def test_a_folder_whose_manifest_is_made_up_is_nobodys_and_never_sealed(tmp_path: Path, files: Any) -> None:
    archive = make(tmp_path / "demo")
    (archive / "zz").mkdir()
    (archive / "zz" / "manifest.json").write_text(json.dumps({"run": "zz", "files": files}))
    (archive / "zz" / "plan.json").write_text("{}")
    assert _named(archive, archive / "zz")
    settle(archive)
    assert _named(archive, archive / "zz")
