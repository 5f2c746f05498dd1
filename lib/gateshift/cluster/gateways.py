"""The gateway's Service, its pods and load balancer, and what its Envoy really has."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import HopelessError, NotServedError, heals
from gateshift.cluster.objects import Object, name_of
from gateshift.cluster.tools import run_json
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = [
    "config_dump",
    "disconnected",
    "gateway_pods",
    "listener_ports",
    "load_balancer_name",
    "pod_ready",
    "proxy_states",
    "proxy_status",
    "ready_gateways",
    "rejected",
    "route_names",
    "selector_text",
    "takes_requests",
    "wanted_routes",
    "watch",
]


def selector_text(labels: Mapping[str, str]) -> str:
    """Return labels as a label selector."""
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items()))


def load_balancer_name(cluster: Cluster, namespace: str, service: str) -> str:
    """Return the hostname (or IP address) that the cloud gave a LoadBalancer Service.

    Raises :class:`ClusterError` when the Service is missing, has another type, or waits for its address.
    """
    found = cluster.get("Service", service, namespace)
    if found is None:
        raise ClusterError(
            f"Service {namespace}/{service} does not exist", hint="check its name in the params file"
        )
    kind = found["spec"].get("type", "ClusterIP")
    if kind != "LoadBalancer":
        raise ClusterError(
            f"Service {namespace}/{service} has type {kind}, so it has no load balancer",
            hint="set its type to LoadBalancer, or name the targets in traffic.route53",
        )
    for entry in found.get("status", {}).get("loadBalancer", {}).get("ingress") or []:
        address = entry.get("hostname") or entry.get("ip")
        if address:
            return str(address)
    raise ClusterError(
        f"Service {namespace}/{service} has no load-balancer address yet",
        hint=f"kubectl -n {namespace} describe service {service} shows the cloud's answer (quota, subnets)",
    )


def gateway_pods(cluster: Cluster, params: Params) -> list[Object]:
    """Return the pods behind the gateway's Service (its selector, not a guessed label)."""
    istio = params.istio
    service = cluster.get("Service", istio.gateway_service, istio.namespace)
    selector = (service or {}).get("spec", {}).get("selector")
    if not selector:
        raise HopelessError(
            f"Service {istio.namespace}/{istio.gateway_service} does not exist or selects no pods",
            hint="run `gateshift install`, or correct istio.gateway_service",
        )
    return cluster.list("Pod", istio.namespace, labels=selector_text(selector))


def pod_ready(pod: Object) -> bool:
    """True when the pod runs and its Ready condition is true."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def takes_requests(pod: Object) -> bool:
    """True when the pod is ready and not on its way out."""
    return pod_ready(pod) and not pod["metadata"].get("deletionTimestamp")


def ready_gateways(cluster: Cluster, params: Params) -> list[Object]:
    """Return the gateway pods that take requests (:func:`takes_requests`)."""
    return [p for p in gateway_pods(cluster, params) if takes_requests(p)]


def _patience(params: Params) -> float:
    """Seconds for one question to istioctl: a mesh for which one waits longer answers more slowly."""
    return max(15.0, params.istio.ready_timeout / 4)


def proxy_status(params: Params, *, timeout: float | None = None) -> dict[str, dict[str, str]]:
    """Return, per proxy ``pod.namespace``, each xDS type's status (SYNCED, STALE, ERROR, ...)."""
    states = proxy_states(params, timeout=timeout)
    return {proxy: {kind: status for kind, (status, _) in kinds.items()} for proxy, kinds in states.items()}


def proxy_states(params: Params, *, timeout: float | None = None) -> dict[str, dict[str, tuple[str, float]]]:
    """Return, per proxy and xDS type, the status and when istiod last sent it (unix seconds, 0 = never)."""
    answer = run_json(
        params,
        ["proxy-status", "-o", "json", "-i", params.istio.namespace, *_revision(params)],
        timeout=timeout or _patience(params),
    )
    out: dict[str, dict[str, tuple[str, float]]] = {}
    for document in answer if isinstance(answer, list) else [answer or {}]:
        for client in document.get("resources") or []:
            node = str(client.get("node", {}).get("id", ""))
            name = node.split("~")[2] if node.count("~") >= 3 else node
            for config in client.get("genericXdsConfigs") or []:
                kind = str(config.get("typeUrl", "")).rpartition(".")[2]
                status = str(config.get("configStatus", "UNKNOWN"))
                if config.get("errorState"):
                    status = "ERROR: " + " ".join(str(config["errorState"].get("details", "")).split())
                out.setdefault(name, {})[kind] = (status, _unix(str(config.get("lastUpdated", ""))))
    return out


