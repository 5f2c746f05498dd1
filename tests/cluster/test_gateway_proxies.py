"""Gateways that take requests without istiod, and proxies that are behind: as istioctl tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster import acceptance, verify
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.params.model import Params
from tests.cluster.conftest import FakeApi, make_params

HOME = "istio-system"
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def status_of(**proxies: str) -> str:
    """What ``istioctl proxy-status`` prints: the state of each proxy, by name (``__`` stands for a dot)."""
    kind = "type.googleapis.com/envoy.config.listener.v3.Listener"
    told = []
    for name, state in proxies.items():
        config: dict[str, Any] = {
            "typeUrl": kind,
            "lastUpdated": "2026-11-25T09:00:00Z",
            "configStatus": state,
        }
        if state == "ERROR":
            config["errorState"] = {"details": "no such cluster"}
        node = f"router~10.0.0.1~{name.replace('__', '.').replace('_', '-')}~x"
        told.append({"node": {"id": node}, "genericXdsConfigs": [config]})
    return json.dumps([{"resources": told}])


class Istioctl:
    """Prints the *statuses* one after the other, the last again and again; Envoys call themselves *names*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "istioctl"
        self.script.write_text(
            f"""#!/bin/sh
cd {folder}
case "$1 $2" in
  "proxy-status "*)
    n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count
    while [ ! -f "status.$n" ]; do n=$((n - 1)); done
    cat "status.$n";;
  "proxy-config bootstrap") test -f "boot.$3" && cat "boot.$3" || exit 1;;
  *) echo '[]';;
esac
"""
        )
        self.script.chmod(0o755)

    def says(self, *statuses: str) -> None:
        for n, text in enumerate(statuses):
            (self.folder / f"status.{n}").write_text(text)

    def envoy(self, pod: str, name: str) -> None:
        boot = {"bootstrap": {"node": {"id": f"router~10.0.0.1~{name}~x"}}}
        (self.folder / f"boot.{pod}.{HOME}").write_text(json.dumps(boot))


@pytest.fixture
def istioctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Istioctl:
    monkeypatch.setattr(verify, "_PAUSE", 0.01)
    monkeypatch.setattr(verify, "_SETTLING", 0.0)
    return Istioctl(tmp_path)


@pytest.fixture
def params(api: FakeApi, kubeconfig: str, istioctl: Istioctl) -> Params:
    """Two gateways that are ready."""
    selector = {"app": "istio-ingressgateway"}
    api.add("Service", "istio-ingressgateway", HOME, spec={"type": "LoadBalancer", "selector": selector})
    for name in ("g-1", "g-2"):
        api.add("Pod", name, HOME, metadata={"labels": selector}, spec={}, status=dict(READY))
    return make_params(kubeconfig, istio={"istioctl": str(istioctl.script)})


def proxies(params: Params, cluster: Cluster) -> list[Check]:
    return list(verify._Checks(params, cluster).synced())


BOTH = status_of(g_1__istio_system="SYNCED", g_2__istio_system="SYNCED")
ONE = status_of(g_1__istio_system="SYNCED")


def test_gateways_that_are_connected_are_in_sync(
    params: Params, cluster: Cluster, istioctl: Istioctl
) -> None:
    istioctl.says(BOTH)
    (check,) = proxies(params, cluster)
    assert (check.status, check.measured) == ("pass", "2 proxies in sync")
    assert acceptance.missing_from_gateway(params, cluster, []) == ""


def test_a_ready_gateway_that_istiod_does_not_know_is_named(
    params: Params, cluster: Cluster, istioctl: Istioctl
) -> None:
    istioctl.says(ONE)
    (check,) = proxies(params, cluster)
    assert (check.status, check.measured) == ("fail", "ready, but not connected to istiod: g-2")
    said = acceptance.missing_from_gateway(params, cluster, [])
    assert said == "ready, but not connected to istiod: g-2"


def test_a_gateway_that_has_just_become_ready_is_waited_for(
    params: Params, cluster: Cluster, istioctl: Istioctl
) -> None:
    istioctl.says(ONE, BOTH)
    assert [c.status for c in proxies(params, cluster)] == ["pass"]


def test_a_gateway_that_is_going_need_not_be_connected(
    params: Params, cluster: Cluster, istioctl: Istioctl, api: FakeApi
) -> None:
    istioctl.says(ONE)
    live = api.find("Pod", "g-2", HOME)
    assert live
    live["metadata"]["deletionTimestamp"] = "2026-11-25T09:00:00Z"
    assert [c.status for c in proxies(params, cluster)] == ["pass"]
    assert acceptance.missing_from_gateway(params, cluster, []) == ""


def test_an_envoy_is_known_to_istiod_by_the_name_it_gives_itself(
    params: Params, cluster: Cluster, istioctl: Istioctl
) -> None:
    istioctl.says(ONE)
    istioctl.envoy("g-2", f"g-1.{HOME}")
    assert [c.status for c in proxies(params, cluster)] == ["pass"]
    istioctl.envoy("g-2", f"g-2.{HOME}")
    assert [c.status for c in proxies(params, cluster)] == ["fail"]


@pytest.mark.parametrize(
    ("others", "status", "said"),
    [
        ({"shop_1__shop": "STALE"}, "warn", "shop-1.shop: Listener STALE"),
        ({"shop_1__shop": "ERROR"}, "fail", "shop-1.shop: Listener ERROR: no such cluster"),
        ({"g_2__istio_system": "STALE"}, "fail", "g-2.istio-system: Listener STALE"),
    ],
)
def test_what_is_behind_holds_only_at_the_gateways_or_when_rejected(  # noqa: PLR0917 - pytest passes by name
    params: Params, cluster: Cluster, istioctl: Istioctl, others: dict[str, str], status: str, said: str
) -> None:
    istioctl.says(status_of(**{"g_1__istio_system": "SYNCED", "g_2__istio_system": "SYNCED", **others}))
    (check,) = proxies(params, cluster)
    assert (check.status, check.measured) == (status, said)


def test_a_push_under_way_is_waited_for(params: Params, cluster: Cluster, istioctl: Istioctl) -> None:
    istioctl.says(status_of(g_1__istio_system="STALE", g_2__istio_system="SYNCED"), BOTH)
    assert [c.status for c in proxies(params, cluster)] == ["pass"]


def test_a_gateway_that_connects_again_after_growing_pauses_is_waited_for(
    params: Params, cluster: Cluster, istioctl: Istioctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_SETTLING", 15.0)
    istioctl.says(*[ONE] * 5, BOTH)
    assert [c.status for c in proxies(params, cluster)] == ["pass"]


def test_sidecars_that_are_behind_use_up_no_look_at_the_gateways(
    params: Params, cluster: Cluster, istioctl: Istioctl
) -> None:
    both = {"g_1__istio_system": "SYNCED", "g_2__istio_system": "SYNCED"}
    busy = [status_of(**both, **{f"shop_{n}__shop": "STALE"}) for n in (1, 2)]
    istioctl.says(*busy, status_of(**{**both, "g_2__istio_system": "STALE"}), BOTH)
    assert [c.status for c in proxies(params, cluster)] == ["warn"]
