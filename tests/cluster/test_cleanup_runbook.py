"""``70_cleanup`` refuses in all its cases; journal, Route 53, Prometheus and API server at the wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import Blocked, GateClosed, NotEnoughEvidence
from gateshift.runbook import cleanup
from gateshift.runbook.cleanup import Cleanup
from gateshift.runbook.setup import Preflight
from tests.archive import story
from tests.cluster.conftest import FakeApi, make_params
from tests.metrics.prometheus import Scrapes, serve
from tests.metrics.prometheus import Wire as Prometheus
from tests.traffic.conftest import APISIX_LB, HOSTS, ISTIO_LB, ZONE, Wire, _server, alias, wire

__all__ = ["_server", "wire"]  # fixtures of another room


@dataclass
class World:
    """A migration whose stable time is over: DNS at Istio, APISIX idle, nobody else uses it."""

    api: FakeApi
    dns: Wire
    prometheus: Prometheus
    folder: Path
    kubeconfig: str
    stable: bool = True
    confirm: str = "apisix"

    def served(self, requests: float) -> None:
        """APISIX counted so many requests in the time that is looked at."""
        scrapes = Scrapes()
        now = time.time()

        def answer(query: str, at: float) -> Any:
            scrapes.apisix = {"old": {"200": 5000.0 + (requests if at > now - 5 else 0.0)}}
            return scrapes(query, at)

        self.prometheus.responder = answer

    def silent(self, seconds: float) -> None:
        """APISIX serves nothing, and does not answer its scrapes from now on for so many seconds."""
        scrapes = Scrapes()
        now = time.time()

        def answer(query: str, at: float) -> Any:
            away = now <= at < now + seconds
            scrapes.apisix = {} if away else {"old": {"200": 5000.0}}
            scrapes.up = {"old": 0 if away else 1}
            return scrapes(query, at)

        self.prometheus.responder = answer

    def open(self) -> Cleanup:
        records = [*story.promoted()]
        if self.stable:
            records += [("soak.sample", {"stable": True}), ("soak.done", {})]
        story.write(self.folder / "m" / "journal.jsonl", iter(records))
        params = make_params(
            self.kubeconfig,
            migration="m",
            mode="act",
            outputs=str(self.folder),
            confirm_namespace=self.confirm,
            metrics={"url": self.prometheus.url, "step": "1s"},
            soak={"sample_every": "60s"},
            traffic={
                "route53": {
                    "zone": ZONE,
                    "hosts": list(HOSTS),
                    "endpoint_url": self.dns.url,
                    "apisix_target": APISIX_LB,
                    "istio_target": ISTIO_LB,
                }
            },
        )
        return Cleanup(params, {})


@pytest.fixture
def world(
    api: FakeApi,
    kubeconfig: str,
    tmp_path: Path,
    wire: Wire,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    monkeypatch.setenv("GATESHIFT_RUN", "cleanup-1")
    monkeypatch.setattr(cleanup, "_SCRAPED", 0.0)
    for name in ("apisix", "istio-system", "shop"):
        api.add("Namespace", name)
    labels = {"app.kubernetes.io/name": "apisix"}
    api.add("Deployment", "apisix", "apisix", metadata={"labels": labels}, spec={"replicas": 2})
    api.add("Service", "apisix-gateway", "apisix", spec={"type": "LoadBalancer", "ports": []})
    wire.put(*[alias(host, target=ISTIO_LB) for host in HOSTS])
    with serve() as prometheus:
        made = World(api, wire, prometheus, tmp_path, kubeconfig)
        made.served(0)
        yield made


def _still_in_dns(w: World) -> None:
    w.dns.put(alias(HOSTS[0], target=APISIX_LB))


def _another_name(w: World) -> None:
    w.dns.put(alias(f"old.{ZONE}", target=APISIX_LB))


def _nothing_known(w: World) -> None:
    w.prometheus.responder = lambda *_: []


def _an_alias(w: World) -> None:
    spec = {"type": "ExternalName", "externalName": "apisix-gateway.apisix.svc.cluster.local"}
    w.api.add("Service", "checkout", "billing", spec=spec)


def _another_workload(w: World) -> None:
    w.api.add("Deployment", "reports", "apisix", metadata={"labels": {"app": "reports"}}, spec={})


CASES: dict[str, tuple[Callable[[World], object], type[Exception], str]] = {
    "stable days not on record": (lambda w: setattr(w, "stable", False), Blocked, "not due"),
    "DNS still points there": (_still_in_dns, Blocked, "DNS still sends traffic to APISIX"),
    "another name points there": (_another_name, Blocked, rf"old\.{ZONE} still point to APISIX"),
    "APISIX still sees traffic": (lambda w: w.served(3), Blocked, "APISIX still served 3 requests"),
    "not known whether it sees traffic": (_nothing_known, NotEnoughEvidence, "is not known"),
    "an alias of another namespace": (_an_alias, Blocked, "Service billing/checkout is an alias of"),
    "a workload of somebody else": (_another_workload, Blocked, "reports is not a part of APISIX"),
    "another name typed": (lambda w: setattr(w, "confirm", "apisix-old"), GateClosed, "not typed"),
}


@pytest.mark.parametrize("case", CASES)
def test_clean_up_refuses(world: World, case: str) -> None:
    inject, error, said = CASES[case]
    inject(world)
    before = set(world.api.objects)
    runbook = world.open()
    with pytest.raises(error, match=said):
        _through(runbook)
    assert {k for k in before if k[1] != "leases"} <= set(world.api.objects)
    assert not [r for r in runbook.context.journal.records if r.kind == "cleanup.intent"]


def test_clean_up_goes_when_nothing_forbids_it(world: World) -> None:
    runbook = world.open()
    _through(runbook)
    assert world.api.find("Namespace", "apisix") is None
    assert world.api.find("Namespace", "shop")
    assert runbook.context.state.phase.value == "cleaned"


@pytest.mark.slow
def test_one_scrape_that_failed_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_SCRAPED", 15.0)
    runbook = world.open()
    world.silent(1.5)
    with closing(runbook):
        assert "APISIX served nothing" in str(runbook.read())
    world.silent(1.5)
    with closing(Preflight(runbook.params, {})) as preflight:
        assert preflight._read_metrics() == 0.0


def test_a_clean_up_that_died_goes_on_although_nobody_scrapes_apisix_any_more(world: World) -> None:
    runbook = world.open()
    runbook.record("cleanup.intent", export="none", digest="none")
    world.prometheus.responder = lambda *_: []
    runbook.close()
    runbook = Cleanup(runbook.params, {})
    _through(runbook)
    assert world.api.find("Namespace", "apisix") is None
    assert runbook.context.state.phase.value == "cleaned"


def _through(runbook: Cleanup) -> None:
    """Read, plan, approve as a person who read it, act."""
    try:
        runbook.read()
        plan = runbook.make_plan()
        runbook.perform(plan)
    finally:
        runbook.close()
