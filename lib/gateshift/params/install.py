"""How Istio is installed: versions, names, replicas and resources. The guide's values are the defaults."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from gateshift.params.base import Model, Name, Quantity, Seconds, Version

__all__ = ["Autoscaled", "InstallParams", "Resources"]


class Resources(Model):
    """Requests and limits of one container."""

    cpu_request: Quantity
    cpu_limit: Quantity
    memory_request: Quantity
    memory_limit: Quantity


class Autoscaled(Model):
    """A component with its HPA range."""

    replicas_min: int = Field(ge=1, le=100)
    replicas_max: int = Field(ge=1, le=100)
    resources: Resources

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaled:
        if self.replicas_min > self.replicas_max:
            raise ValueError("replicas_min is greater than replicas_max")
        return self


_GATEWAY = Autoscaled(
    replicas_min=3,
    replicas_max=10,
    resources=Resources(cpu_request="1000m", cpu_limit="2000m", memory_request="1Gi", memory_limit="2Gi"),
)
_ISTIOD = Autoscaled(
    replicas_min=2,
    replicas_max=5,
    resources=Resources(cpu_request="500m", cpu_limit="1000m", memory_request="2Gi", memory_limit="4Gi"),
)


class InstallParams(Model):
    """Istio as it is installed. No profile is called ``production``: ``default`` is the base.

    ``gateway_annotations``, ``external_traffic_policy`` and ``load_balancer_class`` go onto the gateway's
    Service: what the cloud needs to make the same kind of load balancer as APISIX has.
    """

    version: Version
    profile: str = Field(default="default", pattern=r"^(default|minimal|openshift|stable)$")
    revision: Name | None = Field(default=None, examples=["1-31-0"])
    namespace: Name = "istio-system"
    gateway_service: Name = "istio-ingressgateway"
    gateway: Autoscaled = _GATEWAY
    istiod: Autoscaled = _ISTIOD
    http_target_port: int = Field(default=8080, ge=1, le=65535, examples=[8080])
    https_target_port: int = Field(default=8443, ge=1, le=65535, examples=[8443])
    gateway_annotations: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"service.beta.kubernetes.io/aws-load-balancer-scheme": "internet-facing"}],
    )
    external_traffic_policy: str | None = Field(
        default=None, pattern=r"^(Cluster|Local)$", examples=["Local"]
    )
    load_balancer_class: str | None = Field(default=None, examples=["service.k8s.aws/nlb"])
    istioctl: str = Field(default="istioctl", examples=["/opt/istio-1.31.0/bin/istioctl"])
    kubectl: str = Field(default="kubectl", examples=["/usr/local/bin/kubectl"])
    ready_timeout: Seconds = 300.0
    mesh_config: dict[str, Any] = Field(default_factory=dict, examples=[{"accessLogFile": "/dev/stdout"}])
