"""What exists in the lab: hosts, load balancer names, namespaces and backend services.

One table for every part of the lab. The control plane makes the Services, the node agent the
WorkloadEntries, the backends listen, the sample APISIX configuration and the client traffic use the names.
Only the names are fixed; ports on this machine are chosen when the lab starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "APISIX_DEPLOYMENT",
    "APISIX_LB_NAME",
    "APISIX_NAMESPACE",
    "APISIX_SERVICE",
    "APPLICATION_NAMESPACE",
    "BACKENDS",
    "GATEWAY_NAMESPACE",
    "GATEWAY_SERVICE",
    "HOSTS",
    "HOST_API",
    "HOST_GRPC",
    "HOST_WS",
    "ISTIO_LB_NAME",
    "LB_ZONE_ID",
    "NODE_NAME",
    "TLS_SECRET",
    "ZONE",
    "Backend",
    "backend",
]

ZONE = "voiceassistant.com"
HOST_API = "api.voiceassistant.com"
HOST_WS = "ws.voiceassistant.com"
HOST_GRPC = "grpc.voiceassistant.com"
HOSTS = (HOST_API, HOST_WS, HOST_GRPC)

APPLICATION_NAMESPACE = "voiceassistant-prod"
APISIX_NAMESPACE = "apisix"
APISIX_DEPLOYMENT = "apisix"
APISIX_SERVICE = "apisix-gateway"
GATEWAY_NAMESPACE = "istio-system"
GATEWAY_SERVICE = "istio-ingressgateway"

APISIX_LB_NAME = "apisix-lab.elb.us-east-1.amazonaws.com"
TLS_SECRET = "ssl-voiceassistant-com"  # noqa: S105 - the name of a Kubernetes object
"""The certificate Secret that the translated Gateway names; in production a person brings it."""
ISTIO_LB_NAME = "istio-lab.elb.us-east-1.amazonaws.com"
LB_ZONE_ID = "Z26RNL4JYFTOTI"
"""The hosted zone of network load balancers in us-east-1 (AWS's published table); alias records name it."""

NODE_NAME = "lab-node"


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend Service: *port* is the Service's; *protocol* is what it speaks.

    ``port_name`` is the Service port's name, which is also how Istio picks the protocol.
    """

    name: str
    port: int
    protocol: Literal["http", "websocket", "grpc"]

    @property
    def port_name(self) -> str:
        """``grpc`` for gRPC, else ``http`` (a WebSocket starts as HTTP)."""
        return "grpc" if self.protocol == "grpc" else "http"

    @property
    def fqdn(self) -> str:
        """The Service's name in the cluster."""
        return f"{self.name}.{APPLICATION_NAMESPACE}.svc.cluster.local"


BACKENDS = (
    Backend("identity-service", 9000, "http"),
    Backend("voice-service", 9001, "websocket"),
    Backend("user-service", 9002, "http"),
    Backend("billing-service", 9003, "http"),
    Backend("catalog-service", 9004, "http"),
    Backend("identity-grpc", 50051, "grpc"),
)


def backend(name: str) -> Backend:
    """Return the backend called *name*; raises KeyError when the lab has none."""
    for one in BACKENDS:
        if one.name == name:
            return one
    raise KeyError(name)
