"""The stand-in for APISIX and the lab's Envoy side by side; the backends tell what arrived."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from gateshift.apisix.model import Configuration, Kind, Resource
from gateshift.apisix.routing import Request
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import apply_order
from gateshift.lab import dataplane, topology
from gateshift.lab.oldgateway.balancer import Resolver
from gateshift.lab.oldgateway.gateway import Gateway
from gateshift.lab.oldgateway.proxy import HttpProxy
from gateshift.lab.oldgateway.store import Store
from gateshift.translate import Target
from gateshift.translate.nodes import read_nodes

COMPARED = frozenset({"proxy-rewrite", "redirect"})
"""Plugins that decide where a request goes; what others do is checked plugin by plugin."""
_ROUTING = (Kind.ROUTE, Kind.SERVICE, Kind.UPSTREAM, Kind.PLUGIN_CONFIG)

TARGET = Target(version="1.31", namespace="shop")
"""What the configurations are translated for."""

_TAKEN = topology.APPLICATION_NAMESPACE
_APART = f"{_TAKEN}-compared"

Object = dict[str, Any]
Answer = tuple[int, str, str]
"""Status, backend (or where a redirect points to) and the path that arrived."""


def routing_only(configuration: Configuration) -> Configuration:
    """What decides the route, backend and path; upstreams speak plain HTTP, as the backends here do."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            found = {key: plain(one) for key, one in value.items()}
            if "scheme" in found and ("nodes" in found or "type" in found):
                default = {"https": 443, "grpcs": 443}.get(str(found["scheme"]), 80)
                found["nodes"] = [
                    {"host": n.host, "port": n.port or default, "weight": n.weight}
                    for n in read_nodes(value, ())
                ]
                found["scheme"] = "http"
            found.pop("tls", None)
            return found
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    def reduced(resource: Resource) -> Resource:
        spec = plain(resource.spec)
        if isinstance(spec.get("plugins"), Mapping):
            spec["plugins"] = {k: v for k, v in spec["plugins"].items() if k in COMPARED}
        return replace(resource, spec=spec)

    kept = {k: {i: reduced(r) for i, r in configuration.of(k).items()} for k in _ROUTING}
    return replace(configuration, resources=kept, findings=())


def upstreams_of(configuration: Configuration) -> Iterator[Mapping[str, Any]]:
    """Yield every upstream of a configuration, inline ones too."""
    for resource in configuration:
        if resource.kind is Kind.UPSTREAM:
            yield resource.spec
        elif isinstance(resource.spec.get("upstream"), Mapping):
            yield resource.spec["upstream"]


@dataclass(frozen=True)
class Difference:
    """One request that the two gateways treat differently."""

    request: Request
    old: Answer
    new: Answer

    def __str__(self) -> str:
        one = self.request
        return f"{one.method} {one.host}{one.path} {dict(one.headers)}: APISIX {self.old}, Envoy {self.new}"


def pools_of(configuration: Configuration) -> dict[str, str]:
    """Return the nodes that share an upstream under one name: either gateway may choose either."""
    found: dict[str, str] = {}
    for spec in upstreams_of(configuration):
        names = sorted(f"{n.host}:{n.port}" for n in read_nodes(spec, ()))
        for name in names:
            found[name] = max(found.get(name, ""), ",".join(names), key=len)
    return found


class Loop:
    """An event loop in a thread, where the stand-in and the backends run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Backends:
    """One listener a backend name; it answers with its name and the path that it was sent."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._stack = AsyncExitStack()
        self._ports: dict[str, int] = {}

    def port(self, name: str) -> int:
        """Return the port of *name* (``host:port`` of an upstream's node)."""
        if name not in self._ports:

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                await request.read()
                return dataplane.answer({"backend": name, "path": request.raw_path})

            self._ports[name] = self._loop.run(dataplane.listen(handle, self._stack))
        return self._ports[name]

    def close(self) -> None:
        self._loop.run(self._stack.aclose())

    def behind(self, objects: Sequence[Mapping[str, Any]], namespace: str) -> list[Object]:
        """Return the objects with a backend behind every destination: what DNS and pods are in a cluster."""
        found: list[Object] = []
        services: dict[str, set[int]] = {}
        # the sample's Services stand in the lab already, in front of its own backends
        apart = json.dumps(list(objects)).replace(f".{_TAKEN}.svc", f".{_APART}.svc")
        for one in json.loads(apart):
            if one["kind"] == "ServiceEntry":
                found.append(self._here(one))
                continue
            found.append(one)
            if one["kind"] == "VirtualService":
                for rule in one["spec"]["http"]:
                    for part in rule.get("route", ()):
                        target = part["destination"]
                        services.setdefault(target["host"], set()).add(target["port"]["number"])
            elif one["kind"] in {"HTTPRoute", "GRPCRoute"}:
                for ref in (ref for rule in one["spec"]["rules"] for ref in rule.get("backendRefs", ())):
                    if ref.get("namespace") == _TAKEN:
                        ref["namespace"] = _APART
                    space = ref.get("namespace", one["metadata"]["namespace"])
                    host = f"{ref['name']}.{space}.svc.cluster.local"
                    services.setdefault(host, set()).add(ref["port"])
            elif one["kind"] == "ReferenceGrant" and one["metadata"]["namespace"] == _TAKEN:
                one["metadata"]["namespace"] = _APART
        for host, ports in sorted(services.items()):
            if host.endswith(".svc.cluster.local"):
                found += self._service(host, sorted(ports), namespace)
        return found

    def _here(self, entry: Object) -> Object:
        spec = entry["spec"]
        ports = {p["name"]: p["number"] for p in spec["ports"]}
        given = spec.get("endpoints") or [{"address": spec["hosts"][0], "ports": ports}]
        spec["resolution"] = "STATIC"
        spec["endpoints"] = [
            {
                **one,
                "address": "127.0.0.1",
                "ports": {k: self.port(f"{one['address']}:{v}") for k, v in one["ports"].items()},
            }
            for one in given
        ]
        return entry

    def _service(self, host: str, ports: Sequence[int], namespace: str) -> list[Object]:
        name, space = host.split(".")[:2]
        names = {f"http-{port}": port for port in ports}
        labels = {"app": name}
        short = name if space == namespace else host.replace(f".{_APART}.", f".{_TAKEN}.")
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": space},
            "spec": {"selector": labels, "ports": [{"name": n, "port": p} for n, p in names.items()]},
        }
        where = {n: self.port(f"{short}:{p}") for n, p in names.items()}
        workload = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": name, "namespace": space},
            "spec": {"address": "127.0.0.1", "labels": labels, "ports": where},
        }
        return [service, workload]


