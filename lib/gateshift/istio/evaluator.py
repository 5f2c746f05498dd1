"""What Envoy would do with a request, computed only from Gateway and VirtualService objects.

This is the second opinion of the routing proof: it shares no code with the translation and knows nothing
of APISIX. It follows Istio's gateway: the virtual host is picked once (exact name, then the longest
wildcard, then ``*``) and never left again; inside it the rules are tried top-down and the first that
matches wins. Header names are lower case, ``:path`` includes the query string, regular expressions match
in full, and a ``withoutHeaders`` rule treats a missing header as the empty string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

__all__ = ["Decision", "Evaluator", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it reaches the gateway. *path* has no query string; *query* has no question mark."""

    authority: str = ""
    path: str = "/"
    query: str = ""
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    port: int = 80
    claims: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Envoy's ``:path``: the path with its query string."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def scheme(self) -> str:
        """``https`` on the TLS port, else ``http``."""
        return "https" if self.port == 443 else "http"


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen rule: *entry* is the VirtualService rule's name (None: the gateway answers 404)."""

    virtual_service: str | None = None
    entry: str | None = None
    action: str = "not-found"
    destinations: tuple[str, ...] = ()
    path: str | None = None


@lru_cache(maxsize=65536)
def _regex(pattern: str) -> re.Pattern[str]:
    # RE2 accepts inline flags only at the start as well; DOTALL is off in RE2 unless (?s) is given.
    return re.compile(pattern)


_Matcher = tuple[str, str]


def _matcher(raw: Mapping[str, Any] | None) -> _Matcher:
    """Reduce a StringMatch to (kind, value); none or the metacharacter ``*`` mean presence."""
    if not raw:
        return ("present", "")
    kind, value = next(iter(raw.items()))
    if kind == "regex" and value == "*":
        return ("present", "")
    return (kind, str(value))


def _accepts(matcher: _Matcher, value: str) -> bool:
    kind, wanted = matcher
    if kind == "exact":
        return value == wanted
    if kind == "prefix":
        return value.startswith(wanted)
    if kind == "regex":
        return _regex(wanted).fullmatch(value) is not None
    return True


@dataclass(frozen=True, slots=True)
class _Match:
    uri: _Matcher | None
    ignore_case: bool
    headers: tuple[tuple[str, _Matcher], ...]
    without: tuple[tuple[str, _Matcher], ...]
    query: tuple[tuple[str, _Matcher], ...]
    port: int | None

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> _Match:
        pseudo = [
            (f":{key}", _matcher(raw[key])) for key in ("method", "authority", "scheme") if raw.get(key)
        ]
        headers = [(k.lower(), _matcher(v)) for k, v in (raw.get("headers") or {}).items()]
        return cls(
            uri=_matcher(raw["uri"]) if raw.get("uri") else None,
            ignore_case=bool(raw.get("ignoreUriCase")),
            headers=tuple(pseudo + headers),
            without=tuple((k.lower(), _matcher(v)) for k, v in (raw.get("withoutHeaders") or {}).items()),
            query=tuple((k, _matcher(v)) for k, v in (raw.get("queryParams") or {}).items()),
            port=raw.get("port"),
        )

    def accepts(self, request: _Seen) -> bool:  # noqa: PLR0911 - one return a condition, cheapest first
        if self.port is not None and self.port != request.request.port:
            return False
        if self.uri is not None:
            kind, wanted = self.uri
            path = request.request.path
            if self.ignore_case and kind in ("exact", "prefix"):
                wanted, path = wanted.lower(), path.lower()
            if not _accepts((kind, wanted), path):
                return False
        for name, matcher in self.headers:
            value = request.header(name)
            if value is None or not _accepts(matcher, value):
                return False
        for name, matcher in self.without:
            value = request.header(name)
            if matcher[0] == "present":
                if value is not None:
                    return False
            elif _accepts(matcher, value or ""):
                return False
        for name, matcher in self.query:
            value = request.argument(name)
            if value is None or not _accepts(matcher, value):
                return False
        return True


