"""Take an installation back: exactly what it brought, and nothing that others use or that a person made."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import ApiError
from gateshift.cluster.gateways import watch
from gateshift.cluster.install import manifests
from gateshift.cluster.inventory import contents
from gateshift.cluster.objects import API_GATEWAY, Object, clean, diff_text, name_of, title_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.ownership import is_ours, is_shared, owner_selector
from gateshift.errors import Blocked, ClusterError
from gateshift.params.model import Params
from gateshift.plan import Plan, Step, digest_of

__all__ = ["execute", "plan", "shared_before"]

# Webhooks first, so that nothing fails closed while the rest goes; what serves before what it needs.
# Accounts go after what istiod made at run time: by them a repeated uninstall knows there is more to take.
_KINDS = (
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
    "Service",
    "ConfigMap",
    "ClusterRoleBinding",
    "ClusterRole",
    "RoleBinding",
    "Role",
)
_LAST_KIND = "ServiceAccount"
# istiod makes these at run time; they are nobody's once the last istiod is gone.
_RUNTIME_MAPS = {"istio-ca-root-cert", "istio-ca-crl"}
_RUNTIME_SECRETS = {"istio-ca-secret", "istio-ca-secret-lock"}
_RUNTIME_CLASSES = {"istio", "istio-remote", "istio-waypoint", "istio-east-west"}
_BY_ISTIOD = "made by istiod at run time"
_NAMED = 3
"""Objects of a namespace that stays which are named; of the others the number is told."""


def shared_before(params: Params, cluster: Cluster) -> list[Object]:
    """Return, as they are now, the objects of others that an install also writes (see :func:`plan`)."""
    found = []
    for wanted in manifests(params):
        kind = f"{wanted['apiVersion']}/{wanted['kind']}"
        if is_shared(wanted) and cluster.serves(kind):
            live = cluster.get(kind, name_of(wanted), wanted["metadata"].get("namespace"))
            if live is not None and not is_ours(live, params):
                found.append(live)
    return found


def plan(
    params: Params, cluster: Cluster, *, before: Iterable[Object] = (), created_namespace: bool = False
) -> Plan:
    """List what the uninstall removes and puts back.

    *before* are the shared objects of others as they were (:func:`shared_before`); *created_namespace*
    says that the install made the namespace. A CRD with objects stays, and so does a namespace that holds
    anything, of whatever kind, or of which not everything may be seen.
    """
    steps: list[Step] = []
    goes: set[str] = set()
    old = {title_of(o): o for o in before}
    last = not _other_istiods(params, cluster)

    def made(kind: str) -> list[Step]:
        found = []
        for obj in cluster.list(kind, labels=owner_selector(params)):
            if title_of(obj) in old:
                found += _put_back(obj, old[title_of(obj)])
            elif last or not is_shared(obj):
                found.append(_delete(obj, "made by the install"))
                goes.add(obj["metadata"]["uid"])
        return found

    for kind in _KINDS:
        steps += made(kind)
    accounts = made(_LAST_KIND)
    runtime = _made_by_istiod(params, cluster) if last and (steps or accounts) else []
    steps += [_delete(o, _BY_ISTIOD) for o in runtime]
    goes |= {o["metadata"]["uid"] for o in runtime}
    steps += accounts
    kept: list[str] = []
    steps += _crds(params, cluster, old, last, kept)
    if created_namespace and (namespace := cluster.get("Namespace", params.istio.namespace)):
        if holds := _holds(cluster, params.istio.namespace, goes):
            kept.append(f"namespace {params.istio.namespace}: {holds}")
        else:
            steps.append(_delete(namespace, "made by the install, empty now"))
    title = f"Istio {params.istio.version}: take back {len(steps)} objects"
    return Plan(
        kind="uninstall",
        title=title + (f"; kept: {'; '.join(kept)}" if kept else ""),
        steps=tuple(steps),
        way_back="10_install installs the same again",
        inputs={"cluster": cluster.uid, "kept": sorted(kept)},
    )


def _delete(obj: Object, note: str) -> Step:
    where = {"apiVersion": obj["apiVersion"], "uid": obj["metadata"]["uid"]}
    return Step("delete", title_of(obj), where, None, note)


def _other_istiods(params: Params, cluster: Cluster) -> bool:
    ours = (params.istio.namespace, istiod_name(params.istio))
    return any(
        (d["metadata"]["namespace"], name_of(d)) != ours
        for d in cluster.list("Deployment", labels="app=istiod")
    )


def _made_by_istiod(params: Params, cluster: Cluster) -> list[Object]:
    made = cluster.list("ConfigMap", labels="istio.io/config=true")
    found = [o for o in made if name_of(o) in _RUNTIME_MAPS]
    namespace = params.istio.namespace
    found += [o for o in cluster.list("Secret", namespace) if name_of(o) in _RUNTIME_SECRETS]
    # Leader elections: ConfigMaps that carry nothing but the election's record.
    found += [
        o
        for o in cluster.list("ConfigMap", namespace)
        if "control-plane.alpha.kubernetes.io/leader" in (o["metadata"].get("annotations") or {})
        and name_of(o).startswith("istio-")
    ]
    found += [o for o in cluster.list("Lease", namespace) if name_of(o).startswith("istio-")]
    return found + _gateway_classes(cluster)


def _gateway_classes(cluster: Cluster) -> list[Object]:
    """Return the Gateway API's classes that istiod made; one that a Gateway names stays."""
    if not cluster.serves("GatewayClass"):
        return []
    used = {g["spec"].get("gatewayClassName") for g in cluster.list(API_GATEWAY)}
    return [
        c
        for c in cluster.list("GatewayClass")
        if str(c.get("spec", {}).get("controllerName", "")).startswith("istio.io/")
        and name_of(c) in _RUNTIME_CLASSES - used
    ]


