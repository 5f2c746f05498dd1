from __future__ import annotations

from typing import Any

import pytest

from gateshift.cluster import cleanup
from gateshift.cluster.client import Cluster
from gateshift.cluster.permissions import covered
from gateshift.errors import Blocked, ClusterError, GateClosed
from gateshift.params.model import Params
from tests.cluster.conftest import FakeApi, make_params


@pytest.fixture(autouse=True)
def _apisix(api: FakeApi) -> None:
    for name in ("apisix", "shop", "istio-system"):
        api.add("Namespace", name)
    api.add("Deployment", "apisix", "apisix", spec={"replicas": 2})
    api.add("StatefulSet", "etcd", "apisix", spec={"replicas": 3})
    api.add(
        "Service",
        "apisix-gateway",
        "apisix",
        spec={"type": "LoadBalancer", "clusterIP": "10.0.0.9", "ports": []},
    )
    api.add("ConfigMap", "kube-root-ca.crt", "apisix", data={})
    api.add("Secret", "admin", "apisix", data={"key": "c2VjcmV0"})
    api.add("CustomResourceDefinition", "apisixroutes.apisix.apache.org", spec={})
    api.add("ConfigMap", "bystander", "shop", data={"keep": "me"})


def confirmed(kubeconfig: str, name: str = "apisix") -> Params:
    return make_params(kubeconfig, confirm_namespace=name)


def test_plan_lists_owners_and_keeps_crds(cluster: Cluster, params: Params) -> None:
    plan = cleanup.plan(params, cluster)
    targets = [s.target for s in plan.steps]
    assert targets == [
        "Deployment apisix/apisix",
        "StatefulSet apisix/etcd",
        "Service apisix/apisix-gateway",
        "Secret apisix/admin",
        "Namespace apisix",
    ]
    assert plan.inputs["kept_crds"] == ["apisixroutes.apisix.apache.org"]
    assert all(s.note.startswith("owner: ") for s in plan.steps[:-1])


def test_name_must_be_typed(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    for wrong in ("", "apisi", "shop"):
        params = confirmed(kubeconfig, wrong)
        with pytest.raises(GateClosed, match="not typed"):
            cleanup.execute(params, cluster, cleanup.plan(params, cluster))
    assert api.find("Namespace", "apisix")


def test_delete_export_and_restore(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    plan = cleanup.plan(params, cluster)
    exported = cleanup.export(cluster, plan)
    assert "c2VjcmV0" not in str(exported)
    cleanup.execute(params, cluster, plan)
    assert api.find("Namespace", "apisix") is None
    assert api.find("Deployment", "apisix", "apisix") is None
    assert api.find("ConfigMap", "bystander", "shop")
    assert api.find("CustomResourceDefinition", "apisixroutes.apisix.apache.org")
    owed = cleanup.restore(cluster, exported)
    assert owed == ["Secret apisix/admin (keys: key)"]
    assert api.find("Deployment", "apisix", "apisix")["spec"] == {"replicas": 2}  # type: ignore[index]
    assert "clusterIP" not in api.find("Service", "apisix-gateway", "apisix")["spec"]  # type: ignore[index]
    assert not covered(cluster.calls)


@pytest.mark.parametrize("namespace", ["default", "kube-system", "istio-system", "shop"])
def test_namespaces_of_others_are_never_deleted(cluster: Cluster, kubeconfig: str, namespace: str) -> None:
    params = make_params(kubeconfig, apisix={"namespace": namespace}, confirm_namespace=namespace)
    with pytest.raises(Blocked, match="never deleted"):
        cleanup.plan(params, cluster)


def test_missing_namespace_is_said(cluster: Cluster, kubeconfig: str) -> None:
    with pytest.raises(Blocked, match="does not exist"):
        cleanup.plan(make_params(kubeconfig, apisix={"namespace": "nowhere"}), cluster)


def _alien(api: FakeApi) -> None:
    api.add("Deployment", "wiki", "apisix", spec={})


def _alias(api: FakeApi) -> None:
    api.add(
        "Service",
        "old",
        "shop",
        spec={"type": "ExternalName", "externalName": "apisix-gateway.apisix.svc.cluster.local"},
    )


def _route(api: FakeApi) -> None:
    http = [{"route": [{"destination": {"host": "apisix-gateway.apisix.svc.cluster.local"}}]}]
    api.add("VirtualService", "v", "shop", spec={"hosts": ["a"], "http": http})


def _ingress(api: FakeApi) -> None:
    api.add("Ingress", "i", "shop", spec={"ingressClassName": "apisix"})


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        (_alien, "Deployment apisix/wiki is not a part of APISIX"),
        (_alias, "Service shop/old is an alias"),
        (_route, "VirtualService shop/v sends to apisix-gateway"),
        (_ingress, "Ingress shop/i is served by APISIX"),
    ],
)
def test_whoever_still_needs_apisix_blocks(
    api: FakeApi, cluster: Cluster, params: Params, inject: Any, said: str
) -> None:
    inject(api)
    with pytest.raises(Blocked, match=said):
        cleanup.plan(params, cluster)


def test_plan_is_void_when_the_namespace_changed(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    plan = cleanup.plan(params, cluster)
    api.add("ConfigMap", "new", "apisix", data={})
    with pytest.raises(Blocked, match="changed since this plan"):
        cleanup.execute(params, cluster, plan)
    assert api.find("Deployment", "apisix", "apisix")


def test_export_of_what_is_gone_fails(api: FakeApi, cluster: Cluster, params: Params) -> None:
    plan = cleanup.plan(params, cluster)
    del api.objects[("apps/v1", "deployments", "apisix", "apisix")]
    with pytest.raises(ClusterError, match="cannot export Deployment apisix/apisix"):
        cleanup.export(cluster, plan)
