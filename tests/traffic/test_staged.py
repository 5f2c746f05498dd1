"""Two mechanisms in one migration: traffic-split first and DNS at the end; DNS in front of Istio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gateshift.errors import TrafficError
from gateshift.params import Params, validate
from gateshift.plan import Plan, Step
from gateshift.traffic import make_shifter
from gateshift.traffic.forwarded import own_selectors
from gateshift.traffic.protocol import HostWeights, Receipt, Shifter, Weights
from gateshift.traffic.staged import Staged

from .conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire, alias
from .test_split import KEY, backend, lab  # noqa: F401 - the APISIX stand-in


def params(wire: Wire, admin: str, port: int, **more: Any) -> Params:
    stage = {"dwell": "10s", "error_rate_limit_percent": 1.0}
    data = {
        "migration": "both",
        "environment": "lab",
        "apisix": {"admin_url": admin, "admin_key": KEY},
        "istio": {"version": "1.31.0"},
        "metrics": {"url": "http://127.0.0.1:9"},
        "traffic": {
            "route53": {"zone": ZONE, "hosts": list(HOSTS), "endpoint_url": wire.url},
            "traffic_split": {"istio_target": "127.0.0.1", "port": port},
        },
        "stages": [
            {"weight_percent": 10, "mechanism": "traffic-split", **stage},
            {"weight_percent": 30, "mechanism": "traffic-split", **stage},
            {"weight_percent": 75, **stage},
            {"weight_percent": 100, **stage},
        ],
        **more,
    }
    return validate(data, source="test")


@pytest.fixture
def both(wire: Wire, lab: dict[str, Any]) -> Iterator[Params]:  # noqa: F811 - the fixture
    wire.simple_aliases()
    made = params(wire, f"http://127.0.0.1:{lab['admin_port']}", lab["new_port"])
    yield made
    shifter = at(made, 0)
    shifter.set(shifter.plan(0))


def at(made: Params, stage: int | None) -> Shifter:
    return make_shifter(made, apisix_target=APISIX_LB, istio_target=ISTIO_LB, stage=stage)


def carry_out(made: Params, stage: int) -> Shifter:
    shifter = at(made, stage)
    prepare = shifter.prepare_plan()
    if not prepare.empty:
        shifter.confirm(shifter.set(prepare))
    shifter.confirm(shifter.set(shifter.plan(made.stages[stage].weight_percent)))
    return shifter


def dns_weights(wire: Wire) -> set[tuple[str, int]]:
    return {(r.get("SetIdentifier", "simple"), r.get("Weight", -1)) for r in wire.records()}


def test_split_for_the_first_stages_and_dns_at_the_end(wire: Wire, both: Params) -> None:
    snapshot = json.loads(json.dumps(at(both, None).snapshot()))
    for stage, percent in ((0, 10), (1, 30)):
        shifter = carry_out(both, stage)
        assert shifter.read().istio_percent == percent
        assert dns_weights(wire) == {("simple", -1)}, "DNS is not touched before its stage"
    shifter = carry_out(both, 2)
    assert shifter.read().istio_percent == 75
    # 30 % by the split, and DNS takes 45 of the 70 that are left: exact, and never above 75 on the way.
    assert dns_weights(wire) == {("apisix", 25), ("istio", 45)}
    assert shifter.plan(75).empty
    again = at(both, 2)
    assert json.loads(json.dumps(again.plan(75).as_json()))["inputs"]["percent"] == 75
    shifter = carry_out(both, 3)
    assert shifter.read().istio_percent == 100
    assert dns_weights(wire) == {("apisix", 0), ("istio", 70)}
    back = make_shifter(both, apisix_target="", istio_target="")
    back.confirm(back.set(back.plan(0)))
    assert back.read().istio_percent == 0
    assert dns_weights(wire) == {("apisix", 100), ("istio", 0)}
    whole = at(both, None)
    whole.set(whole.restore_plan(snapshot))
    assert at(both, None).snapshot()["dns"]["hosts"] == snapshot["dns"]["hosts"]


def test_the_way_back_when_the_admin_api_is_gone(wire: Wire, both: Params) -> None:
    carry_out(both, 1)
    carry_out(both, 2)
    gone = params(wire, "http://127.0.0.1:9", 1)
    back = make_shifter(gone, apisix_target="", istio_target="")
    with pytest.raises(TrafficError, match=r"traffic-split: .*still goes to Istio") as caught:
        back.set(back.plan(0))
    assert "run `gateshift rollback` again" in caught.value.hint
    assert dns_weights(wire) == {("apisix", 100), ("istio", 0)}, "what could be set was set"
    back = make_shifter(both, apisix_target="", istio_target="")
    assert back.read().istio_percent == 30
    back.set(back.plan(0))
    assert back.read().istio_percent == 0


def test_dns_changed_by_somebody_in_a_split_stage_is_seen(wire: Wire, both: Params) -> None:
    shifter = carry_out(both, 0)
    wire.put(*[alias(h, target=ISTIO_LB) for h in HOSTS])
    assert shifter.read().istio_percent == 100
    wire.simple_aliases()


class _Plain:
    """A shifter of whole percentages in memory, to test the arithmetic of *front* alone."""

    def __init__(self, name: str, percent: int, broken: bool = False) -> None:
        self.name, self.percent, self.broken = name, percent, broken

    def read(self) -> Weights:
        return Weights(self.percent, {self.name: HostWeights(self.name, self.percent, True)})

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        assert of == 100
        if self.broken:
            raise TrafficError("out of reach")
        steps = (Step("weigh", self.name, self.percent, percent),) if percent != self.percent else ()
        return Plan(f"traffic.{self.name}", "", steps, "", {})

    def set(self, plan: Plan) -> Receipt:
        self.percent = plan.steps[0].after
        return Receipt(self.name, plan.digest, (), 0.0, 0.0, True)

    def snapshot(self) -> Mapping[str, Any]:
        return {}


def test_in_front_of_istio_dns_goes_first_and_is_enough_to_go_back() -> None:
    inner, dns = _Plain("istio-first", 0), _Plain("route53", 0)
    staged = Staged(inner, dns, by_dns=True, front=True)  # type: ignore[arg-type]
    plan = staged.plan(25)
    assert [s.target for s in plan.steps] == ["route53", "istio-first"]
    staged.set(plan)
    assert (dns.percent, inner.percent, staged.read().istio_percent) == (100, 25, 25)
    inner.broken = True
    staged.set(staged.plan(0))
    assert (dns.percent, inner.percent) == (0, 25)
    assert staged.read().istio_percent == 0


def test_each_gateway_leaves_out_what_it_only_hands_on(wire: Wire) -> None:
    made = params(wire, "http://127.0.0.1:9", 80)
    assert own_selectors(made, "") == ('node!="127.0.0.1"', "")
    # In a stage of traffic-split what APISIX answers itself cannot be moved; in one of DNS it can.
    assert own_selectors(made, "", stage=0) == ('node!="",node!="127.0.0.1"', "")
    assert own_selectors(made, "", stage=2) == ('node!="127.0.0.1"', "")
    found = own_selectors(without_target(made), "lb.example", lambda _: frozenset({"10.0.0.2", "10.0.0.1"}))
    assert found == ('node!="10.0.0.1",node!="10.0.0.2"', "")
    one = {"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 1.0}
    assert own_selectors(params(wire, "http://127.0.0.1:9", 80, stages=[one]), "lb") == ("", "")
    traffic = {
        "mechanism": "istio-first",
        "istio_first": {"front": "route53"},
        "route53": {"zone": ZONE, "hosts": list(HOSTS)},
    }
    apart = own_selectors(params(wire, "http://127.0.0.1:9", 80, stages=[one], traffic=traffic), "lb")
    assert apart == ("", 'destination_service!="apisix-gateway.apisix.svc.cluster.local"')


def without_target(made: Params) -> Params:
    split = made.traffic.traffic_split.model_copy(update={"istio_target": None})
    return made.model_copy(update={"traffic": made.traffic.model_copy(update={"traffic_split": split})})
