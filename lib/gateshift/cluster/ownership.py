"""Whose an installed object is: istioctl writes the owner on all that it applies, Helm leaves its marks."""

from __future__ import annotations

from gateshift.cluster.objects import Object
from gateshift.params.model import Params

__all__ = ["OWNER", "is_ours", "is_shared", "owner_labels", "owner_of", "owner_selector"]

OWNER = "istio-operator"
"""Field manager under which istioctl applies; asking as it shows exactly what it would change."""

_RESOURCE = "install.operator.istio.io/owning-resource"
_NAMESPACE = "install.operator.istio.io/owning-resource-namespace"


def owner_labels(params: Params) -> dict[str, str]:
    """Return the labels that istioctl gives to what it installs from our IstioOperator document.

    They are the document's name and namespace and the revision (operator/pkg/install/install.go).
    """
    return {
        _RESOURCE: "gateshift",
        _NAMESPACE: params.istio.namespace,
        "istio.io/rev": params.istio.revision or "default",
    }


def owner_selector(params: Params) -> str:
    """Return :func:`owner_labels` as a label selector."""
    return ",".join(f"{k}={v}" for k, v in owner_labels(params).items())


def is_ours(obj: Object, params: Params) -> bool:
    """Say whether this very installation (document, namespace, revision) made *obj*."""
    labels = obj["metadata"].get("labels") or {}
    return owner_labels(params).items() <= labels.items()


def is_shared(obj: Object) -> bool:
    """Say whether *obj* is one for all installations: CRDs for the cluster, the reader for its namespace."""
    reader = (obj["kind"], obj["metadata"]["name"]) == ("ServiceAccount", "istio-reader-service-account")
    return reader or obj["kind"] == "CustomResourceDefinition"


def owner_of(obj: Object) -> str:
    """Name who installed *obj*, as far as it tells."""
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    if release := (metadata.get("annotations") or {}).get("meta.helm.sh/release-name"):
        return f"Helm release {release}"
    if labels.get(_RESOURCE) not in {None, "unknown"}:
        revision = labels.get("istio.io/rev", "default")
        return f"IstioOperator {labels.get(_NAMESPACE, '?')}/{labels[_RESOURCE]}, revision {revision}"
    managers = sorted({str(m.get("manager")) for m in metadata.get("managedFields") or []})
    return ", ".join(managers) or "unknown"
