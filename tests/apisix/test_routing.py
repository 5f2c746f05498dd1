"""Winners as the real lua-resty-radixtree 2.9.2, lua-resty-expr 1.3.2 and APISIX's router files gave them.

data/radixtree-2.9.2*.jsonl: one generated route table a line with [request, winner] pairs; the winners were
recorded from the Lua code under LuaJIT, with the C tree built from source and PCRE2 behind ngx.re.
``corners`` begins with the smallest cases of what was once wrong here; ``unusual`` has what few people write:
stars in the middle of a path, names after colons, empty segments, conditions nested three deep, IPv6 blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.apisix.model import Configuration, Kind, Origin, Resource, Router
from gateshift.apisix.routing import Request, RouteTable, default_router, normalize_uri

DATA = Path(__file__).parent / "data"


def configuration(*routes: dict[str, Any], services: list[dict[str, Any]] | None = None) -> Configuration:
    def resources(kind: Kind, specs: Any) -> dict[str, Resource]:
        return {
            str(s["id"]): Resource(kind, str(s["id"]), s, Origin("test", kind.value), i)
            for i, s in enumerate(specs)
        }

    return Configuration(
        {
            Kind.ROUTE: resources(Kind.ROUTE, routes),
            Kind.SERVICE: resources(Kind.SERVICE, services or []),
        }
    )


def winner(request: Request, *routes: dict[str, Any], router: Router = Router.HOST_URI) -> str | None:
    return RouteTable(configuration(*routes), router).match(request).winner


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("radixtree-2.9.2.jsonl", 1200),
        ("radixtree-2.9.2-corners.jsonl", 700),
        ("radixtree-2.9.2-unusual.jsonl", 700),
    ],
)
def test_the_same_winners_as_the_real_library(name: str, at_least: int) -> None:
    checked = 0
    for number, line in enumerate((DATA / name).read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        case = json.loads(line)
        table = RouteTable(configuration(*case["routes"], services=case["services"]), Router(case["router"]))
        for request, expected in case["cases"]:
            found = table.match(Request(**request))
            assert found.winner == expected, (number, request, found)
            assert not found.undecided
            checked += 1
    assert checked >= at_least


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("a.com", "/x", "host"),  # a host outranks a longer path without host
        ("b.com", "/x", "long"),
        ("A.COM:8080", "/x", "host"),  # case and port do not count
        ("a.com.", "/x", "host"),
        ("z.y.w.com", "/x", "wild"),
        ("w.com", "/x", "long"),  # *.w.com does not cover w.com
        ("", "/x", "long"),
        ("a.com", "/", "host"),
        ("b.com", "/other", None),
    ],
)
def test_host_buckets(host: str, path: str, expected: str | None) -> None:
    routes = (
        {"id": "long", "uri": "/x"},
        {"id": "host", "uri": "/*", "host": "a.com"},
        {"id": "wild", "uri": "/*", "host": "*.w.com"},
    )
    assert winner(Request(host=host, path=path), *routes) == expected


def test_radixtree_uri_lets_the_path_decide_before_the_host() -> None:
    routes = ({"id": "long", "uri": "/a/b"}, {"id": "host", "uri": "/*", "host": "a.com"})
    request = Request(host="a.com", path="/a/b")
    assert winner(request, *routes, router=Router.URI) == "long"
    assert winner(request, *routes) == "host"


def test_search_goes_on_after_a_failed_condition_down_to_routes_without_host() -> None:
    routes = (
        {"id": "exact", "uri": "/a", "host": "a.com", "methods": ["POST"]},
        {"id": "prefix", "uri": "/*", "host": "a.com", "vars": [["arg_x", "==", "1"]]},
        {"id": "open", "uri": "/a"},
    )
    table = RouteTable(configuration(*routes), Router.HOST_URI)
    match = table.match(Request(host="a.com", path="/a"), why=True)
    assert match.winner == "open"
    assert [t.route for t in match.why] == ["exact", "prefix", "open"]
    assert "GET" in match.why[0].failed[0]
    assert "arg_x" in match.why[1].failed[0]
    assert match.why[2].failed == ()


def test_a_variable_that_no_request_here_carries_is_named() -> None:
    rule = [["OR", ["post_arg_a", "==", "1"], ["arg_b", "==", "1"]], ["graphql_name", "!", "==", "q"]]
    table = RouteTable(configuration({"id": "r", "uri": "/*", "vars": rule}), Router.URI)
    messages = " ".join(f.message for f in table.findings)
    assert "$post_arg_a" in messages
    assert "$graphql_name" in messages
    assert "arg_b" not in messages
    assert table.match(Request(args={"b": "1"})).winner == "r"


def test_a_crowded_path_gives_the_same_answers_with_and_without_reasons() -> None:
    routes = [
        {"id": f"r{i}", "uri": "/*", "hosts": [f"h{i % 7}.com:8{i % 2}", f"*.w{i % 5}.com"], "methods": [m]}
        for i, m in enumerate(["GET", "POST"] * 40)
    ]
    table = RouteTable(configuration(*routes), Router.URI)
    for host in ("h3.com:80", "h3.com:81", "h3.com", "a.w1.com", "a.w2.com:1"):
        for method in ("GET", "POST", "PUT"):
            request = Request(host=host, method=method)
            assert table.match(request).winner == table.match(request, why=True).winner


def test_filter_func_never_decides_in_silence() -> None:
    routes = (
        {"id": "lua", "uri": "/a", "filter_func": "function(vars) return vars.arg_x == '1' end"},
        {"id": "next", "uri": "/*"},
    )
    table = RouteTable(configuration(*routes), Router.HOST_URI)
    match = table.match(Request(path="/a"))
    assert (match.winner, match.undecided) == ("next", ("lua",))
    assert any("filter_func" in f.message for f in table.findings)
    assert table.match(Request(path="/b")).undecided == ()


def test_a_pattern_without_equal_is_open_unless_another_condition_decides() -> None:
    pattern = ["http_x", "~~", r"\p{Lu}"]
    table = RouteTable(
        configuration(
            {"id": "a", "uri": "/*", "vars": [pattern, ["arg_x", "==", "1"]]}, {"id": "b", "uri": "/*"}
        ),
        Router.URI,
    )
    assert table.match(Request(path="/", args={"x": "1"})).undecided == ("a",)
    assert table.match(Request(path="/", args={"x": "2"})).undecided == ()


def test_routes_that_apisix_drops_are_reported_and_do_not_match() -> None:
    bad = (
        {"id": "1", "uri": "/*", "vars": [["a", "=~", "b"]]},
        {"id": "2", "uri": "/*", "remote_addr": "300.1.1.1"},
        {"id": "3", "uri": "/*", "methods": ["FETCH"]},
        {"id": "4", "name": "no uri"},
    )
    table = RouteTable(configuration(*bad), Router.URI)
    assert table.match(Request()).winner is None
    assert [f.message.split()[1] for f in table.findings] == ["1", "2", "3", "4"]


def test_disabled_routes_shadow_nothing() -> None:
    assert winner(Request(path="/a"), {"id": "1", "uri": "/a", "status": 0}, {"id": "2", "uri": "/*"}) == "2"


def test_service_hosts_count_only_for_routes_without_their_own() -> None:
    routes = (
        {"id": "own", "uri": "/*", "host": "own.com", "service_id": "s"},
        {"id": "inherits", "uri": "/*", "service_id": "s"},
    )
    services = [{"id": "s", "hosts": ["svc.com"]}]
    for router in Router:
        table = RouteTable(configuration(*routes, services=services), router)
        assert table.match(Request(host="svc.com")).winner == "inherits"
        assert table.match(Request(host="own.com")).winner == "own"


def test_variables_from_path_query_headers_and_cookies() -> None:
    def won(condition: list[Any], **request: Any) -> bool:
        return winner(Request(**request), {"id": "1", "uri": "/*", "vars": [condition]}) == "1"

    assert won(["arg_a", "==", "1 2"], path="/x?a=1+2&a=3")
    assert won(["request_uri", "==", "/x?a=1"], path="/x", args={"a": "1"})
    assert won(["http_X-Forwarded-For", "==", "1, 2"], headers={"x-forwarded-for": ["1", "2"]})
    assert won(["cookie_s", "==", "b"], headers={"Cookie": "s=a; s=b"})
    assert won(["http_cookie", "~~", "^s=a$"], cookies={"s": "a"})
    assert won(["http_host", "==", "a.com:81"], host="a.com:81")
    assert won(["host", "==", "a.com"], host="A.com:81")
    assert won(["arg_a", "==", True], path="/?a")
    assert not won(["arg_a", "==", "true"], path="/?a")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/a//b/./c/../d?x=1", "/a/b/d"),
        ("/%61%2Fb", "/a/b"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/../a/", "/a/"),
        ("/", "/"),
    ],
)
def test_normalize_uri(raw: str, expected: str) -> None:
    assert normalize_uri(raw) == expected


def test_default_router_by_version() -> None:
    assert default_router(Configuration(version="3.2.2")) is Router.URI
    assert default_router(Configuration(version="3.3.0")) is Router.HOST_URI
    assert default_router(Configuration(version="3.18.0")) is Router.HOST_URI
    assert default_router(Configuration()) is Router.HOST_URI
    assert default_router(Configuration(router=Router.URI, version="3.9.0")) is Router.URI


SEGMENT = st.sampled_from(["a", "b", "ab"])
PATH = st.lists(SEGMENT, min_size=1, max_size=3).map(lambda s: "/" + "/".join(s))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PATH, st.booleans(), st.integers(0, 2)), min_size=1, max_size=12), PATH)
def test_order_of_a_plain_table_equals_its_definition(routes: list[tuple[str, bool, int]], path: str) -> None:
    specs = [
        {"id": str(i), "uri": p + ("*" if prefix else ""), "priority": priority}
        for i, (p, prefix, priority) in enumerate(routes)
    ]
    matching = [
        (not prefix, len(p), priority, -i)
        for i, (p, prefix, priority) in enumerate(routes)
        if (path.startswith(p) if prefix else path == p)
    ]
    expected = str(-max(matching)[3]) if matching else None
    assert winner(Request(path=path), *specs, router=Router.URI) == expected
