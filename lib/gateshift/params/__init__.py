"""Params: one validated, frozen model; a wrong file is one clear error and nothing touched."""

from gateshift.params.load import load, validate
from gateshift.params.model import (
    Accept,
    ApisixParams,
    Autoscaled,
    ClusterParams,
    Environment,
    InstallParams,
    JudgeParams,
    Mechanism,
    MetricsParams,
    Mode,
    Params,
    Resources,
    Route53Params,
    SoakParams,
    StageParams,
    TrafficParams,
    TranslateParams,
    VerifyParams,
)
from gateshift.params.secrets import secrets_of

__all__ = [
    "Accept",
    "ApisixParams",
    "Autoscaled",
    "ClusterParams",
    "Environment",
    "InstallParams",
    "JudgeParams",
    "Mechanism",
    "MetricsParams",
    "Mode",
    "Params",
    "Resources",
    "Route53Params",
    "SoakParams",
    "StageParams",
    "TrafficParams",
    "TranslateParams",
    "VerifyParams",
    "load",
    "secrets_of",
    "validate",
]
