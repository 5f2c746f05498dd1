"""Gates that ask for two people, and approvals that hold once."""

from __future__ import annotations

import os
import pty
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cli import main
from gateshift.errors import GateClosed, InputError
from gateshift.plan import Plan, Step
from gateshift.runbook.approvals import JOURNAL, read_approval, shown_digest, write_approval
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


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Log in as somebody: the account is recorded with each approval."""
    for name in ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILD_TAG", "ARGO_WORKFLOW_NAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda name: monkeypatch.setenv("LOGNAME", name)


def test_two_different_people_from_two_runs(tmp_path: Path, account: Callable[[str], None]) -> None:
    account("ann")
    first = gate(tmp_path, 2, approve=PLAN.digest, approver="ann")
    with pytest.raises(GateClosed, match="approved by ann; a second person must approve"):
        first.go_through(PLAN)
    assert not first.passed(PLAN)
    again = gate(tmp_path, 2, approve=PLAN.digest, approver="ann")
    with pytest.raises(GateClosed, match="a second person"):
        again.go_through(PLAN)
    account("bob")
    second = gate(tmp_path, 2, approve=PLAN.digest, approver="bob")
    assert "ann, bob" in second.go_through(PLAN)
    assert second.passed(PLAN)


def test_two_files_and_one_person_twice(tmp_path: Path, account: Callable[[str], None]) -> None:
    account("ann")
    made = gate(tmp_path, 2)
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    write_approval(tmp_path / "m", PLAN.digest, "ann")
    with pytest.raises(GateClosed, match="a second person"):
        made.go_through(PLAN)
    account("bob")
    write_approval(tmp_path / "m", PLAN.digest, "bob")
    made.go_through(PLAN)
    people = dict(made.people(PLAN))
    assert {who: at.partition("@")[0] for who, at in people.items()} == {"ann": "ann", "bob": "bob"}
    recorded = [r.data for r in made.context.journal.records if r.kind == "plan.approved"][-2:]
    assert {r["who"]: r["account"] for r in recorded} == people
    assert read_approval(tmp_path / "m", PLAN.digest, besides={"ann", "bob"}) is None


def test_one_account_is_not_two_people(
    tmp_path: Path, account: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    account("ann")
    made = gate(tmp_path, 2)
    for who in ("ann", "bob"):
        write_approval(tmp_path / "m", PLAN.digest, who)
    with pytest.raises(GateClosed, match="a second person") as closed:
        made.go_through(PLAN)
    assert "an account of their own" in closed.value.hint
    assert not made.passed(PLAN)
    with pytest.raises(GateClosed, match="a second person"):
        gate(tmp_path, 2, approve=PLAN.digest, approver="bob").go_through(PLAN)
    # A CI job that somebody else approved is an account of its own.
    monkeypatch.setenv("GITHUB_RUN_ID", "4711")
    gate(tmp_path, 2, approve=PLAN.digest, approver="bob").go_through(PLAN)


def test_a_journal_from_before_accounts_were_recorded_holds(tmp_path: Path) -> None:
    made = gate(tmp_path, 2)
    for who in ("ann", "bob"):
        made.context.journal.append("plan.approved", digest=PLAN.digest, who=who, how="params")
    assert made.passed(PLAN)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal under this process; gives the end where a person's keys arrive."""
    keys, screen = pty.openpty()
    with os.fdopen(screen, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield keys
    os.close(keys)


def test_an_approval_in_another_terminal_ends_the_prompt(
    tmp_path: Path, terminal: int, account: Callable[[str], None]
) -> None:
    account("ann")
    made = gate(tmp_path, 1)

    def elsewhere() -> None:
        write_approval(tmp_path / "m", PLAN.digest, "bob")
        time.sleep(5)
        os.write(terminal, b"\n")  # who still waits for keys is refused

    thread = threading.Timer(0.3, elsewhere)
    thread.start()
    try:
        assert "gateshift approve" in made.go_through(PLAN)
    finally:
        thread.join()
    assert set(made.people(PLAN)) == {"bob"}


def test_the_command_to_approve_elsewhere_names_the_params_file(
    tmp_path: Path, terminal: int, account: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the command looks at the lab's migration, and refuses production's plan."""
    account("ann")
    command = f"gateshift approve -f params/shop.yaml {PLAN.digest}"
    story.write(tmp_path / "m" / "journal.jsonl", story.setup())
    params = make_params(mode="act", outputs=str(tmp_path), migration="m", gate_wait="300ms")
    context = Context(params, run="r", params_file="params/shop.yaml")
    context.journal.append("plan.shown", plan=PLAN.as_json())
    said: list[str] = []
    made = Gate(context, needed=2, say=said.append, tell_people=lambda _: None)
    os.write(terminal, f"{PLAN.digest[:4]}\n".encode())
    with pytest.raises(GateClosed) as closed:  # the first person types, the second does not come
        made.go_through(PLAN)
    assert command in capsys.readouterr().out
    assert command in closed.value.hint
    assert sum(command in line for line in said) >= 2  # who is missing, and that it waits


@pytest.mark.parametrize(
    ("keys", "passes"), [(PLAN.digest[:4], True), (PLAN.digest[:3], False), ("no", False)]
)
def test_what_is_typed_at_a_terminal(tmp_path: Path, terminal: int, keys: str, passes: bool) -> None:
    made = gate(tmp_path, 1)
    os.write(terminal, f"{keys}\n".encode())
    if passes:
        assert "at the prompt" in made.go_through(PLAN)
        return
    with pytest.raises(GateClosed, match="not approved at the prompt"):
        made.go_through(PLAN)


def typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["gateshift", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), "".join(capsys.readouterr())


def test_only_a_plan_that_was_shown_can_be_approved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gate(tmp_path, 1)
    file = tmp_path / "params.yaml"
    told = {"migration": "m", "outputs": str(tmp_path), "environment": "lab", "apisix": {"files": ["a"]}}
    told |= {"istio": {"version": "1.31.0"}, "metrics": {"url": "http://127.0.0.1:9"}}
    told |= {"traffic": {"route53": {"zone": "a.com", "hosts": ["b.a.com"]}}}
    told |= {"stages": [{"weight_percent": 100, "dwell": "1m", "error_rate_limit_percent": 1.0}]}
    file.write_text(yaml.safe_dump(told))
    wrong = ("deadbeefdeadbeef", "", PLAN.digest[:3], "../../escaped", f"{PLAN.digest}0", "*")
    for digest in wrong:
        code, said = typed(capsys, monkeypatch, "approve", "-f", str(file), "--", digest)
        assert code == 2, said
        assert "names no plan that was shown" in said
    assert not (tmp_path / "m" / "approvals").exists()
    assert list(tmp_path.rglob("*escaped*")) == []
    code, said = typed(capsys, monkeypatch, "approve", "-f", str(file), PLAN.digest[:4].upper())
    assert code == 0
    assert f"approved {PLAN.digest}" in said
    made.go_through(PLAN)
    code, said = typed(capsys, monkeypatch, "approve", "-f", str(file), "-p", "migration=other", PLAN.digest)
    assert code == 2, "nothing was shown there"
    assert "in migration other" in said
    assert "-f FILE" in said
    with pytest.raises(InputError, match="no digest"):
        write_approval(tmp_path / "m", "../../escaped", "ann")


def test_a_beginning_that_two_plans_share_names_neither() -> None:
    shown = ("abcd000000000001", "abcd000000000002", "ffff000000000003")
    assert shown_digest(shown, "ffff", migration="m") == shown[2]
    with pytest.raises(InputError, match="abcd000000000001, abcd000000000002"):
        shown_digest(shown, "abcd", migration="m")


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


@pytest.mark.parametrize(
    "text",
    [
        '{"who": "journal", "at": "2099-01-01T00:00:00+00:00"}',
        '{"who": "journal\\u200b", "at": "2099-01-01T00:00:00Z"}',
        '{"who": " ", "at": "2099-01-01T00:00:00Z"}',
        '{"who": ["ann"], "at": "2099-01-01T00:00:00Z"}',
        "[" * 100_000,
    ],
    ids=["journal", "hidden", "blank", "list", "deep"],
)
def test_a_file_that_names_no_person_is_no_approval(
    tmp_path: Path, account: Callable[[str], None], text: str
) -> None:
    account("ann")
    made = gate(tmp_path, 2)
    folder = tmp_path / "m" / "approvals"
    folder.mkdir()
    (folder / f"{PLAN.digest}-00000000.json").write_text(text)
    os.mkfifo(folder / f"{PLAN.digest}-11111111.json")
    with pytest.raises(GateClosed, match="waits for approval"):
        made.go_through(PLAN)
    assert not made.passed(PLAN)