class _Seen:
    """A request with its lazily computed views."""

    __slots__ = ("_arguments", "_headers", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self._headers: dict[str, str] | None = None
        self._arguments: dict[str, str] | None = None

    def header(self, name: str) -> str | None:
        if name.startswith("@request.auth.claims"):
            return self.request.claims.get(name.removeprefix("@request.auth.claims").strip(".[]"))
        if self._headers is None:
            request = self.request
            self._headers = {k.lower(): v for k, v in request.headers.items()} | {
                ":method": request.method,
                ":authority": request.authority,
                ":path": request.target,
                ":scheme": request.scheme,
            }
        return self._headers.get(name)

    def argument(self, name: str) -> str | None:
        if self._arguments is None:
            self._arguments = {}
            # Envoy keeps the first occurrence of a repeated parameter for matching
            # and compares it as it was sent, without decoding percent signs.
            for pair in self.request.query.split("&"):
                key, _, value = pair.partition("=")
                self._arguments.setdefault(key, value)
        return self._arguments.get(name)


@dataclass(frozen=True, slots=True)
class _Rule:
    virtual_service: str
    name: str
    matches: tuple[_Match, ...]
    raw: Mapping[str, Any]

    @property
    def catch_all(self) -> bool:
        if not self.matches:
            return True
        return any(
            one.uri in (None, ("prefix", "/"), ("regex", ".*"))
            and not one.headers
            and not one.without
            and not one.query
            and one.port is None
            for one in self.matches
        )

    def decide(self, request: Request) -> Decision:
        raw = self.raw
        if "redirect" in raw:
            return Decision(self.virtual_service, self.name, "redirect")
        if "directResponse" in raw:
            return Decision(self.virtual_service, self.name, f"respond {raw['directResponse']['status']}")
        hosts = tuple(_destination(one["destination"]) for one in raw.get("route", ()))
        return Decision(self.virtual_service, self.name, "route", hosts, self._rewritten(request))

    def _rewritten(self, request: Request) -> str:
        rewrite = self.raw.get("rewrite") or {}
        path = request.path
        if "uriRegexRewrite" in rewrite:
            rule = rewrite["uriRegexRewrite"]
            # RE2's \0-\9 are Python's \g<0>-\g<9>; both replace every occurrence.
            replacement = re.sub(r"\\(\d)", r"\\g<\1>", rule["rewrite"])
            return _regex(rule["match"]).sub(replacement, path)
        if "uri" in rewrite:
            for match in self.matches:
                if match.uri and match.uri[0] == "prefix" and path.startswith(match.uri[1]):
                    return str(rewrite["uri"]) + path[len(match.uri[1]) :]
            return str(rewrite["uri"])
        return path


def _destination(raw: Mapping[str, Any]) -> str:
    port = (raw.get("port") or {}).get("number")
    return f"{raw['host']}:{port}" if port else str(raw["host"])


@dataclass(slots=True)
class _Server:
    """One server of a Gateway: its port, its hosts, and the virtual hosts it ends up with."""

    gateway: str
    port: int
    hosts: tuple[str, ...]
    exact: dict[str, list[_Rule]] = field(default_factory=dict)
    wildcards: dict[str, list[_Rule]] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)

    def bind(self, names: Sequence[str], rules: Sequence[_Rule]) -> None:
        """Join *rules* to every host in the intersection, as Istio does: the narrower of each pair."""
        for name in names:
            for bound in self.hosts:
                host = name if _covers(bound, name) else bound if _covers(name, bound) else None
                if host is not None:
                    table = self.wildcards if host.startswith("*") else self.exact
                    table.setdefault(host, []).extend(rules)

    def close(self) -> None:
        for table in (self.exact, self.wildcards):
            for name, rules in table.items():
                table[name] = _after_istio(rules)
        self.suffixes = sorted((name[1:] for name in self.wildcards), key=lambda s: (-len(s), s))

    def host(self, name: str) -> str | None:
        """Return the virtual host that a request for *name* is given."""
        if name in self.exact:
            return name
        for suffix in self.suffixes:
            # Envoy's wildcard stands for at least one character.
            if name.endswith(suffix) and (len(name) > len(suffix) or not suffix):
                return f"*{suffix}"
        return None

    def rules(self, name: str) -> Sequence[_Rule]:
        host = self.host(name)
        if host is None:
            return ()
        return (self.wildcards if host.startswith("*") else self.exact)[host]


