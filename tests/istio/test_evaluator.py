"""The second opinion itself: Envoy's rules, checked one by one."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.errors import InputError
from gateshift.istio.builders import dns_label
from gateshift.istio.evaluator import Evaluator, Request
from gateshift.istio.versions import Feature, parse_version


def gateway(hosts: list[str], name: str = "g", port: int = 80) -> dict[str, Any]:
    server = {"port": {"number": port}, "hosts": hosts}
    return {"kind": "Gateway", "metadata": {"name": name, "namespace": "n"}, "spec": {"servers": [server]}}


def service(
    hosts: list[str], rules: list[dict[str, Any]], gateways: tuple[str, ...] = ("n/g",)
) -> dict[str, Any]:
    http = [{"route": [{"destination": {"host": "x"}}], **one} for one in rules]
    spec = {"hosts": hosts, "gateways": list(gateways), "http": http}
    return {"kind": "VirtualService", "metadata": {"name": hosts[0], "namespace": "n"}, "spec": spec}


def chosen(objects: list[dict[str, Any]], **request: Any) -> str | None:
    return Evaluator(objects).decide(Request(**request)).entry


def test_an_exact_host_hides_the_wildcard() -> None:
    objects = [
        gateway(["*"]),
        service(["a.test"], [{"name": "exact", "match": [{"uri": {"exact": "/only"}}]}]),
        service(["*.test"], [{"name": "wide"}]),
    ]
    assert chosen(objects, authority="a.test", path="/only") == "exact"
    assert chosen(objects, authority="a.test:8443", path="/only") == "exact"
    assert chosen(objects, authority="a.test", path="/other") is None
    assert chosen(objects, authority="b.test", path="/other") == "wide"


def test_a_wider_service_is_joined_into_a_narrower_server() -> None:
    objects = [
        gateway(["a.test"]),
        service(["*.test"], [{"name": "wide", "match": [{"uri": {"prefix": "/x"}}]}]),
        service(["a.test"], [{"name": "own"}]),
    ]
    assert chosen(objects, authority="a.test", path="/x") == "wide"


def test_prefix_is_a_plain_string_prefix_and_regex_matches_in_full() -> None:
    objects = [
        gateway(["*"]),
        service(
            ["*"],
            [
                {"name": "regex", "match": [{"uri": {"regex": "/a/[0-9]+"}}]},
                {"name": "prefix", "match": [{"uri": {"prefix": "/a"}}]},
            ],
        ),
    ]
    assert chosen(objects, authority="x", path="/a/12") == "regex"
    assert chosen(objects, authority="x", path="/a/12/3") == "prefix"
    assert chosen(objects, authority="x", path="/about") == "prefix"


@pytest.mark.parametrize(
    ("match", "headers", "query", "expected"),
    [
        ({"withoutHeaders": {"x": {"exact": "1"}}}, {}, "", True),
        ({"withoutHeaders": {"x": {"exact": "1"}}}, {"x": "1"}, "", False),
        ({"withoutHeaders": {"x": {"regex": "*"}}}, {"x": "2"}, "", False),
        ({"withoutHeaders": {"x": {"regex": ".*"}}}, {}, "", False),
        ({"headers": {":path": {"regex": r".*[?&]q=1(?:&.*)?"}}}, {}, "a=2&q=1", True),
        ({"queryParams": {"q": {"exact": "1"}}}, {}, "q=1&q=2", True),
        ({"queryParams": {"q": {"exact": "2"}}}, {}, "q=1&q=2", False),
        ({"headers": {"X-A": {"prefix": "v"}}}, {"x-a": "v1"}, "", True),
    ],
)
def test_conditions(match: dict[str, Any], headers: dict[str, str], query: str, expected: bool) -> None:
    objects = [gateway(["*"]), service(["*"], [{"name": "r", "match": [match]}])]
    assert (chosen(objects, authority="x", headers=headers, query=query) == "r") is expected


SERVED = {
    20: ("v1beta1", "v1alpha1", "v1", "v1beta1"),
    21: ("v1beta1", "v1alpha1", "v1", "v1beta1"),
    22: ("v1", "v1", "v1", "v1"),
    31: ("v1", "v1", "v1", "v1"),
}
"""Newest version of each group that the CRDs of istio/api serve at its tags v1.20.0 to v1.30.0."""

FIELDS = {
    Feature.URI_REGEX_REWRITE: 20,
    Feature.CORS_UNMATCHED_PREFLIGHTS: 23,
    Feature.CREDENTIAL_NAMES: 26,
    Feature.CA_CREDENTIAL_NAME: 28,
}
"""First tag whose CRDs have the field (uriRegexRewrite stands in all that are covered)."""


@pytest.mark.parametrize(("minor", "groups"), SERVED.items())
def test_groups_are_asked_in_the_newest_version_that_is_served(minor: int, groups: tuple[str, ...]) -> None:
    version = parse_version(f"1.{minor}.0")
    found = (version.networking, version.telemetry, version.security, version.peer_authentication)
    assert tuple(one.rpartition("/")[2] for one in found) == groups
    assert version.envoy_filter.endswith("/v1alpha3")


@pytest.mark.parametrize(("feature", "minor"), FIELDS.items())
def test_fields_come_with_the_crds_that_have_them(feature: Feature, minor: int) -> None:
    assert parse_version(f"1.{minor}").has(feature)
    assert minor == 20 or not parse_version(f"1.{minor - 1}").has(feature)


def test_versions() -> None:
    assert parse_version("1.21.3").networking == "networking.istio.io/v1beta1"
    assert parse_version("v1.22.0-rc.0").networking == "networking.istio.io/v1"
    assert not parse_version("1.25").has(Feature.LOCAL_LIMIT_WILDCARD)
    for wrong in ("1.19", "1.32", "2.0", "latest", ""):
        with pytest.raises(InputError):
            parse_version(wrong)


def test_labels_never_collide() -> None:
    assert dns_label("plain") == "plain"
    assert dns_label("A b") != dns_label("a b") != dns_label("a-b")
    assert len(dns_label("x" * 200)) <= 63
