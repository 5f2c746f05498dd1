"""The routing proof: APISIX's own rules against the emitted objects, on requests aimed at the boundaries.

Two independent programs answer each request: the routing model (checked against the real radixtree), and
an evaluator that reads nothing but the emitted objects: Istio's own by Istio's rules, those of the Gateway
API by the specification's. They must name the same route.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from gateshift.apisix.model import Configuration, Kind, Router
from gateshift.apisix.routing import Request, RouteTable
from gateshift.istio.evaluator import Decision, Evaluator
from gateshift.istio.evaluator import Request as Seen
from gateshift.istio.gateway_api import GatewayApiEvaluator
from gateshift.translate.model import Translation
from gateshift.translate.sources import inherit

__all__ = ["Disagreement", "Proof", "boundary_requests", "prove"]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The smallest request found on which the two answers differ (route ids; None: no route)."""

    request: Request
    apisix: str | None
    istio: str | None
    refused: bool = False
    """Istio's route is held back: the request is closed, not misled."""

    def __str__(self) -> str:
        one = self.request
        parts = [f"{one.method} {one.host}{one.path}"]
        for label, values in (("headers", one.headers), ("args", one.args), ("cookies", one.cookies)):
            if values:
                parts.append(f"{label} {dict(values)}")
        other = f"refuses it with {self.istio}, held back" if self.refused else str(self.istio)
        return f"{', '.join(parts)}: APISIX chooses {self.apisix}, Istio {other}"


@dataclass(frozen=True, slots=True)
class Proof:
    """How many requests were checked, how many only a person can decide, and where the two differ.

    ``closed`` counts requests of other routes that meet the refusal of a route which waits for a decision:
    a condition that Istio cannot express is left out of a refusal, which so takes more than its own.
    """

    checked: int
    disagreements: tuple[Disagreement, ...]
    undecided: int = 0
    closed: int = 0


@dataclass(frozen=True, slots=True)
class _Hints:
    """Values that the routes' own conditions speak of."""

    paths: tuple[str, ...]
    hosts: tuple[str, ...]
    methods: tuple[str, ...]
    variables: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]
    """Names of certificates: only hosts that one covers can be asked on the TLS port."""


def _values(expression: Any, found: dict[str, set[str]]) -> None:
    if not isinstance(expression, list):
        return
    if len(expression) >= 2 and isinstance(expression[0], str) and not isinstance(expression[1], list):
        value = expression[-1]
        texts = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        found.setdefault(expression[0], set()).update(texts)
        return
    for part in expression:
        _values(part, found)


def _hints(configuration: Configuration) -> _Hints:
    paths: set[str] = {"/"}
    hosts: set[str] = {"unknown.invalid"}
    methods: set[str] = {"GET", "POST", "OPTIONS"}
    variables: dict[str, set[str]] = {}
    for route in configuration.of(Kind.ROUTE).values():
        raw = route.spec.get("uris") or route.spec.get("uri") or ()
        for uri in [raw] if isinstance(raw, str) else raw:
            paths.update(_around(str(uri)))
        for host in inherit(configuration, route).hosts:
            if ":" in host:
                # The name without the port, and with another, is on the other side of the boundary.
                hosts.update(f"{host.lstrip('*.').rpartition(':')[0]}{port}" for port in ("", ":1"))
            bare = host.lstrip("*.")
            hosts.update(
                (f"a.{bare}", f"b.a.{bare}", bare or "other.test") if host.startswith("*") else (host,)
            )
            hosts.add(f"x{bare}" if bare else "other.test")
        named = route.spec.get("methods") or ()
        methods.update([named] if isinstance(named, str) else [str(one) for one in named])
        _values(route.spec.get("vars"), variables)
    return _Hints(
        tuple(sorted(paths)),
        tuple(sorted(hosts)),
        tuple(sorted(methods)),
        {name: tuple(sorted(values)) for name, values in sorted(variables.items())},
        tuple(sorted(_certificate_names(configuration))),
    )


