"""One error of the API server or of istioctl ends no wait; what does not heal ends it at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cluster import acceptance, apply, install, verify
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import ApiError, HopelessError
from gateshift.cluster.gateways import watch
from gateshift.errors import ClusterError
from gateshift.params.model import Params
from tests.cluster.conftest import FakeApi, make_params

ISTIO = "istio-system"
Istioctl = Callable[[str], Params]


@pytest.fixture
def istioctl(kubeconfig: str, tmp_path: Path) -> Istioctl:
    """Make params whose istioctl runs this shell script; $D is a folder in which it may remember."""

    def make(script: str) -> Params:
        tool = tmp_path / "istioctl"
        tool.write_text(f"#!/bin/sh\nD={tmp_path}\n{script}\n", encoding="utf-8")
        tool.chmod(0o755)
        return make_params(kubeconfig, istio={"istioctl": str(tool), "ready_timeout": "20s"})

    return make


@pytest.fixture
def gateway(api: FakeApi) -> None:
    labels = {"istio": "ingressgateway"}
    api.add("Service", "istio-ingressgateway", ISTIO, spec={"selector": labels, "ports": []})
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    api.add("Pod", "gw-1", ISTIO, metadata={"labels": labels}, spec={}, status=ready)


def proxies(**config: Any) -> str:
    """The script's answer to proxy-status; to other questions it answers that there is nothing."""
    one = {"typeUrl": "type.googleapis.com/envoy.config.listener.v3.Listener", **config}
    node = {"id": f"router~10.0.0.1~gw-1.{ISTIO}~x"}
    answer = json.dumps({"resources": [{"node": node, "genericXdsConfigs": [one]}]})
    return f"[ $1 = proxy-status ] && echo '{answer}' || echo '[]'"


@pytest.mark.usefixtures("gateway")
def test_one_error_of_istioctl_does_not_end_the_wait_for_the_gateway(
    cluster: Cluster, istioctl: Istioctl
) -> None:
    good = proxies(configStatus="SYNCED")
    params = istioctl(f"[ -e $D/asked ] || {{ touch $D/asked; echo timeout >&2; exit 1; }}\n{good}")
    said: list[str] = []
    assert "in sync with istiod" in acceptance.wait_in_sync(params, cluster, [], progress=said.append)
    assert said == ["gateway configuration: `istioctl proxy-status` failed: timeout"]


@pytest.mark.usefixtures("gateway")
def test_a_rejection_ends_the_wait_long_before_its_time(cluster: Cluster, istioctl: Istioctl) -> None:
    bad = proxies(configStatus="ERROR", errorState={"details": "no such filter"})
    begun = time.monotonic()
    with pytest.raises(HopelessError, match="rejected by Envoy: gw-1: Listener ERROR: no such filter"):
        acceptance.wait_in_sync(istioctl(bad), cluster, [])
    assert time.monotonic() - begun < 12


@pytest.mark.usefixtures("gateway")
def test_a_missing_istioctl_is_told_at_once(cluster: Cluster, kubeconfig: str) -> None:
    params = make_params(kubeconfig, istio={"istioctl": "/nowhere/istioctl", "ready_timeout": "20s"})
    with pytest.raises(HopelessError, match="was not found"):
        acceptance.wait_in_sync(params, cluster, [])


