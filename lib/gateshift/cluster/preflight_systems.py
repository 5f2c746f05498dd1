"""Preflight of what surrounds the cluster: tools, APISIX, DNS, certificates, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from gateshift.apisix.admin import AdminClient
from gateshift.cluster.certificates import certificate_problems
from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import load_balancer_name, pod_ready, selector_text
from gateshift.cluster.objects import name_of
from gateshift.cluster.preflight_cluster import minor
from gateshift.cluster.tools import find_tool, run_tool
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["items"]

_TOOL_TIMEOUT = 10.0


def items(
    params: Params,
    cluster: Cluster,
    *,
    read_traffic: Callable[[], object] | None,
    read_metrics: Callable[[], float | None] | None,
) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster)
    found = [
        Item("kubectl", "operators check by hand with it", checks.kubectl),
        Item("istioctl", "it installs Istio and reads the gateways", checks.istioctl),
        Item("helm", "optional", checks.helm),
        Item(
            "APISIX pods", "the old gateway carries all traffic now and is the way back", checks.apisix_pods
        ),
        Item("APISIX address", "its load balancer is the target of the way back", checks.apisix_address),
        Item("APISIX configuration", "it is what is translated", checks.apisix_configuration),
        Item("certificates", "the new gateway serves them from its first request on", checks.certificates),
    ]
    if read_traffic is not None:
        read = read_traffic
        found.append(Item("DNS", "traffic is moved by these records", lambda: _traffic(params, read)))
    if read_metrics is not None:
        measure = read_metrics
        found.append(Item("metrics", "no verdict without them", lambda: _metrics(params, measure)))
    return tuple(found)


class _Checks:
    def __init__(self, params: Params, cluster: Cluster) -> None:
        self.params = params
        self.cluster = cluster

    def kubectl(self) -> Iterator[Check]:
        why = "kubectl supports servers one minor version away"
        printed = run_tool(
            [self.params.istio.kubectl, "version", "--client", "-o", "json"], timeout=_TOOL_TIMEOUT
        )
        client = minor(str(json.loads(printed)["clientVersion"]["gitVersion"]))
        server = minor(self.cluster.version)
        text = f"{client[0]}.{client[1]}, server {server[0]}.{server[1]}"
        if client < (1, 26):
            yield failed("kubectl", text, why, "install kubectl 1.26 or newer")
        elif abs(client[1] - server[1]) > 1:
            yield warned("kubectl", text, why, f"install kubectl {server[0]}.{server[1]}")
        else:
            yield passed("kubectl", text, why)

    def istioctl(self) -> Iterator[Check]:
        why = "istioctl installs its own version, whatever the params say"
        printed = run_tool(
            [self.params.istio.istioctl, "version", "--remote=false", "-o", "json"], timeout=_TOOL_TIMEOUT
        )
        version = str(json.loads(printed)["clientVersion"]["version"])
        wanted = self.params.istio.version
        if minor(version) < (1, 20):
            yield failed("istioctl", version, why, "install istioctl 1.20.1 or newer")
        elif minor(version) != minor(wanted):
            yield failed(
                "istioctl",
                f"{version}, but istio.version is {wanted}",
                why,
                f"point istio.istioctl at version {wanted}, or correct istio.version",
            )
        elif version != wanted:
            yield warned(
                "istioctl", f"{version}, istio.version is {wanted}", why, "use the same patch version"
            )
        else:
            yield passed("istioctl", version, why)

    def helm(self) -> Iterator[Check]:
        why = "optional: only to see the releases that own objects"
        try:
            find_tool("helm")
            printed = run_tool(["helm", "version", "--short"], timeout=_TOOL_TIMEOUT)
        except ClusterError:
            yield passed("helm", "not there (not needed)", why)
            return
        if minor(printed) < (3, 12):
            yield warned("helm", printed.strip(), why, "install Helm 3.12 or newer")
        else:
            yield passed("helm", printed.strip(), why)

    def apisix_pods(self) -> Iterator[Check]:
        why = "the way back leads here"
        namespace, name = self.params.apisix.namespace, self.params.apisix.service
        service = self.cluster.get("Service", name, namespace)
        selector = (service or {}).get("spec", {}).get("selector")
        if not selector:
            yield failed(
                "APISIX pods",
                f"Service {namespace}/{name} does not exist or selects no pods",
                why,
                "correct apisix.namespace and apisix.service",
            )
            return
        pods = self.cluster.list("Pod", namespace, labels=selector_text(selector))
        ready = [p for p in pods if pod_ready(p)]
        text = f"{len(ready)} of {len(pods)} pods ready"
        if not ready:
            yield failed("APISIX pods", text, why, f"kubectl -n {namespace} describe pods")
        elif len(ready) < len(pods):
            late = ", ".join(name_of(p) for p in pods if not pod_ready(p))
            yield warned("APISIX pods", f"{text} (not ready: {late})", why, "repair before moving traffic")
        elif len(ready) == 1:
            yield warned("APISIX pods", text, "one pod is no way back to rely on", "run at least two")
        else:
            yield passed("APISIX pods", text, why)

    def apisix_address(self) -> Iterator[Check]:
        why = "Route 53 points there now and after a rollback"
        route53 = self.params.traffic.route53
        if route53 and route53.apisix_target:
            yield passed("APISIX address", f"{route53.apisix_target} (from params)", why)
            return
        address = load_balancer_name(self.cluster, self.params.apisix.namespace, self.params.apisix.service)
        if route53 and route53.record == "alias" and address.replace(".", "").isdigit():
            yield failed(
                "APISIX address",
                f"{address} is an IP address",
                "an alias record needs the load balancer's DNS name",
                "set traffic.route53.apisix_target to a DNS name",
            )
        else:
            yield passed("APISIX address", address, why)

    def apisix_configuration(self) -> Iterator[Check]:
        why = "what cannot be read cannot be translated"
        apisix = self.params.apisix
        if not apisix.admin_url or apisix.admin_key is None:
            yield passed("APISIX configuration", f"from files: {', '.join(apisix.files)}", why)
            return
        with AdminClient(apisix.admin_url, apisix.admin_key.get_secret_value(), timeout=8.0) as client:
            configuration = client.read()
            version = client.version()
        counts = {kind.value: len(found) for kind, found in configuration.resources.items() if found}
        text = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        if not counts.get("routes"):
            yield failed(
                "APISIX configuration",
                f"no routes ({text or 'empty'})",
                why,
                "check that apisix.admin_url is the instance that serves users (standalone mode: use files)",
            )
        else:
            yield passed("APISIX configuration", text, why)
        yield passed("APISIX version", version or "hidden by the server", "translation knows the versions")
        errors = [f for f in configuration.findings if f.severity.value == "error"]
        if errors:
            yield failed(
                "APISIX resources",
                f"{len(errors)} unreadable, first: {errors[0].origin}: {errors[0].message}",
                why,
                errors[0].remedy or "correct them in APISIX",
            )

    def certificates(self) -> Iterator[Check]:
        why = "an expired or wrong certificate breaks the first client that arrives"
        route53 = self.params.traffic.route53
        hosts = route53.hosts if route53 else ()
        namespace = self.params.istio.namespace
        if self.cluster.get("Namespace", namespace) is None:
            yield passed("certificates", f"namespace {namespace} is still to be made", why)
            return
        found = [s for s in self.cluster.list("Secret", namespace) if s.get("type") == "kubernetes.io/tls"]
        if not found:
            yield warned(
                "certificates",
                f"no TLS Secret in {namespace}",
                "credentialName is looked up in the gateway's own namespace (istio-traps.md 21)",
                f"put the hosts' certificates into {namespace} if the gateway shall terminate TLS",
            )
            return
        for secret in found:
            problems = certificate_problems(secret, hosts)
            name = f"certificate {name_of(secret)}"
            if problems:
                yield failed(name, "; ".join(problems), why, "renew or replace the Secret")
            else:
                yield passed(name, "valid, key matches", why)


def _traffic(params: Params, read: Callable[[], object]) -> Iterator[Check]:
    why = "records must exist and answer before weights can be moved"
    weights: Any = read()
    problems = tuple(weights.problems)
    hosts = ", ".join(weights.hosts)
    if problems:
        yield failed(
            "DNS", "; ".join(problems), why, "correct the records named, or traffic.route53 in params"
        )
    elif not weights.hosts:
        yield failed("DNS", "no host was read", why, "set traffic.route53.hosts")
    elif weights.istio_percent not in {0, None}:
        yield warned(
            "DNS",
            f"Istio already has {weights.istio_percent} % of {hosts}",
            why,
            "an earlier migration is under way: `gateshift status`",
        )
    else:
        state = "weighted" if weights.prepared else "simple records, made weighted before stage 1"
        yield passed("DNS", f"{hosts}: {state}", why)
    route53 = params.traffic.route53
    if route53 is not None:
        bound = params.traffic.rollback_target / 2
        if route53.record != "alias" and route53.ttl > bound:
            yield failed(
                "DNS TTL",
                f"{route53.ttl:.0f} s",
                f"a rollback must reach users within {params.traffic.rollback_target:.0f} s",
                f"set traffic.route53.ttl to at most {bound:.0f}s",
            )
        else:
            yield passed(
                "DNS TTL", "60 s (alias)" if route53.record == "alias" else f"{route53.ttl:.0f} s", why
            )


def _metrics(params: Params, measure: Callable[[], float | None]) -> Iterator[Check]:
    why = "missing data never promote; better known now"
    requests = measure()
    if requests is None:
        yield failed(
            "metrics",
            "Prometheus has no fresh APISIX metrics",
            why,
            "enable APISIX's prometheus plugin and its scrape job; check metrics.apisix_selector",
        )
    elif requests <= 0:
        yield warned("metrics", "APISIX served no request just now", why, "judging needs traffic")
    else:
        yield passed(
            "metrics", f"{requests:.0f} APISIX requests in the last {params.metrics.step * 4:.0f} s", why
        )
