"""Routes of the Gateway API: only where they are exact, proven, and never without their policies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateshift.apisix.model import Configuration, Router
from gateshift.cli import cli
from gateshift.istio.evaluator import Evaluator
from gateshift.istio.gateway_api import GatewayApiEvaluator
from gateshift.runbook.setup import Translate
from gateshift.translate import Target, Translation
from gateshift.translate.model import ROUTES_FILE
from gateshift.translate.proof import prove
from gateshift.translate.report import write_translation
from tests.translate.helpers import configuration, filters, of_kind, route, run

API = "gateway.networking.k8s.io/v1"


def translated(config: Configuration, target: Target | None = None, **params: Any) -> Translation:
    params = {"output": "gateway-api", **params}
    return run(config, target, **params) if target else run(config, **params)


def form(translation: Translation, host: str = "*") -> str:
    (found,) = [one for one in translation.forms if one.host == host]
    return found.form


def why(translation: Translation, host: str = "*") -> str:
    (found,) = [one for one in translation.forms if one.host == host]
    return found.why


def api_rules(translation: Translation, kind: str = "HTTPRoute") -> list[Mapping[str, Any]]:
    return [rule for one in of_kind(translation, kind) for rule in one["spec"]["rules"]]


def paths(translation: Translation) -> list[tuple[str, str]]:
    matches = [m for rule in api_rules(translation) for m in rule["matches"]]
    return [(m["path"]["type"], m["path"]["value"]) for m in matches]


# -- routing --------------------------------------------------------------------------------------


def test_a_host_becomes_a_gateway_and_an_http_route_and_no_virtual_service() -> None:
    config = configuration(routes=[route("a", "/a", host="a.test"), route("b", "/*", host="a.test")])
    translation = translated(config)
    assert form(translation, "a.test") == "HTTPRoute"
    assert not of_kind(translation, "VirtualService")
    (gateway,) = of_kind(translation, "Gateway")
    assert gateway["apiVersion"] == API
    assert gateway["spec"]["gatewayClassName"] == "istio"
    assert gateway["spec"]["addresses"] == [
        {"type": "Hostname", "value": "istio-ingressgateway.istio-system.svc.cluster.local"}
    ]
    (made,) = of_kind(translation, "HTTPRoute")
    assert made["spec"]["hostnames"] == ["a.test"]
    assert paths(translation) == [("Exact", "/a"), ("PathPrefix", "/")]
    assert made["spec"]["rules"][0]["backendRefs"] == [{"name": "a", "port": 80}]
    assert not prove(config, translation, requests=300).disagreements


def test_without_the_option_nothing_is_said_or_emitted_for_the_gateway_api() -> None:
    translation = run(configuration(routes=[route("a", "/a")]))
    assert translation.forms == ()
    assert not translation.files[ROUTES_FILE]
    assert of_kind(translation, "VirtualService")


def test_a_path_prefix_is_used_only_where_the_path_itself_is_taken_as_well() -> None:
    both = {**route("b", "/b"), "uris": ["/b", "/b/*"]}
    assert paths(translated(configuration(routes=[both]))) == [("Exact", "/b"), ("PathPrefix", "/b")]
    alone = configuration(routes=[route("c", "/c/*"), route("d", "/*")])
    translation = translated(alone)
    assert paths(translation) == [("RegularExpression", "/c/.*"), ("RegularExpression", "/.*")]
    assert not prove(alone, translation, requests=300).disagreements


def test_one_prefix_inside_a_segment_makes_all_of_them_regular_expressions() -> None:
    config = configuration(routes=[route("a", "/a*"), route("all", "/*")])
    translation = translated(config)
    assert paths(translation) == [("RegularExpression", "/a.*"), ("RegularExpression", "/.*")]
    assert not prove(config, translation, requests=300).disagreements


TABLE_PATHS = ("/*", "/a", "/a/*", "/a*", "/a/b", "/a/b/*", "/a.b/*", "/a/*/c", "/shop.Cart/Add", "/b/*")


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(1, 7))):
        one = route(f"r{number}", draw(st.sampled_from(TABLE_PATHS)))
        if draw(st.booleans()):
            one = {**one, "uris": [one["uri"], draw(st.sampled_from(TABLE_PATHS))]}
            del one["uri"]
        hosts = draw(
            st.lists(st.sampled_from(["a.test", "b.test", "*.test", "*.a.test"]), max_size=2, unique=True)
        )
        if hosts:
            one["hosts"] = hosts
        methods = draw(st.lists(st.sampled_from(["GET", "POST", "PURGE"]), max_size=2, unique=True))
        if methods:
            one["methods"] = methods
        variables = draw(
            st.sampled_from(
                [
                    [],
                    [],
                    [["http_x_kind", "==", "new"]],
                    [["arg_v", "==", "2"]],
                    [["http_x_kind", "~=", "new"]],
                    [["http_x_kind", "in", ["new", "old"]], ["arg_v", "==", "1"]],
                ]
            )
        )
        if variables:
            one["vars"] = variables
        if draw(st.booleans()):
            one["priority"] = draw(st.integers(0, 3))
        found.append(one)
    return found


@pytest.mark.slow
def test_every_form_chooses_the_route_that_apisix_chooses() -> None:
    seen: dict[str, int] = {}

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(tables(), st.sampled_from([Router.HOST_URI, Router.URI]))
    def holds(table: list[dict[str, Any]], router: Router) -> None:
        config = configuration(routes=table)
        translation = translated(config, Target(version="1.31", namespace="app", router=router))
        for one in translation.forms:
            seen[one.form] = seen.get(one.form, 0) + 1
        proof = prove(config, translation, requests=150, seed=1)
        assert not proof.disagreements, str(proof.disagreements[0])
        in_routes = {h for o in of_kind(translation, "HTTPRoute") for h in o["spec"].get("hostnames", ["*"])}
        in_services = {h for o in of_kind(translation, "VirtualService") for h in o["spec"]["hosts"]}
        assert not in_routes & in_services

    holds()
    assert seen["HTTPRoute"] > 40, seen
    assert seen["VirtualService"] > 40, seen


def test_the_proof_finds_a_route_that_takes_more_than_apisix_does() -> None:
    config = configuration(routes=[route("c", "/c/*"), route("d", "/*")])
    translation = translated(config)
    for rule in api_rules(translation):
        for match in rule["matches"]:
            value = match["path"]["value"].removesuffix(".*")
            match["path"] = {"type": "PathPrefix", "value": value}
    (found,) = prove(config, translation, requests=300).disagreements
    assert (found.apisix, found.istio, found.request.path) == ("d", "c", "/c")


def test_the_proof_finds_a_host_in_both_forms() -> None:
    config = configuration(routes=[route("a", "/*", host="a.test")])
    translation = translated(config)
    of_kind(translation, "HTTPRoute")[0]["spec"]["hostnames"].append("b.test")
    other = run(configuration(routes=[route("a", "/*", host="b.test")]))
    files = {**translation.files, **{k: v for k, v in other.files.items() if k != ROUTES_FILE}}
    both = Translation(files, (), (), entries=translation.entries)
    found = prove(configuration(routes=[route("a", "/*", hosts=["a.test", "b.test"])]), both, requests=200)
    assert "served in both forms" in str(found.disagreements[0])


# -- what stays a VirtualService ------------------------------------------------------------------

PLUGINS: dict[str, dict[str, Any]] = {
    "the gateway answers by itself": {"mocking": {"response_example": "x"}},
    "delays and aborts": {"fault-injection": {"delay": {"duration": 1}}},
    "a header that must be absent": {"cors": {"allow_origins": "*"}},
    "rewritten by a regular expression": {"proxy-rewrite": {"regex_uri": ["^/a/(.*)", "/b/$1"]}},
    "the Host other.test:8080 is more than a hostname": {"proxy-rewrite": {"host": "other.test:8080"}},
}


@pytest.mark.parametrize("reason", PLUGINS)
def test_what_an_http_route_cannot_do_keeps_its_host_a_virtual_service(reason: str) -> None:
    config = configuration(
        routes=[
            route("a", "/a/*", host="a.test", plugins=PLUGINS[reason]),
            route("b", "/*", hosts=["a.test", "b.test"]),
        ]
    )
    translation = translated(config)
    assert form(translation, "a.test") == "VirtualService"
    assert why(translation, "a.test").startswith("route a: ")
    assert reason in why(translation, "a.test")
    assert form(translation, "b.test") == "HTTPRoute"
    assert not prove(config, translation, requests=300).disagreements


MATCHES: dict[str, dict[str, Any]] = {
    "the method PURGE": {"methods": ["PURGE"]},
    "a header that must be absent": {"vars": [["http_x", "~=", "1"]]},
    "the port": {"vars": [["server_port", "==", 9080]]},
    "no hostname of the Gateway API": {"host": "*b.test"},
    "httpbin.org is no Service": {"upstream": {"nodes": {"httpbin.org:80": 1}, "type": "roundrobin"}},
}


@pytest.mark.parametrize("reason", MATCHES)
def test_what_the_gateway_api_cannot_match_says_so(reason: str) -> None:
    translation = translated(configuration(routes=[{**route("a", "/a"), **MATCHES[reason]}]))
    host = str(MATCHES[reason].get("host", "*"))
    assert form(translation, host) == "VirtualService"
    assert reason in why(translation, host)


def test_an_order_that_only_a_list_can_have_stays_a_list() -> None:
    """Priority puts the route with fewer conditions first; the Gateway API would ask it last."""
    config = configuration(
        routes=[
            route("plain", "/a", priority=9, methods=["GET"]),
            route("picky", "/a", methods=["GET"], vars=[["http_x", "==", "1"]]),
        ]
    )
    translation = translated(config)
    assert form(translation) == "VirtualService"
    assert "before" in why(translation)
    assert not prove(config, translation, requests=300).disagreements


def test_below_its_version_nothing_is_emitted() -> None:
    translation = translated(
        configuration(routes=[route("a", "/a")]), Target(version="1.21", namespace="app")
    )
    assert why(translation) == "it takes Istio 1.22"
    assert not translation.files[ROUTES_FILE]


def test_more_rules_than_an_object_holds_are_spread_without_a_tie_between_objects() -> None:
    config = configuration(routes=[route(f"r{i}", f"/p{i}") for i in range(40)])
    translation = translated(config)
    made = of_kind(translation, "HTTPRoute")
    assert [len(one["spec"]["rules"]) for one in made] == [16, 16, 8]
    assert len({one["metadata"]["name"] for one in made}) == 3
    assert not prove(config, translation, requests=500).disagreements
    equal = [route(f"r{i}", "/same", vars=[["http_x", "==", str(i)]]) for i in range(20)]
    assert form(translated(configuration(routes=equal))) == "HTTPRoute"  # they exclude each other
    overlapping = [route(f"r{i:02}", "/same", vars=[[f"http_x{i}", "==", "1"]]) for i in range(20)]
    translation = translated(configuration(routes=overlapping))
    assert "age would decide" in why(translation)


# -- what the routes do ---------------------------------------------------------------------------


def test_filters_timeouts_weights_and_backends() -> None:
    weighted = {
        "type": "roundrobin",
        "nodes": {"one:80": 3, "two.other.svc:8080": 1},
        "timeout": {"read": 2.5},
    }
    plugins = {
        "proxy-rewrite": {"uri": "/new", "host": "inner.test", "headers": {"set": {"X-A": "1"}}},
        "response-rewrite": {"headers": {"set": {"X-B": "2"}}},
        "proxy-mirror": {"host": "http://copy.app.svc:8081"},
    }
    translation = translated(
        configuration(routes=[{"id": "a", "uri": "/a", "upstream": weighted, "plugins": plugins}])
    )
    (rule,) = api_rules(translation)
    kinds = {one["type"]: one for one in rule["filters"]}
    assert {"name": "x-a", "value": "1"} in kinds["RequestHeaderModifier"]["requestHeaderModifier"]["set"]
    assert kinds["ResponseHeaderModifier"]["responseHeaderModifier"]["set"] == [{"name": "x-b", "value": "2"}]
    assert kinds["URLRewrite"]["urlRewrite"] == {
        "hostname": "inner.test",
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"},
    }
    assert kinds["RequestMirror"]["requestMirror"] == {"backendRef": {"name": "copy", "port": 8081}}
    assert rule["timeouts"] == {"request": "2s500ms"}
    assert rule["backendRefs"] == [
        {"name": "one", "port": 80, "weight": 3},
        {"name": "two", "namespace": "other", "port": 8080, "weight": 1},
    ]
    (grant,) = of_kind(translation, "ReferenceGrant")
    assert grant["metadata"]["namespace"] == "other"
    assert grant["spec"] == {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "app"}],
        "to": [{"group": "", "kind": "Service", "name": "two"}],
    }


def test_a_redirect_has_its_status_and_no_backend() -> None:
    plugins = {"redirect": {"uri": "https://new.test/there", "ret_code": 308, "append_query_string": True}}
    (rule,) = api_rules(translated(configuration(routes=[route("a", "/a", plugins=plugins)])))
    (change,) = [one for one in rule["filters"] if one["type"] == "RequestRedirect"]
    assert change["requestRedirect"] == {
        "scheme": "https",
        "hostname": "new.test",
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/there"},
        "statusCode": 308,
    }
    assert "backendRefs" not in rule


def test_every_forwarding_rule_has_its_retries_taken_from_istios_default() -> None:
    """Without them an HTTPRoute would be tried three times, for POST as well."""
    two = {"type": "roundrobin", "retries": 2, "nodes": {"two:80": 1}}
    config = configuration(routes=[route("a", "/a"), {"id": "b", "uri": "/b", "upstream": two}])
    translation = translated(config)
    patches = filters(translation)["gateshift-retries"]["spec"]["configPatches"]
    policies = {
        one["match"]["routeConfiguration"]["vhost"]["route"]["name"]: one["patch"]["value"]["route"][
            "retry_policy"
        ]
        for one in patches
    }
    assert policies == {
        "app.all-hosts.0": {"retry_on": "retriable-headers"},
        "app.all-hosts.1": {
            "num_retries": 2,
            "retry_on": "connect-failure,refused-stream,reset-before-request",
        },
    }


def test_grpc_hosts_are_grpc_routes_where_each_rule_is_a_service_or_method() -> None:
    def grpc(id_: str, uri: str) -> dict[str, Any]:
        return {
            "id": id_,
            "uri": uri,
            "upstream": {"type": "roundrobin", "scheme": "grpc", "nodes": {"g:90": 1}},
        }

    config = configuration(routes=[grpc("add", "/shop.Cart/Add"), grpc("get", "/shop.Cart/Get")])
    translation = translated(config)
    assert form(translation) == "GRPCRoute"
    methods = [m["method"] for rule in api_rules(translation, "GRPCRoute") for m in rule["matches"]]
    assert methods == [
        {"type": "Exact", "service": "shop.Cart", "method": "Add"},
        {"type": "Exact", "service": "shop.Cart", "method": "Get"},
    ]
    assert not prove(config, translation, requests=300).disagreements
    assert form(translated(configuration(routes=[grpc("all", "/*")]))) == "HTTPRoute"


# -- policies -------------------------------------------------------------------------------------


def test_policies_and_filters_hold_for_routes_of_the_gateway_api() -> None:
    plugins = {
        "ip-restriction": {"blacklist": ["10.0.0.0/8"]},
        "limit-req": {"rate": 1, "burst": 0, "key": "remote_addr", "key_type": "var", "nodelay": True},
    }
    config = configuration(
        routes=[route("guarded", "/in/*", host="a.test", plugins=plugins), route("open", "/*", host="a.test")]
    )
    plain, other = run(config), translated(config)
    assert form(other, "a.test") == "HTTPRoute"
    assert of_kind(other, "AuthorizationPolicy") == of_kind(plain, "AuthorizationPolicy") != []
    for policy in of_kind(other, "AuthorizationPolicy"):
        assert policy["spec"]["selector"]["matchLabels"] == {"istio": "ingressgateway"}
    named = {
        p["match"]["routeConfiguration"]["vhost"]["route"]["name"]
        for name, one in filters(other).items()
        if name != "gateshift-retries"
        for p in one["spec"]["configPatches"]
        if p["applyTo"] == "HTTP_ROUTE"
    }
    guarded = {name for name, id_ in other.entries.items() if id_ == "guarded"}
    assert guarded == {"app.a.test.0"}
    assert named == guarded  # the rule of the open route is left alone


def test_what_is_refused_stays_refused_as_a_virtual_service() -> None:
    config = configuration(
        routes=[
            route("lost", "/in/*", host="a.test", plugins={"openid-connect": {"client_id": "x"}}),
            route("open", "/*", host="a.test"),
        ]
    )
    translation = translated(config)
    assert translation.refused == {"lost"}
    assert form(translation, "a.test") == "VirtualService"


# -- certificates ---------------------------------------------------------------------------------


def ssl(**fields: Any) -> dict[str, Any]:
    return {"id": "one", "sni": "*.b.test", "cert": "c", "key": "k", **fields}


def test_a_certificate_is_a_listener_for_all_of_its_hosts() -> None:
    config = configuration(
        routes=[
            route("a", "/*", host="a.b.test"),
            route("w", "/w", host="*.b.test"),
            route("o", "/*", host="o.test"),
        ],
        ssls=[ssl()],
    )
    translation = translated(config)
    assert {one.form for one in translation.forms} == {"HTTPRoute"}
    (gateway,) = of_kind(translation, "Gateway")
    (listener,) = [one for one in gateway["spec"]["listeners"] if one["protocol"] == "HTTPS"]
    assert listener["hostname"] == "*.b.test"
    assert listener["tls"] == {"mode": "Terminate", "certificateRefs": [{"name": "ssl-one"}]}
    sections = {
        tuple(o["spec"]["hostnames"]): [p["sectionName"] for p in o["spec"]["parentRefs"]]
        for o in of_kind(translation, "HTTPRoute")
    }
    assert sections["a.b.test",] == ["http", listener["name"]]
    assert sections["o.test",] == ["http"]
    assert not prove(config, translation, requests=400).disagreements
    entry = next(e for e in translation.ledger if e.resource == "ssls/one" and e.path == "cert")
    assert entry.target == "Gateway listeners[].tls.certificateRefs"


@pytest.mark.parametrize(
    "more",
    [
        {"client": {"ca": "x"}},
        {"ssl_protocols": ["TLSv1.3"]},
        {"sni": None, "snis": ["a.b.test", "c.b.test"]},
    ],
)
def test_a_certificate_that_no_listener_can_say_keeps_its_hosts(more: dict[str, Any]) -> None:
    config = configuration(
        routes=[route("a", "/*", host="a.b.test"), route("o", "/*", host="o.test")], ssls=[ssl(**more)]
    )
    translation = translated(config)
    assert form(translation, "a.b.test") == "VirtualService"
    assert "certificate one" in why(translation, "a.b.test")
    assert form(translation, "o.test") == "HTTPRoute"
    assert not prove(config, translation, requests=300).disagreements


def test_one_inexact_host_keeps_the_others_of_its_certificate() -> None:
    """A browser asks for both on one connection; two kinds of Gateway would not find the other's host."""
    config = configuration(
        routes=[
            route("a", "/*", host="a.b.test"),
            route("c", "/*", host="c.b.test", plugins={"cors": {"allow_origins": "https://x.test"}}),
        ],
        ssls=[ssl()],
    )
    translation = translated(config)
    assert form(translation, "a.b.test") == "VirtualService"
    assert why(translation, "a.b.test").startswith("c.b.test, which shares its certificate")


