"""``gateshift status``: where the migration stands, with the last verdict and who holds the lock."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from gateshift import words
from gateshift.cli import main
from gateshift.migration.lock import LocalLock, holder_of
from tests.archive import story

PARAMS = Path(__file__).resolve().parents[2] / "params" / "production.yaml"


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def ask(*more: str) -> str:
        given = ["status", "-f", str(PARAMS), "-p", f"outputs={tmp_path}", *more]
        monkeypatch.setattr(sys, "argv", ["gateshift", *given])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    yield ask
    words.use("")


def test_status_names_the_holder_of_the_lock_and_the_last_verdict(status, tmp_path: Path) -> None:
    folder = tmp_path / "voiceassistant"
    story.write(folder / "journal.jsonl", story.setup())
    fresh = json.loads(status("--json"))
    assert fresh["last_verdict"] is None
    assert fresh["lock"] is None
    assert "free" in status()
    story.write(folder / "journal.jsonl", story.stage(0))
    with LocalLock(folder / "lock", who="ann@ops"):
        found = json.loads(status("--json"))
        said = status()
        chinese = status("-p", "lang=zh")
    verdict = found["last_verdict"]
    assert (verdict["stage"], verdict["decision"], verdict["reasons"]) == (1, "promote", ["enough evidence"])
    assert found["lock"]["holder"] == "ann@ops"
    assert 0 < found["lock"]["expires_in_seconds"] <= 60
    lock, last = (next(line for line in said.splitlines() if name in line) for name in ("lock:", "verdict:"))
    assert "ann@ops" in lock
    assert "enough evidence" in last
    assert "晋级" in chinese
    assert all(re.search(r"[\u4e00-\u9fff]", line.partition(":")[0]) for line in chinese.splitlines()), (
        chinese
    )
    assert json.loads(status("--json"))["lock"] is None


def test_a_lock_that_is_over_or_no_lock_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder_of(path) is None
    for text in ("", "[]", "{", '{"expires": "x"}', '{"who": "ann", "expires": 100}'):
        path.write_text(text)
        assert holder_of(path, now=200.0) is None
    assert holder_of(path, now=40.0) == ("ann", 60.0)


def test_a_journal_without_a_record_has_not_started_and_a_missing_one_is_said(status, tmp_path: Path) -> None:
    folder = tmp_path / "voiceassistant"
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(b"")
    assert json.loads(status("--json"))["next"] == "00_preflight"
    (folder / "journal.jsonl").write_bytes(b'{"data":')  # torn, its head not written yet
    assert json.loads(status("--json"))["next"] == "00_preflight"
    story.write(folder / "journal.jsonl", story.setup())
    (folder / "journal.jsonl").unlink()
    with pytest.raises(AssertionError, match="cannot be read"):
        status()
