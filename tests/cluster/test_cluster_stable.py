from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateshift.cluster import stable
from gateshift.cluster.client import Cluster
from gateshift.cluster.logs import group, pattern_of
from gateshift.cluster.objects import MANAGED_BY
from gateshift.judge.model import Missing, MissingKind, Sample, Side
from gateshift.params.model import Params, StageParams
from gateshift.runbook.soak import limits_broken, longest_gap
from tests.cluster.conftest import FakeApi
from tests.cluster.test_cluster_preflight import tls_secret

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        (
            "[2026-11-25T09:00:01.123Z][17][error][config] [x.cc:12] gRPC to 10.0.0.7:15012 lost after 31s",
            "config: gRPC to <address> lost after <n>s",
        ),
        ("[2026-11-25T09:00:01.123Z][17][warning][config] deprecated", ""),
        (
            "2026-11-25T09:00:01.123456Z\terror\tads\tLDS: rejected by ingress-5d8f7c9b6f-x2x4z",
            "ads LDS: rejected by ingress-<pod>",
        ),
        ("2026-11-25T09:00:01.123456Z\tinfo\tads\tPush", ""),
        (
            "2026-11-25T09:00:00Z stdout F E1125 09:00:00.1 1 leader.go:12] lost lease 42",
            "leader.go:<n>] lost lease <n>",
        ),
        (
            json.dumps({"response_code": 503, "response_flags": "UF", "upstream_cluster": "outbound|80||a"}),
            "answered 503 UF outbound|80||a",
        ),
        (json.dumps({"response_code": 200, "path": "/error"}), ""),
        (json.dumps({"level": "error", "msg": "no id 0a1b2c3d4e5f"}), "no id <id>"),
        ("not a log line at all", ""),
    ],
)
def test_error_lines_become_patterns(line: str, pattern: str) -> None:
    assert pattern_of(line) == pattern


def test_lines_of_one_cause_are_one_pattern() -> None:
    lines = [
        f"[2026-11-25T09:00:0{n}.1Z][1][error][x] upstream 10.0.0.{n}:80 reset {n} times" for n in range(5)
    ]
    (found,) = group([*lines, "[2026-11-25T09:00:01.1Z][1][info][x] fine"])
    assert (found.count, found.example) == (5, lines[0])


def side(requests: float | None, errors: float = 0.0, p95: float = 20.0) -> Side:
    if requests is None:
        return Side(missing=Missing(MissingKind.SCRAPE_GAP))
    buckets = ((p95, requests), (10000.0, requests), (float("inf"), requests))
    return Side(requests=requests, errors=errors, buckets=buckets)


def samples(*figures: float | None) -> list[Sample]:
    return [Sample(float(10 * (n + 1)), side(f), side(0.0)) for n, f in enumerate(figures)]