class Evaluator:
    """Answers for a set of objects which rule a request reaches.

    VirtualServices are joined in the order given when several serve one host; emitted objects avoid that.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self._servers: list[_Server] = []
        services: list[Mapping[str, Any]] = []
        for one in objects:
            if one["kind"] == "Gateway":
                name = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
                for server in one["spec"].get("servers", ()):
                    hosts = tuple(host.rsplit("/", 1)[-1].lower() for host in server["hosts"])
                    self._servers.append(_Server(name, server["port"]["number"], hosts))
            elif one["kind"] == "VirtualService":
                services.append(one)
        read: dict[int, tuple[_Match, ...]] = {}  # rules that many hosts share are read once
        for service in services:
            rules = []
            for raw in service["spec"].get("http", ()):
                if id(raw) not in read:
                    read[id(raw)] = tuple(_Match.read(m) for m in raw.get("match", ()))
                rules.append(_Rule(service["metadata"]["name"], raw.get("name", ""), read[id(raw)], raw))
            names = [host.lower() for host in service["spec"]["hosts"]]
            for server in self._servers:
                if server.gateway in service["spec"]["gateways"]:
                    server.bind(names, rules)
        for server in self._servers:
            server.close()

    def _server(self, name: str, port: int) -> _Server | None:
        """Return the server for a request; on a TLS port the certificate's name is taken to be the host."""
        on_port = [one for one in self._servers if one.port == port]
        for server in on_port:
            if name in server.hosts:
                return server
        wide = [(len(h), s) for s in on_port for h in s.hosts if h.startswith("*") and _covers(h, name)]
        if wide:
            return max(wide, key=lambda pair: pair[0])[1]
        # A plain HTTP port has one route table for all hosts; a TLS port has no chain for this name.
        return on_port[0] if on_port and port == 80 else None

    def rules(self, host: str, port: int = 80) -> Sequence[_Rule]:
        """Return the rules of the virtual host that a request for *host* is given, in order."""
        name = _bare(host)
        server = self._server(name, port)
        return server.rules(name) if server else ()

    def host_of(self, host: str, port: int = 80) -> str | None:
        """Return the virtual host that a request for *host* is given; None when there is none."""
        name = _bare(host)
        server = self._server(name, port)
        return server.host(name) if server else None

    def decide(self, request: Request) -> Decision:
        """Return the decision for *request*; no rule gives the 404 decision."""
        seen = _Seen(request)
        for rule in self.rules(request.authority, request.port):
            if not rule.matches or any(match.accepts(seen) for match in rule.matches):
                return rule.decide(request)
        return Decision()


def _bare(host: str) -> str:
    """Write a Host header as Istio's gateways compare it: in lower case, its port ignored."""
    name = host.lower()
    return name.rsplit(":", 1)[0] if name.rsplit(":", 1)[-1].isdigit() else name


def _covers(bound: str, name: str) -> bool:
    if bound in ("*", name):
        return True
    return bound.startswith("*") and name.removeprefix("*").endswith(bound[1:])


def _after_istio(rules: list[_Rule]) -> list[_Rule]:
    """Apply Istio's one reordering: rules after a catch-all of the same table are dropped."""
    for position, rule in enumerate(rules):
        if rule.catch_all:
            return rules[: position + 1]
    return rules
