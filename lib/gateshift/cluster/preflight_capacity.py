"""Preflight of room: what the migration needs against nodes, pools, quotas and limit ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from gateshift.cluster import capacity, pools
from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import Object, name_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.reach import Once, Reach
from gateshift.params.model import Params

__all__ = ["items"]


def items(params: Params, cluster: Cluster, reach: Reach) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster, reach)
    return (
        Item("nodes", "the gateway's pods must find a node", checks.nodes),
        Item("quota", "pods above a quota are never created", checks.quota),
        Item("sidecars", "injection is a later step, but its room is decided now", checks.sidecars),
    )


class _Checks:
    def __init__(self, params: Params, cluster: Cluster, reach: Reach) -> None:
        self.params = params
        self.cluster = cluster
        self.reach = reach
        self._all_nodes = Once(lambda: cluster.list("Node"))
        self._all_pods = Once(lambda: cluster.list("Pod"))

    def nodes(self) -> Iterator[Check]:
        nodes = self._all_nodes()
        pods = [p for p in self._all_pods() if not self._ours(p)]
        free = capacity.free_on_nodes(nodes, pods)
        yield from self._pools(nodes, free)
        why = "gateway and istiod with the params' requests must fit beside what runs"
        if not free:
            yield failed(
                "nodes", f"none of {len(nodes)} nodes is usable", why, "make nodes schedulable, or add some"
            )
            return
        for ceiling, name in ((False, "room at minimum"), (True, "room at HPA ceiling")):
            wanted = capacity.needs(self.params, ceiling=ceiling)
            unplaced = capacity.fits(free, wanted)
            text = "; ".join(n.text for n in wanted)
            if not unplaced:
                yield passed(name, f"{text} fit on {len(free)} nodes", why)
                continue
            lost = ", ".join(f"{n} pods of {c}" for c, n in unplaced.items())
            remedy = "add nodes or a node pool, or lower istio.gateway / istio.istiod"
            make = warned if ceiling else failed
            yield make(name, f"{lost} find no node ({text})", why, remedy)
        if len(free) < 2:
            yield warned(
                "spread",
                f"{len(free)} usable node",
                "all gateways on one node go down together",
                "use at least two nodes, in two zones",
            )

    def _pools(self, nodes: list[Object], free: Mapping[str, Mapping[str, Decimal]]) -> Iterator[Check]:
        why = "a pool that is full does not help because another has room"
        found = pools.by_pool(nodes, free)
        text = "; ".join(
            f"{pool}: {int(v['nodes'])} nodes, free {float(v['cpu']):.3g} cores, "
            f"{float(v['memory']) / 2**30:.3g} GiB, {int(v['pods'])} pods"
            for pool, v in sorted(found.items())
        )
        if not text:
            return
        wanted = capacity.needs(self.params, ceiling=False)
        members: dict[str, dict[str, Mapping[str, Decimal]]] = {}
        for node in nodes:
            if name_of(node) in free:
                members.setdefault(pools.pool_of(node), {})[name_of(node)] = free[name_of(node)]
        full = sorted(pool for pool, its in members.items() if capacity.fits(its, wanted))
        if full and len(members) > 1:
            remedy = "add nodes to one pool, or see that nothing (selector, taint) binds the gateways to one"
            named = f"the minimum does not fit into {', '.join(full)}"
            if len(full) == len(members):
                named = "no pool alone takes the minimum"
            yield warned("node pools", f"{text}; {named}", why, remedy)
        else:
            yield passed("node pools", text, why)

    def sidecars(self) -> Iterator[Check]:
        why = "the guide counts 100m and 128 MiB for each pod; north-south traffic itself needs no sidecar"
        free = capacity.free_on_nodes(self._all_nodes(), self._all_pods())
        for estimate in pools.sidecars(self._all_pods(), self.reach.namespaces()):
            cpu = sum((v["cpu"] for v in free.values()), Decimal(0))
            memory = sum((v["memory"] for v in free.values()), Decimal(0))
            quotas = self.cluster.list("ResourceQuota", estimate.namespace)
            ranges = self.cluster.list("LimitRange", estimate.namespace)
            against = capacity.over_quota(quotas, pools.as_needs([estimate]))
            against += capacity.over_limits(
                ranges, [pools.one_sidecar(estimate.namespace)], types=("Container",)
            )
            if estimate.cpu > cpu or estimate.memory > memory:
                against.append(f"nodes have {float(cpu):g} cores, {float(memory) / 2**30:.3g} GiB left")
            if against:
                yield warned(
                    "sidecars",
                    f"{estimate.text}; {'; '.join(against)}",
                    why,
                    f"before injecting, raise the quota of {estimate.namespace} or its limits, or add nodes",
                )
            else:
                yield passed("sidecars", estimate.text, why)

    def _ours(self, pod: Object) -> bool:
        """Pods of the Istio we would install already hold their room."""
        apps = {"istiod", self.params.istio.gateway_service}
        labels = pod["metadata"].get("labels") or {}
        return pod["metadata"]["namespace"] == self.params.istio.namespace and labels.get("app") in apps

    def _running(self) -> dict[str, int]:
        """Return how many pods of each component of ours there are."""
        apps = {self.params.istio.gateway_service: capacity.GATEWAY, "istiod": capacity.ISTIOD}
        found: dict[str, int] = {}
        for pod in self._all_pods():
            if self._ours(pod) and pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
                name = apps[pod["metadata"]["labels"]["app"]]
                found[name] = found.get(name, 0) + 1
        return found

    def quota(self) -> Iterator[Check]:
        namespace = self.params.istio.namespace
        why = "a ResourceQuota or LimitRange refuses pods silently: the ReplicaSet just stays short"
        installed = self.cluster.get("Deployment", istiod_name(self.params.istio), namespace) is not None
        quotas = self.cluster.list("ResourceQuota", namespace)
        ranges = self.cluster.list("LimitRange", namespace)
        # What runs is in the quota's usage already; the HPA adds the rest when the traffic comes.
        more = capacity.needs(self.params, ceiling=True, running=self._running())
        against = capacity.over_quota(quotas, more, {} if installed else capacity.OBJECTS)
        against += capacity.over_limits(ranges, capacity.needs(self.params, ceiling=True))
        if against:
            yield failed(
                "quota",
                "; ".join(against),
                why,
                f"raise them in namespace {namespace}, or lower the HPA range",
            )
        else:
            yield passed("quota", f"{len(quotas)} quotas, {len(ranges)} limit ranges leave room", why)
