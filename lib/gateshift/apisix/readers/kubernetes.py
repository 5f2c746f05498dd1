"""Kubernetes objects of APISIX's ingress controller (v2 CRDs) and of the Gateway API, read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Origin, Severity
from gateshift.apisix.readers import crd, gateway_api
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.manifest import Manifest
from gateshift.apisix.readers.source import Document

__all__ = ["read_objects"]

_GROUP = "apisix.apache.org/"
_GATEWAY = "gateway.networking.k8s.io/"


def _manifest(document: Document, data: Mapping[str, Any], builder: Builder) -> Manifest | None:
    metadata = data.get("metadata")
    meta: Mapping[str, Any] = metadata if isinstance(metadata, Mapping) else {}
    kind, name = str(data.get("kind")), str(meta.get("name") or f"document-{document.index + 1}")
    origin = Origin(document.source, f"{kind}/{name}")
    spec = data.get("spec")
    if not isinstance(spec, Mapping):
        builder.error(origin, f"{kind} {name} has no spec", "add the spec or remove the object")
        return None
    return Manifest(kind, name, str(meta.get("namespace") or "default"), spec, origin)


def read_objects(documents: Sequence[Document], builder: Builder) -> None:
    """Read all objects: first what others refer to, then routes in their order."""
    later: list[Manifest] = []
    context = crd.Context(builder)
    for document in documents:
        items = [document.data]
        if str(document.data.get("kind")).endswith("List") and isinstance(document.data.get("items"), list):
            items = [item for item in document.data["items"] if isinstance(item, Mapping)]
        for data in items:
            version, kind = str(data.get("apiVersion", "")), str(data.get("kind", ""))
            known = crd.KINDS if version.startswith(_GROUP) else gateway_api.KINDS
            if not version.startswith((_GROUP, _GATEWAY)) or kind not in known:
                _ignored(document, data, builder)
                continue
            if version.startswith(_GROUP) and version != f"{_GROUP}v2":
                builder.warn(
                    Origin(document.source, kind),
                    f"{version} is an old version of {kind}; it was read as v2",
                    "migrate the object to apisix.apache.org/v2",
                )
            manifest = _manifest(document, data, builder)
            if manifest is None:
                continue
            if kind == "ApisixUpstream":
                context.upstreams[(manifest.namespace, manifest.name)] = manifest
            elif kind == "ApisixPluginConfig":
                crd.read_plugin_config(manifest, context)
            else:
                later.append(manifest)
    for manifest in later:
        if manifest.kind in crd.KINDS:
            crd.read(manifest, context)
        else:
            gateway_api.read(manifest, context)
    crd.read_unused_upstreams(context)


def _ignored(document: Document, data: Mapping[str, Any], builder: Builder) -> None:
    kind = str(data.get("kind"))
    ingress = kind == "Ingress"
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    builder.find(
        Severity.ERROR if ingress else Severity.INFO,
        Origin(document.source, f"{kind}/{name}"),
        f"{kind} is not read: it is no CRD of APISIX and no HTTPRoute",
        "read the routes from the Admin API, where the controller has written them" if ingress else "",
    )
