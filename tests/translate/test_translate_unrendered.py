"""What a template was to fill in is never emitted as if it were meant: it blocks, with file and path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateshift.apisix.model import Configuration
from gateshift.apisix.readers import read_files
from gateshift.cli.translation import translate_command
from gateshift.params.model import TranslateParams
from gateshift.translate import Translation, prove, translate
from gateshift.translate.model import Fidelity, dump_yaml
from tests.translate.helpers import TARGET, configuration, leaf_count, route

HELM = "{{ .Values.x }}"


def _read(folder: Path, text: Any, name: str = "apisix.yaml") -> Configuration:
    file = folder / name
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    return read_files([file], env={})


def _translated(config: Configuration, **params: Any) -> Translation:
    translation = translate(config, TranslateParams.model_validate(params), TARGET)
    assert len(translation.ledger) == leaf_count(config)
    assert not prove(config, translation, requests=200).disagreements
    return translation


def _written(translation: Translation) -> str:
    return dump_yaml(translation.objects)


@pytest.mark.parametrize("text", [HELM, "{% if a %}x{% endif %}", "${{HOST}}", "${HOST}", "a-{{ .b }}.com"])
@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"host": "?"}, "host"),
        ({"hosts": ["a.com", "?"]}, "hosts[1]"),
        ({"uri": "/?"}, "uri"),
        ({"vars": [["http_x", "==", "?"]]}, "vars[0][2]"),
    ],
)
def test_a_route_whose_requests_are_unknown_is_not_emitted(
    fields: dict[str, Any], place: str, text: str, tmp_path: Path
) -> None:
    filled = json.loads(json.dumps(fields).replace("?", text))
    config = _read(tmp_path, {"routes": [{**route("open", "/a"), **filled}, route("good", "/good")]})
    translation = _translated(config)
    assert set(translation.entries.values()) == {"good"}
    assert text not in _written(translation)
    (blocker,) = translation.blockers
    assert (blocker.resource, blocker.plugin) == ("routes/open", "input")
    assert f"its {place} holds" in blocker.reason
    assert "render" in blocker.remedy
    assert blocker.origin.endswith("apisix.yaml: routes[0]")
    entry = next(one for one in translation.ledger if (one.resource, one.path) == ("routes/open", place))
    assert entry.status is Fidelity.MANUAL
    assert "render" in entry.note


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"upstream": {"type": "roundrobin", "nodes": {"?:80": 1}}}, 'upstream.nodes["?:80"]'),
        ({"upstream": {"type": "roundrobin", "nodes": [{"host": "?", "port": 80, "weight": 1}]}}, "host"),
        ({"upstream": {"nodes": {"a:80": 1}, "pass_host": "rewrite", "upstream_host": "?"}}, "upstream_host"),
        ({"plugins": {"proxy-rewrite": {"headers": {"set": {"x-env": "?"}}}}}, "x-env"),
        ({"plugins": {"cors": {"allow_origins": "?"}}}, "allow_origins"),
        ({"plugins": {"?": {}}}, "?"),
    ],
)
def test_a_route_whose_action_is_unknown_is_refused(
    fields: dict[str, Any], place: str, tmp_path: Path
) -> None:
    filled = json.loads(json.dumps(fields).replace("?", HELM))
    wide = route("wide", "/*")
    config = _read(tmp_path, {"routes": [{**route("open", "/a"), **filled}, wide]})
    translation = _translated(config)
    assert "Values" not in _written(translation)
    assert translation.refused == {"open"}, "its requests may not go to the wide route either"
    (blocker,) = translation.blockers
    assert (blocker.resource, blocker.plugin, blocker.routes) == ("routes/open", "input", ("routes/open",))
    assert HELM in blocker.reason
    end = place.replace("?", HELM)
    marked = [one for one in translation.ledger if one.path.endswith(end) or HELM in one.path]
    assert marked
    assert all(one.status is Fidelity.MANUAL and "render" in one.note for one in marked)


def test_what_a_template_leaves_open_elsewhere_holds_every_route_that_uses_it(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "services": [{"id": "s", "plugins": {"proxy-rewrite": {"host": HELM}}}],
        "upstreams": [{"id": "u", "nodes": {f"{HELM}:80": 1}}, {"id": "unused", "nodes": {HELM: 1}}],
        "plugin_configs": [{"id": "p", "plugins": {"cors": {"allow_origins": HELM}}}],
        "consumers": [{"username": "ada", "plugins": {"key-auth": {"key": HELM}}}],
        "routes": [
            route("service", "/a", service_id="s"),
            route("replaced", "/b", service_id="s", plugins={"proxy-rewrite": {"host": "b.com"}}),
            {"id": "upstream", "uri": "/c", "upstream_id": "u"},
            route("config", "/d", plugin_config_id="p"),
            route("auth", "/e", plugins={"key-auth": {}}),
            route("split", "/f", plugins={"traffic-split": {
                "rules": [{"weighted_upstreams": [{"upstream_id": "u", "weight": 1}]}]
            }}),
            route("good", "/g"),
        ],
    }  # fmt: skip
    translation = _translated(_read(tmp_path, data))
    assert translation.refused == {"service", "upstream", "config", "auth", "split"}
    assert "Values" not in _written(translation)
    held = {(one.resource, *one.routes) for one in translation.blockers if one.plugin == "input"}
    assert ("upstreams/u", "routes/split", "routes/upstream") in held
    assert ("services/s", "routes/service") in held
    data["global_rules"] = [{"id": "g", "plugins": {"response-rewrite": {"headers": {"set": {"x": HELM}}}}}]
    everywhere = _translated(_read(tmp_path, data))
    assert everywhere.refused == {one["id"] for one in data["routes"]}


def test_a_person_may_sign_that_the_text_is_meant(tmp_path: Path) -> None:
    body = "<p>{{ user.name }}</p>"
    plugins = {"mocking": {"response_example": body}}
    config = _read(tmp_path, {"routes": [route("page", "/a", plugins=plugins)]})
    assert _translated(config).refused == {"page"}
    accept = [{"resource": "routes/page", "plugin": "input", "who": "Ada", "why": "the page fills it in"}]
    signed = _translated(config, accept=accept)
    assert not signed.blockers
    assert body in _written(signed)


@pytest.mark.parametrize(
    "plugins",
    [
        {"redirect": {"uri": "https://${host}/b"}},
        {"proxy-rewrite": {"headers": {"set": {"x-ip": "${remote_addr}"}}}},
        {"serverless-pre-function": {"functions": ["return function() local a = {{1}} end"]}},
    ],
)
def test_variables_and_code_are_no_templates(plugins: dict[str, Any], tmp_path: Path) -> None:
    translation = _translated(_read(tmp_path, {"routes": [route("r", "/a", plugins=plugins)]}))
    assert not [one for one in translation.blockers if one.plugin == "input"]


def test_a_secret_that_no_object_holds_need_not_be_known() -> None:
    options = {
        "client_id": "app",
        "client_secret": "${{SECRET}}",
        "session": {"secret": HELM},
        "bearer_only": True,
        "discovery": "https://id.test/.well-known/openid-configuration",
    }
    for change, held in (({}, False), ({"client_id": HELM}, True)):
        plugins = {"openid-connect": {**options, **change}}
        translation = _translated(configuration(routes=[route("r", "/a", plugins=plugins)]))
        assert any(one.plugin == "input" for one in translation.blockers) is held


def test_certificates_and_stream_routes(tmp_path: Path) -> None:
    data = {
        "ssls": [
            {"id": "open", "snis": [HELM], "cert": "c", "key": "k"},
            {"id": "key", "snis": ["a.com"], "cert": HELM, "key": "${{KEY}}"},
        ],
        "stream_routes": [{"id": "t", "server_port": 9000, "upstream": {"nodes": {f"{HELM}:1": 1}}}],
        "routes": [route("r", "/a")],
    }
    translation = _translated(_read(tmp_path, data))
    assert "Values" not in _written(translation)
    assert "ssl-key" in _written(translation), "the Secret is only named: its content is filled in elsewhere"
    assert ("ssls/open", "input") in {(one.resource, one.plugin) for one in translation.blockers}
    assert "9000" not in _written(translation)
    assert any(one.resource == "stream_routes/t" and HELM in one.reason for one in translation.blockers)


CRD = """
apiVersion: apisix.apache.org/v2
kind: ApisixUpstream
metadata: {{name: web, namespace: ns}}
spec: {{timeout: {{read: {timeout}}}}}
---
apiVersion: apisix.apache.org/v2
kind: ApisixRoute
metadata: {{name: shop, namespace: ns}}
spec:
  http:
    - name: main
      match: {{paths: [/a]}}
      plugins: [{{name: cors, enable: {enable}}}]
      backends: [{{serviceName: web, servicePort: 80}}]
