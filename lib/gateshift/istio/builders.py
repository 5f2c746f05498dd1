"""Builders of Istio objects: stable names, one annotation with the APISIX ids, one label.

Every object that gateshift emits goes through :func:`build`; no other place writes ``metadata``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateshift.istio.versions import IstioVersion

__all__ = ["MANAGED_BY", "REFUSED_ANNOTATION", "SOURCE_ANNOTATION", "build", "dns_label", "prune", "spread"]

SOURCE_ANNOTATION = "gateshift.dev/source"
REFUSED_ANNOTATION = "gateshift.dev/refused"
MANAGED_BY = {"app.kubernetes.io/managed-by": "gateshift"}
MAX_ANNOTATION = 200_000
"""Kubernetes allows 256 KiB of annotations an object; longer lists of ids are cut with their count."""

_LABEL = 63


def dns_label(*parts: str, limit: int = _LABEL) -> str:
    """Return a DNS-1123 label for *parts*; lossy names get six hex digits, so two sources never collide."""
    raw = "-".join(parts)
    clean = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9-]", "-", raw.lower())).strip("-")
    if clean == raw and 0 < len(clean) <= limit:
        return clean
    digest = hashlib.sha256(raw.encode()).hexdigest()[:6]
    return f"{clean[: limit - 7].rstrip('-')}-{digest}" if clean else f"x-{digest}"


def prune(value: Any) -> Any:
    """Drop keys whose value is None, an empty mapping or an empty list, at every depth of mappings."""
    if isinstance(value, Mapping):
        pruned = {key: prune(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if item not in (None, {}, [])}
    if isinstance(value, list | tuple):
        return [prune(item) for item in value]
    return value


def _ids(sources: Iterable[str]) -> str:
    ids = sorted(set(sources))
    text = ",".join(ids)
    if len(text) <= MAX_ANNOTATION:
        return text
    kept: list[str] = []
    size = 0
    for one in ids:
        size += len(one) + 1
        if size > MAX_ANNOTATION:
            break
        kept.append(one)
    return ",".join(kept) + f",and {len(ids) - len(kept)} more"


_GROUPS = {
    "Gateway": "networking",
    "VirtualService": "networking",
    "DestinationRule": "networking",
    "ServiceEntry": "networking",
    "EnvoyFilter": "envoy_filter",
    "RequestAuthentication": "security",
    "AuthorizationPolicy": "security",
    "PeerAuthentication": "peer_authentication",
    "Telemetry": "telemetry",
}


def build(  # noqa: PLR0917 - kind, name and namespace always come in this order
    version: IstioVersion,
    kind: str,
    name: str,
    namespace: str,
    spec: Mapping[str, Any],
    sources: Iterable[str],
    *,
    refused: Iterable[str] = (),
) -> dict[str, Any]:
    """Return one object as plain JSON; *sources* are APISIX ids such as ``routes/1``.

    *spec* is taken as it is (an empty value may carry meaning, as in ``retries: {attempts: 0}``); a ConfigMap
    gets it as its ``data``. *kind* is ``group/version/Kind`` for what is not Istio's own.
    """
    api_version, _, kind = kind.rpartition("/")
    if kind == "ConfigMap":
        api_version = "v1"
    annotations = {SOURCE_ANNOTATION: _ids(sources)}
    refused = tuple(refused)
    if refused:
        annotations[REFUSED_ANNOTATION] = _ids(refused)
    return {
        "apiVersion": api_version or getattr(version, _GROUPS[kind]),
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(MANAGED_BY),
            "annotations": annotations,
        },
        "data" if kind == "ConfigMap" else "spec": dict(spec),
    }


_LARGEST = 600_000
"""Bytes of patches an object; etcd refuses objects beyond 1.5 MB, and kubectl keeps a second copy of each."""


def spread(patches: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Spread an EnvoyFilter's patches over as many objects as their size needs, in their order."""
    found: list[list[dict[str, Any]]] = []
    size = _LARGEST
    for one in patches:
        weight = len(json.dumps(one))
        if size + weight > _LARGEST:
            found.append([])
            size = 0
        found[-1].append(one)
        size += weight
    return found
