"""The way back with the real runbook: Route 53 and Prometheus at the wire, and no cluster to ask."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.story import BEFORE_A_STAGE

from gateshift.errors import NotEnoughEvidence, RolledBack
from gateshift.migration.state import Phase
from gateshift.params import Params, StageParams, needs_of, validate
from gateshift.runbook.approvals import write_approval
from gateshift.runbook.context import Context
from gateshift.runbook.observe import StageWatch
from gateshift.runbook.rollback import Rollback
from gateshift.runbook.shifting import (
    clients_of,
    finish_waiting,
    keep_original,
    make_weighted,
    original_of,
)
from tests.metrics.prometheus import Scrapes, serve

from .conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire, alias

pytestmark = pytest.mark.slow

STAGE = {"weight_percent": 50, "dwell": "1s", "error_rate_limit_percent": 1.0}


class Flow(Scrapes):
    """Both gateways' counters: requests a second of (Istio, APISIX), from each moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[tuple[float, float, float]] = [(time.time() - 60, 100.0, 100.0)]
        self.lost = False

    def now(self, istio: float, apisix: float) -> None:
        self.rates.append((time.time(), istio, apisix))

    def __call__(self, query: str, at: float) -> Any:
        counts = [0.0, 0.0]
        ends = [start for start, _, _ in self.rates[1:]] + [float("inf")]
        for (start, *rates), end in zip(self.rates, ends, strict=True):
            span = max(0.0, min(at, end) - start)
            counts = [n + rate * span for n, rate in zip(counts, rates, strict=True)]
        self.istio = {} if self.lost else {"new": {"200": counts[0]}}
        self.apisix = {"old": {"200": counts[1]}}
        return super().__call__(query, at)


@pytest.fixture
def flow() -> Iterator[tuple[Flow, str]]:
    with serve() as prometheus:
        found = Flow()
        prometheus.responder = found
        yield found, prometheus.url


@pytest.fixture
def settings(wire: Wire, flow: tuple[Flow, str], tmp_path: Path) -> dict[str, Any]:
    """A params file's content; its cluster does not answer."""
    kubeconfig = tmp_path / "kubeconfig"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(json.dumps(config))
    return {
        "migration": "demo",
        "environment": "lab",
        "mode": "act",
        "outputs": str(tmp_path / "outputs"),
        "cluster": {"kubeconfig": str(kubeconfig)},
        "apisix": {"files": ["none.yaml"]},
        "istio": {"version": "1.31.0"},
        "metrics": {"url": flow[1], "step": "200ms", "timeout": "2s"},
        "traffic": {
            "rollback_target": "20s",
            "arrival_timeout": "5s",
            "watch_weights": "200ms",
            "clients": {"ttl": "1s", "propagation": "500ms", "tail": 0.0, "sticky": 0.0},
            "route53": {
                "zone": ZONE,
                "hosts": list(HOSTS),
                "endpoint_url": wire.url,
                "apisix_target": APISIX_LB,
                "istio_target": ISTIO_LB,
            },
        },
        "stages": [STAGE, {**STAGE, "weight_percent": 100}],
    }


@pytest.fixture
def params(settings: dict[str, Any]) -> Params:
    return validate(settings, source="test")


@pytest.fixture
def shifted(wire: Wire, params: Params) -> Params:
    """A migration that died in its first stage, with half of the traffic on Istio."""
    wire.simple_aliases()
    context = Context(params, run="died")
    for kind, more in (*BEFORE_A_STAGE, ("stage.entered", {"stage": 0, "weight": 50})):
        context.journal.append(kind, **more)
    shifter = context.shifter(stage=0)
    keep_original(context)
    make_weighted(context, shifter, shifter.prepare_plan())
    finish_waiting(context)
    targets = {"apisix_target": APISIX_LB, "istio_target": ISTIO_LB}
    moved = {"stage": 0, "from": 0, "to": 50, "snapshot": shifter.snapshot(), **targets}
    context.journal.append("shift.intent", **moved)
    shifter.set(shifter.plan(50))
    context.journal.append("shift.done", to=50)
    context.journal.close()
    return params


def roll_back(params: Params) -> Rollback:
    run = Rollback(params, {"reason": "test"})
    run.read()
    write_approval(run.context.folder, run.plan().plan.digest, "ann")
    run.gate()
    return run


