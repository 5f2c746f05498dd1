"""Public keys in PEM as JSON Web Keys, so that a RequestAuthentication can carry them.

A small DER reader for SubjectPublicKeyInfo (RFC 5280) with RSA, EC and Ed25519 keys; nothing else is
accepted, and a private key is refused.
"""

from __future__ import annotations

import base64
import binascii
import re

__all__ = ["KeyFormatError", "jwk_from_pem"]


class KeyFormatError(ValueError):
    """The text is no public key that can be converted; the message never repeats it."""


_RSA = bytes.fromhex("2a864886f70d010101")
_EC = bytes.fromhex("2a8648ce3d0201")
_ED25519 = bytes.fromhex("2b6570")
_CURVES = {
    bytes.fromhex("2a8648ce3d030107"): ("P-256", 32),
    bytes.fromhex("2b81040022"): ("P-384", 48),
    bytes.fromhex("2b81040023"): ("P-521", 66),
}


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return (tag, content, position after) of the DER element at *at*."""
    try:
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
    except IndexError as error:
        raise KeyFormatError("the public key is cut short") from error
    if at + length > len(data):
        raise KeyFormatError("the public key is cut short")
    return tag, data[at : at + length], at + length


def _children(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(data):
        tag, content, at = _element(data, at)
        found.append((tag, content))
    return found


def _rsa(data: bytes) -> dict[str, str]:
    parts = _children(_element(data, 0)[1])
    if len(parts) < 2:
        raise KeyFormatError("the RSA key has no modulus and exponent")
    modulus, exponent = (content.lstrip(b"\0") for _, content in parts[:2])
    return {"kty": "RSA", "n": _b64(modulus), "e": _b64(exponent)}


def jwk_from_pem(pem: str) -> dict[str, str]:
    """Return the JWK of a PEM public key (SubjectPublicKeyInfo or PKCS#1). Raises KeyFormatError."""
    found = re.search(r"-----BEGIN ([A-Z ]+)-----(.+?)-----END", pem, re.DOTALL)
    if found is None:
        raise KeyFormatError("the public key is not in PEM form")
    if found[1] not in ("PUBLIC KEY", "RSA PUBLIC KEY"):
        raise KeyFormatError(f"a {found[1]} was found where a public key belongs")
    try:
        data = base64.b64decode("".join(found[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFormatError("the public key is not valid base64") from error
    if found[1] == "RSA PUBLIC KEY":
        return _rsa(data)
    outer = _children(_element(data, 0)[1])
    if len(outer) != 2 or outer[1][0] != 0x03:
        raise KeyFormatError("the public key has an unknown structure")
    algorithm = _children(outer[0][1])
    bits = outer[1][1][1:]
    kind = algorithm[0][1]
    if kind == _RSA:
        return _rsa(bits)
    if kind == _ED25519:
        return {"kty": "OKP", "crv": "Ed25519", "x": _b64(bits)}
    if kind == _EC and len(algorithm) > 1 and algorithm[1][1] in _CURVES:
        curve, size = _CURVES[algorithm[1][1]]
        if len(bits) != 1 + 2 * size or bits[0] != 4:
            raise KeyFormatError("only uncompressed EC points are understood")
        return {"kty": "EC", "crv": curve, "x": _b64(bits[1 : 1 + size]), "y": _b64(bits[1 + size :])}
    raise KeyFormatError("the public key's algorithm is neither RSA, EC nor Ed25519")
