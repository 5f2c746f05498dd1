"""Requests to compare both gateways with: recorded ones from a HAR file, generated ones from the routes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from gateshift.apisix.merge import effective
from gateshift.apisix.model import Configuration, Kind
from gateshift.errors import ParamsError
from gateshift.params.model import Probe

__all__ = ["generated", "recorded"]

# What belongs to one connection, or is made anew by whoever sends the request.
_OWN_HEADERS = {
    "host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "trailer",
    "proxy-authorization", "authorization", "accept-encoding",
}  # fmt: skip


def recorded(path: str | Path) -> tuple[Probe, ...]:
    """Read the requests of a HAR 1.2 file (a browser's or proxy's export), each once.

    Raises :class:`~gateshift.errors.ParamsError` naming the file and entry. Bodies, cookies and tokens are
    sent but never shown.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = list(data["log"]["entries"])
    except OSError as error:
        raise ParamsError(f"verify.recorded: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ParamsError(
            f"verify.recorded: {path} is not a HAR file", hint="export one from the browser's network tab"
        ) from None
    seen: set[tuple[str, str, str]] = set()
    probes = []
    for i, entry in enumerate(entries):
        try:
            request = entry["request"]
            key = (request["method"], request["url"], str((request.get("postData") or {}).get("text")))
            if key not in seen:
                seen.add(key)
                probes.append(_probe(f"recorded-{i + 1}", request))
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            where = type(error).__name__
            raise ParamsError(
                f"verify.recorded: {path}: log.entries[{i}] cannot be replayed ({where})",
                hint="remove the entry, or record it again",
            ) from None
    return tuple(probes)


def _probe(name: str, request: Mapping[str, Any]) -> Probe:
    url = urlsplit(str(request["url"]))
    headers = {str(h["name"]).lower(): str(h["value"]) for h in request.get("headers") or ()}
    token = headers.get("authorization", "")
    body = (request.get("postData") or {}).get("text")
    bearer = token.partition(" ")[2] if token.lower().startswith("bearer ") else ""
    kept = {k: v for k, v in headers.items() if k not in _OWN_HEADERS and not k.startswith(":")}
    if token and not bearer:
        kept["authorization"] = token
    return Probe(
        name=name,
        kind="websocket" if url.scheme in {"ws", "wss"} else "http",
        host=str(url.hostname),
        path=(url.path or "/") + (f"?{url.query}" if url.query else ""),
        method=str(request["method"]).upper(),
        body=str(body) if body else None,
        headers={k: SecretStr(v) for k, v in kept.items()},
        token=SecretStr(bearer) if bearer else None,
        tls=url.scheme in {"https", "wss"},
    )


def generated(configuration: Configuration, most: int) -> tuple[Probe, ...]:
    """Return up to *most* GET requests, at least one aimed at each route that takes one, without credentials.

    Which route answers does not matter: whatever APISIX answers, Istio must answer alike.
    """
    return tuple(
        Probe(name=f"generated-{i + 1}", host=host, path=path)
        for i, (host, path) in zip(range(most), _aims(configuration), strict=False)
    )


def _aims(configuration: Configuration) -> Iterator[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    for route in configuration.of(Kind.ROUTE).values():
        merged = effective(configuration, route)
        methods = route.spec.get("methods") or ("GET",)
        upstream = merged.upstream.spec if merged.upstream else {}
        if route.spec.get("status", 1) == 0 or "GET" not in methods:
            continue
        if str(upstream.get("scheme", "http")).startswith("grpc"):
            continue  # a plain GET says nothing about gRPC; the probes do
        for host in merged.hosts[:1]:
            for path in merged.paths[:2]:
                named = "/".join("probe" if p.startswith(":") else p for p in path.split("/"))
                aim = (host.replace("*.", "gateshift."), named.replace("*", "gateshift-parity"))
                if aim not in seen and aim[1].startswith("/"):
                    seen.add(aim)
                    yield aim
