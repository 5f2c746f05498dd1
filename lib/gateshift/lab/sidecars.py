"""A backend of the lab in the mesh: a real Envoy with a real certificate before it, without iptables.

pilot-agent runs as a sidecar with interception mode NONE on a loopback address of its own. A Sidecar
resource gives its inbound listener and where the application is; the WorkloadEntry makes the workload known
with its service account, so that istiod's CA signs a SPIFFE certificate for it and the gateway speaks mTLS.

An EnvoyFilter gives it the stats access logger that stands in for istio.stats: it counts each request it
receives with the way it came, mutual TLS or not, and the lab's Prometheus scrapes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateshift.errors import LabError
from gateshift.lab import mesh, prometheus, topology
from gateshift.lab.api import Api
from gateshift.lab.process import Child, Ports, spawn, stop, tail, wait_for
from gateshift.lab.state import LabState, write_json

__all__ = ["Sidecar", "lab_api", "objects"]

_READY_LIMIT = 60.0


def lab_api(state: LabState) -> Api:
    """Return a client of the lab's API server with cluster-admin rights."""
    pki = state.directory / "pki"
    return Api(state["api_url"], pki / "ca.crt", pki / "admin.crt", pki / "admin.key")


def objects(
    name: str, address: str, port: int, application: int, *, service_port: int
) -> list[dict[str, Any]]:
    """Return the workload's objects: ServiceAccount, Service, WorkloadEntry, EnvoyFilter and Sidecar.

    The sidecar listens on *address*:*port* and sends to 127.0.0.1:*application*.
    """
    labels = {"app": name, "security.istio.io/tlsMode": "istio"}
    istio = "networking.istio.io/v1"

    def item(version: str, kind: str, **body: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": topology.APPLICATION_NAMESPACE}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}

    ingress = {
        "port": {"number": port, "protocol": "HTTP", "name": "http"},
        "bind": address,
        "captureMode": "NONE",
        "defaultEndpoint": f"127.0.0.1:{application}",
    }
    return [
        item("v1", "ServiceAccount"),
        item(
            "v1",
            "Service",
            spec={
                "selector": {"app": name},
                "ports": [{"name": "http", "port": service_port, "targetPort": port}],
            },
        ),
        item(
            istio,
            "WorkloadEntry",
            spec={"address": address, "labels": labels, "serviceAccount": name, "ports": {"http": port}},
        ),
        item("networking.istio.io/v1alpha3", "EnvoyFilter", spec=_request_metrics(name)),
        item(
            istio,
            "Sidecar",
            # Without egress listeners: they would be bound to the Services' ports of this machine.
            spec={
                "workloadSelector": {"labels": {"app": name}},
                "ingress": [ingress],
                "egress": [{"hosts": ["~/*"]}],
            },
        ),
    ]


def _request_metrics(name: str) -> dict[str, Any]:
    """Return an EnvoyFilter's spec: what istio.stats would count on the receiving side."""
    tags = {
        "reporter": "destination",
        "destination_workload": name,
        "destination_workload_namespace": topology.APPLICATION_NAMESPACE,
        "destination_service_name": name,
        "response_code": "%RESPONSE_CODE%",
        "response_flags": "%RESPONSE_FLAGS%",
        "request_protocol": "http",
        "source_principal": "%DOWNSTREAM_PEER_URI_SAN%",
        "connection_security_policy": "%CEL(connection.mtls ? 'mutual_tls' : 'none')%",
    }
    return mesh.request_counter(
        {"labels": {"app": name}},
        "SIDECAR_INBOUND",
        [{"name": tag, "value_format": value} for tag, value in tags.items()],
    )


@dataclass
class Sidecar:
    """One running sidecar. :meth:`start` returns when its Envoy is ready, :meth:`stop` ends it."""

    state: LabState
    name: str
    address: str
    application: int
    service_port: int
    port: int = 0
    child: Child | None = None

    def start(self) -> None:
        """Make the workload's objects and start pilot-agent; raises LabError when it does not get ready."""
        config = json.loads((self.state.directory / "agent-config.json").read_text(encoding="utf-8"))
        take = Ports()
        ports = {
            "istiod_xds": int(config["ports"]["istiod_xds"]),
            **{n: take.take() for n in ("envoy_admin", "agent_status", "envoy_metrics", "envoy_status")},
        }
        self.port = self.port or take.take()
        with lab_api(self.state) as api:
            for obj in objects(
                self.name, self.address, self.port, self.application, service_port=self.service_port
            ):
                api.apply(_path(obj), obj)
            command, environment, folder = self._prepare(api, config, ports)
        log = self.state.directory / "logs" / f"sidecar-{self.name}.log"
        self.child = spawn(self.name, command, log=log, environment=environment, folder=folder)
        url = f"http://127.0.0.1:{ports['envoy_status']}/healthz/ready"
        if not wait_for(lambda: self._answers(url), timeout=_READY_LIMIT, every=0.2):
            self.stop()
            last = "\n".join(tail(log))
            raise LabError(f"the sidecar of {self.name} was not ready after {_READY_LIMIT:.0f} s:\n{last}")
        self._targets.parent.mkdir(exist_ok=True)
        target = {
            "targets": [f"127.0.0.1:{ports['envoy_metrics']}"],
            "labels": {"instance": f"{self.name}-sidecar"},
        }
        write_json(self._targets, [target])

    @property
    def _targets(self) -> Path:
        return self.state.directory / prometheus.TARGETS / f"sidecar-{self.name}.json"

    def stop(self) -> None:
        """End the sidecar; its objects stay."""
        self._targets.unlink(missing_ok=True)
        if self.child:
            stop([self.child], grace=3.0)
            self.child = None

    def _answers(self, url: str) -> bool:
        if self.child is None or self.child.ended:
            raise LabError(f"the sidecar of {self.name} ended; its log: sidecar-{self.name}.log")
        try:
            return httpx.get(url, timeout=1.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _prepare(
        self, api: Api, config: Mapping[str, Any], ports: Mapping[str, int]
    ) -> tuple[list[str], dict[str, str], Path]:
        folder = self.state.directory / f"sidecar-{self.name}"
        root = api.get(f"/api/v1/namespaces/{topology.GATEWAY_NAMESPACE}/configmaps/istio-ca-root-cert")
        if root is None:
            raise LabError("istiod has not published its root certificate yet")
        account = f"/api/v1/namespaces/{topology.APPLICATION_NAMESPACE}/serviceaccounts/{self.name}"
        mesh.lay_proxy(api, folder, root, account, config["binaries"]["files"]["envoy_bootstrap.json"])
        pod = {
            "metadata": {
                "name": f"{self.name}-sidecar",
                "namespace": topology.APPLICATION_NAMESPACE,
                "labels": {"app": self.name},
            },
            "spec": {"serviceAccountName": self.name, "containers": []},
            "status": {"podIP": self.address},
        }
        programs = config["binaries"]["programs"]
        environment = {
            **mesh.inherited(),
            **mesh.gateway_environment(pod, ports, programs["envoy"], folder),
            "ISTIO_META_INTERCEPTION_MODE": "NONE",
        }
        command = [
            programs["pilot-agent"],
            "proxy",
            "sidecar",
            "--domain",
            f"{topology.APPLICATION_NAMESPACE}.svc.cluster.local",
            "--proxyLogLevel=warning",
        ]
        return command, environment, folder


_PLURALS = {
    "ServiceAccount": "serviceaccounts",
    "Service": "services",
    "WorkloadEntry": "workloadentries",
    "Sidecar": "sidecars",
    "EnvoyFilter": "envoyfilters",
}


def _path(obj: Mapping[str, Any]) -> str:
    version, metadata = obj["apiVersion"], obj["metadata"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    return f"{root}/namespaces/{metadata['namespace']}/{_PLURALS[obj['kind']]}/{metadata['name']}"
