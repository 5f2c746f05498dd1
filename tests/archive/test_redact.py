from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.archive.redact import MASK, Redactor, secret_values, telling

_TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x17F), min_size=9, max_size=40)


@settings(max_examples=150, deadline=None)
@given(_TEXT, st.binary(max_size=5), st.binary(max_size=5))
def test_known_value_is_found_in_every_dress(secret: str, before: bytes, after: bytes) -> None:
    clean = Redactor([secret]).text
    raw = secret.encode()
    dressed = [
        secret,
        repr(secret),
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret, safe=""),
        raw.hex(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        secret.encode("unicode_escape").decode(),
    ]
    for text in dressed:
        assert MASK in clean(f"a {text} b"), text
    # In a longer encoded text the value's inner bytes must not survive.
    longer = base64.b64encode(before + raw + after).decode()
    assert MASK in clean(longer)


@pytest.mark.parametrize(
    "text",
    [
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2VjcmV0c2VjcmV0",
        "Authorization: Bearer c2VjcmV0c2VjcmV0",
        "{'Authorization': 'Basic c2VjcmV0c2VjcmV0'}",
        "X-API-KEY: c2VjcmV0c2VjcmV0",
        'x-api-key="c2VjcmV0c2VjcmV0"',
        "curl -H 'authorization: c2VjcmV0c2VjcmV0'",
        "https://user:c2VjcmV0c2VjcmV0@host/path",
        "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0 (cut off)",
    ],
)
def test_telling_shapes_need_not_be_known(text: str) -> None:
    assert "c2VjcmV0c2VjcmV0" not in Redactor().text(text)


def test_encoded_private_key_of_a_secret_object() -> None:
    for kind in ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"):
        pem = f"-----BEGIN {kind}-----\nMIIEvQIBADANBg\n-----END {kind}-----\n"
        encoded = base64.b64encode(pem.encode()).decode()
        assert encoded[30:] not in Redactor().text(f"tls.key: {encoded}")


def test_values_under_telling_names_go_and_others_stay() -> None:
    clean = Redactor().value(
        {
            "admin_key": "abc",
            "nested": [{"password": "x"}, {"token": "${env:TOKEN}"}],
            "ca_file": "/etc/ca",
            "weight": 5,
            "hint": "the gateway's certificate",
            "tokens_per_second": "100",
        }
    )
    assert clean["admin_key"] == MASK
    assert clean["nested"] == [{"password": MASK}, {"token": "${env:TOKEN}"}]
    assert clean["ca_file"] == "/etc/ca"
    assert (clean["weight"], clean["hint"]) == (5, "the gateway's certificate")
    assert clean["tokens_per_second"] == "100"


def test_ordinary_text_is_left_as_it_is() -> None:
    text = (
        "stage 2 at 25 %: share 24.8 %, verdict hold: 812 of 1000 requests; see https://istio.io/latest?a=b@c"
    )
    assert Redactor(["hunter2secret"]).text(text) == text
    certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
    assert Redactor().text(certificate) == certificate


def test_names() -> None:
    assert telling("admin_key")
    assert telling("X-API-KEY")
    assert telling("bearer_token")
    assert not telling("key")
    assert not telling("token_timeout")
    assert secret_values({"a": {"password": "p1"}, "b": "q"}) == {"p1"}
