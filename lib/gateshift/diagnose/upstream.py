"""Tree 3, 503: response flags decoded, and from the gateway to the backends. TLS is in :mod:`.mtls`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.destinations import (
    destinations,
    endpoints_of,
    labels_of_workloads,
    parse_cluster,
    relevance,
    rules_for,
    service_of,
)
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.diagnose.requests import Entry
from gateshift.diagnose.routes import host_matches
from gateshift.diagnose.scope import eased, our_rules
from gateshift.errors import ClusterError, GateshiftError

__all__ = ["FLAGS", "PROBES"]

FLAGS = {
    "UF": ("connection-failed", "backend down, wrong port, or TLS against plaintext"),
    "UH": ("no-healthy-upstream", "no endpoints, or all ejected by outlier detection"),
    "UC": ("connection-closed", "keep-alive shorter than Envoy's, or plaintext against mTLS"),
    "UT": ("upstream-timeout", "raise the route's timeout or make the backend faster"),
    "UO": ("circuit-open", "raise connectionPool limits of the DestinationRule"),
    "URX": ("retries-used-up", "look at the backend's own errors first"),
    "NC": ("no-cluster", "a subset without DestinationRule, or a host that istiod does not know"),
    "NR": ("no-route", "see symptom 404"),
    "LR": ("local-reset", "look at the gateway's own resources"),
    "UPE": ("protocol-error", "HTTP/2 against an HTTP/1 port, or the reverse: name the port grpc- or http-"),
}
"""Envoy's response flags: the cause each names by itself, and what to look at."""

_LONG = {
    "UpstreamConnectionFailure": "UF",
    "NoHealthyUpstream": "UH",
    "UpstreamConnectionTermination": "UC",
    "UpstreamRequestTimeout": "UT",
    "UpstreamOverflow": "UO",
    "UpstreamRetryLimitExceeded": "URX",
    "NoClusterFound": "NC",
    "NoRouteFound": "NR",
    "LocalReset": "LR",
    "UpstreamProtocolError": "UPE",
}
_GRPC = re.compile(r"^/[\w.]+\.\w+/\w+$")


def _flags(facts: Facts) -> Iterator[Cause]:
    if count := facts.unread:
        raise ClusterError(
            f"the access log tells {count} requests in a format that is not known",
            hint="Istio's own formats are read, JSON and TEXT: leave meshConfig.accessLogFormat out",
        )
    # A WebSocket (101) ends by either side's closing the connection: no failure.
    entries = tuple(e for e in facts.concerned if e.code != 101)
    counted: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        for flag in entry.flags:
            short = _LONG.get(flag, flag)
            if short in FLAGS:
                counted[short, entry.cluster] += 1
                example.setdefault((short, entry.cluster), entry)
    for (flag, cluster), count in sorted(counted.items(), key=lambda c: (-c[1], c[0]))[:4]:
        code, look = FLAGS[flag]
        known = example[flag, cluster]
        share = count / len(entries)
        words = f"{count} of the last {len(entries)} requests, {cluster or 'no cluster'}"
        said = known.transport_failure or known.details
        quiet = flag == "NR" or share <= 0.001 or (count < 2 and len(entries) > 20)
        yield found(
            code,
            f"{words}: {said}" if said else words,
            _remedy(facts, flag, cluster) or look,
            level=Level.WARNING if quiet else None,
            confidence=0.3 if quiet else None,
        )
    yield from _own_errors(facts, entries)


def _remedy(facts: Facts, flag: str, cluster: str) -> str:
    host, _, _ = parse_cluster(cluster)
    if flag == "UO" and (rules := rules_for(facts, host)):
        pool = {"tcp": {"maxConnections": 1024}, "http": {"http1MaxPendingRequests": 1024}}
        return patch_command(rules[0], {"trafficPolicy": {"connectionPool": pool}})
    return ""