def verified(params: Params, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Check:
    """What verify says of the proxies; istiod's Deployment, which is not there, is not waited for."""
    monkeypatch.setattr(verify, "_STARTING", 0.0)
    checks = verify.run(params, cluster, istio_target="127.0.0.1")
    return next(c for c in checks if c.name == "proxy status")


@pytest.mark.usefixtures("gateway")
def test_one_error_of_istioctl_fails_no_check_of_verify(
    cluster: Cluster, istioctl: Istioctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = "[ $1 != proxy-status ] || mkdir $D/asked 2>/dev/null || GOOD=1\n"
    bad = "[ $1 != proxy-status ] || [ $GOOD ] || { echo 'istiod-2: connection refused' >&2; exit 1; }\n"
    params = istioctl(once + bad + proxies(configStatus="SYNCED"))
    check = verified(params, cluster, monkeypatch)
    assert (check.status, check.measured) == ("pass", "1 proxies in sync")


@pytest.mark.usefixtures("gateway")
def test_an_error_of_istioctl_that_lasts_fails_the_check_with_its_reason(
    cluster: Cluster, istioctl: Istioctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_PATIENCE", 0.6)
    params = istioctl("echo 'istiod-2: connection refused' >&2; exit 1")
    check = verified(params, cluster, monkeypatch)
    assert (check.status, check.measured) == (
        "fail",
        "`istioctl proxy-status` failed: istiod-2: connection refused",
    )


def test_an_error_that_lasts_is_told_with_its_hint_at_the_end() -> None:
    def look() -> str:
        raise ClusterError("no answer", hint="check the network")

    with pytest.raises(ClusterError, match=r"thing: after 0\.1 s still no answer") as caught:
        watch(look, timeout=0.1, every=0.05, subject="thing")
    assert caught.value.hint == "check the network"


def test_a_right_that_is_missing_is_not_waited_for(api: FakeApi, cluster: Cluster) -> None:
    api.refuse = lambda *_: (403, {"message": "forbidden"})
    begun = time.monotonic()
    with pytest.raises(ApiError, match="forbidden"):
        watch(lambda: str(cluster.list("Pod")), timeout=20, subject="pods")
    assert time.monotonic() - begun < 5


def _answering(api: FakeApi) -> None:
    """Everything that an install waits for is there."""
    ready = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    for name in ("istiod", "istio-ingressgateway"):
        api.add("Deployment", name, ISTIO, spec={"replicas": 1}, status=ready)
    balancer = {"loadBalancer": {"ingress": [{"hostname": "new.elb.example.com"}]}}
    api.add("Service", "istio-ingressgateway", ISTIO, spec={"type": "LoadBalancer"}, status=balancer)


WEBHOOK = {"message": 'admission webhook "validation.istio.io" denied the request: bad'}


def test_an_api_server_that_is_away_for_a_moment_does_not_end_istioctl(
    api: FakeApi, cluster: Cluster, istioctl: Istioctl
) -> None:
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": ISTIO}}
    params = istioctl(
        f"case $1 in\nmanifest) cat <<'END'\n{yaml.safe_dump(wanted)}\nEND\n;;\n"
        "install) touch $D/begun; sleep 4; touch $D/done;;\nesac"
    )
    folder = Path(params.istio.istioctl).parent
    away: list[float] = []

    def refuse(method: str, path: str, _: Any) -> Any:
        if method == "PATCH" and path.endswith("gateshift-webhook-probe"):
            return 400, WEBHOOK
        if (folder / "begun").exists() and not (folder / "done").exists():
            away.append(time.monotonic())
            return 503, {"message": "the server is starting"}
        return None

    plan = install.plan(params, cluster)
    _answering(api)
    api.refuse = refuse
    install.execute(plan, params, cluster)
    assert away
    assert (folder / "done").exists()


def route(name: str, host: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"hosts": [host]},
    }


def test_a_way_back_waits_for_an_api_server_that_is_away(api: FakeApi, cluster: Cluster) -> None:
    first = [route("a", "a.com")]
    apply.execute(cluster, first, apply.plan(cluster, first))
    second = [route("a", "b.com"), route("b", "b.com")]
    snapshot = apply.execute(cluster, second, apply.plan(cluster, second))
    back = time.monotonic() + 1.2
    api.refuse = lambda *_: (503, {"message": "starting"}) if time.monotonic() < back else None
    assert apply.undo(cluster, snapshot) == []
    assert api.find("VirtualService", "b", "shop") is None
    assert api.find("VirtualService", "a", "shop")["spec"]["hosts"] == ["a.com"]  # type: ignore[index]


def test_a_way_back_ends_its_patience_and_names_what_is_left(api: FakeApi, cluster: Cluster) -> None:
    wanted = [route("a", "a.com"), route("b", "b.com")]
    snapshot = apply.execute(cluster, wanted, apply.plan(cluster, wanted))
    api.refuse = lambda *_: (503, {"message": "starting"})
    begun = time.monotonic()
    left = apply.undo(cluster, snapshot, patience=1.0)
    assert [one.partition(":")[0] for one in left] == ["VirtualService shop/b", "VirtualService shop/a"]
    assert time.monotonic() - begun < 5


def test_what_an_interrupted_apply_leaves_is_told(api: FakeApi, cluster: Cluster) -> None:
    wanted = [route("a", "a.com")]
    plan = apply.plan(cluster, wanted)

    def interrupt() -> None:
        api.refuse = lambda method, *_: (403, {"message": "forbidden"}) if method == "DELETE" else None
        raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        apply.execute(cluster, wanted, plan, accept=interrupt, progress=said.append)
    assert re.fullmatch(r"NOT restored: VirtualService shop/a: deleting .*forbidden \(HTTP 403\)", said[-1])
    assert caught.value.__notes__ == [said[-1]]