def _crds(
    params: Params, cluster: Cluster, before: Mapping[str, Object], last: bool, kept: list[str]
) -> list[Step]:
    steps: list[Step] = []
    for crd in cluster.list("CustomResourceDefinition", labels=owner_selector(params)):
        name = name_of(crd)
        if title_of(crd) in before:
            steps += _put_back(crd, before[title_of(crd)])
            continue
        users = _instances(cluster, crd)
        if users or not last:
            why = f"{len(users)} objects of it" if users else "another istiod uses it"
            kept.append(f"{name}: {why}")
            continue
        steps.append(_delete(crd, "made by the install, no object of it exists"))
    return steps


def _put_back(live: Object, before: Object) -> list[Step]:
    old, now = clean(before), clean(live)
    if old == now:
        return []
    where = {"apiVersion": live["apiVersion"], "uid": live["metadata"]["uid"]}
    note = f"as before the install\n{diff_text(now, old)[:2000]}"
    return [Step("restore", title_of(live), where, {"digest": digest_of(old)}, note)]


def _instances(cluster: Cluster, crd: Object) -> list[Object]:
    spec = crd["spec"]
    for version in spec["versions"]:
        kind = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
        if version.get("served") and cluster.serves(kind):
            try:
                return cluster.list(kind)
            except ApiError as error:
                if error.status != 404:
                    raise
                return []  # its definition ended between the two questions
    return []


def _holds(cluster: Cluster, namespace: str, goes: Set[str]) -> str:
    """Say what the namespace would take along, beside the objects that go (their uids); empty when nothing.

    A kind that may not be listed counts as something: what nobody sees, nobody exported.
    """
    held = contents(cluster, namespace)
    left = sorted(title_of(o) for o in held.objects if o["metadata"]["uid"] not in goes)
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        return f"{', '.join(left[:_NAMED])}{more} in it"
    return f"{', '.join(held.unseen)} may not be listed" if held.unseen else ""


