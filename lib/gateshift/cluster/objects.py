"""Kubernetes objects as plain JSON: their kinds, names, order, and how two of them are compared."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

__all__ = [
    "API_GATEWAY",
    "API_VERSIONS",
    "CREATED",
    "GATEWAY_API",
    "HIDDEN",
    "ISTIO_KINDS",
    "MANAGED_BY",
    "MANAGER",
    "MIGRATION",
    "Object",
    "apply_order",
    "clean",
    "diff_text",
    "hides",
    "identity",
    "masked",
    "name_of",
    "title_of",
    "unmasked",
]

Object = dict[str, Any]

MANAGER = "gateshift"
"""Field manager of every server-side apply, and the value of the label below."""

HIDDEN = "(secret)"
"""What stands in place of a secret value wherever an object is shown or kept."""

MANAGED_BY = "app.kubernetes.io/managed-by"

MIGRATION = "gateshift.dev/migration"
"""Label with the name of the migration that made an object: only its own objects are ever pruned."""

CREATED = "gateshift.dev/created"
"""Annotation of an object that was not there before we applied it: only such an object is ever pruned."""

# Istio serves networking and security v1 from 1.22 and v1beta1 before (istio-traps.md 3); the first
# version that the cluster serves is used.
_ISTIO_V1 = ("v1", "v1beta1")

GATEWAY_API = "gateway.networking.k8s.io"

API_GATEWAY = f"{GATEWAY_API}/v1/Gateway"
"""The Gateway of the Gateway API; the bare kind is Istio's own."""

API_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "Namespace": ("v1",),
    "Node": ("v1",),
    "Pod": ("v1",),
    "Service": ("v1",),
    "ServiceAccount": ("v1",),
    "Secret": ("v1",),
    "ConfigMap": ("v1",),
    "Endpoints": ("v1",),
    "Event": ("v1",),
    "ResourceQuota": ("v1",),
    "LimitRange": ("v1",),
    "PersistentVolumeClaim": ("v1",),
    "Deployment": ("apps/v1",),
    "ReplicaSet": ("apps/v1",),
    "StatefulSet": ("apps/v1",),
    "DaemonSet": ("apps/v1",),
    "Job": ("batch/v1",),
    "CronJob": ("batch/v1",),
    "HorizontalPodAutoscaler": ("autoscaling/v2",),
    "PodDisruptionBudget": ("policy/v1",),
    "NetworkPolicy": ("networking.k8s.io/v1",),
    "Ingress": ("networking.k8s.io/v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "Lease": ("coordination.k8s.io/v1",),
    "StorageClass": ("storage.k8s.io/v1",),
    "PersistentVolume": ("v1",),
    "IngressClass": ("networking.k8s.io/v1",),
    "Role": ("rbac.authorization.k8s.io/v1",),
    "RoleBinding": ("rbac.authorization.k8s.io/v1",),
    "ClusterRole": ("rbac.authorization.k8s.io/v1",),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1",),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1",),
    "ValidatingWebhookConfiguration": ("admissionregistration.k8s.io/v1",),
    "MutatingWebhookConfiguration": ("admissionregistration.k8s.io/v1",),
    "SelfSubjectAccessReview": ("authorization.k8s.io/v1",),
    "ApisixRoute": ("apisix.apache.org/v2",),
    "HTTPRoute": (f"{GATEWAY_API}/v1",),
    "GRPCRoute": (f"{GATEWAY_API}/v1",),
    "GatewayClass": (f"{GATEWAY_API}/v1",),
    "ReferenceGrant": (f"{GATEWAY_API}/v1beta1",),
    **{
        kind: tuple(f"networking.istio.io/{v}" for v in _ISTIO_V1)
        for kind in (
            "Gateway",
            "VirtualService",
            "DestinationRule",
            "ServiceEntry",
            "WorkloadEntry",
            "Sidecar",
        )
    },
    "EnvoyFilter": ("networking.istio.io/v1alpha3",),
    "PeerAuthentication": ("security.istio.io/v1", "security.istio.io/v1beta1"),
    "RequestAuthentication": ("security.istio.io/v1", "security.istio.io/v1beta1"),
    "AuthorizationPolicy": ("security.istio.io/v1", "security.istio.io/v1beta1"),
    "Telemetry": ("telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"),
}

