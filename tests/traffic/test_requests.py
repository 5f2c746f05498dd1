"""Requests for parity: recorded in a HAR file, generated from the routes; what counts as alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.apisix.readers import read_files
from gateshift.errors import ParamsError
from gateshift.params import secrets_of
from gateshift.traffic.probes import Answer, _difference
from gateshift.traffic.requests import generated, recorded

SAMPLE = Path(__file__).parents[2] / "params" / "lab" / "apisix.yaml"


def har(tmp_path: Path, *requests: dict[str, Any]) -> Path:
    path = tmp_path / "recorded.har"
    path.write_text(json.dumps({"log": {"entries": [{"request": r} for r in requests]}}))
    return path


GET = {
    "method": "GET",
    "url": "https://api.voiceassistant.com/api/v1/users/me?full=1",
    "headers": [
        {"name": "Authorization", "value": "Bearer very-secret"},
        {"name": "Accept-Language", "value": "de"},
        {"name": "Host", "value": "elsewhere"},
        {"name": ":path", "value": "/"},
    ],
}


def test_recorded_requests_are_replayed_once_with_their_headers(tmp_path: Path) -> None:
    post = {"method": "POST", "url": "http://api.voiceassistant.com/login", "postData": {"text": '{"a": 1}'}}
    one, two = recorded(har(tmp_path, GET, GET, post))
    assert (one.host, one.path, one.tls) == ("api.voiceassistant.com", "/api/v1/users/me?full=1", True)
    assert set(one.headers) == {"accept-language"}
    assert (two.method, two.body, two.tls) == ("POST", '{"a": 1}', False)
    assert "very-secret" not in repr(one)
    assert "very-secret" in secrets_of(one)


@pytest.mark.parametrize("broken", ["", "{}", '{"log": {"entries": 3}}'])
def test_what_is_no_har_file_is_said(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "x.har"
    path.write_text(broken)
    with pytest.raises(ParamsError, match="is not a HAR file"):
        recorded(path)
    with pytest.raises(ParamsError, match="cannot be read"):
        recorded(tmp_path / "none.har")
    with pytest.raises(ParamsError, match=r"log\.entries\[0\] cannot be replayed"):
        recorded(har(tmp_path, {"method": "GET", "url": "nonsense"}))


def test_generated_requests_aim_at_every_route_that_takes_a_get() -> None:
    made = generated(read_files([SAMPLE], env={}), 1000)
    assert made
    assert {p.method for p in made} == {"GET"}
    assert all(p.path.startswith("/") and "*" not in p.host + p.path for p in made)
    assert len(generated(read_files([SAMPLE], env={}), 3)) == 3


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (Answer(401), Answer(403), ""),
        (Answer(404, content_type="text/html"), Answer(404), ""),
        (
            Answer(302, location="https://a/x?t=s"),
            Answer(302, location="https://b/x"),
            "redirects to https://a/x, ",
        ),
        (Answer(200, content_type="a/b"), Answer(200, content_type="c/d"), "sends a/b"),
        (Answer(200), Answer(403), "APISIX answers 200, Istio 403"),
    ],
)
def test_what_counts_as_alike(old: Answer, new: Answer, why: str) -> None:
    found = _difference(old, new)
    assert (why in found) if why else not found
