"""Preflight of Istio's traps that show before the migration (each with what it does to live traffic)."""

from __future__ import annotations

from collections.abc import Iterator

from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import API_GATEWAY, MANAGED_BY, MANAGER, Object, name_of, title_of
from gateshift.cluster.operator import gateway_selector
from gateshift.cluster.reach import Reach, overlap
from gateshift.params.model import Params

__all__ = ["items"]

_PROTOCOLS = ("http", "http2", "https", "grpc", "grpc-web", "tcp", "tls", "mongo", "redis", "mysql", "udp")
# Annotations by which clouds and controllers are told what load balancer to make; see docs/clusters.md.
_LB_PREFIXES = (
    "service.beta.kubernetes.io/",
    "service.kubernetes.io/",
    "cloud.google.com/",
    "networking.gke.io/",
    "service.cloud.tencent.com/",
    "metallb.universe.tf/",
    "metallb.io/",
    "loadbalancer.openstack.org/",
    "kubernetes.civo.com/",
)
_TLS_AT_LB = "service.beta.kubernetes.io/aws-load-balancer-ssl-cert"


def items(params: Params, cluster: Cluster, reach: Reach) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster, reach)
    return (
        Item("service ports", "Istio picks the protocol from the port's name", checks.ports),
        Item("service kinds", "some Services are not routed as they look", checks.kinds),
        Item("load balancer", "the new one must be of the old one's kind", checks.balancer),
        Item("other Istio objects", "objects of others act on the same hosts and proxies", checks.others),
        Item("Gateway API", "hosts are to be emitted as its routes", checks.gateway_api),
        Item("storage", "APISIX's own store must survive until the way back is closed", checks.storage),
    )


