"""What each Istio version from 1.20 to 1.31 knows, as one table.

The gates were read in the tags of istio/istio and in the Envoy API that each tag's go.mod names.
A feature below its version is reported in the ledger and never emitted: an unknown field is refused by the
webhook at best, and freezes a gateway's configuration at worst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from gateshift.errors import InputError

__all__ = ["NEWEST", "OLDEST", "Feature", "IstioVersion", "parse_version"]

OLDEST = (1, 20)
NEWEST = (1, 31)


class Feature(Enum):
    """One capability and the first minor version that has it: (slug, minor, where that was read).

    Builders ask for these; :mod:`gateshift.istio.fields` checks every field of what they made.
    """

    NETWORKING_V1 = ("networking-v1", 22, "CRDs of istio 1.22.0 serve v1")
    TELEMETRY_V1 = ("telemetry-v1", 22, "CRDs of istio 1.22.0 serve v1")
    PEER_AUTHENTICATION_V1 = ("peer-authentication-v1", 22, "CRDs of istio 1.22.0 serve v1")
    JWT_FROM_COOKIES = ("jwt-from-cookies", 21, "istio 1.21.0 releasenotes/notes/jwt-from-cookies.yaml")
    UPSTREAM_VERIFY_BY_DEFAULT = (
        "upstream-verify",
        21,
        "VERIFY_CERTIFICATE_AT_CLIENT is true in pilot/pkg/features of istio 1.21.0, false in 1.20.0",
    )
    GATEWAY_API = ("gateway-api", 22, "gateway-api v1.1 (GRPCRoute v1) in istio 1.22.0's go.mod")
    BASIC_AUTH_FILTER = (
        "basic-auth-filter",
        22,
        "BasicAuthPerRoute in the Envoy API of istio 1.22.0's go.mod; 1.21 has the filter without it",
    )
    CORS_UNMATCHED_PREFLIGHTS = ("cors-unmatched-preflights", 23, "CRDs of istio 1.23.0")
    RETRY_RESET_BEFORE_REQUEST = (
        "retry-reset-before-request",
        23,
        "istio 1.23.0 releasenotes/notes/reset-before-request.yaml",
    )
    PATH_FORMAT = ("path-format", 26, "changelogs/1.34.0.yaml of Envoy, which istio 1.26 is built with")
    LOCAL_LIMIT_WILDCARD = (
        "local-limit-wildcard",
        26,
        "max_dynamic_descriptors in the Envoy API of istio 1.26.0's go.mod",
    )
    CREDENTIAL_NAMES = ("credential-names", 26, "CRDs of istio 1.26.0")
    OAUTH2_PER_ROUTE = ("oauth2-per-route", 30, "OAuth2PerRoute in the Envoy API of istio 1.30.0's go.mod")

    @property
    def slug(self) -> str:
        """The feature's name as it stands in reports."""
        return self.value[0]

    @property
    def since(self) -> str:
        """First Istio version with the feature, for example ``1.23``."""
        return f"1.{self.value[1]}"

    @property
    def source(self) -> str:
        """Where the first version was read."""
        return self.value[2]


@dataclass(frozen=True, slots=True, order=True)
class IstioVersion:
    """A supported Istio version; only major.minor decide what exists."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def has(self, feature: Feature) -> bool:
        """Tell whether this version knows *feature*."""
        return self.minor >= feature.value[1]

    @property
    def networking(self) -> str:
        """API version of Gateway, VirtualService, DestinationRule, ServiceEntry."""
        return "networking.istio.io/" + ("v1" if self.has(Feature.NETWORKING_V1) else "v1beta1")

    @property
    def telemetry(self) -> str:
        """API version of Telemetry."""
        return "telemetry.istio.io/" + ("v1" if self.has(Feature.TELEMETRY_V1) else "v1alpha1")

    @property
    def security(self) -> str:
        """API version of RequestAuthentication and AuthorizationPolicy."""
        return "security.istio.io/v1"

    @property
    def peer_authentication(self) -> str:
        """API version of PeerAuthentication, which became v1 later than the other security objects."""
        return "security.istio.io/" + ("v1" if self.has(Feature.PEER_AUTHENTICATION_V1) else "v1beta1")

    @property
    def envoy_filter(self) -> str:
        """EnvoyFilter never left alpha."""
        return "networking.istio.io/v1alpha3"


def parse_version(text: str) -> IstioVersion:
    """Read ``1.31``, ``1.31.0`` or ``v1.31.0-rc.0``; refuse what the table does not cover.

    Raises InputError for anything outside 1.20-1.31.
    """
    found = re.match(r"v?(\d+)\.(\d+)(?:\.|$|-)", text + ".")
    pair = (int(found[1]), int(found[2])) if found else None
    if pair is None or not OLDEST <= pair <= NEWEST:
        raise InputError(
            f"Istio {text!r} is not covered: versions 1.20 to 1.31 are",
            hint='set istio.version to one of "1.20" to "1.31" (quoted) in the params file',
        )
    return IstioVersion(*pair)
