"""APISIX goes: only when nothing else needs it, exported first, in a safe order, and it can come back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import Object, clean, identity, name_of, title_of
from gateshift.errors import Blocked, ClusterError, GateClosed
from gateshift.params.model import Params
from gateshift.plan import Plan, Step

__all__ = ["execute", "export", "plan", "refusals", "restore"]

# What the namespace holds, in the order in which it is deleted: first what could act (controllers would
# recreate or delete routes), then what serves, then what is stored. The namespace itself comes last.
_DELETED = (
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "CronJob",
    "Job",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "Ingress",
    "Service",
    "NetworkPolicy",
    "ConfigMap",
    "Secret",
    "RoleBinding",
    "Role",
    "ServiceAccount",
    "PersistentVolumeClaim",
)
_MADE_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
_PROTECTED = {"default", "kube-system", "kube-public", "kube-node-lease"}
_CRD_SUFFIX = ".apisix.apache.org"


def refusals(params: Params, cluster: Cluster) -> list[str]:
    """Name everything in the cluster that forbids deleting the APISIX namespace (empty = none).

    That the stable time is on record, DNS points away and no traffic arrives is checked by the runbook.
    """
    namespace = params.apisix.namespace
    if namespace in _PROTECTED or namespace in {
        params.istio.namespace,
        params.cluster.application_namespace,
    }:
        return [f"namespace {namespace} holds more than APISIX and is never deleted"]
    if cluster.get("Namespace", namespace) is None:
        return [f"namespace {namespace} does not exist"]
    found = []
    for workload in [*cluster.list("Deployment", namespace), *cluster.list("StatefulSet", namespace)]:
        if not _belongs(workload):
            found.append(f"{title_of(workload)} is not a part of APISIX")
    internal = {f"{name_of(s)}.{namespace}" for s in cluster.list("Service", namespace)}
    found += _routed_to(cluster, namespace, internal)
    for ingress in cluster.list("Ingress"):
        if ingress["metadata"]["namespace"] != namespace and _ingress_class(ingress) == "apisix":
            found.append(f"{title_of(ingress)} is served by APISIX")
    return found


def _belongs(obj: Object) -> bool:
    words = [name_of(obj), *(obj["metadata"].get("labels") or {}).values()]
    return any("apisix" in str(w) or "etcd" in str(w) for w in words)


def _ingress_class(ingress: Object) -> str:
    annotations = ingress["metadata"].get("annotations") or {}
    return str(
        ingress["spec"].get("ingressClassName") or annotations.get("kubernetes.io/ingress.class") or ""
    )


def _routed_to(cluster: Cluster, namespace: str, internal: set[str]) -> list[str]:
    """Find objects elsewhere that send to a Service of the namespace."""
    found = []
    for service in cluster.list("Service"):
        target = str(service["spec"].get("externalName", ""))
        if service["metadata"]["namespace"] != namespace and any(target.startswith(n) for n in internal):
            found.append(f"{title_of(service)} is an alias of {target}")
    if cluster.serves("VirtualService"):
        for obj in cluster.list("VirtualService"):
            for rule in obj["spec"].get("http") or []:
                for route in rule.get("route") or []:
                    host = str(route.get("destination", {}).get("host", ""))
                    if any(host == n or host.startswith(f"{n}.") for n in internal):
                        found.append(f"{title_of(obj)} sends to {host}")
    return found


def plan(params: Params, cluster: Cluster) -> Plan:
    """List all that would be deleted, with owners, in order.

    Raises :class:`Blocked` naming everything that still needs APISIX. CRDs stay: other namespaces may hold
    objects of them, and deleting a CRD deletes these.
    """
    against = refusals(params, cluster)
    if against:
        raise Blocked(f"clean-up refuses: {'; '.join(against)}", hint="move or remove these first")
    namespace = params.apisix.namespace
    steps = [
        Step(
            "delete",
            title_of(o),
            {"uid": o["metadata"]["uid"], "apiVersion": o["apiVersion"]},
            None,
            _owner(o),
        )
        for o in _contents(cluster, namespace)
    ]
    home = cluster.get("Namespace", namespace)
    if home is not None:
        before = {"uid": home["metadata"]["uid"], "apiVersion": "v1"}
        steps.append(Step("delete", title_of(home), before, None, "with whatever is left in it"))
    crds = [name_of(c) for c in cluster.list("CustomResourceDefinition") if name_of(c).endswith(_CRD_SUFFIX)]
    return Plan(
        kind="cleanup",
        title=f"delete namespace {namespace} with {len(steps) - 1} objects; type its name to confirm",
        steps=tuple(steps),
        way_back="the export restores every object (volumes' contents excepted)",
        inputs={"cluster": cluster.uid, "namespace": namespace, "kept_crds": sorted(crds)},
    )


def _owner(obj: Object) -> str:
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    managers = {str(m.get("manager")) for m in metadata.get("managedFields") or []}
    helm = (metadata.get("annotations") or {}).get("meta.helm.sh/release-name")
    made = f"Helm release {helm}" if helm else labels.get("app.kubernetes.io/managed-by", "")
    return f"owner: {made or ', '.join(sorted(managers)) or 'unknown'}"


def _contents(cluster: Cluster, namespace: str) -> list[Object]:
    kinds = list(_DELETED)
    if cluster.serves("apisix.apache.org/v2/ApisixRoute"):
        # The controller is gone by then, so it cannot translate their deletion into deleted routes.
        kinds += [f"apisix.apache.org/v2/{k}" for k in ("ApisixRoute", "ApisixUpstream", "ApisixTls")]
    found = []
    for kind in kinds:
        if not cluster.serves(kind):
            continue
        for obj in cluster.list(kind, namespace):
            if (obj["kind"], name_of(obj)) in _MADE_BY_KUBERNETES or obj["metadata"].get("ownerReferences"):
                continue  # made by Kubernetes or by an owner that is deleted itself
            if obj["kind"] == "Secret" and obj.get("type") == "kubernetes.io/service-account-token":
                continue
            found.append(obj)
    return found


def export(cluster: Cluster, plan_: Plan) -> list[Object]:
    """Return everything the plan deletes, ready to be applied again.

    Secrets are exported without their values: an archive holds no secrets. They are named, so that
    whoever restores knows which to bring.
    """
    namespace = str(plan_.inputs["namespace"])
    planned = {s.target for s in plan_.steps}
    found = [o for o in _contents(cluster, namespace) if title_of(o) in planned]
    home = cluster.get("Namespace", namespace)
    every = ([home] if home else []) + found
    missing = planned - {title_of(o) for o in every}
    if missing:
        raise ClusterError(f"cannot export {', '.join(sorted(missing))}: gone since the plan was made")
    return [_portable(o) for o in every]


def _portable(obj: Object) -> Object:
    out = clean(obj) or {}
    spec: dict[str, Any] = out.get("spec") or {}
    if out["kind"] == "Service":
        # The old addresses may be taken; the load balancer gets a new one in any case.
        for field in ("clusterIP", "clusterIPs"):
            if spec.get(field) not in ("None", ["None"]):
                spec.pop(field, None)
        spec.pop("healthCheckNodePort", None)
        for port in spec.get("ports") or []:
            port.pop("nodePort", None)
    if out["kind"] == "PersistentVolumeClaim":
        spec.pop("volumeName", None)
        for key in [k for k in out["metadata"].get("annotations") or {} if k.startswith("pv.kubernetes.io/")]:
            del out["metadata"]["annotations"][key]
    if out["kind"] == "Job":
        spec.pop("selector", None)
        spec.get("template", {}).get("metadata", {}).pop("labels", None)
    if out["kind"] == "Namespace":
        out["spec"] = {}
    return out


def execute(
    params: Params, cluster: Cluster, plan_: Plan, *, progress: Callable[[str], None] | None = None
) -> None:
    """Delete what the plan lists, in its order, only objects with the planned uid.

    Raises :class:`GateClosed` unless ``confirm_namespace`` repeats the namespace's name.
    """
    say = progress or (lambda _: None)
    namespace = params.apisix.namespace
    if params.confirm_namespace != namespace:
        raise GateClosed(
            f"clean-up deletes namespace {namespace}: its name was not typed as confirmation",
            hint=f"run again with -p confirm_namespace={namespace}",
        )
    if plan(params, cluster).digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    for step in plan_.steps:
        kind, _, where = step.target.partition(" ")
        name = where.rpartition("/")[2]
        cluster.delete(
            f"{step.before['apiVersion']}/{kind}",
            name,
            None if kind == "Namespace" else namespace,
            uid=step.before["uid"],
        )
        say(f"deleted {step.target}")


def restore(
    cluster: Cluster, objects: Iterable[Object], *, progress: Callable[[str], None] | None = None
) -> list[str]:
    """Create an export again; return what a person must bring (Secrets' values)."""
    say = progress or (lambda _: None)
    wanted = {identity(o): copy.deepcopy(o) for o in objects}
    order = (
        "Namespace",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "Secret",
        "ConfigMap",
        "PersistentVolumeClaim",
    )
    rank = {kind: i for i, kind in enumerate(order)}
    owed = []
    for obj in sorted(wanted.values(), key=lambda o: rank.get(o["kind"], len(order))):
        if obj["kind"] == "Secret":
            owed.append(f"{title_of(obj)} (keys: {', '.join(sorted(obj.get('data') or {}))})")
            continue
        kind = f"{obj['apiVersion']}/{obj['kind']}"
        if cluster.get(kind, name_of(obj), obj["metadata"].get("namespace")) is None:
            cluster.create(obj)
            say(f"restored {title_of(obj)}")
    return owed