def _own_errors(facts: Facts, entries: tuple[Entry, ...]) -> Iterator[Cause]:
    """Errors that the backend itself answered."""
    own = Counter((e.cluster, e.code) for e in entries if e.code >= 500 and e.details == "via_upstream")
    for (cluster, code), count in sorted(own.items(), key=lambda c: (-c[1], c[0]))[:3]:
        share = count / len(entries)
        service = service_of(facts, parse_cluster(cluster)[0])
        where = (
            f"kubectl -n {service['metadata']['namespace']} logs svc/{name_of(service)}" if service else ""
        )
        yield found(
            "backend-5xx",
            f"{count} of the last {len(entries)} requests, {cluster}: answered by the backend (via_upstream)",
            f"{where or 'look at the log of the backend'}: the gateway only passes this on",
            level=None if share > 0.001 else Level.WARNING,
            status=code,
        )


def _metrics_flags(facts: Facts) -> Iterator[Cause]:
    """The same flags from Prometheus, for gateways whose access log is off."""
    try:
        if facts.requests:
            return
    except GateshiftError:
        pass  # no log, no permission: the metrics are then the only witness
    source = getattr(facts.context, "source", None)
    if source is None:
        return
    selector = facts.params.metrics.istio_selector.strip("{}")
    window = f"{max(int(facts.window), 15)}s"
    counts = source.instant(
        "sum by (response_flags, destination_service) "
        f"(increase(istio_requests_total{{{selector}}}[{window}])) > 0",
        facts.context.now(),
    ).series
    total = sum(s.value for s in counts)
    for series in counts:
        for flag in series.labels.get("response_flags", "").split(","):
            short = _LONG.get(flag, flag)
            if short in FLAGS and series.value >= 3 and series.value > 0.001 * total:
                code, look = FLAGS[short]
                yield found(
                    code,
                    f"{series.value:.0f} of {total:.0f} requests in {window}, "
                    f"{series.labels.get('destination_service')} (from metrics: no access log to read)",
                    look,
                    confidence=0.6,
                )


def _backend(facts: Facts) -> Iterator[Cause]:
    entries = [h for e in facts.objects("ServiceEntry") for h in e["spec"].get("hosts") or []]
    for to in destinations(facts):
        service = service_of(facts, to.host)
        weight = relevance(facts, to.host)
        where = f"destination of {title_of(to.owner)}"
        if service is None:
            # In a mesh of several clusters the Service may be in another one: Envoy knows it.
            if not any(host_matches(h, to.host) for h in entries) and not _in_envoy(facts, to.host):
                yield found(
                    "destination-unknown",
                    where,
                    f"kubectl -n {to.owner['metadata']['namespace']} edit virtualservice "
                    f"{name_of(to.owner)}: "
                    "correct the host (write it in full), or make a Service or ServiceEntry",
                    confidence=0.95 * weight,
                    host=to.host,
                )
            continue
        ports = [p["port"] for p in service["spec"].get("ports") or []]
        if to.port and ports and to.port not in ports:
            yield found(
                "destination-port",
                f"{where}; it has {ports}",
                f"kubectl -n {to.owner['metadata']['namespace']} edit virtualservice {name_of(to.owner)}:\n"
                f"-  number: {to.port}\n+  number: {ports[0] if ports else '?'}",
                confidence=0.95 * weight,
                name=title_of(service),
                port=to.port,
            )


def _in_envoy(facts: Facts, host: str) -> bool:
    """Say whether the gateway's Envoy has healthy endpoints for *host*; no when it cannot be asked."""
    try:
        every = facts.envoy.endpoints
    except GateshiftError:
        return False
    return any(e.healthy for c, found_ in every.items() if parse_cluster(c)[0] == host for e in found_)


