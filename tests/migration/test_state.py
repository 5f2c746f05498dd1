from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.errors import JournalError
from gateshift.migration.journal import Record
from gateshift.migration.state import RULES, Phase, State, diagram, fold, step
from tests.archive import story

Event = tuple[str, dict[str, Any]]


def records(events: Iterable[Event]) -> list[Record]:
    return [
        Record(i, f"2026-01-01T00:00:{i % 60:02d}+00:00", float(i), "r", "w", kind, data, 0, "", "")
        for i, (kind, data) in enumerate(events, 1)
    ]


def after(events: Iterable[Event]) -> State:
    return fold(records(events))


def refuse(before: Iterable[Event], kind: str, match: str, **data: Any) -> None:
    with pytest.raises(JournalError, match=match):
        after([*before, (kind, data)])


def test_whole_migration() -> None:
    state = after(story.promoted())
    assert (state.phase, state.weight_percent, state.stage_index) == (Phase.CANARY, 100, 5)
    assert state.stable_since_unix is not None
    end = [
        *story.promoted(),
        ("soak.sample", {"stable": True}),
        ("soak.done", {}),
        ("cleanup.intent", {"export": "export.yaml"}),
        ("cleanup.done", {}),
    ]
    assert after(end).phase is Phase.CLEANED


def test_rollback_ends_approvals_and_starts_again_at_the_first_stage() -> None:
    state = after(story.rolled_back())
    assert (state.phase, state.weight_percent, state.stage_index) == (Phase.ROLLED_BACK, 0, 0)
    assert not state.approvals
    assert not state.rolling_back
    assert str(state.verdicts[-1]) == "rollback at stage 2: enough evidence"
    again = after([*story.rolled_back(), ("verify.done", {"ok": True}), *story.stage(0)])
    assert (again.stage_index, again.weight_percent, again.attempts) == (1, 10, 2)


def test_rollback_whose_users_are_not_proven_back_goes_on() -> None:
    events = [*story.setup(), *story.stage(0), *story.rollback(10)]
    events[-1][1]["seconds_to_users"] = None
    state = after(events)
    assert state.rolling_back
    assert state.weight_percent == 0


def test_nothing_but_the_rollback_while_rolling_back() -> None:
    started = [*story.setup(), *story.stage(0), ("rollback.started", {"reason": "x", "from": 10})]
    refuse(started, "stage.entered", "rolling back", stage=1, weight=25)
    refuse(started, "shift.intent", "rolling back", stage=1, **{"from": 10}, to=25, snapshot=None)
    refuse(started, "apply.intent", "rolling back", snapshot="")
    refuse(started, "rollback.done", "not back on APISIX yet", checklist=[])
    assert after([*started, ("rollback.started", {"reason": "again", "from": 10})]).rolling_back


def test_promotion_needs_arrival_and_a_verdict_of_promotion() -> None:
    events = list(story.stage(0))
    arrived = next(i for i, e in enumerate(events) if e[0] == "stage.arrived")
    verdict = next(i for i, e in enumerate(events) if e[0] == "verdict")
    refuse([*story.setup(), *events[:verdict]], "stage.promoted", "not a promotion", stage=0)
    without = [*events[:arrived], *events[arrived + 1 : verdict + 1]]
    refuse([*story.setup(), *without], "stage.promoted", "has not arrived", stage=0)
    held = [*events[:verdict], ("verdict", {"stage": 0, "decision": "hold"})]
    refuse([*story.setup(), *held], "stage.promoted", "not a promotion", stage=0)


def test_no_stage_is_skipped_and_no_weight_falls() -> None:
    base = [*story.setup(), *story.stage(0)]
    refuse(base, "stage.entered", "stage 2 is not due", stage=2, weight=50)
    refuse(base, "stage.entered", "below the 10 %", stage=1, weight=5)
    entered = [*base, ("stage.entered", {"stage": 1, "weight": 25})]
    refuse(entered, "shift.intent", "allows 25 %", stage=1, **{"from": 10}, to=50, snapshot=None)
    refuse(entered, "shift.intent", "starts from 0 %", stage=1, **{"from": 0}, to=25, snapshot=None)
    refuse(entered, "shift.done", "no shift to 25 %", to=25)


def test_shift_without_outcome_leaves_two_possible_weights_and_can_be_repeated() -> None:
    events = [*story.setup(), *story.stage(0), *list(story.stage(1))[:5]]
    assert events[-1][0] == "shift.intent"
    state = after(events)
    assert state.possible_weights == {10, 25}
    assert state.weight_percent == 10
    assert after([*events, *list(story.stage(1))[3:]]).weight_percent == 25
    assert after([*events, ("reconciled", {"weight": 25})]).weight_percent == 25
    refuse(events, "reconciled", "the journal allows", weight=50)


