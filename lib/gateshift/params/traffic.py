"""How traffic is moved: the sections of each mechanism, which stage uses which, and when it has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from gateshift.params.base import DnsName, Model, Name, Seconds, Url, as_tuple

__all__ = [
    "ClientsParams",
    "CloudflareParams",
    "IstioFirstParams",
    "Mechanism",
    "MechanismField",
    "Route53Params",
    "TrafficParams",
    "TrafficSplitParams",
    "check_order",
]


class Mechanism(StrEnum):
    """How traffic is moved."""

    ROUTE53 = "route53"
    CLOUDFLARE = "cloudflare"
    TRAFFIC_SPLIT = "traffic-split"
    ISTIO_FIRST = "istio-first"


MechanismField = Annotated[Mechanism, Field(strict=False)]


class Route53Params(Model):
    """Weighted records. ``ttl`` applies to records that are not aliases (an alias has its target's TTL)."""

    zone: DnsName
    zone_id: str | None = Field(default=None, examples=["Z0123456789ABCDEFGHIJ"])
    private: bool = Field(default=False, examples=[True])
    hosts: Annotated[tuple[DnsName, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    apisix_target: DnsName | None = Field(default=None, examples=["apisix-1.elb.us-east-1.amazonaws.com"])
    istio_target: DnsName | None = Field(default=None, examples=["istio-1.elb.us-east-1.amazonaws.com"])
    target_zone_id: str | None = Field(default=None, examples=["Z26RNL4JYFTOTI"])
    record: str = Field(default="alias", pattern=r"^(alias|cname)$")
    ttl: Seconds = 60.0
    ipv6: bool = Field(default=False, examples=[True])
    region: str = "us-east-1"
    endpoint_url: Url | None = Field(default=None, examples=["http://127.0.0.1:5000"])
    insync_timeout: Seconds = Field(default=120.0, examples=["2m"])


class TrafficSplitParams(Model):
    """APISIX's own traffic-split towards the Istio gateway; no ``routes`` means every enabled route.

    ``through`` is where routes are changed: the Admin API, or ``crds`` when an ingress controller owns the
    routes (it would put an Admin API change back). Then ``routes`` are ApisixRoutes as ``namespace/name`` and
    ``namespaces`` limits where they are looked for.
    """

    through: str = Field(default="admin", pattern=r"^(admin|crds)$", examples=["crds"])
    routes: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["login", "orders"]]
    )
    namespaces: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["shop"]]
    )
    istio_target: DnsName | None = Field(default=None, examples=["istio-1.elb.us-east-1.amazonaws.com"])
    port: int = Field(default=80, ge=1, le=65535, examples=[80])


class IstioFirstParams(Model):
    """Everybody at the Istio gateway, which sends a share back to APISIX's Service by VirtualService weights.

    ``front`` is the DNS mechanism that moves the users' names to Istio at the first stage, and back in a
    rollback that cannot reach the cluster. ``grpc_port`` is APISIX's HTTP/2 port; without it gRPC routes
    are refused.
    """

    front: MechanismField | None = Field(default=None, examples=["route53"])
    port: int = Field(default=80, ge=1, le=65535, examples=[80])
    grpc_port: int | None = Field(default=None, ge=1, le=65535, examples=[9081])

    @model_validator(mode="after")
    def _front_is_dns(self) -> IstioFirstParams:
        if self.front not in {None, Mechanism.ROUTE53, Mechanism.CLOUDFLARE}:
            raise ValueError("front is route53 or cloudflare")
        return self


class CloudflareParams(Model):
    """Cloudflare load balancers (one for each of ``hosts``) with one pool of each gateway."""

    api_token: SecretStr = Field(examples=["${env:CLOUDFLARE_API_TOKEN}"])
    zone: DnsName = Field(examples=["shop.example"])
    hosts: Annotated[tuple[DnsName, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, examples=[["api.shop.example"]]
    )
    apisix_pool: str = Field(min_length=1, examples=["apisix"])
    istio_pool: str = Field(min_length=1, examples=["istio"])
    base_url: Url | None = Field(default=None, examples=["http://127.0.0.1:5001"])


class ClientsParams(Model):
    """How clients hold on to an old answer: what the forecast of arrivals is made from (docs/dns.md).

    ``ttl`` overrides the record's. ``tail`` is the share of traffic (0-1) behind resolvers that cache for
    ``tail_ttl`` instead; ``sticky`` the share on long connections, renewed on average every
    ``connection_age``.
    """

    ttl: Seconds | None = Field(default=None, examples=["60s"])
    propagation: Seconds = Field(default=5.0, examples=["5s"])
    tail: float = Field(default=0.05, ge=0, le=1, examples=[0.02])
    tail_ttl: Seconds = Field(default=300.0, examples=["10m"])
    sticky: float = Field(default=0.1, ge=0, le=1, examples=[0.3])
    connection_age: Seconds = Field(default=120.0, examples=["5m"])


class TrafficParams(Model):
    """How traffic is moved, and when it counts as arrived.

    ``mechanism`` is that of every stage that names none. ``watch_weights`` is how often the weights are
    read back while a stage dwells.
    """

    mechanism: MechanismField = Mechanism.ROUTE53
    route53: Route53Params | None = None
    traffic_split: TrafficSplitParams = TrafficSplitParams()
    cloudflare: CloudflareParams | None = None
    istio_first: IstioFirstParams = IstioFirstParams()
    clients: ClientsParams = ClientsParams()
    arrival_tolerance_percent: float = Field(default=2.0, gt=0, le=20)
    arrival_timeout: Seconds = 900.0
    rollback_target: Seconds = 300.0
    watch_weights: Seconds = Field(default=30.0, examples=["30s"])

    @model_validator(mode="after")
    def _mechanism_configured(self) -> TrafficParams:
        self.require(self.mechanism)
        return self

    def require(self, mechanism: Mechanism) -> None:
        """Raise ValueError unless *mechanism* has its section."""
        if mechanism is Mechanism.ISTIO_FIRST:
            if self.istio_first.front is None:
                raise ValueError(
                    "mechanism istio-first needs traffic.istio_first.front: route53 or cloudflare"
                )
            mechanism = self.istio_first.front
        if mechanism is Mechanism.ROUTE53 and self.route53 is None:
            raise ValueError("mechanism route53 needs the section traffic.route53")
        if mechanism is Mechanism.CLOUDFLARE and self.cloudflare is None:
            raise ValueError("mechanism cloudflare needs the section traffic.cloudflare")


_DNS = frozenset({Mechanism.ROUTE53, Mechanism.CLOUDFLARE})


def check_order(mechanisms: Sequence[Mechanism]) -> None:
    """Raise ValueError unless the stages' *mechanisms* can follow each other.

    One for all stages, or traffic-split first and then one kind of DNS: the split stays where it is while
    DNS takes the rest, so that the share only ever rises.
    """
    changes = [one for before, one in zip((None, *mechanisms), mechanisms, strict=False) if one is not before]
    if len(changes) <= 1:
        return
    if len(changes) == 2 and changes[0] is Mechanism.TRAFFIC_SPLIT and changes[1] in _DNS:
        return
    raise ValueError(
        f"stages are moved by {', then '.join(one.value for one in changes)}; "
        "only traffic-split first and then one of route53 and cloudflare can be combined"
    )