def _endpoints(facts: Facts) -> Iterator[Cause]:
    for host in sorted({to.host for to in destinations(facts)}):
        service = service_of(facts, host)
        if service is None or service["spec"].get("type") == "ExternalName":
            continue
        selector = service["spec"].get("selector") or {}
        space = service["metadata"]["namespace"]
        entries = [
            e
            for e in facts.objects("WorkloadEntry", space)
            if selector and selector.items() <= (e["spec"].get("labels") or {}).items()
        ]
        if not entries and not any(endpoints_of(facts, service)) and not _in_envoy(facts, host):
            yield found(
                "no-endpoint",
                f"selector {selector or 'none'}: no ready pod and no WorkloadEntry matches",
                f"kubectl -n {space} get pods --show-labels; compare with: "
                f"kubectl -n {space} get service {name_of(service)} -o jsonpath='{{.spec.selector}}'",
                confidence=0.95 * relevance(facts, host),
                name=title_of(service),
            )


def _subsets(facts: Facts) -> Iterator[Cause]:
    for to in destinations(facts):
        if not to.subset:
            continue
        defined = {
            s["name"]: s for rule in rules_for(facts, to.host) for s in rule["spec"].get("subsets") or []
        }
        weight = relevance(facts, to.host)
        if to.subset not in defined:
            yield found(
                "subset-missing",
                f"{title_of(to.owner)}; defined: {', '.join(sorted(defined)) or 'none'}",
                _define(facts, to.host, to.subset),
                confidence=0.97 * weight,
                subset=to.subset,
                host=to.host,
            )
            continue
        service = service_of(facts, to.host)
        wanted = defined[to.subset].get("labels") or {}
        if service is None:
            continue
        workloads = list(labels_of_workloads(facts, service))
        if workloads and not any(wanted.items() <= labels.items() for labels in workloads):
            yield found(
                "subset-empty",
                f"subset {to.subset} wants {wanted}; workloads have {workloads[0]}",
                "correct the subset's labels, or label the pods",
                confidence=0.94 * weight,
                subset=to.subset,
                host=to.host,
            )


def _define(facts: Facts, host: str, subset: str) -> str:
    """Say how to define a subset: its labels are known only where pods bear its name as version."""
    rules, service = rules_for(facts, host), service_of(facts, host)
    if not rules:
        return f"make a DestinationRule for {host} with subset {subset}"
    labelled = service is not None and any(
        labels.get("version") == subset for labels in labels_of_workloads(facts, service)
    )
    if not labelled:
        space = rules[0]["metadata"]["namespace"]
        return (
            f"kubectl -n {space} edit destinationrule {name_of(rules[0])}: add subset {subset} with labels "
            "that its pods have"
        )
    one = {"name": subset, "labels": {"version": subset}}
    return patch_command(rules[0], {"subsets": [*(rules[0]["spec"].get("subsets") or []), one]})


def _protocols(facts: Facts) -> Iterator[Cause]:
    wanted = {(to.host, to.port) for to in destinations(facts)}
    failing = {
        parse_cluster(e.cluster)[:2]
        for e in (facts.concerned if facts.symptom != "lint" else ())
        if _GRPC.match(e.path) and e.method == "POST" and (e.flags or e.code >= 500)
    }
    for service in facts.objects("Service"):
        host = f"{name_of(service)}.{service['metadata']['namespace']}.svc.cluster.local"
        for index, port in enumerate(service["spec"].get("ports") or []):
            if not {(host, port["port"]), (host, None)} & wanted:
                continue
            name = str(port.get("appProtocol") or port.get("name") or "")
            h2 = name.startswith(("grpc", "http2", "kubernetes.io/h2c"))
            path = f"/spec/ports/{index}/appProtocol"
            remedy = (
                f"kubectl -n {service['metadata']['namespace']} patch service {name_of(service)} --type=json "
                f'-p \'[{{"op":"add","path":"{path}","value":"grpc"}}]\''
            )
            if (host, port["port"]) in failing and not h2:
                yield found(
                    "protocol-name",
                    f"gRPC requests to port {port['port']} fail; without grpc- or http2- Envoy speaks "
                    "HTTP/1.1",
                    remedy,
                    name=title_of(service),
                    port=name or "(nothing)",
                )
            elif "grpc" in name_of(service) and not h2:
                yield found(
                    "protocol-name-maybe",
                    "without grpc- or http2- Envoy speaks HTTP/1.1 to it",
                    remedy,
                    name=title_of(service),
                    port=name or "(nothing)",
                )
            elif name.startswith(("https", "tcp", "tls")):
                yield found(
                    "protocol-opaque",
                    f"name or appProtocol {name}",
                    "name it http if the backend speaks HTTP",
                    port=port["port"],
                    name=title_of(service),
                )


