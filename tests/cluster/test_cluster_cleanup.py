from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from gateshift.archive.redact import Redactor
from gateshift.cluster import cleanup, restore
from gateshift.cluster.client import Cluster
from gateshift.cluster.exported import holds_secrets, shown
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
    api.add(
        "CustomResourceDefinition",
        "apisixroutes.apisix.apache.org",
        spec=crd("apisix.apache.org", "ApisixRoute", "apisixroutes"),
    )
    api.add("ConfigMap", "bystander", "shop", data={"keep": "me"})


def confirmed(kubeconfig: str, name: str = "apisix") -> Params:
    return make_params(kubeconfig, confirm_namespace=name)


def owner(version: str, kind: str) -> dict[str, str]:
    return {"apiVersion": version, "kind": kind, "name": "it", "uid": "1"}


def crd(group: str, kind: str, plural: str) -> dict[str, Any]:
    names = {"kind": kind, "plural": plural}
    versions = [{"name": "v2", "served": True}]
    return {"group": group, "names": names, "scope": "Namespaced", "versions": versions}


def test_plan_lists_owners_in_a_safe_order(api: FakeApi, cluster: Cluster, params: Params) -> None:
    service = {"name": "apisix-admission", "namespace": "apisix"}
    api.add("ValidatingWebhookConfiguration", "apisix", webhooks=[{"clientConfig": {"service": service}}])
    api.add(
        "ValidatingWebhookConfiguration",
        "others",
        webhooks=[{"clientConfig": {"service": {"namespace": "x"}}}],
    )
    subjects = [{"kind": "ServiceAccount", "name": "apisix", "namespace": "apisix"}]
    role = {"kind": "ClusterRole", "name": "apisix-ingress"}
    api.add("ClusterRoleBinding", "apisix-ingress", roleRef=role, subjects=subjects)
    shared = {"kind": "ClusterRole", "name": "view"}
    api.add("ClusterRoleBinding", "both", roleRef=shared, subjects=[*subjects, {"kind": "User", "name": "u"}])
    api.add("ClusterRole", "apisix-ingress")
    api.add("ClusterRole", "view")
    api.add("Pod", "apisix-1", "apisix", metadata={"ownerReferences": [owner("apps/v1", "ReplicaSet")]})
    plan = cleanup.plan(params, cluster)
    assert [(s.verb, s.target) for s in plan.steps] == [
        ("copy", "Secret apisix/admin"),
        ("delete", "ValidatingWebhookConfiguration apisix"),
        ("delete", "Deployment apisix/apisix"),
        ("delete", "StatefulSet apisix/etcd"),
        ("delete", "Service apisix/apisix-gateway"),
        ("delete", "Secret apisix/admin"),
        ("delete", "Namespace apisix"),
        ("delete", "ClusterRoleBinding apisix-ingress"),
        ("delete", "ClusterRole apisix-ingress"),
        ("delete", "CustomResourceDefinition apisixroutes.apisix.apache.org"),
    ]
    assert all(s.note.startswith("owner: ") for s in plan.steps if s.verb == "delete")
    assert "c2VjcmV0" not in str(plan.as_json())


def test_crds_that_others_use_stay(api: FakeApi, cluster: Cluster, params: Params) -> None:
    api.add("ApisixRoute", "theirs", "shop", spec={})
    plan = cleanup.plan(params, cluster)
    assert plan.inputs["kept_crds"] == {"apisixroutes.apisix.apache.org": "objects in shop"}
    assert not [s for s in plan.steps if s.target.startswith("CustomResourceDefinition")]


def test_crd_that_cannot_be_listed_stays(api: FakeApi, cluster: Cluster, params: Params) -> None:
    api.kinds = {k for k in api.kinds if k[1] != "ApisixRoute"}
    assert "cannot be listed" in str(cleanup.plan(params, cluster).inputs["kept_crds"])