def stage(**values: Any) -> StageParams:
    given = {"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 0.1, **values}
    return StageParams.model_validate(given)


def test_limits_are_compared_with_the_whole_time() -> None:
    assert limits_broken([Sample(1, side(10000, 10), side(0.0))], stage(availability_percent=99.0)) == []
    (said,) = limits_broken([Sample(1, side(10000, 11), side(0.0))], stage(availability_percent=99.0))
    assert said == "error rate 0.11 %, limit 0.1 %"
    (said,) = limits_broken([Sample(1, side(100, 0, 3000.0), side(0.0))], stage())
    assert "P95" in said
    (said,) = limits_broken([Sample(1, Side(requests=10.0, errors=0.0), side(0.0))], stage())
    assert "could not be measured" in said


def test_a_gap_moves_the_beginning_of_the_stable_time() -> None:
    assert longest_gap(samples(1, None, 1, 1), 0, allowed=15) == (10, None)
    assert longest_gap(samples(1, None, None, 1), 0, allowed=15) == (20, 30)
    assert longest_gap(samples(None, None, 1, None, None, None), 0, allowed=15) == (30, 60)


@pytest.fixture
def calm(api: FakeApi, params: Params) -> Params:
    selector = {"app": "istio-ingressgateway"}
    balancer = {"loadBalancer": {"ingress": [{"hostname": "new.elb.example.com"}]}}
    spec = {"type": "LoadBalancer", "selector": selector}
    api.add("Service", "istio-ingressgateway", "istio-system", spec=spec, status=balancer)
    api.add("Deployment", "istiod", "istio-system", spec={"selector": {"matchLabels": {"app": "istiod"}}})
    pod(api, "gateway-1", selector)
    pod(api, "istiod-1", {"app": "istiod"})
    api.add("Pod", "shop-1", "shop", spec={"containers": [{"name": "shop"}]}, status=READY)
    tls = {"credentialName": "shop-tls"}
    servers = [{"port": {"number": 443}, "hosts": ["api.shop.com"], "tls": tls}]
    labels = {"labels": {MANAGED_BY: "gateshift"}}
    api.add("Gateway", "g", "istio-system", metadata=labels, spec={"servers": servers})
    api.add("Secret", "shop-tls", "istio-system", type="kubernetes.io/tls", data=tls_secret())
    return params


def pod(api: FakeApi, name: str, labels: dict[str, str], restarts: int = 0, ended: str = "") -> None:
    state: dict[str, Any] = {"name": "istio-proxy", "restartCount": restarts}
    if ended:
        state["lastState"] = {"terminated": {"reason": ended, "exitCode": 137}}
    spec = {"containers": [{"name": "istio-proxy"}]}
    status = {**READY, "containerStatuses": [state]}
    api.add("Pod", name, "istio-system", metadata={"labels": labels}, spec=spec, status=status)


def test_a_calm_day(calm: Params, cluster: Cluster) -> None:
    day = stable.look(calm, cluster, seconds=86400)
    assert day.problems == ()
    assert day.restarts == {"gateway-1": 0, "istiod-1": 0}
    assert 80 < day.certificates["shop-tls"] < 91
    assert day.notes == ("no functional checks: verify.probes is empty",)
    json.dumps(day.as_json())


def test_a_crash_is_no_stable_day_but_a_new_pod_is(calm: Params, cluster: Cluster, api: FakeApi) -> None:
    before = stable.look(calm, cluster, seconds=60).as_json()
    pod(api, "gateway-2", {"app": "istio-ingressgateway"})
    assert stable.look(calm, cluster, seconds=60, before=before).problems == ()
    pod(api, "gateway-1", {"app": "istio-ingressgateway"}, 2, "OOMKilled")
    day = stable.look(calm, cluster, seconds=60, before=before)
    assert day.problems == ("gateway-1 restarted 2 times (OOMKilled, code 137)",)


def test_new_error_patterns_are_told_once(calm: Params, cluster: Cluster, api: FakeApi) -> None:
    api.logs["gateway-1"] = "[2026-11-25T09:00:01.1Z][1][error][x] boom 7\n"
    day = stable.look(calm, cluster, seconds=60)
    assert "new in the log of gateway: x: boom <n> (1 times)" in day.notes
    again = stable.look(calm, cluster, seconds=60, before=day.as_json())
    assert not [n for n in again.notes if "boom" in n]
    assert again.patterns["gateway"][0].count == 1
    assert any("sinceSeconds=60" in path for _, path in api.requests)


def test_expiring_certificate_and_missing_secret_are_problems(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    api.add("Secret", "shop-tls", "istio-system", type="kubernetes.io/tls", data=tls_secret(days=1.5))
    assert "expires in 1.5 days" in stable.look(calm, cluster, seconds=60).problems[0]
    del api.objects[("v1", "secrets", "istio-system", "shop-tls")]
    assert "does not exist" in stable.look(calm, cluster, seconds=60).problems[0]


def test_what_cannot_be_seen_was_not_stable(calm: Params, cluster: Cluster, api: FakeApi) -> None:
    api.refuse = lambda _, path, __: (500, {"message": "no log"}) if path.endswith("/log") else None
    day = stable.look(calm, cluster, seconds=60)
    assert day.problems[0].startswith("not seen: ")
    assert day.restarts  # the other parts were seen
    assert time.time() > 0
