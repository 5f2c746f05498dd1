from __future__ import annotations

import base64
import html
import json
import random
import re
import shlex
import time
import unicodedata
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.archive.redact import MASK, Redactor, secret_values, secrets_in, telling

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
        "redis://:c2VjcmV0c2VjcmV0@redis:6379",
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


JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + f"{'MIIEabcd' * 8}\n" * 5 + "-----END RSA PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"{{'token': '{JWT}'}}",
        "Authorization: Bearer c2VjcmV0c2VjcmV0",
        f"a\n{PEM}",
        "db_password=c2VjcmV0",
    ],
)
@pytest.mark.parametrize("before", ["", "token: ", "data-", "/", '{"data": {"token": "'])
def test_base64_of_a_secret_is_taken_out_wherever_it_begins(text: str, before: str) -> None:
    for encoded in (base64.b64encode(text.encode()), base64.urlsafe_b64encode(text.encode())):
        said = f"{before}{encoded.decode()}"
        assert encoded[8:].decode() not in Redactor().text(said), said
    wrapped = base64.encodebytes(text.encode()).decode()
    for said in (f"{before}{wrapped}", wrapped.replace("\n", "\n    "), json.dumps(wrapped)):
        left = Redactor().text(said)
        assert not [line for line in wrapped.splitlines() if line in left], left


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("authorization: ApiKey abcdefgh12345678", f"authorization: ApiKey {MASK}"),
        ("eyJhbGciOiJSU0EtT0FFUCJ9.T0tLS0tL.aXYtaXYt.Y2lwaGVydGV4dA.dGFn end", f"{MASK} end"),
        ("eyJhbGciOiJkaXIifQ0..aXYtaXYt.Y2lwaGVydGV4dA.dGFn", MASK),
        (f"host.example..{JWT}.and.{JWT}. More.", f"host.example..{MASK}.and.{MASK}. More."),
        (f"tenant_{JWT}", f"tenant_{MASK}"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRf", f"aws_secret_access_key = {MASK}"),
        ("secretAccessKey: wJalrXUtnFEMI/K7MDENG/bPxRf", f"secretAccessKey: {MASK}"),
        ("?password=hunter2&user=x", f"?password={MASK}&user=x"),
        ("  password: hunter\n", f"  password: {MASK}\n"),
        ('{"db_password": "correct horse", "a": 1}', f'{{"db_password": "{MASK}", "a": 1}}'),
        ('{\\"client_secret\\": \\"never-copy\\"}', f'{{\\"client_secret\\": \\"{MASK}\\"}}'),
        ("token=0f8fad5b-d9cb-469f-a165-70867728950e", f"token={MASK}"),
    ],
)
def test_values_under_telling_names_in_a_text(text: str, clean: str) -> None:
    assert Redactor().text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "token = get_token2(x); password = os.environ['X']; Client(token=token, password=password)",
        "secret: kube-system/lab-cert-2 is not there; token: expired; password: required for this route",
        "admin_key: ${env:APISIX_ADMIN_KEY}",
        "secretName: lab-cert-20260101, credentialName: gw-cert-20260101, token_file=/var/run/token1234",
        '{"Secret": "SYNCED", "token_type": "Bearer", "client_secret_basic": "BASIC_AUTH"}',
        '{"token": "https://idp.test/token1", "secret": null, "token": 1234567890}',
        "accessTokenLifespan: 300s (token=15)",
        f"digest {'0123456789abcdef' * 4}, uid 0f8fad5b-d9cb-469f-a165-70867728950e",
        "gateshift/archive/no/such/long/path/as/this/one/here/is-really_long",
        base64.b64encode(b"hello world, this is ordinary text: the key of a map").decode(),
        base64.encodebytes(b"ordinary text in many lines\n" * 20).decode(),
    ],
)
def test_words_names_ids_and_ordinary_base64_stay(text: str) -> None:
    assert Redactor().text(text) == text


def test_pictures_stay_and_cost_little() -> None:
    chance = random.Random(1)  # noqa: S311 - a seed, not a secret
    for size in (70, 3000, 300_000):
        picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chance.randbytes(size)).decode()
        # What looks like the beginning of a token inside of it is none.
        for text in (
            picture,
            base64.encodebytes(base64.b64decode(picture)).decode(),
            f"{picture[:40]}ZXlK{picture}",
        ):
            begun = time.process_time()
            assert Redactor().text(text) == text
            assert time.process_time() - begun < 2
    for text in ("a" * 500_000, "-" * 500_000, "a_key_" * 80_000, "token=" * 80_000):
        begun = time.process_time()
        Redactor().text(text)
        assert time.process_time() - begun < 4, text[:20]


@pytest.mark.parametrize(
    "piece",
    [
        *("eyJ", "eyJhbGciOiJkaXIifQ", "eyJhbGciOiJkaXIifQ.", "a.", "a-", "a+", "ZXlK", "LS0tLS1CRUdJTi"),
        *("key=", "authorization: a", "-----BEGIN A", "bearer a", "://", "a:", "secret"),
    ],
)
def test_what_a_client_sends_to_slow_the_archive_down_does_not(piece: str) -> None:
    text = "token " + piece * (150_000 // len(piece))
    begun = time.process_time()
    Redactor(["known-secret"]).text(text)
    assert time.process_time() - begun < 5  # each place is looked at once; squared it would be minutes


ODD = "p&ss<w\"or'd>9 x\u00e4"


@pytest.mark.parametrize(
    "text",
    [
        html.escape(ODD),
        html.escape(ODD, quote=False),
        html.escape(ODD).replace("&#x27;", "&#39;"),
        quote_plus(ODD),
        quote(ODD, safe="!*'()"),
        re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote(ODD, safe="")),
        shlex.quote(ODD),
        repr(ODD.encode()),
        ascii(ODD),
        ODD.encode().hex().upper(),
        base64.b64encode(ODD.encode()).decode().rstrip("="),
        unicodedata.normalize("NFD", ODD),
        base64.encodebytes(b"a" * 51 + ODD.encode() + b"b" * 60).decode(),
    ],
)
def test_known_value_is_found_as_pages_shells_and_browsers_write_it(text: str) -> None:
    clean = Redactor([ODD]).text(f"a {text} b")
    assert MASK in clean
    assert "9" not in clean


def test_a_short_password_in_basic_authorization_and_one_with_its_line_end() -> None:
    clean = Redactor(["h9nt7r2x", "from-a-file7\n"]).text
    for user in (b"", b"a:", b"bo:", b"bob:"):
        assert MASK in clean(base64.b64encode(user + b"h9nt7r2x").decode())
    assert clean("sent from-a-file7.") == f"sent {MASK}."


def test_a_password_that_papermill_took_for_a_number_is_one() -> None:
    parameters = {"password": 82736455, "token_ttl": 3600, "port": 82736455}
    redactor = Redactor(secrets_in(parameters))
    assert redactor.text("password = 82736455, 3600") == f"password = {MASK}, 3600"
    assert redactor.value(parameters) == {**parameters, "password": MASK}


def test_a_value_that_is_no_text_is_no_traceback() -> None:
    assert Redactor(["bytes\udcff-of-a-file"]).text("bytes\udcff-of-a-file") == MASK


def test_a_reference_with_a_default_leads_to_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN", "value-of-the-key")
    monkeypatch.delenv("GATEWAY_TOKEN", raising=False)
    parameters = {
        "admin_key": "${env:GATEWAY_ADMIN:-of-a-lab}",
        "body": "t=${env:GATEWAY_TOKEN:-default-of-it}",
    }
    assert secrets_in(parameters) == {"value-of-the-key", "default-of-it"}
