"""What the report says changed, from the snapshots; and two runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from gateshift.archive.changes import changes, compared
from gateshift.archive.report import write_report
from gateshift.migration.journal import Journal, read_records
from tests.archive import story


def entry(name: str, **state: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "namespace": "n", "name": name, **state}


def obj(value: str, version: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": "x", "resourceVersion": version}, "data": {"a": value}}


def applied(folder: Path) -> Path:
    """A migration whose apply changed one object, made one, deleted one; then a stage and a rollback."""
    run = folder / "30_apply-r1"
    run.mkdir(parents=True)
    before = [
        entry("changed", before=obj("old", "1")),
        entry("made", before=None),
        entry("gone", before=obj("g", "3")),
    ]
    after = [entry("changed", after=obj("new", "2")), entry("made", after=obj("m", "4"))]
    (run / "before.json").write_text(json.dumps({"objects": before}))
    (run / "after.json").write_text(json.dumps({"objects": after}))
    with Journal.open(folder / "journal.jsonl", who="ann", run=run.name) as journal:
        more: dict[str, dict[str, Any]] = {
            "apply.intent": {"snapshot": f"{run.name}/before.json"},
            "apply.done": {"after": f"{run.name}/after.json"},
            "shift.intent": {"snapshot": {"api": {"istio": 0, "apisix": 100}}},
            "shift.done": {"snapshot": {"api": {"istio": 10, "apisix": 90}}},
        }
        for kind, data in (*story.setup(), *story.stage(0)):
            journal.append(kind, **{**data, **more.get(kind, {})})
    with Journal.open(folder / "journal.jsonl", who="ann", run="80_rollback-r2") as journal:
        evidence = folder / "80_rollback-r2" / "evidence"
        evidence.mkdir(parents=True)
        (evidence / "weights.json").write_text(json.dumps({"api": {"istio": 0, "apisix": 100}}))
        for kind, data in story.rollback(10):
            journal.append(kind, **data)
    return folder


def test_unified_diffs_of_the_cluster_and_of_dns(tmp_path: Path) -> None:
    folder = applied(tmp_path / "m")
    found = {(c.what, c.run): c.diff for c in changes(folder, read_records(folder / "journal.jsonl"))}
    assert list(found) == [
        ("ConfigMap n/changed", "30_apply-r1"),
        ("ConfigMap n/made", "30_apply-r1"),
        ("ConfigMap n/gone", "30_apply-r1"),
        ("DNS", "30_apply-r1"),
        ("DNS", "80_rollback-r2"),
    ]
    changed = found["ConfigMap n/changed", "30_apply-r1"].splitlines()
    assert [line for line in changed if line[0] in "+-"][2:] == ['-  "a": "old"', '+  "a": "new"']
    assert "resourceVersion" not in "".join(changed)
    gone = found["ConfigMap n/gone", "30_apply-r1"].splitlines()[3:]
    assert gone
    assert all(line[0] == "-" for line in gone)
    assert '+  "istio": 10' in found["DNS", "30_apply-r1"]
    assert '-  "istio": 10' in found["DNS", "80_rollback-r2"]
    page = write_report(folder).read_text()
    assert "5 differences between the snapshots" in page
    assert "+  &quot;istio&quot;: 10" in page


def test_a_snapshot_that_is_gone_is_said(tmp_path: Path) -> None:
    folder = applied(tmp_path / "m")
    (folder / "30_apply-r1" / "after.json").unlink()
    first = changes(folder, read_records(folder / "journal.jsonl"))[0]
    assert "cannot be read" in first.diff


def test_newest_run_beside_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    book = folder / "journal.jsonl"
    story.write(book, story.setup())
    for index in range(2):
        with Journal.open(book, who="ann", run=f"50_canary-r{index}") as journal:
            journal.inputs = f"of-the-plan-{index}"
            for kind, data in story.stage(index, "promote" if index == 0 else "rollback"):
                seen = {"observed": {"requests": 1000.0 + index, "errors": None}} if kind == "verdict" else {}
                journal.append(kind, **data, **seen)
            journal.inputs = ""
            journal.append("note.engine")  # what the engine adds has no inputs
    rows = {name: (old, new) for name, old, new in compared(read_records(book))}
    assert rows["run"] == ("50_canary-r0", "50_canary-r1")
    assert rows["verdict"] == ("promote", "roll back")
    assert rows["weight"] == ("10 %", "25 %")
    assert rows["requests"] == ("1000", "1001")
    assert rows["outcome"] == ("done", "under way or died")
    assert rows["inputs"] == ("of-the-plan-0", "of-the-plan-1")
    assert "errors" not in rows
    page = write_report(folder).read_text()
    assert "Newest run and the one before" in page
    assert compared(read_records(book)[:13]) == []


def _report_of_the_sample(folder: Path) -> str:
    source = next((Path(__file__).parents[2] / "outputs" / "sample").glob("*/journal.jsonl")).parent
    shutil.copytree(source, folder)
    with Journal.open(folder / "journal.jsonl", who="ann", run="99_report-now") as journal:
        journal.append("run.started", notebook="99_report")
    return write_report(folder, reporting="99_report-now").read_text(encoding="utf-8")


def test_the_report_repeats_no_status_card_and_says_nothing_about_its_own_run(tmp_path: Path) -> None:
    page = _report_of_the_sample(tmp_path / "m")
    ledger = re.search(r'<h2 id="ledger">.*?<h2', page, re.S)
    assert ledger is not None
    assert "Ledger: " in ledger[0]
    assert "gateshift-card" not in ledger[0]
    assert "under way or died" not in page
    assert page.count("<td>99_report</td>") == 1, "the report of before, not this one"


def test_the_report_shows_the_evidence_of_each_verdict(tmp_path: Path) -> None:
    page = _report_of_the_sample(tmp_path / "m")
    found = re.search(r'<h2 id="stages">.*?<h2', page, re.S)
    assert found is not None
    rows = re.findall(r"<tr>(.*?)</tr>", found[0])[1:]
    assert len(rows) == 2
    evidence = [re.findall(r"<td[^>]*>(.*?)</td>", row)[5] for row in rows]
    records = read_records(tmp_path / "m" / "journal.jsonl")
    first, second = (r.data["evidence"]["errors"] for r in records if r.kind == "verdict")
    assert f"errors requests {first['requests']:.4g}" in evidence[0]
    above, threshold = second["above_limit"], second["above_limit_threshold"]
    assert f"errors above limit {above:.4g} / {threshold:.4g}" in evidence[1]
    assert not any("digest" in one for one in evidence)
