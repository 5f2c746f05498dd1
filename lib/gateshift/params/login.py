"""What Envoy must be told for logins by openid-connect, and APISIX reads by itself."""

from __future__ import annotations

from pydantic import Field

from gateshift.params.base import Model, Url

__all__ = ["LoginEndpoints", "LoginParams"]


class LoginEndpoints(Model):
    """Two addresses from an identity provider's discovery document."""

    authorization: Url = Field(examples=["https://idp.example/authorize"])
    token: Url = Field(examples=["https://idp.example/token"])


class LoginParams(Model):
    """Logins by Envoy's own filter; both are needed, else such routes stay held back.

    ``secrets`` is a folder of the gateway's pods with the files that docs/translation.md describes (the
    default gateway mounts Secret ``istio-ingressgateway-certs`` at ``/etc/istio/ingressgateway-certs``).
    Envoy keeps its old routes, all of them, while one is missing. ``endpoints`` names each ``discovery``
    address with what its document says.
    """

    secrets: str | None = Field(
        default=None, pattern=r"^/[\w./-]+$", examples=["/etc/istio/ingressgateway-certs"]
    )
    endpoints: dict[str, LoginEndpoints] = Field(default_factory=dict)
