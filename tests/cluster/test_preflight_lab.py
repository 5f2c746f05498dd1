"""Each condition is made on the lab's real parts, and preflight names it with its remedy.

API server, Prometheus, Route 53 and Admin API are asked by the least-privilege account; what no real part can
be brought to (an old cluster, the quota of an account) is in test_cluster_preflight.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from gateshift.cluster import install, preflight
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.lab import topology
from gateshift.lab.sidecars import lab_api
from gateshift.lab.state import LabState
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.inputs import resolvers
from gateshift.runbook.setup import Preflight
from tests.cluster.operating import PARAMS, SHOP, added, altered, item, own_lab, until
from tests.cluster.test_cluster_preflight import tls_secret

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAME = "before"
HOME = "istio-system"
ISTIO = "networking.istio.io/v1"
SECURITY = "security.istio.io/v1"
Made = AbstractContextManager[object]


@dataclass
class World:
    """A lab as it is before a migration, with Istio's definitions, so that objects of others can exist."""

    running: LabState
    admin: Cluster
    outputs: Path
    base: list[Check] = field(default_factory=list)
    took: float = 0.0

    def checks(self, only: str = "", **overrides: Any) -> list[Check]:
        """What ``00_preflight`` finds with these params (``__`` stands for a dot)."""
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        given |= {"migration": NAME, "outputs": str(self.outputs)}
        runbook = Preflight(load(PARAMS, overrides=given, resolvers=resolvers()), {})
        try:
            return list(
                preflight.run(
                    runbook.params,
                    runbook.context.cluster,
                    read_traffic=runbook._read_traffic,
                    read_metrics=runbook._read_metrics,
                    only=[only] if only else (),
                )
            )
        finally:
            runbook.close()

    def requests(self) -> None:
        """Some requests to the old gateway."""
        url, head = f"http://{self.running['apisix_http']}/api/v1/auth/login", {"host": topology.HOST_API}
        with httpx.Client(trust_env=False, timeout=5) as client:
            for _ in range(5):
                client.post(url, headers=head, json={"user": "probe"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with own_lab(NAME, tmp_path_factory.mktemp("state")) as running:
        admin = Cluster.connect(ClusterParams(kubeconfig=running["kubeconfig"]))
        params = load(PARAMS, overrides={"migration": NAME}, resolvers=resolvers())
        for one in install.manifests(params):
            if one["kind"] == "CustomResourceDefinition":
                admin.create(one)
        pod = {"containers": [{"name": "shop", "image": "shop"}]}
        admin.create(item("v1", "Namespace", HOME))
        admin.create(item("v1", "Namespace", "mesh"))
        admin.create(item("v1", "Pod", "shop", SHOP, metadata={"labels": {"app": "shop"}}, spec=pod))
        found = World(running, admin, tmp_path_factory.mktemp("outputs"))
        assert until(lambda: admin.list("PeerAuthentication") == [], 30)
        begun = time.monotonic()
        found.base = found.checks()
        found.took = time.monotonic() - begun
        yield found


def hits(checks: list[Check], name: str, status: str, said: str) -> bool:
    return any(
        c.name == name and c.status == status and said in f"{c.measured}\n{c.why}\n{c.remedy}" for c in checks
    )


# -- as the lab is: one node, no disruption budget, nothing pinned, no request yet -------------------------

AS_IT_IS = [
    ("cluster identity", "warn", "set cluster.uid: "),
    ("spread", "warn", "use at least two nodes"),
    ("disruption budgets", "warn", "kubectl -n apisix create pdb"),
    ("APISIX settings", "warn", "set apisix.router in params"),
    ("load balancer", "warn", "aws-load-balancer-type=nlb"),
    ("certificates", "warn", "no TLS Secret in istio-system"),
    ("load balancer quota", "warn", "aws-load-balancer-type in istio.gateway_annotations"),
    ("metrics", "fail", "enable APISIX's prometheus plugin"),
]


@pytest.mark.parametrize(("name", "status", "said"), AS_IT_IS)
def test_what_the_lab_lacks_is_named(world: World, name: str, status: str, said: str) -> None:
    assert hits(world.base, name, status, said), [c for c in world.base if c.name == name]


def test_all_the_rest_passes(world: World) -> None:
    expected = {name for name, *_ in AS_IT_IS}
    assert {c.name: c.measured for c in world.base if c.status != "pass" and c.name not in expected} == {}
    assert len(world.base) >= 30
    assert world.took < 20


# -- conditions ------------------------------------------------------------------------------------------


def objects(*made: dict[str, Any]) -> Callable[[World], Made]:
    return lambda w: added(w.admin, *made)


def change(
    kind: str, name: str, namespace: str | None, by: Callable[[Any], object]
) -> Callable[[World], Made]:
    return lambda w: altered(w.admin, kind, name, namespace, by)


def nothing(_: World) -> Made:
    return contextlib.nullcontext()


def quota(namespace: str, **hard: str) -> Callable[[World], Made]:
    """A quota whose usage the controller has counted."""

    @contextmanager
    def made(w: World) -> Iterator[None]:
        spec = {"hard": {k.replace("_", "."): v for k, v in hard.items()}}
        with added(w.admin, item("v1", "ResourceQuota", "q", namespace, spec=spec)):
            assert until(lambda: (w.admin.get("ResourceQuota", "q", namespace) or {}).get("status"), 30)
            yield

    return made


def deployment(name: str, namespace: str, replicas: int = 0, **metadata: Any) -> dict[str, Any]:
    labels = {"app": name}
    containers = [{"name": name, "image": f"docker.io/istio/{name}:1.27.3"}]
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
    }
    return item("apps/v1", "Deployment", name, namespace, metadata={"labels": labels, **metadata}, spec=spec)


def ztunnel() -> dict[str, Any]:
    spec = deployment("ztunnel", "mesh")["spec"]
    del spec["replicas"]
    spec["template"]["spec"]["nodeSelector"] = {"nowhere": "true"}
    return item("apps/v1", "DaemonSet", "ztunnel", "mesh", metadata={"labels": {"app": "ztunnel"}}, spec=spec)


def label(namespace: str, **labels: str) -> Callable[[World], Made]:
    return change("Namespace", namespace, None, lambda n: n["metadata"]["labels"].update(labels))


def strict(namespace: str, **spec: Any) -> Callable[[World], Made]:
    return objects(item(SECURITY, "PeerAuthentication", "p", namespace, spec=spec))


def ingress(*peers: dict[str, Any]) -> Callable[[World], Made]:
    rules = [{"from": list(peers)}] if peers else []
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}
    return objects(item("networking.k8s.io/v1", "NetworkPolicy", "deny", SHOP, spec=spec))


