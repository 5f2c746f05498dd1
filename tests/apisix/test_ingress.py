"""Ingress objects and GRPCRoutes become what APISIX's ingress controller writes for them, or block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.apisix.model import Configuration, Kind
from gateshift.apisix.readers import read_files
from gateshift.apisix.routing import Request, RouteTable

P = "k8s.apisix.apache.org/"


def read(tmp_path: Path, *objects: dict[str, Any]) -> Configuration:
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return read_files([file], env={})


def ingress(notes: dict[str, str] | None = None, kind: str = "Prefix", **spec: Any) -> dict[str, Any]:
    backend = {"service": {"name": "web", "port": {"number": 8080}}}
    paths = [{"path": "/shop", "pathType": kind, "backend": backend}]
    annotations = {P + key: value for key, value in (notes or {}).items()}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "i", "namespace": "ns", "annotations": annotations},
        "spec": {
            "ingressClassName": "apisix",
            "rules": [{"host": "Shop.example.com", "http": {"paths": paths}}],
            **spec,
        },
    }


def only(found: Configuration) -> dict[str, Any]:
    (route,) = found.of(Kind.ROUTE).values()
    return dict(route.spec)


def test_a_prefix_is_read_by_segment_and_the_host_in_lower_case(tmp_path: Path) -> None:
    found = read(tmp_path, ingress())
    spec = only(found)
    assert spec["uris"] == ["/shop", "/shop/*"]
    assert spec["hosts"] == ["shop.example.com"]
    assert spec["upstream"]["nodes"] == [{"host": "web.ns.svc.cluster.local", "port": 8080, "weight": 1}]
    table = RouteTable(found)
    assert table.match(Request(host="shop.example.com", path="/shop/x")).winner == "ns_i_0-0"
    assert table.match(Request(host="shop.example.com", path="/shopping")).winner is None
    assert not [one for one in found.findings if one.unread]


@pytest.mark.parametrize(
    ("notes", "plugins"),
    [
        ({"enable-cors": "true", "cors-allow-origin": "https://a"}, {"cors": {"allow_origins": "https://a"}}),
        ({"cors-allow-origin": "https://a"}, {}),
        ({"http-to-https": "true", "http-redirect": "/x"}, {"redirect": {"http_to_https": True}}),
        ({"http-redirect": "/x", "http-redirect-code": "200"}, {"redirect": {"uri": "/x", "ret_code": 301}}),
        (
            {"rewrite-target-regex": "^/shop/(.*)", "rewrite-target-regex-template": "/$1"},
            {"proxy-rewrite": {"regex_uri": ["^/shop/(.*)", "/$1"]}},
        ),
        (
            {"allowlist-source-range": "10.0.0.0/8,192.168.0.0/16"},
            {"ip-restriction": {"whitelist": ["10.0.0.0/8", "192.168.0.0/16"]}},
        ),
        ({"auth-type": "keyAuth"}, {"key-auth": {}}),
        ({"auth-type": "basicAuth"}, {"basic-auth": {}}),
        (
            {"auth-uri": "http://auth/check", "auth-ssl-verify": "false", "auth-request-headers": "a,b"},
            {
                "forward-auth": {
                    "uri": "http://auth/check",
                    "ssl_verify": False,
                    "request_headers": ["a", "b"],
                }
            },
        ),
        (
            {"http-allow-methods": "GET,POST"},
            {
                "fault-injection": {
                    "abort": {
                        "http_status": 405,
                        "vars": [[["request_method", "!", "in", ["GET", "POST"]]]],
                    }
                }
            },
        ),
        (
            {"enable-response-rewrite": "true", "response-rewrite-set-header": "x:1,y:a:b"},
            {"response-rewrite": {"headers": {"set": {"x": "1", "y": "a:b"}}}},
        ),
    ],
)
def test_annotations(tmp_path: Path, notes: dict[str, str], plugins: dict[str, Any]) -> None:
    assert only(read(tmp_path, ingress(notes))).get("plugins", {}) == plugins


def test_upstream_annotations_stand_together_or_not_at_all(tmp_path: Path) -> None:
    notes = {"upstream-scheme": "HTTPS", "upstream-read-timeout": "5s", "upstream-retries": "2"}
    upstream = only(read(tmp_path, ingress(notes)))["upstream"]
    assert upstream["scheme"] == "https"
    assert upstream["retries"] == 2
    assert upstream["timeout"] == {"connect": 60, "read": 5, "send": 60}
    found = read(tmp_path, ingress(notes | {"upstream-retries": "many"}))
    assert "scheme" not in only(found)["upstream"]
    assert any("upstream-retries" in str(one.origin) for one in found.findings)


def test_regular_expressions_only_where_the_controller_reads_them(tmp_path: Path) -> None:
    spec = only(read(tmp_path, ingress({"use-regex": "true"}, kind="ImplementationSpecific")))
    assert (spec["uris"], spec["vars"]) == (["/*"], [["uri", "~~", "/shop"]])
    assert only(read(tmp_path, ingress({"use-regex": "true"})))["uris"] == ["/shop", "/shop/*"]
    assert only(read(tmp_path, ingress(kind="ImplementationSpecific")))["uris"] == ["/shop"]


def test_certificates_are_named_and_never_copied(tmp_path: Path) -> None:
    tls = [{"hosts": ["shop.example.com"], "secretName": "web-tls"}]
    (ssl,) = read(tmp_path, ingress(tls=tls)).of(Kind.SSL).values()
    assert ssl.spec["snis"] == ["shop.example.com"]
    assert ssl.spec["key"] == "$secret://kubernetes/ns/web-tls/tls.key"
    lost = read(tmp_path, ingress(tls=[{"secretName": "web-tls"}])).findings
    assert [one.unread for one in lost if one.unread] == ["Ingress/ns/i"]


def test_an_ingress_of_another_class_is_left_alone(tmp_path: Path) -> None:
    other = read(tmp_path, ingress(ingressClassName="nginx"))
    assert not other.of(Kind.ROUTE)
    assert any("class nginx" in one.message for one in other.findings)
    own = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": "edge"},
        "spec": {"controller": "apisix.apache.org/apisix-ingress-controller"},
    }
    assert read(tmp_path, own, ingress(ingressClassName="edge")).of(Kind.ROUTE)


@pytest.mark.parametrize(
    "lost",
    [
        ingress({"limit-rps": "3"}),
        {"apiVersion": "apisix.apache.org/v1alpha1", "kind": "HTTPRoutePolicy", "metadata": {"name": "p"}},
        {
            "apiVersion": "gateway.networking.k8s.io/v1alpha2",
            "kind": "TCPRoute",
            "metadata": {"name": "t"},
            "spec": {},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "g"},
            "spec": {"listeners": [{"port": 80, "hostname": "a.example.com"}]},
        },
    ],
    ids=["annotation", "policy", "route", "listener"],
)
def test_what_apisix_acts_on_and_no_reader_takes_is_named(tmp_path: Path, lost: dict[str, Any]) -> None:
    assert [one for one in read(tmp_path, lost).findings if one.unread]


def test_grpc_routes_and_the_controllers_priorities(tmp_path: Path) -> None:
    def rule(**match: Any) -> dict[str, Any]:
        return {"matches": [match] if match else [], "backendRefs": [{"name": "rpc", "port": 50051}]}

    found = read(
        tmp_path,
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GRPCRoute",
            "metadata": {"name": "g", "namespace": "ns"},
            "spec": {
                "hostnames": ["rpc.example.com"],
                "rules": [
                    rule(method={"service": "shop.Cart"}),
                    rule(method={"service": "shop.Cart"}, headers=[{"name": "X-Beta", "value": "1"}]),
                    rule(method={"service": "shop.Cart", "method": "Add"}),
                    rule(),
                ],
            },
        },
    )
    table = RouteTable(found)

    def winner(path: str, **headers: str) -> str | None:
        request = Request(method="POST", host="rpc.example.com", path=path, headers=headers)
        return table.match(request).winner

    assert winner("/shop.Cart/Add") == "ns_g_2_0"
    assert winner("/shop.Cart/Drop") == "ns_g_0_0"
    # More conditions come before the earlier rule, as in the Gateway API.
    assert winner("/shop.Cart/Drop", **{"x-beta": "1"}) == "ns_g_1_0"
    assert winner("/other.Service/Any") == "ns_g_3_0"
    assert found.of(Kind.ROUTE)["ns_g_0_0"].spec["upstream"]["scheme"] == "grpc"
