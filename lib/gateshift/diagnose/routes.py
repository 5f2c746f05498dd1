"""Which rule of Envoy's own tables takes a request, and why not another. Pure: works on a config dump.

Follows Envoy: the listener by port, the filter chain by SNI, its route table; in that the virtual host once
(exact name, then the longest ``*.suffix``, then the longest ``prefix.*``, then ``*``), and inside it the
routes top-down; the first whose conditions all hold takes the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.diagnose.envoy import Envoy

__all__ = ["Explanation", "Rule", "explain", "filters_of", "host_matches", "route_tables"]

_HCM = "envoy.filters.network.http_connection_manager"


@dataclass(frozen=True, slots=True)
class Rule:
    """One route of Envoy: its VirtualService (``namespace/name``), rule name and place in its host."""

    host: str
    position: int
    name: str
    owner: str
    target: str
    raw: Mapping[str, Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name or f'#{self.position}'} of {self.owner or 'no VirtualService'}"

    @property
    def status(self) -> int:
        """The status that the rule answers itself (0: it does not)."""
        return int((self.raw.get("direct_response") or {}).get("status", 0))

    @property
    def clusters(self) -> tuple[str, ...]:
        """The clusters it sends to."""
        action = self.raw.get("route") or {}
        if "cluster" in action:
            return (str(action["cluster"]).rstrip(";"),)
        weighted = (action.get("weighted_clusters") or {}).get("clusters") or []
        return tuple(str(c.get("name")).rstrip(";") for c in weighted)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request goes where it goes. ``taker`` is None when no rule takes it (404).

    ``failed`` gives for each rule before the taker (or all) the first condition that does not hold;
    ``also`` are later rules of the same virtual host that would take it as well; ``elsewhere`` rules of
    wider virtual hosts that would, if this host did not hide them. ``redirected``: this port only sends
    clients to HTTPS.
    """

    host: str
    path: str
    table: str
    virtual_host: str
    taker: Rule | None
    failed: tuple[tuple[Rule, str], ...] = ()
    also: tuple[Rule, ...] = ()
    elsewhere: tuple[Rule, ...] = ()
    redirected: bool = False


def explain(
    envoy: Envoy,
    host: str,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    port: int = 8080,
    tls: bool = False,
) -> Explanation:
    """Say which route of *envoy* takes the request on listener *port*, and why not the others."""
    request = {k.lower(): v for k, v in (headers or {}).items()} | {
        ":method": method,
        ":authority": host,
        ":path": path,
        ":scheme": "https" if tls else "http",
    }
    table = _table(envoy, host, port, tls=tls)
    hosts = list((table or {}).get("virtual_hosts") or [])
    chosen = _virtual_host(hosts, host.lower())
    name = str((table or {}).get("name", ""))
    if chosen is None:
        return Explanation(host, path, name, "", None)
    failed: list[tuple[Rule, str]] = []
    taker: Rule | None = None
    also: list[Rule] = []
    for rule in _rules(chosen):
        why = mismatch(rule.raw.get("match") or {}, request)
        if why:
            if taker is None:
                failed.append((rule, why))
        elif taker is None:
            taker = rule
        else:
            also.append(rule)
    elsewhere = [
        rule
        for other in hosts
        if other is not chosen and any(_covers(str(d), host.lower()) for d in other.get("domains") or [])
        for rule in _rules(other)
        if rule.owner and not mismatch(rule.raw.get("match") or {}, request)
    ]
    return Explanation(
        host,
        path,
        name,
        str(chosen.get("name", "")),
        taker,
        tuple(failed),
        tuple(also),
        tuple(elsewhere),
        redirected=not tls and chosen.get("require_tls") in {"ALL", "EXTERNAL_ONLY"},
    )


def _rules(virtual_host: Mapping[str, Any]) -> Iterator[Rule]:
    for position, raw in enumerate(virtual_host.get("routes") or []):
        yield Rule(
            host=str(virtual_host.get("name", "")),
            position=position,
            name=str(raw.get("name", "")),
            owner=_owner(raw),
            target=_target(raw),
            raw=raw,
        )


def _owner(raw: Mapping[str, Any]) -> str:
    metadata = (raw.get("metadata") or {}).get("filter_metadata") or {}
    parts = str((metadata.get("istio") or {}).get("config", "")).strip("/").split("/")
    # ".../namespaces/NS/virtual-service/NAME" names the VirtualService that made the route
    return f"{parts[-3]}/{parts[-1]}" if len(parts) >= 3 and parts[-2] == "virtual-service" else ""


def _target(raw: Mapping[str, Any]) -> str:
    if "direct_response" in raw:
        return f"answers {raw['direct_response'].get('status')} itself"
    if "redirect" in raw:
        return "redirects"
    action = raw.get("route") or {}
    weighted = (action.get("weighted_clusters") or {}).get("clusters") or []
    names = [str(action["cluster"])] if "cluster" in action else [str(c.get("name")) for c in weighted]
    return "to " + (", ".join(n.rstrip(";") for n in names) or "nothing")


def route_tables(envoy: Envoy) -> Iterator[tuple[str, str, Rule]]:
    """Yield (table, domain of its virtual host, rule) for everything Envoy has."""
    for table in envoy.routes:
        for host in table.get("virtual_hosts") or []:
            for domain in host.get("domains") or []:
                for rule in _rules(host):
                    yield str(table.get("name", "")), str(domain), rule


