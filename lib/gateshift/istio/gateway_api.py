"""What a gateway would do with a request, computed only from Gateway API objects, by the specification.

The second opinion of the routing proof for this output form: it shares no code with the translation and
knows nothing of APISIX. The rules are those of gateway.networking.k8s.io/v1, and where the specification
leaves a choice, Istio's (read in pilot/pkg/config/kube/gateway/conversion.go and
pilot/pkg/networking/core/route/route.go, the same in 1.22 to 1.31):

* a listener is chosen by port and the most specific hostname; on it, the most specific hostname of the
  routes attached to it is the virtual host, and it is never left again;
* inside it every match of every rule stands by itself: Exact before PathPrefix before RegularExpression
  (the last place is Istio's choice), then the longer value, then those with a method, then the number of
  headers, then of query parameters (``sortHTTPRoutes``); what is still equal is decided by the older route
  object, then its name, then the place of the rule;
* PathPrefix compares whole path segments, regular expressions match in full, a query parameter is compared
  as it was sent and the first of its name counts;
* a GRPCRoute's method is the path ``/service/method``, its service alone the PathPrefix ``/service``.

Which of two objects is older is not written in them: where that would decide, the answer is *undecided*.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gateshift.istio.evaluator import Decision, Request

__all__ = ["GROUP", "UNDECIDED", "GatewayApiEvaluator"]

GROUP = "gateway.networking.k8s.io"
UNDECIDED = "undecided: the older of "
"""Start of the *entry* of a decision that depends on the age of objects."""

_RANK = {"Exact": 0, "PathPrefix": 1, "RegularExpression": 2}
_CLASS = "istio"


@lru_cache(maxsize=65536)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _same(kind: str, wanted: str, value: str | None) -> bool:
    if value is None:
        return False
    return value == wanted if kind == "Exact" else _regex(wanted).fullmatch(value) is not None


def _first_values(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        found.setdefault(name, value)
    return found


@dataclass(frozen=True, slots=True)
class _Match:
    """One match of one rule, with what precedence looks at."""

    kind: str
    path: str
    method: str
    headers: tuple[tuple[str, str, str], ...]
    query: tuple[tuple[str, str, str], ...]

    @classmethod
    def of_http(cls, raw: Mapping[str, Any]) -> _Match:
        path = raw.get("path") or {}
        kind, value = str(path.get("type", "PathPrefix")), str(path.get("value", "/"))
        if kind == "PathPrefix" and value != "/":
            value = value.removesuffix("/")
        return cls(
            kind, value, str(raw.get("method", "")), _pairs(raw, "headers"), _pairs(raw, "queryParams")
        )

    @classmethod
    def of_grpc(cls, raw: Mapping[str, Any]) -> _Match:
        named = raw.get("method") or {}
        service, method = str(named.get("service", "")), str(named.get("method", ""))
        headers = _pairs(raw, "headers")
        if named.get("type", "Exact") != "Exact" or (method and not service):
            path = f"/{service or '[^/]+'}/{method or '.+'}"
            return cls("RegularExpression", path, "", headers, ())
        if not service:
            return cls("PathPrefix", "/", "", headers, ())
        if not method:
            return cls("PathPrefix", f"/{service}", "", headers, ())
        return cls("Exact", f"/{service}/{method}", "", headers, ())

    @property
    def precedence(self) -> tuple[int, int, bool, int, int]:
        """Smaller comes first."""
        return (_RANK[self.kind], -len(self.path), not self.method, -len(self.headers), -len(self.query))

    def accepts(self, request: Request, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        if self.method and self.method != request.method:
            return False
        if not self._takes(request.path):
            return False
        if not all(_same(kind, value, headers.get(name)) for name, kind, value in self.headers):
            return False
        return all(_same(kind, value, query.get(name)) for name, kind, value in self.query)

    def _takes(self, path: str) -> bool:
        if self.kind == "Exact":
            return path == self.path
        if self.kind == "RegularExpression":
            return _regex(self.path).fullmatch(path) is not None
        return path.startswith("/") and (self.path == "/" or (f"{path}/").startswith(f"{self.path}/"))


def _pairs(raw: Mapping[str, Any], field: str) -> tuple[tuple[str, str, str], ...]:
    found: dict[str, tuple[str, str, str]] = {}
    for one in raw.get(field) or ():
        name = str(one["name"]).lower() if field == "headers" else str(one["name"])
        found.setdefault(name, (name, str(one.get("type", "Exact")), str(one["value"])))
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Entry:
    """One match with the rule that it belongs to and where that stands."""

    match: _Match
    route: str
    age: tuple[str, str, str]
    place: tuple[int, int]
    name: str
    rule: Mapping[str, Any]

    def decide(self, path: str) -> Decision:
        filters = {one["type"]: one for one in self.rule.get("filters") or ()}
        if "RequestRedirect" in filters:
            return Decision(self.route, self.name, "redirect")
        backends = self.rule.get("backendRefs") or ()
        namespace = self.age[1]
        if not sum(int(one.get("weight", 1)) for one in backends):
            return Decision(self.route, self.name, "respond 500")
        hosts = tuple(
            f"{one['name']}.{one.get('namespace', namespace)}.svc.cluster.local:{one['port']}"
            for one in backends
            if int(one.get("weight", 1))
        )
        change = (filters.get("URLRewrite") or {}).get("urlRewrite", {}).get("path") or {}
        return Decision(self.route, self.name, "route", hosts, str(change.get("replaceFullPath", path)))


@dataclass(frozen=True, slots=True)
class _Listener:
    gateway: str
    name: str
    port: int
    hostname: str
    tables: dict[str, list[_Entry]]
    """The attached entries by hostname; an empty hostname takes every host."""


def _takes_host(pattern: str, host: str) -> bool:
    """Tell whether a hostname of the Gateway API takes *host*; a wildcard stands for one label or more."""
    if not pattern:
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _intersection(listener: str, route: str) -> str | None:
    """Return the hostname that both take, None when there is none."""
    if not listener or not route:
        return listener or route
    for wide, narrow in ((listener, route), (route, listener)):
        if wide == narrow or (wide.startswith("*.") and narrow.removeprefix("*").endswith(wide[1:])):
            return narrow
    return None


def _specific(pattern: str) -> tuple[bool, int]:
    """Order hostnames: an exact one above every wildcard, the longer above the shorter."""
    return (bool(pattern) and not pattern.startswith("*"), len(pattern))


class GatewayApiEvaluator:
    """Answers for a set of objects which HTTPRoute or GRPCRoute rule a request reaches.

    A rule is named as Istio names it when the specification's ``name`` is not set:
    ``<namespace>.<route>.<place of the rule>``. Objects of other groups are not looked at.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        own = [one for one in objects if str(one.get("apiVersion", "")).startswith(f"{GROUP}/")]
        self._listeners: list[_Listener] = []
        for gateway in own:
            if gateway["kind"] == "Gateway" and gateway["spec"]["gatewayClassName"] == _CLASS:
                name = f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}"
                for one in gateway["spec"]["listeners"]:
                    host = str(one.get("hostname", ""))
                    self._listeners.append(_Listener(name, one["name"], int(one["port"]), host, {}))
        for route in own:
            if route["kind"] in ("HTTPRoute", "GRPCRoute"):
                self._attach(route)
        for listener in self._listeners:
            for entries in listener.tables.values():
                entries.sort(key=lambda one: (one.match.precedence, one.age, one.place))

    def _attach(self, route: Mapping[str, Any]) -> None:
        metadata, spec = route["metadata"], route["spec"]
        entries = list(_entries(route))
        for parent in spec.get("parentRefs") or ():
            name = f"{parent.get('namespace', metadata['namespace'])}/{parent['name']}"
            for listener in self._listeners:
                if listener.gateway != name or parent.get("sectionName", listener.name) != listener.name:
                    continue
                for hostname in spec.get("hostnames") or ("",):
                    host = _intersection(listener.hostname, str(hostname).lower())
                    if host is not None:
                        listener.tables.setdefault(host, []).extend(entries)

    @property
    def hostnames(self) -> frozenset[str]:
        """Every hostname that some listener serves; an empty one takes every host."""
        return frozenset(host for one in self._listeners for host in one.tables)

    def host_of(self, host: str, port: int = 80) -> str | None:
        """Return the hostname under which a request for *host* is served; None when under none."""
        found = self._table(host, port)
        return None if found is None else found[0]

    def _table(self, host: str, port: int) -> tuple[str, Sequence[_Entry]] | None:
        name = host.lower()
        if name.rsplit(":", 1)[-1].isdigit():
            name = name.rsplit(":", 1)[0]
        on_port = [one for one in self._listeners if one.port == port and _takes_host(one.hostname, name)]
        if not on_port:
            return None
        listener = max(on_port, key=lambda one: _specific(one.hostname))
        taking = [one for one in listener.tables if _takes_host(one, name)]
        if not taking:
            return None
        chosen = max(taking, key=_specific)
        return chosen, listener.tables[chosen]

    def decide(self, request: Request) -> Decision:
        """Return the decision for *request*; no rule gives the 404 decision."""
        found = self._table(request.authority, request.port)
        if found is None:
            return Decision()
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = _first_values(request.query)
        first: _Entry | None = None
        for entry in found[1]:
            if first is not None and entry.match.precedence != first.match.precedence:
                break
            if not entry.match.accepts(request, headers, query):
                continue
            if first is None:
                first = entry
            elif entry.route != first.route and not (entry.age[0] and first.age[0]):
                return Decision(first.route, f"{UNDECIDED}{first.name} and {entry.name}")
        return first.decide(request.path) if first is not None else Decision()


def _entries(route: Mapping[str, Any]) -> Iterator[_Entry]:
    metadata = route["metadata"]
    title = f"{metadata['namespace']}/{metadata['name']}"
    age = (str(metadata.get("creationTimestamp") or ""), metadata["namespace"], metadata["name"])
    read = _Match.of_grpc if route["kind"] == "GRPCRoute" else _Match.of_http
    for number, rule in enumerate(route["spec"].get("rules") or ()):
        name = str(rule.get("name") or f"{metadata['namespace']}.{metadata['name']}.{number}")
        for place, match in enumerate(rule.get("matches") or ({},)):
            yield _Entry(read(match), title, age, (number, place), name, rule)
