"""The IstioOperator file and the Helm values equal to it, from params. Pure: no cluster is asked.

The guide installs ``profile=production``, which no Istio has ever had (istio-traps.md 1); the base is
``default`` and the guide's production numbers are set on top of it.
"""

from __future__ import annotations

from typing import Any

import yaml

from gateshift.params.model import Autoscaled, InstallParams, Params

__all__ = ["gateway_selector", "helm_values", "istiod_name", "operator", "render"]

# The gateway keeps serving while the load balancer still sends to it; 5 s (Istio's default) is shorter
# than the deregistration delay of cloud load balancers and gives 502s on scale-in (istio-traps.md 63).
_DRAIN_SECONDS = 30


def istiod_name(istio: InstallParams) -> str:
    """Return the name of istiod's Deployment; a revision has its own."""
    return f"istiod-{istio.revision}" if istio.revision else "istiod"


def gateway_selector(istio: InstallParams) -> dict[str, str]:
    """Return the label by which Gateway resources choose this gateway's pods, as Istio's charts build it.

    It follows from the Service's name, so that a gateway beside another Istio's has a label of its own.
    """
    return {"istio": istio.gateway_service.removeprefix("istio-")}


def operator(params: Params) -> dict[str, Any]:
    """Return the IstioOperator document for ``istioctl install -f``."""
    istio = params.istio
    spec: dict[str, Any] = {
        "profile": istio.profile,
        "namespace": istio.namespace,
        # Plain JSON log lines are what the canary and the audit read; the default profile has none.
        "meshConfig": {"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON", **istio.mesh_config},
        "components": {
            "pilot": {"k8s": _component(istio.istiod, {"app": "istiod"})},
            "ingressGateways": [
                {
                    "name": istio.gateway_service,
                    "enabled": True,
                    "label": {"app": istio.gateway_service, **gateway_selector(istio)},
                    "k8s": {
                        **_component(istio.gateway, {"app": istio.gateway_service}),
                        "env": [{"name": "TERMINATION_DRAIN_DURATION_SECONDS", "value": str(_DRAIN_SECONDS)}],
                        "service": _service(istio),
                        **_annotations(istio),
                    },
                }
            ],
        },
        "values": {"global": {"istioNamespace": istio.namespace}},
    }
    if istio.revision:
        spec["revision"] = istio.revision
    return {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "metadata": {"name": "gateshift", "namespace": istio.namespace},
        "spec": spec,
    }


def render(params: Params) -> str:
    """Return the IstioOperator document as YAML."""
    return yaml.safe_dump(operator(params), sort_keys=False)


def helm_values(params: Params) -> dict[str, dict[str, Any]]:
    """Return values for the charts ``base``, ``istiod`` and ``gateway`` that install the same.

    The gateway's chart has a name, not a component list: its release is ``istio.gateway_service``.
    """
    istio = params.istio
    mesh = operator(params)["spec"]["meshConfig"]
    istiod: dict[str, Any] = {
        **_helm_scale(istio.istiod),
        "affinity": _spread({"app": "istiod"}),
        "meshConfig": mesh,
        "global": {"istioNamespace": istio.namespace},
    }
    gateway: dict[str, Any] = {
        "name": istio.gateway_service,
        "labels": {"app": istio.gateway_service, **gateway_selector(istio)},
        "resources": _resources(istio.gateway),
        "autoscaling": {
            "enabled": True,
            "minReplicas": istio.gateway.replicas_min,
            "maxReplicas": istio.gateway.replicas_max,
        },
        "podDisruptionBudget": _budget(istio.gateway),
        "affinity": _spread({"app": istio.gateway_service}),
        "env": {"TERMINATION_DRAIN_DURATION_SECONDS": str(_DRAIN_SECONDS)},
        # The operator's chart has it built in, this one leaves it to Kubernetes (25 %).
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "service": {**_service(istio), "annotations": dict(istio.gateway_annotations)},
    }
    if istio.istiod.replicas_min > 1:
        istiod["pdb"] = _budget(istio.istiod)
    if istio.revision:
        istiod["revision"] = istio.revision
        gateway["revision"] = istio.revision
    base = {"global": {"istioNamespace": istio.namespace}, "defaultRevision": istio.revision or "default"}
    return {"base": base, "istiod": istiod, "gateway": gateway}


def _helm_scale(scaled: Autoscaled) -> dict[str, Any]:
    return {
        "autoscaleEnabled": True,
        "autoscaleMin": scaled.replicas_min,
        "autoscaleMax": scaled.replicas_max,
        "resources": _resources(scaled),
    }


def _component(scaled: Autoscaled, labels: dict[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "resources": _resources(scaled),
        "hpaSpec": {"minReplicas": scaled.replicas_min, "maxReplicas": scaled.replicas_max},
        "affinity": _spread(labels),
    }
    if scaled.replicas_min > 1:
        out["podDisruptionBudget"] = _budget(scaled)
    return out


def _budget(scaled: Autoscaled) -> dict[str, int]:
    # A budget equal to the minimum would block every node drain.
    return {"minAvailable": max(1, scaled.replicas_min - 1)} if scaled.replicas_min > 1 else {}


def _resources(scaled: Autoscaled) -> dict[str, dict[str, str]]:
    r = scaled.resources
    return {
        "requests": {"cpu": r.cpu_request, "memory": r.memory_request},
        "limits": {"cpu": r.cpu_limit, "memory": r.memory_limit},
    }


def _spread(labels: dict[str, str]) -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }


def _service(istio: InstallParams) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "LoadBalancer", "ports": _ports(istio)}
    if istio.external_traffic_policy:
        out["externalTrafficPolicy"] = istio.external_traffic_policy
    if istio.load_balancer_class:
        out["loadBalancerClass"] = istio.load_balancer_class
    return out


def _annotations(istio: InstallParams) -> dict[str, Any]:
    return {"serviceAnnotations": dict(istio.gateway_annotations)} if istio.gateway_annotations else {}


def _ports(istio: InstallParams) -> list[dict[str, Any]]:
    # A Gateway resource names the Service's port; Envoy listens on the target port (istio-traps.md 22).
    return [
        {"name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP"},
        {"name": "http2", "port": 80, "targetPort": istio.http_target_port, "protocol": "TCP"},
        {"name": "https", "port": 443, "targetPort": istio.https_target_port, "protocol": "TCP"},
    ]