def widget(api: FakeApi, name: str = "w") -> None:
    api.kinds.add(("example.com/v1", "Widget"))
    metadata = {"name": name, "namespace": "apisix"}
    api.store({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": metadata, "spec": {"size": 3}})


def test_a_custom_resource_that_is_signed_for_is_exported_and_goes(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    widget(api)
    also = make_params(kubeconfig, confirm_namespace="apisix", cleanup={"also": ["Widget/w"]})
    plan = cleanup.plan(also, cluster)
    assert ("goes", "Widget apisix/w") in [(s.verb, s.target) for s in plan.steps]
    exported = cleanup.export(also, cluster, plan)
    assert any(o["kind"] == "Widget" and o["spec"] == {"size": 3} for o in exported)
    widget(api, "w2")
    with pytest.raises(Blocked, match=r"Widget apisix/w2 is not a part of APISIX$"):
        cleanup.plan(also, cluster)


def test_what_a_chart_made_for_apisix_is_a_part_of_it(api: FakeApi, cluster: Cluster, params: Params) -> None:
    api.kinds.add(("monitoring.coreos.com/v1", "ServiceMonitor"))
    labels = {"app.kubernetes.io/instance": "apisix"}
    metadata = {"name": "edge", "namespace": "apisix", "labels": labels}
    api.store({"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": metadata})
    api.add("Deployment", "dashboard", "apisix", metadata={"labels": {"app": "apisix-dashboard"}})
    targets = [s.target for s in cleanup.plan(params, cluster).steps]
    assert {"ServiceMonitor apisix/edge", "Deployment apisix/dashboard"} <= set(targets)


def test_an_apisix_route_elsewhere_may_stay_when_istio_serves_its_hosts(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    hosts = ["pay.shop.com", "a.shop.com"]
    api.add("ApisixRoute", "theirs", "shop", spec={"http": [{"match": {"hosts": hosts}}]})
    spec: dict[str, Any] = {"hosts": ["pay.shop.com"], "gateways": ["shop/g"], "http": [{"route": []}]}
    api.add("VirtualService", "pay", "shop", spec=spec)
    with pytest.raises(Blocked, match=r"shop/theirs serves a\.shop\.com, which no route of Istio"):
        cleanup.plan(params, cluster)
    api.add("HTTPRoute", "rest", "shop", spec={"hostnames": ["*.shop.com"]})
    assert cleanup.plan(params, cluster).steps


def test_finalizers_are_released_while_their_controller_runs(
    api: FakeApi, cluster: Cluster, params: Params
) -> None:
    api.add("ApisixRoute", "plain", "apisix", spec={})
    api.add("ApisixRoute", "held", "apisix", spec={}, metadata={"finalizers": ["apisix.apache.org/x"]})
    order = [s.target for s in cleanup.plan(params, cluster).steps]
    controller = order.index("Deployment apisix/apisix")
    assert order.index("ApisixRoute apisix/held") < controller < order.index("ApisixRoute apisix/plain")


def test_the_controller_stays_until_it_has_released_what_waits_for_it(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = confirmed(kubeconfig)
    api.add("ApisixRoute", "held", "apisix", spec={}, metadata={"finalizers": ["apisix.apache.org/x"]})
    place = ("apisix.apache.org/v2", "apisixroutes", "apisix", "held")

    def release() -> None:
        """As the controller, which has to live for it."""
        if api.find("Deployment", "apisix", "apisix"):
            del api.objects[place]

    later: list[threading.Timer] = []

    def control(method: str, path: str, _: Any) -> None:
        if method == "DELETE" and path.endswith("/held"):
            later.append(threading.Timer(0.5, release))
            later[0].start()

    api.refuse = control
    said: list[str] = []
    cleanup.execute(params, cluster, cleanup.plan(params, cluster), progress=said.append)
    later[0].join()
    assert place not in api.objects
    waited = said.index(
        "custom resources: held by their finalizers: ApisixRoute apisix/held (apisix.apache.org/x), 1 in all"
    )
    assert waited < said.index("delete: Deployment apisix/apisix")


def test_what_is_never_released_is_named_and_its_controller_stays(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = confirmed(kubeconfig)
    api.add("ApisixRoute", "held", "apisix", spec={}, metadata={"finalizers": ["apisix.apache.org/x"]})
    with pytest.raises(ClusterError, match=r"still held by .*ApisixRoute apisix/held") as caught:
        cleanup.execute(params, cluster, cleanup.plan(params, cluster))
    assert "finalizers by hand" in caught.value.hint
    assert api.find("Deployment", "apisix", "apisix")


def test_a_restore_waits_for_the_kinds_that_it_brings_back(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = confirmed(kubeconfig)
    api.add("ApisixRoute", "r", "apisix", spec={"http": []})
    api.kinds.add(("apisix.apache.org/v2", "ApisixTls"))
    api.store(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "apisixtlses.apisix.apache.org"},
            "spec": crd("apisix.apache.org", "ApisixTls", "apisixtlses"),
        }
    )
    api.add("ApisixRoute", "theirs", "shop", spec={})  # so the group is served all the time
    metadata = {"name": "t", "namespace": "apisix"}
    api.store({"apiVersion": "apisix.apache.org/v2", "kind": "ApisixTls", "metadata": metadata, "spec": {}})
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    cleanup.execute(params, cluster, plan)
    api.kinds.discard(("apisix.apache.org/v2", "ApisixTls"))
    later: list[threading.Timer] = []

    def learn(method: str, path: str, _: Any) -> None:
        if method == "POST" and path.endswith("/customresourcedefinitions"):
            later.append(threading.Timer(0.7, api.kinds.add, [("apisix.apache.org/v2", "ApisixTls")]))
            later[0].start()

    api.refuse = learn
    fresh = Cluster.connect(params.cluster)
    assert fresh.serves("ApisixRoute")  # the group is known before the kind comes back
    restore.execute(params, fresh, restore.plan(params, fresh, exported), exported)
    assert ("apisix.apache.org/v2", "apisixtlses", "apisix", "t") in api.objects


def test_name_must_be_typed(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    for wrong in ("", "apisi", "shop"):
        params = confirmed(kubeconfig, wrong)
        with pytest.raises(GateClosed, match="not typed"):
            cleanup.execute(params, cluster, cleanup.plan(params, cluster))
    assert api.find("Namespace", "apisix")


def test_delete_export_and_restore(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    api.add("ApisixRoute", "r", "apisix", spec={"http": []})
    before = {k: o for k, o in api.objects.items() if "apisix" in k[2:]}
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    assert "c2VjcmV0" not in str(exported)
    cleanup.execute(params, cluster, plan)
    assert not [k for k in api.objects if k[2] == "apisix" and k[3] != "kube-root-ca.crt"]
    assert api.find("Namespace", "apisix") is None
    assert api.find("ConfigMap", "bystander", "shop")
    assert api.find("CustomResourceDefinition", "apisixroutes.apisix.apache.org") is None
    back = restore.plan(params, cluster, exported)
    assert [s.target for s in back.steps][:2] == [
        "CustomResourceDefinition apisixroutes.apisix.apache.org",
        "Namespace apisix",
    ]
    restore.execute(params, cluster, back, exported)
    assert set(before) <= set(api.objects)
    assert api.find("Deployment", "apisix", "apisix")["spec"] == {"replicas": 2}  # type: ignore[index]
    assert "clusterIP" not in api.find("Service", "apisix-gateway", "apisix")["spec"]  # type: ignore[index]
    assert api.find("Secret", "admin", "apisix")["data"] == {"key": "c2VjcmV0"}  # type: ignore[index]
    assert restore.plan(params, cluster, exported).empty


def test_restore_names_the_secrets_it_lacks(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    cleanup.execute(params, cluster, plan)
    del api.objects[("v1", "secrets", "istio-system", "gateshift-kept-admin")]
    with pytest.raises(Blocked, match=r"Secret apisix/admin \(keys: key\)"):
        restore.plan(params, cluster, exported)
    assert api.find("Namespace", "apisix") is None


CONFIG = """
deployment:
  admin:
    admin_key:
      - {name: admin, key: edd1c9f034335f136f87ad84b625c8f1, role: admin}
apisix:
  data_encryption: {keyring: [qeddd145sfvddff3]}
etcd: {host: ["http://etcd:2379"], user: root, password: et-cd-pw}
"""
SECRETS = ("edd1c9f034335f136f87ad84b625c8f1", "qeddd145sfvddff3", "et-cd-pw", "jack-key", "env-token-1")


def test_secrets_outside_of_secrets_are_exported_as_little(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = confirmed(kubeconfig)
    variables = [{"name": "ETCD_TOKEN", "value": "env-token-1"}, {"name": "TZ", "value": "UTC"}]
    spec = {"template": {"spec": {"containers": [{"name": "apisix", "env": variables}]}}}
    api.add("ConfigMap", "apisix", "apisix", data={"config.yaml": CONFIG, "notes": "kept as they are: {"})
    api.add("Deployment", "apisix-ingress", "apisix", spec=spec)
    api.add("ApisixRoute", "r", "apisix", spec={"authParameter": {"keyAuth": {"value": {"key": "jack-key"}}}})
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    text = f"{exported}{plan}"
    assert not [secret for secret in SECRETS if secret in text]
    assert "http://etcd:2379" in text, "only the secrets go"
    assert "'TZ', 'value': 'UTC'" in text
    cleanup.execute(params, cluster, plan)
    restore.execute(params, cluster, restore.plan(params, cluster, exported), exported)
    data = {"config.yaml": CONFIG, "notes": "kept as they are: {"}
    assert api.find("ConfigMap", "apisix", "apisix")["data"] == data  # type: ignore[index]
    assert api.find("Deployment", "apisix-ingress", "apisix")["spec"] == spec  # type: ignore[index]
    live = api.find("ApisixRoute", "r", "apisix")
    assert live
    assert live["spec"]["authParameter"]["keyAuth"]["value"] == {"key": "jack-key"}
    assert "gateshift.dev/secrets" not in str(live)
    assert restore.plan(params, cluster, exported).empty


def test_a_signing_key_inside_a_key_set_is_not_exported() -> None:
    """As plans and diffs mask it; the copy in the cluster has it."""
    rule = {"issuer": "a", "jwks": '{"keys": [{"kty": "oct", "k": "c2lnbmluZy1rZXk"}]}'}
    obj = {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "jwt", "namespace": "apisix"},
        "spec": {"jwtRules": [rule]},
    }
    exported = shown(obj, Redactor())
    assert "c2lnbmluZy1rZXk" not in str(exported)
    assert holds_secrets(exported)


def test_a_secret_that_gateshift_was_told_is_known_anywhere(
    api: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = confirmed(kubeconfig)
    api.add("ConfigMap", "plain", "apisix", data={"motto": "open sesame-77"})
    told = Redactor(["sesame-77"])
    plan = cleanup.plan(params, cluster, redactor=told)
    exported = [shown(o, told) for o in cleanup.export(params, cluster, plan)]
    assert "sesame-77" not in str(exported)
    cleanup.execute(params, cluster, plan, redactor=told)
    restore.execute(params, cluster, restore.plan(params, cluster, exported), exported)
    assert api.find("ConfigMap", "plain", "apisix")["data"] == {"motto": "open sesame-77"}  # type: ignore[index]


def test_an_interrupted_clean_up_goes_on(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    role = {"kind": "ClusterRole", "name": "apisix"}
    subjects = [{"kind": "ServiceAccount", "name": "apisix", "namespace": "apisix"}]
    api.add("ClusterRoleBinding", "apisix", roleRef=role, subjects=subjects)
    plan = cleanup.plan(params, cluster)

    def die(method: str, path: str, _: Any) -> Any:
        if method == "DELETE" and path.endswith("/clusterrolebindings/apisix"):
            return 500, {"message": "killed"}
        return None

    api.refuse = die
    with pytest.raises(ClusterError, match="killed"):
        cleanup.execute(params, cluster, plan)
    api.refuse = lambda *_: None
    with pytest.raises(Blocked, match="does not exist"):
        cleanup.plan(params, cluster)
    rest = cleanup.plan(params, cluster, resuming=True)
    assert next(s.target for s in rest.steps) == "ClusterRoleBinding apisix"
    cleanup.execute(params, cluster, rest, resuming=True)
    assert cleanup.plan(params, cluster, resuming=True).empty


def test_a_retained_volume_is_bound_again(api: FakeApi, cluster: Cluster, kubeconfig: str) -> None:
    params = confirmed(kubeconfig)
    claim = {"name": "data", "namespace": "apisix", "uid": "old", "resourceVersion": "7"}
    spec = {"persistentVolumeReclaimPolicy": "Retain", "claimRef": claim}
    api.add("PersistentVolume", "pv1", spec=spec)
    old = {"ownerReferences": [owner("apps/v1", "StatefulSet")]}
    api.add("PersistentVolumeClaim", "data", "apisix", metadata=old, spec={"volumeName": "pv1"})
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    cleanup.execute(params, cluster, plan)
    restore.execute(params, cluster, restore.plan(params, cluster, exported), exported)
    volume = api.find("PersistentVolume", "pv1")
    assert volume
    assert volume["spec"]["claimRef"] == {"name": "data", "namespace": "apisix"}
    claimed = api.find("PersistentVolumeClaim", "data", "apisix")
    assert claimed
    assert claimed["spec"]["volumeName"] == "pv1"
    assert "ownerReferences" not in claimed["metadata"], "it would be taken for an orphan and deleted"


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


def _operated(api: FakeApi) -> None:
    api.kinds.add(("db.example.com/v1", "Database"))
    metadata = {"name": "payments-db", "namespace": "apisix"}
    api.store({"apiVersion": "db.example.com/v1", "kind": "Database", "metadata": metadata})
    owned = {"metadata": {"ownerReferences": [owner("db.example.com/v1", "Database")]}}
    for kind in ("StatefulSet", "Service", "Secret"):
        api.add(kind, "payments-db", "apisix", **json.loads(json.dumps(owned)), spec={}, data={})


def _operated_from_outside(api: FakeApi) -> None:
    metadata = {"ownerReferences": [owner("db.example.com/v1", "ClusterDatabase")]}
    api.add("StatefulSet", "payments-db", "apisix", metadata=metadata, spec={})


def _mentions_apisix(api: FakeApi) -> None:
    api.add("Deployment", "wiki", "apisix", metadata={"labels": {"exposed-by": "apisix"}}, spec={})


def _a_route_left_behind(api: FakeApi) -> None:
    spec = {"http": [{"match": {"hosts": ["pay.shop.com"]}}]}
    api.add("ApisixRoute", "theirs", "shop", spec=spec)
    in_the_mesh = {"hosts": ["pay.shop.com"], "http": [{"route": []}]}  # no gateway serves it
    api.add("VirtualService", "pay", "shop", spec=in_the_mesh)


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


def _ingress_of_a_renamed_class(api: FakeApi) -> None:
    api.add("IngressClass", "edge", spec={"controller": "apisix.apache.org/apisix-ingress-controller"})
    api.add("Ingress", "i", "shop", spec={"ingressClassName": "edge"})


def _ingress_of_the_default_class(api: FakeApi) -> None:
    api.add(
        "IngressClass",
        "edge",
        metadata={"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        spec={"controller": "apisix.apache.org/apisix-ingress"},
    )
    api.add("Ingress", "i", "shop", spec={})


def _mirror(api: FakeApi) -> None:
    mirrors = [{"destination": {"host": "apisix-gateway.apisix.svc.cluster.local"}}]
    api.add("VirtualService", "v", "shop", spec={"hosts": ["a"], "http": [{"mirrors": mirrors}]})


def _tcp_route(api: FakeApi) -> None:
    tcp = [{"route": [{"destination": {"host": "apisix-gateway.apisix"}}]}]
    api.add("VirtualService", "v", "shop", spec={"hosts": ["a"], "tcp": tcp})


def _service_entry(api: FakeApi) -> None:
    endpoints = [{"address": "apisix-gateway.apisix.svc.cluster.local"}]
    api.add("ServiceEntry", "e", "shop", spec={"hosts": ["old.shop.com"], "endpoints": endpoints})


def _alien_job(api: FakeApi) -> None:
    api.add("CronJob", "backup", "apisix", spec={})


def _volume(api: FakeApi) -> None:
    api.add("PersistentVolume", "pv1", spec={"persistentVolumeReclaimPolicy": "Delete"})
    api.add("PersistentVolumeClaim", "data-etcd-0", "apisix", spec={"volumeName": "pv1"})


def _volume_of_a_set(api: FakeApi) -> None:
    _volume(api)
    claim = api.find("PersistentVolumeClaim", "data-etcd-0", "apisix")
    assert claim
    claim["metadata"]["ownerReferences"] = [owner("apps/v1", "StatefulSet")]


def _api_route(api: FakeApi) -> None:
    refs = [{"name": "shop", "port": 80}, {"name": "apisix-gateway", "namespace": "apisix", "port": 80}]
    api.add("HTTPRoute", "r", "shop", spec={"rules": [{"backendRefs": refs}]})


def _api_mirror(api: FakeApi) -> None:
    ref = {"name": "apisix-gateway", "namespace": "apisix", "port": 80}
    rule = {"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": ref}}]}
    api.add("GRPCRoute", "r", "shop", spec={"rules": [rule]})


def _api_gateway(api: FakeApi) -> None:
    api.add("GatewayClass", "edge", spec={"controllerName": "apisix.apache.org/apisix-ingress-controller"})
    gateway = {"metadata": {"name": "g", "namespace": "shop"}, "spec": {"gatewayClassName": "edge"}}
    api.store({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", **gateway})


def _blind(api: FakeApi) -> None:
    api.kinds.add(("cert-manager.io/v1", "Certificate"))
    api.refuse = lambda _, path, __: (
        (403, {"message": "forbidden"}) if path.endswith("/certificates") else None
    )


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        (_alien, "Deployment apisix/wiki is not a part of APISIX"),
        (_operated, "Database apisix/payments-db is not a part of APISIX"),
        (_operated_from_outside, "StatefulSet apisix/payments-db is not a part of APISIX"),
        (_mentions_apisix, "Deployment apisix/wiki is not a part of APISIX"),
        (widget, "Widget apisix/w is not a part of APISIX"),
        (
            _a_route_left_behind,
            r"ApisixRoute shop/theirs serves pay\.shop\.com, which no route of Istio",
        ),
        (_alias, "Service shop/old is an alias"),
        (_route, "VirtualService shop/v sends to apisix-gateway"),
        (_ingress, "Ingress shop/i is served by APISIX"),
        (_ingress_of_a_renamed_class, "Ingress shop/i is served by APISIX"),
        (_ingress_of_the_default_class, "Ingress shop/i is served by APISIX"),
        (_api_route, "HTTPRoute shop/r sends to apisix-gateway.apisix"),
        (_api_mirror, "GRPCRoute shop/r sends to apisix-gateway.apisix"),
        (_api_gateway, "Gateway shop/g is served by APISIX"),
        (_mirror, "VirtualService shop/v sends to apisix-gateway"),
        (_tcp_route, "VirtualService shop/v sends to apisix-gateway"),
        (_service_entry, "ServiceEntry shop/e sends to apisix-gateway"),
        (_alien_job, "CronJob apisix/backup is not a part of APISIX"),
        (_volume, "volume pv1 would be destroyed"),
        (_volume_of_a_set, "volume pv1 would be destroyed"),
        (_blind, "cannot be seen whether the namespace holds certificates.cert-manager.io"),
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
        cleanup.export(params, cluster, plan)