def _ejected(facts: Facts) -> Iterator[Cause]:
    for cluster, endpoints in sorted(facts.envoy.endpoints.items()):
        host, _, _ = parse_cluster(cluster)
        out = [e for e in endpoints if e.ejected]
        if not host or not out:
            continue
        every = len(out) == len(endpoints)
        yield found(
            "ejected" if every else "ejection-narrows",
            f"{cluster}: {', '.join(e.address for e in out[:4])} failed_outlier_check",
            _soften(rules_for(facts, host)),
            confidence=(0.92 if every else 0.6) * relevance(facts, host),
            count=len(out),
            of=len(endpoints),
            host=host,
        )


def _soften(rules: list[Object]) -> str:
    policy = (rules[0]["spec"].get("trafficPolicy") or {}).get("outlierDetection") or {} if rules else {}
    # By default 10 %: to set half of them would take out more.
    if int(policy.get("maxEjectionPercent") or 10) <= 50:
        return "look at the errors of these endpoints: ejection is their consequence"
    return (
        patch_command(rules[0], {"trafficPolicy": {"outlierDetection": {"maxEjectionPercent": 50}}})
        + " keeps half of them; then look at their errors: ejection is the consequence"
    )


def _faults(facts: Facts) -> Iterator[Cause]:
    for service in our_rules(facts):
        for index, rule in enumerate(service["spec"].get("http") or []):
            fault = rule.get("fault") or {}
            kinds = [k for k in ("delay", "abort") if _share_of(fault.get(k))]
            if kinds:
                cause = found(
                    "fault-injected",
                    f"rule {rule.get('name', index)}: "
                    + "; ".join(f"{kind} {json.dumps(fault[kind], sort_keys=True)}" for kind in kinds),
                    f"kubectl -n {service['metadata']['namespace']} patch virtualservice {name_of(service)} "
                    f'--type=json -p \'[{{"op":"remove","path":"/spec/http/{index}/fault"}}]\'',
                    name=title_of(service),
                )
                yield eased(facts, service, cause)


def _share_of(fault: object) -> float:
    """Return the share of requests (0-100) that a fault concerns: without a percentage none."""
    if not isinstance(fault, Mapping):
        return 0.0
    return float((fault.get("percentage") or {}).get("value") or fault.get("percent") or 0.0)


_503 = frozenset({"503"})
_SLOW = frozenset({"latency"})
_LOG = "kubectl -n <ns> logs deploy/<service> --tail=100"
PROBES = (
    Probe("fault injection", _503 | _SLOW, "kubectl get virtualservices -A -o yaml", _faults),
    Probe("backends", _503, "istioctl proxy-config clusters <pod>", _backend),
    Probe("endpoints of backends", _503, "istioctl proxy-config endpoints <pod>", _endpoints),
    Probe("subsets", _503, "kubectl get destinationrules -A -o yaml", _subsets),
    Probe("port protocols", _503 | {"lint"}, "kubectl get services -A -o yaml", _protocols),
    Probe("ejected endpoints", _503 | _SLOW, "istioctl proxy-config endpoints <pod>", _ejected),
    Probe("response flags", _503 | _SLOW, _LOG, _flags),
    Probe("response flags in metrics", _503, "istioctl dashboard prometheus", _metrics_flags),
)
