"""Gates that ask for two people, and approvals that hold once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import GateClosed, InputError
from gateshift.plan import Plan, Step
from gateshift.runbook.approvals import JOURNAL, read_approval, write_approval
from gateshift.runbook.context import Context
from gateshift.runbook.gate import Gate
from tests.archive import story
from tests.cluster.conftest import make_params

PLAN = Plan("30_apply", "one object", (Step("create", "Gateway x", None, {}),), "undo")


def gate(tmp_path: Path, needed: int, **sections: Any) -> Gate:
    params = make_params(mode="act", outputs=str(tmp_path), migration="m", **sections)
    if not (tmp_path / "m" / "journal.jsonl").exists():
        story.write(tmp_path / "m" / "journal.jsonl", story.setup())
    made = Gate(Context(params, run="r"), needed=needed, say=lambda _: None, tell_people=lambda _: None)
    made.context.journal.append("plan.shown", plan=PLAN.as_json())
    return made


def test_two_different_people_from_two_runs(tmp_path: Path) -> None:
    first = gate(tmp_path, 2, approve=PLAN.digest, approver="ann")
    with pytest.raises(GateClosed, match="approved by ann; a second person must approve"):
        first.go_through(PLAN)
    assert not first.passed(PLAN)
    again = gate(tmp_path, 2, approve=PLAN.digest, approver="ann")
    with pytest.raises(GateClosed, match="a second person"):
        again.go_through(PLAN)
    second = gate(tmp_path, 2, approve=PLAN.digest, approver="bob")
    assert "ann, bob" in second.go_through(PLAN)
    assert second.passed(PLAN)


def test_two_files_and_one_person_twice(tmp_path: Path) -> None:
    made = gate(tmp_path, 2)
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    with pytest.raises(GateClosed, match="a second person"):
        made.go_through(PLAN)
    write_approval(tmp_path / "m", PLAN.digest, "bob")
    made.go_through(PLAN)
    assert made.people(PLAN) == {"ann", "bob"}
    assert read_approval(tmp_path / "m", PLAN.digest, besides={"ann", "bob"}) is None


def test_changed_plan_voids_and_a_carried_out_one_is_asked_again(tmp_path: Path) -> None:
    made = gate(tmp_path, 1, approve=PLAN.digest, approver="ann")
    made.go_through(PLAN)
    journal = made.context.journal
    journal.append("apply.intent", snapshot="before.json")
    journal.append("apply.done")
    assert not made.passed(PLAN), "the same plan, due again, is approved again"
    other = Plan("30_apply", "another", (Step("create", "Gateway y", None, {}),), "undo")
    with pytest.raises(GateClosed, match="the plan changed"):
        made.go_through(other)


def test_an_approval_file_is_for_one_time_and_never_written_over(tmp_path: Path) -> None:
    made = gate(tmp_path, 1)
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    made.go_through(PLAN)
    (first,) = (tmp_path / "m" / "approvals").iterdir()
    before = first.read_bytes()
    time.sleep(0.01)  # a journal's time has milliseconds
    made.context.journal.append("apply.intent", snapshot="before.json")
    made.context.journal.append("apply.done")
    with pytest.raises(GateClosed, match="waits for approval"):
        made.go_through(PLAN)
    time.sleep(0.01)
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    made.go_through(PLAN)
    assert first.read_bytes() == before


def test_nobody_is_called_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        write_approval(tmp_path, PLAN.digest, JOURNAL)
    with pytest.raises(InputError):
        gate(tmp_path, 1, approve=PLAN.digest, approver=JOURNAL).go_through(PLAN)
