from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto import mock_aws

from gateshift import traffic
from gateshift.cluster import capacity, preflight
from gateshift.cluster.checks import Check, Item, passed, run_items
from gateshift.cluster.client import Cluster
from gateshift.cluster.permissions import cluster_role, covered
from gateshift.errors import MetricsError
from gateshift.traffic.protocol import HostWeights
from tests.cluster.conftest import FakeApi, make_params

ROOMS = Path(preflight.__file__).parent
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


@dataclass
class Weights:
    istio_percent: int | None = 0
    hosts: dict[str, int] = field(default_factory=lambda: {"api.shop.com": 1})
    prepared: bool = True
    problems: tuple[str, ...] = ()


@dataclass
class World:
    """A healthy world; each test breaks one thing of it."""

    api: FakeApi
    folder: Path
    kubeconfig: str
    patch: pytest.MonkeyPatch
    sections: dict[str, Any] = field(default_factory=dict)
    traffic: Callable[[], Any] = Weights
    metrics: Callable[[], float | None] = lambda: 120.0
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def tool(self, name: str, printed: str) -> str:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)


def tls_secret(name: str = "api.shop.com", days: float = 90.0, other_key: bool = False) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kept = ec.generate_private_key(ec.SECP256R1()) if other_key else key
    pem = kept.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    crt = certificate.public_bytes(serialization.Encoding.PEM)
    return {"tls.crt": base64.b64encode(crt).decode(), "tls.key": base64.b64encode(pem).decode()}


def node(api: FakeApi, name: str, cpu: str = "32") -> dict[str, Any]:
    resources = {"cpu": cpu, "memory": "64Gi", "pods": "110"}
    return api.add(
        "Node", name, status={"allocatable": resources, "conditions": READY["conditions"]}, spec={}
    )


