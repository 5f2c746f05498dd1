"""Order, hosts, blockers and the proof."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateshift.apisix.model import Router
from gateshift.apisix.routing import Request, RouteTable
from gateshift.istio.evaluator import Evaluator
from gateshift.istio.evaluator import Request as Seen
from gateshift.runbook.setup import Translate
from gateshift.translate import Target, Translation, prove
from gateshift.translate.conditions import differences, from_vars
from gateshift.translate.report import write_translation
from tests.translate.helpers import TARGET, configuration, of_kind, route, rules, run

PATHS = st.sampled_from(
    [
        "/",
        "/a",
        "/a/",
        "/a/b",
        "/a/*",
        "/a*",
        "/*",
        "/a/b/*",
        "/a/*/c",
        "/a/b*x",
        "/b.c/*/d",
        "/a/*.html",
        "*",
    ]
)
HOSTS = st.lists(
    st.sampled_from(
        ["a.test", "b.test", "*.test", "*.a.test", "x.a.test", "*", "*a.test", "a.test:81", "*.test:81"]
    ),
    max_size=2,
    unique=True,
)
VARS = st.sampled_from(
    [
        None,
        [["http_x_a", "==", "1"]],
        [["arg_q", "~~", "^a"]],
        ["OR", ["http_x_a", "==", "1"], ["arg_q", "==", "a"]],
        [["cookie_s", "in", ["a", "1"]]],
        [["http_x_a", "~=", "1"]],
        ["!AND", ["http_x_a", "==", "1"], ["arg_q", "==", "a"]],
    ]
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, object]]:
    found = []
    for number in range(draw(st.integers(1, 7))):
        one: dict[str, object] = route(f"r{number}", draw(PATHS), priority=draw(st.integers(0, 2)))
        hosts = draw(HOSTS)
        if hosts:
            one["hosts"] = hosts
        methods = draw(st.lists(st.sampled_from(["GET", "POST"]), max_size=1))
        if methods:
            one["methods"] = methods
        expression = draw(VARS)
        if expression:
            one["vars"] = expression
        found.append(one)
    return found


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.sampled_from([Router.HOST_URI, Router.URI]))
def test_emitted_objects_choose_the_route_that_apisix_chooses(
    table: list[dict[str, object]], router: Router
) -> None:
    config = configuration(routes=table)
    translation = run(config, Target(version="1.31", namespace="app", router=router))
    proof = prove(config, translation, requests=150, seed=1)
    assert not proof.disagreements, str(proof.disagreements[0])


def test_the_proof_finds_a_wrong_order() -> None:
    config = configuration(routes=[route("wide", "/a/*"), route("exact", "/a/b")])
    translation = run(config)
    rules(translation)
    for service in of_kind(translation, "VirtualService"):
        service["spec"]["http"].reverse()
    proof = prove(config, translation, requests=200)
    assert [(one.apisix, one.istio) for one in proof.disagreements] == [("exact", "wide")]
    assert proof.disagreements[0].request.path == "/a/b"


def test_hostless_routes_are_copied_into_each_host() -> None:
    config = configuration(routes=[route("any", "/health"), route("own", "/*", host="a.test")])
    translation = run(config)
    assert [one["name"] for one in rules(translation, "a.test")] == ["own"]
    config = configuration(routes=[route("any", "/health"), route("own", "/x/*", host="a.test")])
    assert [one["name"] for one in rules(run(config), "a.test")] == ["own", "any"]


def test_a_certificates_gateway_never_gets_the_rules_of_a_wider_host() -> None:
    config = configuration(
        routes=[route("api", "/*", host="api.test"), route("all", "/api-shadow/*", host="*.test")],
        ssls=[{"id": "one", "snis": ["api.test"], "cert": "c", "key": "k"}],
    )
    translation = run(config)
    bound = {
        tuple(one["spec"]["hosts"]): one["spec"]["gateways"] for one in of_kind(translation, "VirtualService")
    }
    assert bound["api.test",] == ["istio-system/gateshift", "istio-system/gateshift-one"]
    assert bound["*.test",] == ["istio-system/gateshift"]


def test_a_name_of_a_certificate_without_route_is_served_by_the_wildcard_route() -> None:
    config = configuration(
        routes=[route("all", "/*", host="*.test")],
        ssls=[{"id": "one", "snis": ["only-tls.test"], "cert": "c", "key": "k"}],
    )
    translation = run(config)
    assert [one["name"] for one in rules(translation, "only-tls.test")] == ["all"]


def test_keys_are_never_in_the_output() -> None:
    config = configuration(
        routes=[route("one", "/*", host="a.test")],
        ssls=[{"id": "one", "sni": "a.test", "cert": "THE-CERT", "key": "THE-KEY"}],
    )
    translation = run(config)
    assert "THE-KEY" not in str(translation.objects) + str(translation.as_json())
    assert of_kind(translation, "Gateway")[1]["spec"]["servers"][0]["tls"]["credentialName"] == "ssl-one"


def test_a_blocked_route_is_refused_where_a_wider_one_would_take_over() -> None:
    config = configuration(
        routes=[route("admin", "/admin/*", plugins={"hmac-auth": {}}), route("rest", "/*")]
    )
    translation = run(config)
    assert [(b.resource, b.plugin, b.routes) for b in translation.blockers] == [
        ("routes/admin", "hmac-auth", ("routes/admin",))
    ]
    refused, served = rules(translation)
    assert refused["directResponse"]["status"] == 503
    assert "route" not in refused
    assert served["name"] == "rest"
    assert not prove(config, translation, requests=200).disagreements


def test_a_signature_opens_the_route_and_stays_on_record() -> None:
    config = configuration(routes=[route("admin", "/admin/*", plugins={"hmac-auth": {}})])
    accept = ({"resource": "routes/admin", "plugin": "hmac-auth", "who": "Ada", "why": "mTLS in front now"},)
    translation = run(config, accept=accept)
    assert not translation.blockers
    assert translation.accepted[0].accepted == "Ada: mTLS in front now"
    assert "route" in rules(translation)[0]


def test_a_signature_never_drops_a_match_condition() -> None:
    config = configuration(routes=[route("in", "/*", remote_addrs=["10.0.0.0/8"])])
    accept = ({"resource": "routes/in", "plugin": "remote_addrs", "who": "Ada", "why": "not needed now"},)
    translation = run(config, accept=accept)
    assert not rules(translation)
    assert translation.refused == {"in"}


def test_a_broken_reference_blocks_instead_of_guessing() -> None:
    config = configuration(routes=[{"id": "x", "uri": "/x", "upstream_id": "gone"}])
    assert run(config).blockers[0].plugin == "upstream_id"


def test_disabled_routes_emit_nothing() -> None:
    assert not run(configuration(routes=[route("off", "/*", status=0)])).objects


def test_same_input_gives_the_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = configuration(routes=[route("a", "/a", host="x.test"), route("b", "/b/*", host="y.test")])
    for name in ("one", "two"):
        write_translation(run(config), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_retries_and_balancer_are_always_written_out() -> None:
    translation = run(configuration(routes=[route("a", "/a")]))
    assert rules(translation)[0]["retries"] == {"attempts": 0}
    policy = of_kind(translation, "DestinationRule")[0]["spec"]["trafficPolicy"]
    assert policy["loadBalancer"] == {"simple": "ROUND_ROBIN"}
    assert "timeout" not in rules(translation)[0]


def test_two_policies_for_one_host_become_subsets() -> None:
    one = {"type": "roundrobin", "nodes": {"svc:80": 1}}
    config = configuration(
        routes=[
            {"id": "a", "uri": "/a", "upstream": one},
            {"id": "b", "uri": "/b", "upstream": {**one, "type": "least_conn"}},
        ]
    )
    translation = run(config)
    assert [s["name"] for s in of_kind(translation, "DestinationRule")[0]["spec"]["subsets"]] == [
        "routes-a",
        "routes-b",
    ]
    assert rules(translation)[0]["route"][0]["destination"]["subset"] == "routes-a"


def test_older_istio_gets_older_api_versions() -> None:
    translation = run(configuration(routes=[route("a", "/a")]), Target(version="1.20.1", namespace="app"))
    assert {one["apiVersion"] for one in translation.objects} == {"networking.istio.io/v1beta1"}
    assert TARGET.version == "1.31.0"


def test_a_held_back_route_of_a_narrower_host_is_not_taken_over_by_a_wider_one() -> None:
    config = configuration(
        routes=[
            route("guarded", "/*", host="admin.shop.com", remote_addrs=["10.0.0.0/8"]),
            route("open", "/*", host="*.shop.com"),
        ]
    )
    translation = run(config)
    assert translation.refused == {"guarded"}
    refusal = rules(translation, "admin.shop.com")
    assert [one["directResponse"]["status"] for one in refusal] == [503]
    only = run(configuration(routes=[route("guarded", "/*", host="a.com", remote_addrs=["10.0.0.0/8"])]))
    assert not of_kind(only, "VirtualService")


def _agrees(*routes: dict[str, Any], router: Router = Router.HOST_URI, **kinds: Any) -> Translation:
    config = configuration(routes=list(routes), **kinds)
    translation = run(config, replace(TARGET, router=router))
    assert not prove(config, translation, requests=600).disagreements
    return translation


def test_conditions_are_read_as_the_library_reads_them() -> None:
    rule = [
        ["or", ["arg_x", "==", 1], ["http_v", "IN", ["a", 2]], ["cookie_c", "~~", "^b$|^c"]],
        ["http_w", "!", "~~", "x*"],
    ]
    translation = _agrees(route("a", "/*", vars=rule), route("b", "/*"))
    matches = rules(translation)[0]["match"]
    assert len(matches) == 6
    assert {"regex": "a"} in [one.get("headers", {}).get("v") for one in matches]
    assert [one["withoutHeaders"]["w"]["regex"] for one in matches][1::2] == ["*"] * 3


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("^/a/.*b$", ["/a/b", "/a/b?x=1"], ["/a/?b", "/a/c?b", "/x/a/b"]),
        ("admin", ["/admin", "/x/admin/y?z"], ["/x?admin"]),
        ("^/(?:v1|v2)/", ["/v2/x"], ["/v3/", "/?/v1/"]),
        (r"(^/a$|b\d$)", ["/a?q", "/xb7"], ["/ab", "/b7x"]),
        ("(?i)^/ADMIN[^/]*$", ["/adminx?y=/"], ["/admin/x"]),
        ("/caf\u00e9", ["/caf%C3%A9"], ["/caf"]),
    ],
)
def test_a_pattern_on_the_path_never_reaches_into_the_query(
    pattern: str, inside: list[str], outside: list[str]
) -> None:
    (condition,) = from_vars([["uri", "~~", pattern]], {})
    regex = re.compile(condition["headers"][":path"]["regex"])
    assert all(regex.fullmatch(one) for one in inside)
    assert not any(regex.fullmatch(one) for one in outside)


@pytest.mark.parametrize(
    "rule",
    [
        ["uri", "~~", "a(?=b)"],
        ["uri", "~~", "a^b"],
        ["uri", "~~", "a\\?b"],
        ["uri", "~~", "[\\W]x"],
        ["uri", "~~", "a{2000}"],
    ],
)
def test_what_re2_cannot_say_holds_the_route_back(rule: list[Any]) -> None:
    translation = run(configuration(routes=[route("a", "/*", vars=[rule]), route("b", "/*")]))
    assert translation.refused == {"a"}
    assert [one.plugin for one in translation.blockers] == ["vars"]


def test_numbers_lists_and_invalid_patterns_match_what_they_match_in_apisix() -> None:
    (number,) = from_vars([["arg_n", "==", 10]], {})
    regex = re.compile(number["queryParams"]["n"]["regex"])
    assert all(regex.fullmatch(one) for one in ("10", "10.0", "010", "+10"))
    assert not any(regex.fullmatch(one) for one in ("1", "100", "10.5"))
    assert from_vars([["arg_n", "in", [1, 2]]], {}) == []  # a number in a list equals no text
    assert from_vars([["http_a", "~~", "("]], {}) == []
    assert from_vars([["http_a", "!", "~~", "("]], {}) == [{}]
    (spaced,) = from_vars([["arg_q", "==", "a b"]], {})
    assert re.fullmatch(spaced["queryParams"]["q"]["regex"], "a%20b")
    assert differences([["arg_n", "==", 10]])


def test_routes_that_apisix_drops_are_not_emitted_and_named() -> None:
    translation = _agrees(
        route("lower", "/a", methods=["get"]),
        route("vars", "/a", vars=[["arg_x", "=", "1"]]),
        route("port", "/a", host="a.com:8080"),
        route("ok", "/a"),
    )
    assert [one["name"] for one in rules(translation)] == ["ok"]
    assert [one.resource for one in translation.blockers] == ["routes/lower", "routes/vars"]
    assert sum("nothing is emitted" in one for one in translation.warnings) == 1


@pytest.mark.parametrize("router", [Router.URI, Router.URI_WITH_PARAMETER])
def test_a_host_with_a_port_is_compared_with_the_header_as_it_was_sent(router: Router) -> None:
    table = (
        route("port", "/a", host="a.com:8080"),
        route("mixed", "/b", hosts=["*.w.com:81", "b.com"]),
        route("bare", "/*", host="a.com"),
    )
    translation = _agrees(*table, router=router)
    assert not translation.blockers
    config, evaluator = configuration(routes=table), Evaluator(translation.objects)
    expected = {
        ("a.com:8080", "/a"): "port",
        ("A.com:8080", "/a"): "bare",  # the route's host is in lower case, the header is compared as sent
        ("a.com", "/a"): "bare",
        ("a.com:80", "/a"): "bare",
        ("x.w.com:81", "/b"): "mixed",
        ("x.w.com", "/b"): None,
        ("b.com:99", "/b"): "mixed",
        ("B.COM", "/b"): "mixed",
    }
    for (host, path), winner in expected.items():
        assert RouteTable(config, router).match(Request(host=host, path=path)).winner == winner, host
        assert evaluator.decide(Seen(authority=host, path=path)).entry == winner, host


def test_a_host_that_is_an_address_is_held_back_under_the_routers_that_compare_it() -> None:
    translation = _agrees(route("v6", "/a", host="[::1]:81"), route("ok", "/a"), router=Router.URI)
    assert [one.resource for one in translation.blockers] == ["routes/v6"]


@pytest.mark.parametrize("router", list(Router))
def test_paths_that_are_read_as_regular_expressions(router: Router) -> None:
    translation = _agrees(
        route("never", "/odata/Products(*/x/*)"),
        route("percent", "/100%/*"),
        route("accent", "/*/caf\u00e9"),
        route("rest", "/a/*rest/:id"),
        route("any", "*"),
        router=router,
    )
    assert translation.refused <= {"never"}


def test_a_signature_covers_the_reasons_that_were_read_and_no_other() -> None:
    config = configuration(routes=[route("r", "/a", plugins={"hmac-auth": {}})])
    (blocker,) = run(config, accept=()).blockers
    signature = {"resource": "routes/r", "plugin": "hmac-auth", "who": "Ada", "why": "moved into the backend"}
    signed = run(config, accept=({**signature, "covers": blocker.fingerprints},))
    assert not signed.blockers
    assert signed.accepted[0].fingerprints == blocker.fingerprints
    assert signed.accepted[0].pinned
    assert not [one for one in signed.warnings if "any reason" in one]
    changed = run(config, accept=({**signature, "covers": ["0" * 12]},))
    assert changed.blockers[0].reason == blocker.reason
    assert any(blocker.fingerprints[0] in one for one in changed.warnings)


def test_a_signature_without_reasons_holds_and_says_everywhere_that_it_holds_for_any(tmp_path: Path) -> None:
    config = configuration(routes=[route("r", "/a", plugins={"hmac-auth": {}})])
    signature = {"resource": "routes/r", "plugin": "hmac-auth", "who": "Ada", "why": "moved into the backend"}
    translation = run(config, accept=(signature,))
    (signed,) = translation.accepted
    assert not translation.blockers
    assert signed.as_json()["pinned"] is False
    pin = f'covers: ["{signed.fingerprints[0]}"]'
    assert pin in signed.held_by
    assert any("any reason" in one and pin in one for one in translation.warnings)
    write_translation(translation, tmp_path)
    assert "holds for any reason" in (tmp_path / "ledger.html").read_text()


def test_a_guarded_route_says_what_happens_to_its_path() -> None:
    plain = run(configuration(routes=[route("r", "/a/*")]))
    assert [e.status for e in plain.ledger if e.path == "uri"] == ["exact"]
    guarded = run(
        configuration(routes=[route("r", "/a/*", plugins={"ip-restriction": {"whitelist": ["10.0.0.0/8"]}})])
    )
    (entry,) = [e for e in guarded.ledger if e.path == "uri"]
    assert entry.status == "approximate"
    assert "%2F" in entry.note


def test_no_route_at_all_is_a_blocker_and_not_an_empty_success() -> None:
    upstream = {"id": "u", "type": "roundrobin", "nodes": {"a:80": 1}}
    (blocker,) = run(configuration(upstreams=[upstream])).blockers
    assert (blocker.resource, blocker.plugin) == ("configuration", "input")


def test_the_notebook_shows_signatures_and_blockers_above_the_differences() -> None:
    config = configuration(
        routes=[
            route("r", "/a", plugins={"hmac-auth": {}}),
            route("s", "/b", plugins={"hmac-auth": {}}),
        ]
    )
    signature = {"resource": "routes/r", "plugin": "hmac-auth", "who": "Ada", "why": "moved into the backend"}
    book = Translate.__new__(Translate)  # the table needs a translation and nothing else of a run
    book.translation = run(config, accept=(signature,))
    blocks, signed, *_ = book.ledger().rows
    assert blocks[:2] == ("blocks", "routes/s hmac-auth")
    assert book.translation.blockers[0].covers in blocks[2]
    assert signed[:2] == ("signed", "routes/r hmac-auth")
    assert "holds for any reason" in signed[2]
