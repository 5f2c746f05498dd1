"""One configuration for every Istio version: nothing newer is emitted, and what is left out is said."""

from __future__ import annotations

from functools import cache

import pytest

from gateshift.istio.fields import Field, fields_of, known_fields
from gateshift.istio.versions import NEWEST, OLDEST, Feature, parse_version
from gateshift.translate import Translation
from tests.translate.everything import translated

VERSIONS = [f"1.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]


@cache
def at(version: str) -> Translation:
    return translated(version)


def used(version: str) -> dict[tuple[str, str], Field]:
    table = known_fields()
    return {use: table[use] for use in fields_of(at(version).objects)}  # a KeyError: no row for a field


def note(version: str, resource: str, path: str) -> tuple[str, str]:
    (entry,) = [e for e in at(version).ledger if (e.resource, e.path) == (resource, path)]
    return str(entry.status), entry.note


def test_a_policy_has_the_same_fields_for_a_host_and_for_a_subset() -> None:
    fields = {one.name for one in known_fields().values() if one.message == "DestinationRule"}
    sets = [
        {one.removeprefix(start) for one in fields if one.startswith(start)}
        for start in ("trafficPolicy.", "subsets[].trafficPolicy.")
    ]
    assert sets[0] == sets[1], "a warning would tell an operator to check a field that is fine"


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_emitted_that_the_version_lacks(version: str) -> None:
    newest = parse_version(version)
    assert not [str(one) for one in used(version).values() if one.since > newest]
    groups = {one["kind"]: one["apiVersion"].rpartition("/")[2] for one in at(version).objects}
    v1 = newest.has(Feature.NETWORKING_V1)
    wanted = {
        "Gateway": "v1" if v1 else "v1beta1",
        "VirtualService": "v1" if v1 else "v1beta1",
        "DestinationRule": "v1" if v1 else "v1beta1",
        "ServiceEntry": "v1" if v1 else "v1beta1",
        "Telemetry": "v1" if v1 else "v1alpha1",
        "RequestAuthentication": "v1",
        "AuthorizationPolicy": "v1",
        "EnvoyFilter": "v1alpha3",
    }
    assert wanted.items() <= groups.items()


def test_the_newest_version_gets_every_field_that_has_a_version() -> None:
    newer = {use for use, one in known_fields().items() if one.since > parse_version("1.20")}
    assert newer <= set(used("1.31")), "a field of the table that this configuration does not show"


BLOCKED = {
    Feature.BASIC_AUTH_FILTER: ("routes/basic", "basic-auth"),
    Feature.LOCAL_LIMIT_WILDCARD: ("routes/count", "limit-count"),
    Feature.OAUTH2_PER_ROUTE: ("routes/login", "openid-connect"),
    Feature.PATH_FORMAT: ("routes/path-value", "response-rewrite"),
}
"""Features without which a plugin would be lost: its route waits for a decision."""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plugin_that_the_version_cannot_hold_blocks(version: str) -> None:
    found = {(b.resource, b.plugin): b for b in at(version).blockers}
    for feature, (resource, plugin) in BLOCKED.items():
        if parse_version(version).has(feature):
            assert (resource, plugin) not in found
            continue
        assert feature.since in found[resource, plugin].reason
        refused = [
            rule["directResponse"]["status"]
            for one in at(version).objects
            if one["kind"] == "VirtualService"
            for rule in one["spec"].get("http", ())
            if rule["name"] == resource.partition("/")[2]
        ]
        assert set(refused) <= {503}, "without the plugin the route must not be open"


LEFT_OUT = {
    Feature.JWT_FROM_COOKIES: ("routes/jwt", "plugins.jwt-auth"),
    Feature.RETRY_RESET_BEFORE_REQUEST: ("routes/pools", "upstream.retries"),
    Feature.CREDENTIAL_NAMES: ("ssls/two", "certs[0]"),
}
"""Features whose absence changes something: the ledger names the version that has it."""


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_left_out_stands_in_the_ledger(version: str) -> None:
    for feature, (resource, path) in LEFT_OUT.items():
        status, text = note(version, resource, path)
        if parse_version(version).has(feature):
            assert feature.since not in text
        else:
            assert feature.since in text
            assert status in ("approximate", "none")


EMULATED = {Feature.CORS_UNMATCHED_PREFLIGHTS, Feature.UPSTREAM_VERIFY_BY_DEFAULT}
"""Features that older versions are given by other fields."""


def test_older_versions_are_told_what_newer_ones_do_by_themselves() -> None:
    def tls(version: str) -> dict[str, object]:
        (rule,) = [
            one
            for one in at(version).objects
            if one["kind"] == "DestinationRule" and one["spec"]["host"] == "auth.test"
        ]
        found = rule["spec"]["trafficPolicy"]["tls"]
        assert isinstance(found, dict)
        return found

    plain = {"mode": "SIMPLE", "sni": "auth.test"}
    assert tls("1.21") == plain
    assert tls("1.20") == {**plain, "caCertificates": "system", "subjectAltNames": ["auth.test"]}

    def guards(version: str) -> list[str]:
        return [
            rule["name"]
            for one in at(version).objects
            if one["kind"] == "VirtualService"
            for rule in one["spec"].get("http", ())
            if rule["name"].endswith("guard-preflight")
        ]

    assert guards("1.22")
    assert not guards("1.23")


def test_every_feature_is_shown_here() -> None:
    groups = {Feature.NETWORKING_V1, Feature.TELEMETRY_V1, Feature.PEER_AUTHENTICATION_V1}
    elsewhere = {Feature.GATEWAY_API}  # test_translate_gateway_api.py
    assert set(Feature) == set(BLOCKED) | set(LEFT_OUT) | EMULATED | groups | elsewhere
