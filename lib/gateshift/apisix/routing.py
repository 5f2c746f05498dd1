"""Which route APISIX chooses for a request, by the three HTTP routers it ships.

Follows apisix/http/router/*.lua, lua-resty-radixtree 2.9.2 and lua-resty-expr 1.3.2, and is compared with
them by the data in tests/apisix/data. What cannot be decided without running Lua (``filter_func``) never
matches silently: the match carries the route among ``undecided``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.expr import InvalidExpression, Node, compile_vars, evaluate, variables_of
from gateshift.apisix.ipmatch import IpMatcher
from gateshift.apisix.lua import byte_string, from_byte_string, lower
from gateshift.apisix.model import Configuration, Finding, Kind, Resource, Router, Severity
from gateshift.apisix.radix import Entry, PathTree
from gateshift.apisix.request import Request, Variables, is_readable, normalize_uri
from gateshift.apisix.templates import REMEDY, unknown_match

__all__ = ["Match", "Request", "RouteTable", "Tried", "default_router", "is_active", "normalize_uri"]

_METHODS = frozenset(
    {"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"}
)
_ROUTER_SINCE = (3, 3)
_CROWDED = 16  # entries of one path from which on it pays to remember what method and host leave
_NARROWED = 4096


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate: a route whose path matched, and what it failed on (empty for the winner)."""

    route: str
    path: str
    failed: tuple[str, ...] = ()
    bucket: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON; ``bucket`` is the host under which the route was found."""
        out: dict[str, Any] = {"route": self.route, "path": self.path, "failed": list(self.failed)}
        if self.bucket:
            out["host"] = self.bucket
        return out


@dataclass(frozen=True, slots=True)
class Match:
    """The chosen route, or None for APISIX's 404.

    ``undecided`` names routes that come before the winner and whose filter_func (or untranslatable
    pattern) would decide: when it is not empty, ``winner`` holds only if all of them refuse.
    """

    winner: str | None
    undecided: tuple[str, ...] = ()
    why: tuple[Tried, ...] = ()


class _Route:
    """A compiled route."""

    __slots__ = ("filter_func", "hosts", "id", "methods", "remote", "simple", "vars")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.methods: frozenset[str] | None = None
        self.remote: IpMatcher | None = None
        self.hosts: tuple[tuple[bool, str], ...] | None = None
        self.vars: Node | None = None
        self.filter_func = False
        self.simple = False


def default_router(configuration: Configuration) -> Router:
    """The router named by the configuration, else the default of its APISIX version (3.3 when unknown)."""
    if configuration.router is not None:
        return configuration.router
    numbers = [int(part) for part in (configuration.version or "").split(".")[:2] if part.isdigit()]
    if len(numbers) == 2 and tuple(numbers) < _ROUTER_SINCE:
        return Router.URI
    return Router.HOST_URI


class RouteTable:
    """All active routes of a configuration, compiled once.

    ``findings`` names routes that APISIX itself drops (invalid vars, address or method), routes that a
    template was to complete, and routes that need a person (filter_func); ``ids`` are the routes that take
    part, ``dropped`` says why others do not, and ``remedies`` what to do about it.
    """

    def __init__(self, configuration: Configuration, router: Router | None = None) -> None:
        self.router = router or default_router(configuration)
        self.findings: list[Finding] = []
        self.ids: list[str] = []
        self.dropped: dict[str, str] = {}
        self.remedies: dict[str, str] = {}
        self._configuration = configuration
        self._narrowed = _Narrowed()
        by_host = self.router is Router.HOST_URI
        parameters = self.router is Router.URI_WITH_PARAMETER
        self._uri: PathTree[_Route] = PathTree(parameters=parameters)
        self._hosts: PathTree[tuple[str, PathTree[_Route]]] | None = None
        buckets: dict[str, PathTree[_Route]] = {}
        for resource in configuration.of(Kind.ROUTE).values():
            self._add(resource, buckets if by_host else None)
        self._uri.freeze()
        if buckets:
            self._hosts = PathTree()
            for host, tree in buckets.items():
                self._hosts.add(host[::-1], (host, tree.freeze()))
            self._hosts.freeze()

    def _drop(self, resource: Resource, message: str, remedy: str) -> None:
        self.findings.append(Finding(Severity.ERROR, resource.origin, message, remedy))
        self.dropped[resource.id] = message
        self.remedies[resource.id] = remedy

    def _add(self, resource: Resource, buckets: dict[str, PathTree[_Route]] | None) -> None:
        spec = resource.spec
        if not is_active(spec, self.router):
            return
        unknown = unknown_match(self._configuration, resource)
        if unknown:
            self._drop(resource, f"route {resource.id} is left out: {unknown}", REMEDY)
            return
        try:
            route = self._compile(resource)
        except ValueError as error:
            self._drop(resource, f"route {resource.id} is dropped by APISIX: {error}", "correct the route")
            return
        paths = spec["uri"] if spec.get("uris") is None and "uri" in spec else spec.get("uris")
        if isinstance(paths, str):
            paths = [paths]
        if not isinstance(paths, list | tuple) or not paths or not all(isinstance(p, str) for p in paths):
            self._drop(resource, f"route {resource.id} has neither uri nor uris", "add the route's uri")
            return
        priority = spec.get("priority")
        weight = priority if isinstance(priority, int | float) and not isinstance(priority, bool) else 0
        hosts = self.hosts_of(resource)
        if buckets is None:
            route.hosts = _compile_hosts(hosts)
            trees = [self._uri]
        elif hosts is None:
            trees = [self._uri]
        else:
            trees = [buckets.setdefault(host, PathTree()) for host in hosts]
        self.ids.append(route.id)
        route.simple = not (
            route.methods or route.remote or route.hosts is not None or route.vars or route.filter_func
        )
        for tree in trees:
            for path in paths:
                tree.add(byte_string(path), route, weight)

    def _compile(self, resource: Resource) -> _Route:
        spec = resource.spec
        route = _Route(resource.id)
        methods = spec.get("methods")
        if isinstance(methods, str):
            route.methods = frozenset({methods}) & _METHODS or None
        elif isinstance(methods, list | tuple) and methods:
            unknown = [m for m in methods if m not in _METHODS]
            if unknown:
                raise ValueError(f"unknown method {unknown[0]!r}")
            route.methods = frozenset(methods)
        addresses = spec.get("remote_addrs")
        if addresses is None:
            addresses = spec.get("remote_addr")
        if addresses is not None:
            route.remote = IpMatcher([addresses] if isinstance(addresses, str) else list(addresses))
        if spec.get("vars") is not None:
            try:
                route.vars = compile_vars(spec["vars"])
            except InvalidExpression as error:
                raise ValueError(f"failed to validate the 'vars' expression: {error}") from None
            for name in sorted(variables_of(route.vars)):
                if not is_readable(name):
                    message = f"route {resource.id} asks for ${name}, which no request here carries"
                    remedy = "it counts as absent; check such requests by hand"
                    self.findings.append(Finding(Severity.WARNING, resource.origin, message, remedy))
        if spec.get("filter_func"):
            route.filter_func = True
            self.findings.append(
                Finding(
                    Severity.WARNING,
                    resource.origin,
                    f"route {resource.id} has a filter_func: Lua decides whether it matches",
                    "replace it by vars, or check the requests named as undecided by hand",
                )
            )
        return route

    def hosts_of(self, resource: Resource) -> list[str] | None:
        """Return the hosts under which a route is looked up, as byte strings; None when it has none."""
        by_host = self.router is Router.HOST_URI
        spec = resource.spec
        own = spec.get("hosts")
        if own is None and spec.get("host") is not None:
            own = [spec["host"]]
        if own is not None:
            texts = [byte_string(str(h)) for h in ([own] if isinstance(own, str) else own)]
            # with both host and hosts APISIX lowers host alone, and matches by hosts
            as_is = by_host and spec.get("hosts") is not None and spec.get("host") is not None
            return texts if as_is else [lower(h) for h in texts]
        service_id = spec.get("service_id")
        if service_id is None:
            return None
        service = self._configuration.get(Kind.SERVICE, service_id)
        if service is None:
            self.findings.append(
                Finding(
                    Severity.ERROR,
                    resource.origin,
                    f"route {resource.id} names service {service_id}, which is not in the configuration",
                    "add the service; APISIX matches the route without hosts and then fails",
                )
            )
            return None
        hosts = service.spec.get("hosts")
        if hosts is None:
            return None
        # APISIX lowers the hosts of routes only; under radixtree_host_uri a service's stay as written
        texts = [byte_string(str(h)) for h in ([hosts] if isinstance(hosts, str) else hosts)]
        return texts if by_host else [lower(h) for h in texts]

    def match(self, request: Request, *, why: bool = False) -> Match:
        """Choose the route for *request*; with *why*, record every candidate in the order tried."""
        variables = Variables(request)
        undecided: list[str] = []
        tried: list[Tried] | None = [] if why else None
        winner = self._match(variables, undecided, tried)
        return Match(
            winner, tuple(dict.fromkeys(undecided)) if undecided else (), tuple(tried) if tried else ()
        )

    def _match(self, variables: Variables, undecided: list[str], tried: list[Tried] | None) -> str | None:
        if self._hosts is not None:
            reversed_host = variables.host[::-1]
            for bucket in self._hosts.search(reversed_host):
                if bucket.exact or bucket.accepts(reversed_host):
                    host, tree = bucket.payload
                    winner = self._in(tree, variables, undecided, tried, host)
                    if winner is not None:
                        return winner
        return self._in(self._uri, variables, undecided, tried, "")

    def _in(
        self,
        tree: PathTree[_Route],
        variables: Variables,
        undecided: list[str],
        tried: list[Tried] | None,
        bucket: str,
    ) -> str | None:
        if tried is None:
            return _search(tree, variables.uri, variables, undecided, self._narrowed)
        return _search_why(tree, variables.uri, variables, undecided, tried, bucket)


def is_active(spec: Mapping[str, Any], router: Router) -> bool:
    """Tell whether a route takes part, as *router* reads its status (false is absent, and means 1)."""
    status = spec.get("status")
    if status is None or status is False:
        return True
    return status == 1 if router is Router.HOST_URI else status is True or status != 0


def _compile_hosts(hosts: Sequence[str] | None) -> tuple[tuple[bool, str], ...] | None:
    if not hosts:
        return None  # an empty list is no condition for radixtree_uri
    return tuple((h.startswith("*"), h[1:] if h.startswith("*") else h) for h in hosts)


class _Narrowed:
    """The entries of a crowded path that a method and host leave, found once for each pair of them.

    A thousand routes on ``/*`` are common where hosts tell them apart; without this every request would
    compare all of them.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, str, str | None], list[Entry[_Route]]] = {}

    def __call__(self, entries: list[Entry[_Route]], variables: Variables) -> list[Entry[_Route]]:
        method = variables.request.method
        key = (id(entries), method, variables.host, variables.http_host)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _NARROWED:
                self._known.clear()  # bounded: hosts may be as many as requests
            known = self._known[key] = [
                entry
                for entry in entries
                if (entry.payload.methods is None or method in entry.payload.methods)
                and (entry.payload.hosts is None or _host_accepted(entry.payload.hosts, variables))
            ]
        return known


def _search(
    tree: PathTree[_Route], uri: str, variables: Variables, undecided: list[str], narrowed: _Narrowed
) -> str | None:
    for entries in tree.groups(uri):
        crowded = len(entries) > _CROWDED
        for entry in narrowed(entries, variables) if crowded else entries:
            route = entry.payload
            outcome = True if route.simple else _accepts(route, variables, None)
            if outcome is not False and not entry.exact and not entry.accepts(uri):
                outcome = None if entry.manual else False
            if outcome:
                return route.id
            if outcome is None:
                undecided.append(route.id)
    return None


def _search_why(  # noqa: PLR0917 - the inputs of _search, and where to write
    tree: PathTree[_Route],
    uri: str,
    variables: Variables,
    undecided: list[str],
    tried: list[Tried],
    bucket: str,
) -> str | None:
    for entry in tree.search(uri):
        route = entry.payload
        failed: list[str] = []
        outcome = _accepts(route, variables, failed)
        if outcome is not False and not entry.exact and not entry.accepts(uri):
            outcome = None if entry.manual else False
            failed.append(f"uri: {entry.manual or 'the rest of the path does not match'}")
        path = from_byte_string(entry.path)
        tried.append(Tried(route.id, path, tuple(failed), from_byte_string(bucket)))
        if outcome:
            return route.id
        if outcome is None:
            undecided.append(route.id)
    return None


def _accepts(route: _Route, variables: Variables, failed: list[str] | None) -> bool | None:
    """Check everything but the path, in APISIX's order; None when Lua would decide."""
    request = variables.request
    if route.methods is not None and request.method not in route.methods:
        if failed is not None:
            failed.append(f"methods: {request.method} is not one of {', '.join(sorted(route.methods))}")
        return False
    if route.remote is not None and not route.remote.match(request.remote_addr):
        if failed is not None:
            failed.append(f"remote_addrs: {request.remote_addr} is not in {', '.join(route.remote.blocks)}")
        return False
    if route.hosts is not None and not _host_accepted(route.hosts, variables):
        if failed is not None:
            shown = ", ".join(("*" if wild else "") + host for wild, host in route.hosts)
            failed.append(
                f"hosts: {variables.host or '(no host)'} is not covered by {from_byte_string(shown)}"
            )
        return False
    outcome: bool | None = True
    if route.vars is not None:
        outcome = evaluate(route.vars, variables, failed)
        if outcome is False:
            return False
    if route.filter_func:
        if failed is not None:
            failed.append("filter_func: Lua decides; check by hand")
        return None
    return outcome


def _host_accepted(hosts: Sequence[tuple[bool, str]], variables: Variables) -> bool:
    for wildcard, host in hosts:
        given = variables.host
        if ":" in host:
            given = variables.http_host or given  # compared as sent, with its port
        if given.endswith(host) if wildcard else given == host:
            return True
    return False


def as_written(configuration: Configuration, id_: str | None) -> Any:
    """Return a route id with the type it has in its source (a number stays a number)."""
    if id_ is None:
        return None
    resource = configuration.get(Kind.ROUTE, id_)
    spec: Mapping[str, Any] = resource.spec if resource else {}
    return spec.get("id", id_)
