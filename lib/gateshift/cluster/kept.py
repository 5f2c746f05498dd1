"""Copies of APISIX's Secrets, kept in the cluster: an archive holds no secret, and a restore needs them."""

from __future__ import annotations

from collections.abc import Iterable

from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import MANAGED_BY, MANAGER, MIGRATION, Object, name_of, title_of
from gateshift.errors import ClusterError
from gateshift.params.model import Params
from gateshift.plan import Step, digest_of

__all__ = ["copies", "copy_step", "keep_copy", "original", "to_copy"]

_FROM = "gateshift.dev/kept-from"
_TYPE = "gateshift.dev/kept-type"
_PREFIX = "gateshift-kept-"


def _copy_name(secret: Object) -> str:
    name = name_of(secret)
    # Names end at 253 characters; the digest keeps two long ones apart.
    return f"{_PREFIX}{name}" if len(name) < 200 else f"{_PREFIX}{name[:200]}-{digest_of(name)}"


def to_copy(params: Params, cluster: Cluster, objects: Iterable[Object]) -> list[Object]:
    """Return the Secrets of which no equal copy is kept yet."""
    found = []
    for secret in objects:
        if secret["kind"] != "Secret":
            continue
        kept = cluster.get("Secret", _copy_name(secret), params.istio.namespace)
        if kept is None or kept.get("data") != secret.get("data"):
            found.append(secret)
    return found


def copy_step(params: Params, secret: Object) -> Step:
    """Return the plan's step that copies *secret*; keys and a digest, no value."""
    return Step(
        "copy",
        title_of(secret),
        {"digest": digest_of(secret.get("data") or {})},
        {"as": f"{params.istio.namespace}/{_copy_name(secret)}", "keys": sorted(secret.get("data") or {})},
        "kept, so that a restore is whole; delete the copy when nobody will want APISIX back",
    )


def keep_copy(params: Params, cluster: Cluster, step: Step) -> None:
    """Copy the Secret of *step* into Istio's namespace."""
    namespace, _, name = step.target.partition(" ")[2].partition("/")
    secret = cluster.get("Secret", name, namespace)
    if secret is None or digest_of(secret.get("data") or {}) != step.before["digest"]:
        raise ClusterError(f"{step.target} changed since the plan was made")
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": _copy_name(secret),
                "namespace": params.istio.namespace,
                "labels": {MANAGED_BY: MANAGER, MIGRATION: params.migration},
                "annotations": {
                    _FROM: f"{namespace}/{name}",
                    _TYPE: str(secret.get("type", "Opaque")),
                },
            },
            "data": dict(secret.get("data") or {}),
        }
    )


def copies(params: Params, cluster: Cluster) -> dict[str, Object]:
    """Return the kept copies by the place (``namespace/name``) of their originals."""
    found = {}
    for secret in cluster.list("Secret", params.istio.namespace, labels=f"{MANAGED_BY}={MANAGER}"):
        place = (secret["metadata"].get("annotations") or {}).get(_FROM)
        if place and name_of(secret).startswith(_PREFIX):
            found[str(place)] = secret
    return found


def original(copy: Object, exported: Object) -> Object:
    """Return the Secret *exported* with the values of its *copy*."""
    annotations = copy["metadata"].get("annotations") or {}
    return {**exported, "type": annotations.get(_TYPE, "Opaque"), "data": dict(copy.get("data") or {})}
