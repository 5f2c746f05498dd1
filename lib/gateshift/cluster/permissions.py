"""What a whole migration asks of RBAC, in one table, derived from the client's own calls.

The tests run the code against a recording API server and fail when a call is not covered here.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

from gateshift.cluster.client import Call, Cluster
from gateshift.cluster.objects import GATEWAY_API
from gateshift.params.model import Params

__all__ = ["TABLE", "binding", "cluster_role", "covered", "missing", "needed", "needed_here"]

_READ = ("get", "list")
_WRITE = ("get", "list", "create", "patch", "update", "delete")
_RESTORE = ("get", "list", "create", "delete")
_WATCH = ("watch",)
_ISTIO = "networking.istio.io"
_SECURITY = "security.istio.io"
_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_APISIX = (
    "apisixroutes",
    "apisixupstreams",
    "apisixtlses",
    "apisixconsumers",
    "apisixpluginconfigs",
    "apisixglobalrules",
    "apisixclusterconfigs",
)

TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    # group, resources, verbs, what for
    ("", ("namespaces",), (*_RESTORE, "patch"), "istio-system; clean-up and restore"),
    ("", ("nodes", "resourcequotas", "limitranges"), _READ, "preflight: capacity"),
    ("", ("pods", "events"), _READ, "readiness and its reasons"),
    ("", ("pods/log",), ("get",), "evidence after a rollback; error patterns of the stable run"),
    ("", ("pods/portforward",), ("create",), "istioctl proxy-status and proxy-config"),
    ("", ("services", "configmaps", "serviceaccounts", "secrets"), _WRITE, "install, apply, clean-up"),
    ("", ("serviceaccounts/token",), ("create",), "istioctl proxy-status asks istiod with such a token"),
    ("", ("persistentvolumeclaims",), _RESTORE, "clean-up and restore"),
    ("", ("persistentvolumes",), ("get", "update"), "clean-up: reclaim policy; restore: bind again"),
    ("", ("resourcequotas", "limitranges", "pods"), ("create", "delete"), "clean-up and restore"),
    ("", ("endpoints", "podtemplates", "replicationcontrollers"), ("list",), "what a namespace holds"),
    ("apps", ("deployments", "statefulsets", "daemonsets"), _WRITE, "install, clean-up"),
    ("apps", ("replicasets",), _RESTORE, "reasons of a failed roll-out; clean-up"),
    ("batch", ("jobs", "cronjobs"), _RESTORE, "clean-up and restore"),
    ("autoscaling", ("horizontalpodautoscalers",), _WRITE, "install, clean-up"),
    ("policy", ("poddisruptionbudgets",), _WRITE, "install, clean-up"),
    ("networking.k8s.io", ("networkpolicies", "ingresses", "ingressclasses"), _RESTORE, "clean-up"),
    ("storage.k8s.io", ("storageclasses",), _READ, "preflight: storage"),
    ("storage.k8s.io", ("csistoragecapacities",), ("list",), "what a namespace holds"),
    ("resource.k8s.io", ("resourceclaims", "resourceclaimtemplates"), ("list",), "what a namespace holds"),
    ("discovery.k8s.io", ("endpointslices",), _READ, "diagnose: endpoints"),
    ("coordination.k8s.io", ("leases",), ("get", "list", "create", "update", "delete"), "lock; clocks"),
    (_RBAC, ("roles", "rolebindings", "clusterroles", "clusterrolebindings"), _WRITE, "install, clean-up"),
    # istiod's roles grant more than we hold (token reviews, watches): the API server asks for these.
    (_RBAC, ("roles", "clusterroles"), ("escalate", "bind"), "install: istiod's own roles"),
    ("apiextensions.k8s.io", ("customresourcedefinitions",), _WRITE, "install: Istio's CRDs"),
    (
        _ADMISSION,
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
    (_ISTIO, ("sidecars", "workloadentries", "workloadgroups", "proxyconfigs"), _READ, "diagnose, analyze"),
    (
        _SECURITY,
        ("peerauthentications", "requestauthentications", "authorizationpolicies"),
        _WRITE,
        "apply",
    ),
    ("telemetry.istio.io", ("telemetries",), _WRITE, "apply"),
    ("extensions.istio.io", ("wasmplugins", "trafficextensions"), _READ, "analyze; uninstall"),
    ("apisix.apache.org", _APISIX, _RESTORE, "clean-up and restore"),
    ("apisix.apache.org", ("apisixroutes",), ("update",), "shift: traffic-split through the cluster"),
    (
        GATEWAY_API,
        ("gateways", "httproutes", "grpcroutes", "referencegrants"),
        _WRITE,
        "apply with translate.output gateway-api; clean-up: who is served by APISIX",
    ),
    (
        "apisix.apache.org",
        ("backendtrafficpolicies", "httproutepolicies", "l4routepolicies", "pluginconfigs", "consumers"),
        ("list",),
        "translate: apisix.read_cluster",
    ),
    (GATEWAY_API, ("tlsroutes", "tcproutes", "udproutes"), ("list",), "translate: apisix.read_cluster"),
    (GATEWAY_API, ("gatewayclasses",), _RESTORE, "clean-up and restore; uninstall: what istiod made"),
    # istioctl analyze watches what it reads
    (
        "",
        ("namespaces", "nodes", "pods", "services", "configmaps", "secrets", "endpoints", "serviceaccounts"),
        _WATCH,
        "istioctl analyze",
    ),
    ("apps", ("deployments", "daemonsets", "replicasets", "statefulsets"), _WATCH, "istioctl analyze"),
    ("networking.k8s.io", ("ingresses",), _WATCH, "istioctl analyze"),
    ("discovery.k8s.io", ("endpointslices",), _WATCH, "istioctl analyze"),
    ("apiextensions.k8s.io", ("customresourcedefinitions",), _WATCH, "istioctl analyze"),
    (
        _ADMISSION,
        ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"),
        _WATCH,
        "istioctl analyze",
    ),
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
            "workloadgroups",
            "proxyconfigs",
        ),
        _WATCH,
        "istioctl analyze",
    ),
    (
        _SECURITY,
        ("peerauthentications", "requestauthentications", "authorizationpolicies"),
        _WATCH,
        "istioctl analyze",
    ),
    ("telemetry.istio.io", ("telemetries",), _WATCH, "istioctl analyze"),
    (GATEWAY_API, ("gateways", "httproutes", "grpcroutes"), _WATCH, "istioctl analyze"),
    ("extensions.istio.io", ("wasmplugins", "trafficextensions"), _WATCH, "istioctl analyze"),
)


def needed() -> tuple[Call, ...]:
    """Return every call of the table, each once."""
    out: dict[Call, None] = {}
    for group, resources, verbs, _ in TABLE:
        for resource in resources:
            plural, _, sub = resource.partition("/")
            out |= dict.fromkeys(Call(verb, group, plural, sub) for verb in verbs)
    return tuple(out)


def needed_here(cluster: Cluster) -> tuple[Call, ...]:
    """Return the table's calls and those that depend on the cluster at hand.

    The clean-up looks into the APISIX namespace for objects of every CRD, so that none is deleted unseen.
    """
    found = dict.fromkeys(needed())
    for crd in cluster.list("CustomResourceDefinition"):
        spec = crd.get("spec", {})
        if spec.get("scope") == "Namespaced":
            found[Call("list", spec["group"], spec["names"]["plural"])] = None
    return tuple(found)


def covered(calls: Iterable[Call]) -> set[Call]:
    """Return those *calls* that the table does not name (asking for reviews needs no permission)."""
    return {c for c in calls if c.group != "authorization.k8s.io"} - set(needed())


def missing(cluster: Cluster, params: Params) -> list[Call]:
    """Ask the cluster for each call that a migration needs; return what is denied."""
    del params  # all namespaces are asked at once: the ClusterRole below is bound cluster-wide
    calls = needed_here(cluster)
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


def binding(account: str, namespace: str, *, name: str = "gateshift") -> str:
    """Return as YAML the ClusterRoleBinding that gives :func:`cluster_role` to a ServiceAccount."""
    return yaml.safe_dump(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
        sort_keys=False,
    )
