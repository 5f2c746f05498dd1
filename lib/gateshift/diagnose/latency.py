"""Tree 4, P95 above the limit: where the time goes, against APISIX at the same moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.destinations import destinations, parse_cluster, relevance, rules_for
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.diagnose.requests import Entry, percentile
from gateshift.errors import GateshiftError

__all__ = ["PROBES"]

_LEAST = 8
"""Requests below which nothing is said about a percentile."""


def _limit(facts: Facts) -> float:
    return max(s.p95_limit_ms for s in facts.params.stages)


def _slow_clusters(facts: Facts) -> dict[str, list[Entry]]:
    """Return, per cluster whose P95 is above the limit, its requests (upgraded connections left out)."""
    by_cluster: dict[str, list[Entry]] = {}
    for entry in facts.concerned:
        if entry.duration is not None and entry.code != 101:
            by_cluster.setdefault(entry.cluster, []).append(entry)
    limit = _limit(facts)
    return {
        cluster: entries
        for cluster, entries in sorted(by_cluster.items())
        if len(entries) >= _LEAST and percentile([e.duration or 0.0 for e in entries], 0.95) > limit
    }


def _where(facts: Facts) -> Iterator[Cause]:
    # Envoy's upstream service time runs from the end of the request to the first byte of the answer: it
    # holds the wait for a connection and retries as well, which their own probes tell apart.
    for cluster, entries in _slow_clusters(facts).items():
        p95 = percentile([e.duration or 0.0 for e in entries], 0.95)
        answered = [e for e in entries if e.upstream is not None]
        inside = percentile([e.upstream or 0.0 for e in answered], 0.95)
        evidence = (
            f"{cluster or 'no cluster'}: P95 {p95:.0f} ms, of which {inside:.0f} ms until the backend "
            f"answered ({len(entries)} requests)"
        )
        if cluster and inside <= 0.8 * p95:
            yield found(
                "slow-in-gateway",
                evidence,
                "a stream or a download takes as long as it is; else see filters (ext_authz, Lua) and CPU",
            )
            continue
        one = _slow_endpoint(answered)
        if one:
            yield one
            continue
        yield from _against_baseline(facts, evidence)


def _slow_endpoint(entries: list[Entry]) -> Cause | None:
    by_endpoint: dict[str, list[float]] = {}
    for entry in entries:
        by_endpoint.setdefault(entry.endpoint, []).append(entry.upstream or 0.0)
    medians = {a: percentile(v, 0.5) for a, v in by_endpoint.items() if a and len(v) >= 2}
    if len(medians) < 2:
        return None
    slowest = max(sorted(medians), key=lambda a: medians[a])
    others = max(v for a, v in medians.items() if a != slowest)
    if medians[slowest] < 3 * max(others, 1.0):
        return None
    return found(
        "slow-endpoint",
        f"{slowest}: median {medians[slowest]:.0f} ms; the others at most {others:.0f} ms",
        f"look at the pod with address {slowest.rpartition(':')[0]}, or take it out of the Service",
    )


def _against_baseline(facts: Facts, evidence: str) -> Iterator[Cause]:
    try:
        baseline, route = _baseline_p95(facts)
    except GateshiftError as error:
        yield found("slow-backend", f"{evidence}; APISIX cannot be compared: {error}", _ASK_BACKEND)
        return
    if baseline is None:
        yield found("slow-backend", f"{evidence}; APISIX has no requests to compare with", _ASK_BACKEND)
    elif baseline > 0.5 * _limit(facts):
        yield found(
            "slow-backend",
            f"{evidence}; through APISIX it is slow as well: P95 {baseline:.0f} ms on route {route}",
            _ASK_BACKEND,
        )
    else:
        yield found(
            "slow-only-through-istio",
            f"{evidence}; at the same time no route of APISIX has a P95 above {baseline:.0f} ms",
            "compare what arrives: headers, body, HTTP version, keep-alive; then the endpoints each "
            "gateway uses",
        )


_ASK_BACKEND = "profile the backend; neither gateway adds the time"


def _baseline_p95(facts: Facts) -> tuple[float | None, str]:
    """Return the P95 (ms) of APISIX's slowest route at the same time, and the route."""
    step = facts.params.metrics.step
    window = max(4 * step, min(facts.window, 60.0))
    selector = facts.params.metrics.apisix_selector.strip("{}")
    query = (
        "histogram_quantile(0.95, sum by (le, route) "
        f'(rate(apisix_http_latency_bucket{{type="request",{selector}}}[{int(window * 1000)}ms])))'
    )
    answer = facts.context.source.instant(query.replace(",}", "}"), facts.context.now())
    values = [(s.value, s.labels.get("route", "")) for s in answer.series if math.isfinite(s.value)]
    return max(values, default=(None, ""))


