"""Tree 5, the rate limit filters that Envoy has, and the service and Redis behind a global one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.objects import title_of
from gateshift.diagnose.causes import found
from gateshift.diagnose.destinations import endpoints_of, parse_cluster, service_of
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause
from gateshift.diagnose.routes import filters_of

__all__ = ["GLOBAL", "LOCAL", "installed_filters", "limit_service"]

LOCAL = "extensions.filters.http.local_ratelimit"
GLOBAL = "extensions.filters.http.ratelimit"


def installed_filters(facts: Facts) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (name, configuration) of the rate limit filters in the gateway's listeners."""
    seen: dict[str, Mapping[str, Any]] = {}
    for listener in facts.envoy.listeners:
        for _, manager in filters_of(listener):
            for one in manager.get("http_filters") or []:
                config = one.get("typed_config") or {}
                if any(m in str(config.get("@type")) for m in (LOCAL, GLOBAL)):
                    seen.setdefault(str(one.get("name")), config)
    return sorted(seen.items())


def limit_service(facts: Facts) -> Iterator[Cause]:
    """Find what a global rate limit lacks: its service's cluster, its endpoints, Redis behind it."""
    for name, config in installed_filters(facts):
        if GLOBAL not in str(config.get("@type")):
            continue
        grpc = ((config.get("rate_limit_service") or {}).get("grpc_service") or {}).get("envoy_grpc") or {}
        cluster = str(grpc.get("cluster_name", ""))
        open_ = not config.get("failure_mode_deny")
        passes = "failure_mode_deny is off, so everything passes" if open_ else "requests are refused"
        have = facts.envoy.clusters.get(cluster)
        if have is None:
            yield found(
                "limit-service-cluster",
                f"filter {name}; {passes}",
                "name an existing cluster, for example "
                f"outbound|8081||ratelimit.{facts.params.istio.namespace}"
                ".svc.cluster.local (istioctl proxy-config clusters <pod>)",
                name=cluster or "(none)",
            )
            continue
        endpoints = facts.envoy.endpoints.get(cluster, ())
        down = [e for e in endpoints if not e.healthy]
        failed = facts.envoy.total(cluster, "upstream_cx_connect_fail")
        growing = facts.envoy.now(cluster, "upstream_cx_connect_fail")
        if not endpoints or len(down) == len(endpoints) or growing:
            yield found(
                "limit-service-down",
                f"{cluster}: {len(endpoints)} endpoints, {len(down)} of them unhealthy, {failed} failed "
                f"connects; {passes}",
                "start the rate limit service; set failure_mode_deny: true if a limit must never be skipped",
            )
        errors = sum(n for k, n in facts.envoy.grown.items() if k.endswith("ratelimit.error"))
        if errors and not growing:
            yield found(
                "limit-service-errors",
                f"{errors} errors in {facts.envoy.seconds:.0f} s (ratelimit.error); {passes}",
                f"kubectl -n {facts.params.istio.namespace} logs of the rate limit service: Redis, its "
                "configuration",
            )
        yield from _redis(facts, cluster)


def _redis(facts: Facts, cluster: str) -> Iterator[Cause]:
    service = service_of(facts, parse_cluster(cluster)[0])
    if service is None:
        return
    space, selector = service["metadata"]["namespace"], service["spec"].get("selector") or {}
    for deployment in facts.objects("Deployment", space):
        template = deployment["spec"]["template"]
        if not selector or not selector.items() <= (template["metadata"].get("labels") or {}).items():
            continue
        for container in template["spec"].get("containers") or []:
            for variable in container.get("env") or []:
                if variable.get("name") == "REDIS_URL" and variable.get("value"):
                    yield from _redis_at(facts, str(variable["value"]), space, title_of(deployment))


def _redis_at(facts: Facts, url: str, space: str, owner: str) -> Iterator[Cause]:
    host = url.partition("://")[2] or url
    host = host.rpartition("@")[2].partition(":")[0]
    name, _, rest = host.partition(".")
    target = facts.get("Service", name, rest.split(".")[0] or space)
    if target is None or not any(endpoints_of(facts, target)):
        yield found(
            "limit-redis",
            f"{owner} uses {host}: " + ("no such Service" if target is None else "no ready endpoint"),
            f"kubectl -n {rest.split('.')[0] or space} get pods; start Redis",
        )
