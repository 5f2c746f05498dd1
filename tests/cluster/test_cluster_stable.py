from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
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
def calm(api: FakeApi, params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(stable, "_PATIENCE", 0.0)
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


def test_an_api_server_that_is_away_for_a_moment_makes_no_day_unstable(
    calm: Params, cluster: Cluster, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable, "_PATIENCE", 20.0)
    back = time.monotonic() + 1.2
    api.refuse = lambda *_: (503, {"message": "starting"}) if time.monotonic() < back else None
    assert stable.look(calm, cluster, seconds=60).problems == ()
    api.refuse = lambda *_: (403, {"message": "forbidden"})
    begun = time.monotonic()
    assert stable.look(calm, cluster, seconds=60).problems[0].startswith("not seen: ")
    assert time.monotonic() - begun < 10, "a missing right does not heal"


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


GATEWAY = {"app": "istio-ingressgateway"}


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def unready(api: FakeApi, name: str, since: float, **metadata: Any) -> None:
    """A gateway pod that has not been ready for so many seconds."""
    told = {"type": "Ready", "status": "False", "lastTransitionTime": ago(since)}
    status = {"phase": metadata.pop("phase", "Running"), "conditions": [told]}
    spec = {"containers": [{"name": "istio-proxy"}]}
    api.add("Pod", name, "istio-system", metadata={"labels": GATEWAY, **metadata}, spec=spec, status=status)


def test_pods_that_have_ended_or_are_going_do_not_count(calm: Params, cluster: Cluster, api: FakeApi) -> None:
    unready(api, "gateway-evicted", 9000, phase="Failed")
    unready(api, "gateway-going", 9000, deletionTimestamp=ago(5))
    day = stable.look(calm, cluster, seconds=60)
    assert day.problems == ()
    assert set(day.restarts) == {"gateway-1", "istiod-1"}


def test_a_pod_that_has_just_been_started_is_a_note_and_one_that_stays_unready_a_problem(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    unready(api, "gateway-new", 20)
    day = stable.look(calm, cluster, seconds=60)
    assert (day.problems, day.notes[0]) == ((), "just starting: gateway-new")
    unready(api, "gateway-new", 300)
    assert stable.look(calm, cluster, seconds=60).problems == ("not ready: gateway-new",)


def test_no_ready_pod_at_all_is_a_problem_however_new_they_are(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    unready(api, "gateway-1", 1)
    assert stable.look(calm, cluster, seconds=60).problems == ("not ready: gateway-1",)
    del api.objects[("v1", "pods", "istio-system", "gateway-1")]
    assert stable.look(calm, cluster, seconds=60).problems == ("not ready: no pod of gateway",)


@pytest.mark.parametrize("status", [400, 404])
def test_a_pod_without_a_log_is_a_note(calm: Params, cluster: Cluster, api: FakeApi, status: int) -> None:
    pod(api, "gateway-2", GATEWAY)
    said = {"message": 'container "istio-proxy" is waiting to start: PodInitializing'}
    api.refuse = lambda _, path, __: (status, said) if path.endswith("gateway-2/log") else None
    day = stable.look(calm, cluster, seconds=60)
    assert day.problems == ()
    assert day.notes[0].startswith("no log of gateway-2: ")
    assert "PodInitializing" in day.notes[0]


@pytest.mark.parametrize("status", [403, 500])
def test_a_log_that_may_not_be_read_is_a_problem(
    calm: Params, cluster: Cluster, api: FakeApi, status: int
) -> None:
    pod(api, "gateway-2", GATEWAY)
    api.refuse = lambda _, path, __: (status, {"message": "no"}) if path.endswith("gateway-2/log") else None
    assert stable.look(calm, cluster, seconds=60).problems[0].startswith("not seen: ")


def test_a_part_of_which_no_log_can_be_read_is_a_problem(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    api.refuse = lambda _, path, __: (404, {"message": "gone"}) if "gateway-1/log" in path else None
    (problem,) = stable.look(calm, cluster, seconds=60).problems
    assert problem.startswith("no log of gateway-1: ")


def test_a_day_of_lines_is_read_and_what_the_node_no_longer_holds_is_said(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    now = time.time()
    api.logs["gateway-1"] = "[2026-11-25T09:00:01.1Z][1][error][x] boom 7\n" * 20000
    api.logged["gateway-1"] = [now - 600 + n * 0.01 for n in range(20000)]
    day = stable.look(calm, cluster, seconds=86400)
    assert day.patterns["gateway"][0].count == 20000
    assert day.covered["gateway-1"] == pytest.approx(600, abs=5)
    assert day.as_json()["covered"]["gateway-1"] == day.covered["gateway-1"]
    assert "the logs of gateway hold 10 min of 24 h at gateway-1; the rest was not seen" in day.notes


def test_a_log_that_begins_with_its_container_or_before_the_day_is_whole(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    now = time.time()
    live = api.find("Pod", "gateway-1", "istio-system")
    assert live
    live["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": ago(601)}}
    api.logs["gateway-1"], api.logged["gateway-1"] = "fine\n", [now - 600]
    api.logs["istiod-1"], api.logged["istiod-1"] = "fine\nfine\n", [now - 9e4, now - 1]
    day = stable.look(calm, cluster, seconds=86400)
    assert day.covered == {"gateway-1": 86400, "istiod-1": 86400}
    assert not [n for n in day.notes if "not seen" in n]


def test_what_a_container_said_before_its_restart_is_read(
    calm: Params, cluster: Cluster, api: FakeApi
) -> None:
    pod(api, "gateway-1", GATEWAY, 1, "Error")
    live = api.find("Pod", "gateway-1", "istio-system")
    assert live
    live["status"]["containerStatuses"][0]["lastState"]["terminated"]["finishedAt"] = ago(30)
    api.logs["gateway-1/previous"] = "[2026-11-25T09:00:01.1Z][1][critical][main] assert failure\n"
    day = stable.look(calm, cluster, seconds=60)
    assert [p.pattern for p in day.patterns["gateway"]] == ["main: assert failure"]
    live["status"]["containerStatuses"][0]["lastState"]["terminated"]["finishedAt"] = ago(300)
    assert stable.look(calm, cluster, seconds=60).patterns["gateway"] == ()


def test_a_crash_of_a_native_sidecar_is_counted(calm: Params, cluster: Cluster, api: FakeApi) -> None:
    def shop(restarts: int) -> None:
        proxy = {"name": "istio-proxy", "restartPolicy": "Always"}
        state = {"name": "istio-proxy", "restartCount": restarts}
        spec = {"containers": [{"name": "shop"}], "initContainers": [proxy]}
        status = {**READY, "initContainerStatuses": [state], "containerStatuses": []}
        api.add("Pod", "shop-2", "shop", spec=spec, status=status)

    shop(0)
    before = stable.look(calm, cluster, seconds=60).as_json()
    shop(2)
    day = stable.look(calm, cluster, seconds=60, before=before)
    assert day.problems == ()
    assert "shop-2 restarted 2 times (reason unknown)" in day.notes


def test_an_answer_below_500_is_not_parsed_and_quotes_in_it_do_not_deceive() -> None:
    entry = {"path": '/x?"response_code": 200', "response_code": 503, "response_flags": "UF"}
    assert pattern_of(json.dumps(entry)) == "answered 503 UF no cluster"
    assert pattern_of(json.dumps({**entry, "path": "/", "response_code": 204})) == ""
