"""Trees 3 and 4, 503/mTLS and latency: from the gateway to the backends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe

__all__ = ["FLAGS", "PROBES", "resolve"]

FLAGS = {
    "UF": ("the connection to the backend failed", "backend down, wrong port, or mTLS mismatch"),
    "UH": ("no healthy backend", "no endpoints, or all ejected by outlier detection"),
    "UC": ("the backend closed the connection", "keep-alive shorter than Envoy's, or plaintext against mTLS"),
    "UT": ("the backend did not answer in time", "raise the route's timeout or make the backend faster"),
    "UO": ("the circuit breaker is open", "raise connectionPool limits of the DestinationRule"),
    "URX": ("retries or connect attempts are used up", "look at the backend's own errors first"),
    "NC": (
        "the cluster does not exist",
        "a subset without DestinationRule, or a host that istiod does not know",
    ),
    "NR": ("no route takes the request", "see symptom 404"),
    "LR": ("the local side reset the connection", "look at the gateway's own resources"),
    "UPE": ("the backend broke the protocol", "HTTP/2 against an HTTP/1 port: name the port grpc- or http-"),
}
"""Envoy's response flags: what happened, and what to look at."""


def resolve(host: str, namespace: str) -> str:
    """Return the FQDN of a short service name as Istio does: in the namespace of the rule."""
    if "." in host:
        return host if host.count(".") > 1 or not host else f"{host}.svc.cluster.local"
    return f"{host}.{namespace}.svc.cluster.local"


def _destinations(facts: Facts) -> Iterator[tuple[Object, str, str, int | None]]:
    """Yield (VirtualService, FQDN, subset, port) for each destination of HTTP rules."""
    for service in facts.objects("VirtualService"):
        for rule in service["spec"].get("http") or []:
            for route in rule.get("route") or []:
                to = route.get("destination") or {}
                host = resolve(str(to.get("host", "")), service["metadata"]["namespace"])
                yield service, host, str(to.get("subset", "")), (to.get("port") or {}).get("number")


def _flags(facts: Facts) -> Iterator[Cause]:
    failing: Counter[tuple[str, str]] = Counter()
    total = 0
    for entry in facts.requests:
        if facts.host and entry.get("authority") not in {facts.host, f"{facts.host}:80", f"{facts.host}:443"}:
            continue
        total += 1
        for flag in str(entry.get("response_flags") or "-").split(","):
            if flag in FLAGS:
                failing[(flag, str(entry.get("upstream_cluster") or "no cluster"))] += 1
    for (flag, cluster), count in failing.most_common(4):
        what, look = FLAGS[flag]
        yield Cause(
            Level.ERROR if flag != "NR" and count / total > 0.001 else Level.WARNING,
            f"{what} ({flag})",
            f"{count} of the last {total} requests, {cluster}",
            look,
            confidence=min(0.8, 0.4 + count / max(total, 1)),
            reference="guide: tree 3",
        )


def _backend(facts: Facts) -> Iterator[Cause]:
    services = {
        f"{name_of(s)}.{s['metadata']['namespace']}.svc.cluster.local": s for s in facts.objects("Service")
    }
    entries = {h for e in facts.objects("ServiceEntry") for h in e["spec"].get("hosts") or []}
    for owner, host, _, port in sorted(_destinations(facts), key=lambda d: (d[1], d[3] or 0, title_of(d[0]))):
        service = services.get(host)
        if service is None:
            if host not in entries:
                yield Cause(
                    Level.ERROR,
                    f"{host} does not exist: requests get 503 (NC or UH)",
                    f"destination of {title_of(owner)}",
                    "correct the host (write it in full), or make a Service or ServiceEntry",
                    confidence=0.9,
                    reference="istio-traps.md 29",
                )
            continue
        ports = service["spec"].get("ports") or []
        if port and port not in {p["port"] for p in ports}:
            yield Cause(
                Level.ERROR,
                f"{title_of(service)} has no port {port}",
                f"destination of {title_of(owner)}; it has {[p['port'] for p in ports]}",
                "use a port of the Service, not of the container",
                confidence=0.92,
                reference="guide: tree 3",
            )