def egress(namespace: str, *peers: dict[str, Any]) -> Callable[[World], Made]:
    rules = [{"to": list(peers)}] if peers else []
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": rules}
    return objects(item("networking.k8s.io/v1", "NetworkPolicy", "out", namespace, spec=spec))


def definition(group: str, kind: str, plural: str, version: str) -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": {"kind": kind, "plural": plural},
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    return item("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"{plural}.{group}", spec=spec)


@contextmanager
def cilium(w: World) -> Iterator[None]:
    with added(w.admin, definition("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies", "v2")):
        assert until(lambda: served(w, "/apis/cilium.io/v2"), 30)
        yield
    assert until(lambda: not served(w, "/apis/cilium.io/v2"), 30)


def served(w: World, path: str) -> bool:
    with lab_api(w.running) as api:
        return api.get(path) is not None


def port(name: str, number: int, **spec: Any) -> Callable[[World], Made]:
    return objects(
        item("v1", "Service", "extra", SHOP, spec={"ports": [{"name": name, "port": number}], **spec})
    )


def balancer(**annotations: str) -> Callable[[World], Made]:
    given = {k.replace("_", "-"): v for k, v in annotations.items()}
    keys = {f"service.beta.kubernetes.io/aws-load-balancer-{k}": v for k, v in given.items()}
    return change("Service", "apisix-gateway", "apisix", lambda s: s["metadata"]["annotations"].update(keys))


def claim(policy: str, volume: bool = True) -> Callable[[World], Made]:
    @contextmanager
    def made(w: World) -> Iterator[None]:
        size = {"storage": "1Gi"}
        bound = {"namespace": "apisix", "name": "data"}
        pv = item(
            "v1",
            "PersistentVolume",
            "pv1",
            spec={
                "capacity": size,
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": "/var/nothing"},
                "persistentVolumeReclaimPolicy": policy,
                "claimRef": bound,
            },
        )
        spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": size}}
        pvc = item("v1", "PersistentVolumeClaim", "data", "apisix", spec={**spec, "volumeName": "pv1"})

        def phase() -> str:
            live = w.admin.get("PersistentVolumeClaim", "data", "apisix") or {}
            return str(live.get("status", {}).get("phase"))

        with added(w.admin, *([pv] if volume else []), pvc):
            assert until(lambda: phase() == ("Bound" if volume else "Pending"), 30)
            yield

    return made


@contextmanager
def stuck_budget(w: World) -> Iterator[None]:
    chosen = {"matchLabels": {"app.kubernetes.io/name": "apisix"}}
    spec = {"minAvailable": 2, "selector": chosen}

    def counted() -> bool:
        live = w.admin.get("PodDisruptionBudget", "apisix", "apisix") or {}
        return bool(live.get("status", {}).get("expectedPods"))

    with added(w.admin, item("policy/v1", "PodDisruptionBudget", "apisix", "apisix", spec=spec)):
        assert until(counted, 60)
        yield


def settings(text: str) -> Callable[[World], Made]:
    return objects(item("v1", "ConfigMap", "apisix", "apisix", data={"config.yaml": text}))


def lease(seconds: float) -> Callable[[World], Made]:
    def made(w: World) -> Made:
        when = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": "far", "leaseDurationSeconds": 40, "renewTime": when}
        return added(w.admin, item("coordination.k8s.io/v1", "Lease", "far", "kube-node-lease", spec=spec))

    return made


def replicas(count: int) -> Callable[[World], Made]:
    @contextmanager
    def made(w: World) -> Iterator[None]:
        def there() -> int:
            return len(w.admin.list("Pod", "apisix", labels="app.kubernetes.io/name=apisix"))

        with altered(w.admin, "Deployment", "apisix", "apisix", lambda d: d["spec"].update(replicas=count)):
            assert until(lambda: there() == count, 60)
            yield

        def ready() -> int:
            live = w.admin.get("Deployment", "apisix", "apisix") or {}
            return int(live.get("status", {}).get("readyReplicas", 0))

        assert until(lambda: ready() == 2, 60)

    return made


@contextmanager
def by_address(w: World) -> Iterator[None]:
    ports = [{"name": "http", "port": 80}]
    with added(
        w.admin, item("v1", "Service", "by-ip", "apisix", spec={"type": "LoadBalancer", "ports": ports})
    ):
        with lab_api(w.running) as api:
            status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}
            api.merge("/api/v1/namespaces/apisix/services/by-ip/status", status)
        yield


