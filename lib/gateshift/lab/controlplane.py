"""The Kubernetes control plane of the lab: command lines, configuration files and the first objects.

kwok plays the kubelet, for pods (they become Ready), logs, exec and port-forward. Calls from the API server
to Services (the admission webhooks) go through the node agent's proxy (``egress`` below), which stands in
for kube-proxy and the pod network: istiod runs beside the cluster, not in it.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateshift.lab import topology
from gateshift.lab.api import Api
from gateshift.lab.build import Binaries
from gateshift.lab.certs import Authority, Pair, signing_key

__all__ = ["Certificates", "Layout", "commands", "write_files"]

_SERVICE_RANGE = "10.96.0.0/16"
_FIRST_SERVICE = "10.96.0.1"
_POD_RANGE = "10.0.0.0/24"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Everything the control plane proves itself with."""

    ca: Path
    apiserver: Pair
    kubelet_client: Pair
    kubelet: Pair
    admin: Pair
    controller_manager: Pair
    scheduler: Pair
    service_accounts: Pair
    hosts: Pair


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders and ports of one lab."""

    folder: Path
    ports: Mapping[str, int]
    certificates: Certificates
    binaries: Binaries

    @property
    def api_url(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self.ports['apiserver']}"

    @property
    def logs(self) -> Path:
        """Where every part writes its log."""
        return self.folder / "logs"

    def api(self) -> Api:
        """Return a client with cluster-admin rights."""
        c = self.certificates
        return Api(self.api_url, c.ca, c.admin.certificate, c.admin.key)


PORTS = (
    "etcd",
    "etcd_peer",
    "apiserver",
    "controller_manager",
    "scheduler",
    "kwok",
    "egress",
    "prometheus",
    "istiod_grpc",
    "istiod_xds",
    "istiod_https",
    "istiod_http",
    "istiod_monitoring",
    "istiod_ctrlz",
    "envoy_admin",
    "envoy_status",
    "envoy_metrics",
    "agent_status",
    "gateway_http",
    "gateway_https",
)


def make_certificates(folder: Path) -> Certificates:
    """Create the lab's CA and all certificates below *folder*."""
    authority = Authority(folder)
    return Certificates(
        ca=authority.certificate,
        apiserver=authority.issue(
            "apiserver",
            "kube-apiserver",
            names=(
                "127.0.0.1",
                _FIRST_SERVICE,
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ),
        ),
        kubelet_client=authority.issue(
            "kubelet-client", "kube-apiserver-kubelet", organization="system:masters"
        ),
        kubelet=authority.issue("kubelet", topology.NODE_NAME, names=("127.0.0.1", topology.NODE_NAME)),
        admin=authority.issue("admin", "lab-admin", organization="system:masters"),
        controller_manager=authority.issue("controller-manager", "system:kube-controller-manager"),
        scheduler=authority.issue("scheduler", "system:kube-scheduler"),
        service_accounts=signing_key(folder, "service-accounts"),
        hosts=authority.issue("hosts", topology.ZONE, names=(topology.ZONE, f"*.{topology.ZONE}")),
    )


def kubeconfig(url: str, ca: Path, pair: Pair, name: str) -> dict[str, Any]:
    """Return a kubeconfig with everything inline, so that the one file can be copied."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority-data": inline(ca)}}],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": inline(pair.certificate),
                    "client-key-data": inline(pair.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }


def write_files(layout: Layout, name: str) -> Path:
    """Write kubeconfigs, the egress selection and kwok's configuration; return the admin kubeconfig."""
    c, folder = layout.certificates, layout.folder
    layout.logs.mkdir(exist_ok=True)
    for file, pair in (
        ("kubeconfig", c.admin),
        ("controller-manager.kubeconfig", c.controller_manager),
        ("scheduler.kubeconfig", c.scheduler),
    ):
        path = folder / file
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(kubeconfig(layout.api_url, c.ca, pair, f"gateshift-lab-{name}")))
    egress = {
        "apiVersion": "apiserver.k8s.io/v1beta1",
        "kind": "EgressSelectorConfiguration",
        "egressSelections": [
            {
                "name": "cluster",
                "connection": {
                    "proxyProtocol": "HTTPConnect",
                    "transport": {
                        "tcp": {
                            "url": f"https://127.0.0.1:{layout.ports['egress']}",
                            "tlsConfig": {
                                "caBundle": str(c.ca),
                                "clientCert": str(c.kubelet_client.certificate),
                                "clientKey": str(c.kubelet_client.key),
                            },
                        }
                    },
                },
            },
        ],
    }
    (folder / "egress.yaml").write_text(yaml.safe_dump(egress))
    stages = _stages(layout)
    kubelet = [yaml.safe_dump(item) for item in _kubelet_functions(layout)]
    (folder / "kwok.yaml").write_text("\n---\n".join([*stages, *kubelet]))
    return folder / "kubeconfig"


