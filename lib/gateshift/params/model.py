"""The params model: durations in seconds, ratios 0-1 unless a name says percent, Kubernetes quantities."""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from gateshift.params.base import DnsName, Model, Name, Seconds, Url, as_tuple
from gateshift.params.install import Autoscaled, InstallParams, Resources
from gateshift.params.login import LoginParams
from gateshift.params.traffic import (
    ClientsParams,
    CloudflareParams,
    IstioFirstParams,
    Mechanism,
    MechanismField,
    Route53Params,
    TrafficParams,
    TrafficSplitParams,
    check_order,
)

__all__ = [
    "Accept",
    "ApisixParams",
    "ArchiveParams",
    "Autoscaled",
    "CleanupParams",
    "ClientsParams",
    "CloudflareParams",
    "ClusterParams",
    "Environment",
    "InstallParams",
    "IstioFirstParams",
    "JudgeParams",
    "LoginParams",
    "Mechanism",
    "MetricsParams",
    "Mode",
    "NotifyParams",
    "Params",
    "Resources",
    "Route53Params",
    "SoakParams",
    "StageParams",
    "TrafficParams",
    "TrafficSplitParams",
    "TranslateParams",
    "VerifyParams",
]


class Environment(StrEnum):
    """Where this migration runs. ``lab`` is only accepted when the cluster is the lab's."""

    LAB = "lab"
    PRODUCTION = "production"


class Mode(StrEnum):
    """``plan`` reads and shows; ``act`` also changes, after its gate."""

    PLAN = "plan"
    ACT = "act"


# Strict mode would refuse the text that YAML gives for an enum; these read exactly their values.
EnvironmentField = Annotated[Environment, Field(strict=False)]
ModeField = Annotated[Mode, Field(strict=False)]


class ClusterParams(Model):
    """The Kubernetes cluster. ``uid`` (of namespace kube-system) guards against the wrong context."""

    kubeconfig: str | None = Field(default=None, examples=["/etc/gateshift/kubeconfig"])
    context: str | None = None
    uid: str | None = Field(default=None, examples=["6f1d2c9e-8a40-4c1b-9d51-0b7c3f2a9e11"])
    application_namespace: Name = "default"


class ApisixParams(Model):
    """The old gateway and where its configuration is read from: Admin API, files or the cluster's objects.

    ``read_cluster`` reads the objects of APISIX's ingress controller, in ``read_namespaces`` or, when that
    is empty, in all.
    """

    namespace: Name = "apisix"
    service: Name = "apisix-gateway"
    admin_url: Url | None = None
    admin_key: SecretStr | None = None
    files: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["apisix.yaml", "consumers.yaml"]]
    )
    read_cluster: bool = Field(default=False, examples=[True])
    read_namespaces: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["shop", "payments"]]
    )
    router: str | None = Field(default=None, pattern=r"^radixtree_(uri|host_uri|uri_with_parameter)$")

    @model_validator(mode="after")
    def _one_source(self) -> ApisixParams:
        if sum(map(self.written, ("admin_url", "files", "read_cluster"))) != 1:
            raise ValueError("name exactly one source: admin_url, files or read_cluster")
        if self.written("read_namespaces") and not self.written("read_cluster"):
            raise ValueError("read_namespaces needs read_cluster: true")
        if self.written("admin_url") and not self.written("admin_key"):
            raise ValueError("admin_url needs admin_key, for example ${env:APISIX_ADMIN_KEY}")
        return self


class Accept(Model):
    """A person's signature under a blocker: which resource and plugin, who, and why.

    ``*`` as resource signs the differences of a plugin that is converted, but not exactly, everywhere; the
    loss of a plugin is signed for each resource by its name. *covers* holds the fingerprints of the
    reasons that were signed, as a blocker shows them: another reason is then not covered. Without it a
    signature under one resource holds for any reason, which the ledger says, and one under ``*`` nothing.
    """

    resource: str = Field(examples=["routes/login"])
    plugin: str = Field(examples=["jwt-auth"])
    covers: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["1d5a758d298c"]]
    )
    who: str = Field(min_length=2, examples=["Li Wei"])
    why: str = Field(min_length=10, examples=["missing tokens answer 403, clients treat both alike"])


