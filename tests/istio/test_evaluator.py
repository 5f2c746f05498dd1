"""The second opinion itself: Envoy's rules, checked one by one."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.errors import GateshiftError, InputError
from gateshift.istio.builders import dns_label
from gateshift.istio.evaluator import Evaluator, Request
from gateshift.istio.fields import check_fields, known_fields
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
    Feature.JWT_FROM_COOKIES: ("RequestAuthentication", "jwtRules[].fromCookies", 21),
    Feature.CORS_UNMATCHED_PREFLIGHTS: ("VirtualService", "http[].corsPolicy.unmatchedPreflights", 23),
    Feature.CREDENTIAL_NAMES: ("Gateway", "servers[].tls.credentialNames", 26),
    Feature.BASIC_AUTH_FILTER: ("envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute", "", 22),
    Feature.LOCAL_LIMIT_WILDCARD: (
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "max_dynamic_descriptors",
        26,
    ),
    Feature.OAUTH2_PER_ROUTE: ("envoy.extensions.filters.http.oauth2.v3.OAuth2PerRoute", "", 30),
}
"""First tag whose CRDs, or whose Envoy API, have the field."""


@pytest.mark.parametrize(("minor", "groups"), SERVED.items())
def test_groups_are_asked_in_the_newest_version_that_is_served(minor: int, groups: tuple[str, ...]) -> None:
    version = parse_version(f"1.{minor}.0")
    found = (version.networking, version.telemetry, version.security, version.peer_authentication)
    assert tuple(one.rpartition("/")[2] for one in found) == groups
    assert version.envoy_filter.endswith("/v1alpha3")


@pytest.mark.parametrize(("feature", "field"), FIELDS.items())
def test_fields_come_with_the_first_tag_that_has_them(feature: Feature, field: tuple[str, str, int]) -> None:
    message, name, minor = field
    assert parse_version(f"1.{minor}").has(feature)
    assert not parse_version(f"1.{minor - 1}").has(feature)
    assert known_fields()[message, name].since == parse_version(f"1.{minor}")


def test_every_gate_and_every_field_has_a_source() -> None:
    assert all(str(parse_version(one.since)) in one.source for one in Feature)
    for field in known_fields().values():
        assert str(field.since) in field.source, field
        assert (
            not field.type or (field.type.removeprefix("map:"), "") in known_fields() or field.type == "map:"
        )


def test_a_field_that_the_version_lacks_is_never_written() -> None:
    def service(http: dict[str, Any]) -> list[dict[str, Any]]:
        spec = {"http": [http]}
        return [{"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "spec": spec}]

    newer = service({"corsPolicy": {"unmatchedPreflights": "IGNORE"}})
    assert check_fields(parse_version("1.23"), newer) == ()
    with pytest.raises(GateshiftError, match=r"needs 1\.23"):
        check_fields(parse_version("1.22"), newer)
    wrong = service({"corsPolicy": {"noSuchField": 1}, "match": [{"headers": {"any-name": {"glob": "x"}}}]})
    assert check_fields(parse_version("1.31"), wrong) == (
        "VirtualService http[].corsPolicy.noSuchField",
        "VirtualService http[].match[].headers{}.glob",
    )


def test_what_stands_in_an_envoy_filter_is_checked_message_by_message() -> None:
    def patched(applied: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        spec = {"configPatches": [{"applyTo": applied, "patch": {"operation": "MERGE", "value": value}}]}
        return [{"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "spec": spec}]

    kind = "type.googleapis.com/envoy.extensions.filters.http"
    per_route = {"@type": f"{kind}.basic_auth.v3.BasicAuthPerRoute", "users": {"inline_string": "x"}}
    value = {"typed_per_filter_config": {"any.name": per_route}}
    assert check_fields(parse_version("1.22"), patched("HTTP_ROUTE", value)) == ()
    with pytest.raises(GateshiftError, match=r"BasicAuthPerRoute needs 1\.22"):
        check_fields(parse_version("1.21"), patched("HTTP_ROUTE", value))
    codes = {"a": {"inline_string": "x"}, "b": {"inline_bytes_of_mine": "x"}}
    code = {"name": "n", "typed_config": {"@type": f"{kind}.lua.v3.Lua", "source_codes": codes}}
    assert check_fields(parse_version("1.31"), patched("HTTP_FILTER", code)) == (
        "envoy.config.core.v3.DataSource inline_bytes_of_mine",
    )
    assert "NO_SUCH_PLACE" in check_fields(parse_version("1.31"), patched("NO_SUCH_PLACE", {"a": 1}))


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
