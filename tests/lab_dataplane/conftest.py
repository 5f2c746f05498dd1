"""One data plane for the module's tests: backends and the old gateway with the sample configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateshift.lab import topology
from gateshift.lab.certs import Authority
from gateshift.lab.oldgateway import material

from .programs import program

SAMPLE = Path(__file__).parents[2] / "params" / "lab" / "apisix.yaml"
ADMIN_KEY = "test-admin-key"


@dataclass(frozen=True)
class Plane:
    backends: dict[str, Any]
    gateway: dict[str, Any]
    keys: Path
    ca: Path
    client: httpx.Client

    @property
    def faults(self) -> str:
        return f"http://127.0.0.1:{self.backends['control_port']}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.gateway['admin_port']}/apisix/admin"

    def ask(self, method: str, path: str, host: str = topology.HOST_API, **more: Any) -> httpx.Response:
        headers = {"Host": host, **more.pop("headers", {})}
        if token := more.pop("token", None):
            headers["Authorization"] = f"Bearer {token}"
        url = f"http://127.0.0.1:{self.gateway['http_port']}{path}"
        return self.client.request(method, url, headers=headers, **more)

    def token(self, consumer: str = "voice-web-app", **more: Any) -> str:
        return material.token(self.keys, consumer, **more)

    def manage(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.client.request(method, f"{self.admin}{path}", headers={"X-API-KEY": ADMIN_KEY}, **more)

    def metrics(self) -> str:
        return self.client.get(
            f"http://127.0.0.1:{self.gateway['metrics_port']}/apisix/prometheus/metrics"
        ).text


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("plane")
    hosts = Authority(folder / "ca").issue("hosts", "hosts", names=list(topology.HOSTS))
    variables = material.create(folder / "keys", certificate=hosts.certificate, key=hosts.key)
    with program("backends") as backends:
        known = {
            f"{one.fqdn}:{one.port}": f"127.0.0.1:{backends['ports'][one.name]}" for one in topology.BACKENDS
        }
        with (
            program(
                "oldgateway",
                "--config",
                str(SAMPLE),
                "--variables",
                str(variables),
                "--resolve",
                json.dumps(known),
                "--tls-certificate",
                str(hosts.certificate),
                "--tls-key",
                str(hosts.key),
                env={"APISIX_ADMIN_KEY": ADMIN_KEY},
            ) as gateway,
            httpx.Client(timeout=5) as client,
        ):
            yield Plane(backends, gateway, folder / "keys", folder / "ca" / "ca.crt", client)


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "plane" in request.fixturenames:
        used: Plane = request.getfixturevalue("plane")
        used.client.delete(f"{used.faults}/faults")
