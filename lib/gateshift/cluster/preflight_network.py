"""Preflight of the way between gateways and backends: mTLS and network policies, wherever a backend is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import selector_text
from gateshift.cluster.netpolicy import Peer, Port, Target, egress_problems, ingress_problems, ports_of
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.cluster.operator import gateway_selector
from gateshift.cluster.reach import Reach
from gateshift.params.model import Params

__all__ = ["items"]

_XDS = 15012
_DNS = ("kube-system", "kube-dns")
"""The cluster's DNS, by the name that every DNS add-on gives its Service."""


def items(params: Params, cluster: Cluster, reach: Reach) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster, reach)
    return (
        Item("mTLS mode", "STRICT cuts APISIX off its backends and kills the way back", checks.strict),
        Item("network policies", "a policy can cut either gateway off", checks.policies),
    )


class _Checks:
    def __init__(self, params: Params, cluster: Cluster, reach: Reach) -> None:
        self.params = params
        self.cluster = cluster
        self.reach = reach

    def strict(self) -> Iterator[Check]:
        why = "STRICT rejects APISIX's plaintext to the pods at once: old path and rollback are dead"
        if not self.cluster.serves("PeerAuthentication"):
            yield passed("mTLS mode", "no Istio yet, so PERMISSIVE by default", why)
            return
        mine = {self.params.istio.namespace, *self.reach.namespaces()}
        found = [
            title_of(p)
            for p in self.cluster.list("PeerAuthentication")
            if p["metadata"]["namespace"] in mine and _strict(p.get("spec") or {})
        ]
        if found:
            yield failed(
                "mTLS mode",
                f"STRICT: {', '.join(found)}",
                why,
                "set PERMISSIVE until APISIX is removed; STRICT is the last step",
            )
        else:
            yield passed("mTLS mode", "no STRICT policy in reach", why)

    def policies(self) -> Iterator[Check]:
        why = "the new gateway comes from another namespace than APISIX did"
        istio, namespaces = self.params.istio, self.reach.namespaces()
        labels = {"app": istio.gateway_service, **gateway_selector(istio)}
        gateway = self._peer(istio.namespace, labels)
        shut: list[str] = []
        unsure: list[str] = []
        targets: list[Target] = []
        for namespace in namespaces:
            services, pods = self._backends(namespace)
            found = self.cluster.list("NetworkPolicy", namespace)
            closed, perhaps = ingress_problems(found, pods, gateway, services)
            shut += closed
            unsure += perhaps
            targets += self._targets(namespace, pods, services)
        if shut:
            yield failed(
                "network policies",
                f"{', '.join(shut)}: APISIX is let in, {istio.namespace} is not",
                why,
                f"allow ingress from namespace {istio.namespace} as from {self.params.apisix.namespace}",
            )
        elif unsure:
            yield warned(
                "network policies",
                f"{', '.join(unsure)}: only IP blocks let anybody in, or only some of the backends' ports",
                why,
                f"check that the blocks hold the pods of {istio.namespace}, or allow the namespace; and the "
                "ports",
            )
        else:
            where = ", ".join(namespaces)
            yield passed("network policies", f"none in {where} shuts the new gateway out", why)
        yield from self._gateway_policies(labels, targets)
        yield from self._foreign_policies()

    def _backends(self, namespace: str) -> tuple[list[Object], list[Object]]:
        """Return the Services of *namespace* that routes send to, and the pods behind them.

        Where that is not known, or the Services select no pods (endpoints of another kind), all of them.
        """
        services = self.cluster.list("Service", namespace)
        pods = self.cluster.list("Pod", namespace)
        wanted = {name: ports for (home, name), ports in self.reach.backends().items() if home == namespace}
        chosen = [_only_ports(s, wanted[name_of(s)]) for s in services if name_of(s) in wanted]
        behind = [p for p in pods if ports_of(p, chosen) is not None]
        return (chosen, behind) if behind else (services, pods)

    def _targets(self, namespace: str, pods: list[Object], services: list[Object]) -> list[Target]:
        """Return what a gateway must reach in *namespace*: alike pods once."""
        known = self._peer(namespace, {})
        found: dict[tuple[object, ...], Target] = {}
        for pod in pods:
            ports = ports_of(pod, services)
            if ports is not None:
                labels = pod["metadata"].get("labels") or {}
                found[(*sorted(labels.items()), *ports)] = Target(replace(known, labels=labels), ports)
        return list(found.values()) or [Target(known)]

    def _peer(self, namespace: str, labels: dict[str, str]) -> Peer:
        live = self.cluster.get("Namespace", namespace) or {"metadata": {}}
        known = {"kubernetes.io/metadata.name": namespace, **(live["metadata"].get("labels") or {})}
        return Peer(namespace, known, labels)

    def _dns(self) -> list[Target]:
        namespace, name = _DNS
        service = self.cluster.get("Service", name, namespace)
        selector = (service or {}).get("spec", {}).get("selector")
        if service is None or not selector:
            return []  # a resolver on each node, or outside the cluster
        pods = self.cluster.list("Pod", namespace, labels=selector_text(selector))
        return self._targets(namespace, pods, [service]) if pods else []

    def _gateway_policies(self, labels: dict[str, str], backends: list[Target]) -> Iterator[Check]:
        why = "each gateway must reach its backends, the new one its istiod as well"
        istio, apisix = self.params.istio, self.params.apisix
        istiod = Target(self._peer(istio.namespace, {"app": "istiod"}), (Port(_XDS, names=None),))
        common = [*backends, *self._dns()]
        targets = {istio.namespace: [*common, istiod], apisix.namespace: common}
        service = self.cluster.get("Service", apisix.service, apisix.namespace) or {"spec": {}}
        pods = {istio.namespace: labels, apisix.namespace: dict(service["spec"].get("selector") or {})}
        for namespace, wanted in targets.items():
            found = self.cluster.list("NetworkPolicy", namespace)
            shut, unsure = egress_problems(found, pods[namespace], wanted)
            if shut:
                yield failed(
                    "policies of the gateways",
                    f"{', '.join(shut)} keeps the gateway in {namespace} from its backends, istiod or DNS",
                    why,
                    "allow egress to the backends' ports, to istiod on 15012 and to the cluster's DNS on 53",
                )
            elif found:
                told = ", ".join(title_of(p) for p in found)
                note = " (by IP blocks only, or not for all ports)" if unsure else ""
                yield warned(
                    "policies of the gateways",
                    f"{told}{note}",
                    "they must let in the load balancer and let out istiod and backends",
                    "check ports 8080, 8443, 15012, 15017, 15021 and the backends' ports",
                )

    def _foreign_policies(self) -> Iterator[Check]:
        kinds = ("cilium.io/v2/CiliumNetworkPolicy", "crd.projectcalico.org/v1/GlobalNetworkPolicy")
        there = [k.rpartition("/")[2] for k in kinds if self.cluster.serves(k)]
        if there:
            yield warned(
                "other policies",
                f"the cluster knows {', '.join(there)}",
                "they cut traffic as NetworkPolicies do and are not judged here",
                "check by hand that they let the new gateway reach backends and istiod",
            )


def _only_ports(service: Object, ports: set[int]) -> Object:
    """Return *service* with those of its *ports* only; all of them when no route names one."""
    listed = service["spec"].get("ports") or []
    chosen = [p for p in listed if p.get("port") in ports] if ports else listed
    return {**service, "spec": {**service["spec"], "ports": chosen or listed}}


def _strict(spec: Object) -> bool:
    ports = (spec.get("portLevelMtls") or {}).values()
    return any((mtls or {}).get("mode") == "STRICT" for mtls in [spec.get("mtls"), *ports])
