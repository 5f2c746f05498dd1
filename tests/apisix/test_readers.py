from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.apisix.merge import effective
from gateshift.apisix.model import Configuration, Kind, Router, Severity
from gateshift.apisix.readers import read_files
from gateshift.apisix.routing import Request, RouteTable
from gateshift.errors import ConfigurationError

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
ROUTE = {"id": "r1", "uris": ["/a", "/b/*"], "service_id": "s1", "plugins": {"cors": {}}}
SERVICE = {
    "id": "s1",
    "name": "s1",
    "hosts": ["a.com"],
    "upstream": {"type": "roundrobin", "nodes": {"b:80": 1}},
}


def read(tmp_path: Path, text: str, name: str = "apisix.yaml", **env: str) -> Configuration:
    file = tmp_path / name
    file.write_text(text)
    return read_files([file], env=env)


def specs(configuration: Configuration) -> dict[Kind, dict[str, Any]]:
    return {k: {i: dict(r.spec) for i, r in v.items()} for k, v in configuration.resources.items()}


def test_one_example_in_every_form_is_one_configuration(tmp_path: Path) -> None:
    standalone = json.dumps({"services": [SERVICE], "routes": [ROUTE]})
    v3 = {
        "routes": {"total": 1, "list": [{"key": "/apisix/routes/r1", "value": ROUTE}]},
        "services": {"total": 1, "list": [{"key": "/apisix/services/s1", "value": SERVICE}]},
    }
    v2 = {
        "routes": {"node": {"dir": True, "nodes": [{"key": "/apisix/routes/r1", "value": ROUTE}]}},
        "services": {"node": {"dir": True, "nodes": [{"key": "/apisix/services/s1", "value": SERVICE}]}},
    }
    etcd = {"/apisix/routes/r1": ROUTE, "/apisix/services/s1": SERVICE}
    kvs = {
        "kvs": [
            {
                "key": base64.b64encode(k.encode()).decode(),
                "value": base64.b64encode(json.dumps(v).encode()).decode(),
            }
            for k, v in etcd.items()
        ]
    }
    inner = {k: v for k, v in ROUTE.items() if k != "service_id"}
    adc = {"services": [{**SERVICE, "routes": [inner]}]}
    expected = specs(read(tmp_path, standalone))
    assert set(expected) == {Kind.ROUTE, Kind.SERVICE}
    printed = "".join(f"{key}\n{json.dumps(value)}\n" for key, value in etcd.items())
    assert specs(read(tmp_path, f"/apisix/routes/\ninit_dir\n{printed}")) == expected
    for form in (v3, v2, etcd, kvs, adc):
        found = read(tmp_path, json.dumps(form))
        assert specs(found) == expected, form
        assert not found.findings
    as_yaml = "services:\n  - " + json.dumps(SERVICE) + "\nroutes:\n  - " + json.dumps(ROUTE) + "\n#END\n"
    assert specs(read(tmp_path, as_yaml)) == expected


def test_several_files_make_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("routes:\n  - uri: /a\n    service_id: s1\n#END\n")
    (tmp_path / "b.yaml").write_text("routes:\n  - uri: /b\n" + "services:\n  - " + json.dumps(SERVICE))
    found = read_files([tmp_path / "a.yaml", tmp_path / "b.yaml"], env={})
    assert list(found.of(Kind.ROUTE)) == ["arr_1", "arr_1.b.yaml"]
    assert not found.findings


def test_variables_defaults_and_missing_ones(tmp_path: Path) -> None:
    text = "routes:\n  - uri: /${{P}}\n    host: ${{H:=d.com}}\n    name: ${{NONE}}\n    priority: ${{N}}\n"
    found = read(tmp_path, text, P="x", N="3")
    spec = found.of(Kind.ROUTE)["arr_1"].spec
    assert (spec["uri"], spec["host"], spec["priority"]) == ("/x", "d.com", 3)
    assert [(f.severity, f.origin.path) for f in found.findings] == [(Severity.ERROR, "line 4")]


def test_lax_input_becomes_findings(tmp_path: Path) -> None:
    text = """
routes:
  - id: 1
    uri: /a
    upstream: {type: round-robin, nodes: {"b:80": 1}}
  - id: 1
    uri: /b
    upstream_id: nowhere
  - just text
  - id: 3
routez: []
"""
    found = read(tmp_path, text)
    assert list(found.of(Kind.ROUTE)) == ["1", "3"]
    assert found.of(Kind.ROUTE)["1"].spec["uri"] == "/b"
    messages = " | ".join(f"{f.origin.path}: {f.message}" for f in found.findings)
    for part in ("round-robin", "nowhere", "routes[2]", "already written", "neither uri", "routez"):
        assert part in messages


