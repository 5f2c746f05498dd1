"""Kubernetes objects of APISIX's ingress controller: its CRDs, Ingress and Gateway API, read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Origin, Severity
from gateshift.apisix.readers import crd, gateway_api, ingress
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.manifest import Manifest
from gateshift.apisix.readers.source import Document
from gateshift.apisix.templates import dotted, gaps

__all__ = ["read_objects"]

_GROUP = "apisix.apache.org/"
_ANNOTATIONS = "k8s.apisix.apache.org/"
_GATEWAY = "gateway.networking.k8s.io/"
_NETWORKING = "networking.k8s.io/"
_WITHOUT_EFFECT = frozenset(("GatewayProxy", "GatewayClass", "ReferenceGrant", "ApisixClusterConfig"))
"""They say where APISIX is and who may refer to what, not how it serves."""


def _manifest(document: Document, data: Mapping[str, Any], builder: Builder) -> Manifest | None:
    metadata = data.get("metadata")
    meta: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else {}
    kind, name = str(data.get("kind")), str(meta.get("name") or f"document-{document.index + 1}")
    origin = Origin(document.source, f"{kind}/{name}")
    spec = data.get("spec")
    if not isinstance(spec, Mapping):
        builder.error(origin, f"{kind} {name} has no spec", "add the spec or remove the object")
        return None
    notes = meta.get("annotations")
    annotations = {str(k): str(v) for k, v in notes.items()} if isinstance(notes, Mapping) else {}
    ours = {key: value for key, value in annotations.items() if key.startswith(_ANNOTATIONS)}
    named = {"name": name, "namespace": meta.get("namespace")}
    # Wrapped, so that no key of it counts as documentation.
    for gap in gaps({"metadata": {**named, "annotations": {"plugins": ours}}, "spec": spec}):
        # A reader may leave out or default what it cannot read: whatever comes of the object is held back.
        place = Origin(document.source, f"{origin.path}.{dotted(gap.path)}")
        builder.unfilled(place, gap.text, exists=True, part=origin.path)
        break
    return Manifest(kind, name, str(meta.get("namespace") or "default"), spec, origin, annotations)


def read_objects(documents: Sequence[Document], builder: Builder) -> None:
    """Read all objects: first what others refer to, then routes in their order."""
    later: list[Manifest] = []
    classes: set[str] = set()
    context = crd.Context(builder)
    for document in documents:
        for data in _items(document.data):
            version, kind = str(data.get("apiVersion", "")), str(data.get("kind", ""))
            if not _readable(version, kind):
                _ignored(document, data, builder)
                continue
            _warn_old(document, version, kind, builder)
            manifest = _manifest(document, data, builder)
            if manifest is None:
                continue
            if kind == "ApisixUpstream":
                context.upstreams[(manifest.namespace, manifest.name)] = manifest
            elif kind == "IngressClass":
                classes |= {manifest.name} if ingress.is_ours(manifest.spec.get("controller")) else set()
            elif kind == "ApisixPluginConfig":
                crd.read_plugin_config(manifest, context)
            else:
                later.append(manifest)
    for manifest in later:
        if manifest.kind in crd.KINDS:
            crd.read(manifest, context)
        elif manifest.kind == "Ingress":
            ingress.read(manifest, builder, classes)
        else:
            gateway_api.read(manifest, context)
    crd.read_unused_upstreams(context)


def _items(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if str(data.get("kind")).endswith("List") and isinstance(data.get("items"), list):
        return [item for item in data["items"] if isinstance(item, Mapping)]
    return [data]


def _warn_old(document: Document, version: str, kind: str, builder: Builder) -> None:
    if version.startswith(_GROUP) and version != f"{_GROUP}v2":
        builder.warn(
            Origin(document.source, kind),
            f"{version} is an old version of {kind}; it was read as v2",
            "migrate the object to apisix.apache.org/v2",
        )


def _readable(version: str, kind: str) -> bool:
    if version.startswith(_NETWORKING):
        return kind in ("Ingress", "IngressClass")
    known = crd.KINDS if version.startswith(_GROUP) else gateway_api.KINDS
    return version.startswith((_GROUP, _GATEWAY)) and kind in known


def _ignored(document: Document, data: Mapping[str, Any], builder: Builder) -> None:
    kind, version = str(data.get("kind")), str(data.get("apiVersion"))
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    origin, what = Origin(document.source, f"{kind}/{name}"), f"{kind}/{name}"
    ours = version.startswith((_GROUP, _GATEWAY)) or kind == "Ingress"
    if ours and kind not in _WITHOUT_EFFECT and (kind != "Gateway" or _matters(data)):
        remedy = "read the Admin API, where the controller has written what it makes of it, or sign for it"
        builder.lose(origin, what, f"{kind} ({version}) is not read", remedy)
    else:
        message = f"{kind} is not read: it does not say how APISIX serves a request"
        builder.find(Severity.INFO, origin, message)


def _matters(data: Mapping[str, Any]) -> bool:
    """Tell whether a Gateway's listeners narrow the hosts of its routes, or hold certificates."""
    spec = data.get("spec")
    listeners = spec.get("listeners") if isinstance(spec, Mapping) else None
    return any(
        isinstance(one, Mapping) and (one.get("tls") or one.get("hostname")) for one in listeners or ()
    )
