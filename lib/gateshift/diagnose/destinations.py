"""Where the rules of the gateways send to, and what stands for it in the cluster: shared by trees 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gateshift.cluster.objects import Object, name_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import labels_of
from gateshift.diagnose.routes import host_matches
from gateshift.diagnose.scope import our_rules
from gateshift.errors import GateshiftError

__all__ = [
    "Destination",
    "destinations",
    "endpoints_of",
    "fqdn_of",
    "in_mesh",
    "labels_of_workloads",
    "meshed",
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
    """Return every destination of HTTP rules that a gateway serves, in a stable order.

    Of several destinations those without weight get no request, whatever they lack.
    """

    def read() -> list[Destination]:
        found = []
        for owner in our_rules(facts):
            for rule in owner["spec"].get("http") or []:
                routes = rule.get("route") or []
                for route in [r for r in routes if len(routes) == 1 or r.get("weight")]:
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
    """Return the Service behind an FQDN, whatever the cluster's own domain is called."""
    name, _, rest = host.partition(".")
    space, _, domain = rest.partition(".")
    if domain.partition(".")[0] != "svc":
        return None
    every = facts.objects("Service")
    return next((s for s in every if (name_of(s), s["metadata"]["namespace"]) == (name, space)), None)


def rules_for(facts: Facts, host: str) -> list[Object]:
    """Return the DestinationRules of *host*, the one whose policy is used first.

    The most exact host wins over wildcards, then the oldest.
    """
    named = [
        (resolve(str(r["spec"].get("host", "")), r["metadata"]["namespace"]), r)
        for r in facts.objects("DestinationRule")
    ]
    found = [(-len(n) if n != host else -math.inf, r) for n, r in named if n and host_matches(n, host)]
    return [
        r
        for _, r in sorted(
            found, key=lambda f: (f[0], f[1]["metadata"].get("creationTimestamp", ""), name_of(f[1]))
        )
    ]


def labels_of_workloads(facts: Facts, service: Object) -> Iterator[dict[str, str]]:
    """Yield the labels of the pods and WorkloadEntries that a Service selects; pods that ended left out."""
    space = service["metadata"]["namespace"]
    selector = service["spec"].get("selector") or {}
    if not selector:
        return
    for pod in facts.objects("Pod", space):
        labels = labels_of(pod)
        if pod["status"].get("phase") in {"Succeeded", "Failed"}:
            continue
        if meshed(pod):
            labels.setdefault("security.istio.io/tlsMode", "istio")
        if selector.items() <= labels.items():
            yield labels
    for entry in facts.objects("WorkloadEntry", space):
        labels = dict(entry["spec"].get("labels") or labels_of(entry))
        if selector.items() <= labels.items():
            yield labels


def meshed(pod: Object) -> bool:
    """Say whether a pod has a sidecar (as a container or a native one) or its node's ztunnel."""
    every = (pod["spec"].get("containers") or []) + (pod["spec"].get("initContainers") or [])
    ambient = (pod["metadata"].get("annotations") or {}).get("ambient.istio.io/redirection") == "enabled"
    return ambient or any(c["name"] == "istio-proxy" for c in every)


def in_mesh(facts: Facts, service: Object) -> bool | None:
    """Say whether all workloads of a Service are in the mesh; None when it has no workloads."""
    modes = [w.get("security.istio.io/tlsMode") == "istio" for w in labels_of_workloads(facts, service)]
    return all(modes) if modes else None


def endpoints_of(facts: Facts, service: Object) -> Iterator[str]:
    """Yield the ready addresses of a Service, from EndpointSlices."""
    for one in facts.objects("EndpointSlice", service["metadata"]["namespace"]):
        owner = (one["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
        if owner != name_of(service):
            continue
        for endpoint in one.get("endpoints") or []:
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                yield from endpoint.get("addresses") or []