def execute(
    plan_: Plan,
    params: Params,
    cluster: Cluster,
    *,
    before: Iterable[Object] = (),
    created_namespace: bool = False,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Carry out the plan, only on the objects with the planned uid. Safe to repeat after an interruption."""
    say = progress or (lambda _: None)
    given = list(before)
    now = plan(params, cluster, before=given, created_namespace=created_namespace)
    if now.digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    old = {title_of(o): o for o in given}

    def carry_out(steps: Iterable[Step]) -> None:
        for step in steps:
            kind, _, where = step.target.partition(" ")
            namespace, _, name = where.rpartition("/")
            full = f"{step.before['apiVersion']}/{kind}"
            if step.verb == "restore":
                _restore(cluster, full, (namespace or None, name), step.before["uid"], old[step.target])
            else:
                cluster.delete(full, name, namespace or None, uid=step.before["uid"])
            say(f"{step.verb}: {step.target}")

    steps = plan_.steps
    runtime = [at for at, step in enumerate(steps) if step.note == _BY_ISTIOD]
    first, end = (runtime[0], runtime[-1] + 1) if runtime else (len(steps), len(steps))
    carry_out(steps[:first])
    if runtime:
        # An istiod that is still ending would write them again.
        _wait_for_istiod_to_end(params, cluster, say)
        carry_out(steps[first:end])
        _take_what_came_again(plan_, params, cluster, say)
    carry_out(steps[end:])
    _wait_for_definitions_to_end(params, cluster, say)
    if runtime:  # and at the very end, for what was written while the rest went
        _take_what_came_again(plan_, params, cluster, say)


def _wait_for_istiod_to_end(params: Params, cluster: Cluster, say: Callable[[str], None]) -> None:
    def look() -> str:
        pods = cluster.list("Pod", params.istio.namespace, labels="app=istiod")
        return f"{len(pods)} pods are ending" if pods else ""

    watch(look, timeout=params.istio.ready_timeout, progress=say, subject="istiod")


def _wait_for_definitions_to_end(params: Params, cluster: Cluster, say: Callable[[str], None]) -> None:
    """An install that came while a definition is ending would lose it again."""

    def look() -> str:
        found = cluster.list("CustomResourceDefinition", labels=owner_selector(params))
        ending = [name_of(o) for o in found if o["metadata"].get("deletionTimestamp")]
        return f"{len(ending)} definitions are ending, {ending[0]} among them" if ending else ""

    watch(look, timeout=params.istio.ready_timeout, progress=say, subject="custom resource definitions")


def _take_what_came_again(
    plan_: Plan, params: Params, cluster: Cluster, say: Callable[[str], None], *, looks: int = 15
) -> None:
    """Delete again what an ending istiod wrote after its deletion; only objects that the plan names.

    Ends after three clean looks, a second apart; raises :class:`ClusterError` when something keeps coming.
    """
    named = {s.target for s in plan_.steps if s.note == _BY_ISTIOD}
    clean_looks = 0
    for _ in range(looks):
        again = [o for o in _made_by_istiod(params, cluster) if title_of(o) in named]
        for obj in again:
            cluster.delete(
                f"{obj['apiVersion']}/{obj['kind']}",
                name_of(obj),
                obj["metadata"].get("namespace"),
                uid=obj["metadata"]["uid"],
            )
            say(f"delete again: {title_of(obj)}")
        clean_looks = 0 if again else clean_looks + 1
        if clean_looks >= 3:
            return
        time.sleep(1.0)
    raise ClusterError(
        "what istiod makes keeps coming back: an istiod is still running",
        hint="find it with `kubectl get pods -A -l app=istiod`, end it and run uninstall again",
    )


def _restore(
    cluster: Cluster, kind: str, place: tuple[str | None, str], uid: str, old: Mapping[str, Any]
) -> None:
    live = cluster.get(kind, place[1], place[0])
    if live is None or live["metadata"]["uid"] != uid:
        raise ClusterError(f"{title_of(old)} was replaced since the plan was made")
    wanted = copy.deepcopy(dict(old))
    wanted["metadata"] = {**wanted["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
    wanted["metadata"].pop("managedFields", None)
    cluster.update(wanted)