ISTIO_KINDS: tuple[str, ...] = (
    "ServiceEntry",
    "WorkloadEntry",
    "Sidecar",
    "DestinationRule",
    "PeerAuthentication",
    "RequestAuthentication",
    "AuthorizationPolicy",
    "Telemetry",
    "EnvoyFilter",
    "ReferenceGrant",
    "Gateway",
    "VirtualService",
    "HTTPRoute",
    "GRPCRoute",
)
"""Kinds that `30_apply` creates, in the order in which they are applied."""

# Security and subsets come before the routes that rely on them: no request may pass a route whose policy
# is not there yet, nor reach a subset that is not defined yet (503 NC).
_ORDER = (
    "Namespace",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "Service",
    *ISTIO_KINDS,
)


def name_of(obj: Mapping[str, Any]) -> str:
    """Return ``metadata.name``."""
    return str(obj.get("metadata", {}).get("name", ""))


def identity(obj: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return ``(group, kind, namespace, name)``: what makes two manifests the same object."""
    group, slash, _ = str(obj.get("apiVersion", "")).rpartition("/")
    metadata = obj.get("metadata", {})
    return (
        group if slash else "",
        str(obj.get("kind", "")),
        str(metadata.get("namespace", "")),
        name_of(obj),
    )


def title_of(obj: Mapping[str, Any]) -> str:
    """Return ``Kind namespace/name`` for people."""
    _, kind, namespace, name = identity(obj)
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def apply_order(objects: Iterable[Object]) -> list[Object]:
    """Sort so that what others depend on comes first; stable and deterministic."""
    rank = {kind: i for i, kind in enumerate(_ORDER)}
    return sorted(objects, key=lambda o: (rank.get(str(o.get("kind")), len(_ORDER)), identity(o)))


_SERVER_FIELDS = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink")


def clean(obj: Mapping[str, Any] | None) -> Object | None:
    """Drop what the server writes by itself, so that two reads of the same intent are equal; mask secrets."""
    bare = unmasked(obj)
    return None if bare is None else masked(bare)


def unmasked(obj: Mapping[str, Any] | None) -> Object | None:
    """As :func:`clean`, with secret values: to compare by, never to be shown or kept."""
    if obj is None:
        return None
    out = copy.deepcopy(dict(obj))
    out.pop("status", None)
    metadata = out.get("metadata", {})
    for field in _SERVER_FIELDS:
        metadata.pop(field, None)
    annotations = metadata.get("annotations")
    if annotations:
        annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        if not annotations:
            metadata.pop("annotations")
    return out


def masked(obj: Object) -> Object:
    """Replace secret values by a mark: plans, diffs and exports are read by many."""
    if obj.get("kind") == "Secret":
        for section in ("data", "stringData"):
            if section in obj:
                obj[section] = dict.fromkeys(obj[section], HIDDEN)
    if obj.get("kind") == "RequestAuthentication":
        # A JWKS with a symmetric key holds the signing secret itself (istio-traps.md 43).
        for rule in obj.get("spec", {}).get("jwtRules", []) or []:
            if '"oct"' in str(rule.get("jwks", "")):
                rule["jwks"] = HIDDEN
    return obj


def hides(obj: Object) -> bool:
    """Tell whether :func:`masked` would hide something of *obj*."""
    return masked(copy.deepcopy(obj)) != obj


def diff_text(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Return a unified diff of two objects as YAML, without file headers."""

    def lines(value: Mapping[str, Any] | None) -> list[str]:
        return yaml.safe_dump(dict(value), sort_keys=True).splitlines() if value else []

    return "\n".join(
        line
        for line in difflib.unified_diff(lines(before), lines(after), lineterm="", n=3)
        if not line.startswith(("---", "+++"))
    )
