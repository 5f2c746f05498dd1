"""Preflight of what surrounds the cluster: tools, DNS, certificates, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from gateshift.cluster.certificates import certificate_problems, covers, names_in
from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import load_balancer_name
from gateshift.cluster.objects import name_of
from gateshift.cluster.preflight_cluster import minor
from gateshift.cluster.reach import Reach
from gateshift.cluster.tools import find_tool, run_tool
from gateshift.errors import ClusterError, TrafficError
from gateshift.params.model import Params

__all__ = ["items"]

_TOOL_TIMEOUT = 10.0
_AWS_KIND = "service.beta.kubernetes.io/aws-load-balancer-type"


def items(
    params: Params,
    cluster: Cluster,
    reach: Reach,
    *,
    read_traffic: Callable[[], object] | None,
    read_metrics: Callable[[], float | None] | None,
) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster, reach)
    found = [
        Item("kubectl", "operators check by hand with it", checks.kubectl),
        Item("istioctl", "it installs Istio and reads the gateways", checks.istioctl),
        Item("helm", "optional", checks.helm),
        Item("load balancer quota", "the new gateway brings one more", checks.balancers),
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
    def __init__(self, params: Params, cluster: Cluster, reach: Reach) -> None:
        self.params = params
        self.cluster = cluster
        self.reach = reach

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
        yield from self._control_planes(version)

    def _control_planes(self, version: str) -> Iterator[Check]:
        why = "istioctl reads and installs beside control planes at most one minor version away"
        for deployment in self.cluster.list("Deployment", labels="app=istiod"):
            containers = deployment["spec"].get("template", {}).get("spec", {}).get("containers") or []
            tags = [str(c.get("image", "")).rpartition(":")[2] for c in containers]
            running = next((t for t in tags if minor(t) != (0, 0)), "")
            where = f"{deployment['metadata']['namespace']}/{name_of(deployment)}"
            if not running:
                continue  # an image by digest or a development tag does not tell its version
            text = f"istiod {where} is {running}, istioctl {version}"
            if abs(minor(running)[1] - minor(version)[1]) > 1:
                yield failed("istioctl and istiod", text, why, "upgrade one minor version at a time")
            else:
                yield passed("istioctl and istiod", text, why)

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

    def balancers(self) -> Iterator[Check]:
        """Room for one more network load balancer, where APISIX's is AWS's and none is made yet."""
        why = "beyond the account's quota the new Service stays without an address, and nothing says why"
        from gateshift.traffic.balancers import network_room, region_of  # noqa: PLC0415 - brings boto3

        istio, apisix = self.params.istio, self.params.apisix
        name = "load balancer quota"
        try:
            region = region_of(load_balancer_name(self.cluster, apisix.namespace, apisix.service))
        except ClusterError:
            region = ""  # the check of APISIX's address tells it
        if not region:
            yield passed(name, "APISIX's load balancer is not AWS's: no quota of an account to ask for", why)
            return
        service = self.cluster.get("Service", istio.gateway_service, istio.namespace) or {}
        if (service.get("status", {}).get("loadBalancer") or {}).get("ingress"):
            yield passed(name, "the gateway has its load balancer already", why)
            return
        kind = istio.gateway_annotations.get(_AWS_KIND, "")
        if "nlb" not in f"{kind} {istio.load_balancer_class}" and kind != "external":
            yield warned(
                name,
                "a Classic Load Balancer would be made; its quota is not asked",
                why,
                f"set {_AWS_KIND} in istio.gateway_annotations, or compare the quota of {region} by hand",
            )
            return
        try:
            room = network_room(region)
        except TrafficError as error:
            yield warned(name, str(error), why, error.hint)
            return
        text = f"{room.used} of {room.allowed} network load balancers in {room.region}"
        if room.used >= room.allowed:
            remedy = f"remove unused ones, or ask AWS for more (Service Quotas, {room.region})"
            yield failed(name, text, why, remedy)
        else:
            yield passed(name, text, why)

    def certificates(self) -> Iterator[Check]:
        why = "an expired or wrong certificate breaks the first client that arrives"
        hosts = self.reach.secure_hosts()
        namespace = self.params.istio.namespace
        named = set(self.params.translate.credentials.values())
        if self.cluster.get("Namespace", namespace) is None:
            yield passed("certificates", f"namespace {namespace} is still to be made", why)
            return
        secrets = [s for s in self.cluster.list("Secret", namespace) if s.get("type") == "kubernetes.io/tls"]
        lost = sorted(named - {name_of(s) for s in secrets})
        if lost:
            yield failed(
                "certificates",
                f"translate.credentials names {', '.join(lost)}, not in {namespace}",
                "credentialName is looked up in the gateway's own namespace (istio-traps.md 21)",
                f"create these TLS Secrets in {namespace}",
            )
        elif not secrets:
            yield warned(
                "certificates",
                f"no TLS Secret in {namespace}",
                "credentialName is looked up in the gateway's own namespace (istio-traps.md 21)",
                f"put the hosts' certificates into {namespace} if the gateway shall terminate TLS",
            )
        for secret in secrets:
            name = f"certificate {name_of(secret)}"
            ours = [h for h in hosts if any(covers(n, h) for n in names_in(secret))]
            if not ours and name_of(secret) not in named and names_in(secret):
                continue  # another service's certificate
            problems = certificate_problems(secret, ours or hosts)
            if problems:
                yield failed(name, "; ".join(problems), why, "renew or replace the Secret")
            else:
                yield passed(name, f"valid, key matches, covers {', '.join(ours) or 'no host of ours'}", why)
        if not hosts:
            yield passed("certificates", "no host of ours is known to be called by TLS", why)
        bare = [h for h in hosts if not any(covers(n, h) for s in secrets for n in names_in(s))]
        if bare and secrets:
            yield failed(
                "hosts without certificate",
                f"no certificate in {namespace} covers {', '.join(bare)}",
                why,
                f"put a TLS Secret for them into {namespace}, or take them out of the hosts that are moved",
            )


def _traffic(params: Params, read: Callable[[], object]) -> Iterator[Check]:
    why = "records must exist and answer before weights can be moved"
    weights: Any = read()
    problems = tuple(weights.problems)
    hosts = ", ".join(weights.hosts)
    if problems:
        yield failed(
            "DNS", "; ".join(problems), why, f"correct the records named, or {_section(params)} in params"
        )
    elif not weights.hosts:
        yield failed("DNS", "no host was read", why, f"set {_section(params)}.hosts")
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
    yield from _ttl(params, weights)


def _section(params: Params) -> str:
    """Return the part of the params that says what is moved."""
    traffic = params.traffic
    named = {"route53": traffic.route53, "cloudflare": traffic.cloudflare}
    return "traffic." + next((name for name, given in named.items() if given is not None), "traffic_split")


def _ttl(params: Params, weights: Any) -> Iterator[Check]:
    """The TTL that will be set, and the one that clients' resolvers hold now."""
    route53, cloudflare = params.traffic.route53, params.traffic.cloudflare
    if route53 is None and cloudflare is None:
        return  # nothing that resolvers keep is moved
    bound = params.traffic.rollback_target / 2
    why = f"a rollback must reach users within {params.traffic.rollback_target:.0f} s"
    live = {h: w.ttl for h, w in weights.hosts.items() if getattr(w, "ttl", None) is not None}
    long = ", ".join(f"{h} {ttl} s" for h, ttl in sorted(live.items()) if ttl > bound)
    if route53 is not None and route53.record != "alias" and route53.ttl > bound:
        remedy = f"set traffic.route53.ttl to at most {bound:.0f}s"
        yield failed("DNS TTL", f"params: {route53.ttl:.0f} s", why, remedy)
    elif long and (weights.prepared or route53 is None):
        remedy = f"lower the TTL of these records to at most {bound:.0f} s and wait until the old one is over"
        yield failed("DNS TTL", f"in the zone now: {long}", why, remedy)
    elif long:
        remedy = "lower it today: else the first stage waits until caches have let go of the old answers"
        yield warned("DNS TTL", f"in the zone now: {long}", why, remedy)
    else:
        now = ", ".join(f"{h} {ttl} s" for h, ttl in sorted(live.items()))
        if route53 is None:
            yield passed("DNS TTL", f"in the zone now: {now or 'proxied'}", why)
            return
        text = "60 s (alias)" if route53.record == "alias" else f"{route53.ttl:.0f} s"
        yield passed("DNS TTL", f"{text}; in the zone now: {now or 'aliases'}", why)


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