def weights(wire: Wire) -> set[tuple[str, int]]:
    return {(r["SetIdentifier"], r["Weight"]) for r in wire.records()}


def test_with_the_cluster_out_of_reach_dns_alone_brings_users_back(
    wire: Wire, shifted: Params, flow: tuple[Flow, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = roll_back(shifted)
    flow[0].now(0.0, 200.0)
    run.act()
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    assert run.context.state.phase is Phase.ROLLED_BACK
    done = next(r for r in run.context.journal.records if r.kind == "rollback.done").data
    assert done["seconds_to_dns"] <= 5
    assert done["seconds_to_users"] <= 20
    standing = {what: (how, detail) for what, how, detail in done["checklist"]}
    assert standing["traffic confirmed recovered"][0] == "pass"
    assert standing["Istio error logs collected"][0] == "warn"
    assert "nothing of the cluster (gateway.log" in standing["Istio error logs collected"][1]
    assert "goes on without the cluster's Lease" in capsys.readouterr().out
    evidence = run.context.run_folder / "evidence"
    assert json.loads((evidence / "weights.json").read_text())["hosts"]
    run.close()


def test_a_rollback_does_not_wait_for_secrets_of_others(
    wire: Wire,
    shifted: Params,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even for the metrics': the weights are back, and that the users are stays unproven."""
    monkeypatch.delenv("GONE", raising=False)
    gone = "${env:GONE}"
    settings["apisix"] = {"admin_url": gone, "admin_key": gone}
    settings["cluster"] = {"kubeconfig": gone}
    settings["metrics"] |= {"bearer_token": gone, "istio_selector": gone}
    settings["notify"] = {"urls": [gone]}
    settings["archive"] = {"sign_key": gone}
    settings["traffic"]["rollback_target"] = "1s"
    run = roll_back(validate(settings, source="x.yaml", needs=needs_of("80_rollback")))
    assert "${env:GONE}" in repr(run.card())
    with pytest.raises(NotEnoughEvidence, match="not proven that the users are"):
        run.act()
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    done = next(r for r in run.context.journal.records if r.kind == "rollback.done").data
    assert any("metrics.json" in one and gone in one for one in done["unchecked"])
    assert "which this step does not need: cluster.kubeconfig (${env:GONE})" in capsys.readouterr().out
    run.close()


def test_a_rollback_that_died_is_finished_without_another_confirmation(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    dead = Context(shifted, run="dead")
    dead.record_rollback("asked by the operator", 50)
    dead.journal.close()
    run = Rollback(shifted, {})
    run.read()
    run.plan()
    assert "will be finished" in run.gate().text
    flow[0].now(0.0, 200.0)
    run.act()
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    assert run.context.state.phase is Phase.ROLLED_BACK
    run.close()


def test_a_run_that_holds_the_lock_does_not_hold_up_a_rollback(
    wire: Wire, shifted: Params, flow: tuple[Flow, str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Path(shifted.outputs) / "demo" / "lock"
    code = (
        "import sys, time; from gateshift.migration.lock import LocalLock; "
        "LocalLock(sys.argv[1], who='ann').acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        run = roll_back(shifted)
        flow[0].now(0.0, 200.0)
        run.act()
        assert "ann holds the migration's lock" in capsys.readouterr().out
        assert weights(wire) == {("apisix", 100), ("istio", 0)}
        assert run.context.state.phase is Phase.ROLLED_BACK
        run.close()
    finally:
        holder.kill()
        holder.wait()


def test_without_proof_a_rollback_says_so_and_stays_open(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    traffic = shifted.traffic.model_copy(update={"rollback_target": 1.0})
    run = roll_back(shifted.model_copy(update={"traffic": traffic}))
    with pytest.raises(NotEnoughEvidence, match="not proven that the users are"):
        run.act()
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    assert run.context.state.rolling_back
    run.close()


def test_without_the_new_gateways_figures_the_rollback_tells_what_the_old_one_serves(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    traffic = shifted.traffic.model_copy(update={"rollback_target": 1.5})
    run = roll_back(shifted.model_copy(update={"traffic": traffic}))
    flow[0].lost = True
    with pytest.raises(NotEnoughEvidence, match=r"metrics cannot tell: .*; APISIX served [1-9]\d* requests"):
        run.act()
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    run.close()


def patient(params: Params) -> Params:
    return params.model_copy(update={"traffic": params.traffic.model_copy(update={"arrival_timeout": 60.0})})


def watch(context: Context, wire: Wire) -> StageWatch:
    return StageWatch(
        context,
        StageParams.model_validate(STAGE),
        0,
        redraw=lambda *_: None,
        on_sample=lambda _: None,
        shifter=wire.shifter(),
        clients=clients_of(context.params, 0),
    )


def test_weights_changed_during_the_dwell_pause_it_and_are_named(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    context = Context(shifted, run="watch")
    wire.put(*[alias(h, target=ISTIO_LB, SetIdentifier="istio", Weight=10) for h in HOSTS])
    with pytest.raises(NotEnoughEvidence, match="somebody changed them"):
        watch(context, wire).run()
    wire.put(*[alias(h, target=ISTIO_LB, SetIdentifier="istio", Weight=50) for h in HOSTS])
    context.params = patient(shifted)
    one = watch(context, wire)
    moved: list[float] = []
    seen_at: list[float] = []

    def meddle(seen: StageWatch, _: object) -> None:
        if seen.arrived_once and not moved:
            moved.append(seen.dwelled)
            seen_at.append(time.time())
            wire.put(*[alias(h, target=ISTIO_LB, SetIdentifier="istio", Weight=90) for h in HOSTS])
        if moved and time.time() - seen_at[0] > 4:
            raise KeyboardInterrupt

    one.redraw = meddle
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert one.dwelled < moved[0] + 2.5, "the dwell went on for the seconds after the change"
    assert "somebody changed them" in one.reason()
    context.journal.close()


@pytest.mark.parametrize("by", [3600.0, -3600.0])
def test_a_clock_that_is_set_during_a_stage_promotes_nothing(
    wire: Wire, shifted: Params, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    context = Context(patient(shifted), run="watch")
    wire.put(*[alias(h, target=ISTIO_LB, SetIdentifier="istio", Weight=50) for h in HOSTS])
    one = watch(context, wire)
    real, dwelled = time.time, []

    def set_it(seen: StageWatch, _: object) -> None:
        dwelled.append(seen.dwelled)
        if len(dwelled) > 1 and dwelled[-2]:
            raise KeyboardInterrupt
        if seen.dwelled:
            monkeypatch.setattr(time, "time", lambda: real() + by)

    one.redraw = set_it
    if by > 0:  # a machine that slept looks the same: nobody watched meanwhile
        with pytest.raises(KeyboardInterrupt):
            one.run()
        assert dwelled[-2] < dwelled[-1] < dwelled[-2] + 16.0
    else:
        with pytest.raises(NotEnoughEvidence, match=r"clock was set back by 3[56]\d\d s"):
            one.run()
    monkeypatch.setattr(time, "time", real)
    context.journal.close()


def test_a_share_that_never_arrives_holds_with_the_likely_reason(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    flow[0].now(0.0, 200.0)
    context = Context(shifted, run="watch")
    with pytest.raises(NotEnoughEvidence, match=r"never arrived at 50 %.*another zone") as caught:
        watch(context, wire).run()
    assert "gateshift rollback" in caught.value.hint
    context.journal.close()


def test_a_stage_ends_when_a_rollback_starts_elsewhere(
    wire: Wire, shifted: Params, flow: tuple[Flow, str]
) -> None:
    context = Context(shifted, run="watch")
    elsewhere = Context(shifted, run="elsewhere")
    elsewhere.record_rollback("looks bad", 50)
    with pytest.raises(RolledBack, match="started elsewhere"):
        watch(context, wire).run()
    for one in (context, elsewhere):
        one.journal.close()


def test_the_snapshot_is_of_before_the_first_change(wire: Wire, shifted: Params) -> None:
    context = Context(shifted, run="look")
    original = original_of(context)
    assert original is not None
    assert all("SetIdentifier" not in r for rs in original["hosts"].values() for r in rs)
    shifter = context.shifter(back_only=True)
    shifter.set(shifter.restore_plan(original))
    assert {r.get("SetIdentifier") for r in wire.records()} == {None}
    context.journal.close()
