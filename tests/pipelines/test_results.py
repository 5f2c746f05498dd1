"""What a pipeline reads: JSON, JUnit, Markdown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from gateshift.archive.outcome import Outcome
from gateshift.cli import results

CHECKS = [
    {"result": "pass", "name": "uid", "measured": "as named", "why": "w", "remedy": ""},
    {"result": "warn", "name": "ttl", "measured": "300 s", "why": "w", "remedy": "lower it"},
    {"result": "fail", "name": "quota", "measured": "3 cores | missing", "why": "w", "remedy": "raise it"},
]
PLAN = {
    "digest": "0123456789abcdef",
    "title": "Stage 1",
    "way_back": "80_rollback",
    "steps": [
        {"verb": "set", "target": f"record {i}", "before": None, "after": {"weight": i}} for i in range(40)
    ],
}


def found(tmp_path: Path, code: int, error: str | None = None) -> dict[str, object]:
    run = tmp_path / "m" / "00_preflight-1"
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.json").write_text(json.dumps(PLAN))
    outcome = Outcome(code, run / "00_preflight.ipynb", error, "do this" if error else "", seconds=1.25)
    return results.result("preflight", outcome, migration="m", stages=5)


def test_json_is_one_line_with_the_digest(tmp_path: Path) -> None:
    line = results.json_line(found(tmp_path, 0))
    assert "\n" not in line
    data = json.loads(line)
    assert (data["exit_code"], data["outcome"], data["digest"]) == (0, "done", "0123456789abcdef")
    assert data["next"] == "00_preflight"


def test_junit_has_a_case_for_each_check(tmp_path: Path) -> None:
    suite = Xml.fromstring(results.junit("preflight", found(tmp_path, 3, "x"), CHECKS)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "0")
    assert "raise it" in str(suite.findtext("testcase/failure"))
    assert "lower it" in str(suite.findtext("testcase/system-out"))


def test_junit_is_never_green_when_the_run_is_not(tmp_path: Path) -> None:
    for checks in ([], CHECKS[:1]):
        text = results.junit("preflight", found(tmp_path, 1, "the cluster is out of reach"), checks)
        suite = Xml.fromstring(text).find("testsuite")
        assert suite is not None
        assert suite.get("errors") == "1"
    assert 'errors="0"' in results.junit("preflight", found(tmp_path, 0), [])


def test_summary_names_failures_digest_and_way_back(tmp_path: Path) -> None:
    text = results.summary(found(tmp_path, 3, "1 check failed"), PLAN, CHECKS)
    assert "| fail | quota | 3 cores \\| missing | raise it |" in text
    assert "Plan `0123456789abcdef`" in text
    assert "10 more steps" in text
    assert "Way back: 80_rollback" in text
    assert "| pass |" not in text


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["canary", "-f", "nowhere.yaml"], ["canary", "--nonsense"]])
def test_json_is_the_last_line_even_of_bad_input(arguments: list[str]) -> None:
    program = Path(sys.executable).with_name("gateshift")
    done = subprocess.run([program, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["exit_code"] == 2
    assert last["error"]
    assert last["hint"]


def test_a_person_at_a_terminal_sees_the_plan_and_what_did_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    plan = {"kind": "50_canary", **PLAN}
    said = results.shown(found(tmp_path, 0), plan, CHECKS)
    assert "Stage 1 — 40 steps, digest 0123456789abcdef" in said  # the digest on record
    assert "record 0" in said
    assert "Way back: 80_rollback" in said
    assert "3 checks, 1 failed" in said
    for text in ("300 s", "lower it", "3 cores | missing", "raise it"):
        assert text in said
    assert "as named" not in said
    assert max(len(line) for line in said.splitlines()) <= 100
    assert results.shown({"digest": None}, {}, CHECKS[:1]) == ""
