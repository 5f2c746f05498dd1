"""The process that owns a lab: starts every part, watches them, writes the state file, ends them all.

Started by :func:`gateshift.lab.up` as ``python -m gateshift.lab.supervisor --name NAME``, detached from the
terminal. A part that ends unasked while the lab starts fails the start; later it is recorded as crashed,
with its log's last lines, for `gateshift lab status`. Crashed parts are not restarted here: a lab that lost
its API server or DNS must look broken. (The node agent restarts pods' processes, as a kubelet does.)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from gateshift.errors import LabError
from gateshift.lab import account, controlplane, dataparts, prometheus, topology
from gateshift.lab.build import Binaries
from gateshift.lab.process import Child, Ports, become_subreaper, kill_parts, spawn, stop, tail, wait_for
from gateshift.lab.seed import has_address, node_address, pods_ready, seed
from gateshift.lab.state import AGENT_FILE, STATE_FILE, Part, lab_dir, process_started, write_json

__all__ = ["Supervisor", "main"]

_START_LIMIT = 60.0  # seconds a part may take until it answers; cold disks and shared machines included
_POLL = 0.2


class Supervisor:
    """One running lab."""

    def __init__(self, name: str, binaries: Binaries, options: Mapping[str, Any]) -> None:
        self.name = name
        self.folder = lab_dir(name)
        self.options = options
        self._binaries = binaries
        self._children: list[Child] = []
        self._stopping = threading.Event()
        self._values: dict[str, Any] = {}
        self._phase, self._step, self._error = "starting", "", ""
        created = process_started(os.getpid()) or time.time()
        self._self = Part("supervisor", os.getpid(), created, str(self.folder / "supervisor.log"))
        self._written = ""

    def stop_requested(self, _number: int, _frame: FrameType | None) -> None:
        """Signal handler: end the lab in order."""
        self._stopping.set()

    def run(self) -> int:
        """Start the lab, watch it until a signal, end it; return the exit code."""
        become_subreaper()
        signal.signal(signal.SIGTERM, self.stop_requested)
        signal.signal(signal.SIGINT, self.stop_requested)
        try:
            self._start()
        except LabError as error:
            self._end("failed", str(error))
            return error.exit_code
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        if self._stopping.is_set():
            self._end("stopped", "")
            return 0
        self._save("ready", "")
        while not self._stopping.wait(_POLL):
            self._watch()
        self._end("stopped", "")
        return 0

    # Starting -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._save("starting", "certificates")
        take = Ports()
        ports = {n: take.take() for n in (*controlplane.PORTS, *dataparts.PORTS)}
        backends = {b.name: take.take() for b in topology.BACKENDS}
        layout = controlplane.Layout(
            folder=self.folder,
            ports=ports,
            certificates=controlplane.make_certificates(self.folder / "pki"),
            binaries=self._binaries,
        )
        kubeconfig = controlplane.write_files(layout, self.name)
        self._values = self._first_values(layout, kubeconfig, backends)
        commands = controlplane.commands(layout)

        self._save("starting", "etcd and kube-apiserver")
        self._spawn("etcd", commands.pop("etcd"))
        self._spawn("kube-apiserver", commands.pop("kube-apiserver"))
        # Meanwhile, what needs no API server; Python's own start-up is most of its time.
        config = prometheus.write_config(layout)
        self._spawn("prometheus", prometheus.command(layout, config))
        data_parts = [
            (part, self._spawn(part.name, part.command))
            for part in dataparts.parts(layout, backends, self.options)
        ]
        with layout.api() as api:
            self._await("kube-apiserver", api.ready)
            self._save("starting", "scheduler, controllers, kubelet, node agent")
            for name, command in commands.items():
                self._spawn(name, command)
            agent = [sys.executable, "-m", "gateshift.lab.agent", "--name", self.name]
            write_json(self.folder / "agent-config.json", self._agent_config(layout, backends))
            self._spawn("node-agent", agent, on_parent_death=signal.SIGTERM)
            seed(api)
            operator = account.create(api, layout.api_url, layout.certificates.ca, self.folder, self.name)
            self._values["operator_kubeconfig"] = str(operator)
            self._save("starting", "gateways, DNS and backends")
            for part, child in data_parts:
                self._values.update(self._ready_line(part, child))
            self._await("prometheus", lambda: prometheus.ready(layout))
            self._save("starting", "pods of the old gateway")
            self._await("kwok", lambda: pods_ready(api))
            node = f"/api/v1/nodes/{topology.NODE_NAME}/status"
            api.merge(node, node_address(ports["kwok"]))
            self._await("node-agent", lambda: has_address(api))
        if self.options["rate"] > 0:
            self._let_clients_run()

    def _let_clients_run(self) -> None:
        url = f"{self._values['traffic_url']}/pause"
        try:
            httpx.put(url, json={"paused": False}, timeout=10, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise LabError(f"the client traffic does not answer at {url}: {error!r}") from None

    def _first_values(
        self, layout: controlplane.Layout, kubeconfig: Path, backends: Mapping[str, int]
    ) -> dict[str, Any]:
        ports, c = layout.ports, layout.certificates
        return {
            "name": self.name,
            "kubeconfig": str(kubeconfig),
            "context": f"gateshift-lab-{self.name}",
            "api_url": layout.api_url,
            "kubectl": self._binaries["kubectl"],
            "istioctl": self._binaries["istioctl"],
            "prometheus_url": f"http://127.0.0.1:{ports['prometheus']}",
            "apisix_lb_name": topology.APISIX_LB_NAME,
            "istio_lb_name": topology.ISTIO_LB_NAME,
            "lb_zone_id": topology.LB_ZONE_ID,
            "istio_http": f"127.0.0.1:{ports['gateway_http']}",
            "istio_https": f"127.0.0.1:{ports['gateway_https']}",
            "http_target_port": ports["gateway_http"],
            "https_target_port": ports["gateway_https"],
            "envoy_admin": f"127.0.0.1:{ports['envoy_admin']}",
            "connect_to": dataparts.connect_to(ports),
            # The node agent takes out of the mesh configuration what upstream Envoy refuses (mesh.py), so
            # an installation needs nothing of its own for the lab.
            "mesh_config": {},
            "ca_file": str(c.ca),
            "tls_certificate": str(c.hosts.certificate),
            "tls_key": str(c.hosts.key),
            "logs": str(layout.logs),
            "rate": self.options["rate"],
            "backends": {b.name: backends[b.name] for b in topology.BACKENDS},
        }

    def _agent_config(self, layout: controlplane.Layout, backends: Mapping[str, int]) -> dict[str, Any]:
        c = layout.certificates
        return {
            "ports": dict(layout.ports),
            "backends": dict(backends),
            "tls_certificate": str(layout.certificates.hosts.certificate),
            "tls_key": str(layout.certificates.hosts.key),
            "binaries": layout.binaries.as_json(),
            "api": layout.api_url,
            "ca": str(c.ca),
            "certificate": str(c.admin.certificate),
            "key": str(c.admin.key),
            "kubelet_certificate": str(c.kubelet.certificate),
            "kubelet_key": str(c.kubelet.key),
            "kubeconfig": self._values["kubeconfig"],
        }

    def _spawn(self, name: str, command: Sequence[str], *, on_parent_death: int = signal.SIGKILL) -> Child:
        child = spawn(
            name,
            command,
            log=self.folder / "logs" / f"{name}.log",
            environment={**os.environ, "PYTHONUNBUFFERED": "1"},
            folder=self.folder,
            on_parent_death=on_parent_death,
        )
        self._children.append(child)
        return child

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        def answers() -> bool:
            self._check_children()
            return ready()

        if not wait_for(answers, timeout=_START_LIMIT, every=0.05):
            last = "\n".join(tail(self.folder / "logs" / f"{name}.log"))
            raise LabError(f"{name} was not ready after {_START_LIMIT:.0f} s; its last log lines:\n{last}")

    def _ready_line(self, part: dataparts.DataPart, child: Child) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def ready() -> bool:
            for line in Path(child.part.log).read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("{"):
                    try:
                        data = json.loads(line)
                    except ValueError:
                        continue
                    if data.get("ready"):
                        found.update(part.values(data))
                        return True
            return False

        self._await(part.name, ready)
        return found

    def _check_children(self) -> None:
        if self._stopping.is_set():
            raise LabError("the lab was asked to stop while it started", hint="`gateshift lab up`")
        for child in self._children:
            if child.ended:
                last = "\n".join(tail(child.part.log))
                raise LabError(
                    f"{child.part.name} ended with code {child.process.returncode} while the lab started; "
                    f"its last log lines:\n{last}"
                )

    # Watching and ending ------------------------------------------------------------------------------

    def _watch(self) -> None:
        for child in self._children:
            if child.part.status == "running" and child.ended:
                child.part = replace(
                    child.part,
                    status="crashed",
                    exit_code=child.process.returncode,
                    tail=tail(child.part.log),
                )
                if child.part.name == "node-agent":
                    kill_parts(self._agent_parts())  # what it started must not outlive it
        self._save("ready", "")

    def _agent_parts(self) -> list[Part]:
        try:
            data = json.loads((self.folder / AGENT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [Part.from_json(p) for p in data.get("parts", ())]

    def _end(self, phase: str, error: str) -> None:
        self._error = error
        self._save("stopping", "")
        # First the agent alone: it ends istiod and Envoy in order. Its own children are then gone.
        agents = [c for c in self._children if c.part.name == "node-agent"]
        stop(agents, grace=8.0)
        kill_parts(self._agent_parts())
        stop(
            [c for c in self._children if c.part.name not in ("node-agent", "kube-apiserver", "etcd")],
            grace=2.0,
        )
        # Nothing is worth a graceful end of these: the data go with the lab.
        stop([c for c in self._children if c.part.name in ("kube-apiserver", "etcd")], grace=0.0)
        self._save(phase, "")

    def _save(self, phase: str, step: str) -> None:
        self._phase, self._step = phase, step
        data = {
            "phase": phase,
            "step": step,
            "error": self._error,
            "values": self._values,
            "supervisor": self._self.as_json(),
            "parts": [c.part.as_json() for c in self._children],
        }
        text = json.dumps(data, sort_keys=True)
        if text != self._written:
            write_json(self.folder / STATE_FILE, data)
            self._written = text


def main() -> int:
    """Entry point of the detached process."""
    parser = argparse.ArgumentParser(description="Owns one rehearsal lab; started by `gateshift lab up`.")
    parser.add_argument("--name", required=True)
    name = parser.parse_args().name
    config = json.loads((lab_dir(name) / "config.json").read_text(encoding="utf-8"))
    binaries = Binaries(**config["binaries"])
    return Supervisor(name, binaries, config["options"]).run()


if __name__ == "__main__":
    sys.exit(main())
