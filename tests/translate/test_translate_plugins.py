"""What each plugin becomes, and the classification of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateshift.translate import Target
from gateshift.translate.docs import plugins_page
from gateshift.translate.plugins.registry import facts, handled
from gateshift.translate.plugins.rewrite import regex_rewrite
from tests.translate.helpers import RSA_PUBLIC, configuration, filters, of_kind, route, rules, run


def one(plugins: dict[str, Any], **fields: Any) -> Any:
    return run(configuration(routes=[route("r", "/r/*", plugins=plugins, **fields)]))


def test_all_126_plugins_are_classified_and_documented() -> None:
    assert len(facts()) == 126
    assert set(handled()) <= set(facts())
    page = plugins_page()
    assert all(f"| {name} |" in page for name in facts())
    written = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert written == page, "make it anew: python -m gateshift.translate.docs docs/plugins.md"


def test_every_http_plugin_that_maps_at_all_has_a_rule() -> None:
    maps = {n for n, f in facts().items() if f.fidelity in ("exact", "approximate")}
    assert {name for name in maps - set(handled()) if not name.startswith("stream:")} == set()


@pytest.mark.parametrize("name", sorted(n for n, f in facts().items() if f.guards_access_or_money))
def test_no_security_or_billing_plugin_is_dropped_in_silence(name: str) -> None:
    """With empty options each must either block its route or be accounted for as converted."""
    translation = one({name: {}})
    entries = [e for e in translation.ledger if e.path.startswith("plugins")]
    assert entries
    if not translation.blockers:
        assert {str(e.status) for e in entries} <= {"exact", "approximate"}


def test_an_unknown_plugin_blocks() -> None:
    assert one({"company-auth": {"x": 1}}).blockers[0].plugin == "company-auth"


def test_cors_leaves_preflights_to_the_filter_and_answers_other_options_itself() -> None:
    options, served = rules(one({"cors": {"allow_origins": "https://a.test", "max_age": 60}}))
    assert [one["method"] for one in options["match"]] == [{"exact": "OPTIONS"}] * 2
    assert [list(one["withoutHeaders"]) for one in options["match"]] == [
        ["origin"],
        ["access-control-request-method"],
    ]
    assert options["directResponse"] == {"status": 200}
    assert served["corsPolicy"]["unmatchedPreflights"] == "IGNORE"
    assert served["corsPolicy"]["allowOrigins"] == [{"exact": "https://a.test"}]
    assert served["corsPolicy"]["maxAge"] == "60s"
    assert served["corsPolicy"]["allowCredentials"] is False


def test_limit_req_is_on_for_its_route_only() -> None:
    translation = one({"limit-req": {"rate": 100, "burst": 50, "key": "remote_addr", "rejected_code": 429}})
    found = filters(translation)["gateshift-limit-req"]
    insertion, patch = found["spec"]["configPatches"]
    assert "filter_enabled" not in insertion["patch"]["value"]["typed_config"]
    assert patch["match"]["routeConfiguration"]["vhost"]["route"]["name"] == "r"
    config = patch["patch"]["value"]["typed_per_filter_config"]["gateshift.limit_req"]
    assert config["status"] == {"code": 429}
    assert config["descriptors"][0]["token_bucket"] == {
        "max_tokens": 150,
        "tokens_per_fill": 100,
        "fill_interval": "1s",
    }
    for share in ("filter_enabled", "filter_enforced"):
        assert config[share]["default_value"] == {"numerator": 100, "denominator": "HUNDRED"}


def test_limit_per_client_blocks_where_istio_cannot_count_clients() -> None:
    config = configuration(routes=[route("r", "/r", plugins={"limit-req": {"rate": 1, "burst": 0}})])
    translation = run(config, Target(version="1.25", namespace="app"))
    assert "1.26" in translation.blockers[0].reason


def _jwt(**params: Any) -> Any:
    consumer = {
        "username": "web",
        "plugins": {"jwt-auth": {"key": "web-key", "algorithm": "RS256", "public_key": RSA_PUBLIC}},
    }
    config = configuration(
        routes=[
            route("private", "/p/*", host="a.test", plugins={"jwt-auth": {}}),
            route("open", "/p/open", host="a.test", methods=["GET"]),
        ],
        consumers=[consumer],
    )
    return run(config, **params)


def test_jwt_auth_requires_the_token_exactly_where_apisix_does() -> None:
    translation = _jwt(jwt_issuers={"web": "https://issuer.test"})
    (authentication,) = of_kind(translation, "RequestAuthentication")
    rule = authentication["spec"]["jwtRules"][0]
    assert rule["issuer"] == "https://issuer.test"
    assert rule["forwardOriginalToken"] is True
    key = json.loads(rule["jwks"])["keys"][0]
    assert (key["kty"], key["e"], key["alg"]) == ("RSA", "AQAB", "RS256")
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert policy["spec"]["action"] == "DENY"
    private = {"hosts": ["a.test", "a.test:*"], "paths": ["/p/*"], "notPaths": ["/p/open"]}
    other = {"hosts": ["a.test", "a.test:*"], "paths": ["/p/open"], "notMethods": ["GET"]}
    issuer = "request.auth.claims[iss]"
    stranger = [{"key": issuer, "notValues": ["https://issuer.test"]}]
    nobody = [
        {"key": issuer, "values": ["https://issuer.test"]},
        {"key": "request.auth.claims[key]", "notValues": ["web-key"]},
    ]
    assert policy["spec"]["rules"] == [
        {"to": [{"operation": operation}], "when": when}
        for operation in (private, other)
        for when in (stranger, nobody)
    ]


def test_each_issuer_vouches_for_its_own_consumers() -> None:
    consumers = [
        {
            "username": name,
            "plugins": {"jwt-auth": {"key": name, "algorithm": "RS256", "public_key": RSA_PUBLIC}},
        }
        for name in ("admin", "guest")
    ]
    config = configuration(routes=[route("r", "/*", plugins={"jwt-auth": {}})], consumers=consumers)
    translation = run(config, jwt_issuers={"admin": "https://a.test", "guest": "https://g.test"})
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert [rule["when"] for rule in policy["spec"]["rules"]] == [
        [{"key": "request.auth.claims[iss]", "notValues": ["https://a.test", "https://g.test"]}],
        *(
            [
                {"key": "request.auth.claims[iss]", "values": [f"https://{name[0]}.test"]},
                {"key": "request.auth.claims[key]", "notValues": [name]},
            ]
            for name in ("admin", "guest")
        ),
    ]


_TOLD = "experimental.envoy.filters.http.gateshift[host]"
_CLOSED = {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}


def test_a_policy_on_a_wildcard_reads_the_host_without_its_port() -> None:
    routes = [
        route("wild", "/*", host="*.a.test", plugins=_CLOSED),
        route("inside", "/*", host="b.a.test"),
        route("beside", "/*", host="c.test"),
    ]
    translation = run(configuration(routes=routes))
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    first, second = policy["spec"]["rules"]
    assert first["when"] == [{"key": _TOLD, "values": ["*.a.test"], "notValues": ["b.a.test"]}]
    assert second["to"][0]["operation"]["hosts"] == ["*.a.test", "*.a.test:80", "*.a.test:443"]
    assert second["to"][0]["operation"]["notHosts"] == ["b.a.test", "b.a.test:*"]
    (patch,) = filters(translation)["gateshift-hosts"]["spec"]["configPatches"]
    assert patch["patch"]["operation"] == "INSERT_FIRST"


def test_a_policy_without_host_spares_only_hosts_that_are_spelled_rightly() -> None:
    routes = [route("all", "/*", plugins=_CLOSED), route("one", "/*", host="c.test")]
    translation = run(configuration(routes=routes))
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    (rule,) = policy["spec"]["rules"]
    assert rule["when"] == [{"key": _TOLD, "notValues": ["c.test"]}]
    alone = run(configuration(routes=[route("one", "/*", host="c.test", plugins=_CLOSED)]))
    assert "gateshift-hosts" not in filters(alone), "a single host needs no filter"


@pytest.mark.parametrize(
    ("cors", "spared"),
    [
        ({}, ["OPTIONS"]),
        ({"_meta": {"disable": True}}, None),
        ({"_meta": {"filter": [["http_x", "==", "1"]]}}, None),
    ],
)
def test_only_cors_that_answers_every_preflight_spares_them_from_a_policy(
    cors: dict[str, Any], spared: list[str] | None
) -> None:
    (policy,) = of_kind(one({"cors": cors, **_CLOSED}), "AuthorizationPolicy")
    assert policy["spec"]["rules"][0]["to"][0]["operation"].get("notMethods") == spared


def test_cors_of_a_global_rule_answers_preflights_before_the_routes_policies() -> None:
    config = configuration(
        routes=[route("r", "/*", plugins=_CLOSED)], global_rules=[{"id": "1", "plugins": {"cors": {}}}]
    )
    (policy,) = of_kind(run(config), "AuthorizationPolicy")
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["notMethods"] == ["OPTIONS"]


def test_an_option_without_a_value_is_no_preflight() -> None:
    (virtual,) = of_kind(one({"cors": {}}), "VirtualService")
    guards = [m for rule in virtual["spec"]["http"] if "directResponse" in rule for m in rule["match"]]
    asked = [m["withoutHeaders"] for m in guards if m.get("method") == {"exact": "OPTIONS"}]
    assert {"origin": {"regex": ".+"}} in asked
    assert {"access-control-request-method": {"regex": ".+"}} in asked


def test_client_certificates_become_optional_only_when_a_person_signs() -> None:
    client = {"ca": "x", "skip_mtls_uri_regex": ["/health"]}
    config = configuration(
        routes=[route("r", "/*", host="a.test")],
        ssls=[{"id": "m", "snis": ["a.test"], "cert": "x", "key": "x", "client": client}],
    )

    def mode(translation: Any) -> str:
        servers = [s for g in of_kind(translation, "Gateway") for s in g["spec"]["servers"] if "tls" in s]
        return str(servers[0]["tls"]["mode"])

    held = run(config)
    assert [(b.resource, b.plugin) for b in held.blockers] == [("ssls/m", "client.skip_mtls_uri_regex")]
    assert mode(held) == "MUTUAL"
    accept = [
        {
            "resource": "ssls/m",
            "plugin": "client.skip_mtls_uri_regex",
            "who": "Ann",
            "why": "none of them is public",
        }
    ]
    signed = run(config, accept=accept)
    assert not signed.blockers
    assert mode(signed) == "OPTIONAL_MUTUAL"


def test_an_issuer_that_is_guessed_from_an_address_is_said_to_be() -> None:
    plugin = {"bearer_only": True, "discovery": "http://idp:8080/r/x/.well-known/openid-configuration"}
    config = configuration(routes=[route("r", "/*", plugins={"openid-connect": plugin})])

    def told(**params: Any) -> list[tuple[str, bool]]:
        found = [e for e in run(config, **params).ledger if e.path.endswith("discovery")]
        return [(e.status.value, "compare it with the document" in e.note) for e in found]

    assert told() == [("approximate", True)]
    assert told(jwt_issuers={"openid-connect": "https://idp.example"}) == [("exact", False)]


def test_jwt_auth_without_a_known_issuer_blocks() -> None:
    assert "issuer" in _jwt().blockers[0].reason


def test_a_shared_secret_is_never_copied() -> None:
    consumer = {"username": "u", "plugins": {"jwt-auth": {"key": "u", "secret": "do-not-copy-this"}}}
    config = configuration(routes=[route("r", "/r", plugins={"jwt-auth": {}})], consumers=[consumer])
    translation = run(config, jwt_issuers={"*": "https://issuer.test"})
    assert "do-not-copy-this" not in str(translation.objects) + str(translation.as_json())
    assert translation.blockers


def test_a_policy_that_cannot_be_limited_to_its_route_blocks() -> None:
    plugins = {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}
    config = configuration(
        routes=[
            route("guarded", "/a/*", plugins=plugins, vars=[["http_x", "==", "1"]], priority=1),
            route("open", "/a/*"),
        ]
    )
    translation = run(config)
    assert [b.plugin for b in translation.blockers] == ["ip-restriction"]
    assert not of_kind(translation, "AuthorizationPolicy")


def test_no_allow_policy_is_ever_emitted() -> None:
    for plugins in (
        {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}},
        {"ip-restriction": {"blacklist": ["10.1.1.1"]}},
    ):
        actions = {p["spec"]["action"] for p in of_kind(one(plugins), "AuthorizationPolicy")}
        assert actions == {"DENY"}


def test_key_auth_shows_no_key() -> None:
    consumer = {"username": "pay", "plugins": {"key-auth": {"key": "a-long-and-random-key"}}}
    config = configuration(routes=[route("r", "/r", plugins={"key-auth": {}})], consumers=[consumer])
    translation = run(config)
    assert not translation.blockers
    text = str(translation.objects)
    assert "a-long-and-random-key" not in text
    assert "pay" in text


@pytest.mark.parametrize(
    ("pattern", "replacement", "path", "expected"),
    [
        ("^/api/(.*)", "/$1", "/api/x/y", "/x/y"),
        ("^/api", "", "/api/api/x", "/api/x"),
        ("/v1", "/v2", "/a/v1/v1", "/a/v2/v1"),
        ("a(b)c", "<$1>", "/xabcabc", "/x<b>abc"),
        ("^/x|^/y", "/z", "/y/1", "/z/1"),
        ("^/a/(.*)", "/$2x", "/a/b", "/x"),
        ("^/a/(.*)", "/$12", "/a/b", "/"),
        ("^/a/(.*)", "/${1}2", "/a/b", "/b2"),
        ("^/a/(.*)", "/$$1", "/a/b", "/$1"),
        ("b", "<$0>", "/abc", "/a<b>c"),
        ("b", "$1", "/abc", "/ac"),
        (r"^/a\(x|/b\)", "/z", "/q/b)", "/q/z"),
    ],
)
def test_regex_uri_replaces_the_first_match_only(
    pattern: str, replacement: str, path: str, expected: str
) -> None:
    rule = regex_rewrite(pattern, replacement)
    # Envoy replaces every match (RE2::GlobalReplace); Python's sub does the same.
    found = re.sub(rule["match"], re.sub(r"\\(\d)", r"\\g<\1>", rule["rewrite"]), path)
    assert found == expected


@pytest.mark.parametrize(
    ("pattern", "target", "matches"),
    [
        ("^/a|/b/", "/z/b/1", True),
        ("^/a|/b/", "/a?x=/b/", True),
        ("^/a|/b/", "/z?x=/b/", False),
        ("^/a$|^/b$", "/a?x=1", True),
        ("^/a$|^/b$", "/b", True),
        ("^/a$|^/b$", "/ab", False),
        ("^/q/[^a]*z", "/q/?z", False),
        ("z$", "/xyz?a", True),
        ("z$", "/x?z", False),
    ],
)
def test_of_several_rewrites_each_alternative_has_its_own_anchors(
    pattern: str, target: str, matches: bool
) -> None:
    """Each pair is a rule of its own; its pattern is searched in the path, never in the query string."""
    rule = rules(one({"proxy-rewrite": {"regex_uri": [pattern, "/x", "^/never", "/y"]}}))[0]
    condition = rule["match"][0]["headers"][":path"]["regex"]
    assert bool(re.fullmatch(condition, target)) is matches


def test_a_dollar_without_a_group_is_no_replacement_for_apisix_either() -> None:
    for replacement in ("/$x", "/$", "/${a}"):
        assert one({"proxy-rewrite": {"regex_uri": ["^/r/(.*)", replacement]}}).blockers


def test_proxy_rewrite_replaces_the_whole_path() -> None:
    (rule,) = rules(one({"proxy-rewrite": {"uri": "/new", "headers": {"set": {"X-A": "50%"}}}}))
    assert rule["rewrite"]["uriRegexRewrite"] == {"match": "^/.*$", "rewrite": "/new"}
    assert rule["headers"]["request"]["set"]["x-a"] == "50%%"


def test_a_new_path_is_encoded_as_apisix_sends_it() -> None:
    (rule,) = rules(one({"proxy-rewrite": {"uri": "/a b/ü%20[x]\\y~"}}))
    assert rule["rewrite"]["uriRegexRewrite"]["rewrite"] == "/a%20b/%C3%BC%2520[x]%5Cy~"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"headers": {"set": {"X-A": "1"}}}, True),
        ({"headers": {"set": {"X-A": "1"}}, "use_real_request_uri_unsafe": True}, False),
        ({"uri": "/new"}, False),
    ],
)
def test_a_path_that_only_passes_through_is_encoded_anew_by_apisix(
    config: dict[str, Any], said: bool
) -> None:
    assert any("%2F" in text for text in one({"proxy-rewrite": config}).warnings) is said


def test_a_rewrite_with_a_query_string_is_held_back() -> None:
    """Envoy would send /y?from=b5?x=1, where APISIX joins both with &."""
    for pairs in (["^/r/(.*)", "/$1?from=b5"], ["^/q", "/x", "^/r/(.*)", "/$1?from=b5"]):
        translation = one({"proxy-rewrite": {"regex_uri": pairs}})
        assert "query string" in translation.blockers[0].reason
        assert "from=b5" not in str(rules(translation))


def test_a_literal_credential_in_a_header_needs_a_decision() -> None:
    plugins = {"proxy-rewrite": {"headers": {"set": {"Authorization": "Bearer very-secret"}}}}
    translation = one(plugins)
    assert translation.blockers
    assert "very-secret" not in str(translation.objects)


def test_traffic_split_keeps_the_weights() -> None:
    split = {"rules": [{"weighted_upstreams": [{"upstream_id": "other", "weight": 1}, {"weight": 9}]}]}
    config = configuration(
        routes=[route("r", "/r", plugins={"traffic-split": split})],
        upstreams=[{"id": "other", "type": "roundrobin", "nodes": {"other:80": 1}}],
    )
    (rule,) = rules(run(config))
    assert [(d["destination"]["host"].split(".")[0], d["weight"]) for d in rule["route"]] == [
        ("other", 1),
        ("r", 9),
    ]


def test_every_leaf_has_exactly_one_entry() -> None:
    translation = one({"cors": {}, "limit-count": {"count": 1, "time_window": 60, "odd": [1, {"a": 2}]}})
    paths = [(e.resource, e.path) for e in translation.ledger]
    assert len(paths) == len(set(paths))
    odd = {e.path: str(e.status) for e in translation.ledger if "odd" in e.path}
    assert odd == {
        "plugins.limit-count.odd[0]": "manual",
        "plugins.limit-count.odd[1].a": "manual",
    }


def test_a_security_plugin_that_is_not_exact_waits_for_a_signature() -> None:
    config = configuration(
        routes=[
            route("r", "/r", plugins={"limit-req": {"rate": 1, "burst": 0, "key_type": "constant"}}),
            route("agents", "/a", plugins={"ua-restriction": {"denylist": ["bot"]}}),
        ]
    )
    (blocker,) = run(config, accept=()).blockers
    assert (blocker.resource, blocker.plugin, blocker.routes) == ("routes/r", "limit-req", ("routes/r",))
    assert "not delayed" in blocker.reason
    assert "gateshift-limit-req" not in filters(run(config, accept=()))
    sign = {"resource": "*", "plugin": "limit-req", "who": "Ada", "why": "one pod, no delays wanted"}
    bare = run(config, accept=(sign,))
    (still,) = bare.blockers
    assert still.remedy.endswith(f'with covers: ["{blocker.fingerprints[0]}"] (Ada)')
    assert "the signature of Ada under limit-req of * signs nothing" in " ".join(bare.warnings)
    assert "gateshift-limit-req" not in filters(bare)
    signed = run(config, accept=({**sign, "covers": blocker.fingerprints},))
    assert not signed.blockers
    assert [one.accepted for one in signed.accepted] == ["Ada: one pod, no delays wanted"]
    assert "gateshift-limit-req" in filters(signed)


def test_a_signature_for_every_resource_never_covers_a_loss() -> None:
    config = configuration(routes=[route("r", "/r", plugins={"hmac-auth": {}})])
    sign = {"resource": "*", "plugin": "hmac-auth", "who": "Ada", "why": "not meant for this plugin"}
    (blocker,) = run(config, accept=(sign,)).blockers
    assert run(config, accept=({**sign, "covers": blocker.fingerprints},)).blockers
    assert not run(config, accept=({**sign, "resource": "routes/r"},)).blockers


def test_conditions_of_two_plugins_on_one_route_are_combined() -> None:
    """traffic-split, traffic-label and two rewrites each choose for themselves."""
    plugins = {
        "traffic-split": {
            "rules": [
                {
                    "match": [{"vars": [["http_beta", "==", "1"]]}],
                    "weighted_upstreams": [{"upstream_id": "other"}],
                }
            ]
        },
        "traffic-label": {
            "rules": [
                {"match": [["http_kind", "==", "a"]], "actions": [{"set_headers": {"x-kind": "A"}}]},
                {"match": [["http_kind", "==", "b"]], "actions": [{"set_headers": {"x-kind": "B"}}]},
            ]
        },
    }
    config = configuration(
        routes=[route("r", "/r", plugins=plugins)],
        upstreams=[{"id": "other", "type": "roundrobin", "nodes": {"other:80": 1}}],
    )
    found = [
        (
            one["name"],
            one["route"][0]["destination"]["host"].split(".")[0],
            one["headers"]["request"]["set"].get("x-kind"),
        )
        for one in rules(run(config))
    ]
    assert found == [
        ("r.split-1.variant-1", "other", "A"),
        ("r.split-1.variant-2", "other", "B"),
        ("r.split-1", "other", None),
        ("r.variant-1", "r", "A"),
        ("r.variant-2", "r", "B"),
        ("r", "r", None),
    ]


def test_a_meta_filter_puts_the_plugins_rules_under_its_condition() -> None:
    meta = {"filter": [["http_x_open", "~=", "1"]], "error_response": {"error": "no"}}
    blocked, served = rules(one({"uri-blocker": {"block_rules": ["root.exe"], "_meta": meta}}))
    assert blocked["match"][0]["withoutHeaders"] == {"x-open": {"exact": "1"}}
    assert blocked["directResponse"]["body"] == {"string": '{"error":"no"}\n'}
    assert "directResponse" not in served
    header = {"headers": {"set": {"x-a": "1"}}, "_meta": {"filter": [["arg_a", "==", "1"]]}}
    variant, plain = rules(one({"proxy-rewrite": header}))
    assert variant["match"][0]["queryParams"] == {"a": {"exact": "1"}}
    assert variant["headers"]["request"]["set"]["x-a"] == "1"
    assert "x-a" not in plain["headers"]["request"]["set"]
    (blocker,) = one({"limit-req": {"rate": 1, "burst": 0, "_meta": meta}}).blockers
    assert "filter" in blocker.reason