def certificate(**values: Any) -> Callable[[World], Made]:
    def made(w: World) -> Made:
        data = tls_secret(**{"name": topology.HOST_API, **values})
        return added(w.admin, item("v1", "Secret", "tls", HOME, type="kubernetes.io/tls", data=data))

    return made


@contextmanager
def record_gone(w: World) -> Iterator[None]:
    client: Any = boto3.client(
        "route53",
        endpoint_url=w.running["route53_url"],
        region_name="us-east-1",
        aws_access_key_id="lab",
        aws_secret_access_key="lab",
    )
    zone, name = w.running["zone_id"], f"{topology.HOST_WS}."
    sets = client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    (found,) = [r for r in sets if r["Name"] == name]

    def send(action: str) -> None:
        change = {"Action": action, "ResourceRecordSet": found}
        client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": [change]})

    send("DELETE")
    yield
    send("CREATE")


@contextmanager
def leaving(w: World) -> Iterator[None]:
    """A namespace that is being deleted and cannot end."""
    held = item("v1", "ConfigMap", "held", "leaving", metadata={"finalizers": ["example.com/never"]})
    w.admin.create(item("v1", "Namespace", "leaving"))
    w.admin.create(held)
    w.admin.delete("Namespace", "leaving")
    yield

    def ending() -> dict[str, Any] | None:
        live = w.admin.get("ConfigMap", "held", "leaving")
        return live if live and live["metadata"].get("deletionTimestamp") else None

    assert until(ending, 60)
    live = ending()
    assert live
    live["metadata"]["finalizers"] = []
    w.admin.update(live)
    assert until(lambda: w.admin.get("Namespace", "leaving") is None, 60)


