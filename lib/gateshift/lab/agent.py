"""The node agent: what a kubelet, a cloud controller and kube-proxy do in a cluster, as far as the lab needs.

- kubelet: when pods of istiod or the ingress gateway are started by kwok, run the real programs beside the
  cluster, report the pods Ready when these answer, not Ready when they crashed, stop them when the pods go.
- cloud controller: give LoadBalancer Services their hostnames.
- kube-proxy: see :mod:`gateshift.lab.egress`.
- Once Istio's CRDs exist: WorkloadEntries for the backends and the lab's EnvoyFilters.

One process stands for all replicas of a component. A crashed istiod is restarted after a few seconds. A
crashed gateway that had been ready is not: it stays crashed until its pod is replaced
(``kubectl delete pod``), so that a rehearsal sees an outage as long as it wants to.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateshift.errors import LabError
from gateshift.lab import mesh, topology
from gateshift.lab.api import Api
from gateshift.lab.egress import EgressProxy
from gateshift.lab.process import Child, become_subreaper, spawn, stop, tail
from gateshift.lab.state import AGENT_FILE, Part, lab_dir, process_started, write_json

__all__ = ["NodeAgent", "main"]

_POLL = 0.4
_MESH_EVERY = 3.0
_SYSTEM = f"/api/v1/namespaces/{topology.GATEWAY_NAMESPACE}"
_LOAD_BALANCERS = {
    (topology.APISIX_NAMESPACE, topology.APISIX_SERVICE): topology.APISIX_LB_NAME,
    (topology.GATEWAY_NAMESPACE, topology.GATEWAY_SERVICE): topology.ISTIO_LB_NAME,
}
_CONTAINER_PORTS = {
    8080: "istiod_http",
    15010: "istiod_grpc",
    15012: "istiod_xds",
    15014: "istiod_monitoring",
    15017: "istiod_https",
    443: "istiod_https",
    15021: "envoy_status",
    15090: "envoy_metrics",
}


class Workload:
    """One component that runs beside the cluster: its pods there, its process here."""

    def __init__(self, name: str, container: str, label: tuple[str, str], restart: bool) -> None:
        self.name, self.container, self.label, self.restart = name, container, label, restart
        self.child: Child | None = None
        self.pod = ""
        self.ready = False
        self.was_ready = False
        self.restarts = 0
        self.start_after = 0.0
        self.envoy: Part | None = None

    def pods(self, every: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return this component's pods that run and are not being deleted, oldest first."""
        key, value = self.label
        mine = [
            p
            for p in every
            if (p["metadata"].get("labels") or {}).get(key) == value
            and "deletionTimestamp" not in p["metadata"]
            and p.get("status", {}).get("phase") == "Running"
        ]
        return sorted(mine, key=lambda p: (p["metadata"]["creationTimestamp"], p["metadata"]["name"]))


