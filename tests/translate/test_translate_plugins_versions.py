"""What an Istio version does not know is reported and never emitted; limits, traces and transcoding."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateshift.translate import Target, Translation
from gateshift.translate.model import dump_yaml
from tests.translate.helpers import configuration, filters, of_kind, route, rules, run

PROTO = """
syntax = "proto3";
package demo;
message Ask { string id = 1; }
message Told { string id = 1; }
service Demo { rpc Get(Ask) returns (Told); }
"""


def at(
    version: str, plugins: dict[str, Any], fields: dict[str, Any] | None = None, **params: Any
) -> Translation:
    config = configuration(
        routes=[{**route("r", "/r", plugins=plugins), **(fields or {})}],
        protos=[{"id": "demo", "content": PROTO}],
    )
    return run(config, Target(version=version, namespace="app"), **params)


def test_unmatched_preflights_are_answered_in_every_version() -> None:
    cors = {"cors": {"allow_origins": "https://a.test", "allow_origins_by_regex": ["https://.*\\.b\\.test"]}}
    older = rules(at("1.22", cors))
    assert "unmatchedPreflights" not in older[-1]["corsPolicy"]
    (guard,) = [one for one in older if one["name"].endswith("guard-preflight")]
    origins = guard["match"][0]["withoutHeaders"]["origin"]["regex"]
    assert origins == r"(?:https://a\.test)|(?:.*(?:https://.*\.b\.test).*)"
    newer = rules(at("1.23", cors))
    assert newer[-1]["corsPolicy"]["unmatchedPreflights"] == "IGNORE"
    assert not [one for one in newer if one["name"].endswith("guard-preflight")]


def test_tokens_in_cookies_need_a_version() -> None:
    for version, known in (("1.20", False), ("1.21", True)):
        assert _cookie(version) is known


def _cookie(version: str) -> bool:
    from tests.translate.helpers import RSA_PUBLIC

    consumer = {
        "username": "web",
        "plugins": {"jwt-auth": {"key": "web", "algorithm": "RS256", "public_key": RSA_PUBLIC}},
    }
    config = configuration(
        routes=[route("r", "/r", plugins={"jwt-auth": {"cookie": "session"}})], consumers=[consumer]
    )
    target = Target(version=version, namespace="app")
    translation = run(config, target, jwt_issuers={"*": "https://i.test"})
    (authentication,) = of_kind(translation, "RequestAuthentication")
    (entry,) = [e for e in translation.ledger if e.path == "plugins.jwt-auth.cookie"]
    emitted = "fromCookies" in authentication["spec"]["jwtRules"][0]
    assert str(entry.status) == ("exact" if emitted else "none")
    return emitted


def test_a_header_left_out_is_no_way_around_a_limit() -> None:
    plugin = {"limit-count": {"count": 5, "time_window": 60, "key": "http_x_client", "rejected_code": 429}}
    config = filters(at("1.31", plugin))["gateshift-limit-count"]["spec"]["configPatches"][1]["patch"][
        "value"
    ]
    settings = config["typed_per_filter_config"]["gateshift.limit_count"]
    assert [one["entries"] for one in settings["descriptors"]] == [
        [{"key": "http_x_client"}],
        [{"key": "without_http_x_client", "value": "true"}, {"key": "remote_address"}],
    ]
    for key in ("host", "uri", "arg_x"):
        blocked = at("1.31", {"limit-count": {**plugin["limit-count"], "key": key}}, {"uri": "/r/*"})
        assert blocked.blockers, key


def test_a_shared_limit_asks_the_service_that_was_named() -> None:
    plugin = {
        "limit-count": {
            "count": 5,
            "time_window": 60,
            "policy": "redis",
            "redis_host": "r",
            "rejected_code": 429,
            "key": "remote_addr",
        }
    }
    alone = at("1.20", plugin)
    assert "1.26" in alone.blockers[0].reason  # no local limit of single clients yet
    shared = at("1.20", plugin, rate_limit_service="ratelimit.infra.svc.cluster.local:8081")
    assert not shared.blockers
    (settings,) = of_kind(shared, "ConfigMap")
    assert yaml.safe_load(settings["data"]["config.yaml"]) == {
        "domain": "gateshift",
        "descriptors": [
            {
                "key": "route",
                "value": "r.limit-count",
                "descriptors": [
                    {"key": "remote_address", "rate_limit": {"unit": "minute", "requests_per_unit": 5}}
                ],
            }
        ],
    }
    insertion, patch = filters(shared)["gateshift-rate-limit"]["spec"]["configPatches"]
    assert insertion["patch"]["value"]["typed_config"]["failure_mode_deny"] is True
    assert patch["patch"]["value"]["route"]["rate_limits"][0]["actions"][1] == {"remote_address": {}}


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("opentelemetry", {}, 0.0),
        ("opentelemetry", {"sampler": {"name": "trace_id_ratio", "options": {"fraction": 0.05}}}, 5.0),
        ("zipkin", {"endpoint": "http://zipkin:9411/api/v2/spans", "sample_ratio": 0.1}, 10.0),
        ("skywalking", {"sample_ratio": 1}, 100.0),
    ],
)
def test_traces_keep_their_share(name: str, options: dict[str, Any], share: float) -> None:
    translation = at("1.31", {name: options})
    (telemetry,) = of_kind(translation, "Telemetry")
    assert telemetry["spec"]["tracing"] == [
        {"providers": [{"name": f"gateshift-{name}"}], "randomSamplingPercentage": share}
    ]
    assert any("extensionProviders" in one for one in translation.warnings)


def test_transcoding_writes_the_routes_own_rule_into_the_descriptor() -> None:
    plugin = {
        "grpc-transcode": {"proto_id": "demo", "service": "demo.Demo", "method": "Get", "deadline": 500}
    }
    translation = at("1.31", plugin, {"methods": ["GET", "POST"]})
    insertion, patch = filters(translation)["gateshift-grpc-transcode"]["spec"]["configPatches"]
    assert insertion["patch"]["value"]["disabled"] is True
    settings = patch["patch"]["value"]["typed_per_filter_config"]["gateshift.grpc_transcode"]
    descriptors = FileDescriptorSet.FromString(base64.b64decode(settings["proto_descriptor_bin"]))
    (method,) = descriptors.file[-1].service[0].method
    # google.api.http: {get: "/r", additional_bindings: {post: "/r", body: "*"}}
    assert method.options.SerializeToString().endswith(b"\x12\x02/r\x5a\x07\x22\x02/r\x3a\x01*")
    assert rules(translation)[0]["headers"]["request"]["set"]["grpc-timeout"] == "500m"
    assert at("1.31", {"grpc-transcode": {**plugin["grpc-transcode"], "method": "Gone"}}).blockers


def test_yaml_of_single_letters_stays_text() -> None:
    """kubectl reads a plain n or y as a boolean."""
    text = dump_yaml(({"queryParams": {"n": {"exact": "y"}}},))
    assert "'n':" in text
    assert "'y'" in text


def test_redirects_say_where_and_keep_or_drop_the_query() -> None:
    (https_read, https, _) = rules(at("1.31", {"redirect": {"http_to_https": True}}))
    assert (https_read["redirect"]["redirectCode"], https["redirect"]["redirectCode"]) == (301, 308)
    dropped = filters(at("1.31", {"redirect": {"uri": "/x"}}))["gateshift-redirect"]
    assert dropped["spec"]["configPatches"][0]["patch"]["value"] == {"redirect": {"strip_query": True}}
    assert "gateshift-redirect" not in filters(
        at("1.31", {"redirect": {"uri": "https://b.test$request_uri"}})
    )
    assert at("1.31", {"redirect": {"uri": "/x/$arg_a"}}).blockers


def _pattern_redirect(pattern: str, to: str, **more: Any) -> Translation:
    return at("1.31", {"redirect": {"regex_uri": [pattern, to], **more}})


@pytest.mark.parametrize(
    ("pattern", "to", "path", "expected"),
    [
        ("^/r/(.*)", "/x/$1", "/r/a", ({}, "/x/a")),
        ("/r/", "/x/", "/a/r/b", ({}, "/a/x/b")),
        ("^/r/(.*)$", "https://x.test/$1", "/r/a", ({"scheme": "https", "authority": "x.test"}, "/a")),
        ("^/r(/.*)$", "http://x.test:81$1", "/r/a", ({"scheme": "http", "authority": "x.test:81"}, "/a")),
        ("^/r(/.*)$", "$1", "/r/a", ({}, "/a")),
        # What the pattern leaves of the path stays behind the address.
        ("^/r", "https://x.test/n", "/r/a", ({"scheme": "https", "authority": "x.test"}, "/n/a")),
    ],
)
def test_a_redirect_by_a_pattern_leaves_other_paths_to_the_upstream(
    pattern: str, to: str, path: str, expected: tuple[dict[str, Any], str]
) -> None:
    translation = _pattern_redirect(pattern, to, ret_code=308)
    assert not translation.blockers
    guard, rest = rules(translation)
    assert "route" in rest
    assert guard["redirect"] == {"redirectCode": 308, "uri": "/", **expected[0]}
    (patch,) = filters(translation)["gateshift-redirect"]["spec"]["configPatches"]
    assert patch["match"]["routeConfiguration"]["vhost"]["route"]["name"] == guard["name"]
    rewriting = patch["patch"]["value"]["redirect"]["regex_rewrite"]
    assert patch["patch"]["value"]["redirect"]["strip_query"] is True
    replacement = re.sub(r"\\(\d)", r"\\g<\1>", rewriting["substitution"])
    assert re.sub(rewriting["pattern"]["regex"], replacement, path) == expected[1]
    (match,) = guard["match"]
    assert re.fullmatch(match["headers"][":path"]["regex"], f"{path}?q=1")
    assert not re.fullmatch(match["headers"][":path"]["regex"], "/other?q=/r/")


def test_a_constant_address_with_a_query_needs_no_filter() -> None:
    translation = _pattern_redirect("^/old/.*", "https://x.test/new?from=old")
    guard, _ = rules(translation)
    assert guard["redirect"] == {
        "redirectCode": 302, "scheme": "https", "authority": "x.test", "uri": "/new?from=old",
    }  # fmt: skip
    assert "gateshift-redirect" not in filters(translation)


@pytest.mark.parametrize(
    ("pattern", "to", "append"),
    [
        ("^/r/(.*)", "$1", False),  # a/b is no path
        ("^/r(/.*)?$", "https://x.test$1", False),  # nothing at all is none either
        ("/r/(.*)", "https://x.test/$1", False),  # what stands before it would stand before the scheme
        ("^/r/(.*)", "//x.test/$1", False),
        ("^/r/(.*)", "https://$1/x", False),
        ("^/r/(.*)", "/x?z=$1", False),
        ("^/r/(.*)", "/x?z=1", True),
        ("^/r/", "/x?z=1", False),  # the rest of the path would stand behind the query
        ("^/r/(.*)", "/x#$1", False),
    ],
)
def test_a_redirect_that_envoy_cannot_write_is_held_back(pattern: str, to: str, append: bool) -> None:
    translation = _pattern_redirect(pattern, to, append_query_string=append)
    assert translation.blockers[0].plugin == "redirect"
    assert "gateshift-redirect" not in filters(translation)


def test_a_query_of_the_address_is_said_where_the_requests_own_is_lost() -> None:
    for append, status in ((True, "approximate"), (False, "exact")):
        plugins = {"redirect": {"uri": "/x?a=1", "append_query_string": append}}
        (entry,) = [e for e in at("1.31", plugins).ledger if e.path.endswith("append_query_string")]
        assert str(entry.status) == status


@pytest.mark.parametrize(
    ("address", "expected", "status"),
    [
        ("https://$host:8443$request_uri", {"scheme": "https", "port": 8443}, "exact"),
        ("https://${host}:8443/x", {"scheme": "https", "port": 8443, "uri": "/x"}, "exact"),
        ("https://$host/x", {"scheme": "https", "uri": "/x"}, "approximate"),
        ("https://$http_host/x", {"scheme": "https", "uri": "/x"}, "exact"),
        ("https://b.test:8443$request_uri", {"scheme": "https", "authority": "b.test:8443"}, "exact"),
    ],
)
def test_the_port_of_a_redirect_is_its_own(address: str, expected: dict[str, Any], status: str) -> None:
    """APISIX's $host has no port; Envoy keeps the one that the client sent unless it is told another."""
    translation = at("1.31", {"redirect": {"uri": address}})
    (rule,) = rules(translation)
    assert rule["redirect"] == {"redirectCode": 302, **expected}
    (entry,) = [e for e in translation.ledger if e.path == "plugins.redirect.uri"]
    assert str(entry.status) == status
    assert at("1.31", {"redirect": {"uri": "https://$http_host:8443/x"}}).blockers


def test_addresses_by_proxies_need_their_number() -> None:
    plugin = {"real-ip": {"source": "http_x_forwarded_for", "recursive": True}}
    assert at("1.31", plugin).blockers
    found = filters(at("1.31", plugin, trusted_proxies=2))["gateshift-real-ip"]
    value = found["spec"]["configPatches"][0]["patch"]["value"]["typed_config"]
    assert value["xff_num_trusted_hops"] == 2
