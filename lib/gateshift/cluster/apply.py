"""Apply objects all or nothing: dry run on the server first, a diff for each, and the way back on failure."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import HopelessError, persist
from gateshift.cluster.objects import (
    API_GATEWAY,
    CREATED,
    MANAGED_BY,
    MANAGER,
    MIGRATION,
    Object,
    apply_order,
    clean,
    diff_text,
    hides,
    identity,
    masked,
    name_of,
    title_of,
    unmasked,
)
from gateshift.errors import Blocked, ClusterError
from gateshift.plan import Plan, Step, canonical_json

__all__ = ["PRUNED", "archived", "execute", "plan", "plan_undo", "undo"]

_PATIENCE = 120.0
"""Seconds for which a way back waits for an API server that does not answer, over all its objects."""

PRUNED = (
    "HTTPRoute",
    "GRPCRoute",
    "VirtualService",
    API_GATEWAY,
    "ReferenceGrant",
    "Gateway",
    "EnvoyFilter",
    "Telemetry",
    "AuthorizationPolicy",
    "RequestAuthentication",
    "PeerAuthentication",
    "DestinationRule",
    "ServiceEntry",
)
"""Kinds of which an object that we made and no longer want is deleted, users of others first."""


def plan(cluster: Cluster, objects: Iterable[Object], *, prune: bool = True, migration: str = "") -> Plan:
    """Dry-run every object on the server and return what would change, in dependency order.

    *migration* is written on each object; what an earlier apply of the same migration made, in whatever
    namespace, and is no longer wanted is pruned. Another migration's objects are never pruned.

    Raises :class:`ClusterError` listing every object the server refuses (webhook, unknown field, another
    manager's field), so that an operator corrects them in one go. Nothing is changed.
    """
    wanted = _ours(objects, migration)
    new_namespaces = {
        name_of(o) for o in wanted if o["kind"] == "Namespace" and not cluster.get("Namespace", name_of(o))
    }
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda o: _examine(cluster, o, new_namespaces), wanted))
    refused = [o for o in outcomes if isinstance(o, ClusterError)]
    if refused:
        raise ClusterError(
            f"{len(refused)} of {len(wanted)} objects are refused, nothing was applied: "
            + "; ".join(str(e) for e in refused[:10]),
            hint=refused[0].hint,
        )
    steps = [o for o in outcomes if isinstance(o, Step)]
    surplus = _surplus(cluster, wanted, migration) if prune else []
    steps += [
        Step("delete", title_of(o), clean(o), None, note="made by gateshift, no longer wanted")
        for o in surplus
    ]
    counts = {verb: sum(1 for s in steps if s.verb == verb) for verb in ("create", "change", "delete")}
    return Plan(
        kind="apply",
        title=f"{len(wanted)} objects: "
        + ", ".join(f"{n} to {verb}" for verb, n in counts.items())
        + f", {len(wanted) - counts['create'] - counts['change']} unchanged",
        steps=tuple(steps),
        way_back="a failure half-way restores by itself; afterwards the snapshot in the journal restores",
        inputs={"cluster": cluster.uid, "migration": migration} | _hidden(wanted, steps, cluster.uid),
    )


def _hidden(wanted: Iterable[Object], steps: Iterable[Step], salt: str) -> dict[str, str]:
    """Return what makes an approval void when a value that no plan shows is another one.

    Plans are archived: a slow, salted and shortened hash, so that a weak key cannot be guessed by it.
    """
    changed = {step.target for step in steps}
    secret = [o for o in wanted if title_of(o) in changed and hides(o)]
    if not secret:
        return {}
    text = canonical_json(secret).encode()
    return {"hidden": hashlib.scrypt(text, salt=salt.encode(), n=2**14, r=8, p=1, dklen=8).hex()}


def _ours(objects: Iterable[Object], migration: str) -> list[Object]:
    out = []
    seen = set()
    for given in objects:
        obj = copy.deepcopy(given)
        key = identity(obj)
        if key in seen:
            raise ClusterError(
                f"{title_of(obj)} is given twice", hint="the second would silently replace the first"
            )
        seen.add(key)
        if obj["kind"] != "Namespace":  # a namespace may be older than us and stays when we go
            labels = obj["metadata"].setdefault("labels", {})
            labels[MANAGED_BY] = MANAGER
            if migration:
                labels[MIGRATION] = migration
        out.append(obj)
    return apply_order(out)


def _kind(obj: Object) -> str:
    return f"{obj['apiVersion']}/{obj['kind']}"


def _live(cluster: Cluster, obj: Object) -> Object | None:
    return cluster.get(_kind(obj), name_of(obj), obj["metadata"].get("namespace"))


def _examine(cluster: Cluster, obj: Object, new_namespaces: set[str]) -> Step | ClusterError | None:
    if obj["metadata"].get("namespace") in new_namespaces:
        made = clean(_as_made(obj, None))
        return Step("create", title_of(obj), None, made, note="its namespace is created first")
    try:
        live = _live(cluster, obj)
        if live is not None and obj["kind"] == "Secret":
            return None  # a Secret in place is a person's; we would have to keep its old value to restore
        result = cluster.apply(_as_made(obj, live), dry_run=True)
    except ClusterError as error:
        return error
    if unmasked(live) == unmasked(result):
        return None
    before, after = clean(live), clean(result)
    if before is None:
        return Step("create", title_of(obj), None, after)
    note = diff_text(before, after) or "a secret value in it, which is not shown"
    return Step("change", title_of(obj), before, after, note=note)


def _surplus(cluster: Cluster, wanted: Sequence[Object], migration: str) -> list[Object]:
    """Find what an earlier apply of ours made and is no longer wanted.

    Labels and field manager must agree, and we must have made it: what a person had made before, with fields
    equal to ours, stays. Without a migration's name only the namespaces of *wanted* are searched.
    """
    keep = {identity(o) for o in wanted}
    namespaces: list[str | None] = sorted({o["metadata"].get("namespace", "") for o in wanted} - {""})
    labels = f"{MANAGED_BY}={MANAGER}"
    if migration:
        namespaces, labels = [None], f"{labels},{MIGRATION}={migration}"
    found = [
        obj
        for kind in PRUNED
        if cluster.serves(kind)
        for namespace in namespaces
        for obj in cluster.list(kind, namespace, labels=labels)
    ]
    return [o for o in found if identity(o) not in keep and _applied_by_us(o) and _made_by_us(o)]


def _made_by_us(live: Object) -> bool:
    return CREATED in (live["metadata"].get("annotations") or {})


def _as_made(obj: Object, live: Object | None) -> Object:
    """Return *obj* with the mark that we made it, where it is not there yet or has the mark already."""
    if obj["kind"] == "Namespace" or (live is not None and not _made_by_us(live)):
        return obj
    metadata = obj["metadata"]
    annotations = {**(metadata.get("annotations") or {}), CREATED: "true"}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def execute(
    cluster: Cluster,
    objects: Iterable[Object],
    plan_: Plan,
    *,
    progress: Callable[[str], None] | None = None,
    accept: Callable[[], object] | None = None,
    save: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Carry out a plan all or nothing and return the snapshot that :func:`undo` takes.

    *save* is given the snapshot in parts, so that a process that dies half-way leaves its way back: the
    cluster, then each entry before its change, and its ``after`` when that was answered. *accept* is called
    after the last change; when it raises, everything is restored as well.
    Raises
    :class:`Blocked` when the cluster is no longer as planned, :class:`ClusterError` with the cause when a
    change failed (and whether the restore succeeded).
    """
    say = progress or (lambda _: None)
    keep = save or (lambda _: None)
    migration = str(plan_.inputs.get("migration", ""))
    wanted = _ours(objects, migration)
    prune = any(s.verb == "delete" for s in plan_.steps)
    if plan(cluster, wanted, prune=prune, migration=migration).digest != plan_.digest:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    by_title = {title_of(o): o for o in wanted}
    if prune:
        by_title |= {title_of(o): o for o in _surplus(cluster, wanted, migration)}
    entries: list[dict[str, Any]] = []
    snapshot: dict[str, Any] = {"cluster": cluster.uid, "objects": entries}
    try:
        keep({"cluster": cluster.uid})
        for step in plan_.steps:
            obj = by_title[step.target]
            entry = {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "namespace": obj["metadata"].get("namespace"),
                "name": name_of(obj),
                "before": _live(cluster, obj),
                "after": None,
            }
            entries.append(entry)
            keep(entry)
            if step.verb == "delete":
                uid = (entry["before"] or {}).get("metadata", {}).get("uid")
                cluster.delete(_kind(obj), name_of(obj), entry["namespace"], uid=uid)
            else:
                done = cluster.apply(_as_made(obj, entry["before"]))
                entry["after"] = {
                    "uid": done["metadata"]["uid"],
                    "resourceVersion": done["metadata"]["resourceVersion"],
                }
                keep({"after": entry["after"]})
            say(f"{step.verb}: {step.target}")
        if accept is not None:
            accept()
    except BaseException as error:
        # Also on Ctrl-C: half a configuration is worse than none.
        say(f"failed: {error or type(error).__name__}; restoring {len(entries)} objects")
        left = undo(cluster, snapshot)
        outcome = (
            f"NOT restored: {'; '.join(left)}" if left else "everything was restored, nothing is changed"
        )
        if not isinstance(error, ClusterError):
            # The error itself says nothing of the cluster: what is left of the apply is told beside it.
            say(outcome)
            error.add_note(outcome)
            raise
        raise ClusterError(f"apply failed: {error}; {outcome}", hint=error.hint) from error
    return snapshot


def archived(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a snapshot or a part of it as an archive may hold it: what has a secret is masked and *sealed*.

    A sealed object that was created or deleted by us can still be taken back; one that was changed cannot.
    """
    out = dict(part)
    if "objects" in out:
        out["objects"] = [archived(entry) for entry in out["objects"]]
    before = out.get("before")
    if before is not None and hides(before):
        out |= {"before": masked(copy.deepcopy(before)), "sealed": True}
    return out


def plan_undo(cluster: Cluster, snapshot: Mapping[str, Any]) -> Plan:
    """Plan the way back to *snapshot*, last change first. Raises :class:`Blocked` for another cluster's."""
    if snapshot.get("cluster") != cluster.uid:
        raise Blocked("this snapshot was taken from another cluster", hint="check cluster.context")
    steps = []
    for entry in reversed(snapshot["objects"]):
        live = cluster.get(f"{entry['apiVersion']}/{entry['kind']}", entry["name"], entry["namespace"])
        before, now = clean(entry["before"]), clean(live)
        if before == now and not _hides_a_change(entry, live):
            continue
        verb = "delete" if before is None else "create" if now is None else "change"
        note = diff_text(now, before) if verb == "change" else "as before the apply"
        steps.append(Step(verb, _entry_title(entry), now, before, note))
    return Plan(
        kind="apply-undo",
        title=f"take back the last apply: {len(steps)} objects",
        steps=tuple(steps),
        way_back="30_apply applies the translation again",
        inputs={"cluster": cluster.uid},
    )


def _hides_a_change(entry: Mapping[str, Any], live: Object | None) -> bool:
    """Tell whether an object with secrets, equal where it may be shown, is another than in the snapshot."""
    before = entry["before"]
    if before is None or live is None:
        return False
    if entry.get("sealed"):
        return bool(before["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"])
    return unmasked(before) != unmasked(live)


def _entry_title(entry: Mapping[str, Any]) -> str:
    metadata = {"name": entry["name"], "namespace": entry["namespace"] or ""}
    return title_of({"kind": entry["kind"], "metadata": metadata})


def undo(cluster: Cluster, snapshot: Mapping[str, Any], *, patience: float = _PATIENCE) -> list[str]:
    """Put everything in *snapshot* back as it was, last change first; return what could not be restored.

    Only our own change is undone: an object that somebody changed since is named, not overwritten. What may
    heal (no answer, overload) is tried again, for *patience* seconds in all; in place and not after the
    others, because the order in which things are taken back keeps routes behind their policies.
    """
    if snapshot.get("cluster") != cluster.uid:
        raise Blocked("this snapshot was taken from another cluster", hint="check cluster.context")
    left = []
    deadline = time.monotonic() + patience
    for entry in reversed(snapshot["objects"]):
        try:
            persist(partial(_put_back, cluster, entry), deadline)
        except ClusterError as error:
            left.append(f"{_entry_title(entry)}: {error}")
    return left


def _put_back(cluster: Cluster, entry: Mapping[str, Any]) -> None:
    kind = f"{entry['apiVersion']}/{entry['kind']}"
    before, after = entry["before"], entry["after"]
    name, namespace = entry["name"], entry["namespace"]
    live = cluster.get(kind, name, namespace)
    if before is not None and entry.get("sealed"):
        if live is not None and live["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]:
            return
        raise HopelessError("its earlier version holds a secret, which no archive keeps; bring it by hand")
    if before is None:
        # Without an answer to our apply the object may still have been made; ours is told by its manager.
        if live is not None and ((after or {}).get("uid") == live["metadata"]["uid"] or _applied_by_us(live)):
            cluster.delete(kind, name, namespace, uid=live["metadata"]["uid"])
        return
    if live is None:
        cluster.create(_bare(before))
        return
    version = live["metadata"]["resourceVersion"]
    if version == before["metadata"]["resourceVersion"]:
        return
    if version != (after or {}).get("resourceVersion") and not _only_we_moved(live, entry):
        raise HopelessError("somebody changed it since; look at it and decide")
    cluster.update({**copy.deepcopy(before), "metadata": {**before["metadata"], "resourceVersion": version}})


def _applied_by_us(obj: Object) -> bool:
    fields = obj["metadata"].get("managedFields") or []
    return any(f.get("manager") == MANAGER and f.get("operation") == "Apply" for f in fields)


def _only_we_moved(live: Object, entry: Mapping[str, Any]) -> bool:
    """True when nobody else wrote since the snapshot, except controllers into the status."""
    known = {
        (f.get("manager"), f.get("time")) for f in entry["before"]["metadata"].get("managedFields") or []
    }
    return all(
        f.get("manager") == MANAGER
        or f.get("subresource") == "status"
        or (f.get("manager"), f.get("time")) in known
        for f in live["metadata"].get("managedFields") or []
    )


def _bare(obj: Mapping[str, Any]) -> Object:
    out = copy.deepcopy(dict(obj))
    out.pop("status", None)
    for field in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink"):
        out["metadata"].pop(field, None)
    return out