def test_templates_are_read_and_reported(tmp_path: Path) -> None:
    text = "routes:\n  - uri: /a\n    host: {{ .Values.host }}\n  - uri: /b\n"
    found = read(tmp_path, text)
    assert found.of(Kind.ROUTE)["arr_1"].spec["host"] == "{{ .Values.host }}"
    assert any("template" in f.message and f.severity is Severity.ERROR for f in found.findings)
    assert not [f for f in found.findings if f.unread], "only one value is open, not what exists"
    table = RouteTable(found)
    assert table.match(Request(host="{{ .Values.host }}", path="/a")).winner is None
    assert table.match(Request(path="/b")).winner == "arr_2"
    assert "its host holds {{ .Values.host }}" in table.dropped["arr_1"]


@pytest.mark.parametrize(
    "line",
    [
        "{{- if .Values.admin }}",
        '{{ include "routes" . | nindent 2 }}',
        "{% for r in routes %}",
        "{{ .Values.more }}",
    ],
)
def test_a_line_that_decides_what_exists_makes_the_whole_file_uncertain(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"routes:\n  - uri: /a\n{line}\n  - uri: /b\n")
    assert len(found.of(Kind.ROUTE)) == 2
    (lost,) = [f for f in found.findings if f.unread]
    assert (lost.unread, lost.origin.path) == ("apisix.yaml", "line 3")
    assert line in lost.message
    assert sorted(RouteTable(found).dropped) == ["arr_1", "arr_2"]


def test_comments_and_assignments_of_a_template_decide_nothing(tmp_path: Path) -> None:
    text = "{{- /* ours */ -}}\n{{ $x := 1 }}\n{% set y = 2 %}\n{# and #}\nroutes:\n  - uri: /a\n"
    found = read(tmp_path, text)
    assert not RouteTable(found).dropped
    assert RouteTable(found).match(Request(path="/a")).winner == "arr_1"


def test_a_template_with_an_alias_to_itself_ends(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="levels deep"):
        read(tmp_path, "routes: &a\n  - uri: {{ .x }}\n    vars: *a\n")


@pytest.mark.parametrize("text", ["a: [", "\x00", "- {a: b", '{"a": '])
def test_what_is_no_yaml_names_file_and_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"apisix\.yaml") as error:
        read(tmp_path, text)
    assert error.value.exit_code == 2


def test_missing_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        read_files([tmp_path / "absent.yaml"])
    with pytest.raises(ConfigurationError, match="no configuration"):
        read_files([])


def test_router_of_a_config_section(tmp_path: Path) -> None:
    found = read(tmp_path, "apisix:\n  router:\n    http: radixtree_uri\nroutes: []\n")
    assert found.router is Router.URI


APISIX_ROUTE = """
apiVersion: apisix.apache.org/v2
kind: ApisixPluginConfig
metadata: {name: pc, namespace: ns}
spec: {plugins: [{name: cors, enable: true, config: {allow_origins: "*"}}, {name: gzip, enable: false}]}
---
apiVersion: apisix.apache.org/v2
kind: ApisixUpstream
metadata: {name: web, namespace: ns}
spec: {loadbalancer: {type: chash, hashOn: header, key: x-user}, timeout: {read: 1m30s}, retries: 2}
---
apiVersion: apisix.apache.org/v2
kind: ApisixRoute
metadata: {name: shop, namespace: ns}
spec:
  http:
    - name: main
      priority: 3
      match:
        hosts: [shop.com]
        paths: [/a, /b/*]
        methods: [GET]
        exprs:
          - {subject: {scope: Header, name: X-Version}, op: NotIn, set: ["1", "2"]}
          - {subject: {scope: Query, name: q}, op: RegexMatch, value: "^a"}
      plugin_config_name: pc
      authentication: {enable: true, type: keyAuth}
      backends:
        - {serviceName: web, servicePort: 80, weight: 90}
        - {serviceName: canary, servicePort: http, weight: 10}
"""


def test_apisix_route_becomes_what_the_controller_writes(tmp_path: Path) -> None:
    found = read(tmp_path, APISIX_ROUTE)
    route = found.of(Kind.ROUTE)["ns_shop_main"]
    assert route.spec["vars"] == [["http_x_version", "!", "in", ["1", "2"]], ["arg_q", "~~", "^a"]]
    upstream = route.spec["upstream"]
    assert upstream["nodes"] == [{"host": "web.ns.svc.cluster.local", "port": 80, "weight": 100}]
    assert (upstream["type"], upstream["key"], upstream["timeout"]) == ("chash", "x-user", {"read": 90})
    split = route.spec["plugins"]["traffic-split"]["rules"][0]["weighted_upstreams"]
    assert [part["weight"] for part in split] == [90, 10]
    assert split[1]["upstream"]["service_name"] == "ns/canary:http"
    merged = effective(found, route)
    assert set(merged.plugins) == {"basic-auth", "traffic-split", "cors"}
    assert merged.plugin_owner["cors"].id == "ns_pc"
    assert any("basic-auth" in f.message for f in found.findings)


