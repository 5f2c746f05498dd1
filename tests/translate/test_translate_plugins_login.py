"""openid-connect with a login, by Envoy's oauth2 filter: what is carried over, what differs, what blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateshift.translate import Target, Translation
from tests.translate.helpers import configuration, filters, of_kind, route, rules, run

DISCOVERY = "https://id.test/realms/a/.well-known/openid-configuration"
ENDPOINTS = {
    "authorization": "https://id.test/realms/a/auth?kc=1",
    "token": "https://id.test:8443/realms/a/token",
}
LOGIN = {"secrets": "/etc/istio/ingressgateway-certs", "endpoints": {DISCOVERY: ENDPOINTS}}
OPTIONS = {
    "client_id": "shop",
    "client_secret": "never-copy-this-one",
    "discovery": DISCOVERY,
    "redirect_uri": "https://shop.test/callback",
    "session": {"secret": "and-neither-this-one"},
}


def one(change: Mapping[str, Any] | None = None, version: str = "1.31.0", **more: Any) -> Translation:
    plugins = {"openid-connect": {**OPTIONS, **(change or {})}, **more.pop("plugins", {})}
    config = configuration(routes=[route("r", "/*", plugins=plugins)])
    return run(config, Target(version=version, namespace="app"), **{"login": LOGIN, **more})


def settings(translation: Translation) -> Mapping[str, Any]:
    patches = filters(translation)["gateshift-openid-connect"]["spec"]["configPatches"]
    (settings,) = patches[1]["patch"]["value"]["typed_per_filter_config"].values()
    found = settings["config"]
    assert isinstance(found, Mapping)
    return found


def fates(translation: Translation) -> dict[str, tuple[str, str]]:
    start = "plugins.openid-connect."
    return {
        e.path.removeprefix(start): (str(e.status), e.note)
        for e in translation.ledger
        if e.path.startswith(start)
    }


def test_the_filter_does_nothing_but_on_its_route() -> None:
    translation = one()
    assert not translation.blockers
    spec = filters(translation)["gateshift-openid-connect"]["spec"]
    insert, on = spec["configPatches"]
    assert list(insert["patch"]["value"]["typed_config"]) == ["@type"]
    assert on["applyTo"] == "HTTP_ROUTE"
    assert on["match"]["routeConfiguration"]["vhost"]["route"]["name"] == "r"
    (switched,) = on["patch"]["value"]["typed_per_filter_config"].values()
    assert switched["@type"].endswith("oauth2.v3.OAuth2PerRoute")


def test_what_apisix_tells_the_provider_envoy_tells_it() -> None:
    found = settings(
        one(
            {
                "scope": "openid email",
                "timeout": 7,
                "authorization_params": {"prompt": "select account"},
                "logout_path": "/bye",
                "access_token_expires_in": 60,
            }
        )
    )
    assert found["token_endpoint"] == {
        "cluster": "outbound|8443||id.test",
        "uri": ENDPOINTS["token"],
        "timeout": "7s",
    }
    assert found["authorization_endpoint"] == f"{ENDPOINTS['authorization']}&prompt=select%20account"
    assert found["redirect_uri"] == "https://shop.test/callback"
    assert found["redirect_path_matcher"] == {"path": {"exact": "/callback"}}
    assert found["signout_path"] == {"path": {"exact": "/bye"}}
    assert found["auth_scopes"] == ["openid", "email"]
    assert found["auth_type"] == "BASIC_AUTH"
    assert found["default_expires_in"] == "60s"
    assert (found["forward_bearer_token"], found["use_refresh_token"]) == (True, True)
    post = settings(one({"token_endpoint_auth_method": "client_secret_post"}))
    assert post["auth_type"] == "URL_ENCODED_BODY"
    path = settings(one({"redirect_uri": "/callback"}))
    assert path["redirect_uri"] == "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%/callback"


def test_secrets_are_files_of_the_gateway_and_nowhere_else() -> None:
    translation = one()
    credentials = settings(translation)["credentials"]
    label = credentials["token_secret"]["sds_config"]["path_config_source"]["path"]
    assert label.startswith("/etc/istio/ingressgateway-certs/login-")
    assert label.endswith("-token.yaml")
    assert any(label.rpartition("/")[2] in one for one in translation.warnings)
    told = json.dumps([translation.as_json(), list(translation.objects), list(translation.warnings)])
    for value in (OPTIONS["client_secret"], OPTIONS["session"]["secret"]):  # type: ignore[index]  # a mapping
        assert value not in told
    other = settings(one({"client_id": "office"}))["credentials"]
    assert other["token_secret"] != credentials["token_secret"]
    assert set(other["cookie_names"].values()).isdisjoint(credentials["cookie_names"].values())
    rotated = settings(one({"client_secret": "another"}))["credentials"]
    assert rotated == credentials, "a name that changed with a secret would tell of it"


def test_the_provider_is_reached_as_apisix_reaches_it() -> None:
    def tls(change: Mapping[str, Any]) -> Any:
        (rule,) = [r for r in of_kind(one(change), "DestinationRule") if r["spec"]["host"] == "id.test"]
        return rule["spec"]["trafficPolicy"]["tls"]

    assert tls({}) == {"mode": "SIMPLE", "sni": "id.test"}
    assert tls({"ssl_verify": False})["insecureSkipVerify"] is True


def test_clients_cannot_say_who_they_are() -> None:
    (rule,) = rules(one())
    headers = rule["headers"]["request"]
    assert {"x-userinfo", "x-id-token", "x-raw-id-token", "x-refresh-token"} <= set(headers["remove"])
    assert headers["set"]["x-access-token"] == "%REQ(AUTHORIZATION)%"
    (rule,) = rules(one({"set_access_token_header": False}))
    assert "x-access-token" not in rule["headers"]["request"]["set"]
    assert settings(one({"set_access_token_header": False}))["forward_bearer_token"] is False


def test_every_difference_waits_for_a_signature() -> None:
    translation = one(accept=())
    (blocker,) = translation.blockers
    assert blocker.plugin == "openid-connect"
    for words in ("signature nor issuer", "X-ID-Token", "X-Userinfo", "client_secret", "logs in once more"):
        assert words in blocker.reason, words
    assert "gateshift-openid-connect" not in filters(translation)
    told = fates(one({"use_pkce": True, "realm": "x", "use_jwks": True, "set_id_token_header": False}))
    assert told["use_pkce"][0] == "exact"
    assert told["set_id_token_header"][0] == "exact"
    assert told["realm"][0] == "ignored-default"
    assert "bearer token" in told["use_jwks"][1]
    assert fates(one({"no_such_option": 1}))["no_such_option"][0] == "manual"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"required_scopes": ["admin"]}, "required_scopes"),
        ({"claim_schema": {"type": "object"}}, "claim_schema"),
        ({"claim_validator": {"audience": {"required": True}}}, "audience"),
        ({"unauth_action": "pass"}, "unauth_action"),
        ({"redirect_uri": None}, "redirect_uri"),
        ({"redirect_uri": "https://shop.test"}, "redirect_uri"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "private_key_jwt"),
        ({"par": {"enabled": True}}, "par"),
        ({"dpop": {"enabled": True}}, "dpop"),
        ({"force_reauthorize": True}, "force_reauthorize"),
        ({"client_id": ""}, "client_id"),
        ({"discovery": "https://other.test/.well-known/openid-configuration"}, "login"),
    ],
)
def test_what_would_let_in_others_or_nobody_blocks(change: dict[str, Any], words: str) -> None:
    translation = one(change)
    (blocker,) = translation.blockers
    assert words in blocker.reason
    assert "gateshift-openid-connect" not in filters(translation)


def test_without_a_folder_for_the_secrets_nothing_is_emitted() -> None:
    assert one(login={"endpoints": {DISCOVERY: ENDPOINTS}}).blockers
    assert one(login={}).blockers
    policy = one(login_provider="oauth2-proxy")
    assert of_kind(policy, "AuthorizationPolicy")
    assert "gateshift-openid-connect" not in filters(policy)


def test_preflights_pass_only_where_cors_answers_them() -> None:
    assert "pass_through_matcher" not in settings(one())
    found = settings(one(plugins={"cors": {"allow_origins": "https://a.test"}}))
    assert found["pass_through_matcher"] == [{"name": ":method", "string_match": {"exact": "OPTIONS"}}]


def test_versions() -> None:
    for version in ("1.20", "1.29"):
        translation = one(version=version)
        assert "1.30" in translation.blockers[0].reason
        assert "gateshift-openid-connect" not in filters(translation)
    assert settings(one(version="1.30"))["default_expires_in"] == "3600s"
    assert settings(one({"unauth_action": "deny"}))["deny_redirect_matcher"]
    assert fates(one({"use_pkce": True}))["use_pkce"][0] == "exact"
    assert fates(one({"use_pkce": False}))["use_pkce"][1] == "Envoy always uses PKCE"