class NodeAgent:
    """Compares what the cluster wants with what runs here, every 0.4 s."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.folder = lab_dir(name)
        self.config = config
        self.ports: dict[str, int] = config["ports"]
        self.programs: dict[str, str] = config["binaries"]["programs"]
        self.files: dict[str, str] = config["binaries"]["files"]
        self.api = Api(config["api"], Path(config["ca"]), Path(config["certificate"]), Path(config["key"]))
        self.istiod = Workload("istiod", "discovery", ("app", "istiod"), restart=True)
        self.gateway = Workload("gateway", "istio-proxy", ("istio", "ingressgateway"), restart=False)
        self._http = httpx.Client(timeout=1.0, trust_env=False)
        self._addresses: dict[str, dict[int, int]] = {}
        self._stopping = threading.Event()
        self._written = ""
        self._applied: dict[str, float] = {}
        self._mesh_read = 0.0

    def run(self) -> int:
        """Work until SIGTERM, then stop what was started."""
        become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        c = self.config
        EgressProxy(
            self.ports["egress"], c["ca"], c["kubelet_certificate"], c["kubelet_key"], self.resolve
        ).start()
        while not self._stopping.wait(_POLL):
            try:
                self.step()
            except (LabError, KeyError, OSError) as error:
                # The API server may be starting or gone, an object half-made; the next look sees more.
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                self._stopping.wait(1.0)
            self._save()
        stop([w.child for w in (self.gateway, self.istiod) if w.child], grace=4.0)
        return 0

    def resolve(self, address: str, port: int) -> int | None:
        """Return the local port that stands for a Service's or pod's address."""
        return self._addresses.get(address, {}).get(port)

    def step(self) -> None:
        """One comparison."""
        services = self.api.items("/api/v1/services")
        pods = self.api.items(f"{_SYSTEM}/pods")
        self._cloud(services)
        self._routes(services, pods)
        self._component(self.istiod, pods)
        self._project_mesh(pods)
        self._component(self.gateway, pods)
        if pods:
            self._istio_objects()

    # Cloud controller and kube-proxy ------------------------------------------------------------------

    def _cloud(self, services: list[dict[str, Any]]) -> None:
        for service in services:
            metadata = service["metadata"]
            name = _LOAD_BALANCERS.get((metadata["namespace"], metadata["name"]))
            if name is None or service["spec"].get("type") != "LoadBalancer":
                continue
            wanted = [{"hostname": name}]
            if service.get("status", {}).get("loadBalancer", {}).get("ingress") != wanted:
                path = f"/api/v1/namespaces/{metadata['namespace']}/services/{metadata['name']}/status"
                self.api.merge(path, {"status": {"loadBalancer": {"ingress": wanted}}})

    def _routes(self, services: list[dict[str, Any]], pods: list[dict[str, Any]]) -> None:
        local = {port: self.ports[name] for port, name in _CONTAINER_PORTS.items()}
        found = {}
        for service in services:
            if service["metadata"]["namespace"] == topology.GATEWAY_NAMESPACE:
                found[str(service["spec"].get("clusterIP"))] = local
        for pod in pods:
            if address := pod.get("status", {}).get("podIP"):
                found[str(address)] = local
        self._addresses = found

    # Kubelet ------------------------------------------------------------------------------------------

    def _component(self, workload: Workload, every: list[dict[str, Any]]) -> None:
        pods = workload.pods(every)
        names = [p["metadata"]["name"] for p in pods]
        if workload.child and workload.pod not in names:
            stop([workload.child], grace=4.0)
            self._forget(workload)
        if not pods:
            workload.was_ready, workload.restarts, workload.start_after = False, 0, 0.0
            return
        if workload.child and workload.child.ended and workload.child.part.status == "running":
            self._crashed(workload)
        if workload.child and workload.child.part.status == "crashed":
            self._set_ready(pods, ready=False)
            if (workload.restart or not workload.was_ready) and time.monotonic() >= workload.start_after:
                self._forget(workload)
        if workload.child is None:
            self._start(workload, pods[0])
        elif workload.child.part.status == "running":
            workload.ready = self._answers(workload)
            workload.was_ready = workload.was_ready or workload.ready
            if workload.ready:
                self._set_ready(pods, ready=True)
            if workload is self.gateway and workload.ready and workload.envoy is None:
                workload.envoy = _envoy_of(workload.child)

    def _forget(self, workload: Workload) -> None:
        workload.child, workload.pod, workload.ready, workload.envoy = None, "", False, None

    def _crashed(self, workload: Workload) -> None:
        child = workload.child
        if child is None:
            return
        child.signal(signal.SIGKILL)  # Envoy may have outlived its pilot-agent
        workload.ready = False
        workload.restarts += 1
        workload.start_after = time.monotonic() + min(2.0 * workload.restarts, 30.0)
        child.part = replace(
            child.part, status="crashed", exit_code=child.process.returncode, tail=tail(child.part.log)
        )
        sys.stderr.write(f"{workload.name} ended with code {child.process.returncode}\n")

    def _answers(self, workload: Workload) -> bool:
        url = {
            "istiod": f"http://127.0.0.1:{self.ports['istiod_http']}/ready",
            "gateway": f"http://127.0.0.1:{self.ports['envoy_status']}/healthz/ready",
        }[workload.name]
        try:
            return self._http.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    def _start(self, workload: Workload, pod: dict[str, Any]) -> None:
        folder = self.folder / workload.name
        if workload is self.istiod:
            prepared = self._prepare_istiod(folder, pod)
        else:
            prepared = self._prepare_gateway(folder, pod)
        if prepared is None:
            return  # something it needs is not there yet; the next step looks again
        command, environment = prepared
        log = self.folder / "logs" / f"{workload.container}.cri"
        child = spawn(
            workload.name,
            [sys.executable, "-m", "gateshift.lab.crilog", str(log), *command],
            log=self.folder / "logs" / f"{workload.name}.log",
            environment={**mesh.inherited(), **environment},
            folder=folder,
        )
        child.part = replace(child.part, log=str(log), restarts=workload.restarts)
        workload.child, workload.pod = child, pod["metadata"]["name"]

    def _prepare_istiod(self, folder: Path, pod: dict[str, Any]) -> tuple[list[str], dict[str, str]] | None:
        environment = mesh.istiod_environment(pod)
        config = self._mesh_config(environment)
        if config is None:
            return None
        self._write_mesh(folder, config)
        command = mesh.istiod_command(self.programs["pilot-discovery"], self.config["kubeconfig"], self.ports)
        return command, environment

    def _project_mesh(self, pods: list[dict[str, Any]]) -> None:
        """Keep istiod's mesh configuration file up to date, as a kubelet does with a mounted ConfigMap."""
        if not self.istiod.ready or time.monotonic() - self._mesh_read < _MESH_EVERY:
            return
        self._mesh_read = time.monotonic()
        for pod in self.istiod.pods(pods)[:1]:
            config = self._mesh_config(mesh.istiod_environment(pod))
            if config is not None:
                self._write_mesh(self.folder / self.istiod.name, config)

    def _mesh_config(self, environment: Mapping[str, str]) -> dict[str, Any] | None:
        revision = environment.get("REVISION", "default")
        name = "istio" if revision in ("", "default") else f"istio-{revision}"
        return self.api.get(f"{_SYSTEM}/configmaps/{name}")

    def _write_mesh(self, folder: Path, config: Mapping[str, Any]) -> None:
        place = folder / "etc" / "istio" / "config"
        place.mkdir(parents=True, exist_ok=True)
        text = mesh.mesh_for_lab(config["data"]["mesh"])
        path = place / "mesh"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")

    def _prepare_gateway(self, folder: Path, pod: dict[str, Any]) -> tuple[list[str], dict[str, str]] | None:
        root = self.api.get(f"{_SYSTEM}/configmaps/istio-ca-root-cert")
        if root is None or not self.istiod.ready:
            return None
        account = f"{_SYSTEM}/serviceaccounts/{pod['spec'].get('serviceAccountName', 'default')}"
        mesh.lay_proxy(self.api, folder, root, account, self.files["envoy_bootstrap.json"])
        environment = mesh.gateway_environment(pod, self.ports, self.programs["envoy"], folder)
        return mesh.gateway_command(self.programs["pilot-agent"]), environment

    def _set_ready(self, pods: list[dict[str, Any]], *, ready: bool) -> None:
        text = "True" if ready else "False"
        for pod in pods:
            status = pod["status"]
            conditions = status.get("conditions") or []
            now = {c["type"]: c["status"] for c in conditions}
            if now.get("Ready") == text:
                continue
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            changed = [
                {**c, "status": text, "lastTransitionTime": moment}
                if c["type"] in ("Ready", "ContainersReady")
                else c
                for c in conditions
            ]
            containers = [{**c, "ready": ready} for c in status.get("containerStatuses") or ()]
            self.api.merge(
                f"{_SYSTEM}/pods/{pod['metadata']['name']}/status",
                {"status": {"conditions": changed, "containerStatuses": containers}},
            )

    # Istio's objects ----------------------------------------------------------------------------------

    def _istio_objects(self) -> None:
        if not self.istiod.ready or self.api.get("/apis/networking.istio.io/v1") is None:
            return
        items = [mesh.workload_entry(b, self.config["backends"][b.name]) for b in topology.BACKENDS]
        secret = mesh.tls_secret(Path(self.config["tls_certificate"]), Path(self.config["tls_key"]))
        for item in [*mesh.envoy_filters(), *items, secret]:
            metadata = item["metadata"]
            kind = _PLURALS[item["kind"]]
            group = "/api/v1" if item["kind"] == "Secret" else f"/apis/{item['apiVersion']}"
            path = f"{group}/namespaces/{metadata['namespace']}/{kind}/{metadata['name']}"
            # Applied again now and then, so that an uninstall and reinstall brings them back.
            if time.monotonic() - self._applied.get(path, -60.0) < 20.0:
                continue
            self.api.apply(path, item)
            self._applied[path] = time.monotonic()

    def _save(self) -> None:
        workloads = (self.istiod, self.gateway)
        parts = [w.child.part for w in workloads if w.child]
        if self.gateway.child and self.gateway.envoy:
            part = self.gateway.child.part
            parts.append(replace(self.gateway.envoy, status=part.status, restarts=part.restarts))
        data = {
            "parts": [p.as_json() for p in parts],
            "notes": {w.name: {"pod": w.pod, "ready": w.ready, "restarts": w.restarts} for w in workloads},
        }
        text = json.dumps(data, sort_keys=True)
        if text != self._written:
            write_json(self.folder / AGENT_FILE, data)
            self._written = text


_PLURALS = {"EnvoyFilter": "envoyfilters", "WorkloadEntry": "workloadentries", "Secret": "secrets"}


def _envoy_of(child: Child) -> Part | None:
    """Return Envoy as a part of its own: pilot-agent started it, and rehearsals want to kill just it."""
    try:
        for process in psutil.Process(child.process.pid).children(recursive=True):
            if process.name() == "envoy":
                created = process_started(process.pid) or 0.0
                return Part("gateway-envoy", process.pid, created, child.part.log)
    except psutil.Error:
        return None
    return None


def main() -> int:
    """Entry point of ``python -m gateshift.lab.agent``."""
    parser = argparse.ArgumentParser(description="The lab's node agent; started by its supervisor.")
    parser.add_argument("--name", required=True)
    name = parser.parse_args().name
    config = json.loads((lab_dir(name) / "agent-config.json").read_text(encoding="utf-8"))
    return NodeAgent(name, config).run()


if __name__ == "__main__":
    sys.exit(main())