@pytest.fixture
def world(api: FakeApi, kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    for key in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(key, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("shop", "apisix", "istio-system"):
        api.add("Namespace", name, status={"phase": "Active"})
    node(api, "n1")
    node(api, "n2")
    api.add("Lease", "n1", "kube-node-lease", spec={"renewTime": datetime.now(UTC).isoformat()})
    labels = {"app": "apisix"}
    balancer = {"loadBalancer": {"ingress": [{"hostname": "old.elb.example.com"}]}}
    spec = {"type": "LoadBalancer", "selector": labels}
    api.add("Service", "apisix-gateway", "apisix", spec=spec, status=balancer)
    for n in "12":
        api.add("Pod", f"a{n}", "apisix", metadata={"labels": labels}, status=dict(READY), spec={})
    api.add("PodDisruptionBudget", "apisix", "apisix", spec={"selector": {"matchLabels": labels}})
    ports = [{"name": "http", "port": 80}, {"name": "grpc-api", "port": 90}]
    api.add("Service", "shop", "shop", spec={"clusterIP": "10.0.0.7", "ports": ports})
    api.add("Pod", "s1", "shop", metadata={"labels": {"app": "shop"}}, status=dict(READY), spec={})
    setting = "apisix:\n  router: {http: radixtree_host_uri}\ndeployment: {role: traditional}\n"
    api.add("ConfigMap", "apisix", "apisix", data={"config.yaml": setting})
    api.add("Secret", "tls", "istio-system", type="kubernetes.io/tls", data=tls_secret())
    made = World(api, tmp_path, kubeconfig, monkeypatch)
    made.sections["apisix"] = {"router": "radixtree_host_uri"}
    made.sections["istio"] = {
        "kubectl": made.tool("kubectl", '{"clientVersion": {"gitVersion": "v1.34.1"}}'),
        "istioctl": made.tool("istioctl", '{"clientVersion": {"version": "1.31.0"}}'),
    }
    with made.stack:
        yield made


def run(world: World, cluster: Cluster, *, permissions: bool = False) -> dict[str, Check]:
    params = make_params(world.kubeconfig, **world.sections)
    names = [
        i.name
        for i in preflight.items(params, cluster, read_traffic=world.traffic, read_metrics=world.metrics)
    ]
    found = preflight.run(
        params,
        cluster,
        read_traffic=world.traffic,
        read_metrics=world.metrics,
        only=[n for n in names if permissions or n != "permissions"],  # 130 reviews: only where it matters
    )
    return {c.name: c for c in found}


def test_healthy_world_passes_and_asks_only_listed_permissions(world: World, cluster: Cluster) -> None:
    begun = time.monotonic()
    checks = run(world, cluster, permissions=True)
    assert {n: c.measured for n, c in checks.items() if c.status != "pass"} == {}
    assert time.monotonic() - begun < 20
    assert not covered(cluster.calls)


def test_the_gateway_api_is_asked_for_only_where_its_routes_are_wanted(
    world: World, cluster: Cluster
) -> None:
    assert "not asked for" in run(world, cluster)["Gateway API"].measured
    world.sections["translate"] = {"output": "gateway-api"}
    assert run(world, cluster)["Gateway API"].measured.endswith("are served")


def _no_gateway_api(world: World) -> None:
    world.sections["translate"] = {"output": "gateway-api"}
    world.api.kinds -= {("gateway.networking.k8s.io/v1", kind) for kind in ("HTTPRoute", "Gateway")}


def _zone(ttl: int, *, prepared: bool) -> Any:
    """What Route 53's records say, as the shifter reads them."""
    host = HostWeights("api.shop.com", 0.0, prepared, ttl=ttl)
    return traffic.Weights(0, {"api.shop.com": host})


NLB = "old-1234.elb.eu-central-1.amazonaws.com"
KIND = "service.beta.kubernetes.io/aws-load-balancer-type"


def _aws(w: World, *, balancers: int | None = 0, kind: str = "external") -> None:
    """An AWS account behind moto with so many network load balancers of 20 allowed; None: no credentials."""
    live = w.api.find("Service", "apisix-gateway", "apisix")
    assert live
    live["status"] = {"loadBalancer": {"ingress": [{"hostname": NLB}]}}
    _istio(w, gateway_annotations={KIND: kind} if kind else {})
    if balancers is None:
        return
    w.stack.enter_context(mock_aws())
    client = boto3.client("elbv2", "eu-central-1")
    subnet = boto3.client("ec2", "eu-central-1").describe_subnets()["Subnets"][0]["SubnetId"]
    for n in range(balancers):
        client.create_load_balancer(Name=f"lb{n}", Type="network", Subnets=[subnet])


def _admin_api(w: World, *routes: dict[str, Any]) -> None:
    """APISIX's Admin API with these routes."""

    class Admin(BaseHTTPRequestHandler):
        server_version, sys_version = "APISIX/3.9.1", ""

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            listed = [{"key": f"/apisix/routes/{r['id']}", "value": r} for r in routes]
            here = self.path.partition("?")[0].endswith("/routes")
            data = json.dumps({"total": len(listed), "list": listed} if here else {}).encode()
            self.send_response(200 if here else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    w.stack.callback(server.server_close)
    w.stack.callback(server.shutdown)
    _apisix(w, files=[], admin_url=f"http://127.0.0.1:{server.server_port}", admin_key="k3y")


def _helm(w: World, version: str) -> None:
    w.tool("helm", version)
    w.patch.setenv("PATH", str(w.folder), prepend=os.pathsep)


def _pod(w: World, **status: Any) -> None:
    w.api.add("Pod", "a1", "apisix", metadata={"labels": {"app": "apisix"}}, status=status, spec={})


def _istio(w: World, **values: Any) -> None:
    w.sections["istio"] = {**w.sections["istio"], **values}


def _drop(w: World, kind: str, name: str, namespace: str = "") -> None:
    found = w.api.find(kind, name, namespace)
    assert found
    del w.api.objects[w.api.key(found)]


def _istiod(w: World, namespace: str, manager: str, tag: str = "") -> None:
    metadata = {"labels": {"app": "istiod"}, "managedFields": [{"manager": manager}]}
    containers = [{"name": "discovery", "image": f"docker.io/istio/pilot:{tag}"}]
    w.api.add(
        "Deployment",
        "istiod",
        namespace,
        metadata=metadata,
        spec={"template": {"spec": {"containers": containers}}},
    )


def _apisix(w: World, **values: Any) -> None:
    w.sections["apisix"] = {**w.sections["apisix"], **values}


def _settings(w: World, text: str) -> None:
    w.api.add("ConfigMap", "apisix", "apisix", data={"config.yaml": text})


def _service(w: World, **spec: Any) -> None:
    w.api.add("Service", "shop", "shop", spec={"clusterIP": "10.0.0.7", **spec})


def _old_service(w: World, **values: Any) -> None:
    live = w.api.find("Service", "apisix-gateway", "apisix")
    assert live
    live["metadata"]["annotations"] = values.pop("annotations", {})
    live["spec"].update(values)


def _egress(w: World, namespace: str, peers: list[Any]) -> None:
    rules = [{"to": peers}] if peers else []
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": rules}
    w.api.add("NetworkPolicy", "out", namespace, spec=spec)


def _claim(w: World, policy: str, phase: str = "Bound") -> None:
    w.api.add("PersistentVolume", "pv1", spec={"persistentVolumeReclaimPolicy": policy})
    status = {"phase": phase}
    w.api.add("PersistentVolumeClaim", "data", "apisix", spec={"volumeName": "pv1"}, status=status)


def _gateway(w: World, name: str, kind: str, **spec: Any) -> None:
    w.api.add(kind, name, "istio-system", spec=spec)


def _policy(w: World, peers: list[Any]) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}] if peers else []}
    w.api.add("NetworkPolicy", "deny", "shop", spec=spec)