class TranslateParams(Model):
    """How APISIX names map to Kubernetes names, and which blockers a person has accepted.

    ``jwt_issuers`` names the ``iss`` of each consumer's tokens (``*`` for all): APISIX does not look at it,
    Istio must know it. ``inline_credentials`` allows password hashes and API keys inside emitted objects,
    readable by whoever may read those. ``emit_metrics_telemetry`` writes the Telemetry object for
    prometheus, needed only where the mesh has no default metrics provider.

    ``rate_limit_service`` (host:port) counts limits together for all gateway pods, ``login_provider`` and
    ``tracing_provider`` are names under ``meshConfig.extensionProviders``, and ``trusted_proxies`` is the
    number of proxies in front of the gateway that add to X-Forwarded-For. ``login`` lets Envoy itself log
    users in for openid-connect.

    ``output: gateway-api`` emits a host as Gateway API routes where that is exact, and as a VirtualService
    where it is not.
    """

    output: Literal["istio", "gateway-api"] = Field(default="istio", examples=["gateway-api"])
    services: dict[str, str] = Field(
        default_factory=dict, examples=[{"users": "users.shop.svc.cluster.local"}]
    )
    credentials: dict[str, str] = Field(default_factory=dict, examples=[{"edge": "edge-tls"}])
    accept: Annotated[tuple[Accept, ...], BeforeValidator(as_tuple)] = ()
    jwt_issuers: dict[str, str] = Field(
        default_factory=dict, examples=[{"*": "https://identity.shop.example"}]
    )
    inline_credentials: bool = Field(default=False, examples=[True])
    emit_metrics_telemetry: bool = Field(default=False, examples=[True])
    rate_limit_service: str | None = Field(default=None, examples=["ratelimit.infra.svc.cluster.local:8081"])
    login: LoginParams = LoginParams()
    login_provider: str | None = Field(default=None, examples=["oauth2-proxy"])
    tracing_provider: str | None = Field(default=None, examples=["otel"])
    trusted_proxies: int | None = Field(default=None, ge=0, le=10, examples=[1])
    proof_requests: int = Field(default=2000, ge=100, le=1_000_000)


class MetricsParams(Model):
    """Where metrics are read. ``step`` is the scrape interval of the gateways.

    ``dashboard`` is the address of one of yours: the status card links to it, at the time of the stage.
    """

    url: Url
    bearer_token: SecretStr | None = Field(default=None, examples=["${env:PROMETHEUS_TOKEN}"])
    username: str | None = Field(default=None, examples=["gateshift"])
    password: SecretStr | None = Field(default=None, examples=["${env:PROMETHEUS_PASSWORD}"])
    tenant: str | None = Field(default=None, examples=["shop"])
    ca_file: str | None = Field(default=None, examples=["/etc/ssl/ca.pem"])
    cert_file: str | None = Field(default=None, examples=["/etc/ssl/gateshift.crt"])
    key_file: str | None = Field(default=None, examples=["/etc/ssl/gateshift.key"])
    step: Seconds = 15.0
    timeout: Seconds = 10.0
    dashboard: Url | None = Field(default=None, examples=["https://grafana.shop.example/d/canary"])
    istio_selector: str = Field(
        default='source_workload="istio-ingressgateway"',
        examples=['source_workload="edge", namespace="edge"'],
    )
    apisix_selector: str = Field(default="", examples=['job="apisix"'])


