"""Sidecars that injection would add, and free room by node pool: the capacity that people decide about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from gateshift.cluster.capacity import Need
from gateshift.cluster.objects import Object, name_of

__all__ = ["POOL_LABELS", "Sidecars", "as_needs", "by_pool", "one_sidecar", "pool_of", "sidecars"]

POOL_LABELS = (
    "eks.amazonaws.com/nodegroup",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "node.kubernetes.io/instance-type",
)
"""Labels that name a node's pool, most specific first (EKS, eksctl, Karpenter, GKE, AKS; else the type)."""

# The guide's request of one sidecar.
_CPU, _MEMORY = Decimal("0.1"), Decimal(128 * 2**20)
_SIDECAR = "istio-proxy"


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What injection would add to one namespace. CPU in cores, memory in bytes."""

    namespace: str
    pods: int
    injected: int
    cpu: Decimal
    memory: Decimal

    @property
    def text(self) -> str:
        """Return the estimate as people write it."""
        size = f"{float(self.cpu):g} cores, {float(self.memory) / 2**30:.2g} GiB"
        have = f" ({self.injected} have one)" if self.injected else ""
        return f"{self.namespace}: {self.pods} pods without sidecar{have}, {size}"


def sidecars(pods: Iterable[Object], namespaces: Iterable[str]) -> list[Sidecars]:
    """Estimate, per namespace, the requests of the sidecars that its running pods would get."""
    found = list(pods)
    out = []
    for namespace in namespaces:
        mine = [
            p
            for p in found
            if p["metadata"].get("namespace") == namespace
            and p.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
            and not p.get("spec", {}).get("hostNetwork")  # never injected
        ]
        have = sum(1 for p in mine if _SIDECAR in _containers(p))
        lack = len(mine) - have
        out.append(Sidecars(namespace, lack, have, lack * _CPU, lack * _MEMORY))
    return out


def as_needs(estimates: Iterable[Sidecars]) -> list[Need]:
    """Return the estimates as needs, limits being the guide's (2 cores, 1 GiB); pods are not added."""
    return [
        Need("sidecars", e.namespace, 0, e.cpu, e.pods * Decimal(2), e.memory, e.pods * Decimal(2**30))
        for e in estimates
    ]


def one_sidecar(namespace: str) -> Need:
    """Return the guide's sidecar in one pod."""
    return Need("a sidecar", namespace, 1, _CPU, Decimal(2), _MEMORY, Decimal(2**30))


def _containers(pod: Object) -> set[str]:
    spec = pod.get("spec", {})
    every = (spec.get("containers") or []) + (spec.get("initContainers") or [])
    return {str(c.get("name")) for c in every}


def pool_of(node: Object) -> str:
    """Return the name of the node's pool, ``no pool`` when nothing tells."""
    labels = node["metadata"].get("labels") or {}
    return next((str(labels[k]) for k in POOL_LABELS if k in labels), "no pool")


def by_pool(
    nodes: Iterable[Object], free: Mapping[str, Mapping[str, Decimal]]
) -> dict[str, dict[str, Decimal]]:
    """Add up the free room (cores, bytes, pods) and the number of usable nodes of each pool."""
    out: dict[str, dict[str, Decimal]] = {}
    for node in nodes:
        room = free.get(name_of(node))
        if room is None:
            continue
        sums = out.setdefault(pool_of(node), {w: Decimal(0) for w in ("nodes", "cpu", "memory", "pods")})
        sums["nodes"] += 1
        for what in ("cpu", "memory", "pods"):
            sums[what] += room[what]
    return out