def _webhook(w: World) -> None:
    service = {"name": "gone", "namespace": "kyverno"}
    hook = {"name": "kyverno.io", "failurePolicy": "Fail", "clientConfig": {"service": service}}
    w.api.add("ValidatingWebhookConfiguration", "kyverno", webhooks=[hook])


def _endpoint(w: World, *, ready: bool) -> None:
    w.api.add("Service", "gone", "kyverno", spec={})
    labels = {"kubernetes.io/service-name": "gone"}
    endpoints = [{"addresses": ["10.0.0.9"], "conditions": {"ready": ready}}]
    w.api.add("EndpointSlice", "gone-1", "kyverno", metadata={"labels": labels}, endpoints=endpoints)


def _raise(error: Exception) -> Any:
    raise error


def _quota(w: World, hard: dict[str, str], used: dict[str, str] | None = None) -> None:
    w.api.add("ResourceQuota", "q", "istio-system", spec={"hard": hard}, status={"used": used or {}})


def _limit(w: World, *, namespace: str = "istio-system", kind: str = "max", **bound: str) -> None:
    w.api.add("LimitRange", "l", namespace, spec={"limits": [{"type": "Container", kind: bound}]})


def _label(w: World, namespace: str, **labels: str) -> None:
    w.api.add("Namespace", namespace, metadata={"labels": labels}, status={"phase": "Active"})


def _tls(w: World, **values: Any) -> None:
    w.api.add("Secret", "tls", "istio-system", type="kubernetes.io/tls", data=tls_secret(**values))


def _lease(w: World, seconds: float) -> None:
    when = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    w.api.add("Lease", "n1", "kube-node-lease", spec={"renewTime": when})


def _route53(w: World, **values: Any) -> None:
    w.sections["traffic"] = {"route53": {"zone": "shop.com", "hosts": ["api.shop.com"], **values}}


