"""Keys of the lab: what the sample configuration names as ``${{VARIABLE}}``.

Made anew when a lab starts and kept in its folder, readable by the owner only. Clients sign tokens with the
private keys; the gateways know the public ones.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

__all__ = ["CONSUMERS", "ISSUER", "create", "fill", "marks", "token", "variables"]

ISSUER: Final = "https://identity.voiceassistant.com"
CONSUMERS: Final[Mapping[str, str]] = {"voice-web-app": "WEB_APP", "voice-mobile-app": "MOBILE_APP"}
"""The consumers of the sample that use tokens, and the middle of their variables' names."""

_VARIABLES = "variables.json"


def _private(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(data)


def create(folder: Path, *, certificate: Path, key: Path) -> Path:
    """Make the keys in *folder*; return the path of the JSON file of variables (for ``--variables``).

    *certificate* and *key* are the PEM files of the three hosts' TLS certificate.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    values = {
        "TLS_CERTIFICATE": certificate.read_text(encoding="ascii"),
        "TLS_KEY": key.read_text(encoding="ascii"),
        "PAYMENT_PROVIDER_KEY": secrets.token_urlsafe(24),
    }
    for name, middle in CONSUMERS.items():
        pair = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _private(
            folder / f"{name}.key",
            pair.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        values[f"JWT_{middle}_PUBLIC_KEY"] = (
            pair.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode("ascii")
        )
    path = folder / _VARIABLES
    _private(path, json.dumps(values).encode())
    return path


def variables(path: Path) -> dict[str, str]:
    """Read the file that :func:`create` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return {str(name): str(value) for name, value in values.items()}


_MARK = re.compile(r"lab-variable-(\w+)-")


def marks(values: Mapping[str, str]) -> dict[str, str]:
    """One-line marks to read a configuration with, in the place of *values* (a PEM has many lines).

    APISIX substitutes variables in the parsed document, where lines do not matter; :func:`fill` does that.
    """
    return {name: f"lab-variable-{name}-" for name in values}


def fill(spec: Any, values: Mapping[str, str]) -> Any:
    """Put *values* in the place of their marks in a parsed document."""
    if isinstance(spec, Mapping):
        return {name: fill(value, values) for name, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [fill(value, values) for value in spec]
    if isinstance(spec, str):
        return _MARK.sub(lambda found: values[found[1]], spec)
    return spec


def token(
    folder: Path, consumer: str = "voice-web-app", *, subject: str = "u-1001", life: float = 3600
) -> str:
    """Sign a token as the identity service would: the claim ``key`` names the consumer."""
    now = int(time.time())
    private = (folder / f"{consumer}.key").read_text(encoding="ascii")
    claims = {"iss": ISSUER, "sub": subject, "key": consumer, "iat": now, "exp": int(now + life)}
    return jwt.encode(claims, private, algorithm="RS256", headers={"kid": consumer})
