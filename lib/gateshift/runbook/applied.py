"""What runbooks put into the cluster: kept as it is there; what was applied is looked for again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import clean, masked, title_of
from gateshift.errors import Blocked
from gateshift.plan import digest_of
from gateshift.runbook.context import Context
from gateshift.runbook.wayback import write_json

__all__ = ["AFTER", "keep_after", "missing_objects", "require_applied"]

AFTER = "after.json"


def _live(cluster: Cluster, objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    def one(obj: Mapping[str, Any]) -> dict[str, Any] | None:
        metadata = obj["metadata"]
        kind = f"{obj['apiVersion']}/{obj['kind']}"
        return cluster.get(kind, metadata["name"], metadata.get("namespace") or None)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, objects))


def _brief(obj: dict[str, Any]) -> dict[str, Any]:
    """Leave a definition's schemas out: their digest tells whether they changed, and is small."""
    if obj.get("kind") != "CustomResourceDefinition":
        return obj
    return {**obj, "spec": {"digest": digest_of(obj.get("spec") or {})}}


def keep_after(context: Context, objects: Sequence[Mapping[str, Any]]) -> str:
    """Write the run's ``after.json``: each of *objects* as the cluster has it now, secrets masked.

    Returns its path inside the migration's folder, for the journal.
    """
    found = _live(context.cluster, objects)
    entries = [
        {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "namespace": obj["metadata"].get("namespace"),
            "name": obj["metadata"]["name"],
            "after": None if live is None else _brief(masked(clean(live) or {})),
        }
        for obj, live in zip(objects, found, strict=True)
    ]
    path = context.run_folder / AFTER
    write_json(path, {"cluster": context.cluster.uid, "objects": entries})
    return f"{context.run}/{AFTER}"


def missing_objects(context: Context) -> list[str] | None:
    """Return the applied objects that the cluster does not have any more; None when none are on record."""
    record = next((r for r in reversed(context.journal.records) if r.kind == "apply.done"), None)
    name = str(record.data.get("after") or "") if record is not None else ""
    if not name:
        return None  # applied before this was recorded
    try:
        kept = json.loads((context.folder / name).read_text(encoding="utf-8"))["objects"]
    except (OSError, ValueError, KeyError) as error:
        raise Blocked(
            f"what was applied cannot be read from {name}: {error}",
            hint="`gateshift audit verify` tells what was changed; 30_apply records it anew",
        ) from None
    objects = [
        {
            "apiVersion": entry["apiVersion"],
            "kind": entry["kind"],
            "metadata": {"name": entry["name"], "namespace": entry["namespace"]},
        }
        for entry in kept
        if entry["after"] is not None
    ]
    found = _live(context.cluster, objects)
    return [title_of(obj) for obj, live in zip(objects, found, strict=True) if live is None]


def require_applied(context: Context) -> None:
    """Raise :class:`~gateshift.errors.Blocked` when an applied object is gone: its routes would be, too."""
    gone = missing_objects(context)
    if gone:
        raise Blocked(
            f"{len(gone)} objects that were applied are gone from the cluster: {', '.join(gone[:5])}",
            hint="find out who deleted them; 30_apply brings them back, `gateshift rollback` the traffic",
        )
