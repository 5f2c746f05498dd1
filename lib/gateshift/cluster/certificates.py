"""What is wrong with a TLS Secret: expiry, names, key. The key itself never leaves this module."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateshift.cluster.objects import Object

__all__ = ["certificate_of", "certificate_problems", "covers", "days_left", "names_in"]

SOON_DAYS = 14.0
"""A certificate must outlive the two stable weeks."""


def covers(pattern: str, host: str) -> bool:
    """Say whether a certificate name covers *host* (a wildcard stands for exactly one label)."""
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:] and bool(host.partition(".")[0])
    return pattern == host


def certificate_of(secret: Object) -> x509.Certificate | None:
    """Return the Secret's certificate (the first of a chain), None when it cannot be read."""
    try:
        pem = base64.b64decode((secret.get("data") or {})["tls.crt"], validate=True)
        return x509.load_pem_x509_certificate(pem)
    except (KeyError, ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        return None


def names_in(secret: Object) -> list[str]:
    """Return the DNS names of the Secret's certificate, none when it cannot be read."""
    certificate = certificate_of(secret)
    try:
        found = certificate and certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value.get_values_for_type(x509.DNSName)) if found else []


def days_left(secret: Object, *, now: datetime) -> float:
    """Return in how many days the Secret's certificate expires; NaN when it cannot be read."""
    certificate = certificate_of(secret)
    if certificate is None:
        return float("nan")
    return (certificate.not_valid_after_utc - now).total_seconds() / 86400


def certificate_problems(
    secret: Object, hosts: Iterable[str], *, now: datetime | None = None, soon_days: float = SOON_DAYS
) -> list[str]:
    """Name everything wrong with a ``kubernetes.io/tls`` Secret, serving none of *hosts* included."""
    data = secret.get("data") or {}
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"], validate=True))
        key = load_pem_private_key(base64.b64decode(data["tls.key"], validate=True), password=None)
    except KeyError as error:
        return [f"{error.args[0]} is missing"]
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        return ["certificate or key cannot be read as PEM"]
    now = now or datetime.now(UTC)
    out = []
    left = (certificate.not_valid_after_utc - now).total_seconds() / 86400
    if left <= 0:
        out.append(f"expired {-left:.0f} days ago")
    elif left < soon_days:
        out.append(f"expires in {left:.1f} days, the stable run takes {soon_days:.0f}")
    if certificate.not_valid_before_utc > now:
        out.append("is not valid yet")

    def public(value: object) -> bytes:
        return value.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]

    if public(certificate.public_key()) != public(key.public_key()):
        out.append("the key does not belong to the certificate")
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    wanted = list(hosts)
    if wanted and not any(covers(n, h) for n in names for h in wanted):
        out.append(f"covers none of {', '.join(wanted)} (it names {', '.join(names) or 'nothing'})")
    return out