def _certificate_names(configuration: Configuration) -> Iterator[str]:
    for ssl in configuration.of(Kind.SSL).values():
        if ssl.spec.get("type") != "client" and ssl.spec.get("status", 1) not in (0, "0"):
            names = ssl.spec.get("snis") or [ssl.spec.get("sni") or ""]
            yield from (str(one).lower() for one in names)


def _around(uri: str) -> Iterator[str]:
    """Yield paths on, just inside and just outside a pattern."""
    filled = uri.replace("*", "tail")
    literal = uri.split("*", 1)[0]
    base = literal if literal.startswith("/") else f"/{literal}"
    for path in (
        filled,
        base,
        base.rstrip("/"),
        f"{base}x",
        f"{base}x/y",
        base[:-1],
        f"{base}/",
        filled + "/",
    ):
        if path.startswith("/") and "//" not in path:
            yield path
    if ":" in uri:
        named = "/".join("value" if one.startswith(":") else one for one in filled.split("/"))
        yield named if named.startswith("/") else f"/{named}"


def _requests(hints: _Hints, count: int, seed: int) -> Iterator[Request]:
    """Yield every path on every host while that fits into half of *count*, then random combinations."""
    chance = random.Random(seed)  # noqa: S311 - a test generator, repeatable by its seed
    grid = len(hints.paths) * len(hints.hosts)
    made = 0
    for place in chance.sample(range(grid), min(grid, count // 2)):
        made += 1
        host, path = hints.hosts[place % len(hints.hosts)], hints.paths[place // len(hints.hosts)]
        yield Request(method="GET", host=host, path=path)
    while made < count:
        made += 1
        yield _random_request(hints, chance)


def _random_request(hints: _Hints, chance: random.Random) -> Request:
    headers: dict[str, str] = {}
    args: dict[str, str] = {}
    cookies: dict[str, str] = {}
    request = Request(
        method=chance.choice(hints.methods),
        host=chance.choice(hints.hosts),
        path=chance.choice(hints.paths),
    )
    for name, values in hints.variables.items():
        roll = chance.random()
        if roll < 0.3:
            continue
        value = chance.choice(values) if values and roll < 0.8 else chance.choice(("other", "1", "zz"))
        value = "".join(c for c in value if c.isalnum() or c in "-_./") or "v"
        if name.lower() == "http_host":
            request = replace(request, host=value)  # there is one Host, in both
        elif name.startswith("http_"):
            headers[name[5:].lower().replace("_", "-")] = value
        elif name.startswith("arg_"):
            args[name[4:]] = value
        elif name.startswith("cookie_"):
            cookies[name[7:]] = value
        elif name == "server_port":
            secure = any(
                request.host == one or (one[:1] == "*" and request.host.endswith(one[1:]))
                for one in hints.names
            )
            request = replace(request, server_port=chance.choice((9080, 9443) if secure else (9080,)))
        elif name == "request_method" and value.isalpha():
            request = replace(request, method=value.upper())
    return replace(request, headers=headers, args=args, cookies={} if "cookie" in headers else cookies)


def _as_seen(request: Request) -> Seen:
    headers = {key.lower(): str(value) for key, value in request.headers.items()}
    if request.cookies:
        headers["cookie"] = "; ".join(f"{key}={value}" for key, value in request.cookies.items())
    query = "&".join(f"{quote(key, safe='')}={quote(str(v), safe='')}" for key, v in request.args.items())
    return Seen(
        authority=request.host,
        path=quote(request.path, safe="/:@!$&'()*+,;=-._~"),
        query=query,
        method=request.method,
        headers=headers,
        port=443 if request.server_port in (443, 9443) else 80,
    )


def _with(request: Request, field: str, values: Mapping[str, Any]) -> Request:
    if field == "headers":
        return replace(request, headers=values)
    return replace(request, args=values) if field == "args" else replace(request, cookies=values)


def boundary_requests(configuration: Configuration, count: int, seed: int = 0) -> Iterator[Request]:
    """Yield *count* requests aimed at the boundaries of the routes; the same for the same *seed*."""
    return _requests(_hints(configuration), count, seed)


class _Emitted:
    """Both evaluators over the same objects: one gateway serves both forms, each host is of one."""

    def __init__(self, objects: Sequence[Mapping[str, Any]]) -> None:
        self._istio, self._api = Evaluator(objects), GatewayApiEvaluator(objects)

    def decide(self, request: Seen) -> Decision:
        mine = self._istio.host_of(request.authority, request.port)
        theirs = self._api.host_of(request.authority, request.port)
        if theirs is None:
            return self._istio.decide(request)
        if mine is None or mine.removeprefix("*") == theirs.removeprefix("*"):
            if mine is not None:
                return Decision(entry=f"{mine}, which is served in both forms")
            return self._api.decide(request)
        # Envoy takes an exact name before a wildcard, and the longer wildcard.
        exact_first = (mine[:1] != "*", len(mine)) > (theirs[:1] not in ("*", ""), len(theirs))
        return (self._istio if exact_first else self._api).decide(request)


class _Judge:
    def __init__(self, configuration: Configuration, translation: Translation) -> None:
        router = Router(translation.router) if translation.router else None
        self._table = RouteTable(configuration, router)
        self._evaluator = _Emitted(translation.objects)
        self._entries = translation.entries
        self._refused = translation.refused
        self._waiting = {name for one in translation.blockers for name in one.routes}
        self.undecided = 0
        self.closed = 0

    def compare(self, request: Request) -> Disagreement | None:
        match = self._table.match(request)
        if match.undecided:
            self.undecided += 1
            return None
        decision = self._evaluator.decide(_as_seen(request))
        chosen = self._entries.get(decision.entry) if decision.entry is not None else None
        if decision.entry is not None and chosen is None:
            chosen = f"unknown rule {decision.entry}"
        if chosen == match.winner:
            return None
        if chosen is None and match.winner in self._refused:
            return None  # held back where nothing else is served: 404 is as closed as the refusal
        refused = chosen in self._refused
        if refused and match.winner is None:
            return None  # 503 is as closed as APISIX's 404
        if refused and f"{Kind.ROUTE}/{chosen}" in self._waiting:
            self.closed += 1
            return None
        return Disagreement(request, match.winner, chosen, refused)

    def smallest(self, found: Disagreement) -> Disagreement:
        """Drop parts of the request as long as the two still differ."""
        request = found.request
        for field in ("headers", "args", "cookies"):
            for key in list(getattr(request, field)):
                values = {k: v for k, v in getattr(request, field).items() if k != key}
                smaller = self.compare(_with(request, field, values))
                if smaller is not None:
                    found, request = smaller, smaller.request
        smaller = self.compare(replace(request, method="GET"))
        return smaller or found


def prove(configuration: Configuration, translation: Translation, *, requests: int, seed: int = 0) -> Proof:
    """Compare *requests* generated requests; at most ten disagreements are reported, smallest first."""
    judge = _Judge(configuration, translation)
    checked = 0
    found: dict[tuple[str | None, str | None], Disagreement] = {}
    for request in boundary_requests(configuration, requests, seed):
        difference = judge.compare(request)
        checked += 1
        if difference is not None:
            key = (difference.apisix, difference.istio)
            if key not in found and len(found) < 10:
                counted = judge.undecided, judge.closed
                found[key] = judge.smallest(difference)
                judge.undecided, judge.closed = counted
    return Proof(checked, _by_size(tuple(found.values())), judge.undecided, judge.closed)


def _by_size(found: Sequence[Disagreement]) -> tuple[Disagreement, ...]:
    return tuple(sorted(found, key=lambda one: len(str(one))))
