"""What APISIX has outside its namespace: webhooks, rights, classes and CRDs, and who else uses them."""

from __future__ import annotations

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import GATEWAY_API, Object, name_of

__all__ = ["CRD_SUFFIX", "crds", "first", "last"]

CRD_SUFFIX = ".apisix.apache.org"


def first(cluster: Cluster, namespace: str) -> list[Object]:
    """Return the admission webhooks served from *namespace*.

    They go before everything else: a fail-closed webhook without its server refuses every change it covers.
    """
    found = []
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for config in cluster.list(kind):
            served = [
                (hook.get("clientConfig", {}).get("service") or {}).get("namespace")
                for hook in config.get("webhooks") or []
            ]
            if served and set(served) == {namespace}:
                found.append(config)
    return found


def last(cluster: Cluster, namespace: str) -> list[Object]:
    """Return cluster-wide objects that serve *namespace* alone: bindings, their roles, classes."""
    every = cluster.list("ClusterRoleBinding")
    bindings = [b for b in every if _only_for(b, namespace)]
    gone = {name_of(b) for b in bindings}
    granted = {str(b["roleRef"]["name"]) for b in bindings}
    elsewhere = {str(b["roleRef"]["name"]) for b in every if name_of(b) not in gone}
    elsewhere |= {
        str(b["roleRef"]["name"])
        for b in cluster.list("RoleBinding")
        if b["metadata"]["namespace"] != namespace and b["roleRef"]["kind"] == "ClusterRole"
    }
    only = {n for n in granted - elsewhere if not n.startswith("system:")}
    roles = [r for r in cluster.list("ClusterRole") if name_of(r) in only and "apisix" in _words(r)]
    classes = [
        c for c in cluster.list("IngressClass") if "apisix" in str(c.get("spec", {}).get("controller", ""))
    ]
    kind = f"{GATEWAY_API}/v1/GatewayClass"
    if cluster.serves(kind):
        classes += [
            c for c in cluster.list(kind) if "apisix" in str(c.get("spec", {}).get("controllerName", ""))
        ]
    return bindings + roles + classes


def _words(obj: Object) -> str:
    metadata = obj["metadata"]
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return " ".join([name_of(obj), *map(str, marks.values())])


def _only_for(binding: Object, namespace: str) -> bool:
    subjects = binding.get("subjects") or []
    return bool(subjects) and all(
        s.get("kind") == "ServiceAccount" and s.get("namespace") == namespace for s in subjects
    )


def crds(cluster: Cluster, namespace: str) -> tuple[list[Object], dict[str, str]]:
    """Return APISIX's CRDs that nobody outside *namespace* uses, and for the others by whom they are used.

    Deleting a CRD deletes every object of it, in every namespace.
    """
    free: list[Object] = []
    used: dict[str, str] = {}
    for crd in cluster.list("CustomResourceDefinition"):
        if not name_of(crd).endswith(CRD_SUFFIX):
            continue
        spec = crd.get("spec", {})
        served = [v["name"] for v in spec.get("versions") or [] if v.get("served")]
        kind = f"{spec.get('group')}/{served[0]}/{spec['names']['kind']}" if served else ""
        if not kind or not cluster.serves(kind):
            used[name_of(crd)] = "its objects cannot be listed"
            continue
        places = {o["metadata"].get("namespace", "") for o in cluster.list(kind)} - {namespace}
        if places:
            used[name_of(crd)] = f"objects in {', '.join(sorted(places)) or 'the whole cluster'}"
        else:
            free.append(crd)
    return free, used
