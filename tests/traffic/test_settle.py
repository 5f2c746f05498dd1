"""The end of a migration: 70_cleanup puts the TTL back that was lowered only to move, behind its own gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.story import BEFORE_A_STAGE

from gateshift.errors import GateClosed
from gateshift.params import Params, validate
from gateshift.runbook.approvals import write_approval
from gateshift.runbook.cleanup import Cleanup
from gateshift.runbook.context import Context
from gateshift.runbook.shifting import finish_waiting, keep_original, make_weighted
from tests.cluster.conftest import FakeApi, api, kubeconfig, server  # noqa: F401 - fixtures
from tests.metrics.prometheus import Scrapes, serve

from .conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire

pytestmark = pytest.mark.slow


@pytest.fixture
def quiet() -> Iterator[str]:
    """Both gateways are scraped, and APISIX's counters stand still."""
    with serve() as prometheus:
        scrapes = Scrapes()
        scrapes.istio, scrapes.apisix = {"new": {"200": 500.0}}, {"old": {"200": 900.0}}
        prometheus.responder = scrapes
        yield prometheus.url


def cname(host: str, **more: Any) -> dict[str, Any]:
    return {"Name": host, "Type": "CNAME", "TTL": 300, "ResourceRecords": [{"Value": APISIX_LB}], **more}


@pytest.fixture
def stable(
    wire: Wire,
    api: FakeApi,  # noqa: F811 - the fixture
    kubeconfig: str,  # noqa: F811 - the fixture
    quiet: str,
    tmp_path: Path,
) -> Params:
    """A migration after its stable run: CNAMEs that had 300 s, now weighted with 1 s, all on Istio."""
    for name in ("apisix", "shop", "istio-system"):
        api.add("Namespace", name)
    api.add("Deployment", "apisix", "apisix", spec={"replicas": 2})
    data = {
        "migration": "demo",
        "environment": "lab",
        "mode": "act",
        "confirm_namespace": "apisix",
        "outputs": str(tmp_path / "outputs"),
        "cluster": {"kubeconfig": kubeconfig, "application_namespace": "shop", "uid": "cluster-uid"},
        "apisix": {"files": ["none.yaml"]},
        "istio": {"version": "1.31.0", "ready_timeout": "5s"},
        "metrics": {"url": quiet, "step": "200ms", "timeout": "2s"},
        "soak": {"stable_for": "1s", "sample_for": "1s", "sample_every": "1s"},
        "traffic": {
            "route53": {
                "zone": ZONE,
                "hosts": list(HOSTS),
                "endpoint_url": wire.url,
                "apisix_target": APISIX_LB,
                "istio_target": ISTIO_LB,
                "record": "cname",
                "ttl": "1s",
            },
        },
        "stages": [{"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 1.0}],
    }
    params = validate(data, source="test")
    wire.put(*[cname(host, TTL=2) for host in HOSTS])
    context = Context(params, run="before")
    shifter = context.shifter(stage=0)
    for kind, more in (*BEFORE_A_STAGE, ("stage.entered", {"stage": 0, "weight": 100})):
        context.journal.append(kind, **more)
    keep_original(context)
    make_weighted(context, shifter, shifter.prepare_plan())
    finish_waiting(context)
    context.journal.append("shift.intent", stage=0, to=100, **{"from": 0}, snapshot={})
    shifter.set(shifter.plan(100))
    context.journal.append("shift.done", to=100)
    context.journal.append("stage.arrived", stage=0, share=100.0)
    context.journal.append(
        "verdict", stage=0, decision="promote", reasons=["enough"], evidence={}, observed={}
    )
    context.journal.append("stage.promoted", stage=0)
    context.journal.append("soak.sample", stable=True)
    context.journal.append("soak.done")
    context.journal.close()
    return params


def ttls(wire: Wire) -> set[int]:
    return {int(r["TTL"]) for r in wire.records()}


def clean_up(params: Params) -> Cleanup:
    run = Cleanup(params, {})
    run.read()
    run.plan()
    return run


def test_the_ttl_of_before_comes_back_with_the_clean_up(wire: Wire, stable: Params) -> None:
    assert ttls(wire) == {1}
    run = clean_up(stable)
    assert run.plan_ is not None
    assert [s.after["TTL"] for s in run.plan_.steps if s.verb == "set TTL"] == [2] * 6
    with pytest.raises(GateClosed):
        run.act()
    assert ttls(wire) == {1}, "nothing is set before the gate"
    write_approval(run.context.folder, run.plan_.digest, "ann")
    run.gate()
    run.act()
    assert ttls(wire) == {2}
    assert {(r["SetIdentifier"], r["Weight"]) for r in wire.records()} == {("apisix", 0), ("istio", 100)}
    kinds = [r.kind for r in run.context.journal.records]
    assert kinds.index("note.traffic.settled") < kinds.index("cleanup.done")
    run.close()


def test_a_clean_up_that_died_before_the_ttl_goes_on_with_it(
    wire: Wire, stable: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = clean_up(stable)
    assert run.plan_ is not None
    write_approval(run.context.folder, run.plan_.digest, "ann")
    run.gate()
    monkeypatch.setattr("gateshift.traffic.route53.Route53Shifter.set", _die)
    with pytest.raises(KeyboardInterrupt):
        run.act()
    run._let_go()
    run.context.journal.close()
    monkeypatch.undo()
    again = clean_up(stable)
    assert again.plan_ is not None
    assert {s.verb for s in again.plan_.steps} == {"set TTL"}
    write_approval(again.context.folder, again.plan_.digest, "ann")
    again.gate()
    again.act()
    assert ttls(wire) == {2}
    assert again.context.state.phase.value == "cleaned"
    again.close()


def _die(*_: object) -> None:
    raise KeyboardInterrupt
