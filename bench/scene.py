"""The stage for faults: a lab with Istio installed and the sample applied; means to break and mend it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateshift import lab
from gateshift.cluster import acceptance
from gateshift.cluster import apply as cluster_apply
from gateshift.cluster import install as cluster_install
from gateshift.cluster.client import ApiError, Cluster, ConflictError
from gateshift.lab import topology
from gateshift.lab.certs import Authority
from gateshift.lab.process import Ports
from gateshift.lab.sidecars import Sidecar
from gateshift.lab.state import LabState
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import project_root, resolvers
from gateshift.runbook.source import read_configuration, translate_now

APP = topology.APPLICATION_NAMESPACE
HOME = topology.GATEWAY_NAMESPACE
API = topology.HOST_API


@dataclass(frozen=True)
class Answer:
    """What a client got: an HTTP status, or 0 and the error."""

    code: int
    text: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.code or self.text} in {self.seconds:.2f} s"


@dataclass
class Scene:
    """One lab. Every change is a context manager that puts back what it changed."""

    state: LabState
    context: Context
    extras: dict[str, int] = field(default_factory=dict)
    sidecar: Sidecar | None = None
    servers: list[ThreadingHTTPServer] = field(default_factory=list)
    ca: Authority | None = None

    # -- the cluster -----------------------------------------------------------------------------

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster with an administrator's rights, to break things; the diagnosis has the operator's."""
        return Cluster.connect(ClusterParams(kubeconfig=self.state["kubeconfig"]))

    def get(self, kind: str, name: str, namespace: str | None = APP) -> dict[str, Any]:
        found = self.cluster.get(kind, name, namespace)
        assert found is not None, f"{kind} {namespace}/{name} is not there"
        return found

    def virtual_service(self, host: str = API, namespace: str = APP) -> dict[str, Any]:
        """The VirtualService of the sample that serves *host*."""
        for one in self.cluster.list("VirtualService", namespace):
            if host in (one["spec"].get("hosts") or []):
                return one
        raise AssertionError(f"no VirtualService serves {host}")

    def gateway(self, port: int = 80) -> dict[str, Any]:
        """The Gateway that serves *port*."""
        for one in self.cluster.list("Gateway"):
            if any(s["port"]["number"] == port for s in one["spec"]["servers"]):
                return one
        raise AssertionError(f"no Gateway serves port {port}")

    def change(self, obj: Mapping[str, Any], mutate: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        kind, meta = obj["kind"], obj["metadata"]
        for _ in range(8):
            live = self.cluster.get(kind, meta["name"], meta.get("namespace"))
            mutate(live)
            try:
                return self.cluster.update(live)
            except ConflictError:
                time.sleep(0.1)
        raise AssertionError(f"{kind} {meta['name']} changes all the time")

    @contextlib.contextmanager
    def changed(self, obj: Mapping[str, Any], mutate: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
        before = copy.deepcopy(dict(obj))

        def back(live: dict[str, Any]) -> None:
            for key in ("spec", "webhooks", "data"):
                if key in before:
                    live[key] = before[key]

        self.change(obj, mutate)
        try:
            yield
        finally:
            self.change(obj, back)

    @contextlib.contextmanager
    def added(self, *objects: dict[str, Any]) -> Iterator[None]:
        for obj in objects:
            self.cluster.create(obj)
        try:
            yield
        finally:
            for obj in reversed(objects):
                meta = obj["metadata"]
                self.cluster.delete(_kind(obj), meta["name"], meta.get("namespace"))

    @contextlib.contextmanager
    def removed(self, *objects: Mapping[str, Any]) -> Iterator[None]:
        for obj in objects:
            self.cluster.delete(_kind(obj), obj["metadata"]["name"], obj["metadata"].get("namespace"))
        try:
            yield
        finally:
            for obj in objects:
                again = {k: copy.deepcopy(v) for k, v in obj.items() if k != "status"}
                again["metadata"] = {
                    k: v
                    for k, v in again["metadata"].items()
                    if k in {"name", "namespace", "labels", "annotations"}
                }
                with contextlib.suppress(ConflictError):  # somebody's controller was faster
                    self.cluster.create(again)

    def status(self, obj: Mapping[str, Any], patch: Mapping[str, Any]) -> None:
        from gateshift.lab.sidecars import lab_api

        plural = {"Pod": "pods", "Service": "services"}[obj["kind"]]
        meta = obj["metadata"]
        with lab_api(self.state) as api:
            api.merge(
                f"/api/v1/namespaces/{meta['namespace']}/{plural}/{meta['name']}/status", {"status": patch}
            )

    def pods(self, label: str) -> list[dict[str, Any]]:
        return self.cluster.list("Pod", HOME, labels=label)

    # -- requests ----------------------------------------------------------------------------------

    def ask(
        self,
        path: str,
        host: str = API,
        *,
        method: str = "GET",
        tls: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout: float = 8.0,
        old: bool = False,
    ) -> Answer:
        """One request as a client sends it: the load balancer's name, the host's name in Host and SNI."""
        begun = time.monotonic()
        try:
            name = self.context.apisix_target if old else self.address()
            target = self.context.params.verify.connect_to[f"{name}:{443 if tls else 80}"]
            verify: Any = False
            if tls:
                verify = ssl.create_default_context(cafile=self.state["ca_file"])
                if self.ca:
                    verify.load_verify_locations(self.ca.certificate)
            with httpx.Client(verify=verify, timeout=timeout, trust_env=False) as client:
                answer = client.request(
                    method,
                    f"{'https' if tls else 'http'}://{target}{path}",
                    headers={"Host": host, **(headers or {})},
                    extensions={"sni_hostname": host},
                )
            return Answer(answer.status_code, answer.text[:200], time.monotonic() - begun)
        except (httpx.HTTPError, LookupError) as error:
            return Answer(0, f"{type(error).__name__}: {error}"[:160], time.monotonic() - begun)

    def address(self) -> str:
        """The load balancer's name as the cloud publishes it; LookupError when there is none."""
        service = self.cluster.get("Service", topology.GATEWAY_SERVICE, HOME) or {}
        for entry in service.get("status", {}).get("loadBalancer", {}).get("ingress") or []:
            return str(entry["hostname"])
        raise LookupError("the load balancer's name does not resolve")

    def until(
        self, ask: Callable[[], Answer], wanted: Callable[[Answer], bool], limit: float = 25.0
    ) -> Answer:
        """Ask until the answer is as wanted (configuration needs a moment); return the last one."""
        deadline = time.monotonic() + limit
        while True:
            answer = ask()
            if wanted(answer) or time.monotonic() > deadline:
                return answer
            time.sleep(0.25)

    @contextlib.contextmanager
    def load(
        self, ask: Callable[[], Answer], threads: int = 2, pause: float = 0.05
    ) -> Iterator[list[Answer]]:
        """Users who go on asking while it is diagnosed."""
        stop = threading.Event()
        seen: list[Answer] = []

        def user() -> None:
            while not stop.is_set():
                seen.append(ask())
                stop.wait(pause)

        crowd = [threading.Thread(target=user, daemon=True) for _ in range(threads)]
        for one in crowd:
            one.start()
        try:
            yield seen
        finally:
            stop.set()
            for one in crowd:
                one.join(timeout=10)

    # -- backends ----------------------------------------------------------------------------------

    def fault(self, **rule: Any) -> None:
        httpx.put(
            f"{self.state['faults_url']}/faults", json=rule, timeout=10, trust_env=False
        ).raise_for_status()

    def no_fault(self) -> None:
        httpx.delete(f"{self.state['faults_url']}/faults", timeout=10, trust_env=False).raise_for_status()

    def process(self, name: str) -> psutil.Process:
        """The process of one of the lab's parts; waits for one that is being started."""
        deadline = time.monotonic() + 20.0
        while True:
            parts = [p for p in lab.status(self.state.name).parts if p.name == name and p.status == "running"]
            if parts:
                with contextlib.suppress(psutil.NoSuchProcess):
                    return psutil.Process(parts[0].pid)
            assert time.monotonic() < deadline, f"the lab has no running {name}"
            time.sleep(0.3)

    def service(self, called: str, port: int, app_port: int, **port_fields: Any) -> list[dict[str, Any]]:
        """A Service with a WorkloadEntry of its own on this machine: the node agent does not touch it."""
        entry_ports = {str(port_fields.get("name", "http")): app_port}
        return [
            obj(
                "v1",
                "Service",
                called,
                spec={
                    "selector": {"app": called},
                    "ports": [{"name": "http", "port": port, "targetPort": app_port, **port_fields}],
                },
            ),
            obj(
                "networking.istio.io/v1",
                "WorkloadEntry",
                called,
                spec={"address": "127.0.0.1", "labels": {"app": called}, "ports": entry_ports},
            ),
        ]

    def route(self, name: str, to: Mapping[str, Any], prefix: str, **rule: Any) -> dict[str, Any]:
        """A VirtualService of its own host, so that the sample's rules are not touched."""
        return obj(
            "networking.istio.io/v1",
            "VirtualService",
            name,
            spec={
                "hosts": [f"{name}.voiceassistant.com"],
                "gateways": [self.gateway_name()],
                "http": [
                    {
                        "name": name,
                        "match": [{"uri": {"prefix": prefix}}],
                        "route": [{"destination": dict(to)}],
                        "retries": {"attempts": 0},
                        **rule,
                    }
                ],
            },
        )

    def gateway_name(self) -> str:
        meta = self.gateway()["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    def tls_backend(self, certificate: Path, key: Path, *, wait: float = 0.0, sni: str = "") -> int:
        """An HTTPS server; *wait* seconds before each handshake, *sni* the only name it takes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if sni:

            def check(_: object, name: str | None, __: object) -> int | None:
                return None if name == sni else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

            context.sni_callback = check

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                time.sleep(wait)
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return int(server.server_address[1])

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        if self.sidecar:
            self.sidecar.stop()
        self.context.journal.close()


def _kind(one: Mapping[str, Any]) -> str:
    return str(one["kind"])


def obj(version: str, kind: str, name: str, namespace: str = APP, **body: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        **body,
    }


def free_port() -> int:
    return Ports().take()


def open_scene(
    name: str, outputs: Path, say: Callable[[str], None], *, rate: float = 20.0, sidecar: bool = True
) -> Scene:
    """Start the lab *name*, install Istio, apply the sample, put one backend into the mesh."""
    say("lab")
    state = lab.up(name, rate=rate, progress=say)
    os.environ["GATESHIFT_LAB"] = name
    params = load(
        project_root() / "params" / "lab.yaml",
        overrides={"migration": f"bench-{int(time.time())}", "outputs": str(outputs), "mode": "act"},
        resolvers=resolvers(),
    )
    context = Context(params, run="bench")
    context.folder.mkdir(parents=True, exist_ok=True)
    context.journal.append("migration.opened", params_digest="bench")
    say("install")
    plan = cluster_install.plan(params, context.cluster)
    if plan.steps:
        cluster_install.execute(plan, params, context.cluster, progress=lambda _: None)
    say("apply")
    objects = [dict(o) for o in translate_now(context, read_configuration(context)).objects]
    changes = cluster_apply.plan(context.cluster, objects)
    if changes.steps:
        cluster_apply.execute(context.cluster, objects, changes, progress=lambda _: None)
    acceptance.wait_in_sync(params, context.cluster, objects, progress=lambda _: None)
    scene = Scene(state, context)
    scene.ca = Authority(outputs / "upstream-ca")
    if sidecar:
        say("sidecar")
        scene.sidecar = Sidecar(
            state, "secure-service", "127.0.0.2", state["backends"]["catalog-service"], 9010
        )
        scene.sidecar.start()
        with contextlib.suppress(ApiError):
            scene.cluster.create(
                scene.route("secure", {"host": f"secure-service.{APP}.svc.cluster.local"}, "/")
            )
    return scene


def port_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def dumps(value: object) -> str:
    return json.dumps(value, indent=1)
