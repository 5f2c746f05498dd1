"""What an operator approves must be readable: a plan shows what differs, not two records cut off alike."""

from gateshift.notebook.show import PlanView
from gateshift.plan import Plan, Step


def shown(before: object, after: object) -> str:
    plan = Plan(
        "50_canary", "Stage 1", (Step("weigh", "api A istio", before, after),), way_back="80_rollback"
    )
    return repr(PlanView(plan)) + PlanView(plan)._repr_html_()


def test_only_the_fields_that_differ_are_shown() -> None:
    record = {
        "Name": "a" * 50,
        "SetIdentifier": "istio",
        "Weight": 26,
        "AliasTarget": {"DNSName": "lb." + "x" * 60},
    }
    text = shown(record, {**record, "Weight": 64})
    assert text.count("Weight: 26 → 64") == 2
    assert "SetIdentifier" not in text


def test_nested_fields_are_named_by_their_path() -> None:
    assert "AliasTarget.DNSName: old → new" in shown(
        {"AliasTarget": {"DNSName": "old"}}, {"AliasTarget": {"DNSName": "new"}}
    )


def test_what_appears_and_what_disappears() -> None:
    assert "TTL: — → 60" in shown({"a": 1}, {"a": 1, "TTL": 60})
    assert "TTL: 60 → —" in shown({"a": 1, "TTL": 60}, {"a": 1})
    assert "Weight: 3" in shown(None, {"Weight": 3})
    assert "old → —" in shown("old", None)


def test_many_fields_are_counted_not_hidden() -> None:
    text = shown({f"k{i}": 1 for i in range(20)}, {f"k{i}": 2 for i in range(20)})
    assert "14 more fields in plan.json" in text
