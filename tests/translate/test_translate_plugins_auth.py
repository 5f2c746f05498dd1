"""Who may pass: credentials, tokens, services that decide, and what never leaves the source."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.translate import Target, Translation
from tests.translate.helpers import RSA_PUBLIC, configuration, filters, of_kind, route, rules, run

PASSWORD, KEY = "correct horse battery staple", "a-long-and-random-key"
CONSUMERS = [
    {
        "username": "pay",
        "plugins": {"basic-auth": {"username": "pay", "password": PASSWORD}, "key-auth": {"key": KEY}},
    },
    {
        "username": "web",
        "plugins": {"jwt-auth": {"key": "web", "algorithm": "RS256", "public_key": RSA_PUBLIC}},
    },
]


def one(plugins: dict[str, Any], version: str = "1.31.0", **params: Any) -> Translation:
    config = configuration(routes=[route("r", "/r/*", plugins=plugins)], consumers=CONSUMERS)
    return run(config, Target(version=version, namespace="app"), **params)


def test_basic_auth_needs_a_decision_about_its_hashes() -> None:
    (blocker,) = one({"basic-auth": {}}).blockers
    assert "SHA-1" in blocker.reason
    allowed = one({"basic-auth": {}}, inline_credentials=True)
    assert not allowed.blockers
    assert PASSWORD not in str(allowed.objects) + str(allowed.as_json())
    assert "pay:{SHA}" in str(filters(allowed)["gateshift-basic-auth"])
    for version in ("1.20", "1.21"):  # 1.21 has the filter, but not for single routes
        assert "1.22" in one({"basic-auth": {}}, version, inline_credentials=True).blockers[0].reason


@pytest.mark.parametrize("plugin", ["basic-auth", "key-auth", "jwt-auth", "openid-connect"])
def test_an_anonymous_consumer_or_a_login_is_never_dropped(plugin: str) -> None:
    options = {"anonymous_consumer": "guest"} if plugin != "openid-connect" else {"client_id": "x"}
    translation = one({plugin: options}, inline_credentials=True, jwt_issuers={"*": "https://i.test"})
    assert [b.plugin for b in translation.blockers] == [plugin]
    assert "directResponse" in rules(translation)[0] if rules(translation) else True


BEARER = {
    "client_id": "app",
    "client_secret": "do-not-copy-this",
    "bearer_only": True,
    "use_jwks": True,
    "discovery": "https://id.test/realms/a/.well-known/openid-configuration",
}


def test_bearer_tokens_are_required_from_the_provider() -> None:
    translation = one({"openid-connect": BEARER})
    (authentication,) = of_kind(translation, "RequestAuthentication")
    (rule,) = authentication["spec"]["jwtRules"]
    assert rule["issuer"] == "https://id.test/realms/a"
    assert "jwks" not in rule  # Istio reads the discovery document of the issuer
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert policy["spec"]["action"] == "DENY"
    assert policy["spec"]["rules"][0]["when"] == [
        {"key": "request.auth.claims[iss]", "notValues": ["https://id.test/realms/a"]}
    ]
    assert "do-not-copy-this" not in str(translation.objects) + str(translation.as_json())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"discovery": "$env://DISCOVERY"}, "issuer"),
        ({"bearer_only": False}, "login"),
        ({"claim_validator": {"audience": {"claim": "azp", "required": True}}}, "aud"),
    ],
)
def test_what_a_request_authentication_cannot_do_blocks(change: dict[str, Any], reason: str) -> None:
    translation = one({"openid-connect": {**BEARER, **change}})
    assert reason in translation.blockers[0].reason
    assert not of_kind(translation, "RequestAuthentication")


def test_tokens_that_are_introspected_are_checked_by_signature_once_that_is_signed() -> None:
    options = {**BEARER, "use_jwks": False, "introspection_endpoint": "https://id.test/introspect"}
    translation = one({"openid-connect": options})
    (authentication,) = of_kind(translation, "RequestAuthentication")
    assert authentication["spec"]["jwtRules"][0]["issuer"] == "https://id.test/realms/a"
    assert of_kind(translation, "AuthorizationPolicy")
    unsigned = one({"openid-connect": options}, accept=())
    assert "revoked token passes until it expires" in unsigned.blockers[0].reason
    assert not rules(unsigned)


def test_a_login_goes_to_the_provider_that_was_named() -> None:
    translation = one({"openid-connect": {**BEARER, "bearer_only": False}}, login_provider="oauth2-proxy")
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert (policy["spec"]["action"], policy["spec"]["provider"]) == ("CUSTOM", {"name": "oauth2-proxy"})
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["paths"] == ["/r/*"]
    assert not of_kind(translation, "RequestAuthentication")


def test_other_routes_keep_their_own_tokens() -> None:
    config = configuration(
        routes=[route("guarded", "/a", plugins={"jwt-auth": {}}), route("free", "/b")], consumers=CONSUMERS
    )
    found = filters(run(config, jwt_issuers={"*": "https://i.test"}))["gateshift-tokens"]
    names = [
        patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
        for patch in found["spec"]["configPatches"]
    ]
    assert names == ["free"]


def test_restrictions_of_consumers() -> None:
    issuers = {"*": "https://i.test"}
    by_claim = one({"jwt-auth": {}, "consumer-restriction": {"whitelist": ["web"]}}, jwt_issuers=issuers)
    whens = [p["spec"]["rules"][0]["when"] for p in of_kind(by_claim, "AuthorizationPolicy")]
    assert [{"key": "request.auth.claims[key]", "notValues": ["web"]}] in whens
    nobody = one({"jwt-auth": {}, "consumer-restriction": {"whitelist": ["gone"]}}, jwt_issuers=issuers)
    whens = [p["spec"]["rules"][0]["when"] for p in of_kind(nobody, "AuthorizationPolicy")]
    assert [{"key": "request.auth.claims[key]", "notValues": ["-"]}] in whens
    by_filter = one({"key-auth": {}, "consumer-restriction": {"blacklist": ["pay"]}})
    assert not by_filter.blockers
    assert "gateshift-consumer-restriction" in filters(by_filter)
    assert one({"consumer-restriction": {"whitelist": ["web"]}}).blockers
    assert one({"key-auth": {}, "consumer-restriction": {"type": "route_id", "whitelist": ["1"]}}).blockers


def test_a_service_that_decides_is_called_where_it_stands() -> None:
    translation = one({"forward-auth": {"uri": "https://auth.test/check", "ssl_verify": False}})
    code = str(filters(translation)["gateshift-forward-auth"])
    assert "outbound|443||auth.test" in code
    (rule,) = [r for r in of_kind(translation, "DestinationRule") if r["spec"]["host"] == "auth.test"]
    assert rule["spec"]["trafficPolicy"]["tls"] == {
        "mode": "SIMPLE",
        "sni": "auth.test",
        "insecureSkipVerify": True,
    }
    assert [e["spec"]["hosts"] for e in of_kind(translation, "ServiceEntry")] == [["auth.test"]]
    assert one({"forward-auth": {"uri": "http://$host/check"}}).blockers
    assert one({"opa": {"host": "http://opa:8181", "policy": "p", "with_route": True}}).blockers


def test_no_text_of_the_configuration_can_become_code() -> None:
    """A consumer's name or a header's value ends up inside a Lua string, whatever it contains."""
    name = 'x"]=1} os.execute("true") --\n'
    consumer = {"username": name, "plugins": {"key-auth": {"key": KEY}}}
    config = configuration(routes=[route("r", "/r", plugins={"key-auth": {}})], consumers=[consumer])
    code = str(filters(run(config))["gateshift-key-auth"])
    assert "os.execute(" in code
    assert "\\\\034]=1} os.execute(\\\\034true\\\\034) --\\\\010" in code
