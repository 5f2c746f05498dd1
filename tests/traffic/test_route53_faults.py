"""Every fault the shifter must survive or refuse, tried on the wire."""

from __future__ import annotations

import pytest

from gateshift.errors import TrafficError
from gateshift.traffic.elb import canonical_zone_id, is_load_balancer
from gateshift.traffic.records import APISIX, ISTIO

from .conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire, alias, refusal


def prepared(wire: Wire, **params: object) -> object:
    wire.simple_aliases()
    shifter = wire.shifter(**params)  # type: ignore[arg-type]
    shifter.set(shifter.prepare_plan())
    return shifter


def test_access_denied_names_the_policy(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    plan = shifter.prepare_plan()
    denied = refusal("AccessDenied", "not authorized", "403 Forbidden")
    wire.door.fault = lambda method, _: denied if method == "POST" else None
    with pytest.raises(TrafficError, match="AWS denies access") as caught:
        shifter.set(plan)
    assert "docs/dns.md" in caught.value.hint
    wire.door.fault = None
    assert not shifter.read().prepared


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch"])
def test_bad_credentials(wire: Wire, code: str) -> None:
    wire.door.fault = lambda *_: refusal(code, "no", "403 Forbidden")
    with pytest.raises(TrafficError, match="does not accept the credentials"):
        wire.shifter().read()


@pytest.mark.parametrize("code", ["Throttling", "PriorRequestNotComplete"])
def test_throttled_for_a_minute_then_done(wire: Wire, code: str) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    plan = shifter.prepare_plan()
    until = wire.now + 60
    busy = refusal(code, "Rate exceeded", "400 Bad Request")
    wire.door.fault = lambda method, _: busy if method == "POST" and wire.now < until else None
    receipt = shifter.set(plan)
    assert receipt.changed
    assert 60 <= receipt.took_s < 75
    assert shifter.read().prepared


def test_throttled_for_ever_gives_up_and_says_so(wire: Wire) -> None:
    wire.door.fault = lambda *_: refusal("Throttling", "Rate exceeded", "400 Bad Request")
    with pytest.raises(TrafficError, match="kept answering Throttling") as caught:
        wire.shifter(retry_for=30).read()
    assert wire.slept <= 30
    assert "5 requests a second" in caught.value.hint


def test_server_errors_are_tried_again(wire: Wire) -> None:
    wire.simple_aliases()
    answers = iter([("503 Service Unavailable", b""), ("500 Internal Server Error", b"")])
    wire.door.fault = lambda *_: next(answers, None)
    assert wire.shifter().read().istio_percent == 0


def test_never_insync_is_an_error_that_can_be_resumed(wire: Wire) -> None:
    shifter = prepared(wire)
    receipt = shifter.set(shifter.plan(10))
    wire.door.pending = 10_000
    with pytest.raises(TrafficError, match="not yet on all its servers") as caught:
        shifter.confirm(receipt)
    assert "run the same notebook again" in caught.value.hint
    assert wire.slept <= 120
    wire.door.pending = 0
    assert shifter.confirm(receipt) >= 0


def test_zone_missing(wire: Wire) -> None:
    with pytest.raises(TrafficError, match=r"no public hosted zone named example\.org"):
        wire.shifter(zone="example.org", hosts=["api.example.org"]).read()


def test_only_a_private_zone_of_that_name(wire: Wire) -> None:
    wire.admin.create_hosted_zone(
        Name="internal.example",
        CallerReference="p",
        HostedZoneConfig={"PrivateZone": True},
        VPC={"VPCRegion": "us-east-1", "VPCId": "vpc-1"},
    )
    with pytest.raises(TrafficError, match="there is one, but it is private"):
        wire.shifter(zone="internal.example", hosts=["api.internal.example"]).read()
    got = wire.shifter(zone="internal.example", hosts=["api.internal.example"], private=True)
    assert got.zone_id


def test_private_and_public_zone_of_one_name_are_told_apart(wire: Wire) -> None:
    private = wire.admin.create_hosted_zone(
        Name=ZONE,
        CallerReference="p",
        HostedZoneConfig={"PrivateZone": True},
        VPC={"VPCRegion": "us-east-1", "VPCId": "vpc-1"},
    )["HostedZone"]["Id"].rsplit("/")[-1]
    assert wire.shifter().zone_id == wire.zone_id
    assert wire.shifter(private=True).zone_id == private


def test_two_zones_of_one_name_need_an_id(wire: Wire) -> None:
    wire.simple_aliases()
    wire.admin.create_hosted_zone(Name=ZONE, CallerReference="two")
    with pytest.raises(TrafficError, match="2 public hosted zones named") as caught:
        wire.shifter().read()
    assert "zone_id" in caught.value.hint
    assert wire.shifter(zone_id=wire.zone_id).read().istio_percent == 0


def test_a_zone_id_of_another_zone_is_refused(wire: Wire) -> None:
    other = wire.admin.create_hosted_zone(Name="other.example", CallerReference="o")["HostedZone"]["Id"]
    with pytest.raises(TrafficError, match=r"is public other\.example"):
        wire.shifter(zone_id=other.rsplit("/")[-1]).read()
    with pytest.raises(TrafficError, match="does not exist"):
        wire.shifter(zone_id="ZNOTTHERE").read()


def test_changed_between_plan_and_apply_is_refused_before_anything_is_sent(wire: Wire) -> None:
    shifter = prepared(wire)
    plan = shifter.plan(10)
    wire.put(alias(HOSTS[1], target=ISTIO_LB, SetIdentifier=ISTIO, Weight=77))
    wire.door.batches.clear()
    with pytest.raises(TrafficError, match="changed by somebody else") as caught:
        shifter.set(plan)
    assert "weight 77" in str(caught.value)
    assert wire.door.batches == []


def test_changed_in_the_last_moment_is_refused_by_the_batch_itself(wire: Wire) -> None:
    shifter = prepared(wire)
    plan = shifter.plan(10)

    def somebody() -> None:
        wire.door.before_change = None
        wire.put(alias(HOSTS[1], target=ISTIO_LB, SetIdentifier=ISTIO, Weight=77))

    wire.door.before_change = somebody
    with pytest.raises(TrafficError, match="changed by somebody else"):
        shifter.set(plan)
    weights = {(r["Name"].rstrip("."), r["SetIdentifier"]): r["Weight"] for r in wire.records()}
    assert weights[HOSTS[0], ISTIO] == 0, "all or nothing: the first host must not have moved either"
    assert weights[HOSTS[1], ISTIO] == 77


def test_weights_changed_during_dwell_are_seen(wire: Wire) -> None:
    shifter = prepared(wire)
    shifter.set(shifter.plan(10))
    wire.put(alias(HOSTS[2], target=ISTIO_LB, SetIdentifier=ISTIO, Weight=90))
    weights = shifter.read()
    assert weights.istio_percent is None
    assert weights.hosts[HOSTS[2]].istio_percent == 50
    assert weights.hosts[HOSTS[0]].istio_percent == 10


def test_network_gone_in_the_middle_of_a_batch(wire: Wire) -> None:
    shifter = prepared(wire)
    plan = shifter.plan(25)
    wire.door.cut_after = 1
    receipt = shifter.set(plan)
    assert receipt.changed
    assert shifter.read().istio_percent == 25


def test_network_gone_for_good(wire: Wire) -> None:
    with pytest.raises(TrafficError, match="cannot be reached"):
        wire.shifter(endpoint_url="http://127.0.0.1:9", retry_for=1).read()


@pytest.mark.parametrize(("apisix", "istio", "who"), [("", ISTIO_LB, "APISIX"), (APISIX_LB, "", "Istio")])
def test_a_load_balancer_without_address(wire: Wire, apisix: str, istio: str, who: str) -> None:
    wire.simple_aliases()
    with pytest.raises(TrafficError, match=f"the {who} load balancer has no address"):
        wire.shifter(apisix=apisix, istio=istio).prepare_plan()


def test_both_gateways_with_one_address(wire: Wire) -> None:
    wire.simple_aliases()
    with pytest.raises(TrafficError, match="same load balancer address"):
        wire.shifter(istio=APISIX_LB.upper()).prepare_plan()


def test_a_load_balancer_that_changed_is_refused_for_going_on_but_not_for_going_back(wire: Wire) -> None:
    shifter = prepared(wire)
    shifter.set(shifter.plan(10))
    moved = wire.shifter(istio="istio-new.elb.us-east-1.amazonaws.com")
    with pytest.raises(TrafficError, match=r"address is now istio-new\.elb"):
        moved.plan(25)
    with pytest.raises(TrafficError, match=r"address is now istio-new\.elb"):
        moved.prepare_plan()
    moved.set(moved.plan(0))
    moved.set(moved.prepare_plan())
    moved.set(moved.plan(25))
    targets = {r["AliasTarget"]["DNSName"].rstrip(".") for r in wire.records() if r["SetIdentifier"] == ISTIO}
    assert targets == {"istio-new.elb.us-east-1.amazonaws.com"}


def test_a_record_that_points_elsewhere_is_not_converted(wire: Wire) -> None:
    wire.put(*[alias(h, target="third-lb.elb.us-east-1.amazonaws.com") for h in HOSTS])
    shifter = wire.shifter()
    assert shifter.read().istio_percent is None
    with pytest.raises(TrafficError, match="points to third-lb"):
        shifter.prepare_plan()


def test_aaaa_on_one_side_only(wire: Wire) -> None:
    wire.simple_aliases()
    wire.put(alias(HOSTS[0], "AAAA"))
    with pytest.raises(TrafficError, match="AAAA record would answer beside the weights") as caught:
        wire.shifter().prepare_plan()
    assert "ipv6" in caught.value.hint
    assert wire.shifter().read().istio_percent is None


def test_health_check_and_other_policies_are_refused(wire: Wire) -> None:
    shifter = prepared(wire)
    wire.put(alias(HOSTS[0], target=ISTIO_LB, SetIdentifier=ISTIO, Weight=0, HealthCheckId="hc-1"))
    with pytest.raises(TrafficError, match="hangs on a health check"):
        shifter.plan(10)
    wire.put(alias(HOSTS[0], SetIdentifier="eu", Region="eu-west-1"), zone_id=_fresh_zone(wire))
    with pytest.raises(TrafficError, match="foreign set identifier 'eu'"):
        wire.shifter(zone_id=_fresh_zone.last, hosts=[HOSTS[0]]).prepare_plan()


def _fresh_zone(wire: Wire) -> str:
    made = wire.admin.create_hosted_zone(Name=ZONE, CallerReference="fresh")["HostedZone"]["Id"]
    _fresh_zone.last = made.rsplit("/")[-1]  # type: ignore[attr-defined]
    return str(_fresh_zone.last)  # type: ignore[attr-defined]


def test_a_host_without_record_or_outside_the_zone(wire: Wire) -> None:
    with pytest.raises(TrafficError, match="no A, AAAA or CNAME record"):
        wire.shifter().prepare_plan()
    with pytest.raises(TrafficError, match="is not in hosted zone"):
        wire.shifter(hosts=["api.example.org"]).read()
    with pytest.raises(TrafficError, match="is not in hosted zone"):
        wire.shifter(hosts=["api.notvoiceassistant.com"]).read()


def test_a_delegated_host_is_the_wrong_zone(wire: Wire) -> None:
    wire.put({"Name": HOSTS[0], "Type": "NS", "TTL": 300, "ResourceRecords": [{"Value": "ns1.example.net."}]})
    with pytest.raises(TrafficError, match="delegated to another hosted zone"):
        wire.shifter().read()


def test_a_plan_for_another_zone_is_refused(wire: Wire) -> None:
    shifter = prepared(wire)
    plan = shifter.plan(10)
    other = wire.admin.create_hosted_zone(Name=ZONE, CallerReference="z")["HostedZone"]["Id"].rsplit("/")[-1]
    wrong = wire.shifter(zone_id=other)
    with pytest.raises(TrafficError, match="is not for hosted zone"):
        wrong.set(plan)
    with pytest.raises(TrafficError, match="the snapshot is of"):
        wrong.restore_plan(shifter.snapshot())


def test_both_weights_zero_read_as_equal_shares(wire: Wire) -> None:
    shifter = prepared(wire)
    wire.put(*[alias(h, SetIdentifier=APISIX, Weight=0) for h in HOSTS])
    assert shifter.read().istio_percent == 50
    shifter.set(shifter.plan(0))
    assert shifter.read().istio_percent == 0


def test_restoring_does_not_delete_what_others_added(wire: Wire) -> None:
    wire.simple_aliases()
    shifter = wire.shifter()
    snapshot = shifter.snapshot()
    shifter.set(shifter.prepare_plan())
    wire.put(alias(HOSTS[0], SetIdentifier="other-team", Weight=5))
    with pytest.raises(TrafficError, match="somebody added the A record 'other-team'"):
        shifter.restore_plan(snapshot)


def test_an_alias_needs_a_load_balancer_or_its_zone_id(wire: Wire) -> None:
    wire.simple_aliases()
    with pytest.raises(TrafficError, match="canonical hosted zone id") as caught:
        wire.shifter(istio="gateway.example.net").prepare_plan()
    assert "cname" in caught.value.hint
    with pytest.raises(TrafficError, match="canonical hosted zone id") as caught:
        wire.shifter(istio="lb.elb.xx-new-1.amazonaws.com").prepare_plan()
    assert "target_zone_id" in caught.value.hint
    assert not wire.shifter(istio="lb.elb.xx-new-1.amazonaws.com", target_zone_id="Z1").prepare_plan().empty


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("a-1.elb.us-east-1.amazonaws.com", "Z26RNL4JYFTOTI"),
        ("dualstack.a-1.us-east-1.elb.amazonaws.com.", "Z35SXDOTRQ7X7K"),
        ("A-1.EU-CENTRAL-1.ELB.amazonaws.com", "Z215JYRZR1TBD5"),
        ("a-1.elb.cn-north-1.amazonaws.com.cn", "Z3QFB96KMJ7ED6"),
        ("a-1.elb.mars-1.amazonaws.com", None),
        ("example.com", None),
    ],
)
def test_canonical_zone_ids(name: str, zone: str | None) -> None:
    assert canonical_zone_id(name) == zone
    assert is_load_balancer(name) == ("amazonaws" in name)
