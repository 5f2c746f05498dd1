"""The nodes of an upstream, as APISIX reads them, and the Host header that each gets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.translate.ledger import Path

__all__ = ["Node", "host_header", "is_address", "read_nodes", "split_address"]

_TLS_PORT = {"https": 443, "grpcs": 443}


@dataclass(frozen=True, slots=True)
class Node:
    """One APISIX node, as written."""

    host: str
    port: int
    weight: int
    path: Path
    priority: int = 0


def split_address(text: str, default: int) -> tuple[str, int]:
    """Return host and port of ``host:port``, without the brackets of an IPv6 address."""
    found = re.fullmatch(r"(\[.+\]|[^:]+)(?::(\d+))?", text.strip())
    if found is None:
        return text.strip(), default
    return found[1].strip("[]"), int(found[2]) if found[2] else default


def read_nodes(spec: Mapping[str, Any], path: Path) -> list[Node]:
    """Read nodes in either form (map or list); a missing port is 443 for TLS schemes, else 80."""
    default = _TLS_PORT.get(str(spec.get("scheme", "http")), 80)
    raw = spec.get("nodes")
    nodes = []
    if isinstance(raw, Mapping):
        for key, weight in raw.items():
            host, port = split_address(str(key), default)
            nodes.append(Node(host, port, int(weight or 0), (*path, "nodes", str(key))))
    elif isinstance(raw, list | tuple):
        for position, one in enumerate(raw):
            if isinstance(one, Mapping) and one.get("host"):
                host, port = split_address(str(one["host"]), int(one.get("port") or default))
                nodes.append(
                    Node(
                        host,
                        port,
                        int(one.get("weight", 1)),
                        (*path, "nodes", position),
                        int(one.get("priority", 0) or 0),
                    )
                )
    return nodes


_STANDARD_PORT = {"http": 80, "grpc": 80, "https": 443, "grpcs": 443}


def host_header(spec: Mapping[str, Any], node: Node) -> str:
    """Return the Host header that APISIX sends to *node*; empty for the client's own."""
    mode = spec.get("pass_host")
    if mode == "rewrite":
        return str(spec.get("upstream_host") or "")
    if mode != "node":
        return ""
    host = f"[{node.host}]" if ":" in node.host else node.host
    standard = _STANDARD_PORT.get(str(spec.get("scheme", "http")))
    return host if node.port == standard else f"{host}:{node.port}"


def is_address(host: str) -> bool:
    """Tell whether *host* is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