def test_changed_plan_voids_its_approval_and_only_its() -> None:
    base = [
        ("migration.opened", {"params_digest": "x"}),
        ("plan.shown", {"plan": story.plan("install", "a" * 16)}),
        ("plan.approved", {"digest": "a" * 16, "who": "ann", "how": "params"}),
        ("plan.shown", {"plan": story.plan("apply", "b" * 16)}),
        ("plan.approved", {"digest": "b" * 16, "who": "ann", "how": "params"}),
        ("plan.approved", {"digest": "b" * 16, "who": "bob", "how": "approval file"}),
    ]
    state = after([*base, ("plan.shown", {"plan": story.plan("install", "c" * 16)})])
    assert state.approvals == {"b" * 16}
    assert set(state.approvers["b" * 16]) == {"ann", "bob"}
    refuse(base, "plan.approved", "no plan with digest", digest="d" * 16, who="ann", how="params")


def test_setup_is_not_touched_under_traffic_and_needs_its_preflight() -> None:
    live = [*story.setup(), *story.stage(0)]
    refuse(live, "install.intent", "canary")
    refuse(live, "apply.intent", "canary", snapshot="")
    refuse([("migration.opened", {"params_digest": "x"})], "install.intent", "opened")
    refuse(list(story.setup())[:3], "install.done", "not on record before it")
    assert after([*live, ("preflight.done", {"ok": False})]).phase is Phase.CANARY


def test_cleanup_only_after_the_stable_run_and_no_way_back_after_it() -> None:
    refuse(story.promoted(), "cleanup.intent", "canary", export="e")
    shaky = [*story.promoted(), ("soak.sample", {"stable": False})]
    assert after(shaky).stable_since_unix is None
    refuse(shaky, "soak.done", "no stable sample")
    done = [
        *story.promoted(),
        ("soak.sample", {"stable": True}),
        ("soak.done", {}),
        ("cleanup.intent", {"export": "e"}),
        ("cleanup.done", {}),
    ]
    refuse(done, "rollback.started", "cleaned", reason="late", **{"from": 100})


def test_unknown_kind_and_missing_data_are_refused() -> None:
    refuse([], "migration.open", "no kind")
    refuse([], "migration.opened", "lacks params_digest")
    refuse(
        [*story.setup(), ("stage.entered", {"stage": 0, "weight": 10})],
        "verdict",
        "data cannot be read",
        stage="x",
        decision="promote",
    )


def test_diagram_comes_from_the_table() -> None:
    text = diagram()
    assert "soaked --> cleaned: cleanup.done" in text
    assert "canary --> rolling_back: rollback.started" in text
    assert "cleaned --> rolling_back" not in text


_KINDS = sorted(RULES)
_DATA = st.fixed_dictionaries(
    {
        "stage": st.integers(0, 2),
        "weight": st.sampled_from([10, 25, 50, 100]),
        "from": st.sampled_from([0, 10, 25]),
        "to": st.sampled_from([0, 10, 25, 50, 100]),
        "decision": st.sampled_from(["promote", "hold", "rollback"]),
        "ok": st.booleans(),
        "stable": st.booleans(),
    }
)
_FIXED = {
    "params_digest": "x", "notebook": "n", "outcome": "done", "plan": story.plan("k", "a" * 16),
    "digest": "a" * 16, "who": "w", "how": "h", "snapshot": None, "share": 1.0, "reason": "r",
    "checklist": [], "export": "e", "holder": "h", "dropped_bytes": 1, "run": "r", "manifest": "m",
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_KINDS), _DATA), max_size=60))
def test_whatever_is_asked_the_state_stays_sound(asked: list[tuple[str, dict[str, Any]]]) -> None:
    state = State()
    for index, (kind, data) in enumerate(asked, 1):
        record = records([(kind, {**_FIXED, **data})])[0]
        before = state
        try:
            state = step(state, record)
        except JournalError:
            continue
        assert 0 <= state.weight_percent <= 100, index
        assert not (state.rolling_back and state.stage_entered is not None)
        assert state.rolling_back == (state.phase is Phase.ROLLING_BACK)
        if state.weight_percent > before.weight_percent:
            assert not state.rolling_back
            assert state.weight_percent in before.possible_weights
        if state.stage_index > before.stage_index:
            assert before.verdicts[-1].decision == "promote"
            assert before.arrived


def test_the_docs_draw_the_machine_as_it_is() -> None:
    docs = Path(__file__).parent.parent.parent / "docs" / "archive.md"
    assert diagram() in docs.read_text(encoding="utf-8"), "put diagram() into docs/archive.md again"


def test_the_second_of_two_mechanisms_is_prepared_when_its_stage_comes() -> None:
    begun = [*story.setup(), *story.stage(0), ("stage.entered", {"stage": 1, "weight": 25})]
    alone = {"mechanism": "route53", "hosts": {}}
    refuse(begun, "prepare.intent", "traffic is on Istio already", snapshot=alone)
    first = {"mechanism": "traffic-split+route53", "inner": {"splits": {}}, "dns": {"hosts": {"a": []}}}
    early = [
        *story.setup(),
        ("stage.entered", {"stage": 0, "weight": 10}),
        ("prepare.intent", {"snapshot": first}),
    ]
    assert after(early).original == first
    later = {**first, "dns": {"hosts": {}}}
    state = after([*begun, ("prepare.intent", {"snapshot": later}), ("prepare.done", {})])
    assert (state.weight_percent, state.original) == (10, {"records": []}), "as it was before the first shift"