def _unix(stamp: str) -> float:
    try:
        return max(0.0, datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0.0


def disconnected(params: Params, pods: Iterable[str], connected: Collection[str]) -> list[str]:
    """Return those of *pods* whose Envoys are not among istiod's *connected* proxies (``pod.namespace``).

    A pod that istiod does not name is asked under which name its Envoy is known to istiod; one that cannot
    be asked is not connected as far as anybody can tell.
    """
    apart = []
    for pod in sorted(pods):
        name = f"{pod}.{params.istio.namespace}"
        if name not in connected and _envoy_name(params, name) not in connected:
            apart.append(pod)
    return apart


def _envoy_name(params: Params, proxy: str, *, timeout: float = 15.0) -> str:
    """Return the name that an Envoy gives itself towards istiod, an empty text when it does not answer."""
    try:
        answer = run_json(params, ["proxy-config", "bootstrap", proxy, "-o", "json"], timeout=timeout)
    except ClusterError:
        return ""
    node = str(((answer or {}).get("bootstrap") or {}).get("node", {}).get("id", ""))
    return node.split("~")[2] if node.count("~") >= 3 else ""


def _revision(params: Params) -> list[str]:
    return ["--revision", params.istio.revision] if params.istio.revision else []


def rejected(statuses: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Name what is not in sync: a proxy that rejected a push keeps its old configuration for ever."""
    fine = {"SYNCED", "NOT_SENT", "IGNORED", "NOT SENT"}
    return [
        f"{proxy}: {kind} {status}"
        for proxy, kinds in sorted(statuses.items())
        for kind, status in sorted(kinds.items())
        if status not in fine
    ]


def route_names(params: Params, pod: str, *, timeout: float | None = None) -> dict[str, set[str]]:
    """Return what the pod's Envoy has: per virtual-host domain, the names of its routes."""
    tables = run_json(
        params,
        ["proxy-config", "routes", f"{pod}.{params.istio.namespace}", "-o", "json"],
        timeout=timeout or _patience(params),
    )
    out: dict[str, set[str]] = {}
    for table in tables or []:
        for host in table.get("virtualHosts") or []:
            for domain in host.get("domains") or []:
                bare = domain.rpartition(":")[0] if domain.rpartition(":")[2].isdigit() else domain
                out.setdefault(bare, set()).update(_route_mark(route) for route in host.get("routes") or [])
    return out


def config_dump(params: Params, pod: str, *, timeout: float = 30.0) -> Any:
    """Return the whole configuration of the pod's Envoy, as its admin interface dumps it."""
    where = f"{pod}.{params.istio.namespace}"
    return run_json(params, ["proxy-config", "all", where, "-o", "json"], timeout=timeout)


def listener_ports(params: Params, pod: str, *, timeout: float | None = None) -> set[int]:
    """Return the ports on which the pod's Envoy listens."""
    found = run_json(
        params,
        ["proxy-config", "listeners", f"{pod}.{params.istio.namespace}", "-o", "json"],
        timeout=timeout or _patience(params),
    )
    addresses = [
        a.get("socketAddress", {})
        for listener in found or []
        for a in [
            listener.get("address", {}),
            *(e.get("address", {}) for e in listener.get("additionalAddresses") or []),
        ]
    ]
    return {int(a["portValue"]) for a in addresses if "portValue" in a}


def _route_mark(route: Mapping[str, Any]) -> str:
    config = str(route.get("metadata", {}).get("filterMetadata", {}).get("istio", {}).get("config", ""))
    # ".../namespaces/NS/virtual-service/NAME" names the VirtualService that made the route
    parts = config.strip("/").split("/")
    return f"{parts[-3]}/{parts[-1]}" if len(parts) >= 3 and parts[-2] == "virtual-service" else ""


def wanted_routes(objects: Iterable[Object]) -> dict[str, set[str]]:
    """Return, per host, the VirtualServices that the gateway must have routes of.

    A host of the Gateway API has an empty set: istiod names those routes after its own objects.
    """
    out: dict[str, set[str]] = {}
    for obj in objects:
        if obj.get("kind") in {"HTTPRoute", "GRPCRoute"}:
            for host in obj["spec"].get("hostnames") or ["*"]:
                out.setdefault(host, set())
            continue
        if obj.get("kind") != "VirtualService" or not obj["spec"].get("http"):
            continue
        if not [g for g in obj["spec"].get("gateways") or [] if g != "mesh"]:
            continue
        title = f"{obj['metadata'].get('namespace', 'default')}/{name_of(obj)}"
        for host in obj["spec"].get("hosts") or []:
            out.setdefault(host, set()).add(title)
    return out


def watch(
    look: Callable[[], str],
    *,
    timeout: float,
    every: float = 1.0,
    progress: Callable[[str], None] | None = None,
    subject: str,
    hint: str | None = None,
) -> None:
    """Call *look* until it returns an empty text; it returns what is still missing.

    A look that fails in a way that heals (:func:`gateshift.cluster.failures.heals`) is repeated like one
    that finds something missing. Raises :class:`ClusterError` with the last answer (and *hint*, or that of
    the error) after *timeout* seconds, and at once what does not heal.
    """
    deadline = time.monotonic() + timeout
    said = ""
    while True:
        then = hint
        try:
            missing = look()
        except ClusterError as error:
            if not heals(error) and not isinstance(error, NotServedError):  # a definition may be on its way
                raise
            missing, then = str(error), error.hint
        if not missing:
            return
        if progress and missing != said:
            progress(f"{subject}: {missing}")
            said = missing
        if time.monotonic() >= deadline:
            raise ClusterError(f"{subject}: after {timeout:g} s still {missing}", hint=then)
        time.sleep(every)