"""


@pytest.mark.parametrize(("timeout", "enable"), [(f'"{HELM}"', "true"), ("5s", f'"{HELM}"'), (HELM, "true")])
def test_custom_resources_whose_readers_would_take_a_default(
    timeout: str, enable: str, tmp_path: Path
) -> None:
    translation = _translated(_read(tmp_path, CRD.format(timeout=timeout, enable=enable)))
    assert translation.refused == {"ns_shop_main"} or not translation.entries
    assert any(one.plugin == "input" and HELM in one.reason for one in translation.blockers)


def test_a_file_with_conditions_is_not_taken_for_what_they_would_leave(tmp_path: Path) -> None:
    text = (
        "routes:\n- {id: a, uri: /a, upstream: {nodes: {a: 1}}}\n{{- if .Values.admin }}\n"
        "- id: b\n  uri: /b\n  plugins:\n    {{- toYaml .Values.plugins | nindent 4 }}\n"
        "  upstream: {nodes: {b: 1}}\n{{- end }}\n"
    )
    file = tmp_path / "apisix.yaml"
    file.write_text(text)
    out = tmp_path / "out"
    result = CliRunner().invoke(translate_command, ["--in", str(file), "--out", str(out), "--json"])
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    blockers = {one["resource"]: one for one in summary["blockers"]}
    assert "{{- if .Values.admin }}" in blockers["apisix.yaml"]["reason"]
    assert blockers["apisix.yaml"]["origin"].endswith("apisix.yaml: line 3")
    assert {"routes/a", "routes/b"} <= set(blockers)
    assert "http:" not in (out / "virtual-service.yaml").read_text()
    entries = json.loads((out / "ledger.json").read_text())["entries"]
    assert entries
    assert {one["status"] for one in entries} == {"manual"}


def test_a_template_where_a_number_belongs_says_so(tmp_path: Path) -> None:
    upstream = {"nodes": [{"host": "a", "port": HELM, "weight": 1}]}
    config = _read(tmp_path, {"routes": [route("r", "/a", upstream=upstream), route("good", "/b")]})
    (blocker,) = _translated(config).blockers
    assert blocker.reason.endswith(f"this is {HELM}, a template that was never filled in")
    assert "APISIX refuses" not in blocker.reason
    assert "render" in blocker.remedy
