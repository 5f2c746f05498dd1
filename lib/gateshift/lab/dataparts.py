"""The data-plane processes as the supervisor starts them: command lines and what they give to the state."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateshift.errors import LabError
from gateshift.lab import topology
from gateshift.lab.controlplane import Layout
from gateshift.lab.oldgateway import material

__all__ = ["PORTS", "DataPart", "connect_to", "parts", "sample_configuration"]

PORTS = ("faults", "apisix_http", "apisix_https", "apisix_admin", "apisix_metrics", "route53", "traffic")

_PROBE_TOKEN_LIFE = 7 * 86400.0  # seconds; a lab that is stepped through by hand may stand for days


@dataclass(frozen=True, slots=True)
class DataPart:
    """One ``python -m gateshift.lab.NAME``; *values* reads state values from its ready line."""

    name: str
    arguments: tuple[str, ...]
    values: Callable[[Mapping[str, Any]], dict[str, Any]]

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", f"gateshift.lab.{self.name}", *self.arguments]


def sample_configuration(given: str | None) -> Path:
    """Return the APISIX configuration of the old gateway: *given*, or the project's sample."""
    if given:
        path = Path(given)
    else:
        here = Path.cwd()
        roots = (here, *here.parents, *Path(__file__).parents)
        found = [r / "params" / "lab" / "apisix.yaml" for r in roots]
        path = next((p for p in found if p.is_file()), found[0])
    if not path.is_file():
        raise LabError(
            f"there is no APISIX configuration at {path}",
            hint="run in the project's clone, or give one: `gateshift lab up --config FILE`",
        )
    return path.resolve()


def connect_to(ports: Mapping[str, int]) -> dict[str, str]:
    """Return where each load balancer's ``name:port`` really is on this machine."""
    return {
        f"{topology.APISIX_LB_NAME}:80": f"127.0.0.1:{ports['apisix_http']}",
        f"{topology.APISIX_LB_NAME}:443": f"127.0.0.1:{ports['apisix_https']}",
        f"{topology.ISTIO_LB_NAME}:80": f"127.0.0.1:{ports['gateway_http']}",
        f"{topology.ISTIO_LB_NAME}:443": f"127.0.0.1:{ports['gateway_https']}",
    }


def _names(backend: topology.Backend) -> list[str]:
    namespaced = f"{backend.name}.{topology.APPLICATION_NAMESPACE}"
    return [backend.name, namespaced, f"{namespaced}.svc", backend.fqdn]


def parts(layout: Layout, backends: Mapping[str, int], options: Mapping[str, Any]) -> list[DataPart]:
    """Return all data-plane parts; each can start at once, none waits for another."""
    p, hosts = layout.ports, layout.certificates.hosts
    keys = layout.folder / "keys"
    variables = material.create(keys, certificate=hosts.certificate, key=hosts.key)
    admin_key = secrets.token_hex(16)
    key_file = layout.folder / "admin-key"
    key_file.touch(mode=0o600)
    key_file.write_text(admin_key, encoding="ascii")
    resolve = {
        f"{name}:{b.port}": f"127.0.0.1:{backends[b.name]}" for b in topology.BACKENDS for name in _names(b)
    }
    route53_url = f"http://127.0.0.1:{p['route53']}"
    old = (
        f"--config={options['config']}",
        f"--variables={variables}",
        f"--resolve={json.dumps(resolve)}",
        f"--http-port={p['apisix_http']}",
        f"--https-port={p['apisix_https']}",
        f"--admin-port={p['apisix_admin']}",
        f"--metrics-port={p['apisix_metrics']}",
        f"--tls-certificate={hosts.certificate}",
        f"--tls-key={hosts.key}",
        f"--admin-key-file={key_file}",
    )
    old_values = {
        "admin_url": f"http://127.0.0.1:{p['apisix_admin']}",
        "admin_key": admin_key,
        "apisix_http": f"127.0.0.1:{p['apisix_http']}",
        "apisix_https": f"127.0.0.1:{p['apisix_https']}",
        "probe_token": material.token(keys, life=_PROBE_TOKEN_LIFE),
    }
    old_addresses = old_values["apisix_http"], old_values["apisix_https"]
    istio = f"127.0.0.1:{p['gateway_http']}", f"127.0.0.1:{p['gateway_https']}"
    clients = [
        f"--route53={route53_url}",
        f"--port={p['traffic']}",
        f"--keys={keys}",
        f"--ca={layout.certificates.ca}",
        # Both gateways take gRPC on their HTTP port.
        f"--lb={topology.APISIX_LB_NAME}={','.join((*old_addresses, old_addresses[0]))}",
        f"--lb={topology.ISTIO_LB_NAME}={','.join((*istio, istio[0]))}",
        f"--rate={options['rate']}",
        f"--ttl={options['ttl']}",
        "--paused",  # until everything they call is ready: their errors are part of the verdict
    ]
    traffic_url = f"http://127.0.0.1:{p['traffic']}"
    faults_url = f"http://127.0.0.1:{p['faults']}"
    return [
        DataPart(
            "backends",
            (f"--ports={json.dumps(dict(backends))}", f"--port={p['faults']}"),
            lambda _line: {"faults_url": faults_url},
        ),
        DataPart("oldgateway", old, lambda _line: old_values),
        DataPart(
            "route53",
            (f"--port={p['route53']}",),
            lambda line: {"route53_url": route53_url, "zone_id": line.get("zone_id", "")},
        ),
        DataPart("clients", tuple(clients), lambda _line: {"traffic_url": traffic_url}),
    ]
