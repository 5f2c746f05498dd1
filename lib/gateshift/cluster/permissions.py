"""What a whole migration asks of RBAC, in one table, derived from the client's own calls.

The tests run the code against a recording API server and fail when a call is not covered here.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from gateshift.cluster.client import Call, Cluster
from gateshift.params.model import Params

__all__ = ["TABLE", "cluster_role", "covered", "missing", "needed"]

_READ = ("get", "list")
_WRITE = ("get", "list", "create", "patch", "update", "delete")
_ISTIO = "networking.istio.io"
_SECURITY = "security.istio.io"

TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    # group, resources, verbs, what for
    ("", ("namespaces",), ("get", "list", "create", "patch", "delete"), "istio-system; clean-up"),
    ("", ("nodes", "resourcequotas", "limitranges", "endpoints"), _READ, "preflight: capacity"),
    ("", ("pods", "events"), _READ, "readiness and its reasons"),
    ("", ("pods/log",), ("get",), "evidence after a rollback"),
    ("", ("pods/portforward",), ("create",), "istioctl proxy-status and proxy-config"),
    ("", ("services", "configmaps", "serviceaccounts", "secrets"), _WRITE, "install, apply, clean-up"),
    ("", ("persistentvolumeclaims",), ("get", "list", "create", "delete"), "clean-up and restore"),
    ("apps", ("deployments", "statefulsets", "daemonsets"), _WRITE, "install, clean-up"),
    ("apps", ("replicasets",), _READ, "reasons of a failed roll-out"),
    ("batch", ("jobs", "cronjobs"), ("get", "list", "create", "delete"), "clean-up and restore"),
    ("autoscaling", ("horizontalpodautoscalers",), _WRITE, "install, clean-up"),
    ("policy", ("poddisruptionbudgets",), _WRITE, "install, clean-up"),
    ("networking.k8s.io", ("networkpolicies", "ingresses"), ("get", "list", "create", "delete"), "clean-up"),
    ("discovery.k8s.io", ("endpointslices",), _READ, "diagnose: endpoints"),
    ("coordination.k8s.io", ("leases",), ("get", "list", "create", "update"), "the migration's lock; clocks"),
    ("rbac.authorization.k8s.io", ("roles", "rolebindings"), _WRITE, "install, clean-up"),
    ("rbac.authorization.k8s.io", ("clusterroles", "clusterrolebindings"), _WRITE, "install"),
    ("", ("serviceaccounts/token",), ("create",), "istioctl proxy-status asks istiod with such a token"),
    (
        "",
        ("namespaces", "nodes", "pods", "services", "configmaps", "secrets", "endpoints", "serviceaccounts"),
        ("watch",),
        "istioctl analyze watches what it reads",
    ),
    ("apps", ("deployments", "daemonsets", "replicasets", "statefulsets"), ("watch",), "istioctl analyze"),
    ("networking.k8s.io", ("ingresses",), ("watch",), "istioctl analyze"),
    ("discovery.k8s.io", ("endpointslices",), ("watch",), "istioctl analyze"),
    ("apiextensions.k8s.io", ("customresourcedefinitions",), ("watch",), "istioctl analyze"),
    (
        "admissionregistration.k8s.io",
        ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"),
        ("watch",),
        "istioctl analyze",
    ),
    (_ISTIO, ("workloadgroups", "proxyconfigs"), (*_READ, "watch"), "istioctl analyze"),
    ("extensions.istio.io", ("wasmplugins", "trafficextensions"), (*_READ, "watch"), "istioctl analyze"),
    (
        _ISTIO,
        (
            "gateways",
            "virtualservices",
            "destinationrules",
            "serviceentries",
            "envoyfilters",
            "sidecars",
            "workloadentries",
        ),
        ("watch",),
        "istioctl analyze",
    ),
    (
        _SECURITY,
        ("peerauthentications", "requestauthentications", "authorizationpolicies"),
        ("watch",),
        "istioctl analyze",
    ),
    ("telemetry.istio.io", ("telemetries",), ("watch",), "istioctl analyze"),
    (
        # istiod's roles grant more than we hold (token reviews, watches): the API server asks for these.
        "rbac.authorization.k8s.io",
        ("roles", "clusterroles"),
        ("escalate", "bind"),
        "install: istiod's own roles",
    ),
    ("apiextensions.k8s.io", ("customresourcedefinitions",), _WRITE, "install: Istio's CRDs"),
    (
        "admissionregistration.k8s.io",
        ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"),
        _WRITE,
        "install: istiod's webhooks",
    ),
    (
        _ISTIO,
        ("gateways", "virtualservices", "destinationrules", "serviceentries", "envoyfilters"),
        _WRITE,
        "apply",
    ),
    (_ISTIO, ("sidecars", "workloadentries"), _READ, "diagnose"),
    (
        _SECURITY,
        ("peerauthentications", "requestauthentications", "authorizationpolicies"),
        _WRITE,
        "apply",
    ),
    ("telemetry.istio.io", ("telemetries",), _WRITE, "apply"),
    (
        "apisix.apache.org",
        ("apisixroutes", "apisixupstreams", "apisixtlses"),
        ("get", "list", "create", "delete"),
        "clean-up and restore",
    ),
)


def needed() -> tuple[Call, ...]:
    """Return every call of the table."""
    out = []
    for group, resources, verbs, _ in TABLE:
        for resource in resources:
            plural, _, sub = resource.partition("/")
            out += [Call(verb, group, plural, sub) for verb in verbs]
    return tuple(out)


def covered(calls: Iterable[Call]) -> set[Call]:
    """Return those *calls* that the table does not name (asking for reviews needs no permission)."""
    return {c for c in calls if c.group != "authorization.k8s.io"} - set(needed())


def missing(cluster: Cluster, params: Params) -> list[Call]:
    """Ask the cluster for each call of the table; return what is denied."""
    del params  # all namespaces are asked at once: the ClusterRole below is bound cluster-wide
    calls = needed()
    with ThreadPoolExecutor(16) as pool:
        allowed = list(pool.map(cluster.may, calls))
    return [call for call, yes in zip(calls, allowed, strict=True) if not yes]


def cluster_role(calls: Iterable[Call] | None = None, *, name: str = "gateshift") -> str:
    """Return a ClusterRole as YAML that grants *calls* (default: all that a migration needs)."""
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    verbs: dict[tuple[str, str], list[str]] = {}
    for call in needed() if calls is None else calls:
        resource = f"{call.resource}/{call.subresource}" if call.subresource else call.resource
        verbs.setdefault((call.group, resource), []).append(call.verb)
    for (group, resource), granted in verbs.items():
        grouped.setdefault((group, tuple(granted)), []).append(resource)
    rules: list[dict[str, Any]] = [
        {"apiGroups": [group], "resources": resources, "verbs": list(granted)}
        for (group, granted), resources in grouped.items()
    ]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }
    return yaml.safe_dump(role, sort_keys=False)
