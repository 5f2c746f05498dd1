"""From the export of a clean-up back to what was there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from gateshift.cluster.client import Cluster
from gateshift.cluster.exported import holds_secrets
from gateshift.cluster.gateways import watch
from gateshift.cluster.kept import copies, original
from gateshift.cluster.objects import Object, identity, name_of, title_of
from gateshift.errors import Blocked
from gateshift.params.model import Params
from gateshift.plan import Plan, Step, digest_of

__all__ = ["execute", "plan"]

# What others need comes first; what acts comes last, webhooks after the servers behind them.
_ORDER = (
    "CustomResourceDefinition",
    "Namespace",
    "ResourceQuota",
    "LimitRange",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Secret",
    "ConfigMap",
    "PersistentVolumeClaim",
    "IngressClass",
    "GatewayClass",
    "Service",
)
_LAST = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")


def _rank(obj: Object) -> tuple[int, str]:
    kind = obj["kind"]
    if kind in _ORDER:
        return (_ORDER.index(kind), title_of(obj))
    return (len(_ORDER) + (1 if kind in _LAST else 0), title_of(obj))


def plan(params: Params, cluster: Cluster, exported: Iterable[Object]) -> Plan:
    """Plan what of the export is to be created again; what is there is left alone.

    Raises :class:`Blocked` when secret values are neither in the cluster nor kept as a copy.
    """
    kept = copies(params, cluster)
    steps, owed = [], []
    first: dict[tuple[str, str, str, str], Object] = {}
    for obj in exported:
        first.setdefault(identity(obj), obj)  # an interrupted clean-up exported twice; the first had all
    for obj in sorted(first.values(), key=_rank):
        kind = f"{obj['apiVersion']}/{obj['kind']}"
        namespace = obj["metadata"].get("namespace")
        if cluster.serves(kind) and cluster.get(kind, name_of(obj), namespace) is not None:
            continue
        if holds_secrets(obj) and title_of(obj) not in kept:
            keys = ", ".join(sorted(obj.get("data") or {}))
            owed.append(f"{title_of(obj)} (keys: {keys})" if keys else title_of(obj))
            continue
        steps.append(Step("create", title_of(obj), None, {"digest": digest_of(obj)}, "from the export"))
    if owed:
        raise Blocked(
            f"the export holds no secret values and no copy is kept of {', '.join(owed)}",
            hint="create these objects by hand, then restore again",
        )
    return Plan(
        kind="restore",
        title=f"restore {len(steps)} objects of namespace {params.apisix.namespace}",
        steps=tuple(steps),
        way_back="70_cleanup deletes them again",
        inputs={"cluster": cluster.uid, "namespace": params.apisix.namespace},
    )


def execute(
    params: Params,
    cluster: Cluster,
    plan_: Plan,
    exported: Iterable[Object],
    *,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Create what the plan lists; what holds secrets is made from its kept copy."""
    say = progress or (lambda _: None)
    given = list(exported)
    if plan(params, cluster, given).digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    kept = copies(params, cluster)
    by_title: dict[str, Object] = {}
    for obj in given:
        by_title.setdefault(title_of(obj), obj)
    defined: list[Object] = []
    for step in plan_.steps:
        obj = copy.deepcopy(by_title[step.target])
        if holds_secrets(obj):
            obj = original(kept[title_of(obj)], obj)
        if obj["kind"] == "PersistentVolumeClaim":
            _free_volume(cluster, obj)
        if obj["kind"] == "CustomResourceDefinition":
            defined.append(obj)
        elif defined:
            _wait_served(params, cluster, defined, progress=say)
            defined = []
        cluster.create(obj)
        say(f"restored {step.target}")


def _wait_served(
    params: Params, cluster: Cluster, crds: Iterable[Object], *, progress: Callable[[str], None]
) -> None:
    """Wait until the API server serves the kinds that *crds* define: it takes a moment to learn them.

    Raises :class:`ClusterError` naming one that it does not take at the end of ``istio.ready_timeout``.
    """

    def missing(crd: Object) -> bool:
        live = cluster.get("CustomResourceDefinition", name_of(crd)) or {}
        told = {c["type"]: c["status"] for c in live.get("status", {}).get("conditions") or []}
        spec = crd["spec"]
        kinds = [
            f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
            for version in spec.get("versions") or []
            if version.get("served")
        ]
        return told.get("Established") != "True" or not all(map(cluster.serves, kinds))

    def look() -> str:
        left = [name_of(crd) for crd in crds if missing(crd)]
        return f"{', '.join(left[:3])} not served yet, {len(left)} in all" if left else ""

    watch(
        look,
        timeout=params.istio.ready_timeout,
        progress=progress,
        subject="custom resource definitions",
    )


def _free_volume(cluster: Cluster, claim: Object) -> None:
    """Let a retained volume be bound again by the claim of the same name; else a new volume is made."""
    name = claim["spec"].get("volumeName")
    volume = cluster.get("PersistentVolume", str(name)) if name else None
    owner = (volume or {}).get("spec", {}).get("claimRef") or {}
    place = (claim["metadata"]["namespace"], name_of(claim))
    if volume is None or (owner.get("namespace"), owner.get("name")) != place:
        claim["spec"].pop("volumeName", None)
        return
    if owner.get("uid"):
        for field in ("uid", "resourceVersion"):
            owner.pop(field, None)
        cluster.update(volume)
