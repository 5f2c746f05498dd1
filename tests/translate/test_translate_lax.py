"""Sources that are not quite APISIX's: reported with file and place, no traceback, never half converted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateshift.apisix.model import Configuration, Kind, Router
from gateshift.apisix.readers import read_files
from gateshift.cli.translation import translate_command
from gateshift.errors import ConfigurationError
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, Translation, prove, translate
from tests.translate.helpers import TARGET, configuration, leaf_count, route


def _read(folder: Path, data: Any) -> Configuration:
    file = folder / "apisix.yaml"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_files([file], env={})


def _translated(config: Configuration, target: Target = TARGET) -> Translation:
    translation = translate(config, TranslateParams(), target)
    assert len(translation.ledger) == leaf_count(config)
    return translation


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"uri": 5}, "uri"),
        ({"uris": "/a"}, "uris"),
        ({"uris": []}, "uris"),
        ({"uris": ["/a", {"b": 1}]}, "uris[1]"),
        ({"host": ["a.com"]}, "host"),
        ({"hosts": "a.com"}, "hosts"),
        ({"remote_addrs": []}, "remote_addrs"),
        ({"methods": "GET"}, "methods"),
        ({"methods": [["GET"]]}, "methods[0]"),
        ({"priority": "5"}, "priority"),
        ({"vars": "x"}, "vars"),
        ({"status": "0"}, "status"),
        ({"enable_websocket": "yes"}, "enable_websocket"),
        ({"service_id": {"a": 1}}, "service_id"),
        ({"plugins": ["cors"]}, "plugins"),
        ({"plugins": {"cors": True}}, "plugins.cors"),
        ({"upstream": "a:80"}, "upstream"),
        ({"upstream": {"nodes": {"a:80": "heavy"}}}, "upstream.nodes.a:80"),
        ({"upstream": {"nodes": {"a:80": -1}}}, "upstream.nodes.a:80"),
        ({"upstream": {"nodes": {"a:80": None}}}, "upstream.nodes.a:80"),
        ({"upstream": {"nodes": {"a:99999": 1}}}, "upstream.nodes.a:99999"),
        ({"upstream": {"nodes": {"[::1]:0": 1}}}, "upstream.nodes.[::1]:0"),
        ({"upstream": {"nodes": ["a:80"]}}, "upstream.nodes[0]"),
        ({"upstream": {"nodes": [{"port": 80, "weight": 1}]}}, "upstream.nodes[0].host"),
        ({"upstream": {"nodes": [{"host": "a", "port": "web"}]}}, "upstream.nodes[0].port"),
        ({"upstream": {"nodes": [{"host": "a", "port": 70000}]}}, "upstream.nodes[0].port"),
        ({"upstream": {"nodes": "a:80"}}, "upstream.nodes"),
        ({"upstream": {"nodes": {"a": 1}, "type": ["roundrobin"]}}, "upstream.type"),
        ({"upstream": {"nodes": {"a": 1}, "timeout": {"connect": "6s"}}}, "upstream.timeout.connect"),
        ({"upstream": {"nodes": {"a": 1}, "retries": "2"}}, "upstream.retries"),
        ({"timeout": {"read": 0}}, "timeout.read"),
        ({"filter_func": ""}, "filter_func"),
        ({"filter_func": "return true"}, "filter_func"),
        ({"script": ""}, "script"),
        ({"script_id": 0}, "script_id"),
        ({"service_id": ""}, "service_id"),
    ],
)
def test_a_wrong_type_is_named_with_its_place_and_blocks(
    fields: dict[str, Any], place: str, tmp_path: Path
) -> None:
    good = route("good", "/good", id="good")
    config = _read(tmp_path, {"routes": [{**route("bad", "/bad"), **fields}, good]})
    assert list(config.of(Kind.ROUTE)) == ["good"], "APISIX skips the object, and so must the reader"
    (blocker,) = _translated(config).blockers
    assert (blocker.resource, blocker.plugin) == ("routes/bad", "input")
    assert blocker.origin == f"{tmp_path / 'apisix.yaml'}: routes[0].{place}"
    assert place in blocker.reason
    entries = [one for one in _translated(config).ledger if one.resource == "routes/bad"]
    assert entries, "what is skipped is still accounted for"
    assert {(str(one.status), blocker.reason in one.note) for one in entries} == {("manual", True)}


@pytest.mark.parametrize(
    ("kind", "spec", "place"),
    [
        ("services", {"id": "s", "hosts": "a.com"}, "hosts"),
        ("upstreams", {"id": "u", "nodes": {"a": 1}, "scheme": {}}, "scheme"),
        ("upstreams", {"id": "u", "nodes": {"a": float("inf")}}, "nodes.a"),
        ("global_rules", {"id": "g", "plugins": {"cors": "on"}}, "plugins.cors"),
        ("consumers", {"username": "u", "plugins": "key-auth"}, "plugins"),
        ("ssls", {"id": "c", "snis": "a.com", "cert": "c", "key": "k"}, "snis"),
        ("protos", {"id": "p", "content": 1}, "content"),
        ("stream_routes", {"id": "t", "server_port": "9000"}, "server_port"),
    ],
)
def test_every_kind_is_looked_at(kind: str, spec: dict[str, Any], place: str, tmp_path: Path) -> None:
    config = _read(tmp_path, {kind: [spec], "routes": [route("good", "/good")]})
    assert not config.of(Kind(kind))
    (blocker,) = _translated(config).blockers
    assert blocker.origin.endswith(f"{kind}[0].{place}")


def test_what_apisix_takes_is_not_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        **route("r", "/a", methods=[], priority=1.0, status=1, host=None, plugins={"cors": None}),
        "upstream": {"nodes": [{"host": "a", "weight": 1}], "retries": 0, "timeout": {"connect": 0.5}},
        "vars": {},
        "timeout": {"connect": 1, "send": 1, "read": 2.5},
    }
    config = _read(tmp_path, {"routes": [given, route("none", "/b", upstream={}, plugins=[])]})
    assert sorted(config.of(Kind.ROUTE)) == ["none", "r"]
    assert not [one for one in config.findings if one.unread]


_FIELDS = (
    "uri uris host hosts remote_addr remote_addrs methods priority vars filter_func script script_id "
    "plugins upstream upstream_id service_id plugin_config_id timeout enable_websocket status name "
    "labels "
)
_VALUES: list[Any] = ["", False, 0, 0.0, [], {}, None]


@pytest.mark.parametrize("value", _VALUES, ids=repr)
@pytest.mark.parametrize(
    "field",
    _FIELDS.split(),
)
def test_an_empty_value_is_accounted_for_whatever_its_field(field: str, value: Any, tmp_path: Path) -> None:
    _translated(_read(tmp_path, {"routes": [{**route("r", "/a"), field: value}, route("good", "/good")]}))


@pytest.mark.parametrize("field", [{"methods": ["FETCH"]}, {"vars": [["a", "=~", "b"]]}, {"uri": None}])
def test_a_route_that_apisix_drops_waits_for_a_person(field: dict[str, Any], tmp_path: Path) -> None:
    given = {**route("bad", "/a"), **field}
    config = _read(tmp_path, {"routes": [given, route("good", "/a")]})
    (blocker,) = _translated(config).blockers
    assert (blocker.resource, blocker.plugin) == ("routes/bad", "input")
    accept = [{"resource": "routes/bad", "plugin": "input", "who": "Ada", "why": "it never served"}]
    signed = translate(config, TranslateParams.model_validate({"accept": accept}), TARGET)
    assert not signed.blockers
    assert set(signed.entries.values()) == {"good"}


def test_a_source_in_which_no_route_serves_blocks(tmp_path: Path) -> None:
    never = route("never", "/a", vars=[["arg_x", "in", [1, 2]]])
    for routes in ([], [route("off", "/a", status=0)], [route("port", "/a", host="a.com:81")], [never]):
        config = _read(tmp_path, {"routes": routes, "services": [{"id": "s"}]})
        assert "nothing would be served" in str(_translated(config).blockers[0])


def test_yaml_keys_and_binary_are_text_and_aliases_end(tmp_path: Path) -> None:
    text = "routes:\n- {id: 1, uri: !!binary L2E=, 5: six, plugins: {7: {}}, upstream: {nodes: {a: 1}}}\n"
    config = _read(tmp_path, text)
    (one,) = config.of(Kind.ROUTE).values()
    assert (one.spec["uri"], one.spec["5"]) == ("/a", "six")
    assert [b.plugin for b in _translated(config).blockers] == ["7"]
    with pytest.raises(ConfigurationError, match="levels deep"):
        _read(tmp_path, "routes: &a\n- uri: /a\n  vars: *a\n")
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(ConfigurationError, match="too large"):
        _read(tmp_path, bomb)


def test_a_long_wrong_node_name_is_refused_at_once() -> None:
    name = "echo.voiceassistant-prod.svc.cluster.local:8.svc.cluster.local"
    upstream = {"type": "roundrobin", "nodes": {f"{name}:80": 1}}
    started = time.monotonic()
    translation = _translated(configuration(routes=[route("r", "/a", upstream=upstream)]))
    assert time.monotonic() - started < 5, "the name's pattern went back and forth"
    assert "neither Kubernetes nor Istio" in translation.blockers[0].reason


def test_requests_closed_by_a_held_back_condition_are_counted_until_it_is_signed() -> None:
    config = configuration(
        routes=[route("body", "/a", vars=[["post_arg_x", "==", "1"]], priority=1), route("open", "/a")]
    )
    translation = _translated(config)
    proof = prove(config, translation, requests=200)
    assert not proof.disagreements
    assert proof.closed > 0
    accept = [{"resource": "routes/body", "plugin": "vars", "who": "Ada", "why": "it stays refused"}]
    signed = translate(config, TranslateParams.model_validate({"accept": accept}), TARGET)
    assert not signed.blockers
    (found, *_) = prove(config, signed, requests=200).disagreements
    assert (found.apisix, found.istio, found.refused) == ("open", "body", True)
    assert str(found).endswith("APISIX chooses open, Istio refuses it with body, held back")
    alone = configuration(routes=[route("body", "/a", vars=[["post_arg_x", "==", "1"]]), route("b", "/b")])
    closed = translate(alone, TranslateParams.model_validate({"accept": accept}), TARGET)
    assert not prove(alone, closed, requests=200).disagreements, "nothing else would have served them"


def test_a_held_back_route_above_all_others_of_a_host_refuses_and_is_counted() -> None:
    """Without a rule for the host its requests would just be missing, and the proof would not know why."""
    config = configuration(
        routes=[
            route("held", "/*", vars=[["post_arg_x", "==", "1"]], priority=1),
            route("open", "/*", host="a.test"),
            route("below", "/*"),
        ]
    )
    for router in (Router.URI, Router.HOST_URI):
        translation = _translated(config, Target(version="1.31", namespace="app", router=router))
        proof = prove(config, translation, requests=200)
        assert not proof.disagreements
        assert proof.closed > 0
        assert "held" in translation.entries.values()


def test_one_host_header_and_one_cookie_header_are_asked_for() -> None:
    """Requests with two of either do not exist; the two sides would read them in ways of their own."""
    config = configuration(
        routes=[
            route("host", "/a", vars=[["http_host", "==", "b.test"]]),
            route("digit", "/a", vars=[["http_host", "~~", "[0-9]"]]),
            route("cookie", "/b", vars=[["http_cookie", "==", "x"], ["cookie_s", "!", "==", "1"]]),
            route("case", "/c", vars=[["http_X_A", "==", "1"], ["http_x-a", "==", "1"]]),
            route("rest", "/*", hosts=["b.test", "c.test:81"]),
        ]
    )
    for router in Router:
        translation = _translated(config, Target(version="1.31", namespace="app", router=router))
        assert not prove(config, translation, requests=3000).disagreements
    matched = json.dumps(translation.objects)
    assert '":authority"' in matched
    assert '"host": {' not in matched, "Envoy has no header of that name but the authority"


def test_a_number_without_end_is_no_traceback(tmp_path: Path) -> None:
    plugins = {"limit-count": {"count": float("inf"), "time_window": 60}}
    checks = {
        "active": {"healthy": {"interval": float("inf")}},
        "passive": {"unhealthy": {"timeouts": 1e999}},
    }
    upstream = {"type": "roundrobin", "nodes": {"a:80": 1}, "checks": checks}
    config = _read(tmp_path, {"routes": [route("r", "/a", upstream=upstream, plugins=plugins)]})
    translation = _translated(config)
    assert "not valid for APISIX" in str(translation.blockers[0])
    assert any("health check" in one for one in translation.warnings)


def test_a_proto_that_does_not_compile_is_named_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    proto = {"id": "p", "content": 'syntax = "proto3";\nmessage A { strin g = ; }\n'}
    options = {"proto_id": "p", "service": "s.S", "method": "M"}
    given = route("r", "/a", methods=["POST"], plugins={"grpc-transcode": options})
    reason = _translated(configuration(routes=[given], protos=[proto])).blockers[0].reason
    assert "cannot compile the proto: route.proto:2:" in reason
    assert capfd.readouterr() == ("", "")


def test_an_empty_list_of_hosts_is_none_or_any_as_the_router_reads_it(tmp_path: Path) -> None:
    config = _read(tmp_path, {"routes": [route("none", "/a", hosts=[]), route("ok", "/*")]})
    for router in Router:
        translation = _translated(config, Target(version="1.31", namespace="app", router=router))
        assert not prove(config, translation, requests=100).disagreements
        expected = {"ok"} if router is Router.HOST_URI else {"none", "ok"}
        assert set(translation.entries.values()) == expected


def test_the_router_alone_says_whether_a_route_is_enabled() -> None:
    config = configuration(routes=[route("false", "/a", status=False), route("true", "/b", status=True)])
    for router in Router:
        target = Target(version="1.31", namespace="app", router=router)
        translation = _translated(config, target)
        assert not prove(config, translation, requests=100).disagreements
        assert set(translation.entries.values()) == {"false", "true"}, router


def test_the_command_says_where_and_leaves_by_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "apisix.yaml"
    file.write_text("routes:\n- {id: 1, uri: /a, upstream: {nodes: [{host: a, port: '80', weight: 1}]}}\n")
    result = CliRunner().invoke(translate_command, ["--in", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 3, result.output
    assert "routes[0].upstream.nodes[0].port" in (tmp_path / "out" / "ledger.json").read_text()