def _stages(layout: Layout) -> list[str]:
    """Return kwok's ready-made stages; pods of istio-system start not Ready.

    Those are reported Ready by the node agent, when the program that stands for them answers.
    """
    found = {n: Path(p) for n, p in layout.binaries.files.items() if n.startswith("stages/")}
    texts = [p.read_text(encoding="utf-8") for n, p in sorted(found.items()) if "pod-ready" not in n]
    ready = yaml.safe_load(found["stages/pod-ready.yaml"].read_text(encoding="utf-8"))
    started = copy.deepcopy(ready)
    started["metadata"]["name"] = "pod-started"
    for stage, operator in ((ready, "NotIn"), (started, "In")):
        stage["spec"]["selector"]["matchExpressions"].append(
            {"key": ".metadata.namespace", "operator": operator, "values": [topology.GATEWAY_NAMESPACE]}
        )
    template: str = started["spec"]["next"]["statusTemplate"]
    for condition in ("Ready", "ContainersReady"):
        template = re.sub(
            rf'status: "True"\n( +)type: {condition}\b', rf'status: "False"\n\1type: {condition}', template
        )
    started["spec"]["next"]["statusTemplate"] = template.replace("ready: true", "ready: false", 1)
    return [*texts, yaml.safe_dump(ready), yaml.safe_dump(started)]


def _kubelet_functions(layout: Layout) -> list[dict[str, Any]]:
    """What kwok answers for the pods of istio-system: port-forward, logs and exec."""
    ports = layout.ports

    def item(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": "istio-system"},
            "spec": {"selector": {"matchNamespaces": [topology.GATEWAY_NAMESPACE]}, **spec},
        }

    forwards = {
        15000: "envoy_admin",
        15020: "agent_status",
        15021: "envoy_status",
        15090: "envoy_metrics",
        8080: "istiod_http",
        15010: "istiod_grpc",
        15012: "istiod_xds",
        15014: "istiod_monitoring",
        15017: "istiod_https",
        9876: "istiod_ctrlz",
    }
    return [
        item(
            "ClusterPortForward",
            {
                "forwards": [
                    {"ports": [port], "target": {"address": "127.0.0.1", "port": ports[local]}}
                    for port, local in forwards.items()
                ]
            },
        ),
        item(
            "ClusterLogs",
            {
                "logs": [
                    {"containers": [container], "logsFile": str(layout.logs / f"{container}.cri")}
                    for container in ("discovery", "istio-proxy")
                ]
            },
        ),
        item("ClusterExec", {"execs": [{"local": {"workDir": str(layout.folder)}}]}),
    ]


def commands(layout: Layout) -> dict[str, list[str]]:
    """Return the command line of each control plane process."""
    b, p, c, folder = layout.binaries, layout.ports, layout.certificates, layout.folder
    etcd = f"http://127.0.0.1:{p['etcd']}"
    peer = f"http://127.0.0.1:{p['etcd_peer']}"
    return {
        "etcd": [
            b["etcd"],
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # the data end with the lab
            "--log-level=warn",
        ],
        "kube-apiserver": [
            b["kube-apiserver"],
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={p['apiserver']}",
            # Nobody reaches the server by the Service `kubernetes`; a loopback address would be refused here.
            "--advertise-address=10.255.255.254",
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={_SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--anonymous-auth=false",
            "--allow-privileged=true",
            f"--client-ca-file={c.ca}",
            f"--tls-cert-file={c.apiserver.certificate}",
            f"--tls-private-key-file={c.apiserver.key}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={c.service_accounts.certificate}",
            f"--service-account-signing-key-file={c.service_accounts.key}",
            f"--kubelet-certificate-authority={c.ca}",
            f"--kubelet-client-certificate={c.kubelet_client.certificate}",
            f"--kubelet-client-key={c.kubelet_client.key}",
            f"--egress-selector-config-file={folder / 'egress.yaml'}",
        ],
        "kube-controller-manager": [
            b["kube-controller-manager"],
            f"--kubeconfig={folder / 'controller-manager.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={p['controller_manager']}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={c.service_accounts.key}",
            f"--root-ca-file={c.ca}",
        ],
        "kube-scheduler": [
            b["kube-scheduler"],
            f"--kubeconfig={folder / 'scheduler.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={p['scheduler']}",
            "--leader-elect=false",
        ],
        "kwok": [
            b["kwok"],
            f"--kubeconfig={folder / 'kubeconfig'}",
            f"--config={folder / 'kwok.yaml'}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            f"--cidr={_POD_RANGE}",
            "--node-ip=127.0.0.1",
            f"--node-port={p['kwok']}",
            f"--server-address=127.0.0.1:{p['kwok']}",
            f"--tls-cert-file={c.kubelet.certificate}",
            f"--tls-private-key-file={c.kubelet.key}",
        ],
    }