# -- what is written ------------------------------------------------------------------------------


def test_the_ledger_names_the_fields_that_a_value_ended_in() -> None:
    config = configuration(
        routes=[
            route("a", "/*", host="a.test"),
            route("b", "/*", host="b.test", plugins={"cors": {"allow_origins": "https://x.test"}}),
        ]
    )
    translation = translated(config)
    targets = {(e.resource, e.path): e.target for e in translation.ledger}
    assert targets["routes/a", "host"] == "HTTPRoute hostnames"
    assert targets["routes/b", "host"] == "VirtualService hosts"
    assert [(h["host"], h["form"]) for h in translation.as_json()["hosts"]] == [
        ("a.test", "HTTPRoute"),
        ("b.test", "VirtualService"),
    ]


def test_the_same_input_gives_the_same_bytes_and_a_stale_file_goes(tmp_path: Path) -> None:
    config = configuration(routes=[route("a", "/*", host="a.test")])
    write_translation(translated(config), tmp_path)
    first = (tmp_path / ROUTES_FILE).read_bytes()
    write_translation(translated(config), tmp_path)
    assert (tmp_path / ROUTES_FILE).read_bytes() == first
    write_translation(run(config), tmp_path)
    assert not (tmp_path / ROUTES_FILE).exists()


def test_the_command_says_the_form_of_each_host(tmp_path: Path) -> None:
    source = tmp_path / "apisix.yaml"
    upstream = {"type": "roundrobin", "nodes": {"one.default.svc:80": 1}}
    source.write_text(
        json.dumps({"routes": [{"id": "1", "uri": "/a", "host": "a.test", "upstream": upstream}]})
    )
    command = ["translate", "--in", str(source), "--out", str(tmp_path / "out"), "--output", "gateway-api"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "host a.test: HTTPRoute" in result.output.splitlines()
    assert (tmp_path / "out" / ROUTES_FILE).is_file()


def test_the_two_evaluators_keep_to_their_own_objects() -> None:
    translation = translated(configuration(routes=[route("a", "/*", host="a.test")]))
    assert Evaluator(translation.objects).host_of("a.test") is None
    assert GatewayApiEvaluator(translation.objects).host_of("a.test") == "a.test"
    counts = itertools.groupby(sorted(one["kind"] for one in translation.objects))
    assert {kind for kind, _ in counts} >= {"Gateway", "HTTPRoute", "EnvoyFilter"}


def test_the_notebook_shows_the_forms_above_the_differences() -> None:
    book = Translate.__new__(Translate)  # the table needs a translation and nothing else of a run
    book.translation = translated(
        configuration(
            routes=[route("a", "/*", host="a.test"), route("p", "/p", host="p.test", methods=["PURGE"])]
        )
    )
    assert [row[:2] for row in book.ledger().rows[:2]] == [
        ("HTTPRoute", "host a.test"),
        ("VirtualService", "host p.test"),
    ]
    assert "PURGE" in book.ledger().rows[1][2]
