"""Tree 1, gateway unreachable: from the pods outwards to the load balancer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from gateshift.cluster.certificates import certificate_problems
from gateshift.cluster.gateways import load_balancer_name, pod_ready
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.waiting import deployment_standing, pod_problem, reasons
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import ClusterError

__all__ = ["PROBES"]

_REFERENCE = "guide: tree 1"


def _pods(facts: Facts) -> Iterator[Cause]:
    pods = facts.pods
    namespace = facts.params.istio.namespace
    if not pods:
        yield Cause(
            Level.ERROR,
            "no gateway pod exists",
            "; ".join(reasons(facts.cluster, namespace, facts.params.istio.gateway_service)),
            f"kubectl -n {namespace} scale deployment {facts.params.istio.gateway_service} --replicas="
            f"{facts.params.istio.gateway.replicas_min}",
            confidence=0.98,
            reference=_REFERENCE,
        )
        return
    bad = [problem for p in pods if (problem := pod_problem(p))]
    if bad:
        every = len(bad) == len(pods)
        yield Cause(
            Level.ERROR,
            "no gateway pod is ready" if every else "some gateway pods are not ready",
            "; ".join(bad[:4]),
            f"kubectl -n {namespace} logs {name_of(pods[0])}; then remove the reason named",
            confidence=0.95 if every else 0.6,
            reference=_REFERENCE,
        )
    for pod in pods:
        for state in pod.get("status", {}).get("containerStatuses") or []:
            if int(state.get("restartCount", 0)) >= 3:
                yield Cause(
                    Level.WARNING,
                    "a gateway container restarts again and again",
                    f"{name_of(pod)}/{state['name']}: {state['restartCount']} restarts",
                    f"kubectl -n {namespace} logs {name_of(pod)} --previous",
                    confidence=0.6,
                    reference=_REFERENCE,
                )


def _istiod(facts: Facts) -> Iterator[Cause]:
    name, namespace = istiod_name(facts.params.istio), facts.params.istio.namespace
    standing = deployment_standing(facts.cluster.get("Deployment", name, namespace))
    if standing:
        yield Cause(
            Level.ERROR,
            "istiod is not ready: gateways start without configuration",
            f"{namespace}/{name}: {standing}; {'; '.join(reasons(facts.cluster, namespace, name))}",
            f"kubectl -n {namespace} describe deployment {name}",
            confidence=0.85,
            reference=_REFERENCE,
        )


def _service(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    service = facts.service
    if service is None:
        yield Cause(
            Level.ERROR,
            "the gateway's Service does not exist",
            f"{istio.namespace}/{istio.gateway_service}",
            "run 10_install, or correct istio.gateway_service",
            confidence=0.99,
            reference=_REFERENCE,
        )
        return
    ports = {p["port"]: p.get("targetPort", p["port"]) for p in service["spec"].get("ports") or []}
    for port, wanted in ((80, istio.http_target_port), (443, istio.https_target_port)):
        if port not in ports:
            yield Cause(
                Level.ERROR,
                f"the gateway's Service has no port {port}",
                f"it has {sorted(ports)}",
                "run 10_install again: it restores the ports",
                confidence=0.9,
                reference="istio-traps.md 22",
            )
        elif ports[port] != wanted:
            yield Cause(
                Level.ERROR,
                f"port {port} leads to target port {ports[port]}, Envoy listens on {wanted}",
                title_of(service),
                f"set targetPort {wanted} (run 10_install again)",
                confidence=0.9,
                reference="istio-traps.md 22",
            )
    try:
        load_balancer_name(facts.cluster, istio.namespace, istio.gateway_service)
    except ClusterError as error:
        yield Cause(
            Level.ERROR,
            "the gateway has no load balancer",
            str(error),
            error.hint,
            confidence=0.92,
            reference=_REFERENCE,
        )


def _endpoints(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    if facts.service is None:
        return
    slices = [
        s
        for s in facts.objects("EndpointSlice", istio.namespace)
        if (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == istio.gateway_service
    ]
    ready = [
        a
        for s in slices
        for e in s.get("endpoints") or []
        if (e.get("conditions") or {}).get("ready", True)
        for a in e.get("addresses") or []
    ]
    if not ready:
        yield Cause(
            Level.ERROR,
            "the gateway's Service has no ready endpoint",
            f"selector {facts.service['spec'].get('selector')}, {len(slices)} endpoint slices",
            "compare the Service's selector with the labels of the pods",
            confidence=0.88,
            reference=_REFERENCE,
        )


def _reach(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    name = load_balancer_name(facts.cluster, istio.namespace, istio.gateway_service)
    direct = facts.params.verify.connect_to
    for port in (80, 443):
        target = direct.get(f"{name}:{port}", f"{name}:{port}")
        address, _, number = target.rpartition(":")
        try:
            with socket.create_connection((address.strip("[]"), int(number)), timeout=3):
                continue
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            served = any(s["port"]["number"] == port for s in _servers(facts))
            yield Cause(
                Level.ERROR if served else Level.WARNING,
                f"port {port} of the load balancer "
                + ("refuses connections: nothing listens behind it" if refused else "does not answer"),
                f"{name}:{port}: {error}",
                "check the Gateway resource for this port and the load balancer's target health",
                confidence=0.7 if served else 0.2,
                reference=_REFERENCE,
            )


def _servers(facts: Facts) -> Iterator[Object]:
    for gateway in facts.objects("Gateway"):
        yield from gateway["spec"].get("servers") or []


def _selector(facts: Facts) -> Iterator[Cause]:
    gateways = facts.objects("Gateway")
    if not gateways:
        yield Cause(
            Level.ERROR,
            "there is no Gateway resource: Envoy opens no listener",
            "0 Gateways in the cluster",
            "run 30_apply",
            confidence=0.9,
            reference=_REFERENCE,
        )
    labels = [p["metadata"].get("labels") or {} for p in facts.pods]
    ports = {p["port"] for p in (facts.service or {}).get("spec", {}).get("ports") or []}
    for gateway in gateways:
        selector = gateway["spec"].get("selector") or {}
        if labels and not any(selector.items() <= have.items() for have in labels):
            yield Cause(
                Level.ERROR,
                f"{title_of(gateway)} selects no gateway pod",
                f"selector {selector}, pods have {labels[0]}",
                "set the selector to the labels of the pods; with Helm it is istio: <release>",
                confidence=0.94,
                reference="istio-traps.md 4",
            )
        for server in gateway["spec"].get("servers") or []:
            number = server.get("port", {}).get("number")
            if ports and number not in ports:
                yield Cause(
                    Level.ERROR,
                    f"{title_of(gateway)} uses port {number}, which the Service does not have",
                    f"the Service has {sorted(ports)}",
                    "a Gateway names the Service's port, not the target port",
                    confidence=0.9,
                    reference="istio-traps.md 22",
                )


def _tls(facts: Facts) -> Iterator[Cause]:
    home = facts.params.istio.namespace
    for gateway in facts.objects("Gateway"):
        for server in gateway["spec"].get("servers") or []:
            name = (server.get("tls") or {}).get("credentialName")
            if not name:
                continue
            secret = facts.get("Secret", name, home)
            if secret is None:
                elsewhere = [
                    s["metadata"]["namespace"] for s in facts.objects("Secret") if name_of(s) == name
                ]
                yield Cause(
                    Level.ERROR,
                    f"the TLS Secret {name} is not in the gateway's namespace {home}",
                    f"{title_of(gateway)}; found in: {', '.join(elsewhere) or 'no namespace'}",
                    f"copy the Secret to {home}: it is looked up where the gateway's pods are",
                    confidence=0.93,
                    reference="istio-traps.md 21",
                )
                continue
            problems = certificate_problems(secret, (), soon_days=0)
            if problems:
                yield Cause(
                    Level.ERROR,
                    f"the certificate in Secret {home}/{name} is not usable",
                    "; ".join(problems),
                    "renew the certificate; the gateway takes the new one without a restart",
                    confidence=0.9,
                    reference=_REFERENCE,
                )


def _policies(facts: Facts) -> Iterator[Cause]:
    for policy in facts.objects("NetworkPolicy", facts.params.istio.namespace):
        spec = policy["spec"]
        chosen = (spec.get("podSelector") or {}).get("matchLabels") or {}
        labels = [p["metadata"].get("labels") or {} for p in facts.pods]
        if labels and not any(chosen.items() <= have.items() for have in labels):
            continue
        if "Ingress" in (spec.get("policyTypes") or ["Ingress"]) and not spec.get("ingress"):
            yield Cause(
                Level.ERROR,
                "a NetworkPolicy denies all traffic into the gateway",
                title_of(policy),
                "allow ingress to ports 80/443's target ports from anywhere",
                confidence=0.85,
                reference=_REFERENCE,
            )


def _old_gateway(facts: Facts) -> Iterator[Cause]:
    apisix = facts.params.apisix
    service = facts.get("Service", apisix.service, apisix.namespace)
    if service is None:
        yield Cause(
            Level.WARNING,
            "the old gateway's Service is gone: there is no way back",
            f"{apisix.namespace}/{apisix.service}",
            "restore APISIX from the clean-up export before moving traffic",
            confidence=0.3,
            reference="istio-traps.md 69",
        )


def _ready_share(facts: Facts) -> Iterator[Cause]:
    ready = sum(1 for p in facts.pods if pod_ready(p))
    if 0 < ready < facts.params.istio.gateway.replicas_min:
        yield Cause(
            Level.WARNING,
            "fewer gateway pods are ready than planned",
            f"{ready} of at least {facts.params.istio.gateway.replicas_min}",
            "look at the HPA and at the reasons of the pods that are not ready",
            confidence=0.35,
            reference=_REFERENCE,
        )


_TREE = frozenset({"gateway"})
PROBES = (
    Probe("gateway pods", _TREE | {"503"}, "kubectl -n istio-system get pods -l istio=ingressgateway", _pods),
    Probe("istiod", _TREE | {"404", "webhook"}, "kubectl -n istio-system get deployment istiod", _istiod),
    Probe("Service", _TREE, "kubectl -n istio-system get service istio-ingressgateway -o yaml", _service),
    Probe("endpoints", _TREE, "kubectl -n istio-system get endpointslices", _endpoints),
    Probe(
        "Gateway selector", _TREE | {"404"}, "kubectl get gateways.networking.istio.io -A -o yaml", _selector
    ),
    Probe("load balancer", _TREE, "curl -v http://<load balancer>/", _reach),
    Probe("TLS secret", _TREE, "istioctl proxy-config secret <gateway pod>", _tls),
    Probe("network policies", _TREE, "kubectl -n istio-system get networkpolicies -o yaml", _policies),
    Probe("old gateway", _TREE, "kubectl -n apisix get service apisix-gateway", _old_gateway),
    Probe("ready gateways", _TREE, "kubectl -n istio-system get hpa", _ready_share),
)
