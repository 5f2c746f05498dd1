from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateshift.diagnose import envoy
from gateshift.diagnose.envoy import Envoy, parse
from gateshift.diagnose.requests import parse_log, percentile
from gateshift.diagnose.routes import explain, mismatch
from gateshift.errors import ClusterError
from tests.cluster.conftest import make_params
from tests.diagnose.admin import Admin, config_dump, route, serve


def have(hosts: dict[str, list[dict[str, Any]]], **more: Any) -> Envoy:
    return parse("gw", config_dump(hosts, **more), {}, {}, {}, {}, 1.0)


SHOP = route("shop", "shop/main", {"prefix": "/shop"})
CART = route("cart", "shop/main", {"path": "/shop/cart"})


def test_first_rule_that_matches_takes_the_request_and_later_ones_are_named() -> None:
    told = explain(have({"a.com": [SHOP, CART]}), "a.com", "/shop/cart")
    assert told.taker is not None
    assert str(told.taker) == "shop of shop/main"
    assert [str(r) for r in told.also] == ["cart of shop/main"]
    assert told.virtual_host == "a.com:80"


def test_rules_that_do_not_take_it_say_why() -> None:
    told = explain(have({"a.com": [CART, SHOP]}), "a.com", "/shop/list")
    assert told.taker is not None
    assert told.taker.name == "shop"
    assert [why for _, why in told.failed] == ["wants exactly /shop/cart"]


def test_exact_host_hides_the_wildcard() -> None:
    wide = route("promo", "shop/wide", {"prefix": "/promo"})
    told = explain(have({"*.a.com": [wide], "x.a.com": [SHOP]}), "x.a.com", "/promo")
    assert told.taker is None
    assert [str(r) for r in told.elsewhere] == ["promo of shop/wide"]


@pytest.mark.parametrize(
    ("host", "chosen"),
    [
        ("a.com", "a.com:80"),
        ("x.a.com", "*.a.com:80"),
        ("y.x.a.com", "*.x.a.com:80"),
        ("b.org", "*:80"),
        ("A.COM", "a.com:80"),
    ],
)
def test_virtual_host_is_chosen_as_envoy_does(host: str, chosen: str) -> None:
    hosts = {h: [SHOP] for h in ("*", "*.a.com", "*.x.a.com", "a.com")}
    assert explain(have(hosts), host, "/shop").virtual_host == chosen


def test_no_listener_on_the_port_means_no_table() -> None:
    assert explain(have({"a.com": [SHOP]}, port=9999), "a.com", "/shop").table == ""


@pytest.mark.parametrize(
    ("match", "request_", "why"),
    [
        ({"prefix": "/a"}, {}, ""),
        ({"prefix": "/A"}, {}, "wants prefix /A"),
        ({"prefix": "/A", "case_sensitive": False}, {}, ""),
        ({"path_separated_prefix": "/a"}, {":path": "/ab"}, "wants /a or below"),
        ({"path_separated_prefix": "/a"}, {":path": "/a/b"}, ""),
        ({"safe_regex": {"regex": "/a"}}, {":path": "/ab"}, "wants the whole path to match /a"),
        ({"safe_regex": {"regex": "/a.*"}}, {":path": "/ab?x=1"}, ""),
        (
            {"headers": [{"name": ":method", "string_match": {"exact": "POST"}}]},
            {},
            "wants method exact POST",
        ),
        ({"headers": [{"name": "x-a", "present_match": True}]}, {}, "wants header x-a present"),
        ({"headers": [{"name": "x-a", "present_match": True, "invert_match": True}]}, {}, ""),
        (
            {"headers": [{"name": "x-a", "string_match": {"exact": "1"}, "invert_match": True}]},
            {"x-a": "1"},
            "wants header x-a not exact 1",
        ),
        (
            {
                "headers": [
                    {
                        "name": "x-a",
                        "string_match": {"exact": "1"},
                        "invert_match": True,
                        "treat_missing_header_as_empty": True,
                    }
                ]
            },
            {},
            "",
        ),
        ({"query_parameters": [{"name": "q", "string_match": {"prefix": "b"}}]}, {":path": "/a?q=bc"}, ""),
        ({"query_parameters": [{"name": "q", "present_match": True}]}, {}, "wants query parameter q"),
    ],
)
def test_conditions_of_a_route(match: dict[str, Any], request_: dict[str, str], why: str) -> None:
    sent = {":method": "GET", ":authority": "a.com", ":path": "/a", ":scheme": "http", **request_}
    assert mismatch(match, sent) == why


