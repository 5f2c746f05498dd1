"""The IAM policy of docs/dns.md is sufficient, and every statement of it is needed (moto checks IAM)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from moto.iam.access_control import IAMPolicy, PermissionResult

from gateshift.errors import TrafficError
from gateshift.traffic.cloudflare import TOKEN_SCOPES

from .conftest import Wire, refusal

DOCS = Path(__file__).parents[2] / "docs" / "dns.md"


def documented_policy() -> dict[str, Any]:
    found = re.search(r"```json iam\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found, "docs/dns.md has no IAM policy"
    policy: dict[str, Any] = json.loads(found[1])
    return policy


def _request(method: str, path: str) -> tuple[str, str]:
    """Return the IAM action and resource of a Route 53 request (Service Authorization Reference)."""
    parts = path.strip("/").split("/")[1:]
    if parts[0] == "hostedzonesbyname":
        return "route53:ListHostedZonesByName", "*"
    if parts[0] == "change":
        return "route53:GetChange", f"arn:aws:route53:::change/{parts[1]}"
    arn = f"arn:aws:route53:::hostedzone/{parts[1]}"
    if parts[2:] == ["rrset"]:
        verb = "Change" if method == "POST" else "List"
        return f"route53:{verb}ResourceRecordSets", arn
    return "route53:GetHostedZone", arn


def _guard(wire: Wire, policy: dict[str, Any]) -> None:
    """Let moto's IAM decide on every request that arrives."""
    text = json.dumps(policy).replace("ZONE_ID", wire.zone_id)
    bare = json.loads(text)
    for statement in bare["Statement"]:
        statement.pop("Condition", None)  # moto knows no ForAllValues; the record types are tested below
    iam = IAMPolicy(json.dumps(bare))

    def fault(method: str, path: str) -> tuple[str, bytes] | None:
        action, resource = _request(method, path)
        if iam.is_action_permitted(action, resource) is PermissionResult.PERMITTED:
            return None
        return refusal("AccessDenied", f"not authorized to perform: {action}", "403 Forbidden")

    wire.door.fault = fault


def _migrate(wire: Wire, policy: dict[str, Any], **params: Any) -> None:
    wire.simple_aliases()
    _guard(wire, policy)
    shifter = wire.shifter(**params)
    shifter.check_access()
    assert wire.door.batches, "the check asks for the permission to change"
    shifter.confirm(shifter.set(shifter.prepare_plan()))
    for percent in (25, 100, 0):
        shifter.confirm(shifter.set(shifter.plan(percent)))
        assert shifter.read().istio_percent == percent


def test_the_documented_policy_is_sufficient(wire: Wire) -> None:
    wire.door.batches.clear()
    _migrate(wire, documented_policy())
    types = {what.rsplit(" ", 1)[1] for batch in wire.door.batches for _, what, _ in batch}
    (conditions,) = (s["Condition"] for s in documented_policy()["Statement"] if "Condition" in s)
    allowed = conditions["ForAllValues:StringEquals"]["route53:ChangeResourceRecordSetsRecordTypes"]
    assert types <= set(allowed)


def _actions() -> list[str]:
    return [action for s in documented_policy()["Statement"] for action in s["Action"]]


@pytest.mark.parametrize("action", _actions())
def test_every_action_of_it_is_needed(wire: Wire, action: str) -> None:
    policy = documented_policy()
    for statement in policy["Statement"]:
        statement["Action"] = [a for a in statement["Action"] if a != action]
    by_id = {"zone_id": wire.zone_id} if action == "route53:GetHostedZone" else {}
    with pytest.raises(TrafficError, match="AWS denies access") as caught:
        _migrate(wire, policy, **by_id)
    assert action in str(caught.value)
    assert "docs/dns.md" in caught.value.hint


def test_the_access_check_changes_nothing(wire: Wire) -> None:
    wire.simple_aliases()
    before = wire.records()
    wire.shifter().check_access()
    assert wire.records() == before


def test_another_zone_is_out_of_reach(wire: Wire) -> None:
    other = wire.admin.create_hosted_zone(Name="other.example", CallerReference="o")["HostedZone"]["Id"]
    _guard(wire, documented_policy())
    with pytest.raises(TrafficError, match="AWS denies access"):
        wire.shifter(zone="other.example", hosts=["a.other.example"], zone_id=other.rsplit("/")[-1]).read()


def test_the_documented_policy_is_narrow() -> None:
    for statement in documented_policy()["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        if "route53:ChangeResourceRecordSets" in statement["Action"]:
            assert statement["Resource"] == "arn:aws:route53:::hostedzone/ZONE_ID"
            names = statement["Condition"]["ForAllValues:StringEquals"]
            assert set(names["route53:ChangeResourceRecordSetsRecordTypes"]) == {"A", "AAAA", "CNAME"}


def test_the_documented_token_scopes_are_those_in_the_hint() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for scope in TOKEN_SCOPES:
        assert scope in text