INGRESS = {"istio": "ingressgateway"}
CASES: dict[str, tuple[Callable[[World], Any], str, str, str]] = {
    # condition: (inject, check, status, part of what is said or of the remedy)
    "Gateway API missing": (
        _no_gateway_api,
        "Gateway API",
        "fail",
        "the cluster does not serve Gateway, HTTPRoute",
    ),
    "old cluster": (lambda w: setattr(w.api, "version", "v1.25.9"), "cluster version", "fail", "1.26"),
    "not pinned": (
        lambda w: w.sections.update(cluster={"uid": None}),
        "cluster identity",
        "warn",
        "set cluster.uid: cluster-uid",
    ),
    "verb denied": (
        lambda w: w.api.denied.add(("patch", "gateways")),
        "permissions",
        "fail",
        "kind: ClusterRole",
    ),
    "log denied": (lambda w: w.api.denied.add(("get", "pods")), "permissions", "fail", "get pods"),
    "nodes cordoned": (
        lambda w: [w.api.find("Node", n)["spec"].update(unschedulable=True) for n in ("n1", "n2")],  # type: ignore[index]
        "nodes",
        "fail",
        "schedulable",
    ),
    "no room": (
        lambda w: [node(w.api, n, "1") for n in ("n1", "n2")],
        "room at minimum",
        "fail",
        "add nodes",
    ),
    "no room at ceiling": (
        lambda w: [node(w.api, n, "4") for n in ("n1", "n2")],
        "room at HPA ceiling",
        "warn",
        "add nodes",
    ),
    "one node": (lambda w: _drop(w, "Node", "n2"), "spread", "warn", "two nodes"),
    "cpu quota": (lambda w: _quota(w, {"requests.cpu": "4"}), "quota", "fail", "has room for 4"),
    "memory quota": (lambda w: _quota(w, {"limits.memory": "8Gi"}), "quota", "fail", "limits.memory"),
    "pods quota": (lambda w: _quota(w, {"pods": "10"}, {"pods": "8"}), "quota", "fail", "has room for 2"),
    "balancer quota": (
        lambda w: _quota(w, {"services.loadbalancers": "1"}, {"services.loadbalancers": "1"}),
        "quota",
        "fail",
        "services.loadbalancers",
    ),
    "limit range": (lambda w: _limit(w, memory="1Gi"), "quota", "fail", "LimitRange l"),
    "node ports quota": (lambda w: _quota(w, {"services.nodeports": "0"}), "quota", "fail", "nodeports"),
    "deployments quota": (
        lambda w: _quota(w, {"count/deployments.apps": "1"}),
        "quota",
        "fail",
        "count/deployments.apps has room for 1, 2 are needed",
    ),
    "quota used up by what runs, with the HPA below its ceiling": (
        lambda w: [_istiod(w, "istio-system", "gateshift"), _quota(w, {"cpu": "4"}, {"cpu": "4"})],
        "quota",
        "fail",
        "cpu has room for 0, 12.500 are needed",
    ),
    "limit range with a ratio": (
        lambda w: _limit(w, kind="maxLimitRequestRatio", cpu="1"),
        "quota",
        "fail",
        "maxLimitRequestRatio of cpu is 1, ingress gateway has 2",
    ),
    "limit range with a minimum": (
        lambda w: _limit(w, kind="min", memory="1500Mi"),
        "quota",
        "fail",
        "min memory is 1500Mi, ingress gateway asks for",
    ),
    "limit range of the application": (
        lambda w: _limit(w, namespace="shop", kind="min", cpu="200m"),
        "sidecars",
        "warn",
        "min cpu is 200m, a sidecar asks for 0.1",
    ),
    "pools that are small": (
        lambda w: [
            node(w.api, name, "3")["metadata"].update(labels={"karpenter.sh/nodepool": name})
            for name in ("n1", "n2")
        ],
        "node pools",
        "warn",
        "no pool alone takes the minimum",
    ),
    "a pool that is small": (
        lambda w: node(w.api, "n1", "3")["metadata"].update(labels={"karpenter.sh/nodepool": "blue"}),
        "node pools",
        "warn",
        "the minimum does not fit into blue",
    ),
    "namespace misspelt": (
        lambda w: w.sections.update(cluster={"application_namespace": "shoop"}),
        "namespace of application",
        "fail",
        "shoop does not exist",
    ),
    "namespace terminating": (
        lambda w: w.api.add("Namespace", "apisix", status={"phase": "Terminating"}),
        "namespace of APISIX",
        "fail",
        "being deleted",
    ),
    "istio-system terminating": (
        lambda w: w.api.add("Namespace", "istio-system", status={"phase": "Terminating"}),
        "namespace of Istio",
        "fail",
        "finalizer",
    ),
    "helm owns istiod": (
        lambda w: _istiod(w, "istio-system", "helm"),
        "istio already there",
        "fail",
        "istio.revision",
    ),
    "another istio": (lambda w: _istiod(w, "mesh", "helm"), "istio already there", "warn", "mesh/istiod"),
    "ambient": (
        lambda w: w.api.add("DaemonSet", "ztunnel", "mesh", metadata={"labels": {"app": "ztunnel"}}),
        "ambient mesh",
        "warn",
        "dataplane-mode=none",
    ),
    "apisix labelled": (
        lambda w: _label(w, "apisix", **{"istio-injection": "enabled"}),
        "injection",
        "warn",
        "istio-injection-",
    ),
    "both labels": (
        lambda w: _label(w, "shop", **{"istio-injection": "enabled", "istio.io/rev": "x"}),
        "injection labels",
        "warn",
        "wins over",
    ),
    "strict": (
        lambda w: w.api.add("PeerAuthentication", "p", "shop", spec={"mtls": {"mode": "STRICT"}}),
        "mTLS mode",
        "fail",
        "PERMISSIVE",
    ),
    "mesh-wide strict": (
        lambda w: w.api.add("PeerAuthentication", "p", "istio-system", spec={"mtls": {"mode": "STRICT"}}),
        "mTLS mode",
        "fail",
        "istio-system/p",
    ),
    "policy for apisix only": (
        lambda w: _policy(
            w, [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apisix"}}}]
        ),
        "network policies",
        "fail",
        "allow ingress from namespace istio-system",
    ),
    "policy denies all": (lambda w: _policy(w, []), "network policies", "fail", "shop/deny"),
    "policy with an IP block": (
        lambda w: _policy(w, [{"ipBlock": {"cidr": "10.0.0.0/8"}}]),
        "network policies",
        "warn",
        "hold the pods",
    ),
    "policy for a role label": (
        lambda w: _policy(w, [{"namespaceSelector": {"matchLabels": {"role": "edge"}}}]),
        "network policies",
        "fail",
        "shop/deny",
    ),
    "policy at the gateway": (
        lambda w: w.api.add("NetworkPolicy", "n", "istio-system", spec={}),
        "policies of the gateways",
        "warn",
        "15012",
    ),
    "gateway may not go out": (
        lambda w: _egress(w, "istio-system", []),
        "policies of the gateways",
        "fail",
        "allow egress",
    ),
    "apisix may not go out": (
        lambda w: _egress(w, "apisix", [{"podSelector": {}}]),
        "policies of the gateways",
        "fail",
        "apisix/out",
    ),
    "cilium": (
        lambda w: w.api.kinds.add(("cilium.io/v2", "CiliumNetworkPolicy")),
        "other policies",
        "warn",
        "by hand",
    ),
    "port without protocol": (
        lambda w: _service(w, ports=[{"name": "web", "port": 80}]),
        "service ports",
        "warn",
        "shop:80 (web)",
    ),
    "https port": (
        lambda w: _service(w, ports=[{"name": "https", "port": 443}]),
        "https ports",
        "warn",
        "opaque TLS",
    ),
    "headless": (
        lambda w: _service(w, clusterIP="None", ports=[{"name": "http", "port": 80}]),
        "headless services",
        "warn",
        "shop",
    ),
    "external name": (
        lambda w: _service(w, type="ExternalName", externalName="x.com"),
        "service kinds",
        "warn",
        "ServiceEntry",
    ),
    "internal balancer": (
        lambda w: _old_service(
            w, annotations={"service.beta.kubernetes.io/aws-load-balancer-scheme": "internal"}
        ),
        "load balancer",
        "warn",
        "istio.gateway_annotations",
    ),
    "TLS at the balancer": (
        lambda w: _old_service(
            w, annotations={"service.beta.kubernetes.io/aws-load-balancer-ssl-cert": "arn:aws:acm:x"}
        ),
        "TLS at the load balancer",
        "warn",
        "loops",
    ),
    "client addresses": (
        lambda w: _old_service(w, externalTrafficPolicy="Local"),
        "client addresses",
        "warn",
        "external_traffic_policy: Local",
    ),
    "balancer class": (
        lambda w: _old_service(w, loadBalancerClass="service.k8s.aws/nlb"),
        "load balancer class",
        "warn",
        "istio.load_balancer_class: service.k8s.aws/nlb",
    ),
    "somebody else's routes": (
        lambda w: _gateway(w, "old", "VirtualService", hosts=["*.shop.com"]),
        "other Istio objects",
        "fail",
        "VirtualService istio-system/old also serves api.shop.com",
    ),
    "somebody else's gateway": (
        lambda w: _gateway(
            w, "old", "Gateway", selector={"istio": "ingressgateway"}, servers=[{"hosts": ["*"]}]
        ),
        "other Istio objects",
        "fail",
        "Gateway istio-system/old",
    ),
    "allow policy": (
        lambda w: _gateway(w, "p", "AuthorizationPolicy", rules=[{}]),
        "ALLOW policy at the gateway",
        "fail",
        "does not name",
    ),
    "filter for all": (
        lambda w: _gateway(w, "f", "EnvoyFilter", configPatches=[]),
        "EnvoyFilter for every proxy",
        "warn",
        "workloadSelector",
    ),
    "volume would be destroyed": (lambda w: _claim(w, "Delete"), "storage", "warn", "kubectl patch pv"),
    "volume not bound": (lambda w: _claim(w, "Retain", "Lost"), "storage", "fail", "not bound: data"),
    "budget that never allows": (
        lambda w: w.api.add(
            "PodDisruptionBudget", "apisix", "apisix", status={"disruptionsAllowed": 0, "expectedPods": 2}
        ),
        "disruption budgets",
        "warn",
        "one pod more",
    ),
    "other router": (
        lambda w: _settings(w, "apisix: {router: {http: radixtree_uri}}"),
        "APISIX settings",
        "fail",
        "set apisix.router: radixtree_uri",
    ),
    "router not set": (
        lambda w: _apisix(w, router=None),
        "APISIX settings",
        "warn",
        "set apisix.router: radixtree_host_uri",
    ),
    "settings unknown": (
        lambda w: _drop(w, "ConfigMap", "apisix", "apisix"),
        "APISIX settings",
        "warn",
        "config.yaml",
    ),
    "standalone": (
        lambda w: [
            _settings(w, "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}"),
            _apisix(w, files=[], admin_url="http://127.0.0.1:1", admin_key="k3y"),
        ],
        "APISIX deployment mode",
        "fail",
        "apisix.files",
    ),
    "data plane": (
        lambda w: [
            _settings(w, "deployment: {role: data_plane}"),
            _apisix(w, files=[], admin_url="http://127.0.0.1:1", admin_key="k3y"),
        ],
        "APISIX deployment mode",
        "warn",
        "control plane of this data plane",
    ),
    "istiod far away": (
        lambda w: _istiod(w, "mesh", "helm", "1.27.3"),
        "istioctl and istiod",
        "fail",
        "one minor version",
    ),
    "sidecars over quota": (
        lambda w: w.api.add("ResourceQuota", "q", "shop", spec={"hard": {"requests.cpu": "50m"}}),
        "sidecars",
        "warn",
        "raise the quota of shop",
    ),
    "strict at one port": (
        lambda w: w.api.add(
            "PeerAuthentication", "p", "shop", spec={"portLevelMtls": {"8080": {"mode": "STRICT"}}}
        ),
        "mTLS mode",
        "fail",
        "PERMISSIVE",
    ),
    "no budget": (
        lambda w: _drop(w, "PodDisruptionBudget", "apisix", "apisix"),
        "disruption budgets",
        "warn",
        "create pdb",
    ),
    "budget for etcd only": (
        lambda w: w.api.add(
            "PodDisruptionBudget", "apisix", "apisix", spec={"selector": {"matchLabels": {"app": "etcd"}}}
        ),
        "disruption budgets",
        "warn",
        "apisix has none for APISIX, only PodDisruptionBudget apisix/apisix",
    ),
    "budget without a selector": (
        lambda w: w.api.add("PodDisruptionBudget", "apisix", "apisix", spec={}),
        "disruption budgets",
        "warn",
        "create pdb",
    ),
    "dead webhook": (_webhook, "webhooks", "fail", "kyverno/gone"),
    "webhook without a ready server": (
        lambda w: [_webhook(w), _endpoint(w, ready=False)],
        "webhooks",
        "fail",
        "no ready endpoint behind kyverno/gone",
    ),
    "webhook without a server": (
        lambda w: [_webhook(w), w.api.add("Service", "gone", "kyverno", spec={})],
        "webhooks",
        "fail",
        "no ready endpoint behind kyverno/gone",
    ),
    "clock ahead": (lambda w: _lease(w, 40), "clocks", "warn", "NTP"),
    "node silent": (lambda w: _lease(w, -600), "clocks", "warn", "silent"),
    "no leases": (lambda w: _drop(w, "Lease", "n1", "kube-node-lease"), "clocks", "warn", "by hand"),
    "kubectl missing": (lambda w: _istio(w, kubectl="/none/kubectl"), "kubectl", "fail", "istio.kubectl"),
    "kubectl skew": (
        lambda w: _istio(w, kubectl=w.tool("k", '{"clientVersion": {"gitVersion": "v1.30.0"}}')),
        "kubectl",
        "warn",
        "install kubectl 1.34",
    ),
    "kubectl old": (
        lambda w: _istio(w, kubectl=w.tool("k", '{"clientVersion": {"gitVersion": "v1.24.0"}}')),
        "kubectl",
        "fail",
        "1.26 or newer",
    ),
    "istioctl missing": (lambda w: _istio(w, istioctl="/none/istioctl"), "istioctl", "fail", "not found"),
    "istioctl other": (
        lambda w: _istio(w, istioctl=w.tool("i", '{"clientVersion": {"version": "1.29.2"}}')),
        "istioctl",
        "fail",
        "istio.version is 1.31.0",
    ),
    "istioctl patch": (
        lambda w: _istio(w, istioctl=w.tool("i", '{"clientVersion": {"version": "1.31.2"}}')),
        "istioctl",
        "warn",
        "same patch",
    ),
    "istioctl ancient": (
        lambda w: _istio(w, istioctl=w.tool("i", '{"clientVersion": {"version": "1.18.0"}}')),
        "istioctl",
        "fail",
        "1.20.1",
    ),
    "apisix service missing": (
        lambda w: _drop(w, "Service", "apisix-gateway", "apisix"),
        "APISIX pods",
        "fail",
        "apisix.service",
    ),
    "apisix pod down": (lambda w: _pod(w, phase="Pending"), "APISIX pods", "warn", "not ready: a1"),
    "apisix alone": (lambda w: _drop(w, "Pod", "a1", "apisix"), "APISIX pods", "warn", "at least two"),
    "apisix down": (
        lambda w: [_drop(w, "Pod", p, "apisix") for p in ("a1", "a2")],
        "APISIX pods",
        "fail",
        "0 of 0",
    ),
    "apisix without balancer": (
        lambda w: w.api.find("Service", "apisix-gateway", "apisix").update(status={}),  # type: ignore[union-attr]
        "APISIX address",
        "fail",
        "no load-balancer address yet",
    ),
    "apisix by ip": (
        lambda w: w.api.find("Service", "apisix-gateway", "apisix").update(  # type: ignore[union-attr]
            status={"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}
        ),
        "APISIX address",
        "fail",
        "alias record needs",
    ),
    "admin api down": (
        lambda w: w.sections.update(
            apisix={"files": [], "admin_url": "http://127.0.0.1:1", "admin_key": "k3y", "router": None}
        ),
        "APISIX configuration",
        "fail",
        "",
    ),
    "certificate expired": (lambda w: _tls(w, days=-3), "certificate tls", "fail", "expired 3 days ago"),
    "certificate soon": (lambda w: _tls(w, days=5), "certificate tls", "fail", "expires in"),
    "certificate of another host": (
        lambda w: _tls(w, name="other.com"),
        "hosts without certificate",
        "fail",
        "no certificate in istio-system covers api.shop.com",
    ),
    "key of another certificate": (
        lambda w: _tls(w, other_key=True),
        "certificate tls",
        "fail",
        "key does not",
    ),
    "certificate garbage": (
        lambda w: w.api.add(
            "Secret",
            "tls",
            "istio-system",
            type="kubernetes.io/tls",
            data={"tls.crt": "eA==", "tls.key": "eA=="},
        ),
        "certificate tls",
        "fail",
        "cannot be read",
    ),
    "credential named but absent": (
        lambda w: w.sections.update(translate={"credentials": {"1": "shop-tls"}}),
        "certificates",
        "fail",
        "create these TLS Secrets",
    ),
    "host without certificate": (
        lambda w: _route53(w, hosts=["api.shop.com", "ws.shop.com"]),
        "hosts without certificate",
        "fail",
        "covers ws.shop.com",
    ),
    "no certificate": (
        lambda w: _drop(w, "Secret", "tls", "istio-system"),
        "certificates",
        "warn",
        "credentialName",
    ),
    "dns in the way": (
        lambda w: setattr(w, "traffic", lambda: Weights(problems=("api.shop.com: a CNAME is in the way",))),
        "DNS",
        "fail",
        "CNAME",
    ),
    "dns without hosts": (lambda w: setattr(w, "traffic", lambda: Weights(hosts={})), "DNS", "fail", "hosts"),
    "dns already moved": (
        lambda w: setattr(w, "traffic", lambda: Weights(istio_percent=25)),
        "DNS",
        "warn",
        "already has 25 %",
    ),
    "ttl in the zone too long, records not yet weighted": (
        lambda w: setattr(w, "traffic", lambda: _zone(3600, prepared=False)),
        "DNS TTL",
        "warn",
        "in the zone now: api.shop.com 3600 s",
    ),
    "ttl in the zone too long, records weighted": (
        lambda w: setattr(w, "traffic", lambda: _zone(3600, prepared=True)),
        "DNS TTL",
        "fail",
        "lower the TTL of these records to at most 150 s",
    ),
    "no room for a load balancer": (
        lambda w: _aws(w, balancers=20),
        "load balancer quota",
        "fail",
        "20 of 20 network load balancers in eu-central-1",
    ),
    "load balancers not to be counted": (
        lambda w: _aws(w, balancers=None),
        "load balancer quota",
        "warn",
        "allow elasticloadbalancing:DescribeAccountLimits",
    ),
    "a classic load balancer": (
        lambda w: _aws(w, kind=""),
        "load balancer quota",
        "warn",
        "aws-load-balancer-type in istio.gateway_annotations",
    ),
    "route that cannot be read": (
        lambda w: _admin_api(w, {"id": "1", "uri": "/a"}, {"id": "2"}),
        "APISIX resources",
        "fail",
        "add the route's uri",
    ),
    "admin api without routes": (_admin_api, "APISIX configuration", "fail", "no routes"),
    "old helm": (lambda w: _helm(w, "v3.8.1+g0d2e8b5"), "helm", "warn", "install Helm 3.12"),
    "clock of the server": (
        lambda w: setattr(w.api, "ahead", 90.0),
        "clock of the API server",
        "warn",
        "check NTP there and here",
    ),
    "ttl too long": (lambda w: _route53(w, record="cname", ttl="3600s"), "DNS TTL", "fail", "at most 150s"),
    "metrics missing": (lambda w: setattr(w, "metrics", lambda: None), "metrics", "fail", "scrape"),
    "metrics down": (
        lambda w: setattr(w, "metrics", lambda: _raise(MetricsError("Prometheus is down"))),
        "metrics",
        "fail",
        "Prometheus is down",
    ),
    "no traffic": (lambda w: setattr(w, "metrics", lambda: 0.0), "metrics", "warn", "needs traffic"),
    "defect in a check": (
        lambda w: setattr(w, "metrics", lambda: _raise(ZeroDivisionError())),
        "metrics",
        "fail",
        "itself broke",
    ),
}


def test_a_webhook_whose_server_is_ready_passes(world: World, cluster: Cluster) -> None:
    _webhook(world)
    _endpoint(world, ready=True)
    assert run(world, cluster)["webhooks"].status == "pass"


def test_room_for_a_network_load_balancer_is_counted(world: World, cluster: Cluster) -> None:
    _aws(world, balancers=2)
    check = run(world, cluster)["load balancer quota"]
    assert (check.status, check.measured) == ("pass", "2 of 20 network load balancers in eu-central-1")


def test_what_runs_needs_no_room_in_the_quota_again(world: World, cluster: Cluster) -> None:
    _istiod(world, "istio-system", "gateshift")
    for app, count in (("istio-ingressgateway", 10), ("istiod", 5)):
        for n in range(count):
            metadata = {"labels": {"app": app}}
            world.api.add("Pod", f"{app}-{n}", "istio-system", metadata=metadata, spec={}, status={})
    used = {"cpu": "12.5", "services.loadbalancers": "1"}
    _quota(world, used, used)
    assert run(world, cluster)["quota"].status == "pass"


def _asks(cpu: str, **more: Any) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("spec", "cores"),
    [
        ({"containers": [_asks("1"), {"name": "none"}]}, "1"),
        ({"containers": [_asks("1")], "overhead": {"cpu": "250m"}}, "1.25"),
        ({"containers": [_asks("1")], "initContainers": [_asks("100m", restartPolicy="Always")]}, "1.1"),
        ({"containers": [_asks("1")], "initContainers": [_asks("3"), _asks("2")]}, "3"),
        (
            {
                "containers": [_asks("1")],
                "initContainers": [_asks("1", restartPolicy="Always"), _asks("2")],
            },
            "3",
        ),
        (
            {
                "containers": [_asks("3")],
                "initContainers": [_asks("2"), _asks("1", restartPolicy="Always")],
            },
            "4",
        ),
    ],
)
def test_a_pod_holds_what_the_scheduler_counts(spec: dict[str, Any], cores: str) -> None:
    assert capacity.pod_request({"spec": spec})["cpu"] == Decimal(cores)


def test_every_check_has_a_condition_that_makes_it_fail() -> None:
    assert len(CASES) >= 40
    source = "".join(p.read_text(encoding="utf-8") for p in ROOMS.glob("preflight_*.py"))
    named = set(re.findall(r'(?:failed|warned)\(\s*"([^"]+)"', source))
    assert len(named) > 30  # the search itself finds what there is
    assert named - {name for _, name, _, _ in CASES.values()} == set()


@pytest.mark.parametrize("condition", CASES)
def test_each_condition_is_reported_with_its_remedy(world: World, cluster: Cluster, condition: str) -> None:
    inject, name, status, said = CASES[condition]
    inject(world)
    checks = run(world, cluster, permissions=name == "permissions")
    assert name in checks
    check = checks[name]
    assert check.status == status, check
    assert said in f"{check.measured} {check.why} {check.remedy}"
    assert check.remedy
    assert "k3y" not in str(check)
    assert len(checks) > 15  # the others ran as well


def test_unreachable_cluster_fails_every_check_in_time(world: World, cluster: Cluster) -> None:
    world.api.refuse = lambda *_: (503, {"message": "etcd has no leader"})
    checks = run(world, cluster)
    assert checks["cluster"].status == "fail"
    assert "etcd has no leader" in checks["cluster"].measured
    assert sum(c.status == "fail" for c in checks.values()) >= 10


def test_hanging_check_is_a_failure_not_a_wait() -> None:
    items = [
        Item("slow", "w", lambda: time.sleep(30) or []),
        Item("fast", "w", lambda: [passed("fast", "m", "w")]),
    ]  # type: ignore[func-returns-value]
    begun = time.monotonic()
    slow, fast = run_items(items, limit=0.3)
    assert time.monotonic() - begun < 2
    assert (slow.status, fast.status) == ("fail", "pass")
    assert "no answer within 0.3 s" in slow.measured


def test_silence_is_not_a_pass() -> None:
    (check,) = run_items([Item("mute", "w", list)], limit=1)
    assert check.status == "fail"


def test_cluster_role_is_ready_to_bind() -> None:
    text = cluster_role()
    assert "kind: ClusterRole" in text
    assert "pods/portforward" in text
    assert "'*'" not in text


def test_policies_add_up(world: World, cluster: Cluster) -> None:
    """What one policy refuses another may allow; and a policy that selects no pod of ours matters not."""
    here = {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}
    _policy(world, [])
    spec = {
        "podSelector": {"matchLabels": {"app": "shop"}},
        "ingress": [{"from": [{"namespaceSelector": here}]}],
    }
    world.api.add("NetworkPolicy", "allow", "shop", spec=spec)
    other = {"podSelector": {"matchLabels": {"app": "database"}}, "policyTypes": ["Ingress"]}
    world.api.add("NetworkPolicy", "database", "shop", spec=other)
    assert run(world, cluster)["network policies"].status == "pass"


def test_room_is_shown_by_node_pool_and_sidecars_by_namespace(world: World, cluster: Cluster) -> None:
    for name, pool in (("n1", "blue"), ("n2", "green")):
        live = world.api.find("Node", name)
        assert live
        live["metadata"]["labels"] = {"eks.amazonaws.com/nodegroup": pool}
    checks = run(world, cluster)
    assert "blue: 1 nodes, free 32 cores" in checks["node pools"].measured
    assert checks["sidecars"].measured == "shop: 1 pods without sidecar, 0.1 cores, 0.12 GiB"


def test_permissions_name_the_kinds_of_this_cluster(world: World, cluster: Cluster) -> None:
    spec = {"group": "cert-manager.io", "scope": "Namespaced", "names": {"plural": "certificates"}}
    world.api.add("CustomResourceDefinition", "certificates.cert-manager.io", spec=spec)
    world.api.denied.add(("list", "certificates"))
    check = run(world, cluster, permissions=True)["permissions"]
    assert check.status == "fail"
    assert "cert-manager.io" in check.remedy
