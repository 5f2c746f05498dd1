"""Where the rules of the gateways send to, and what stands for it in the cluster: shared by trees 3 and 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateshift.cluster.objects import Object, name_of
from gateshift.diagnose.facts import Facts
from gateshift.errors import GateshiftError

__all__ = [
    "Destination",
    "destinations",
    "endpoints_of",
    "fqdn_of",
    "in_mesh",
    "labels_of_workloads",
    "parse_cluster",
    "relevance",
    "resolve",
    "rules_for",
    "service_of",
]


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination of a VirtualService rule: FQDN, subset and port (None: the Service's only one)."""

    owner: Object
    host: str
    subset: str
    port: int | None


def resolve(host: str, namespace: str) -> str:
    """Return the FQDN of a short service name as Istio does: in the namespace of the rule."""
    if "." in host:
        return host
    return f"{host}.{namespace}.svc.cluster.local"


def fqdn_of(service: Object) -> str:
    """Return a Service's name in the cluster."""
    return f"{name_of(service)}.{service['metadata']['namespace']}.svc.cluster.local"


def parse_cluster(cluster: str) -> tuple[str, int, str]:
    """Return (host, port, subset) of an Envoy cluster's name ``outbound|port|subset|host``."""
    parts = cluster.rstrip(";").split("|")
    if len(parts) != 4 or not parts[1].isdigit():
        return "", 0, ""
    return parts[3], int(parts[1]), parts[2]


def destinations(facts: Facts) -> list[Destination]:
    """Return every destination of HTTP rules that a gateway serves, in a stable order."""

    def read() -> list[Destination]:
        found = []
        for owner in facts.objects("VirtualService"):
            if not [g for g in owner["spec"].get("gateways") or [] if g != "mesh"]:
                continue
            for rule in owner["spec"].get("http") or []:
                for route in rule.get("route") or []:
                    to = route.get("destination") or {}
                    host = resolve(str(to.get("host", "")), owner["metadata"]["namespace"])
                    port = (to.get("port") or {}).get("number")
                    found.append(Destination(owner, host, str(to.get("subset", "")), port))
        return sorted(found, key=lambda d: (d.host, d.subset, d.port or 0, name_of(d.owner)))

    return facts.once("destinations", read)


def relevance(facts: Facts, host: str) -> float:
    """Return 1 when *host* is what the request asked about goes to (or none was named), else 0.7."""
    if not facts.host:
        return 1.0
    try:
        told = facts.explanation(facts.host, facts.path or "/")
    except GateshiftError:
        return 1.0
    if told.taker is None or not told.taker.clusters:
        return 1.0
    return 1.0 if host in {parse_cluster(c)[0] for c in told.taker.clusters} else 0.7


def service_of(facts: Facts, host: str) -> Object | None:
    """Return the Service behind an FQDN."""
    return next((s for s in facts.objects("Service") if fqdn_of(s) == host), None)


def rules_for(facts: Facts, host: str) -> list[Object]:
    """Return the DestinationRules of *host*, oldest first (the oldest one's policy is used)."""
    found = [
        r
        for r in facts.objects("DestinationRule")
        if resolve(str(r["spec"].get("host", "")), r["metadata"]["namespace"]) == host
    ]
    return sorted(found, key=lambda r: (r["metadata"].get("creationTimestamp", ""), name_of(r)))


def labels_of_workloads(facts: Facts, service: Object) -> Iterator[dict[str, str]]:
    """Yield the labels of the pods and WorkloadEntries that a Service selects."""
    space = service["metadata"]["namespace"]
    selector = service["spec"].get("selector") or {}
    if not selector:
        return
    for pod in facts.objects("Pod", space):
        labels = dict(pod["metadata"].get("labels") or {})
        every = (pod["spec"].get("containers") or []) + (pod["spec"].get("initContainers") or [])
        if any(c["name"] == "istio-proxy" for c in every):
            labels.setdefault("security.istio.io/tlsMode", "istio")
        if selector.items() <= labels.items():
            yield labels
    for entry in facts.objects("WorkloadEntry", space):
        labels = dict(entry["spec"].get("labels") or entry["metadata"].get("labels") or {})
        if selector.items() <= labels.items():
            yield labels


def in_mesh(facts: Facts, service: Object) -> bool | None:
    """Say whether all workloads of a Service have a sidecar; None when it has no workloads."""
    modes = [w.get("security.istio.io/tlsMode") == "istio" for w in labels_of_workloads(facts, service)]
    return all(modes) if modes else None


def endpoints_of(facts: Facts, service: Object) -> Iterator[str]:
    """Yield the ready addresses of a Service, from EndpointSlices."""
    for one in facts.objects("EndpointSlice", service["metadata"]["namespace"]):
        owner = (one["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
        if owner != name_of(service):
            continue
        for endpoint in one.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready", True):
                yield from endpoint.get("addresses") or []
