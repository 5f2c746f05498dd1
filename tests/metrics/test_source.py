import ssl
from pathlib import Path

import pytest

from gateshift.errors import MetricsError
from gateshift.lab.certs import Authority
from gateshift.metrics.source import PrometheusSource
from gateshift.params.model import MetricsParams

from .prometheus import Wire, serve


@pytest.fixture
def wire():
    with serve() as running:
        yield running


def source(wire: Wire, **more: object) -> PrometheusSource:
    return PrometheusSource(MetricsParams(url=wire.url, timeout="500ms", **more))


def test_reads_a_vector_and_sends_tenant_and_token(wire: Wire) -> None:
    wire.responder = lambda query, at: [{"metric": {"a": query}, "value": [at, "NaN"]}]
    answer = source(wire, bearer_token="t0ken", tenant="team").instant("up", 12.5)
    assert answer.series[0].labels == {"a": "up"}
    assert answer.series[0].points[0][0] == 12.5
    assert answer.series[0].value != answer.series[0].value
    assert wire.headers[0]["Authorization"] == "Bearer t0ken"
    assert wire.headers[0]["X-Scope-OrgID"] == "team"


def test_basic_auth(wire: Wire) -> None:
    source(wire, username="u", password="p").instant("up", 1.0)
    assert wire.headers[0]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("extra", [{"warnings": ["store x is down"]}, {"isPartial": True}])
def test_partial_answers_say_so(wire: Wire, extra: dict[str, object]) -> None:
    wire.extra = extra
    assert source(wire).instant("up", 1.0).partial


def test_style_advice_is_not_partial(wire: Wire) -> None:
    wire.extra = {"infos": ["metric might not be a counter"]}
    assert source(wire).instant("up", 1.0).partial == ""


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ((502, b"<html>bad gateway"), "without JSON"),
        ((400, b'{"status":"error","error":"parse error"}'), "parse error"),
        ((200, b"[]"), "not an API answer"),
        (
            (200, b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}'),
            "cannot be read",
        ),
        ((200, b'{"status":"success","data":{"resultType":"string","result":[1,"x"]}}'), "cannot be read"),
    ],
)
def test_failures_are_ours_and_named(wire: Wire, raw: tuple[int, bytes], words: str) -> None:
    wire.raw = raw
    with pytest.raises(MetricsError, match=words):
        source(wire, bearer_token="t0ken").instant("up", 1.0)


def test_no_server_and_no_secret_in_the_message() -> None:
    params = MetricsParams(url="http://user:s3cret@127.0.0.1:9", timeout="200ms")
    with pytest.raises(MetricsError) as caught:
        PrometheusSource(params).instant("up", 1.0)
    assert "s3cret" not in str(caught.value)


def test_unusable_certificates_are_named() -> None:
    with pytest.raises(MetricsError, match="certificate"):
        PrometheusSource(MetricsParams(url="https://127.0.0.1:9", ca_file="/nowhere/ca.pem"))


def test_a_prometheus_behind_mutual_tls_is_read_with_a_certificate_only(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    server = authority.issue("server", "prometheus", names=["127.0.0.1"])
    client = authority.issue("client", "gateshift")
    stranger = Authority(tmp_path / "theirs").issue("client", "gateshift")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(server.certificate, server.key)
    with serve(tls) as wire:
        wire.responder = lambda query, at: [{"metric": {}, "value": [at, "1"]}]

        def ask(**files: object) -> float:
            with PrometheusSource(MetricsParams(url=wire.url, timeout="5s", **files)) as prometheus:
                return prometheus.instant("up", 1.0).series[0].value

        trusted = {"ca_file": str(authority.certificate)}
        assert ask(**trusted, cert_file=str(client.certificate), key_file=str(client.key)) == 1.0
        # Refused in TLS 1.3 after our first bytes: as an alert, or as a connection that is gone.
        with pytest.raises(MetricsError, match=r"https://127\.0\.0\.1"):
            ask(**trusted)
        with pytest.raises(MetricsError, match=r"https://127\.0\.0\.1"):
            ask(**trusted, cert_file=str(stranger.certificate), key_file=str(stranger.key))
        with pytest.raises(MetricsError, match=r"(?i)certificate"):
            ask(ca_file=str(tmp_path / "theirs" / "ca.crt"))  # the server is not the one we trust
        assert len(wire.headers) == 1, "only the first was served"
