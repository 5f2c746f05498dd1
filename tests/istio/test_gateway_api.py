"""The evaluator of the Gateway API against the specification's own sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateshift.istio.evaluator import Request
from gateshift.istio.gateway_api import UNDECIDED, GatewayApiEvaluator

API = "gateway.networking.k8s.io/v1"


def gateway(*listeners: Mapping[str, Any]) -> dict[str, Any]:
    given = listeners or ({"name": "http", "port": 80, "protocol": "HTTP"},)
    spec = {"gatewayClassName": "istio", "listeners": list(given)}
    return {
        "apiVersion": API,
        "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": "istio-system"},
        "spec": spec,
    }


def http_route(
    name: str,
    *matches: Mapping[str, Any],
    hosts: Sequence[str] = (),
    sections: Sequence[str] = (),
    born: str = "",
    kind: str = "HTTPRoute",
) -> dict[str, Any]:
    """Each match is a rule of its own with a backend named after its place."""
    parent = {"name": "gw", "namespace": "istio-system"}
    metadata = {"name": name, "namespace": "app", **({"creationTimestamp": born} if born else {})}
    rules = [
        {"matches": [match], "backendRefs": [{"name": f"{name}-{i}", "port": 80}]}
        for i, match in enumerate(matches)
    ]
    spec: dict[str, Any] = {
        "parentRefs": [{**parent, "sectionName": s} for s in sections] or [parent],
        "rules": rules,
    }
    if hosts:
        spec["hostnames"] = list(hosts)
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def path(kind: str, value: str, **more: Any) -> dict[str, Any]:
    return {"path": {"type": kind, "value": value}, **more}


def entry(objects: Sequence[Mapping[str, Any]], target: str = "/", **request: Any) -> str | None:
    return GatewayApiEvaluator(objects).decide(Request(path=target, **request)).entry


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("/a", "app.r.1"), ("/a/", "app.r.0"), ("/a/b", "app.r.0"), ("/ab", "app.r.2"), ("/zzz", None)],
)
def test_exact_before_prefix_before_regular_expression(target: str, wanted: str | None) -> None:
    route = http_route(
        "r", path("PathPrefix", "/a/"), path("Exact", "/a"), path("RegularExpression", "/a.*|/very/long/x")
    )
    assert entry([gateway(), route], target) == wanted


def test_the_longer_prefix_comes_first_wherever_it_stands() -> None:
    route = http_route("r", path("PathPrefix", "/"), path("PathPrefix", "/a"), path("PathPrefix", "/a/b"))
    assert entry([gateway(), route], "/a/b/c") == "app.r.2"


def test_method_then_headers_then_query_parameters_break_a_tie() -> None:
    header = [{"name": "X-A", "value": "1"}]
    query = [{"name": "q", "value": "1"}]
    route = http_route(
        "r",
        path("PathPrefix", "/a"),
        path("PathPrefix", "/a", queryParams=query),
        path("PathPrefix", "/a", headers=header),
        path("PathPrefix", "/a", method="GET"),
    )
    objects = [gateway(), route]
    assert entry(objects, "/a", headers={"x-a": "1"}, query="q=1") == "app.r.3"
    assert entry(objects, "/a", headers={"x-a": "1"}, query="q=1", method="PUT") == "app.r.2"
    assert entry(objects, "/a", query="q=1&q=2", method="PUT") == "app.r.1"
    assert entry(objects, "/a", query="q=2&q=1", method="PUT") == "app.r.0"  # only the first counts


def test_the_older_route_wins_a_tie_and_without_ages_nobody_can_say() -> None:
    young = http_route("a", path("PathPrefix", "/"), born="2026-02-01T00:00:00Z")
    old = http_route("b", path("PathPrefix", "/"), born="2026-01-01T00:00:00Z")
    assert entry([gateway(), young, old]) == "app.b.0"
    unknown = [http_route(name, path("PathPrefix", "/")) for name in ("a", "b")]
    assert str(entry([gateway(), *unknown])).startswith(UNDECIDED)


def test_the_most_specific_hostname_is_chosen_once_and_never_left() -> None:
    objects = [
        gateway(),
        http_route("exact", path("Exact", "/only"), hosts=["a.b.com"]),
        http_route("wild", path("PathPrefix", "/"), hosts=["*.b.com"]),
        http_route("all", path("PathPrefix", "/")),
    ]
    assert entry(objects, "/only", authority="A.b.com:8080") == "app.exact.0"
    assert entry(objects, "/other", authority="a.b.com") is None
    assert entry(objects, "/other", authority="x.y.b.com") == "app.wild.0"
    assert entry(objects, "/other", authority="b.com") == "app.all.0"


def test_a_route_serves_only_the_listeners_that_it_names_and_their_hostnames() -> None:
    https = {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.b.com"}
    http = {"name": "http", "port": 80, "protocol": "HTTP"}
    on_http = http_route("plain", path("PathPrefix", "/"), sections=["http"])
    on_both = http_route(
        "both", path("PathPrefix", "/"), hosts=["a.b.com", "a.c.com"], sections=["http", "https"]
    )
    objects = [gateway(http, https), on_http, on_both]
    assert entry(objects, authority="a.b.com", port=443) == "app.both.0"
    assert entry(objects, authority="a.c.com", port=443) is None
    assert entry(objects, authority="z.b.com", port=443) is None
    assert entry(objects, authority="z.b.com") == "app.plain.0"


def test_grpc_routes_are_paths_of_service_and_method() -> None:
    route = http_route(
        "g",
        {"method": {"service": "shop.Cart"}},
        {"method": {"service": "shop.Cart", "method": "Add"}},
        kind="GRPCRoute",
    )
    objects = [gateway(), route]
    assert entry(objects, "/shop.Cart/Add") == "app.g.1"
    assert entry(objects, "/shop.Cart/Other") == "app.g.0"
    assert entry(objects, "/shop.Cart2/Add") is None


def test_a_rule_without_backends_answers_500_and_filters_change_the_path() -> None:
    empty = http_route("e", path("PathPrefix", "/"))
    empty["spec"]["rules"][0]["backendRefs"][0]["weight"] = 0
    assert GatewayApiEvaluator([gateway(), empty]).decide(Request()).action == "respond 500"
    rewritten = http_route("w", path("PathPrefix", "/"))
    change = {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}}
    rewritten["spec"]["rules"][0]["filters"] = [{"type": "URLRewrite", "urlRewrite": change}]
    decision = GatewayApiEvaluator([gateway(), rewritten]).decide(Request(path="/old"))
    assert (decision.path, decision.destinations) == ("/new", ("w-0.app.svc.cluster.local:80",))


def test_a_gateway_of_another_class_and_istios_own_objects_serve_nothing_here() -> None:
    other = gateway()
    other["spec"]["gatewayClassName"] = "apisix"
    istio = {"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {}, "spec": {}}
    evaluator = GatewayApiEvaluator([other, istio, http_route("r", path("PathPrefix", "/"))])
    assert evaluator.host_of("a.com") is None
    assert evaluator.decide(Request()).action == "not-found"
