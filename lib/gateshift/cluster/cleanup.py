"""APISIX goes: only when nothing else needs it, exported first, in a safe order, and it can come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateshift.archive.redact import Redactor
from gateshift.cluster import leftovers
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import watch
from gateshift.cluster.inventory import Inventory, contents, users_of
from gateshift.cluster.kept import copy_step, keep_copy, to_copy
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.cluster.permissions import covered
from gateshift.cluster.resources import Call
from gateshift.cluster.strangers import is_custom, left_behind, strangers
from gateshift.errors import Blocked, ClusterError, GateClosed
from gateshift.params.model import Params
from gateshift.plan import Plan, Step

__all__ = ["execute", "export", "need_typed_name", "plan", "refusals", "wait_gone"]

# The order within the namespace: first what could act (controllers would recreate or delete routes), then
# what serves, then what is stored. Kinds that are not named are custom resources; see _rank.
_DELETED = (
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "CronJob",
    "Job",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Pod",
    "Ingress",
    "Service",
    "NetworkPolicy",
    "ConfigMap",
    "Secret",
    "RoleBinding",
    "Role",
    "ServiceAccount",
    "PersistentVolumeClaim",
    "ResourceQuota",
    "LimitRange",
)
_MOVE = "move or remove these first; what may go along is named as Kind/name in cleanup.also"
_RELEASE = "see in their controller's log why it does not release them, or remove the finalizers by hand"
_PROTECTED = {"default", "kube-system", "kube-public", "kube-node-lease"}


def refusals(params: Params, cluster: Cluster, held: Inventory | None = None) -> list[str]:
    """Name everything in the cluster that forbids deleting the APISIX namespace (empty = none).

    *held* is the namespace's inventory, if it was taken already. That the stable time is on record, DNS
    points away and no traffic arrives is checked by the runbook.
    """
    namespace = params.apisix.namespace
    if namespace in _PROTECTED or namespace in {
        params.istio.namespace,
        params.cluster.application_namespace,
    }:
        return [f"namespace {namespace} holds more than APISIX and is never deleted"]
    if cluster.get("Namespace", namespace) is None:
        return [f"namespace {namespace} does not exist"]
    held = held or contents(cluster, namespace)
    found = strangers(params, held.objects)
    if held.unseen:
        found.append(
            f"it cannot be seen whether the namespace holds {', '.join(held.unseen)}: grant list on them"
        )
    services = [name_of(o) for o in held.objects if o["kind"] == "Service"]
    found += users_of(cluster, namespace, services)
    found += left_behind(cluster, namespace)
    if not params.cleanup.discard_volumes:
        found += _volumes(cluster, held)
    return found


def _volumes(cluster: Cluster, held: Inventory) -> list[str]:
    """Name the volumes that would be destroyed with their claims: etcd's holds the whole configuration."""
    found = []
    for claim in held.objects:
        volume = str(claim.get("spec", {}).get("volumeName", ""))
        if claim["kind"] != "PersistentVolumeClaim" or not volume:
            continue
        live = cluster.get("PersistentVolume", volume)
        policy = (live or {}).get("spec", {}).get("persistentVolumeReclaimPolicy", "Delete")
        if policy != "Retain":
            found.append(
                f"{title_of(claim)}: its volume {volume} would be destroyed (reclaim policy {policy}): "
                "set Retain, or sign with cleanup.discard_volumes"
            )
    return found


def _rank(obj: Object) -> tuple[int, int, str]:
    kind = obj["kind"]
    if _held(obj):
        return (0, 0, title_of(obj))
    if kind in _DELETED and not is_custom(obj):
        return (1, _DELETED.index(kind), title_of(obj))
    # After the controller, which can then not translate its deletion into deleted routes.
    return (2, 0, title_of(obj))


def _held(obj: Object) -> bool:
    """A custom resource with a finalizer needs its controller to go; the controller goes after it."""
    return is_custom(obj) and bool(obj["metadata"].get("finalizers"))


def plan(
    params: Params, cluster: Cluster, *, resuming: bool = False, redactor: Redactor | None = None
) -> Plan:
    """List all that would be deleted, with owners, in order.

    Raises :class:`Blocked` naming everything that still needs APISIX. CRDs that others use stay. When
    *resuming* a clean-up that was interrupted, a namespace that is gone already is no refusal. *redactor*
    knows secrets beside those that can be told by their names.
    """
    namespace = params.apisix.namespace
    home = cluster.get("Namespace", namespace)
    gone = home is None or home.get("status", {}).get("phase") == "Terminating"
    held = Inventory(()) if home is None else contents(cluster, namespace)
    if not (resuming and gone):
        against = refusals(params, cluster, held)
        if against:
            raise Blocked(f"clean-up refuses: {'; '.join(against)}", hint=_MOVE)
    steps = [copy_step(params, o) for o in to_copy(params, cluster, held.objects, redactor or Redactor())]
    deleted = [*leftovers.first(cluster, namespace), *sorted(held.objects, key=_rank)]
    steps += [_delete(o) if _may_delete(cluster, o) else _goes(o) for o in deleted]
    if home is not None and not gone:
        steps.append(_delete(home, "with whatever Kubernetes made in it"))
    steps += [_delete(o) for o in leftovers.last(cluster, namespace)]
    free, used = leftovers.crds(cluster, namespace)
    steps += [_delete(c, "no object of it outside this namespace") for c in free]
    return Plan(
        kind="cleanup",
        title=f"delete namespace {namespace} with {len(held.objects)} objects; type its name to confirm",
        steps=tuple(steps),
        way_back="`gateshift cleanup -p undo=true` restores every object from the export",
        inputs={"cluster": cluster.uid, "namespace": namespace, "kept_crds": dict(sorted(used.items()))},
    )


