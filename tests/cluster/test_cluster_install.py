"""Install and uninstall at the wire; istioctl's part runs on the lab (test_cluster_lab)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cluster import install, operator, uninstall
from gateshift.cluster.client import Cluster
from gateshift.cluster.ownership import owner_labels
from gateshift.cluster.permissions import covered
from gateshift.cluster.waiting import hopeless, refused_pods
from gateshift.errors import Blocked, ClusterError
from gateshift.params.model import Params
from tests.cluster.conftest import FakeApi, make_params

ISTIO = "istio-system"


def manifest(kind: str, name: str, version: str, namespace: str = ISTIO, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


GATEWAYS = "gateways.networking.istio.io"
WANTED = [
    manifest("Deployment", "istiod", "apps/v1"),
    manifest("Deployment", "istio-ingressgateway", "apps/v1"),
    manifest("Service", "istio-ingressgateway", "v1"),
    manifest(
        "CustomResourceDefinition", "gateways.networking.istio.io", "apiextensions.k8s.io/v1", "", group="x"
    ),
]


@pytest.fixture
def params(kubeconfig: str, tmp_path: Path) -> Params:
    """Params whose istioctl prints WANTED: only its output is needed here."""
    script = tmp_path / "istioctl"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{yaml.safe_dump_all(WANTED)}\nEND\n")
    script.chmod(0o755)
    return make_params(kubeconfig, istio={"istioctl": str(script)})


def installed(api: FakeApi, params: Params, wanted: dict[str, Any], **labels: str) -> dict[str, Any]:
    obj = json.loads(json.dumps(wanted))
    obj["metadata"]["labels"] = {**owner_labels(params), **labels}
    return api.store(obj)


def test_plan_creates_all_and_then_nothing(api: FakeApi, cluster: Cluster, params: Params) -> None:
    plan = install.plan(params, cluster)
    assert [s.verb for s in plan.steps] == ["create"] * 5
    assert plan.steps[0].target == "Namespace istio-system"
    api.add("Namespace", ISTIO)
    for one in WANTED:
        installed(api, params, one)
    assert install.plan(params, cluster).steps == ()


def test_what_belongs_to_another_is_never_overwritten(api: FakeApi, cluster: Cluster, params: Params) -> None:
    for one in WANTED[1:3]:
        obj = json.loads(json.dumps(one))
        obj["metadata"]["annotations"] = {"meta.helm.sh/release-name": "edge"}
        api.store(obj)
    with pytest.raises(
        Blocked, match=r"Deployment istio-system/istio-ingressgateway \(of Helm release edge\)"
    ):
        install.plan(params, cluster)


def test_a_gateway_that_istioctl_would_prune_is_in_the_plan(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    old = manifest("Service", "istio-oldgateway", "v1")
    component = {"operator.istio.io/component": "IngressGateways"}
    installed(api, params, old, **component)
    steps = [s for s in install.plan(params, cluster).steps if s.verb == "delete"]
    assert [s.target for s in steps] == ["Service istio-system/istio-oldgateway"]


def test_uninstall_takes_ours_and_puts_back_what_was_shared(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("Namespace", ISTIO)
    crd = json.loads(json.dumps(WANTED[3]))
    crd["spec"] = {"group": "networking.istio.io", "versions": [], "names": {"kind": "Gateway"}}
    theirs = json.loads(json.dumps(crd))
    theirs["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
    api.store(theirs)
    (before,) = uninstall.shared_before(params, cluster)
    for one in [*WANTED[:3], crd]:
        installed(api, params, one)
    api.add("Deployment", "theirs", "other", spec={})
    api.add("ConfigMap", "istio-ca-root-cert", "shop", metadata={"labels": {"istio.io/config": "true"}})
    plan = uninstall.plan(params, cluster, before=[before], created_namespace=True)
    assert [(s.verb, s.target) for s in plan.steps] == [
        ("delete", "Deployment istio-system/istio-ingressgateway"),
        ("delete", "Deployment istio-system/istiod"),
        ("delete", "Service istio-system/istio-ingressgateway"),
        ("delete", "ConfigMap shop/istio-ca-root-cert"),
        ("restore", "CustomResourceDefinition gateways.networking.istio.io"),
        ("delete", "Namespace istio-system"),
    ]
    uninstall.execute(plan, params, cluster, before=[before], created_namespace=True)
    live = api.find("CustomResourceDefinition", "gateways.networking.istio.io")
    assert live
    assert live["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm"}
    assert api.find("Deployment", "theirs", "other")
    assert uninstall.plan(params, cluster, before=[before]).steps == ()


def test_uninstall_takes_the_classes_that_istiod_made_and_no_other(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    for one in WANTED[:3]:
        installed(api, params, one)
    istio: dict[str, Any] = {"spec": {"controllerName": "istio.io/gateway-controller"}}
    for name in ("istio", "istio-remote", "by-a-person"):
        api.add("GatewayClass", name, **istio)
    api.add("GatewayClass", "istio-waypoint", spec={"controllerName": "example.com/other"})
    used = {"metadata": {"name": "g", "namespace": "shop"}, "spec": {"gatewayClassName": "istio-remote"}}
    api.store({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", **used})
    steps = [s.target for s in uninstall.plan(params, cluster).steps]
    assert [one for one in steps if one.startswith("GatewayClass")] == ["GatewayClass istio"]
    uninstall.execute(uninstall.plan(params, cluster), params, cluster)
    assert api.find("GatewayClass", "istio") is None
    assert not covered(cluster.calls)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


def test_an_uninstall_killed_after_each_step_and_repeated_takes_everything(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("Namespace", ISTIO)
    for one in WANTED[:3]:
        installed(api, params, one)
    for name in ("istiod", "istio-reader"):
        installed(
            api,
            params,
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": ISTIO}},
        )
    for space in ("shop", ISTIO):
        api.add("ConfigMap", "istio-ca-root-cert", space, metadata={"labels": {"istio.io/config": "true"}})
    api.add("Secret", "istio-ca-secret", ISTIO, type="istio.io/ca-root", data={})
    api.add("Lease", "istio-leader", ISTIO, spec={})

    def die(_: str) -> None:
        raise Killed

    kills = 0
    while (plan := uninstall.plan(params, cluster, created_namespace=True)).steps:
        with pytest.raises(Killed):
            uninstall.execute(plan, params, cluster, created_namespace=True, progress=die)
        kills += 1
    assert kills == 10
    assert {key[1:] for key in api.objects} == {("namespaces", "", "kube-system")}


def test_a_crd_with_objects_and_a_namespace_with_a_persons_things_stay(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("Namespace", ISTIO)
    api.add("Secret", "their-certificate", ISTIO, type="kubernetes.io/tls", data={})
    api.add("Gateway", "theirs", "shop", spec={})
    crd = json.loads(json.dumps(WANTED[3]))
    versions = [{"name": "v1", "served": True}]
    crd["spec"] = {"group": "networking.istio.io", "versions": versions, "names": {"kind": "Gateway"}}
    installed(api, params, crd)
    installed(api, params, WANTED[0])
    plan = uninstall.plan(params, cluster, created_namespace=True)
    assert [s.target for s in plan.steps] == ["Deployment istio-system/istiod"]
    assert "gateways.networking.istio.io: 1 objects of it" in plan.title
    assert "Secret istio-system/their-certificate" in plan.title


@pytest.mark.parametrize(
    "kind", ["PersistentVolumeClaim", "CronJob", "Job", "Ingress", "NetworkPolicy", "Role", "EnvoyFilter"]
)
def test_a_persons_thing_of_any_kind_keeps_the_namespace(
    api: FakeApi, cluster: Cluster, params: Params, kind: str
) -> None:
    api.add("Namespace", ISTIO)
    installed(api, params, WANTED[0])
    api.add(kind, "istiod", ISTIO, spec={})  # as ours is named; another kind
    plan = uninstall.plan(params, cluster, created_namespace=True)
    assert [s.target for s in plan.steps] == ["Deployment istio-system/istiod"]
    assert f"kept: namespace istio-system: {kind} istio-system/istiod in it" in plan.title
    uninstall.execute(plan, params, cluster, created_namespace=True)
    assert api.find(kind, "istiod", ISTIO)
    assert api.find("Namespace", ISTIO)


def test_a_kind_that_may_not_be_seen_keeps_the_namespace_and_one_that_has_ended_does_not(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("Namespace", ISTIO)
    installed(api, params, WANTED[0])
    api.kinds.add(("example.com/v1", "Widget"))
    api.refuse = lambda _, path, __: (403, {"message": "no"}) if path.endswith("/widgets") else None
    title = uninstall.plan(params, cluster, created_namespace=True).title
    assert "kept: namespace istio-system: widgets.example.com may not be listed" in title
    api.refuse = lambda _, path, __: (404, {"message": "no"}) if path.endswith("/widgets") else None
    plan = uninstall.plan(params, cluster, created_namespace=True)
    assert plan.steps[-1].target == "Namespace istio-system"


def test_another_istiod_keeps_crds_and_root_certificates(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    crd = json.loads(json.dumps(WANTED[3]))
    crd["spec"] = {"group": "networking.istio.io", "versions": [], "names": {"kind": "Gateway"}}
    installed(api, params, crd)
    installed(api, params, WANTED[0])
    api.add("Deployment", "istiod", "mesh", metadata={"labels": {"app": "istiod"}}, spec={})
    api.add("ConfigMap", "istio-ca-root-cert", "shop", metadata={"labels": {"istio.io/config": "true"}})
    plan = uninstall.plan(params, cluster)
    assert [s.target for s in plan.steps] == ["Deployment istio-system/istiod"]
    assert "another istiod uses it" in plan.title


def _waiting(api: FakeApi, reason: str) -> None:
    labels = {"app": "istiod"}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}}
    api.add("Deployment", "istiod", ISTIO, spec=spec, status={})
    states = [{"name": "discovery", "image": "x/pilot:9", "state": {"waiting": {"reason": reason}}}]
    api.add("Pod", "istiod-1", ISTIO, metadata={"labels": labels}, status={"containerStatuses": states})


def test_a_missing_image_is_told_long_before_the_time_out(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    _waiting(api, "ImagePullBackOff")
    patient = make_params(kubeconfig, istio={"ready_timeout": "3s"})
    with pytest.raises(
        ClusterError, match=r"cannot become ready: istiod: container discovery: ImagePullBackOff"
    ):
        install.wait_ready(patient, cluster)


@pytest.mark.parametrize("version", ["networking.istio.io/v1", "networking.istio.io/v1beta1"])
def test_the_validator_of_each_istio_is_asked_in_a_version_that_it_has(
    api: FakeApi, cluster: Cluster, kubeconfig: str, version: str
) -> None:
    other = {"networking.istio.io/v1", "networking.istio.io/v1beta1"} - {version}
    api.kinds = {k for k in api.kinds if k[0] not in other}
    sent: list[dict[str, Any]] = []

    def webhook(method: str, _: str, body: dict[str, Any]) -> Any:
        if method != "PATCH":
            return None
        sent.append(body)
        words = 'admission webhook "validation.istio.io" denied the request: bad'
        return 400, {"message": words}

    api.refuse = webhook
    assert install.answers(cluster, make_params(kubeconfig)) == ""
    assert install.answers(cluster, make_params(kubeconfig, istio={"revision": "next"})) == ""
    assert {one["apiVersion"] for one in sent} == {version}


def test_quota_is_hopeless_and_a_missing_node_is_not(api: FakeApi, cluster: Cluster) -> None:
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "istiod"}}}
    message = "pods forbidden: exceeded quota: compute"
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    api.add("Deployment", "istiod", ISTIO, spec=spec, status={"conditions": [condition]})
    assert hopeless(cluster, ISTIO, "istiod") == [f"FailedCreate: {message}"]
    _waiting(api, "ContainerCreating")
    assert hopeless(cluster, ISTIO, "istiod") == []


def test_a_quota_behind_the_first_reason_is_told_by_events(api: FakeApi, cluster: Cluster) -> None:
    """A condition keeps the first reason: the account that the installer made a moment later."""
    first = 'pods "istiod-1-" is forbidden: error looking up service account istio-system/istiod: not found'
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": first}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "istiod"}}}
    api.add("Deployment", "istiod", ISTIO, spec=spec, status={"conditions": [condition]})
    owner = {"kind": "Deployment", "name": "istiod"}
    api.add("ReplicaSet", "istiod-1", ISTIO, metadata={"ownerReferences": [owner]})
    assert hopeless(cluster, ISTIO, "istiod") == []

    def refused(name: str, message: str, when: str) -> None:
        about = {"kind": "ReplicaSet", "name": "istiod-1"}
        told = {"reason": "FailedCreate", "involvedObject": about, "message": f"Error creating: {message}"}
        api.add("Event", name, ISTIO, **told, count=1, lastTimestamp=when)

    refused("e1", first, "2026-11-30T01:00:00Z")
    assert hopeless(cluster, ISTIO, "istiod") == []
    refused("e2", 'pods "istiod-1-x" is forbidden: exceeded quota: none', "2026-11-30T01:00:01Z")
    said = ["FailedCreate: pods is forbidden: exceeded quota: none"]
    assert hopeless(cluster, ISTIO, "istiod") == said
    before = refused_pods(cluster, ISTIO, "istiod")
    assert hopeless(cluster, ISTIO, "istiod", before=before) == []  # the quota may be gone by now
    refused("e3", 'pods "istiod-1-y" is forbidden: exceeded quota: none', "2026-11-30T01:00:09Z")
    assert hopeless(cluster, ISTIO, "istiod", before=before) == said
    assert not covered(cluster.calls)


def test_helm_values_say_what_the_operator_file_says() -> None:
    istio = {
        "gateway_annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "nlb"},
        "external_traffic_policy": "Local",
        "revision": "next",
    }
    params = make_params(istio=istio)
    spec = operator.operator(params)["spec"]
    helm = operator.helm_values(params)
    gateway = spec["components"]["ingressGateways"][0]
    pilot = spec["components"]["pilot"]["k8s"]
    assert helm["gateway"]["resources"] == gateway["k8s"]["resources"]
    assert helm["gateway"]["affinity"] == gateway["k8s"]["affinity"]
    assert (
        helm["gateway"]["podDisruptionBudget"] == gateway["k8s"]["podDisruptionBudget"] == {"minAvailable": 2}
    )
    assert helm["gateway"]["labels"] == gateway["label"]
    scale = helm["gateway"]["autoscaling"]
    assert (scale["minReplicas"], scale["maxReplicas"]) == (3, 10)
    assert gateway["k8s"]["hpaSpec"] == {"minReplicas": 3, "maxReplicas": 10}
    service = {**helm["gateway"]["service"]}
    assert service.pop("annotations") == gateway["k8s"]["serviceAnnotations"] == istio["gateway_annotations"]
    assert service == gateway["k8s"]["service"]
    assert service["externalTrafficPolicy"] == "Local"
    assert helm["gateway"]["env"] == {e["name"]: e["value"] for e in gateway["k8s"]["env"]}
    assert helm["istiod"]["resources"] == pilot["resources"]
    assert helm["istiod"]["affinity"] == pilot["affinity"]
    assert helm["istiod"]["pdb"] == pilot["podDisruptionBudget"] == {"minAvailable": 1}
    assert (helm["istiod"]["autoscaleMin"], helm["istiod"]["autoscaleMax"]) == (2, 5)
    assert helm["istiod"]["meshConfig"] == spec["meshConfig"]
    assert helm["istiod"]["revision"] == helm["gateway"]["revision"] == spec["revision"] == "next"
