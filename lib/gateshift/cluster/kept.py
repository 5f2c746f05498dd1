"""Copies of what holds APISIX's secrets, kept in the cluster: archives have none, a restore needs them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable

from gateshift.archive.redact import Redactor
from gateshift.cluster.client import Cluster
from gateshift.cluster.exported import holds_secrets, portable, shown
from gateshift.cluster.objects import MANAGED_BY, MANAGER, MIGRATION, Object, name_of, title_of
from gateshift.errors import ClusterError
from gateshift.params.model import Params
from gateshift.plan import Step, digest_of

__all__ = ["copies", "copy_step", "keep_copy", "original", "to_copy"]

_FROM = "gateshift.dev/kept-from"
_TYPE = "gateshift.dev/kept-type"
_KIND = "gateshift.dev/kept-kind"
_PREFIX = "gateshift-kept-"
_WHOLE = "object.json"


def _copy_name(obj: Object) -> str:
    name = name_of(obj) if obj["kind"] == "Secret" else f"{obj['kind'].lower()}-{name_of(obj)}"
    # Names end at 253 characters; the digest keeps two long ones apart.
    return f"{_PREFIX}{name}" if len(name) < 200 else f"{_PREFIX}{name[:200]}-{digest_of(name)}"


def _content(obj: Object) -> dict[str, str]:
    """What the copy's data are: a Secret's own, or the whole object in one key."""
    if obj["kind"] == "Secret":
        return dict(obj.get("data") or {})
    text = json.dumps(portable(obj), sort_keys=True)
    return {_WHOLE: base64.b64encode(text.encode()).decode()}


def to_copy(params: Params, cluster: Cluster, objects: Iterable[Object], redactor: Redactor) -> list[Object]:
    """Return the objects with secrets of which no equal copy is kept yet."""
    found = []
    for obj in objects:
        if not holds_secrets(shown(obj, redactor)):
            continue
        kept = cluster.get("Secret", _copy_name(obj), params.istio.namespace)
        if kept is None or kept.get("data") != _content(obj):
            found.append(obj)
    return found


def copy_step(params: Params, obj: Object) -> Step:
    """Return the plan's step that copies *obj*; keys and a digest, no value."""
    content = _content(obj)
    return Step(
        "copy",
        title_of(obj),
        {"digest": digest_of(content), "apiVersion": obj["apiVersion"]},
        {"as": f"{params.istio.namespace}/{_copy_name(obj)}", "keys": sorted(content)},
        "kept, so that a restore is whole; delete the copy when nobody will want APISIX back",
    )


def keep_copy(params: Params, cluster: Cluster, step: Step) -> None:
    """Copy the object of *step* into a Secret in Istio's namespace."""
    kind, _, place = step.target.partition(" ")
    namespace, _, name = place.rpartition("/")
    obj = cluster.get(f"{step.before['apiVersion']}/{kind}", name, namespace or None)
    if obj is None or digest_of(_content(obj)) != step.before["digest"]:
        raise ClusterError(f"{step.target} changed since the plan was made")
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": _copy_name(obj),
                "namespace": params.istio.namespace,
                "labels": {MANAGED_BY: MANAGER, MIGRATION: params.migration},
                "annotations": {
                    _FROM: place,
                    _KIND: kind,
                    _TYPE: str(obj.get("type", "Opaque")),
                },
            },
            "data": _content(obj),
        }
    )


def copies(params: Params, cluster: Cluster) -> dict[str, Object]:
    """Return the kept copies by the title (``Kind namespace/name``) of their originals."""
    found = {}
    for secret in cluster.list("Secret", params.istio.namespace, labels=f"{MANAGED_BY}={MANAGER}"):
        notes = secret["metadata"].get("annotations") or {}
        place = notes.get(_FROM)
        if place and name_of(secret).startswith(_PREFIX):
            found[f"{notes.get(_KIND, 'Secret')} {place}"] = secret
    return found


def original(copy: Object, exported: Object) -> Object:
    """Return the object *exported* with the values of its *copy*."""
    data = dict(copy.get("data") or {})
    if exported["kind"] != "Secret":
        found: Object = json.loads(base64.b64decode(data[_WHOLE]))
        return found
    annotations = copy["metadata"].get("annotations") or {}
    return {**exported, "type": annotations.get(_TYPE, "Opaque"), "data": data}