def test_envoy_is_read_through_port_forward(tmp_path: Path) -> None:
    admin = Admin(config_dump({"a.com": [SHOP]}, rejected="Proto constraint: bad"))
    name = "outbound|80||cart.shop.svc.cluster.local"
    slow = f"cluster.{name};.upstream_cx_connect_ms: P0(1,1) P99(nan,2400)"
    admin.stats = [
        f"cluster.{name};.upstream_rq_retry: 2\nserver.live: 1\n",
        f"cluster.{name};.upstream_rq_retry: 9\nserver.live: 1\n{slow}\n",
    ]
    admin.clusters = {
        "cluster_statuses": [
            {
                "name": name,
                "host_statuses": [
                    {
                        "address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
                        "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": True},
                        "stats": [{"name": "rq_total", "value": "7"}],
                    }
                ],
            }
        ]
    }
    with serve(admin, tmp_path) as kubectl:
        params = make_params(istio={"version": "1.31.0", "istioctl": "/none", "kubectl": kubectl})
        got = envoy.read(params, "gw")
    assert "istio-system port-forward --address 127.0.0.1 pod/gw :15000" in (tmp_path / "calls").read_text()
    assert got.rejections == ("RDS http.80: Proto constraint: bad",)
    assert got.now(name, "upstream_rq_retry") == 7
    assert got.slowest[f"cluster.{name}.upstream_cx_connect_ms"] == 2400
    assert got.endpoints[name][0].ejected
    assert got.endpoints[name][0].requests == 7


def test_refused_port_forward_says_what_kubectl_said(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho 'error: pods \"gw\" is forbidden' >&2\nexit 1\n")
    kubectl.chmod(0o755)
    params = make_params(istio={"version": "1.31.0", "istioctl": "/none", "kubectl": str(kubectl)})
    with pytest.raises(ClusterError, match="is forbidden"):
        envoy.read(params, "gw")


def test_silent_port_forward_ends_in_time(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nexec sleep 30\n")
    kubectl.chmod(0o755)
    params = make_params(istio={"version": "1.31.0", "istioctl": "/none", "kubectl": str(kubectl)})
    with pytest.raises(ClusterError, match=re.escape("no answer within 0.3 s")):
        envoy.read(params, "gw", timeout=0.3)


def test_access_log_lines_become_requests() -> None:
    line = {
        "start_time": "2026-01-02T03:04:05.678Z",
        "authority": "a.com:8080",
        "path": "/x?q=1",
        "method": "GET",
        "response_code": 503,
        "response_flags": "UF,URX",
        "upstream_cluster": "outbound|80||cart.shop.svc.cluster.local;",
        "upstream_transport_failure_reason": "TLS_error:|268435581:SSL routines",
        "duration": 12,
        "upstream_service_time": None,
    }
    text = f'2026 stdout F not json\n{json.dumps(line)}\n{{broken "response_code"\n'
    (entry,) = parse_log(text)
    assert (entry.host, entry.path, entry.code, entry.flags) == ("a.com", "/x", 503, ("UF", "URX"))
    assert entry.cluster == "outbound|80||cart.shop.svc.cluster.local"
    assert entry.upstream is None
    assert entry.time == pytest.approx(1767323045.678)
    assert entry.concerns("a.com", "/x")
    assert not entry.concerns("a.com", "/y")


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.95) == 0.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_port_that_only_sends_to_https_says_so() -> None:
    dump = config_dump({"a.com": [SHOP]})
    dump["configs"][1]["dynamic_route_configs"][0]["route_config"]["virtual_hosts"][0]["require_tls"] = "ALL"
    seen = parse("gw", dump, {}, {}, {}, {}, 1.0)
    assert explain(seen, "a.com", "/shop").redirected
    assert not explain(seen, "a.com", "/shop", tls=True).redirected
