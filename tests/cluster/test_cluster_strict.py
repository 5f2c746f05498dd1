from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster import strict
from gateshift.cluster.client import Cluster
from gateshift.errors import Blocked, ClusterError, MetricsError, NotEnoughEvidence
from gateshift.metrics.source import Answer, PrometheusSource, Series
from gateshift.params.model import MetricsParams, Params
from tests.cluster.conftest import FakeApi, make_params


def pod(api: FakeApi, name: str, *containers: str, native: bool = False) -> None:
    main = [{"name": "shop"}]
    extra = [{"name": c} for c in containers]
    spec = {"containers": main, "initContainers": extra} if native else {"containers": main + extra}
    api.add("Pod", name, "shop", spec=spec, status={"phase": "Running"})


@pytest.fixture(autouse=True)
def _mesh(api: FakeApi) -> None:
    api.add("Namespace", "shop")
    pod(api, "a", "istio-proxy")
    pod(api, "b", "istio-proxy", native=True)
    balancer = {"loadBalancer": {"ingress": [{"hostname": "new.elb.example.com"}]}}
    api.add("Service", "istio-ingressgateway", "istio-system", spec={"type": "LoadBalancer"}, status=balancer)


class Told:
    """Answers as a Prometheus would; the queries are kept."""

    def __init__(self, **policies: float) -> None:
        self.policies, self.partial = policies, ""
        self.queries: list[str] = []

    def instant(self, query: str, at: float) -> Answer:
        self.queries.append(query)
        if "requests_total" not in query:
            return Answer((), self.partial)
        series = tuple(
            Series(
                {
                    "connection_security_policy": policy,
                    "source_workload": "cron",
                    "source_workload_namespace": "jobs",
                },
                ((at, value),),
            )
            for policy, value in self.policies.items()
        )
        return Answer(series, self.partial)


def test_the_policy_has_a_version_that_an_old_istio_serves(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.kinds = {k for k in api.kinds if k[0] != "security.istio.io/v1"}
    assert [s.verb for s in strict.plan(params, cluster).steps] == ["create"]
    assert strict.policy(params, cluster)["apiVersion"] == "security.istio.io/v1beta1"


def test_only_mutual_tls_passes(cluster: Cluster, params: Params) -> None:
    source = Told(mutual_tls=120.0, none=0.0)
    assert "120 requests" in strict.evidence(params, cluster, source)
    assert all('destination_workload_namespace="shop"' in q and "[86400s]" in q for q in source.queries)
    assert len(source.queries) == 2


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (Told(mutual_tls=120.0, none=3.0), Blocked, r"plaintext still arrives in shop, from jobs/cron \(3\)"),
        (Told(mutual_tls=120.0, unknown=1.0), Blocked, "plaintext"),
        (Told(), NotEnoughEvidence, "no request over mutual TLS was measured"),
        (Told(mutual_tls=0.0), NotEnoughEvidence, "no request"),
    ],
)
def test_what_is_not_shown_holds(
    cluster: Cluster, params: Params, source: Told, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        strict.evidence(params, cluster, source)


def test_partial_answers_hold(cluster: Cluster, params: Params) -> None:
    source = Told(mutual_tls=5.0)
    source.partial = "a store is gone"
    with pytest.raises(NotEnoughEvidence, match="a store is gone"):
        strict.evidence(params, cluster, source)


def test_pods_without_sidecar_hold(cluster: Cluster, params: Params, api: FakeApi) -> None:
    pod(api, "bare")
    with pytest.raises(Blocked, match="1 of 3 pods have no sidecar: bare"):
        strict.evidence(params, cluster, Told(mutual_tls=5.0))


def istioctl(folder: Path, *proxies: str, sent: float = 60.0, status: str = "SYNCED") -> str:
    """An istioctl that prints the proxies' status: sent to *sent* seconds from now."""
    when = datetime.fromtimestamp(time.time() + sent, UTC).isoformat()
    config = {"typeUrl": "type.googleapis.com/envoy.config.listener.v3.Listener", "configStatus": status}
    told = [
        {"node": {"id": f"sidecar~10.0.0.1~{name}~x"}, "genericXdsConfigs": [{**config, "lastUpdated": when}]}
        for name in proxies
    ]
    script = folder / "istioctl"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps([{'resources': told}])}\nEND\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("proxy", "values", "said"),
    [
        ("g.istio-system", {}, "none of shop is connected to istiod"),
        ("a.shop", {"sent": -60.0}, "a.shop was sent nothing new yet"),
        ("a.shop", {"status": "STALE"}, "a.shop: Listener STALE"),
    ],
)
def test_before_the_sidecars_have_it_nothing_is_proven(  # noqa: PLR0917 - pytest passes by name
    api: FakeApi, cluster: Cluster, kubeconfig: str, tmp_path: Path, proxy: str, values: Any, said: str
) -> None:
    given = {"istioctl": istioctl(tmp_path, proxy, **values), "ready_timeout": "1s"}
    params = make_params(kubeconfig, istio=given)
    with pytest.raises(ClusterError, match=f"sidecars: after 1 s still {said}.*everything was restored"):
        strict.execute(params, cluster, strict.plan(params, cluster), Told(mutual_tls=5.0))
    assert api.find("PeerAuthentication", "default", "shop") is None


def test_it_is_applied_and_a_failing_probe_takes_it_back(
    api: FakeApi, cluster: Cluster, kubeconfig: str, tmp_path: Path
) -> None:
    given = {"istioctl": istioctl(tmp_path, "a.shop", "b.shop", "g.istio-system")}
    params = make_params(kubeconfig, istio=given)
    plan = strict.plan(params, cluster)
    assert [(s.verb, s.target) for s in plan.steps] == [("create", "PeerAuthentication shop/default")]
    assert plan.kind == "strict-mtls"
    assert plan.way_back == "`kubectl -n shop delete peerauthentication default` accepts plaintext again"
    strict.execute(params, cluster, plan, Told(mutual_tls=5.0))
    live = api.find("PeerAuthentication", "default", "shop")
    assert live
    assert live["spec"] == {"mtls": {"mode": "STRICT"}}
    assert strict.plan(params, cluster).empty

    del api.objects[api.key(live)]
    probe = {"name": "get", "host": "api.shop.com"}
    to = {"new.elb.example.com:80": "127.0.0.1:1"}
    probed = make_params(kubeconfig, istio=given, verify={"probes": [probe], "connect_to": to})
    with pytest.raises(ClusterError, match=r"after STRICT probe get.*everything was restored"):
        strict.execute(probed, cluster, strict.plan(probed, cluster), Told(mutual_tls=5.0))
    assert api.find("PeerAuthentication", "default", "shop") is None


def test_the_real_source_fits(params: Params, cluster: Cluster) -> None:
    source: Any = PrometheusSource(
        MetricsParams.model_validate({"url": "http://127.0.0.1:1", "timeout": "1s"})
    )
    with pytest.raises(MetricsError, match=r"127\.0\.0\.1:1"):
        strict.evidence(params, cluster, source)


def test_the_way_back_of_a_policy_that_was_there_gives_it_its_mode_again(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("PeerAuthentication", "default", "shop", spec={"mtls": {"mode": "PERMISSIVE"}})
    plan = strict.plan(params, cluster)
    assert [s.verb for s in plan.steps] == ["change"]
    patch = (
        """kubectl -n shop patch peerauthentication default --type merge -p '{"spec": {"mtls": {"mode": """
    )
    assert plan.way_back == f'`{patch}"PERMISSIVE"}}}}}}\'` accepts plaintext again'
