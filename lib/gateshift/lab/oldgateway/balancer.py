"""Choosing an upstream node, and finding its address on this machine."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.lab.oldgateway.exchange import Exchange

__all__ = ["Balancer", "Node", "Resolver"]


@dataclass(frozen=True, slots=True)
class Node:
    """One node of an upstream, as configured."""

    host: str
    port: int
    weight: int

    @property
    def name(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


def nodes_of(upstream: Mapping[str, Any]) -> tuple[Node, ...]:
    """Read nodes given as a mapping or as a list; those of weight 0 get no traffic."""
    default = 443 if str(upstream.get("scheme", "http")) in {"https", "grpcs"} else 80
    given = upstream.get("nodes") or {}
    out = []
    if isinstance(given, Mapping):
        for name, weight in given.items():
            host, colon, port = str(name).rpartition(":")
            out.append(Node(host if colon else str(name), int(port) if colon else default, int(weight)))
    else:
        for one in given:
            out.append(Node(str(one["host"]), int(one.get("port") or default), int(one.get("weight", 1))))
    return tuple(one for one in out if one.weight > 0)


class Resolver:
    """Names of cluster services to loopback addresses: what DNS and kube-proxy do in a cluster."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = dict(known)

    def learn(self, known: Mapping[str, str]) -> None:
        """Add names (``host:port`` to ``address:port``), for gateways that appear later."""
        self._known.update(known)

    def address(self, node: Node) -> tuple[str, int] | None:
        """The address of a node, or None when the name is unknown."""
        found = self._known.get(node.name)
        if found is not None:
            host, _, port = found.rpartition(":")
            return host, int(port)
        try:
            ipaddress.ip_address(node.host)
        except ValueError:
            return None
        return node.host, node.port


class Balancer:
    """APISIX's balancers: smooth weighted round robin, consistent hashing, least connections."""

    def __init__(self) -> None:
        self._current: defaultdict[tuple[Node, ...], dict[Node, float]] = defaultdict(dict)
        self.busy: defaultdict[Node, int] = defaultdict(int)

    def order(self, upstream: Mapping[str, Any], exchange: Exchange) -> list[Node]:
        """The nodes to try: the chosen one first, then the others for retries."""
        nodes = nodes_of(upstream)
        if len(nodes) < 2:
            return list(nodes)
        kind = str(upstream.get("type", "roundrobin"))
        if kind == "chash":
            first = self._hashed(nodes, upstream, exchange)
        elif kind in {"least_conn", "ewma"}:
            first = min(nodes, key=lambda one: (self.busy[one] + 1) / one.weight)
        else:
            first = self._round(nodes)
        return [first, *(one for one in nodes if one is not first)]

    def _round(self, nodes: tuple[Node, ...]) -> Node:
        current = self._current[nodes]
        for one in nodes:
            current[one] = current.get(one, 0) + one.weight
        chosen = max(nodes, key=lambda one: current[one])
        current[chosen] -= sum(one.weight for one in nodes)
        return chosen

    @staticmethod
    def _hashed(nodes: Iterable[Node], upstream: Mapping[str, Any], exchange: Exchange) -> Node:
        name = str(upstream.get("key", "remote_addr"))
        prefix = {"header": "http_", "cookie": "cookie_"}.get(str(upstream.get("hash_on", "vars")), "")
        value = exchange.variable(prefix + name.removeprefix("http_" if prefix == "http_" else ""))
        value = value or exchange.remote

        def score(node: Node) -> float:
            digest = hashlib.sha256(f"{value}|{node.name}".encode()).digest()
            return float((int.from_bytes(digest[:8]) / 2**64) ** (1.0 / node.weight))

        return max(nodes, key=score)