class StageParams(Model):
    """One canary stage. Limits are the guide's: error rate in percent, P95 in milliseconds.

    ``mechanism`` moves this stage in place of ``traffic.mechanism``: for example traffic-split for the first
    stages and DNS for the last ones.
    """

    weight_percent: int = Field(ge=1, le=100)
    mechanism: MechanismField | None = Field(default=None, examples=["traffic-split"])
    dwell: Seconds
    error_rate_limit_percent: float = Field(gt=0, lt=100)
    p95_limit_ms: float = Field(default=2000.0, gt=0)
    availability_percent: float = Field(default=99.9, gt=0, lt=100)


class JudgeParams(Model):
    """Guarantees of the verdicts, over the whole migration (ratios 0-1)."""

    false_rollback_budget: float = Field(default=0.01, gt=0, lt=0.5)
    wrong_promotion: float = Field(default=0.01, gt=0, lt=0.5)
    margin: float = Field(default=1.0, gt=0, le=10)
    # Burstiest errors the guarantees hold for: gamma shape k by scrape (variance of the rate = rate² / k).
    dispersion_floor: float = Field(default=0.1, gt=0, le=1000, examples=[0.5])
    missing_data_allowance: Seconds = 300.0
    hold_timeout: Seconds = 14400.0


class SoakParams(Model):
    """The stable run before clean-up.

    ``stable_for`` must pass without a gap: a run is due each ``sample_every`` and covers all the time since
    the run before, at least ``sample_for`` of it; ``grace`` is how late it may be, and how long metrics may
    be missing in between.
    """

    stable_for: Seconds = 14 * 86400.0
    sample_every: Seconds = 86400.0
    sample_for: Seconds = 600.0
    grace: Seconds = 7200.0


class CleanupParams(Model):
    """What a person signs for the deletion of the APISIX namespace.

    ``discard_volumes``: its volumes may be destroyed with their contents. ``also``: workloads and custom
    resources in it that are no part of APISIX and may go along, each as ``Kind/name``.
    """

    discard_volumes: bool = False
    also: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Z]\w*/[^/\s]+$")], ...], BeforeValidator(as_tuple)
    ] = Field(default=(), examples=[["Certificate/edge"]])


class Probe(Model):
    """One functional check: sent through the gateway's address, before DNS knows it."""

    name: Name
    kind: str = Field(default="http", pattern=r"^(http|websocket|grpc)$")
    host: DnsName
    path: str = "/"
    method: str = "GET"
    body: str | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict, examples=[{"X-Tenant": "shop"}])
    token: SecretStr | None = Field(default=None, examples=["${env:PROBE_TOKEN}"])
    expect: int = 200
    tls: bool = False


class VerifyParams(Model):
    """Functional checks and how gateway addresses are reached.

    ``connect_to`` maps ``host:port`` of a load balancer to ``address:port``, like curl's ``--connect-to``.
    Parity replays requests at both gateways: the probes, those recorded in the HAR file ``recorded``, and
    ``generated`` ones made from the routes. Methods that may change data are sent only with
    ``unsafe_methods``.
    """

    probes: Annotated[tuple[Probe, ...], BeforeValidator(as_tuple)] = ()
    recorded: str | None = Field(default=None, examples=["recorded.har"])
    generated: int = Field(default=0, ge=0, le=1000, examples=[200])
    unsafe_methods: bool = Field(default=False, examples=[True])
    connect_to: dict[str, str] = Field(
        default_factory=dict, examples=[{"api.shop.example:443": "10.0.12.7:443"}]
    )
    ca_file: str | None = Field(default=None, examples=["/etc/ssl/ca.pem"])


class ArchiveParams(Model):
    """What happens to the archive after each run: a signature under its head, a copy in S3 under object lock.

    ``sign_key`` is an SSH private key, a cosign key or a KMS key's ARN; ``s3_bucket`` must have object lock.
    """

    sign_key: str = Field(default="", examples=["/etc/gateshift/archive_ed25519"])
    s3_bucket: str = Field(default="", examples=["shop-gateshift-archive"])
    s3_prefix: str = Field(default="", examples=["migrations/"])
    s3_retain: Seconds = 365 * 86400.0
    s3_mode: str = Field(default="COMPLIANCE", pattern=r"^(COMPLIANCE|GOVERNANCE)$")


