"""The Route 53 shifter against a strict server on loopback."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateshift.errors import TrafficError
from gateshift.traffic.protocol import Shifter
from gateshift.traffic.records import weights_for

from .conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire, alias


@given(st.integers(0, 100))
def test_percent_and_weight_convert_exactly(percent: int) -> None:
    low, high = weights_for(percent)
    assert low + high == 100
    assert 0 <= low <= 255 >= high >= 0
    assert 100 * high / (low + high) == percent


@pytest.mark.parametrize("bad", [-1, 101, 10.5, "10", True])
def test_not_a_percentage(bad: object) -> None:
    with pytest.raises(TrafficError, match="not a whole percentage"):
        weights_for(bad)  # type: ignore[arg-type]


def test_it_is_a_shifter(wire: Wire) -> None:
    assert isinstance(wire.shifter(), Shifter)


def test_simple_records_become_weighted_in_one_batch_with_the_same_target_first(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    assert shifter.read().istio_percent == 0
    assert not shifter.read().prepared
    wire.door.batches.clear()
    receipt = shifter.set(shifter.prepare_plan())
    assert receipt.changed
    assert len(wire.door.batches) == 1
    actions = [action for action, _, _ in wire.door.batches[0]]
    assert actions == ["DELETE"] * 3 + ["CREATE"] * 6
    weights = shifter.read()
    assert weights.istio_percent == 0
    assert weights.prepared
    for record in wire.records():
        expected = APISIX_LB if record["SetIdentifier"] == "apisix" else ISTIO_LB
        assert record["AliasTarget"]["DNSName"].rstrip(".") == expected
        assert record["AliasTarget"]["EvaluateTargetHealth"] is False
        assert record["AliasTarget"]["HostedZoneId"] == "Z26RNL4JYFTOTI"


@pytest.mark.parametrize("percent", [0, 1, 10, 25, 50, 75, 99, 100])
def test_any_percentage_in_one_batch_and_read_back(wire: Wire, percent: int) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    shifter.set(shifter.prepare_plan())
    wire.door.batches.clear()
    plan = shifter.plan(percent)
    receipt = shifter.set(plan)
    assert shifter.read().istio_percent == percent
    assert len(wire.door.batches) == (0 if percent == 0 else 1)
    assert receipt.changed == (percent != 0)
    weights = {(r["Name"].rstrip("."), r["SetIdentifier"]): r["Weight"] for r in wire.records()}
    assert weights == {(h, s): (percent if s == "istio" else 100 - percent) for h, s in weights}
    assert len(weights) == 6


def test_setting_twice_changes_nothing_the_second_time(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    shifter.set(shifter.prepare_plan())
    plan = shifter.plan(25)
    first, second = shifter.set(plan), shifter.set(plan)
    assert first.changed
    assert not second.changed
    assert second.change_ids == ()
    assert shifter.plan(25).empty
    assert shifter.confirm(second) == 0


def test_a_plan_changes_nothing_and_is_plain_json_with_a_stable_digest(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    wire.door.batches.clear()
    plan = shifter.prepare_plan()
    assert json.loads(json.dumps(plan.as_json())) == plan.as_json()
    assert plan.digest == wire.shifter().prepare_plan().digest
    assert wire.door.batches == []
    assert not plan.empty


def test_snapshot_and_exact_restore(wire: Wire) -> None:
    wire.simple_aliases()
    before = wire.records()
    shifter = wire.shifter()
    snapshot = json.loads(json.dumps(shifter.snapshot()))
    shifter.set(shifter.prepare_plan())
    shifter.set(shifter.plan(50))
    shifter.set(shifter.restore_plan(snapshot))
    assert wire.records() == before
    assert shifter.restore_plan(snapshot).empty
    assert shifter.read().istio_percent == 0


def test_a_simple_cname_becomes_weighted_aliases_and_comes_back(wire: Wire) -> None:
    cname = {"Type": "CNAME", "TTL": 3600, "ResourceRecords": [{"Value": APISIX_LB}]}
    wire.put(*[{"Name": h, **cname} for h in HOSTS])
    before = wire.records()
    shifter = wire.shifter()
    snapshot = shifter.snapshot()
    receipt = shifter.set(shifter.prepare_plan())
    assert receipt.wait_out_s == 3600
    shifter.set(shifter.plan(10))
    assert {r["Type"] for r in wire.records()} == {"A"}
    shifter.set(shifter.restore_plan(snapshot))
    assert wire.records() == before


def test_weighted_cnames_keep_a_short_ttl(wire: Wire) -> None:
    cname = {"Type": "CNAME", "TTL": 3600, "ResourceRecords": [{"Value": "gw-old.example.net"}]}
    wire.put(*[{"Name": h, **cname} for h in HOSTS])
    shifter = wire.shifter(record="cname", apisix="gw-old.example.net", istio="gw-new.example.net")
    snapshot = json.loads(json.dumps(shifter.snapshot()))
    shifter.set(shifter.prepare_plan())
    shifter.set(shifter.plan(75))
    assert {(r["SetIdentifier"], r["Weight"], r["TTL"]) for r in wire.records()} == {
        ("apisix", 25, 60),
        ("istio", 75, 60),
    }
    shifter.set(shifter.settle_plan(snapshot))
    assert shifter.settle_plan(snapshot).empty
    assert {r["TTL"] for r in wire.records()} == {3600}
    assert shifter.read().istio_percent == 75


def test_ipv6_moves_together_with_ipv4(wire: Wire) -> None:
    wire.simple_aliases()
    wire.simple_aliases("AAAA")
    shifter = wire.shifter(ipv6=True)
    shifter.set(shifter.prepare_plan())
    shifter.set(shifter.plan(50))
    assert len(wire.records()) == 12
    assert {r["Weight"] for r in wire.records()} == {50}


def test_addresses_are_kept_when_converted(wire: Wire) -> None:
    wire.put(
        {
            "Name": HOSTS[0],
            "Type": "A",
            "TTL": 300,
            "ResourceRecords": [{"Value": "198.51.100.2"}, {"Value": "198.51.100.1"}],
        }
    )
    shifter = wire.shifter(hosts=[HOSTS[0]])
    shifter.set(shifter.prepare_plan())
    apisix = next(r for r in wire.records() if r["SetIdentifier"] == "apisix")
    assert {v["Value"] for v in apisix["ResourceRecords"]} == {"198.51.100.1", "198.51.100.2"}
    assert apisix["TTL"] == 60


def test_insync_is_awaited_and_timed_from_acceptance(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    receipt = shifter.set(shifter.prepare_plan())
    wire.door.pending = 3
    seconds = shifter.confirm(receipt)
    assert seconds == pytest.approx(0.5 + 0.75 + 1.125)


def test_rollback_needs_neither_cluster_nor_targets(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    shifter.set(shifter.prepare_plan())
    shifter.set(shifter.plan(75))
    blind = wire.shifter(apisix="", istio="")
    blind.set(blind.plan(0))
    assert blind.read().istio_percent == 0


def test_rollback_goes_past_foreign_records_and_health_checks(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    shifter.set(shifter.prepare_plan())
    shifter.set(shifter.plan(75))
    foreign = alias(HOSTS[0], target=ISTIO_LB, SetIdentifier="other-team", Weight=1)
    wire.put(foreign)
    with pytest.raises(TrafficError, match="foreign set identifier 'other-team'"):
        shifter.plan(100)
    shifter.set(shifter.plan(0))
    assert {r["Weight"] for r in wire.records() if r["SetIdentifier"] == "istio"} == {0}
    assert any(r["SetIdentifier"] == "other-team" for r in wire.records())


def test_rolling_back_what_was_never_prepared_is_nothing_to_do(wire: Wire) -> None:
    wire.simple_aliases()
    assert wire.shifter().plan(0).empty


def test_zone_name_and_hosts_are_those_of_the_lab() -> None:
    assert all(h.endswith(ZONE) for h in HOSTS)


def test_the_ttl_that_the_zone_has_is_read(wire: Wire) -> None:
    name = {"Type": "CNAME", "TTL": 3600, "ResourceRecords": [{"Value": APISIX_LB}]}
    wire.put({"Name": HOSTS[0], **name}, *[alias(host) for host in HOSTS[1:]])
    hosts = wire.shifter(record="cname", ttl="30s").read().hosts
    assert [hosts[h].ttl for h in HOSTS] == [3600, None, None]