def _pool(facts: Facts) -> Iterator[Cause]:
    slow = _slow_clusters(facts)
    envoy = facts.envoy
    for cluster in sorted(envoy.clusters):
        host, _, _ = parse_cluster(cluster)
        waiting = envoy.total(cluster, "upstream_rq_pending_active")
        full = envoy.now(cluster, "upstream_cx_overflow")
        refused = envoy.now(cluster, "upstream_rq_pending_overflow")
        # Requests also wait while a connection is made: only a pool that was full is one to enlarge.
        if not host or (cluster not in slow and not refused) or not (full or refused):
            continue
        limits = _limits_of(envoy.clusters[cluster])
        rules = rules_for(facts, host)
        # Beyond the queue requests are refused (503, UO); in it they wait.
        yield found(
            "circuit-open" if refused and cluster not in slow else "pool-waiting",
            f"{cluster}: {waiting} requests wait now, the pool was full {full} times and refused {refused} "
            f"in {envoy.seconds:.0f} s; limits {limits}",
            patch_command(
                rules[0],
                {
                    "trafficPolicy": {
                        "connectionPool": {
                            "tcp": {"maxConnections": 1024},
                            "http": {"http1MaxPendingRequests": 1024},
                        }
                    }
                },
            )
            if rules
            else f"make a DestinationRule for {host} with a larger connectionPool",
            confidence=0.93 * relevance(facts, host),
            host=host,
        )


def _limits_of(cluster: Mapping[str, Any]) -> str:
    thresholds = (cluster.get("circuit_breakers") or {}).get("thresholds") or []
    shown = {k: v for t in thresholds[:1] for k, v in t.items() if isinstance(v, int) and v < 2**31}
    return ", ".join(f"{k} {v}" for k, v in sorted(shown.items())) or "unlimited"


def _retries(facts: Facts) -> Iterator[Cause]:
    envoy = facts.envoy
    for cluster in sorted(envoy.clusters):
        host, _, _ = parse_cluster(cluster)
        retries, requests = envoy.now(cluster, "upstream_rq_retry"), envoy.now(cluster, "upstream_rq_total")
        first = requests - retries
        if not host or retries < 3 or retries < max(first, 1) * 0.5:
            continue
        rule = _retrying(facts, host)
        yield found(
            "retries-amplify",
            f"{cluster}: {retries} retries of {max(first, 0)} requests in {envoy.seconds:.0f} s",
            f"kubectl -n {rule['metadata']['namespace']} edit virtualservice {name_of(rule)}: lower "
            "retries.attempts, "
            "set perTryTimeout"
            if rule
            else "lower retries.attempts in the VirtualService",
            confidence=0.92 * relevance(facts, host),
            host=host,
        )


def _retrying(facts: Facts, host: str) -> Object | None:
    return next((to.owner for to in destinations(facts) if to.host == host), None)


def _connecting(facts: Facts) -> Iterator[Cause]:
    slow = _slow_clusters(facts)
    envoy = facts.envoy
    for cluster, entries in slow.items():
        host, _, _ = parse_cluster(cluster)
        p95 = percentile([e.duration or 0.0 for e in entries], 0.95)
        opened = envoy.now(cluster, "upstream_cx_total")
        requests = envoy.now(cluster, "upstream_rq_total")
        connect = envoy.slowest.get(f"cluster.{cluster}.upstream_cx_connect_ms", 0.0)
        if connect > 0.5 * p95 and opened >= 0.5 * requests and opened:
            yield found(
                "connect-slow",
                f"{cluster}: connecting (TCP and TLS) takes up to {connect:.0f} ms; {opened} new connections "
                f"for {requests} requests in {envoy.seconds:.0f} s",
                "let connections live (maxRequestsPerConnection 0, a longer idleTimeout); look at the "
                "backend's "
                "accept queue and TLS",
                confidence=0.93 * relevance(facts, host),
                host=host,
            )


def _cpu(facts: Facts) -> Iterator[Cause]:
    envoy = facts.envoy
    misses = {
        name: grown
        for name, grown in sorted(envoy.grown.items())
        if name.endswith(("watchdog_miss", "watchdog_mega_miss")) and grown > 0 and "guarddog" not in name
    }
    istio = facts.params.istio
    # Not by kubectl: the next install would undo it, and each change replaces all gateway pods.
    has = istio.gateway.resources
    remedy = (
        f"raise istio.gateway.resources (cpu_limit {has.cpu_limit}, cpu_request {has.cpu_request} now) or "
        "replicas_min in the params file, then gateshift install --act: it replaces the pods one by one"
    )
    if misses:
        told = ", ".join(f"{name} +{n}" for name, n in list(misses.items())[:4])
        # A short miss (0.2 s) of the main thread happens on any busy node; a long one (1 s), several, or
        # one of a worker, which serve the requests, do not.
        grave = [name for name in misses if "main_thread" not in name or "mega" in name]
        felt = bool(_slow_clusters(facts)) and (bool(grave) or sum(misses.values()) >= 3)
        yield found(
            "cpu-starved",
            f"Envoy's threads stood still: {told} in {envoy.seconds:.0f} s",
            remedy,
            level=None if felt else Level.WARNING,
            confidence=None if felt else 0.4,
        )
        return
    throttled = _throttled(facts)
    if throttled is not None and throttled > 0.25:
        yield found(
            "cpu-starved",
            f"{throttled:.0%} of the gateway's CPU periods were throttled",
            remedy,
            confidence=0.85,
        )


