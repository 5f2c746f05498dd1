"""What a migration touches: the hosts that users call and the Services behind them, wherever they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from gateshift.cluster.front import servers_of, tls_hosts
from gateshift.cluster.objects import Object
from gateshift.errors import GateshiftError
from gateshift.params.model import Params

__all__ = ["Once", "Reach", "overlap"]

_ROUTES = {"HTTPRoute", "GRPCRoute"}


def overlap(one: str, other: str) -> bool:
    """Tell whether two hosts, each perhaps ``*`` or ``*.example.com``, have a name in common, as in Istio."""
    if "*" in {one, other} or one == other:
        return True
    if one.startswith("*.") and other.startswith("*."):
        return one[1:].endswith(other[1:]) or other[1:].endswith(one[1:])
    wild, name = (one, other) if one.startswith("*.") else (other, one)
    return wild.startswith("*.") and name.endswith(wild[1:])


_T = TypeVar("_T")


class Once(Generic[_T]):
    """What is read when it is first asked for, once, however many threads ask; an error is not kept."""

    def __init__(self, read: Callable[[], _T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._found: list[_T] = []

    def __call__(self) -> _T:
        """Return what was read, reading it now if nobody has."""
        with self._lock:
            if not self._found:
                self._found.append(self._read())
            return self._found[0]


class Reach:
    """Hosts and backends from the params and the translated (or applied) *objects*, which are read once.

    Objects that cannot be had leave what the params say: why they cannot is the matter of another check.
    Safe to use from several threads.
    """

    def __init__(
        self, params: Params, objects: Callable[[], Iterable[Mapping[str, Any]]] | None = None
    ) -> None:
        self.params = params
        self._read = objects
        self._objects = Once(self._all)

    @property
    def objects(self) -> list[Object]:
        """The objects, none when they cannot be had."""
        return self._objects()

    def _all(self) -> list[Object]:
        try:
            return [dict(one) for one in self._read()] if self._read else []
        except GateshiftError:
            return []

    def _moved(self) -> list[str]:
        """Hosts whose records are moved."""
        traffic = self.params.traffic
        return [
            *(traffic.route53.hosts if traffic.route53 else ()),
            *(traffic.cloudflare.hosts if traffic.cloudflare else ()),
        ]

    def hosts(self) -> list[str]:
        """Return the hosts that users call: those whose records are moved, and those of the probes.

        Where no record is moved (traffic-split), all hosts of the objects are. ``*`` is never one.
        """
        found = [*(self._moved() or self._served()), *(p.host for p in self.params.verify.probes)]
        return [h for h in dict.fromkeys(found) if h != "*"]

    def secure_hosts(self) -> list[str]:
        """Return those of :meth:`hosts` that need a certificate.

        A host whose record is moved counts as one: nobody says that it is never called by TLS. Others do
        when a Gateway serves them by TLS or a probe calls them so.
        """
        hosts = self.hosts()
        by_gateway = tls_hosts([o for o in self.objects if o.get("kind") == "Gateway"], hosts)
        sure = {*self._moved(), *by_gateway, *(p.host for p in self.params.verify.probes if p.tls)}
        return [h for h in hosts if h in sure]

    def _served(self) -> Iterator[str]:
        for obj in self.objects:
            if obj.get("kind") == "VirtualService":
                yield from map(str, obj["spec"].get("hosts") or [])
            elif obj.get("kind") in _ROUTES:
                yield from map(str, obj["spec"].get("hostnames") or [])
            elif obj.get("kind") == "Gateway":
                yield from (str(h).rpartition("/")[2] for s in servers_of(obj) for h in s.get("hosts") or [])

    def namespaces(self) -> list[str]:
        """Return the namespaces of the backends, the application's first."""
        return list(
            dict.fromkeys([self.params.cluster.application_namespace, *(n for n, _ in self.backends())])
        )

    def backends(self) -> dict[tuple[str, str], set[int]]:
        """Return the ports that routes send to, by namespace and name of the Service (no port: any)."""
        found: dict[tuple[str, str], set[int]] = {}
        for obj in self.objects:
            home = str(obj.get("metadata", {}).get("namespace") or self.params.cluster.application_namespace)
            for namespace, name, port in _destinations(obj, home):
                ports = found.setdefault((namespace, name), set())
                if port is not None:
                    ports.add(port)
        return found


def _destinations(obj: Object, home: str) -> Iterator[tuple[str, str, int | None]]:
    """Yield namespace, name and port of each Service that *obj* routes to; *home* is its own namespace."""
    spec = obj.get("spec") or {}
    if obj.get("kind") == "VirtualService":
        for rule in (r for section in ("http", "tcp", "tls") for r in spec.get(section) or []):
            ends = [one.get("destination") for one in rule.get("route") or []]
            ends += [one.get("destination") for one in rule.get("mirrors") or []]
            for end in filter(None, [*ends, rule.get("mirror")]):
                if where := _service(str(end.get("host", "")), home):
                    yield *where, (end.get("port") or {}).get("number")
    elif obj.get("kind") in _ROUTES:
        for rule in spec.get("rules") or []:
            mirrors = [f["requestMirror"] for f in rule.get("filters") or [] if "requestMirror" in f]
            refs = [*(rule.get("backendRefs") or []), *(m["backendRef"] for m in mirrors)]
            for ref in refs:
                if ref.get("kind", "Service") == "Service":
                    yield str(ref.get("namespace") or home), str(ref["name"]), ref.get("port")


def _service(host: str, home: str) -> tuple[str, str] | None:
    """Return namespace and name of the Service that *host* names, None for a host outside the cluster."""
    name, *rest = host.split(".")
    if not rest:
        return (home, name) if name and name != "*" else None
    return (rest[0], name) if rest[1:2] == ["svc"] else None