def _delete(obj: Object, note: str = "") -> Step:
    where = {"uid": obj["metadata"]["uid"], "apiVersion": obj["apiVersion"]}
    if _held(obj):
        where["finalizers"] = list(obj["metadata"]["finalizers"])
    return Step("delete", title_of(obj), where, None, "; ".join(filter(None, [_owner(obj), note])))


def _may_delete(cluster: Cluster, obj: Object) -> bool:
    resource = cluster.resource(f"{obj['apiVersion']}/{obj['kind']}")
    return not covered([Call("delete", resource.group, resource.plural)])


def _goes(obj: Object) -> Step:
    """Return the step for a kind that we hold no right to delete: Kubernetes does it with the namespace."""
    where = {"uid": obj["metadata"]["uid"], "apiVersion": obj["apiVersion"]}
    return Step("goes", title_of(obj), where, None, f"{_owner(obj)}; deleted with the namespace")


def _owner(obj: Object) -> str:
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    managers = {str(m.get("manager")) for m in metadata.get("managedFields") or []}
    helm = (metadata.get("annotations") or {}).get("meta.helm.sh/release-name")
    made = f"Helm release {helm}" if helm else labels.get("app.kubernetes.io/managed-by", "")
    return f"owner: {made or ', '.join(sorted(managers)) or 'unknown'}"


def export(params: Params, cluster: Cluster, plan_: Plan) -> list[Object]:
    """Return everything the plan deletes as it is now, for :func:`gateshift.cluster.exported.shown`.

    Raises :class:`ClusterError` when something of the plan is gone already.
    """
    namespace = params.apisix.namespace
    found = {title_of(o): o for o in contents(cluster, namespace).objects}
    found |= {title_of(o): o for o in leftovers.first(cluster, namespace)}
    found |= {title_of(o): o for o in leftovers.last(cluster, namespace)}
    found |= {title_of(o): o for o in leftovers.crds(cluster, namespace)[0]}
    if home := cluster.get("Namespace", namespace):
        found[title_of(home)] = home
    planned = [s.target for s in plan_.steps if s.verb in {"delete", "goes"}]
    missing = [t for t in planned if t not in found]
    if missing:
        raise ClusterError(f"cannot export {', '.join(missing)}: gone since the plan was made")
    return [found[t] for t in planned]


def _place(step: Step) -> tuple[str, str | None, str]:
    kind, _, where = step.target.partition(" ")
    namespace, _, name = where.rpartition("/")
    return f"{step.before['apiVersion']}/{kind}", namespace or None, name


def need_typed_name(params: Params) -> None:
    """Raise :class:`GateClosed` unless ``confirm_namespace`` repeats the name of APISIX's namespace."""
    namespace = params.apisix.namespace
    if params.confirm_namespace != namespace:
        raise GateClosed(
            f"clean-up deletes namespace {namespace}: its name was not typed as confirmation",
            hint=f"run again with -p confirm_namespace={namespace}",
        )


def execute(
    params: Params,
    cluster: Cluster,
    plan_: Plan,
    *,
    resuming: bool = False,
    redactor: Redactor | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Delete what the plan lists, in its order, only objects with the planned uid; wait for the namespace.

    Raises :class:`GateClosed` unless ``confirm_namespace`` repeats the namespace's name.
    """
    say = progress or (lambda _: None)
    need_typed_name(params)
    if plan(params, cluster, resuming=resuming, redactor=redactor).digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    held: list[Step] = []
    for step in plan_.steps:
        if step.verb == "copy":
            keep_copy(params, cluster, step)
        elif step.verb == "delete":
            kind, where, name = _place(step)
            if "finalizers" in step.before:
                held.append(step)
            elif held:
                _wait_released(params, cluster, held, progress=say)
                held = []
            cluster.delete(kind, name, where, uid=step.before["uid"])
            if kind == "v1/Namespace":
                wait_gone(params, cluster, progress=say)
        say(f"{step.verb}: {step.target}")


def _wait_released(
    params: Params, cluster: Cluster, steps: Iterable[Step], *, progress: Callable[[str], None]
) -> None:
    """Wait until the finalizers of what was deleted are released, while their controller still runs.

    Without it they would hold the namespace for ever. Raises :class:`ClusterError` naming what hangs at the
    end of ``istio.ready_timeout``; the clean-up goes on from there when it is run again.
    """

    def look() -> str:
        left = []
        for step in steps:
            kind, where, name = _place(step)
            live = cluster.get(kind, name, where)
            if live is not None and live["metadata"]["uid"] == step.before["uid"]:
                left.append(f"{step.target} ({', '.join(live['metadata'].get('finalizers') or ['ending'])})")
        return f"held by their finalizers: {', '.join(left[:3])}, {len(left)} in all" if left else ""

    wait, subject = params.istio.ready_timeout, "custom resources"
    watch(look, timeout=wait, progress=progress, subject=subject, hint=_RELEASE)


def wait_gone(params: Params, cluster: Cluster, *, progress: Callable[[str], None] | None = None) -> None:
    """Wait until the namespace is gone; at the end of ``istio.ready_timeout`` say what holds it."""
    namespace = params.apisix.namespace

    def look() -> str:
        live = cluster.get("Namespace", namespace)
        return "" if live is None else _holds(live.get("status", {}).get("conditions") or [])

    watch(look, timeout=params.istio.ready_timeout, progress=progress, subject=f"namespace {namespace}")


def _holds(conditions: Iterable[Object]) -> str:
    told = [
        str(c.get("message"))
        for c in conditions
        if c.get("status") == "True" and c.get("type") not in {"NamespaceDeletionContentSuccess"}
    ]
    return f"being deleted: {'; '.join(told)}" if told else "being deleted"
