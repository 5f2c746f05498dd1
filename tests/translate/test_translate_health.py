"""Active health checks become Envoy's own, cluster by cluster; what it cannot check is not half checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateshift.translate import Translation
from tests.translate.helpers import configuration, filters, of_kind, route, run

ALL = range(100, 600)


def checked(active: Any, passive: Any = None, **upstream: Any) -> Translation:
    checks = {"active": active, **({"passive": passive} if passive is not None else {})}
    spec = {"type": "roundrobin", "nodes": {"shop:80": 1}, "checks": checks, **upstream}
    return run(configuration(routes=[{"id": "r", "uri": "/r", "upstream": spec}]))


def patches(translation: Translation) -> list[Mapping[str, Any]]:
    one = filters(translation).get("gateshift-health-checks")
    return list(one["spec"]["configPatches"]) if one else []


def check(translation: Translation) -> Mapping[str, Any]:
    (patch,) = patches(translation)
    (found,) = patch["patch"]["value"]["health_checks"]
    assert isinstance(found, Mapping)
    return found


def fates(translation: Translation) -> dict[str, tuple[str, str]]:
    found = {}
    for one in translation.ledger:
        if ".checks." in one.path:
            found[one.path.partition(".checks.")[2]] = (str(one.status), one.note)
    return found


def spread(ranges: list[dict[str, int]]) -> set[int]:
    return {status for one in ranges for status in range(one["start"], one["end"])}


def test_defaults_are_those_of_apisix_and_not_of_envoy() -> None:
    translation = checked({})
    (patch,) = patches(translation)
    assert patch["applyTo"] == "CLUSTER"
    cluster = "outbound|80||shop.app.svc.cluster.local"
    assert patch["match"] == {"context": "GATEWAY", "cluster": {"name": cluster}}
    value = patch["patch"]["value"]
    assert value["common_lb_config"] == {"healthy_panic_threshold": {"value": 1}}
    assert value["ignore_health_on_host_removal"] is True
    found = dict(check(translation))
    request = found.pop("http_health_check")
    assert found == {
        "timeout": "1s",
        "interval": "1s",
        "unhealthy_interval": "1s",
        "no_traffic_interval": "1s",
        "no_traffic_healthy_interval": "1s",
        "healthy_threshold": 2,
        "unhealthy_threshold": 2,
        "reuse_connection": False,
    }
    bad = {404, 429, 500, 501, 502, 503, 504, 505}
    assert (request["path"], request["host"]) == ("/", "shop")
    assert "method" not in request
    assert spread(request["retriable_statuses"]) == bad
    assert spread(request["expected_statuses"]) == set(ALL) - bad
    (rule,) = of_kind(translation, "DestinationRule")
    assert not [key for key in rule["spec"]["trafficPolicy"] if key.startswith("gateshift")]


def test_every_option_has_its_field_and_its_difference() -> None:
    translation = checked(
        {
            "type": "http",
            "http_path": "/health",
            "http_method": "HEAD",
            "http_req_body": "",
            "host": "health.test",
            "port": 80,
            "timeout": 0.5,
            "concurrency": 3,
            "req_headers": ["User-Agent: 100%", "X-Who:me"],
            "healthy": {"interval": 7, "successes": 3, "http_statuses": [200, 201]},
            "unhealthy": {
                "interval": 2,
                "http_failures": 4,
                "tcp_failures": 4,
                "timeouts": 4,
                "http_statuses": [500, 201],
            },
        }
    )
    found = check(translation)
    assert (found["timeout"], found["interval"], found["unhealthy_interval"]) == ("0.5s", "7s", "2s")
    assert (found["healthy_threshold"], found["unhealthy_threshold"]) == (3, 4)
    request = found["http_health_check"]
    assert (request["method"], request["path"], request["host"]) == ("HEAD", "/health", "health.test")
    assert spread(request["retriable_statuses"]) == {500}, "a status in both lists is healthy, as in APISIX"
    headers = {one["header"]["key"]: one["header"]["value"] for one in request["request_headers_to_add"]}
    assert headers == {"user-agent": "100%%", "x-who": "me"}
    known = fates(translation)
    exact = ("active.http_path", "active.http_method", "active.port", "active.healthy.interval")
    assert {known[one][0] for one in exact} == {"exact"}
    assert known["active.concurrency"][0] == "none"
    assert known["active.unhealthy.timeouts"] == ("approximate", "all kinds together")
    assert all(note for status, note in known.values() if status != "exact")
    assert not any(status == "manual" for status, _ in known.values())


def test_options_that_nobody_knows_are_said() -> None:
    told = fates(checked({"http_code": 1, "healthy": {"http_codes": [200]}, "unhealthy": {"every": 3}}))
    assert told["active.http_code"][0] == told["active.healthy.http_codes[0]"][0] == "manual"
    assert told["active.unhealthy.every"][0] == "manual"


def test_the_least_limit_counts_because_envoy_has_one() -> None:
    limits = {"http_failures": 6, "tcp_failures": 9, "timeouts": 3}
    translation = checked({"unhealthy": limits})
    assert check(translation)["unhealthy_threshold"] == 3
    assert "3 in turn" in fates(translation)["active.unhealthy.http_failures"][1]
    translation = checked({"type": "tcp", "unhealthy": {**limits, "http_failures": 1}})
    assert check(translation)["unhealthy_threshold"] == 3, "a TCP check meets no status"
    assert check(translation)["tcp_health_check"] == {}
    assert fates(translation)["active.unhealthy.http_failures"][0] == "ignored-default"


@pytest.mark.parametrize(
    ("upstream", "host"),
    [
        ({"pass_host": "rewrite", "upstream_host": "inner.test"}, "inner.test"),
        ({"pass_host": "node"}, "shop"),
        ({}, "given.test"),
        ({"pass_host": "node", "nodes": {"shop:80": 1, "other:80": 1}}, "given.test"),
        ({"pass_host": "node", "nodes": {"10.0.0.1:80": 1}}, "given.test"),
    ],
)
def test_the_host_header_is_what_apisix_sends(upstream: dict[str, Any], host: str) -> None:
    translation = checked({"host": "given.test"}, **upstream)
    for patch in patches(translation):
        assert patch["patch"]["value"]["health_checks"][0]["http_health_check"]["host"] == host


def test_each_destination_of_an_upstream_is_checked() -> None:
    nodes = {"shop:80": 1, "other.test:8080": 1}
    names = {one["match"]["cluster"]["name"] for one in patches(checked({}, nodes=nodes))}
    assert names == {"outbound|80||shop.app.svc.cluster.local", "outbound|8080||other.test"}


def test_addresses_are_asked_by_address() -> None:
    (patch,) = patches(checked({}, nodes={"10.0.0.1:81": 1, "10.0.0.2:82": 1}))
    assert patch["patch"]["value"]["health_checks"][0]["http_health_check"]["host"] == "10.0.0.1"
    assert patch["match"]["cluster"]["name"] == "outbound|80||route-r.gateshift.internal"


def test_two_checks_of_one_host_are_two_clusters() -> None:
    spec = {"type": "roundrobin", "nodes": {"shop:80": 1}}
    one, two = ({**spec, "checks": {"active": {"http_path": path}}} for path in ("/a", "/b"))
    routes = [{"id": "a", "uri": "/a", "upstream": one}, {"id": "b", "uri": "/b", "upstream": two}]
    translation = run(configuration(routes=[*routes, route("c", "/c", upstream=spec)]))
    paths = {
        p["match"]["cluster"]["name"]: p["patch"]["value"]["health_checks"][0]["http_health_check"]["path"]
        for p in patches(translation)
    }
    host = "shop.app.svc.cluster.local"
    assert paths == {f"outbound|80|routes-a|{host}": "/a", f"outbound|80|routes-b|{host}": "/b"}
    (rule,) = of_kind(translation, "DestinationRule")
    assert [one["name"] for one in rule["spec"]["subsets"]] == ["routes-a", "routes-b", "routes-c"]
    assert "gateshift.activeCheck" not in json.dumps(translation.objects)


def test_tls_is_checked_by_tls() -> None:
    translation = checked({"type": "https"}, scheme="https", nodes={"shop:443": 1})
    assert check(translation)["tls_options"] == {"alpn_protocols": ["http/1.1"]}


@pytest.mark.parametrize(
    ("active", "upstream"),
    [
        ({"port": 9000}, {}),
        ({"type": "https"}, {}),
        ({"type": "http"}, {"scheme": "https"}),
        ({"type": "smtp"}, {}),
        ({"healthy": {"interval": 0}}, {}),
        ({"unhealthy": {"tcp_failures": 0}}, {}),
        ({"timeout": 0}, {}),
        ({"http_method": "POST", "http_req_body": "ping"}, {}),
        ({"http_method": "CONNECT"}, {}),
        ({"req_headers": ["Authorization: Bearer secret-of-mine"]}, {}),
        ({"req_headers": ["no header"]}, {}),
        ({"healthy": {"interval": "soon"}}, {}),
        ({"unhealthy": {"http_statuses": ["bad"]}}, {}),
    ],
)
def test_what_envoy_cannot_check_is_said_and_not_emitted(active: Any, upstream: Any) -> None:
    translation = checked(active, **upstream)
    assert not patches(translation)
    told = fates(translation)
    assert told
    assert {status for status, _ in told.values()} == {"manual"}
    assert any("health check" in one for one in translation.warnings)
    assert "secret-of-mine" not in json.dumps([translation.as_json(), list(translation.objects)])


def test_passive_checks_say_how_nodes_come_back() -> None:
    passive = {"unhealthy": {"http_failures": 3}}
    both = checked({}, passive)
    (rule,) = of_kind(both, "DestinationRule")
    assert rule["spec"]["trafficPolicy"]["outlierDetection"]["consecutive5xxErrors"] == 3
    assert "first active check" in fates(both)["passive.unhealthy.http_failures"][1]
    alone = checked({"port": 9000}, passive)
    assert "30 s" in fates(alone)["passive.unhealthy.http_failures"][1]
    broken = checked({}, {"unhealthy": {"http_failures": "many"}})
    assert fates(broken)["passive.unhealthy.http_failures"][0] == "manual"


def test_many_checks_are_spread_over_several_objects() -> None:
    routes = [
        {
            "id": f"r{number}",
            "uri": f"/{number}",
            "upstream": {"nodes": {f"shop-{number}:80": 1}, "checks": {"active": {"http_path": "/" * 900}}},
        }
        for number in range(400)
    ]
    found = filters(run(configuration(routes=routes)))
    names = [name for name in found if name.startswith("gateshift-health-checks")]
    assert names == ["gateshift-health-checks", "gateshift-health-checks-2"]
    sizes = [len(json.dumps(found[name])) for name in names]
    assert max(sizes) < 700_000
    assert sum(len(found[name]["spec"]["configPatches"]) for name in names) == 400


def test_a_route_that_is_held_back_is_not_checked() -> None:
    spec = {"type": "roundrobin", "nodes": {"shop:80": 1}, "checks": {"active": {}}}
    held = {"id": "r", "uri": "/r", "upstream": spec, "filter_func": "function(vars) return true end"}
    assert not patches(run(configuration(routes=[held])))
