"""Gateway pods that lack when verify looks: on their way, stuck, or never coming."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.cluster import verify
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.params.model import Params
from tests.cluster.conftest import FakeApi, make_params

HOME = "istio-system"
NAME = "istio-ingressgateway"
LABELS = {"app": NAME}
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
LACKING = {
    "type": "Ready",
    "status": "False",
    "reason": "ContainersNotReady",
    "message": "not ready: [proxy]",
}
STARTING = {"phase": "Running", "conditions": [LACKING]}
CRASHED = {"containerStatuses": [{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}


@pytest.fixture
def params(api: FakeApi, kubeconfig: str, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Two gateways that are ready; three are wanted (the default), and the autoscaler has asked for them."""
    monkeypatch.setattr(verify, "_LOOK_AGAIN", 0.01)
    api.add("Service", NAME, HOME, spec={"type": "LoadBalancer", "selector": LABELS})
    status = {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 2}
    selector = {"matchLabels": LABELS}
    spec = {"replicas": 3, "selector": selector}
    api.add("Deployment", NAME, HOME, metadata={"generation": 2}, spec=spec, status=status)
    pod(api, "g-1", READY)
    pod(api, "g-3", READY)
    return make_params(kubeconfig)


def pod(api: FakeApi, name: str, status: dict[str, Any]) -> None:
    api.add("Pod", name, HOME, metadata={"labels": LABELS}, spec={}, status=status)


def looked(params: Params, cluster: Cluster) -> Check:
    (check,) = verify._Checks(params, cluster).gateway()
    return check


def after(api: FakeApi, looks: int, status: dict[str, Any], name: str = "g-2") -> None:
    """Let the pod have *status* from the given look at the pods on."""
    seen = 0

    def count(method: str, path: str, _: object) -> None:
        nonlocal seen
        if method == "GET" and path.partition("?")[0].endswith("/pods"):
            seen += 1
            if seen == looks:
                pod(api, name, status)

    api.refuse = count


def test_a_pod_that_the_autoscaler_asked_for_is_waited_for_while_it_starts(
    params: Params, cluster: Cluster, api: FakeApi
) -> None:
    pod(api, "g-2", STARTING)
    after(api, 5, READY)
    check = looked(params, cluster)
    assert (check.status, check.measured) == ("pass", "3 of 3 pods ready, at least 3 wanted")


def test_a_pod_that_does_not_exist_yet_is_waited_for(params: Params, cluster: Cluster, api: FakeApi) -> None:
    after(api, 5, READY)
    assert looked(params, cluster).status == "pass"


def test_a_pod_that_crashes_is_not_waited_for(params: Params, cluster: Cluster, api: FakeApi) -> None:
    pod(api, "g-2", CRASHED)
    check = looked(params, cluster)
    assert check.status == "fail"
    assert check.measured.startswith("2 of 3 pods ready, at least 3 wanted; g-2/proxy: CrashLoopBackOff")


def test_a_pod_that_never_comes_fails_with_its_reason(
    params: Params, cluster: Cluster, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_STARTING", 0.1)
    pod(api, "g-2", STARTING)
    check = looked(params, cluster)
    assert check.status == "fail"
    assert (
        check.measured == "2 of 3 pods ready, at least 3 wanted; g-2: ContainersNotReady: not ready: [proxy]"
    )


def test_a_pod_on_its_way_out_does_not_count(
    params: Params, cluster: Cluster, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_STARTING", 0.1)
    going = {"labels": LABELS, "deletionTimestamp": "2026-11-25T09:00:00Z"}
    api.add("Pod", "g-2", HOME, metadata=going, spec={}, status=READY)
    check = looked(params, cluster)
    assert (check.status, check.measured) == ("fail", "2 of 3 pods ready, at least 3 wanted")


def test_istiod_that_grows_is_waited_for(params: Params, cluster: Cluster, api: FakeApi) -> None:
    ready = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 2}
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "istiod"}}}
    grown = {"metadata": {"generation": 1}, "spec": spec}
    api.add("Deployment", "istiod", HOME, **grown, status=ready)
    looks = 0

    def count(method: str, path: str, _: object) -> None:
        nonlocal looks
        if method == "GET" and path.endswith("/deployments/istiod"):
            looks += 1
            if looks == 5:
                api.add("Deployment", "istiod", HOME, **grown, status={**ready, "readyReplicas": 3})

    api.refuse = count
    (check,) = verify._Checks(params, cluster).istiod()
    assert (check.status, check.measured) == ("pass", "ready")


def test_istiod_that_stays_too_small_fails(
    params: Params, cluster: Cluster, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_STARTING", 0.1)
    (check,) = verify._Checks(params, cluster).istiod()
    assert (check.status, check.measured) == ("fail", "not created yet")
