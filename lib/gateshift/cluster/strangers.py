"""What APISIX's namespace holds that is no part of APISIX, and who elsewhere is served by APISIX alone."""

from __future__ import annotations

from collections.abc import Iterable

from gateshift.cluster.client import Cluster
from gateshift.cluster.custom_resources import KINDS
from gateshift.cluster.gateways import wanted_routes
from gateshift.cluster.objects import GATEWAY_API, Object, name_of, title_of
from gateshift.params.model import Params

__all__ = ["is_custom", "left_behind", "strangers"]

_WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "CronJob", "Job", "Pod"}
# By their end alone they cannot be told: volume snapshots are custom resources of snapshot.storage.k8s.io.
_OF_KUBERNETES = {
    "",
    "apps",
    "autoscaling",
    "batch",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "storage.k8s.io",
}
_EXPECTED = {"apisix.apache.org", GATEWAY_API}
# What installers write to say what a thing is; any other label may mention APISIX for a reason of its own.
_TELLING = ("app", "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/part-of")


def is_custom(obj: Object) -> bool:
    """Tell whether *obj* is of a kind that Kubernetes itself does not have."""
    return _group(obj) not in _OF_KUBERNETES


def _group(obj: Object) -> str:
    return str(obj["apiVersion"]).rpartition("/")[0]


def strangers(params: Params, objects: Iterable[Object]) -> list[str]:
    """Name the workloads and custom resources among *objects* that are no part of APISIX.

    An operator's custom resource takes its workloads, volumes and secrets along when it goes, so it counts
    as one. What ``cleanup.also`` names as ``Kind/name`` may go.
    """
    return [
        f"{title_of(obj)} is not a part of APISIX"
        for obj in objects
        if (obj["kind"] in _WORKLOADS or (is_custom(obj) and _group(obj) not in _EXPECTED))
        and not _belongs(obj)
        and f"{obj['kind']}/{name_of(obj)}" not in params.cleanup.also
    ]


def _belongs(obj: Object) -> bool:
    labels = obj["metadata"].get("labels") or {}
    words = [name_of(obj), *(str(labels.get(key, "")) for key in _TELLING)]
    return any("apisix" in word or "etcd" in word for word in words)


def left_behind(cluster: Cluster, namespace: str) -> list[str]:
    """Name the ApisixRoutes of other namespaces with hosts that no route of Istio has.

    Nobody would serve these. A rule without hosts is not judged: it is for whatever host is served.
    """
    kind = next((k for k in KINDS["ApisixRoute"] if cluster.serves(k)), None)
    routes = [r for r in cluster.list(kind) if r["metadata"].get("namespace") != namespace] if kind else []
    if not routes:
        return []
    objects = [
        o
        for one in ("VirtualService", "HTTPRoute", "GRPCRoute")
        if cluster.serves(one)
        for o in cluster.list(one)
    ]
    served = set(wanted_routes(objects))
    found = []
    for route in routes:
        if lost := [h for h in _hosts(route) if not any(_covers(have, h) for have in served)]:
            found.append(f"{title_of(route)} serves {', '.join(lost)}, which no route of Istio does")
    return found


def _hosts(route: Object) -> list[str]:
    spec = route.get("spec") or {}
    matches = [rule.get("match") or {} for part in ("http", "stream") for rule in spec.get(part) or []]
    hosts = [str(h) for match in matches for h in [*(match.get("hosts") or []), match.get("host")] if h]
    return sorted(set(hosts))


def _covers(have: str, host: str) -> bool:
    return have in {"*", host} or (have.startswith("*.") and host.endswith(have[1:]))