def filters_of(listener: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (filter chain, configuration of its HTTP connection manager)."""
    chains = list(listener.get("filter_chains") or [])
    if "default_filter_chain" in listener:
        chains.append(listener["default_filter_chain"])
    for chain in chains:
        for one in chain.get("filters") or []:
            if one.get("name") == _HCM:
                yield chain, one.get("typed_config") or {}


def _table(envoy: Envoy, host: str, port: int, *, tls: bool) -> Mapping[str, Any] | None:
    by_name = {str(t.get("name")): t for t in envoy.routes}
    best: tuple[int, str] | None = None
    for listener in envoy.listeners:
        socket = (listener.get("address") or {}).get("socket_address") or {}
        if socket.get("port_value") != port:
            continue
        for chain, manager in filters_of(listener):
            names = (chain.get("filter_chain_match") or {}).get("server_names") or ["*"]
            fit = max((len(n) for n in names if not tls or _covers(str(n), host.lower())), default=-1)
            inline = (manager.get("route_config") or {}).get("name")
            table = str((manager.get("rds") or {}).get("route_config_name") or inline or "")
            if fit >= 0 and table in by_name and (best is None or fit > best[0]):
                best = fit, table
    return by_name[best[1]] if best else None


def _covers(domain: str, host: str) -> bool:
    domain = _bare(domain).lower()
    if domain in {"*", host}:
        return True
    if domain.startswith("*"):
        return host.endswith(domain[1:]) and len(host) > len(domain) - 1
    return domain.endswith("*") and host.startswith(domain[:-1])


def _bare(domain: str) -> str:
    name, colon, port = domain.rpartition(":")
    return name if colon and (port.isdigit() or port == "*") else domain


def _virtual_host(hosts: list[Mapping[str, Any]], host: str) -> Mapping[str, Any] | None:
    def rank(domain: str) -> tuple[int, int]:
        domain = _bare(domain).lower()
        if domain == host:
            return 3, 0
        if domain == "*":
            return 0, 0
        return (2 if domain.startswith("*") else 1), len(domain)

    fitting = [
        (rank(str(d)), -index, h)
        for index, h in enumerate(hosts)
        for d in h.get("domains") or []
        if _covers(str(d), host)
    ]
    return max(fitting, key=lambda f: f[:2])[2] if fitting else None


def mismatch(  # noqa: PLR0911 - one return a condition, in Envoy's order
    match: Mapping[str, Any], request: Mapping[str, str]
) -> str:
    """Return the first condition of an Envoy route match that *request* does not meet; empty if it does."""
    target = request[":path"]
    path, _, query = target.partition("?")
    folded = match.get("case_sensitive") is False
    seen = path.lower() if folded else path

    def fold(text: object) -> str:
        return str(text).lower() if folded else str(text)

    if "path" in match and seen != fold(match["path"]):
        return f"wants exactly {match['path']}"
    if "prefix" in match and not seen.startswith(fold(match["prefix"])):
        return f"wants prefix {match['prefix']}"
    if "path_separated_prefix" in match:
        prefix = fold(match["path_separated_prefix"])
        if seen != prefix and not seen.startswith(prefix + "/"):
            return f"wants {match['path_separated_prefix']} or below"
    if "safe_regex" in match and not _full(str(match["safe_regex"].get("regex", "")), path):
        return f"wants the whole path to match {match['safe_regex'].get('regex')}"
    for header in match.get("headers") or []:
        if why := _header(header, request):
            return why
    arguments = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    for wanted in match.get("query_parameters") or []:
        value = arguments.get(str(wanted.get("name")))
        if value is None or not _text(wanted.get("string_match") or {}, value):
            return f"wants query parameter {wanted.get('name')}"
    return ""


def _header(wanted: Mapping[str, Any], request: Mapping[str, str]) -> str:
    name = str(wanted.get("name", "")).lower()
    value = request.get(name)
    if value is None and wanted.get("treat_missing_header_as_empty"):
        value = ""
    if "present_match" in wanted:
        holds = (value is not None) == bool(wanted["present_match"])
    elif "string_match" in wanted:
        holds = value is not None and _text(wanted["string_match"], value)
    elif "range_match" in wanted:
        span = wanted["range_match"]
        number = value is not None and value.lstrip("-").isdigit()
        holds = bool(number and int(span.get("start", 0)) <= int(value or 0) < int(span.get("end", 0)))
    else:
        holds = value is not None
    if holds != bool(wanted.get("invert_match")):
        return ""
    label = {":method": "method", ":authority": "authority", ":scheme": "scheme"}.get(name, f"header {name}")
    text = wanted.get("string_match") or {}
    shown = next(
        (f"{k} {v.get('regex') if isinstance(v, Mapping) else v}" for k, v in text.items()), "present"
    )
    return f"wants {label} {'not ' if wanted.get('invert_match') else ''}{shown}"


def _text(match: Mapping[str, Any], value: str) -> bool:
    if match.get("ignore_case"):
        value = value.lower()
    for kind, wanted in match.items():
        text = str(wanted).lower() if match.get("ignore_case") else str(wanted)
        if kind == "exact":
            return value == text
        if kind == "prefix":
            return value.startswith(text)
        if kind == "suffix":
            return value.endswith(text)
        if kind == "contains":
            return text in value
        if kind == "safe_regex":
            return _full(str(wanted.get("regex", "")), value)
    return True


def _full(pattern: str, value: str) -> bool:
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:  # RE2 knows forms that Python does not; such a rule is taken not to match
        return False


def host_matches(pattern: str, host: str) -> bool:
    """Say whether a Gateway or VirtualService host covers *host* (``*`` stands for any prefix)."""
    if pattern == "*":
        return True
    if pattern.startswith("*"):
        return host.endswith(pattern[1:])
    return pattern == host