def _endpoints(facts: Facts) -> Iterator[Cause]:
    wanted = {host for _, host, _, _ in _destinations(facts)}
    for service in facts.objects("Service"):
        name, space = name_of(service), service["metadata"]["namespace"]
        if f"{name}.{space}.svc.cluster.local" not in wanted:
            continue
        if service["spec"].get("type") == "ExternalName":
            continue
        slices = [
            s
            for s in facts.objects("EndpointSlice")
            if s["metadata"]["namespace"] == space
            and (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == name
        ]
        ready = sum(
            1
            for s in slices
            for e in s.get("endpoints") or []
            if (e.get("conditions") or {}).get("ready", True)
        )
        selector = service["spec"].get("selector") or {}
        ready += sum(
            1
            for e in facts.objects("WorkloadEntry")
            if selector
            and e["metadata"]["namespace"] == space
            and selector.items() <= (e["spec"].get("labels") or e["metadata"].get("labels") or {}).items()
        )
        if not ready:
            yield Cause(
                Level.ERROR,
                f"{title_of(service)} has no ready endpoint: requests get 503 (UH)",
                f"selector {selector or 'none'}",
                f"kubectl -n {space} get pods; compare labels with the selector",
                confidence=0.93,
                reference="guide: tree 3",
            )


def _subsets(facts: Facts) -> Iterator[Cause]:
    known: dict[str, set[str]] = {}
    for rule in facts.objects("DestinationRule"):
        host = resolve(str(rule["spec"].get("host", "")), rule["metadata"]["namespace"])
        known.setdefault(host, set()).update(s["name"] for s in rule["spec"].get("subsets") or [])
    for owner, host, subset, _ in _destinations(facts):
        if subset and subset not in known.get(host, set()):
            yield Cause(
                Level.ERROR,
                f"subset {subset} of {host} is not defined: requests get 503 (NC)",
                f"{title_of(owner)}; defined: {', '.join(sorted(known.get(host, set()))) or 'none'}",
                "add the subset to a DestinationRule for this host",
                confidence=0.95,
                reference="istio-traps.md 30",
            )


def _mtls(facts: Facts) -> Iterator[Cause]:
    application = facts.params.cluster.application_namespace
    strict = [
        p
        for p in facts.objects("PeerAuthentication")
        if p["metadata"]["namespace"] in {application, facts.params.istio.namespace}
        and (p["spec"].get("mtls") or {}).get("mode") == "STRICT"
    ]
    off = {
        resolve(str(r["spec"].get("host", "")), r["metadata"]["namespace"]): r
        for r in facts.objects("DestinationRule")
        if ((r["spec"].get("trafficPolicy") or {}).get("tls") or {}).get("mode") in {"DISABLE", "SIMPLE"}
    }
    for host in sorted({h for _, h, _, _ in _destinations(facts)} & set(off)):
        if strict:
            yield Cause(
                Level.ERROR,
                f"the backend demands mTLS, {title_of(off[host])} turns it off",
                f"{title_of(off[host])} for {host}; {title_of(strict[0])} is STRICT",
                "remove tls from the DestinationRule (automatic mTLS), or set PERMISSIVE",
                confidence=0.93,
                reference="istio-traps.md 32",
            )
    needing = {
        resolve(str(r["spec"].get("host", "")), r["metadata"]["namespace"]): r
        for r in facts.objects("DestinationRule")
        if ((r["spec"].get("trafficPolicy") or {}).get("tls") or {}).get("mode") == "ISTIO_MUTUAL"
    }
    for host, rule in sorted(needing.items()):
        if host.endswith(f".{application}.svc.cluster.local") and not _injected(facts, application):
            yield Cause(
                Level.ERROR,
                f"{title_of(rule)} speaks mTLS to a backend without a sidecar",
                f"{host}: ISTIO_MUTUAL, but no pod or workload of {application} is in the mesh",
                "remove tls from the DestinationRule: automatic mTLS decides by endpoint",
                confidence=0.9,
                reference="istio-traps.md 32",
            )
    for policy in strict:
        yield Cause(
            Level.WARNING,
            f"{title_of(policy)} is STRICT while APISIX still calls in plaintext",
            "APISIX has no sidecar: its requests are cut off, and with them the way back",
            f"kubectl -n {policy['metadata']['namespace']} patch peerauthentication {name_of(policy)} "
            """--type=merge -p '{"spec":{"mtls":{"mode":"PERMISSIVE"}}}'""",
            confidence=0.7,
            reference="istio-traps.md 49",
        )


def _injected(facts: Facts, namespace: str) -> bool:
    for pod in facts.objects("Pod", namespace):
        every = (pod["spec"].get("containers") or []) + (pod["spec"].get("initContainers") or [])
        if any(c["name"] == "istio-proxy" for c in every):
            return True
    return any(
        (e["spec"].get("labels") or {}).get("security.istio.io/tlsMode") == "istio"
        for e in facts.objects("WorkloadEntry", namespace)
    )


def _protocols(facts: Facts) -> Iterator[Cause]:
    wanted = {(host, port) for _, host, _, port in _destinations(facts)}
    for service in facts.objects("Service"):
        host = f"{name_of(service)}.{service['metadata']['namespace']}.svc.cluster.local"
        for port in service["spec"].get("ports") or []:
            if not {(host, port["port"]), (host, None)} & wanted:
                continue
            name = str(port.get("appProtocol") or port.get("name") or "")
            if "grpc" in name_of(service) and not name.startswith(("grpc", "http2", "kubernetes.io/h2c")):
                yield Cause(
                    Level.WARNING,
                    f"{title_of(service)} looks like gRPC, its port is named {name or '(nothing)'}",
                    "without grpc- or http2- Envoy speaks HTTP/1.1 to it",
                    "name the port grpc, or set appProtocol: grpc",
                    confidence=0.7,
                    reference="istio-traps.md 28",
                )
            elif name.startswith(("https", "tcp", "tls")):
                yield Cause(
                    Level.WARNING,
                    f"port {port['port']} of {title_of(service)} is opaque: no HTTP routing applies",
                    f"name or appProtocol {name}",
                    "name it http if the backend speaks HTTP",
                    confidence=0.5,
                    reference="istio-traps.md 36",
                )


def _slow(facts: Facts) -> Iterator[Cause]:
    limit = max(s.p95_limit_ms for s in facts.params.stages)
    served = [
        e for e in facts.requests if _ms(e.get("duration")) is not None and e.get("response_code") != 101
    ]
    if len(served) < 20:
        return
    by_cluster: dict[str, list[dict[str, Any]]] = {}
    for entry in served:
        by_cluster.setdefault(str(entry.get("upstream_cluster") or "no cluster"), []).append(entry)
    for cluster, entries in sorted(by_cluster.items()):
        total = sorted(_ms(e["duration"]) or 0.0 for e in entries)
        p95 = total[int(len(total) * 0.95)] if len(total) >= 5 else 0.0
        if p95 <= limit:
            continue
        upstream = sorted(_ms(e.get("upstream_service_time")) or 0.0 for e in entries)
        inside = upstream[int(len(upstream) * 0.95)]
        share = inside / p95
        yield Cause(
            Level.ERROR,
            "the backend itself is slow" if share > 0.8 else "the time is lost before the backend answers",
            f"{cluster}: P95 {p95:.0f} ms of which {inside:.0f} ms in the backend ({len(entries)} requests)",
            "compare with the same backend through APISIX"
            if share > 0.8
            else "look at connection pool limits, retries and the gateway's CPU",
            confidence=0.85,
            reference="guide: tree 4",
        )


def _ms(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _pools(facts: Facts) -> Iterator[Cause]:
    for rule in facts.objects("DestinationRule"):
        pool = (rule["spec"].get("trafficPolicy") or {}).get("connectionPool") or {}
        tight = {
            "tcp.maxConnections": (pool.get("tcp") or {}).get("maxConnections"),
            "http.http1MaxPendingRequests": (pool.get("http") or {}).get("http1MaxPendingRequests"),
            "http.http2MaxRequests": (pool.get("http") or {}).get("http2MaxRequests"),
        }
        for key, value in tight.items():
            if value is not None and 0 < value < 10:
                yield Cause(
                    Level.WARNING,
                    f"{title_of(rule)} allows very few requests at once",
                    f"{key}: {value} for each gateway pod",
                    "raise it: what exceeds it waits or gets 503 (UO)",
                    confidence=0.65,
                    reference="guide: tree 4",
                )
    for service in facts.objects("VirtualService"):
        for rule in service["spec"].get("http") or []:
            attempts = (rule.get("retries") or {}).get("attempts", 0)
            if attempts > 5:
                yield Cause(
                    Level.WARNING,
                    f"{title_of(service)} retries {attempts} times",
                    f"rule {rule.get('name', '')}: a slow backend gets up to {attempts + 1} times the load",
                    "lower attempts, set perTryTimeout",
                    confidence=0.55,
                    reference="istio-traps.md 16",
                )


def _faults(facts: Facts) -> Iterator[Cause]:
    for service in facts.objects("VirtualService"):
        for rule in service["spec"].get("http") or []:
            fault = rule.get("fault") or {}
            kind = "delay" if fault.get("delay") else "abort" if fault.get("abort") else ""
            if kind:
                yield Cause(
                    Level.ERROR,
                    f"{title_of(service)} injects a fault on purpose",
                    f"rule {rule.get('name', '')}: {kind} {fault[kind]}",
                    "remove fault from the rule",
                    confidence=0.9,
                    reference="istio-traps.md 19",
                )


_503 = frozenset({"503"})
_SLOW = frozenset({"latency"})
PROBES = (
    Probe("response flags", _503 | _SLOW, "kubectl -n istio-system logs deploy/istio-ingressgateway", _flags),
    Probe("backends", _503, "istioctl proxy-config clusters <gateway pod>", _backend),
    Probe("endpoints of backends", _503, "istioctl proxy-config endpoints <gateway pod>", _endpoints),
    Probe("subsets", _503, "kubectl get destinationrules -A -o yaml", _subsets),
    Probe("mTLS", _503, "kubectl get peerauthentications,destinationrules -A -o yaml", _mtls),
    Probe("port protocols", _503 | {"lint"}, "kubectl get services -A -o yaml", _protocols),
    Probe("where the time goes", _SLOW, "kubectl -n istio-system logs deploy/istio-ingressgateway", _slow),
    Probe("pools and retries", _SLOW, "istioctl proxy-config clusters <gateway pod> -o json", _pools),
    Probe("fault injection", _503 | _SLOW, "kubectl get virtualservices -A -o yaml", _faults),
)