def _throttled(facts: Facts) -> float | None:
    source = getattr(facts.context, "source", None)
    if source is None:
        return None
    istio = facts.params.istio
    which = f'namespace="{istio.namespace}",pod=~"{istio.gateway_service}-.*",container="istio-proxy"'
    window = f"{max(int(4 * facts.params.metrics.step), 60)}s"
    query = (
        f"sum(rate(container_cpu_cfs_throttled_periods_total{{{which}}}[{window}])) / "
        f"sum(rate(container_cpu_cfs_periods_total{{{which}}}[{window}]))"
    )
    series = source.instant(query, facts.context.now()).series
    return series[0].value if series and math.isfinite(series[0].value) else None


def _hot(facts: Facts) -> Iterator[Cause]:
    for cluster, endpoints in sorted(facts.envoy.endpoints.items()):
        host, _, _ = parse_cluster(cluster)
        total = sum(e.active for e in endpoints)
        if not host or len(endpoints) < 2 or total < 20:
            continue
        top = max(endpoints, key=lambda e: e.active)
        if top.active > 2 * total / len(endpoints):
            yield found(
                "hot-endpoint",
                f"{cluster}: {top.address} has {top.active} of {total} requests in flight",
                "look at loadBalancer (consistentHash on a skewed key?), and at this endpoint's speed",
                host=host,
            )


def _settings(facts: Facts) -> Iterator[Cause]:
    for rule in facts.objects("DestinationRule"):
        pool = (rule["spec"].get("trafficPolicy") or {}).get("connectionPool") or {}
        tight = {
            "tcp.maxConnections": (pool.get("tcp") or {}).get("maxConnections"),
            "http.http1MaxPendingRequests": (pool.get("http") or {}).get("http1MaxPendingRequests"),
            "http.http2MaxRequests": (pool.get("http") or {}).get("http2MaxRequests"),
        }
        for key, value in tight.items():
            if value is not None and 0 < value < 10:
                first, _, last = key.partition(".")
                raised = {"trafficPolicy": {"connectionPool": {first: {last: 1024}}}}
                yield found(
                    "pool-small",
                    f"{key}: {value} for each gateway pod; what exceeds it waits or gets 503 (UO)",
                    patch_command(rule, raised),
                    name=title_of(rule),
                )
    for service in facts.objects("VirtualService"):
        for rule in service["spec"].get("http") or []:
            attempts = (rule.get("retries") or {}).get("attempts", 0)
            if attempts > 5:
                yield found(
                    "retries-many",
                    f"rule {rule.get('name', '')}: a slow backend gets up to {attempts + 1} times the load",
                    f"kubectl -n {service['metadata']['namespace']} edit virtualservice {name_of(service)}: "
                    "lower attempts, set perTryTimeout",
                    name=title_of(service),
                    attempts=attempts,
                )


def _timeouts(facts: Facts) -> Iterator[Cause]:
    """A route's timeout bounds what is measured: answers cut off are no fast answers."""
    cut = [e for e in facts.concerned if "UT" in e.flags]
    if cut:
        yield found(
            "upstream-timeout",
            f"{len(cut)} of the last {len(facts.concerned)} requests were cut at the route's timeout",
            "the backend is slower than the timeout; see where the time goes",
            level=Level.WARNING,
            confidence=0.5,
        )


_TREE = frozenset({"latency"})
_LOG = "kubectl -n <ns> logs deploy/<service> --tail=100"
_STATS = "istioctl experimental envoy-stats <pod>"
PROBES = (
    Probe("gateway CPU", _TREE, f"{_STATS} | grep watchdog; kubectl top pod -n <ns>", _cpu),
    Probe("connection pools", _TREE | {"503"}, f"{_STATS} | grep -e pending -e overflow", _pool),
    Probe("retries", _TREE, f"{_STATS} | grep retry", _retries),
    Probe("connecting", _TREE, f"{_STATS} | grep cx_connect_ms", _connecting),
    Probe("where the time goes", _TREE, _LOG, _where),
    Probe("timeouts", _TREE, _LOG, _timeouts),
    Probe("hot endpoints", _TREE, "istioctl proxy-config endpoints <pod>", _hot),
    Probe(
        "pools and retries as declared",
        _TREE,
        "kubectl get destinationrules,virtualservices -A -o yaml",
        _settings,
    ),
)