class NotifyParams(Model):
    """Who is told what happens: apprise URLs (``slack://…``, ``mailto://…``), and which kinds of events."""

    urls: Annotated[tuple[SecretStr, ...], BeforeValidator(as_tuple)] = Field(
        default=(), examples=[["${env:NOTIFY_SLACK}"]]
    )
    events: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = (
        "started",
        "held",
        "promoted",
        "rolled-back",
        "needs-person",
        "failed",
    )

    @field_validator("events")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        known = cls.model_fields["events"].default
        strange = [kind for kind in kinds if kind not in known]
        if strange:
            raise ValueError(f"unknown event {strange[0]!r}; one of {', '.join(known)}")
        return kinds


class Params(Model):
    """Everything a migration needs to know. See ``params/production.yaml`` for the commented example."""

    migration: Name
    environment: EnvironmentField
    mode: ModeField = Mode.PLAN
    approve: str = Field(default="", examples=["3f9c2d81a70be645"])
    approver: str = Field(default="", examples=["release pipeline"])
    second_person: bool = False
    gate_wait: Seconds = 0.0
    outputs: str = Field(default="outputs", examples=["/srv/gateshift/outputs"])
    confirm_namespace: str = Field(default="", examples=["apisix"])
    lang: str = Field(default="", pattern=r"^(en|zh)?$", examples=["zh"])
    cluster: ClusterParams = ClusterParams()
    apisix: ApisixParams
    istio: InstallParams
    translate: TranslateParams = TranslateParams()
    traffic: TrafficParams
    metrics: MetricsParams
    stages: Annotated[tuple[StageParams, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    judge: JudgeParams = JudgeParams()
    soak: SoakParams = SoakParams()
    cleanup: CleanupParams = CleanupParams()
    verify: VerifyParams = VerifyParams()
    notify: NotifyParams = NotifyParams()
    archive: ArchiveParams = ArchiveParams()

    @field_validator("approve")
    @classmethod
    def _whole_digest(cls, digest: str) -> str:
        # The prompt takes four characters, because it asks for the plan above it; this may be a later one.
        if not re.fullmatch(r"([0-9a-f]{16})?", digest):
            raise ValueError("write the whole digest that the plan shows, 16 characters of 0-9 and a-f")
        return digest

    @field_validator("stages")
    @classmethod
    def _stages_rise(cls, stages: tuple[StageParams, ...]) -> tuple[StageParams, ...]:
        weights = [s.weight_percent for s in stages]
        if sorted(set(weights)) != weights:
            raise ValueError(f"weights must rise from stage to stage, got {weights}")
        if weights[-1] != 100:
            raise ValueError("the last stage must have weight_percent 100")
        limits = [s.error_rate_limit_percent for s in stages]
        if any(later > earlier for earlier, later in pairwise(limits)):
            raise ValueError(
                f"error_rate_limit_percent must not rise with the weight, got {limits} (inverted thresholds)"
            )
        return stages

    @model_validator(mode="after")
    def _mechanisms_configured(self) -> Params:
        used = [self.mechanism_of(index) for index in range(len(self.stages))]
        check_order(used)
        for one in used:
            self.traffic.require(one)
        by_admin = Mechanism.TRAFFIC_SPLIT in used and self.traffic.traffic_split.through == "admin"
        if by_admin and not self.apisix.written("admin_url"):
            raise ValueError("traffic-split needs apisix.admin_url, or traffic.traffic_split.through: crds")
        if Mechanism.ISTIO_FIRST in used and self.translate.output != "istio":
            raise ValueError("istio-first moves VirtualServices only: it needs translate.output: istio")
        return self

    def mechanism_of(self, stage: int) -> Mechanism:
        """Return how stage *stage* (from 0) is moved."""
        return self.stages[stage].mechanism or self.traffic.mechanism