class OldGateway:
    """The stand-in for APISIX with one configuration."""

    def __init__(self, loop: Loop, configuration: Configuration, addresses: Mapping[str, str]) -> None:
        self._loop, self._stack = loop, AsyncExitStack()
        self.address = f"127.0.0.1:{loop.run(self._start(configuration, addresses))}"

    async def _start(self, configuration: Configuration, addresses: Mapping[str, str]) -> int:
        session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0)
        )
        self._stack.push_async_callback(session.close)
        proxy = HttpProxy(Gateway(Store(configuration), Resolver(addresses)), session)
        return await dataplane.listen(proxy.handle, self._stack)

    def close(self) -> None:
        self._loop.run(self._stack.aclose())


def ask(address: str, request: Request) -> Answer:
    """Send *request* as a client would and return what came of it."""
    host, _, port = address.partition(":")
    target = quote(request.path, safe="/:@!$&'()*+,;=-._~")
    if request.args:
        target += "?" + urlencode(dict(request.args))
    headers = {"Host": request.host, **request.headers}
    if request.cookies:
        headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in request.cookies.items())
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(request.method, target, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status == 200 and body.startswith(b"{"):
        told = json.loads(body)
        if "backend" in told:
            return answer.status, told["backend"], told["path"]
    return answer.status, answer.headers.get("Location", "") or "", ""


class Applied:
    """Objects in the cluster, replaced as a whole; Envoy has them when the marker of the turn answers."""

    def __init__(self, cluster: Cluster, envoy: str, gateway_namespace: str) -> None:
        self._cluster, self._envoy, self._namespace = cluster, envoy, gateway_namespace
        self._here: list[Object] = []
        self._turn = 0

    def replace(self, objects: Sequence[Object]) -> None:
        self.remove()
        self._turn += 1
        for one in [*apply_order(objects), *self._marker()]:
            space = one["metadata"].get("namespace")
            if space and not self._cluster.get("Namespace", space):
                self._cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
            self._cluster.apply(one)
            self._here.append(one)
        self._wait()

    def remove(self) -> None:
        for one in reversed(self._here):
            kind = f"{one['apiVersion']}/{one['kind']}"
            self._cluster.delete(kind, one["metadata"]["name"], one["metadata"].get("namespace"))
        self._here.clear()

    def _marker(self) -> list[Object]:
        host = f"turn-{self._turn}.marker.test"
        metadata = {"name": "zz-marker", "namespace": self._namespace}
        rule = {"directResponse": {"status": 418}}
        port = {"number": 80, "name": "http-marker", "protocol": "HTTP"}
        gateway = {"selector": {"istio": "ingressgateway"}, "servers": [{"port": port, "hosts": [host]}]}
        version = "networking.istio.io/v1"
        spec = {"hosts": [host], "gateways": ["zz-marker"], "http": [rule]}
        return [
            {"apiVersion": version, "kind": "Gateway", "metadata": metadata, "spec": gateway},
            {"apiVersion": version, "kind": "VirtualService", "metadata": metadata, "spec": spec},
        ]

    def _wait(self) -> None:
        asked = Request(host=f"turn-{self._turn}.marker.test", path="/")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if ask(self._envoy, asked)[0] == 418:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError("Envoy never got the objects")


@contextmanager
def old_gateway(loop: Loop, backends: Backends, configuration: Configuration) -> Iterator[OldGateway]:
    """Run the stand-in with every node of *configuration* at its backend."""
    addresses = {
        f"{n.host}:{n.port}": f"127.0.0.1:{backends.port(f'{n.host}:{n.port}')}"
        for spec in upstreams_of(configuration)
        for n in read_nodes(spec, ())
    }
    found = OldGateway(loop, configuration, addresses)
    try:
        yield found
    finally:
        found.close()