@contextmanager
def quiet(w: World) -> Iterator[None]:
    w.requests()
    time.sleep(7)  # longer than the scrapes that are looked at
    yield


def denied(verb: str, resource: str) -> Callable[[World], Made]:
    def less(role: Any) -> None:
        for rule in role["rules"]:
            if resource in rule["resources"] and verb in rule["verbs"]:
                others = [r for r in rule["resources"] if r != resource]
                kept = [v for v in rule["verbs"] if v != verb]
                role["rules"].append({**rule, "resources": [resource], "verbs": kept})
                rule["resources"] = others
        role["rules"] = [r for r in role["rules"] if r["resources"] and r["verbs"]]

    return change("ClusterRole", "gateshift", None, less)


ROOM = {"cpu_request": "1000m", "cpu_limit": "40", "memory_request": "1Gi", "memory_limit": "2Gi"}
HOOK = {
    "name": "gone.example.com",
    "failurePolicy": "Fail",
    "sideEffects": "None",
    "admissionReviewVersions": ["v1"],
    "clientConfig": {"service": {"name": "gone", "namespace": "mesh"}, "caBundle": ""},
    "rules": [
        {"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}
    ],
}
HELM = {"meta.helm.sh/release-name": "istiod"}
FROM_APISIX = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apisix"}}}
SELECTED = {"istio": "ingressgateway"}
SERVER = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
TO = {"route": [{"destination": {"host": "identity-service"}}]}
ZONE = {"traffic__route53__record": "cname", "traffic__route53__ttl": "3600s"}
CLOSED = "http://127.0.0.1:1"
ACCOUNT = "admissionregistration.k8s.io/v1"

Case = tuple[Callable[[World], Made], dict[str, Any], str, str, str, str]
CASES: dict[str, Case] = {
    # condition: (made by, params, item, check, status, part of what is said or of the remedy)
    "verb denied": (
        denied("patch", "deployments"),
        {},
        "permissions",
        "permissions",
        "fail",
        "patch deployments.apps",
    ),
    "log denied": (denied("get", "pods/log"), {}, "permissions", "permissions", "fail", "kind: ClusterRole"),
    "nodes cordoned": (
        change("Node", "lab-node", None, lambda n: n["spec"].update(unschedulable=True)),
        *({}, "nodes", "nodes", "fail", "make nodes schedulable"),
    ),
    "no room": (
        nothing,
        {
            "istio__gateway": {
                "replicas_min": 3,
                "replicas_max": 10,
                "resources": {**ROOM, "cpu_request": "40"},
            }
        },
        *("nodes", "room at minimum", "fail", "add nodes"),
    ),
    "no room at the ceiling": (
        nothing,
        {"istio__gateway": {"replicas_min": 3, "replicas_max": 90, "resources": ROOM}},
        *("nodes", "room at HPA ceiling", "warn", "add nodes"),
    ),
    "cpu quota": (quota(HOME, requests_cpu="4"), {}, "quota", "quota", "fail", "has room for 4"),
    "memory quota": (quota(HOME, limits_memory="8Gi"), {}, "quota", "quota", "fail", "limits.memory"),
    "pods quota": (quota(HOME, pods="2"), {}, "quota", "quota", "fail", "has room for 2"),
    "balancer quota": (
        quota(HOME, services_loadbalancers="0"),
        *({}, "quota", "quota", "fail", "services.loadbalancers"),
    ),
    "limit range": (
        objects(
            item(
                "v1",
                "LimitRange",
                "l",
                HOME,
                spec={"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
            )
        ),
        *({}, "quota", "quota", "fail", "LimitRange l"),
    ),
    "sidecars over quota": (
        quota(SHOP, requests_cpu="50m"),
        *({}, "sidecars", "sidecars", "warn", f"raise the quota of {SHOP}"),
    ),
    "namespace misspelt": (
        nothing,
        {"cluster__application_namespace": "voiceasistant"},
        *("namespaces", "namespace of application", "fail", "voiceasistant does not exist"),
    ),
    "namespace terminating": (
        leaving,
        {"cluster__application_namespace": "leaving"},
        *("namespaces", "namespace of application", "fail", "being deleted"),
    ),
    "Helm owns istiod": (
        objects(deployment("istiod", HOME, annotations=HELM)),
        *({}, "istio already there", "istio already there", "fail", "Helm release istiod"),
    ),
    "another Istio": (
        objects(deployment("istiod", "mesh")),
        *({}, "istio already there", "istio already there", "warn", "mesh/istiod"),
    ),
    "istiod far away": (
        objects(deployment("istiod", "mesh")),
        *({}, "istioctl", "istioctl and istiod", "fail", "one minor version"),
    ),
    "ambient": (
        objects(ztunnel()),
        *({}, "istio already there", "ambient mesh", "warn", "dataplane-mode=none"),
    ),
    "APISIX labelled for injection": (
        label("apisix", **{"istio-injection": "enabled"}),
        *({}, "injection", "injection", "warn", "istio-injection-"),
    ),
    "both labels": (
        label(SHOP, **{"istio-injection": "enabled", "istio.io/rev": "x"}),
        *({}, "injection", "injection labels", "warn", "wins over"),
    ),
    "STRICT": (strict(SHOP, mtls={"mode": "STRICT"}), {}, "mTLS mode", "mTLS mode", "fail", f"{SHOP}/p"),
    "STRICT in the whole mesh": (
        strict(HOME, mtls={"mode": "STRICT"}),
        *({}, "mTLS mode", "mTLS mode", "fail", "set PERMISSIVE"),
    ),
    "STRICT at one port": (
        strict(SHOP, selector={"matchLabels": {"app": "shop"}}, portLevelMtls={8080: {"mode": "STRICT"}}),
        *({}, "mTLS mode", "mTLS mode", "fail", f"{SHOP}/p"),
    ),
    "a policy for APISIX only": (
        ingress(FROM_APISIX),
        *({}, "network policies", "network policies", "fail", f"allow ingress from namespace {HOME}"),
    ),
    "a policy that denies all": (
        ingress(),
        {},
        "network policies",
        "network policies",
        "fail",
        f"{SHOP}/deny",
    ),
    "a policy with an IP block": (
        ingress({"ipBlock": {"cidr": "10.0.0.0/8"}}),
        *({}, "network policies", "network policies", "warn", "hold the pods"),
    ),
    "a policy for a label": (
        ingress({"namespaceSelector": {"matchLabels": {"role": "edge"}}}),
        *({}, "network policies", "network policies", "fail", f"{SHOP}/deny"),
    ),
    "the gateway may not go out": (
        egress(HOME),
        *({}, "network policies", "policies of the gateways", "fail", "allow egress"),
    ),
    "APISIX may not go out": (
        egress("apisix", {"podSelector": {}}),
        *({}, "network policies", "policies of the gateways", "fail", "apisix/out"),
    ),
    "policies of Cilium": (cilium, {}, "network policies", "other policies", "warn", "by hand"),
    "a port without protocol": (
        port("web", 80),
        {},
        "service ports",
        "service ports",
        "warn",
        "extra:80 (web)",
    ),
    "a port named https": (port("https", 443), {}, "service ports", "https ports", "warn", "opaque TLS"),
    "headless": (
        port("http", 80, clusterIP="None"),
        {},
        "service kinds",
        "headless services",
        "warn",
        "extra",
    ),
    "an external name": (
        port("http", 80, type="ExternalName", externalName="x.example.com"),
        *({}, "service kinds", "service kinds", "warn", "use a ServiceEntry"),
    ),
    "an internal load balancer": (
        balancer(scheme="internal"),
        *({}, "load balancer", "load balancer", "warn", "aws-load-balancer-scheme=internal"),
    ),
    "TLS at the load balancer": (
        balancer(ssl_cert="arn:aws:acm:x"),
        *({}, "load balancer", "TLS at the load balancer", "warn", "same certificate"),
    ),
    "client addresses": (
        change(
            "Service", "apisix-gateway", "apisix", lambda s: s["spec"].update(externalTrafficPolicy="Local")
        ),
        *({}, "load balancer", "client addresses", "warn", "external_traffic_policy: Local"),
    ),
    "routes of somebody else": (
        objects(
            item(ISTIO, "VirtualService", "old", HOME, spec={"hosts": [topology.HOST_API], "http": [TO]})
        ),
        *({}, "other Istio objects", "other Istio objects", "fail", f"VirtualService {HOME}/old also serves"),
    ),
    "a gateway of somebody else": (
        objects(item(ISTIO, "Gateway", "old", HOME, spec={"selector": SELECTED, "servers": [SERVER]})),
        *({}, "other Istio objects", "other Istio objects", "fail", f"Gateway {HOME}/old"),
    ),
    "an ALLOW policy": (
        objects(item(SECURITY, "AuthorizationPolicy", "p", HOME, spec={"rules": [{}]})),
        *({}, "other Istio objects", "ALLOW policy at the gateway", "fail", "narrow its selector"),
    ),
    "a filter for every proxy": (
        objects(item("networking.istio.io/v1alpha3", "EnvoyFilter", "f", HOME, spec={"configPatches": []})),
        *({}, "other Istio objects", "EnvoyFilter for every proxy", "warn", "workloadSelector"),
    ),
    "a volume that would be destroyed": (
        claim("Delete"),
        {},
        "storage",
        "storage",
        "warn",
        "kubectl patch pv",
    ),
    "a volume that is not bound": (
        claim("Retain", volume=False),
        {},
        "storage",
        "storage",
        "fail",
        "not bound: data",
    ),
    "a budget that never allows": (
        stuck_budget,
        *({}, "disruption budgets", "disruption budgets", "warn", "one pod more"),
    ),
    "another router": (
        settings("apisix: {router: {http: radixtree_uri}}"),
        *({}, "APISIX settings", "APISIX settings", "fail", "set apisix.router: radixtree_uri"),
    ),
    "standalone": (
        settings("deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}"),
        *({}, "APISIX settings", "APISIX deployment mode", "fail", "apisix.files"),
    ),
    "a data plane": (
        settings("deployment: {role: data_plane}"),
        *({}, "APISIX settings", "APISIX deployment mode", "warn", "control plane of this data plane"),
    ),
    "a dead webhook": (
        objects(item(ACCOUNT, "ValidatingWebhookConfiguration", "gone", webhooks=[HOOK])),
        *({}, "webhooks", "webhooks", "fail", "mesh/gone"),
    ),
    "a clock ahead": (lease(40), {}, "clocks", "clocks", "warn", "check NTP on these nodes"),
    "a silent node": (lease(-600), {}, "clocks", "clocks", "warn", "silent"),
    "kubectl missing": (
        nothing,
        {"istio__kubectl": "/none/kubectl"},
        "kubectl",
        "kubectl",
        "fail",
        "istio.kubectl",
    ),
    "istioctl missing": (
        nothing,
        {"istio__istioctl": "/none/i"},
        "istioctl",
        "istioctl",
        "fail",
        "not found",
    ),
    "istioctl of another version": (
        nothing,
        {"istio__version": "1.30.0"},
        *("istioctl", "istioctl", "fail", "1.31.0, but istio.version is 1.30.0"),
    ),
    "istioctl of another patch": (
        nothing,
        {"istio__version": "1.31.2"},
        *("istioctl", "istioctl", "warn", "same patch"),
    ),
    "another Service": (
        nothing,
        {"apisix__service": "gone"},
        *("APISIX pods", "APISIX pods", "fail", "correct apisix.namespace and apisix.service"),
    ),
    "one pod": (replicas(1), {}, "APISIX pods", "APISIX pods", "warn", "run at least two"),
    "no pod": (replicas(0), {}, "APISIX pods", "APISIX pods", "fail", "0 of 0"),
    "no load balancer": (
        objects(item("v1", "Service", "inner", "apisix", spec={"ports": [{"name": "http", "port": 80}]})),
        {"apisix__service": "inner"},
        *("APISIX address", "APISIX address", "fail", ""),
    ),
    "an IP address": (
        by_address,
        {"apisix__service": "by-ip"},
        *("APISIX address", "APISIX address", "fail", "alias record needs"),
    ),
    "Admin API down": (
        nothing,
        {"apisix__admin_url": CLOSED},
        *("APISIX configuration", "APISIX configuration", "fail", ""),
    ),
    "Admin API with another key": (
        nothing,
        {"apisix__admin_key": "not-the-key"},
        *("APISIX configuration", "APISIX configuration", "fail", "key"),
    ),
    "an expired certificate": (
        certificate(days=-3),
        *({}, "certificates", "certificate tls", "fail", "expired 3 days ago"),
    ),
    "a certificate that expires": (
        certificate(days=5),
        {},
        "certificates",
        "certificate tls",
        "fail",
        "expires in",
    ),
    "a certificate of another host": (
        certificate(name="other.example.com"),
        *({}, "certificates", "hosts without certificate", "fail", topology.HOST_API),
    ),
    "the key of another certificate": (
        certificate(other_key=True),
        *({}, "certificates", "certificate tls", "fail", "key does not"),
    ),
    "a credential that is not there": (
        nothing,
        {"translate__credentials": {"1": "shop-tls"}},
        *("certificates", "certificates", "fail", "create these TLS Secrets"),
    ),
    "a record that is not there": (record_gone, {}, "DNS", "DNS", "fail", topology.HOST_WS),
    "no hosted zone": (
        nothing,
        {"traffic__route53__zone": "example.org"},
        "DNS",
        "DNS",
        "fail",
        "example.org",
    ),
    "a TTL that is too long": (nothing, ZONE, "DNS", "DNS TTL", "fail", "at most"),
    "Prometheus down": (nothing, {"metrics__url": CLOSED}, "metrics", "metrics", "fail", "metrics.url"),
    "no traffic": (quiet, {}, "metrics", "metrics", "warn", "judging needs traffic"),
}


@pytest.mark.parametrize("condition", CASES)
def test_the_condition_is_named_with_its_remedy(world: World, condition: str) -> None:
    made, params, only, name, status, said = CASES[condition]
    assert not hits(world.base, name, status, said), "it is so without the condition"
    with made(world):
        found = world.checks(only, **params)
    assert hits(found, name, status, said), found
    assert all(c.remedy for c in found if c.status != "pass")


def test_healed_it_is_as_before(world: World) -> None:
    assert len(CASES) >= 40

    def told(checks: list[Check]) -> dict[str, str]:
        return {c.name: c.status for c in checks if c.name != "metrics"}

    def judged() -> bool:
        world.requests()
        return hits(world.checks("metrics"), "metrics", "pass", "APISIX requests")

    assert until(judged, 20)
    assert told(world.checks()) == told(world.base)
