"""Whether the gateway's Envoys really have what was applied: listeners, routes, and no rejected push."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import HopelessError
from gateshift.cluster.front import servers_of
from gateshift.cluster.gateways import (
    disconnected,
    listener_ports,
    proxy_states,
    ready_gateways,
    rejected,
    route_names,
    wanted_routes,
    watch,
)
from gateshift.cluster.objects import GATEWAY_API, HIDDEN, Object, name_of, title_of
from gateshift.params.model import Params
from gateshift.plan import Step, canonical_json

__all__ = ["brings_push", "missing_from_gateway", "unaccepted", "wait_in_sync", "wanted_listeners"]

_CONTROLLER = "istio.io/gateway-controller"
_REFUSED = "rejected by Envoy"
_UNSENT = "istiod has sent nothing new yet"
_LOOKS = 3
"""Looks in a row that must see a rejection: while a push is under way an old error may still stand."""
_DEBOUNCE = 12.0
"""Seconds after which a push must have come: istiod gathers changes for at most 10 s (PILOT_DEBOUNCE_MAX)."""
_SKEW = 2.0
"""Seconds by which istiod's clock may differ from ours."""


def brings_push(steps: Iterable[Step]) -> bool:
    """Tell whether istiod must send the gateways something new after *steps*.

    It does not where nothing of its own objects changed but labels and annotations without ``istio.io`` in
    their name (``NeedsPush`` in istio/pilot/pkg/model/config_compare.go), such as the name of the migration.
    """
    return any(step.before is None or step.after is None or _differs(step) for step in steps)


def _differs(step: Step) -> bool:
    before, after = ({**side, "metadata": None} for side in (step.before, step.after))
    if HIDDEN in canonical_json(after):
        return True  # what is masked may differ
    group = str(step.after.get("apiVersion", "")).partition("/")[0]
    told = [
        key
        for side in (step.before, step.after)
        for part in ("labels", "annotations")
        for key in (side.get("metadata") or {}).get(part) or {}
    ]
    return before != after or not group.endswith("istio.io") or any("istio.io" in key for key in told)


def wanted_listeners(
    objects: Iterable[Object], service: Object, pod_labels: Mapping[str, str]
) -> tuple[set[int], list[str]]:
    """Return the container ports on which the gateway must listen, and what stands in the way.

    A Gateway names the port of the Service, Envoy listens on its target port (istio-traps.md 22). Only
    Gateways whose selector matches *pod_labels* count, and those of the Gateway API, which name the Service.
    """
    targets = {
        int(p["port"]): p.get("targetPort", p["port"]) for p in service.get("spec", {}).get("ports") or []
    }
    ports: set[int] = set()
    problems = []
    for obj in objects:
        if obj.get("kind") != "Gateway":
            continue
        if not (obj["spec"].get("selector") or {}).items() <= pod_labels.items():
            continue
        for server in servers_of(obj):
            number = int(server["port"]["number"])
            target = targets.get(number)
            if target is None:
                problems.append(
                    f"{title_of(obj)} names port {number}, which Service {name_of(service)} does not have"
                )
            elif isinstance(target, int):  # a named target port is resolved by istiod alone
                ports.add(target)
    return ports, problems


def unaccepted(cluster: Cluster, objects: Iterable[Object]) -> list[str]:
    """Name the objects of the Gateway API that istiod has not accepted, and its reason.

    It says so in their status only: the API server takes a route that no gateway serves. A route to a
    Service that does not exist is not accepted either; it would answer 500.
    """
    found = []
    for obj in objects:
        group = str(obj.get("apiVersion", "")).partition("/")[0]
        if group != GATEWAY_API or obj["kind"] not in {"Gateway", "HTTPRoute", "GRPCRoute"}:
            continue
        kind = f"{obj['apiVersion']}/{obj['kind']}"
        live = cluster.get(kind, name_of(obj), obj["metadata"].get("namespace"))
        if live is None:
            found.append(f"{title_of(obj)} is not there")
        elif said := _status_problem(live):
            found.append(f"{title_of(obj)}: {said}")
    return found


def _status_problem(live: Object) -> str:
    status, generation = live.get("status") or {}, live["metadata"].get("generation")
    if live["kind"] == "Gateway":
        parts: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [(status, ("Accepted",))]
        parts += [(one, ("Accepted", "ResolvedRefs")) for one in status.get("listeners") or []]
    else:
        parents = [p for p in status.get("parents") or [] if p.get("controllerName") == _CONTROLLER]
        if len(parents) < len(live["spec"].get("parentRefs") or []):
            return "istiod has not looked at it yet"
        parts = [(one, ("Accepted", "ResolvedRefs")) for one in parents]
    for part, wanted in parts:
        told = {c["type"]: c for c in part.get("conditions") or []}
        for name in wanted:
            one = told.get(name)
            if one is None or one.get("observedGeneration") != generation:
                return "istiod has not looked at it yet"
            if one["status"] != "True":
                return f"{one['reason']}: {one['message']}"
    return ""


