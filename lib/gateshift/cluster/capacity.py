"""How much CPU and memory the migration needs, and whether quotas, limits and nodes give it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateshift.cluster.objects import Object, name_of
from gateshift.params.model import Autoscaled, Params

__all__ = [
    "OBJECTS",
    "Need",
    "fits",
    "free_on_nodes",
    "needs",
    "over_limits",
    "over_quota",
    "parse_quantity",
    "pod_request",
]

_SUFFIX = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:[eE]([+-]?[0-9]+))?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")


def parse_quantity(text: str | float) -> Decimal:
    """Read a Kubernetes quantity (``500m``, ``1Gi``, ``2``, ``1e3``) as a plain number."""
    found = _QUANTITY.fullmatch(str(text))
    if not found:
        raise ValueError(f"{text!r} is not a Kubernetes quantity")
    return Decimal(found[1]).scaleb(int(found[2] or 0)) * _SUFFIX[found[3] or ""]


@dataclass(frozen=True, slots=True)
class Need:
    """What one component asks for at a number of pods. CPU in cores, memory in bytes."""

    component: str
    namespace: str
    pods: int
    cpu_request: Decimal
    cpu_limit: Decimal
    memory_request: Decimal
    memory_limit: Decimal

    @property
    def text(self) -> str:
        """Return the need as people write it."""
        return (
            f"{self.component}: {self.pods} pods, {float(self.cpu_request):g} cores, "
            f"{float(self.memory_request) / 2**30:.3g} GiB"
        )


def _need(component: str, namespace: str, scaled: Autoscaled, pods: int) -> Need:
    r = scaled.resources
    return Need(
        component,
        namespace,
        pods,
        pods * parse_quantity(r.cpu_request),
        pods * parse_quantity(r.cpu_limit),
        pods * parse_quantity(r.memory_request),
        pods * parse_quantity(r.memory_limit),
    )


GATEWAY, ISTIOD = "ingress gateway", "istiod"

OBJECTS = {
    "services": 2,
    "services.loadbalancers": 1,
    "services.nodeports": 3,
    "deployments.apps": 2,
    "replicasets.apps": 2,
    "horizontalpodautoscalers.autoscaling": 2,
    "poddisruptionbudgets.policy": 2,
}
"""What an install adds to what a quota counts: istiod, the gateway, and the gateway's Service with its node
ports for 80, 443 and 15021. In a quota each stands by itself or behind ``count/``."""


def needs(params: Params, *, ceiling: bool, running: Mapping[str, int] | None = None) -> tuple[Need, ...]:
    """Return the need at the HPAs' minimum, or at their *ceiling*, beyond the pods *running* already.

    Sidecars are not in it: moving north-south traffic needs none (istio-traps.md 61).
    """
    istio, there = params.istio, running or {}
    found = []
    for name, scaled in ((GATEWAY, istio.gateway), (ISTIOD, istio.istiod)):
        wanted = scaled.replicas_max if ceiling else scaled.replicas_min
        found.append(_need(name, istio.namespace, scaled, max(0, wanted - there.get(name, 0))))
    return tuple(found)


def pod_request(pod: Object) -> dict[str, Decimal]:
    """Return what the scheduler holds for a pod: cores and bytes.

    Native sidecars run beside the containers; other init containers run before them, one by one, so that only
    the largest moment counts. The runtime class's overhead comes on top (kube-scheduler's own rule).
    """
    spec = pod.get("spec", {})
    found = {}
    for what in ("cpu", "memory"):
        beside = peak = Decimal(0)
        for one in spec.get("initContainers") or []:
            if one.get("restartPolicy") == "Always":
                beside += _asked(one, what)
            peak = max(peak, beside + (_asked(one, what) if one.get("restartPolicy") != "Always" else 0))
        runs = beside + sum((_asked(c, what) for c in spec.get("containers") or []), Decimal(0))
        found[what] = max(runs, peak) + parse_quantity((spec.get("overhead") or {}).get(what, 0))
    return found


def _asked(container: Mapping[str, Any], what: str) -> Decimal:
    return parse_quantity(((container.get("resources") or {}).get("requests") or {}).get(what, 0))


def _requested(pods: Iterable[Object]) -> dict[str, dict[str, Decimal]]:
    used: dict[str, dict[str, Decimal]] = {}
    for pod in pods:
        node = pod.get("spec", {}).get("nodeName")
        if not node or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
            continue
        sums = used.setdefault(node, {"cpu": Decimal(0), "memory": Decimal(0), "pods": Decimal(0)})
        sums["pods"] += 1
        for what, asked in pod_request(pod).items():
            sums[what] += asked
    return used


def free_on_nodes(nodes: Iterable[Object], pods: Iterable[Object]) -> dict[str, dict[str, Decimal]]:
    """Return, per usable node, allocatable minus requested (cores, bytes, pods)."""
    used = _requested(pods)
    free = {}
    for node in nodes:
        conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions") or []}
        if node.get("spec", {}).get("unschedulable") or conditions.get("Ready", "True") != "True":
            continue
        if any(
            t.get("effect") in {"NoSchedule", "NoExecute"} for t in node.get("spec", {}).get("taints") or []
        ):
            continue
        allocatable = node.get("status", {}).get("allocatable") or {}
        taken = used.get(name_of(node), {})
        free[name_of(node)] = {
            what: parse_quantity(allocatable.get(what, 0)) - taken.get(what, Decimal(0))
            for what in ("cpu", "memory", "pods")
        }
    return free


def fits(free: Mapping[str, Mapping[str, Decimal]], wanted: Iterable[Need]) -> dict[str, int]:
    """Place pods one by one (largest memory first) on the emptiest node; return how many did not fit."""
    left = {node: dict(values) for node, values in free.items()}
    unplaced: dict[str, int] = {}
    for need in sorted((n for n in wanted if n.pods), key=lambda n: -n.memory_request / max(n.pods, 1)):
        cpu, memory = need.cpu_request / need.pods, need.memory_request / need.pods
        for _ in range(need.pods):
            node = max(left, key=lambda n: left[n]["cpu"], default=None)
            rooms = [
                n for n, v in left.items() if v["cpu"] >= cpu and v["memory"] >= memory and v["pods"] >= 1
            ]
            if not rooms:
                unplaced[need.component] = unplaced.get(need.component, 0) + 1
                continue
            node = max(rooms, key=lambda n: left[n]["cpu"])
            left[node]["cpu"] -= cpu
            left[node]["memory"] -= memory
            left[node]["pods"] -= 1
    return unplaced


_QUOTA_KEYS = {
    "requests.cpu": "cpu_request",
    "cpu": "cpu_request",
    "limits.cpu": "cpu_limit",
    "requests.memory": "memory_request",
    "memory": "memory_request",
    "limits.memory": "memory_limit",
    "pods": "pods",
    "count/pods": "pods",
}


def over_quota(
    quotas: Iterable[Object], wanted: Iterable[Need], objects: Mapping[str, int] | None = None
) -> list[str]:
    """Name each quota entry that the need would exceed; *objects* (:data:`OBJECTS`) are made besides pods."""
    total = list(wanted)
    out = []
    for quota in quotas:
        if {"BestEffort", "Terminating"} & set(quota.get("spec", {}).get("scopes") or []):
            continue  # for pods of another kind
        hard = quota.get("spec", {}).get("hard") or {}
        used = quota.get("status", {}).get("used") or {}
        for key, limit in hard.items():
            field = _QUOTA_KEYS.get(key)
            if field is not None:
                asked = sum((Decimal(getattr(n, field)) for n in total), Decimal(0))
            else:
                asked = Decimal((objects or {}).get(key.removeprefix("count/"), 0))
            if not asked:
                continue
            room = parse_quantity(limit) - parse_quantity(used.get(key, 0))
            if asked > room:
                out.append(f"quota {name_of(quota)}: {key} has room for {room:g}, {asked:g} are needed")
    return out


def over_limits(
    ranges: Iterable[Object], wanted: Iterable[Need], *, types: Iterable[str] = ("Container", "Pod")
) -> list[str]:
    """Name each bound of a LimitRange that a pod of the need, which has one container, would break.

    *types* are those of the rules that count: a sidecar is a container, but no pod.
    """
    out = []
    total = [n for n in wanted if n.pods]
    for found in ranges:
        for rule in found.get("spec", {}).get("limits") or []:
            if rule.get("type") not in set(types):
                continue
            for need in total:
                for what, asked, most in (
                    ("cpu", need.cpu_request, need.cpu_limit),
                    ("memory", need.memory_request, need.memory_limit),
                ):
                    where = f"LimitRange {name_of(found)}"
                    for said in _beyond(rule, what, asked / need.pods, most / need.pods):
                        out.append(f"{where}: {said.format(component=need.component)}")
    return out


def _beyond(rule: Mapping[str, Any], what: str, asked: Decimal, most: Decimal) -> Iterator[str]:
    """Yield the bounds for *what* (cores or bytes) that a request and a limit break; one component each."""
    high = (rule.get("max") or {}).get(what)
    if high is not None and most > parse_quantity(high):
        yield f"max {what} is {high}, {{component}} has {most:g}"
    low = (rule.get("min") or {}).get(what)
    if low is not None and asked < parse_quantity(low):
        yield f"min {what} is {low}, {{component}} asks for {asked:g}"
    ratio = (rule.get("maxLimitRequestRatio") or {}).get(what)
    if ratio is not None and asked and most / asked > parse_quantity(ratio):
        yield f"maxLimitRequestRatio of {what} is {ratio}, {{component}} has {most / asked:.3g}"