HEALTH = """
apiVersion: apisix.apache.org/v2
kind: ApisixUpstream
metadata: {name: web, namespace: ns}
spec:
  healthCheck:
    active:
      type: https
      httpPath: /health
      strictTLS: false
      requestHeaders: ["X-A: b"]
      timeout: 3000000000
      healthy: {httpCodes: [200], interval: 3s, successes: 3}
      unhealthy: {httpCodes: [500], httpFailures: 2, tcpFailures: 4, timeout: 5, interval: 1m}
    passive:
      unhealthy: {httpCodes: [502], httpFailures: 1}
---
"""


def test_health_checks_have_the_names_that_apisix_knows(tmp_path: Path) -> None:
    start = APISIX_ROUTE.index("---", APISIX_ROUTE.index("kind: ApisixUpstream"))
    found = read(tmp_path, HEALTH + APISIX_ROUTE[start + 4 :].replace("plugin_config_name: pc", ""))
    assert found.of(Kind.ROUTE)["ns_shop_main"].spec["upstream"]["checks"] == {
        "active": {
            "type": "https",
            "http_path": "/health",
            "https_verify_certificate": False,
            "req_headers": ["X-A: b"],
            "timeout": 3,
            "healthy": {"http_statuses": [200], "interval": 3, "successes": 3},
            "unhealthy": {
                "http_statuses": [500],
                "http_failures": 2,
                "tcp_failures": 4,
                "timeouts": 5,
                "interval": 60,
            },
        },
        "passive": {"unhealthy": {"http_statuses": [502], "http_failures": 1}},
    }


def test_http_route_prefix_is_by_segment(tmp_path: Path) -> None:
    text = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: h, namespace: ns}
spec:
  hostnames: [a.com]
  rules:
    - matches:
        - path: {type: PathPrefix, value: /foo}
          headers: [{name: X-A, value: "1"}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: y}]}}]
      backendRefs: [{name: web, port: 80}]
"""
    spec = read(tmp_path, text).of(Kind.ROUTE)["ns_h_0_0"].spec
    assert spec["uris"] == ["/foo", "/foo/*"]
    assert spec["vars"] == [["http_x_a", "==", "1"]]
    assert spec["plugins"] == {"proxy-rewrite": {"headers": {"set": {"x": "y"}}}}


def test_every_public_example_reads() -> None:
    files = sorted(CORPUS.glob("*.yaml"))
    assert files or not CORPUS.exists()
    for file in files:
        found = read_files([file], env={})
        assert list(found), file
        RouteTable(found)
        for route in found.of(Kind.ROUTE).values():
            effective(found, route)


def test_merge_follows_apisix(tmp_path: Path) -> None:
    config = {
        "routes": [
            {
                "id": "r",
                "uri": "/",
                "service_id": "s",
                "plugin_config_id": "p",
                "plugins": {"a": {"from": "route"}, "b": {"_meta": {"disable": True}}},
            }
        ],
        "plugin_configs": [{"id": "p", "plugins": {"a": {"from": "pc"}, "c": {"from": "pc"}}}],
        "services": [
            {
                "id": "s",
                "hosts": ["s.com"],
                "enable_websocket": True,
                "upstream_id": "u",
                "plugins": {"b": {}, "c": {"from": "service"}, "d": {"from": "service"}},
            }
        ],
        "upstreams": [{"id": "u", "nodes": {"n:1": 1}}],
    }
    found = read(tmp_path, json.dumps(config))
    merged = effective(found, found.of(Kind.ROUTE)["r"])
    assert {k: v.get("from") for k, v in merged.plugins.items()} == {"a": "route", "c": "pc", "d": "service"}
    assert set(merged.disabled) == {"b"}
    assert merged.upstream is not None
    assert merged.upstream.owner.id == "u"
    assert (merged.hosts, merged.enable_websocket) == (("s.com",), True)
    config["routes"][0]["upstream"] = {"nodes": {"own:1": 1}}
    found = read(tmp_path, json.dumps(config))
    own = effective(found, found.of(Kind.ROUTE)["r"]).upstream
    assert own is not None
    assert own.inline
    assert own.spec["nodes"] == {"own:1": 1}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        (
            "a.yaml",
            "routes:\n  - id: r\n    plugins: {jwt-auth: {}}\n    plugins: {cors: {}}\n#END\n",
            "line 4",
        ),
        ("a.json", '{"routes": [{"id": "r",\n "plugins": {"jwt-auth": {}}, "plugins": {}}]}', "line 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_place(
    name: str, text: str, place: str, tmp_path: Path
) -> None:
    """The first would vanish: here it is the check of tokens."""
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ConfigurationError, match=f"{name}: {place}, column [0-9]+: the key plugins stands twice"
    ):
        read_files([tmp_path / name])


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "routes:\n  - &a {id: r, uri: /a, upstream_id: u}\n  - {<<: *a, id: s, uri: /b}\n#END\n"
    )
    assert sorted(read_files([tmp_path / "a.yaml"]).of(Kind.ROUTE)) == ["r", "s"]