def missing_from_gateway(
    params: Params, cluster: Cluster, objects: Iterable[Object], *, since: float = 0.0
) -> str:
    """Return what the gateway's Envoys lack of *objects*, or an empty text when all is there.

    istiod's acceptance is not enough: a rejected push freezes a proxy at its old configuration
    (istio-traps.md 51), so every ready gateway pod is asked for its listeners and routes. *since* (unix
    seconds) is the moment after which istiod must have sent something, so that an old state is not taken
    for the new one.
    """
    wanted_objects = list(objects)
    pods = ready_gateways(cluster, params)
    if not pods:
        return "no gateway pod is ready"
    service = cluster.get("Service", params.istio.gateway_service, params.istio.namespace) or {}
    ports, problems = wanted_listeners(wanted_objects, service, pods[0]["metadata"].get("labels") or {})
    if problems := problems or unaccepted(cluster, wanted_objects):
        return "; ".join(problems)
    return _missing_of_pods(params, {name_of(p) for p in pods}, ports, wanted_routes(wanted_objects), since)


def _missing_of_pods(
    params: Params, names: set[str], ports: set[int], wanted: Mapping[str, set[str]], since: float
) -> str:
    ours = sorted(names & set(_connected(params)))
    if not ours:
        return "no gateway pod is connected to istiod"
    lacks = next(filter(None, (_missing_of(params, pod, ports, wanted) for pod in ours)), "")
    # Last, because a rejection of the very push that brought the routes comes a moment after them.
    states = {pod: kinds for pod, kinds in _connected(params).items() if pod in names}
    behind = rejected(
        {pod: {kind: told for kind, (told, _) in kinds.items()} for pod, kinds in states.items()}
    )
    if refused := [b for b in behind if "ERROR" in b]:
        return f"{_REFUSED}: {'; '.join(refused)}"
    if lacks or behind:
        return lacks or f"not in sync: {'; '.join(behind)}"
    unsent = [
        pod for pod, kinds in states.items() if max((at for _, at in kinds.values()), default=0.0) < since
    ]
    if unsent:
        return f"{_UNSENT} to {', '.join(sorted(unsent))}"
    # A gateway without istiod takes its share of the requests and keeps the configuration that it had.
    apart = disconnected(params, names, {f"{pod}.{params.istio.namespace}" for pod in states})
    return f"ready, but not connected to istiod: {', '.join(apart)}" if apart else ""


def _connected(params: Params) -> dict[str, dict[str, tuple[str, float]]]:
    """Return the xDS states of the proxies in the gateway's namespace, by pod name."""
    end = f".{params.istio.namespace}"
    return {p.removesuffix(end): kinds for p, kinds in proxy_states(params).items() if p.endswith(end)}


def _missing_of(params: Params, pod: str, ports: set[int], wanted: Mapping[str, set[str]]) -> str:
    if ports and (lost := ports - listener_ports(params, pod)):
        return f"{pod} does not listen on {', '.join(map(str, sorted(lost)))}"
    return _missing_routes(pod, wanted, route_names(params, pod))


def _missing_routes(pod: str, wanted: Mapping[str, set[str]], have: Mapping[str, set[str]]) -> str:
    for host, services in sorted(wanted.items()):
        if host not in have:
            return f"{pod} has no virtual host {host}"
        # Istio merges virtual services of one host; each must have left at least one route.
        lost = {s for s in services if s not in have[host]}
        if lost and "" not in have[host]:
            return f"{pod} has no route of {', '.join(sorted(lost))} for {host}"
    return ""


def wait_in_sync(
    params: Params,
    cluster: Cluster,
    objects: Iterable[Object],
    *,
    progress: Callable[[str], None] | None = None,
    timeout: float | None = None,
    since: float | None = None,
) -> str:
    """Wait until every gateway Envoy has the configuration; return a sentence for the operator.

    *timeout* is in seconds (default ``istio.ready_timeout``); *since* (unix seconds) is when the last object
    was applied. Without a push after it for 12 s the change does not concern the gateway. Raises
    :class:`ClusterError` at the end of the time, and at once :class:`HopelessError` when Envoy has rejected
    the configuration: waiting does not heal that.
    """
    wanted = list(objects)
    seen = clean = 0
    begun = time.monotonic()

    def look() -> str:
        nonlocal seen, clean
        before, clean = clean, 0  # a look that fails is not a clean one
        asked = 0.0 if since is None or time.monotonic() - begun > _DEBOUNCE else since - _SKEW
        missing = missing_from_gateway(params, cluster, wanted, since=asked)
        seen = seen + 1 if missing.startswith(_REFUSED) else 0
        if seen >= _LOOKS:
            raise HopelessError(
                f"gateway configuration {missing}",
                hint="correct the object that Envoy names; until then the old configuration stays",
            )
        clean = 0 if missing else before + 1
        if since is not None and clean == 1:
            return "in sync, looking once more"
        return missing

    watch(
        look,
        timeout=params.istio.ready_timeout if timeout is None else timeout,
        progress=progress,
        subject="gateway configuration",
    )
    return f"all gateway Envoys have routes for {len(wanted_routes(wanted))} hosts, in sync with istiod"
