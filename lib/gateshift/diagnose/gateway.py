"""Tree 1, gateway unreachable: from the pods outwards to the load balancer and its name."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from gateshift.cluster.gateways import load_balancer_name, pod_ready
from gateshift.cluster.netpolicy import selects
from gateshift.cluster.objects import GATEWAY_API, name_of, title_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.waiting import deployment_standing, pod_problem, reasons
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.envoy import SilentEnvoyError
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.gateway_tls import certificates, server_names
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import ClusterError, GateshiftError

__all__ = ["PROBES"]

_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")


def _pods(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    pods = facts.workload
    if not pods:
        yield found(
            "gateway-no-pods",
            "; ".join(reasons(facts.cluster, istio.namespace, istio.gateway_service))
            or f"Deployment {istio.namespace}/{istio.gateway_service} has 0 pods",
            f"kubectl -n {istio.namespace} scale deployment {istio.gateway_service} "
            f"--replicas={istio.gateway.replicas_min}",
        )
        return
    bad = {name_of(p): problem for p in pods if (problem := pod_problem(p))}
    text = "; ".join([*bad.values()][:3])
    if len(bad) == len(pods):
        describe = f"kubectl -n {istio.namespace} describe pod {next(iter(bad))}"
        if any(reason in text for reason in _IMAGE):
            container = next(iter(pods[0]["spec"].get("containers") or [{}]))
            yield found(
                "gateway-image",
                f"image {container.get('image', '')}: {text}",
                f"kubectl -n {istio.namespace} set image deployment/{istio.gateway_service} "
                f"{container.get('name', 'istio-proxy')}=<an image that exists> (or run 10_install "
                "again)",
            )
        elif "Unschedulable" in text or "SchedulerError" in text:
            yield found("gateway-unschedulable", text, f"{describe}: correct what the scheduler names")
        else:
            yield found(
                "gateway-crash",
                text,
                f"kubectl -n {istio.namespace} logs {next(iter(bad))} --previous; when its reason is gone: "
                f"kubectl -n {istio.namespace} rollout restart deployment {istio.gateway_service}",
            )
    elif bad:
        yield found("gateway-some-not-ready", text, f"kubectl -n {istio.namespace} get pods; describe them")
    for pod in pods:
        for state in pod.get("status", {}).get("containerStatuses") or []:
            if int(state.get("restartCount", 0)) >= 3:
                yield found(
                    "gateway-restarts",
                    f"{name_of(pod)}/{state['name']}: {state['restartCount']} restarts",
                    f"kubectl -n {istio.namespace} logs {name_of(pod)} --previous",
                )
    ready = sum(1 for p in pods if pod_ready(p))
    if 0 < ready < istio.gateway.replicas_min:
        yield found(
            "gateway-too-few",
            f"{ready} of at least {istio.gateway.replicas_min}",
            f"kubectl -n {istio.namespace} describe hpa {istio.gateway_service}",
        )


def _istiod(facts: Facts) -> Iterator[Cause]:
    name, namespace = istiod_name(facts.params.istio), facts.params.istio.namespace
    deployment = facts.cluster.get("Deployment", name, namespace)
    standing = deployment_standing(deployment)
    wanted = (deployment or {}).get("spec", {}).get("replicas", 1)
    if deployment is not None and not wanted:
        standing = "scaled to 0 replicas"
    ready = (deployment or {}).get("status", {}).get("readyReplicas", 0)
    if standing:
        down = not ready
        yield found(
            "istiod-down",
            f"{namespace}/{name}: {standing}; {'; '.join(reasons(facts.cluster, namespace, name))}".rstrip(
                "; "
            ),
            f"kubectl -n {namespace} scale deployment {name} "
            f"--replicas={facts.params.istio.istiod.replicas_min}"
            if not wanted
            else f"kubectl -n {namespace} describe deployment {name}",
            level=Level.ERROR if down else Level.WARNING,
            confidence=None if down else 0.4,
        )


def _service(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    service = facts.service
    if service is None:
        yield found(
            "service-missing",
            f"{istio.namespace}/{istio.gateway_service}",
            "gateshift install --act restores it (or correct istio.gateway_service in the params file)",
        )
        return
    ports = {p["port"]: p for p in service["spec"].get("ports") or []}
    protocols = {s["port"]["number"]: s["port"].get("protocol", "") for s in facts.servers}
    for port, wanted in ((80, istio.http_target_port), (443, istio.https_target_port)):
        if port not in facts.ports:
            # A port that no Gateway has a server for is missed by nobody.
            if port in protocols or not protocols:
                yield found(
                    "service-port",
                    f"it has {sorted(ports)}",
                    "gateshift install --act restores it",
                    port=port,
                )
            continue
        # A load balancer that ends TLS sends plain HTTP to port 443; Envoy's port is then another.
        plain = port == 443 and protocols.get(port, "").startswith("HTTP") and protocols[port] != "HTTPS"
        target = facts.ports[port]
        if port in ports and target not in {wanted, None} and not plain and not _works(facts, port):
            index = (service["spec"]["ports"]).index(ports[port])
            yield found(
                "service-target-port",
                f"{title_of(service)}: {port} -> {target}",
                f"kubectl -n {istio.namespace} patch service {istio.gateway_service} --type=json -p "
                f'\'[{{"op":"replace","path":"/spec/ports/{index}/targetPort","value":{wanted}}}]\'',
                port=port,
                is_=target,
                wanted=wanted,
            )
    if facts.context_target:
        return  # the params name the address: whatever leads to it is no matter of this Service's type
    try:
        load_balancer_name(facts.cluster, istio.namespace, istio.gateway_service)
    except ClusterError as error:
        wrong = service["spec"].get("type") != "LoadBalancer"
        yield found(
            "no-load-balancer",
            str(error),
            patch_command(service, {"type": "LoadBalancer"}) if wrong else error.hint,
        )


def _works(facts: Facts, port: int) -> bool:
    """Say whether the gateway answers at *port*: istiod opens listeners where its Service leads to."""
    name = facts.address
    target = facts.params.verify.connect_to.get(f"{name}:{port}", f"{name}:{port}")
    address, _, number = target.rpartition(":")
    try:
        with socket.create_connection((address.strip("[]"), int(number)), timeout=3):
            return facts.ports[port] in facts.listening
    except (OSError, GateshiftError):
        return False


def _endpoints(facts: Facts) -> Iterator[Cause]:
    istio = facts.params.istio
    service = facts.service
    if service is None:
        return
    selector = service["spec"].get("selector") or {}
    labels = [p["metadata"].get("labels") or {} for p in facts.workload]
    if labels and not any(selector.items() <= have.items() for have in labels):
        shared = {k: v for k, v in labels[0].items() if k in {"app", "istio"}}
        yield found(
            "service-selector",
            f"selector {selector}; the pods have {shared}",
            patch_command(
                service, {"selector": {**dict.fromkeys(sorted(set(selector) - set(shared))), **shared}}
            ),
        )
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
        yield found(
            "service-no-endpoint",
            f"selector {selector}, {len(slices)} endpoint slices without a ready address",
            f"kubectl -n {istio.namespace} get pods: endpoints follow the pods' readiness",
        )


def _reach(facts: Facts) -> Iterator[Cause]:
    name = facts.address
    direct = facts.params.verify.connect_to
    for port in (80, 443):
        target = direct.get(f"{name}:{port}", f"{name}:{port}")
        address, _, number = target.rpartition(":")
        served = any(s["port"]["number"] == port for s in facts.servers)
        try:
            socket.getaddrinfo(address.strip("[]"), int(number), proto=socket.IPPROTO_TCP)
        except OSError as error:
            yield found(
                "load-balancer-dns",
                f"{address}: {error}",
                "wait for the cloud to publish it; compare with the Service's status.loadBalancer",
            )
            return
        try:
            with socket.create_connection((address.strip("[]"), int(number)), timeout=3):
                continue
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            yield found(
                "load-balancer-silent",
                f"{name}:{port}: {error}",
                "check the Gateway resource for this port, and the load balancer's target health",
                level=Level.ERROR if served else Level.WARNING,
                confidence=None if served else 0.2,
                port=port,
                how="refuses connections: nothing listens behind it" if refused else "does not answer",
            )


def _selector(facts: Facts) -> Iterator[Cause]:
    gateways = [g for g in facts.gateways if not g["apiVersion"].startswith(GATEWAY_API)]
    if not facts.gateways:
        others = len(facts.foreign_gateways)
        yield found(
            "gateway-missing",
            f"0 Gateways in the cluster{f' but for {others} of other gateways' if others else ''}",
            "gateshift apply --act",
        )
    labels = [p["metadata"].get("labels") or {} for p in facts.workload]
    ports = facts.ports
    for gateway in gateways:
        selector = gateway["spec"].get("selector") or {}
        if labels and not any(selector.items() <= have.items() for have in labels):
            wanted = {k: labels[0].get(k) for k in selector} if set(selector) <= set(labels[0]) else None
            yield found(
                "gateway-selector",
                f"selector {selector}; the pods have {labels[0]}",
                patch_command(gateway, {"selector": wanted})
                if wanted
                else "set the selector to the labels of the pods; with Helm it is istio: <release>",
                name=title_of(gateway),
            )
        for server in gateway["spec"].get("servers") or []:
            number = server.get("port", {}).get("number")
            if ports and number not in ports:
                yield found(
                    "gateway-port",
                    f"the Service has {sorted(ports)}",
                    "a Gateway names the Service's port, not the target port: "
                    f"kubectl -n {gateway['metadata']['namespace']} edit gateways.networking.istio.io "
                    f"{name_of(gateway)}",
                    name=title_of(gateway),
                    port=number,
                )


def _listeners(facts: Facts) -> Iterator[Cause]:
    """Is the listener really open, in Envoy itself."""
    istio = facts.params.istio
    try:
        facts.listening  # noqa: B018 - it is asked
    except SilentEnvoyError as error:
        # The kubelet notices only at its next probe: for some seconds such a pod still counts as ready.
        yield found(
            "gateway-crash",
            f"{error}; its pod still counts as ready",
            f"kubectl -n {istio.namespace} describe pods; if it does not come back by itself: kubectl -n "
            f"{istio.namespace} rollout restart deployment {istio.gateway_service} (replaces every pod)",
        )
        return
    for port in sorted({s["port"]["number"] for s in facts.servers} & set(facts.ports)):
        if facts.ports[port] not in {*facts.listening, None}:
            yield found(
                "gateway-no-listener",
                f"Service port {port} leads to {facts.ports[port]}; Envoy listens on "
                f"{sorted(facts.listening)}",
                "see the other findings: selector, target port, TLS settings, rejected configuration",
                port=port,
            )


def _policies(facts: Facts) -> Iterator[Cause]:
    """Policies are additive: a pod is shut off when some select it and none of them lets anybody in."""
    policies = [
        p
        for p in facts.objects("NetworkPolicy", facts.params.istio.namespace)
        if "Ingress" in (p["spec"].get("policyTypes") or ["Ingress"])
    ]
    istio = facts.params.istio
    for labels in facts.pod_labels[:1]:
        group = [p for p in policies if selects(p["spec"].get("podSelector"), labels)]
        if group and not any(p["spec"].get("ingress") for p in group):
            opened = [{"port": istio.http_target_port}, {"port": istio.https_target_port}]
            yield found(
                "network-policy",
                f"{', '.join(map(title_of, group[:4]))} select the gateway's pods; none allows any ingress",
                patch_command(group[0], {"ingress": [{"ports": opened}]}),
            )


def _old_gateway(facts: Facts) -> Iterator[Cause]:
    apisix = facts.params.apisix
    if facts.get("Service", apisix.service, apisix.namespace) is None:
        yield found(
            "no-way-back",
            f"{apisix.namespace}/{apisix.service}",
            "restore APISIX from the clean-up export before moving traffic",
        )


_TREE = frozenset({"gateway"})
PROBES = (
    Probe("istiod", _TREE | {"404", "webhook"}, "kubectl -n <ns> get deployment <istiod>", _istiod),
    Probe("gateway pods", _TREE | {"503"}, "kubectl -n <ns> get pods -l <labels> -o wide", _pods),
    Probe("Service", _TREE, "kubectl -n <ns> get service <service> -o yaml", _service),
    Probe(
        "endpoints",
        _TREE | {"404"},
        "kubectl -n <ns> get endpointslices -l kubernetes.io/service-name=<service>",
        _endpoints,
    ),
    Probe(
        "Gateway selector", _TREE | {"404"}, "kubectl get gateways.networking.istio.io -A -o yaml", _selector
    ),
    Probe("TLS secret", _TREE, "istioctl proxy-config secret <pod>", certificates),
    Probe("SNI", _TREE, "istioctl proxy-config listeners <pod> -o json", server_names),
    Probe("network policies", _TREE, "kubectl -n <ns> get networkpolicies -o yaml", _policies),
    Probe("listeners in Envoy", _TREE, "istioctl proxy-config listeners <pod>", _listeners),
    Probe(
        "load balancer",
        _TREE,
        "curl -v http://$(kubectl -n <ns> get service <service> "
        "-o jsonpath='{.status.loadBalancer.ingress[0].hostname}')/",
        _reach,
    ),
    Probe("old gateway", _TREE, "kubectl -n <apisix-ns> get service <apisix>", _old_gateway),
)
