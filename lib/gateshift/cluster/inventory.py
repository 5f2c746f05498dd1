"""Everything that a namespace holds, of whatever kind, and what elsewhere depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gateshift.cluster.client import ApiError, Cluster, Resource
from gateshift.cluster.objects import GATEWAY_API, Object, name_of, title_of

__all__ = ["Inventory", "contents", "namespaced_resources", "users_of"]

_MADE_BY_KUBERNETES = {
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "istio-ca-root-cert"),
    ("ConfigMap", "istio-ca-crl"),
    ("ServiceAccount", "default"),
}
# Records of what happens, and mirrors of other objects: nobody restores them.
_PASSING = {
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("", "Endpoints"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("coordination.k8s.io", "Lease"),
    ("apps", "ControllerRevision"),
}


@dataclass(frozen=True, slots=True)
class Inventory:
    """The objects that somebody made, and the kinds that could not be listed (``resource.group``)."""

    objects: tuple[Object, ...]
    unseen: tuple[str, ...] = field(default=())


def namespaced_resources(cluster: Cluster) -> list[Resource]:
    """Return every kind of namespaced object that the API server lists, each in one version.

    That is the version which the server prefers, or the next that has the kind: Istio's EnvoyFilter and
    APISIX's Consumer are not in the preferred version of their groups.
    """
    versions = ["v1"]
    for group in cluster.raw("/apis").get("groups") or []:
        preferred = group["preferredVersion"]["groupVersion"]
        served = [v["groupVersion"] for v in group.get("versions") or []]
        versions += [preferred, *(v for v in served if v != preferred)]

    def one(version: str) -> list[Resource]:
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        group = version.rpartition("/")[0]
        try:
            served = cluster.raw(path).get("resources") or []
        except ApiError as error:
            if error.status in {404, 503}:  # an aggregated API without a server behind it holds nothing
                return []
            raise
        return [
            Resource(group, version.rpartition("/")[2], r["kind"], r["name"], True)
            for r in served
            if r.get("namespaced") and "/" not in r["name"] and "list" in (r.get("verbs") or [])
        ]

    with ThreadPoolExecutor(8) as pool:
        found = [r for part in pool.map(one, versions) for r in part]
    first: dict[tuple[str, str], Resource] = {}
    for resource in found:
        first.setdefault((resource.group, resource.kind), resource)
    return list(first.values())


def contents(cluster: Cluster, namespace: str) -> Inventory:
    """List what *namespace* holds: not what Kubernetes makes by itself, nor what an owner in it takes along.

    An object whose owner cannot be in it (of a kind for the whole cluster, or one that may not be listed)
    stands for itself, and so does each claim of a volume: data are nothing to lose on the way.
    """
    wanted = [
        r
        for r in namespaced_resources(cluster)
        if (r.group, r.kind) not in _PASSING and r.group != "metrics.k8s.io"
    ]

    def one(resource: Resource) -> list[Object] | str:
        try:
            return cluster.list(f"{resource.api_version}/{resource.kind}", namespace)
        except ApiError as error:
            if error.status == 404:  # its definition ended since the kinds were asked for
                return []
            if error.status in {403, 405}:
                return f"{resource.plural}{'.' + resource.group if resource.group else ''}"
            raise

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, wanted))
    unseen = [a for a in answers if isinstance(a, str)]
    seen = {(r.group, r.kind) for r, a in zip(wanted, answers, strict=True) if not isinstance(a, str)}
    objects = [o for a in answers if not isinstance(a, str) for o in a if _made_by_somebody(o, seen)]
    return Inventory(tuple(objects), tuple(sorted(unseen)))


def _made_by_somebody(obj: Object, seen: Set[tuple[str, str]]) -> bool:
    owners = {
        (str(owner.get("apiVersion", "")).rpartition("/")[0], str(owner["kind"]))
        for owner in obj["metadata"].get("ownerReferences") or []
    }
    taken_along = owners and owners <= seen and obj["kind"] != "PersistentVolumeClaim"
    if (obj["kind"], name_of(obj)) in _MADE_BY_KUBERNETES or taken_along:
        return False
    return not (obj["kind"] == "Secret" and obj.get("type") == "kubernetes.io/service-account-token")


def users_of(cluster: Cluster, namespace: str, services: Iterable[str]) -> list[str]:
    """Name the objects of other namespaces that send to a Service of *namespace* or are served by APISIX."""
    names = {f"{s}.{namespace}" for s in services}

    def internal(host: str) -> bool:
        return any(host == n or host.startswith(f"{n}.") for n in names)

    found = []
    for service in cluster.list("Service"):
        target = str(service["spec"].get("externalName", ""))
        if service["metadata"]["namespace"] != namespace and internal(target):
            found.append(f"{title_of(service)} is an alias of {target}")
    for kind in ("VirtualService", "ServiceEntry"):
        if cluster.serves(kind):
            for obj in cluster.list(kind):
                for host in sorted(set(filter(internal, _hosts(obj)))):
                    found.append(f"{title_of(obj)} sends to {host}")
    return (
        found
        + _routes(cluster, namespace)
        + _ingresses(cluster, namespace)
        + _gateway_api(cluster, namespace)
    )


def _routes(cluster: Cluster, namespace: str) -> list[str]:
    """Name the routes of the Gateway API in other namespaces that send to a Service of *namespace*."""
    found = []
    for kind in ("HTTPRoute", "GRPCRoute"):
        if not cluster.serves(kind):
            continue
        for route in cluster.list(kind):
            rules = route["spec"].get("rules") or []
            refs = [ref for rule in rules for ref in rule.get("backendRefs") or []]
            filters = [f for rule in rules for f in rule.get("filters") or []]
            refs += [f["requestMirror"]["backendRef"] for f in filters if f.get("requestMirror")]
            named = sorted({str(ref["name"]) for ref in refs if ref.get("namespace") == namespace})
            if route["metadata"]["namespace"] != namespace:
                found += [f"{title_of(route)} sends to {name}.{namespace}" for name in named]
    return found


def _hosts(obj: Object) -> list[str]:
    spec = obj["spec"]
    if obj["kind"] == "ServiceEntry":
        endpoints = spec.get("endpoints") or []
        return [*map(str, spec.get("hosts") or []), *(str(e.get("address")) for e in endpoints)]
    rules = [r for section in ("http", "tls", "tcp") for r in spec.get(section) or []]
    sent = [d.get("destination", {}) for r in rules for d in r.get("route") or []]
    for rule in rules:
        sent += [m.get("destination", m) for m in rule.get("mirrors") or []]
        if rule.get("mirror"):
            sent.append(rule["mirror"])
    return [str(d.get("host", "")) for d in sent]


def _ingresses(cluster: Cluster, namespace: str) -> list[str]:
    classes = [
        c for c in cluster.list("IngressClass") if "apisix" in str(c.get("spec", {}).get("controller", ""))
    ]
    ours = {"apisix", *map(name_of, classes)}
    default = any(
        (c["metadata"].get("annotations") or {}).get("ingressclass.kubernetes.io/is-default-class") == "true"
        for c in classes
    )
    found = []
    for ingress in cluster.list("Ingress"):
        annotations = ingress["metadata"].get("annotations") or {}
        named = ingress["spec"].get("ingressClassName") or annotations.get("kubernetes.io/ingress.class")
        if ingress["metadata"]["namespace"] != namespace and (named in ours or (default and not named)):
            found.append(f"{title_of(ingress)} is served by APISIX")
    return found


def _gateway_api(cluster: Cluster, namespace: str) -> list[str]:
    """Gateways of a class that APISIX's controller serves; their routes hang on them."""
    group = f"{GATEWAY_API}/v1"
    if not cluster.serves(f"{group}/GatewayClass"):
        return []
    ours = {
        name_of(c)
        for c in cluster.list(f"{group}/GatewayClass")
        if "apisix" in str(c.get("spec", {}).get("controllerName", ""))
    }
    return [
        f"{title_of(g)} is served by APISIX"
        for g in cluster.list(f"{group}/Gateway")
        if g["spec"].get("gatewayClassName") in ours and g["metadata"]["namespace"] != namespace
    ]
