"""What users call: a mix over the sample configuration, with the statuses each call may get.

Two statuses are allowed where the gateways rightly differ (a missing token is 401 at APISIX and 403 at
Istio, where a policy refuses it) or where a rate limit may or may not strike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateshift.lab.topology import HOST_API, HOST_GRPC, HOST_WS

__all__ = ["MIX", "Call", "Protocol", "Token"]


class Protocol(StrEnum):
    """How a call is made."""

    HTTP = "http"
    WEBSOCKET = "websocket"
    GRPC = "grpc"


class Token(StrEnum):
    """Which token a call carries."""

    NONE = "none"
    WEB = "voice-web-app"
    MOBILE = "voice-mobile-app"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of call. ``{n}`` in *path* becomes a number; *weight* is its share in the mix."""

    name: str
    weight: float
    path: str
    method: str = "GET"
    host: str = HOST_API
    protocol: Protocol = Protocol.HTTP
    token: Token = Token.NONE
    expect: frozenset[int] = frozenset({200})
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


_USER: Final = b'{"user": "ada", "password": "lab"}'

MIX: Final[tuple[Call, ...]] = (
    Call("login", 22, "/api/v1/auth/login", "POST", body=_USER),
    Call("session", 5, "/api/v1/auth/session", token=Token.WEB),
    Call("me", 16, "/api/v1/users/me", token=Token.WEB),
    Call("profile", 10, "/api/v1/users/u-{n}", token=Token.MOBILE),
    Call("edit", 3, "/api/v1/users/u-{n}", "PUT", token=Token.WEB, body=b'{"name": "Ada"}'),
    Call("catalog", 9, "/api/v1/catalog/skills/{n}"),
    Call("catalog-beta", 2, "/api/v1/catalog/skills/{n}", headers={"X-Beta": "1"}),
    Call("search", 4, "/api/v1/catalog/search?q=timer", expect=frozenset({200, 429})),
    Call("search-empty", 1, "/api/v1/catalog/search", expect=frozenset({302})),
    Call("preview", 2, "/api/v1/catalog/voices/{n}/preview"),
    Call("recommendations", 2, "/api/v1/recommendations"),
    Call("invoices", 3, "/api/v1/billing/invoices", token=Token.MOBILE),
    Call("invoices-v2", 2, "/api/v2/invoices/{n}", token=Token.WEB),
    Call("voices", 2, "/api/v1/voices", headers={"X-Client-Version": "2.4.1"}),
    Call("voice-command", 3, "/api/v1/voice/commands", "POST", token=Token.MOBILE, body=b"{}"),
    Call("docs", 1, "/docs/start"),
    Call("login-page", 1, "/login", expect=frozenset({301})),
    Call("no-token", 1, "/api/v1/users/me", expect=frozenset({401, 403})),
    Call("forged-token", 1, "/api/v1/users/me", token=Token.FORGED, expect=frozenset({401})),
    Call("no-route", 1, "/api/v9/nothing", expect=frozenset({404})),
    Call("stream", 2, "/ws/voice/stream", host=HOST_WS, protocol=Protocol.WEBSOCKET, token=Token.WEB,
         expect=frozenset({101})),
    Call("get-user", 6, "/identity.v1.Identity/GetUser", "POST", host=HOST_GRPC, protocol=Protocol.GRPC,
         token=Token.MOBILE, expect=frozenset({0})),
)  # fmt: skip