class _Checks:
    def __init__(self, params: Params, cluster: Cluster, reach: Reach) -> None:
        self.params = params
        self.cluster = cluster
        self.reach = reach

    def _services(self) -> list[Object]:
        """The application's Services, and the backends in other namespaces."""
        home, *others = self.reach.namespaces()
        found = self.cluster.list("Service", home)
        backends = self.reach.backends()
        for namespace in others:
            found += [
                s for s in self.cluster.list("Service", namespace) if (namespace, name_of(s)) in backends
            ]
        return found

    def _name(self, service: Object) -> str:
        """The Service's name, with its namespace where that is not the application's."""
        namespace = service["metadata"].get("namespace")
        home = namespace == self.params.cluster.application_namespace
        return name_of(service) if home else f"{namespace}/{name_of(service)}"

    def ports(self) -> Iterator[Check]:
        why = "a port without a protocol is guessed, and gRPC without HTTP/2 fails (istio-traps.md 28, 36)"
        unnamed, opaque = [], []
        for service in self._services():
            for port in service["spec"].get("ports") or []:
                protocol = str(port.get("appProtocol") or str(port.get("name", "")).partition("-")[0])
                where = f"{self._name(service)}:{port.get('port')}"
                known = protocol.lower() in _PROTOCOLS or "appProtocol" in port
                if port.get("protocol", "TCP") == "TCP" and not known:
                    unnamed.append(f"{where} ({port.get('name', 'no name')})")
                elif protocol == "https":
                    opaque.append(where)
        if unnamed:
            yield warned(
                "service ports",
                f"no protocol in the port's name: {', '.join(unnamed[:6])}",
                why,
                "name ports http-…, grpc-…, tcp-… or set appProtocol",
            )
        else:
            yield passed("service ports", "every port names its protocol", why)
        if opaque:
            yield warned(
                "https ports",
                ", ".join(opaque[:6]),
                "a port named https is opaque TLS to Istio: no routes, retries or metrics inside",
                "have the backend speak HTTP, or originate TLS with a DestinationRule",
            )

    def kinds(self) -> Iterator[Check]:
        why = "headless and ExternalName Services are not balanced as others (istio-traps.md 37, 38)"
        services = self._services()
        headless = [self._name(s) for s in services if s["spec"].get("clusterIP") == "None"]
        alias = [self._name(s) for s in services if s["spec"].get("type") == "ExternalName"]
        if alias:
            yield warned("service kinds", f"ExternalName: {', '.join(alias)}", why, "use a ServiceEntry")
        if headless:
            yield warned(
                "headless services",
                ", ".join(headless),
                why,
                "route to a Service with a cluster IP, or test these routes in 40_verify",
            )
        if not alias and not headless:
            yield passed("service kinds", "no headless or ExternalName Service", why)

    def balancer(self) -> Iterator[Check]:
        why = (
            "an internal APISIX beside a public gateway opens what was closed; another kind loses client IPs"
        )
        apisix, istio = self.params.apisix, self.params.istio
        service = self.cluster.get("Service", apisix.service, apisix.namespace)
        if service is None:
            yield failed(
                "load balancer",
                f"Service {apisix.namespace}/{apisix.service} does not exist",
                why,
                "correct apisix.namespace and apisix.service",
            )
            return
        annotations = service["metadata"].get("annotations") or {}
        old = {k: v for k, v in annotations.items() if k.startswith(_LB_PREFIXES)}
        new = dict(istio.gateway_annotations)
        lacking = sorted(k for k in old if new.get(k) != old[k] and k != _TLS_AT_LB)
        if lacking:
            yield warned(
                "load balancer",
                f"APISIX's has {', '.join(f'{k}={old[k]}' for k in lacking)}; istio.gateway_annotations not",
                why,
                "copy them into istio.gateway_annotations, or decide for another load balancer",
            )
        else:
            yield passed("load balancer", f"{len(old)} annotations, all set for the new gateway", why)
        if old.get(_TLS_AT_LB):
            yield warned(
                "TLS at the load balancer",
                old[_TLS_AT_LB],
                "the load balancer decrypts: a Gateway redirecting to HTTPS then loops (istio-traps.md 13)",
                "give the new load balancer the same certificate, or terminate TLS at the gateway",
            )
        local = service["spec"].get("externalTrafficPolicy") == "Local"
        if local and istio.external_traffic_policy != "Local":
            yield warned(
                "client addresses",
                "APISIX's Service has externalTrafficPolicy Local, the new gateway's would not",
                "without it backends and IP rules see the node's address (istio-traps.md 64)",
                "set istio.external_traffic_policy: Local",
            )
        wanted = service["spec"].get("loadBalancerClass")
        if wanted and wanted != istio.load_balancer_class:
            yield warned(
                "load balancer class",
                f"APISIX's Service has {wanted}",
                "another controller would make the new load balancer",
                f"set istio.load_balancer_class: {wanted}",
            )

    def others(self) -> Iterator[Check]:
        why = (
            "two configurations of one host or proxy are merged by age, not by intent (istio-traps.md 5, 23)"
        )
        found: list[Check] = []
        if not self.cluster.serves("VirtualService"):
            yield passed("other Istio objects", "no Istio yet", why)
            return
        hosts = self.reach.hosts()
        if not hosts:
            found.append(
                warned(
                    "other Istio objects",
                    "it is not known which hosts users call",
                    why,
                    "name hosts under verify.probes, or see that the configuration can be read",
                )
            )
        selector = gateway_selector(self.params.istio)
        for kind in ("VirtualService", "Gateway"):
            for obj in self.cluster.list(kind):
                if (obj["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER:
                    continue
                spec = obj.get("spec") or {}
                if kind == "Gateway":
                    if not (spec.get("selector") or {}).items() <= selector.items():
                        continue
                    own = {
                        h.rpartition("/")[2] for s in spec.get("servers") or [] for h in s.get("hosts") or []
                    }
                else:
                    own = set(spec.get("hosts") or [])
                both = sorted(h for h in hosts if any(overlap(h, one) for one in own))
                if both:
                    found.append(
                        failed(
                            "other Istio objects",
                            f"{title_of(obj)} also serves {', '.join(both)}",
                            why,
                            "remove it, or take these hosts out of it",
                        )
                    )
        found += self._on_the_gateway(selector)
        yield from found or [passed("other Istio objects", "none on these hosts or on the gateway", why)]

    def gateway_api(self) -> Iterator[Check]:
        why = "hosts are to be emitted as its routes"
        if self.params.translate.output != "gateway-api":
            yield passed("Gateway API", "not asked for (translate.output)", why)
            return
        missing = [
            k for k in (API_GATEWAY, "HTTPRoute", "GRPCRoute", "ReferenceGrant") if not self.cluster.serves(k)
        ]
        if missing:
            yield failed(
                "Gateway API",
                f"the cluster does not serve {', '.join(k.rpartition('/')[2] for k in missing)}",
                why,
                "apply standard-install.yaml of the Gateway API 1.2 or newer, or set translate.output: istio",
            )
        else:
            yield passed("Gateway API", "Gateway, HTTPRoute, GRPCRoute and ReferenceGrant are served", why)

    def _on_the_gateway(self, labels: dict[str, str]) -> list[Check]:
        namespace = self.params.istio.namespace
        found = []
        for kind, key in (("EnvoyFilter", "workloadSelector"), ("AuthorizationPolicy", "selector")):
            for obj in self.cluster.list(kind, namespace):
                if (obj["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER:
                    continue
                spec = obj.get("spec") or {}
                chosen = spec.get(key) or {}
                wanted = chosen.get("labels") or chosen.get("matchLabels") or {}
                if not wanted.items() <= {**labels, "app": self.params.istio.gateway_service}.items():
                    continue
                if kind == "AuthorizationPolicy" and spec.get("action", "ALLOW") == "ALLOW":
                    found.append(
                        failed(
                            "ALLOW policy at the gateway",
                            title_of(obj),
                            "one ALLOW policy denies everything it does not name (istio-traps.md 45)",
                            "narrow its selector, or name the new hosts in it",
                        )
                    )
                elif kind == "EnvoyFilter" and not wanted:
                    found.append(
                        warned(
                            "EnvoyFilter for every proxy",
                            title_of(obj),
                            "a filter in the root namespace without a selector changes the new gateway too "
                            "(istio-traps.md 51)",
                            "give it a workloadSelector",
                        )
                    )
        return found

    def storage(self) -> Iterator[Check]:
        why = "the way back needs APISIX's configuration, which lies in its etcd"
        namespace = self.params.apisix.namespace
        claims = self.cluster.list("PersistentVolumeClaim", namespace)
        if not claims:
            yield passed("storage", f"no volumes in {namespace}", why)
            return
        loose = [name_of(c) for c in claims if c.get("status", {}).get("phase") != "Bound"]
        if loose:
            yield failed("storage", f"not bound: {', '.join(loose)}", why, "repair APISIX's store first")
            return
        lost = []
        for claim in claims:
            volume = self.cluster.get("PersistentVolume", str(claim["spec"].get("volumeName", "")))
            if (volume or {}).get("spec", {}).get("persistentVolumeReclaimPolicy", "Delete") != "Retain":
                lost.append(f"{name_of(claim)} ({claim['spec'].get('volumeName')})")
        if lost:
            yield warned(
                "storage",
                f"{len(claims)} volumes; destroyed with their claims: {', '.join(lost)}",
                "after the clean-up nothing could bring etcd's data back",
                'kubectl patch pv NAME -p \'{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}\'',
            )
        else:
            yield passed("storage", f"{len(claims)} volumes bound and retained", why)
