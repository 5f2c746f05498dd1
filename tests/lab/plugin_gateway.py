"""The lab's Envoy with every plugin's example applied, and how the tests ask it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from gateshift.lab.state import LabState
from gateshift.translate import Translation
from gateshift.translate.model import dump_yaml
from tests.lab import plugin_config as config
from tests.lab.plugin_identity import CLIENT_SECRET
from tests.lab.plugin_services import services
from tests.lab.test_controlplane_lab import Tools, eventually

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


@dataclass
class Gateway:
    """The lab's Envoy, and what has arrived behind it."""

    address: str
    seen: dict[str, list[dict[str, Any]]]
    admin: str
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=20, trust_env=False))

    def ask(self, name: str, path: str = "/", method: str = "GET", **more: Any) -> httpx.Response:
        headers = {"Host": config.host(name), **more.pop("headers", {})}
        return self.client.request(method, f"http://{self.address}{path}", headers=headers, **more)

    def arrived(self, name: str, path: str = "/", method: str = "GET", **more: Any) -> dict[str, Any]:
        """Ask, and return what the echo service tells of the request."""
        answer = self.ask(name, path, method, **more)
        assert answer.status_code == 200, (name, answer.status_code, answer.text)
        told = answer.json()
        assert isinstance(told, dict)
        return told

    def status(self, name: str, path: str = "/", method: str = "GET", **more: Any) -> int:
        return self.ask(name, path, method, **more).status_code

    def healthy(self, service: str, port: int = 8000) -> list[bool]:
        """Return for each endpoint of a service whether Envoy's own checks pass, in a stable order."""
        answer = self.client.get(f"http://{self.admin}/clusters", params={"format": "json"})
        name = f"outbound|{port}||{config.service(service).partition(':')[0]}"
        (cluster,) = [one for one in answer.json()["cluster_statuses"] if one["name"] == name]
        found = {
            one["address"]["socket_address"]["port_value"]: one["health_status"]
            for one in cluster["host_statuses"]
        }
        return [not found[one].get("failed_active_health_check") for one in sorted(found)]

    def statistic(self, service: str, name: str, port: int = 8000) -> int:
        """Return one of Envoy's counters of a service's cluster."""
        full = f"cluster.outbound|{port}||{config.service(service).partition(':')[0]}.{name}"
        answer = self.client.get(f"http://{self.admin}/stats", params={"format": "json", "filter": name})
        known = {
            one["name"].replace(";", ""): one.get("value", 0)
            for one in answer.json()["stats"]
            if "name" in one
        }
        return int(known[full])

    def tcp(self, port: int) -> str:
        """Speak HTTP to a TCP port; return which service answered, empty when the connection was cut."""
        try:
            answer = self.client.get(f"http://127.0.0.1:{port}/tcp")
        except httpx.HTTPError:
            return ""
        return str(answer.json()["service"])

    def raw(self, name: str, target: str, host: str = "", **headers: str) -> int:
        """Send a request line as it is written (a client library would tidy it) and return the status."""
        head, _, port = self.address.partition(":")
        lines = [f"GET {target} HTTP/1.1", f"Host: {host or config.host(name)}", "Connection: close"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        with socket.create_connection((head, int(port)), timeout=5) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            return int(connection.recv(4096).split(b" ", 2)[1])


@contextmanager
def applied(running: LabState, folder: Path) -> Iterator[Gateway]:
    """Install Istio, apply the translation and wait until Envoy has all of it."""
    tools = Tools(running, folder)
    installed = tools.install()
    assert installed.returncode == 0, installed.stdout + installed.stderr
    secrets = folder / "secrets"
    translation = config.translated(str(secrets))
    _write_secrets(secrets, translation)
    assert not translation.blockers, [str(one) for one in translation.blockers]
    settings = next(one for one in translation.objects if one["kind"] == "ConfigMap")["data"]["config.yaml"]
    with services(settings) as (objects, seen):
        _trace_to(tools)
        _open(tools, config.TCP_PORT, config.TCP_CLOSED)
        before = _rejected(running)
        files = dump_yaml((*objects, *translation.objects))
        done = tools.run("kubectl", "apply", "-f", "-", stdin=files)
        assert done.returncode == 0, done.stderr
        found = Gateway(running["istio_http"], seen, running["envoy_admin"])
        wanted = [name for name in config.PLUGINS if name in ("plain", "echo-headers", "transcode")]
        assert eventually(lambda: all(_known(found, name) for name in wanted), 30), _why(running)
        assert _rejected(running) == before
        yield found
        found.client.close()


def _write_secrets(folder: Path, translation: Translation) -> None:
    """Write the files that the gateway's Secret would mount: one client's, and the signatures' key."""
    folder.mkdir()
    text = json.dumps(list(translation.objects))
    for name in sorted(set(re.findall(r"login-[0-9a-f]+-(?:token|hmac)\.yaml", text))):
        kind = "token" if "token" in name else "hmac"
        value = {"token": CLIENT_SECRET, "hmac": f"signs cookies of {name}"}[kind]
        secret = {"@type": _SECRET, "name": kind, "generic_secret": {"secret": {"inline_string": value}}}
        (folder / name).write_text(yaml.safe_dump({"resources": [secret]}), encoding="utf-8")


def _known(gateway: Gateway, name: str) -> bool:
    try:
        path = "/user?id=1" if name == "transcode" else "/"
        return gateway.status(name, path) == 200
    except httpx.HTTPError:
        return False


def _open(tools: Tools, *ports: int) -> None:
    """Add ports to the gateway's Service, as an operator would."""
    service = ("service", "istio-ingressgateway", "-n", "istio-system")
    more = [{"name": f"tcp-{port}", "port": port, "targetPort": port} for port in ports]
    patch = json.dumps([{"op": "add", "path": "/spec/ports/-", "value": one} for one in more])
    done = tools.run("kubectl", "patch", *service, "--type=json", "-p", patch)
    assert done.returncode == 0, done.stderr


def _trace_to(tools: Tools) -> None:
    """Define the tracing provider, as an operator would before the migration."""
    map_ = tools.run("kubectl", "get", "configmap", "istio", "-n", "istio-system", "-o", "json")
    item = json.loads(map_.stdout)
    mesh = yaml.safe_load(item["data"]["mesh"])
    collector = {"service": config.service("second").rpartition(":")[0], "port": 8000}
    provider = {
        "name": "lab-traces",
        "opentelemetry": {**collector, "http": {"path": "/v1/traces", "timeout": "3s"}},
    }
    mesh["extensionProviders"] = [provider]
    patch = json.dumps({"data": {"mesh": yaml.safe_dump(mesh)}})
    where = ("configmap", "istio", "-n", "istio-system")
    done = tools.run("kubectl", "patch", *where, "--type=merge", "-p", patch)
    assert done.returncode == 0, done.stderr


def _why(state: LabState) -> list[str]:
    """Return what Envoy refused, in its own words."""
    log = Path(state["kubeconfig"]).parent / "logs" / "istio-proxy.cri"
    lines = log.read_text(errors="replace").splitlines()
    return [*_rejected(state), *(line for line in lines if "rejected" in line)]


def _rejected(state: LabState) -> list[str]:
    """Return Envoy's counters of refused configuration that are not zero."""
    url = f"http://{state['envoy_admin']}/stats"
    answer = httpx.get(url, params={"filter": "update_rejected|lua.*errors"}, timeout=5, trust_env=False)
    return [line for line in answer.text.splitlines() if line.strip() and not line.endswith(": 0")]
