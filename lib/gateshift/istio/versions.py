"""What each Istio version from 1.20 to 1.31 knows, as one table.

The gates were read in the tags of istio/istio, istio/api and istio/proxy (see the project's reference notes).
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
    """One capability and the first minor version that has it: (slug, minor)."""

    NETWORKING_V1 = ("networking-v1", 22)
    TELEMETRY_V1 = ("telemetry-v1", 22)
    PEER_AUTHENTICATION_V1 = ("peer-authentication-v1", 22)
    AUTHORIZATION_V1 = ("authorization-v1", 19)
    URI_REGEX_REWRITE = ("uri-regex-rewrite", 19)
    BASIC_AUTH_FILTER = ("basic-auth-filter", 21)
    UPSTREAM_VERIFY_BY_DEFAULT = ("upstream-verify", 21)
    PATH_TEMPLATES = ("path-templates", 22)
    GATEWAY_API = ("gateway-api", 22)
    JWT_FROM_COOKIES = ("jwt-from-cookies", 23)
    CORS_UNMATCHED_PREFLIGHTS = ("cors-unmatched-preflights", 23)
    RETRY_RESET_BEFORE_REQUEST = ("retry-reset-before-request", 24)
    ROUTE_DOMAIN_NAME_MATCH = ("route-domain-name-match", 25)
    LOCAL_LIMIT_WILDCARD = ("local-limit-wildcard", 26)
    CREDENTIAL_NAMES = ("credential-names", 26)
    JWT_WITHOUT_ISSUER = ("jwt-without-issuer", 27)
    CA_CREDENTIAL_NAME = ("ca-credential-name", 28)
    MIRROR_WITHOUT_SHADOW = ("mirror-without-shadow", 28)
    MULTIPLE_CUSTOM_PROVIDERS = ("multiple-custom-providers", 30)

    @property
    def slug(self) -> str:
        """The feature's name as it stands in reports."""
        return self.value[0]

    @property
    def since(self) -> str:
        """First Istio version with the feature, for example ``1.23``."""
        return f"1.{self.value[1]}"


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
