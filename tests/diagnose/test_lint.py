from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gateshift.diagnose.command import lint_command
from gateshift.diagnose.engine import run
from gateshift.diagnose.lint import lint
from gateshift.diagnose.lint_mesh import metrics_selector
from gateshift.errors import InputError
from tests.diagnose.test_diagnose import GATEWAY, Context, find, healthy, obj

SHOP = "cart.shop.svc.cluster.local"
TO = [{"destination": {"host": SHOP}}]


def vs(name: str = "v", hosts: list[str] | None = None, **rule: Any) -> dict[str, Any]:
    full = {"name": "r", "retries": {"attempts": 0}, **rule}
    if not {"redirect", "directResponse", "delegate"} & set(rule):
        full.setdefault("route", TO)
    return obj("VirtualService", name, spec={"hosts": hosts or ["a.com"], "gateways": ["gw"], "http": [full]})


def match(**one: Any) -> dict[str, Any]:
    return vs(match=[one])


def rule(**policy: Any) -> dict[str, Any]:
    return obj("DestinationRule", "d", spec={"host": SHOP, "trafficPolicy": policy})


def gateway(name: str = "gw", **server: Any) -> dict[str, Any]:
    full = {"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["*"], **server}
    return obj("Gateway", name, spec={"selector": GATEWAY, "servers": [full]})


def policy(action: str = "DENY", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    return obj("AuthorizationPolicy", "p", namespace, spec={"action": action, **spec})


def to(**operation: Any) -> list[dict[str, Any]]:
    return [{"to": [{"operation": operation}]}]


def tokens(namespace: str = "shop", **one: Any) -> list[dict[str, Any]]:
    jwt = {"issuer": "i", "forwardOriginalToken": True, **one}
    guard = obj("AuthorizationPolicy", "g", namespace, spec={"action": "DENY"})
    return [obj("RequestAuthentication", "r", namespace, spec={"jwtRules": [jwt]}), guard]


def envoy(patch: Any, namespace: str = "istio-system", **more: Any) -> dict[str, Any]:
    one = {"applyTo": "HTTP_FILTER", "match": {"context": "GATEWAY"}, "patch": patch, **more}
    spec = {"workloadSelector": {"labels": GATEWAY}, "configPatches": [one]}
    return obj("EnvoyFilter", "e", namespace, spec=spec)


def mesh(**config: Any) -> dict[str, Any]:
    full = {"accessLogFile": "/dev/stdout", "defaultConfig": {"terminationDrainDuration": "30s"}, **config}
    return obj("ConfigMap", "istio", "istio-system", data={"mesh": yaml.safe_dump(full)})


def bucket(**more: Any) -> dict[str, Any]:
    full = {
        "filter_enabled": {},
        "filter_enforced": {},
        "stat_prefix": "s",
        "token_bucket": {"max_tokens": 1},
    }
    return {"value": {"name": "local_ratelimit", "typed_config": {**full, **more}}}


def plain(kind: str, name: str, namespace: str = "shop", **body: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, **body.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}


TRAPS: dict[str, tuple[int, list[dict[str, Any]], str]] = {
    # what: (trap, objects, Istio version)
    "profile production": (1, [plain("IstioOperator", "i", spec={"profile": "production"})], "1.31"),
    "profile demo": (1, [plain("IstioOperator", "i", spec={"profile": "demo"})], "1.31"),
    "operator in the cluster": (2, [plain("IstioOperator", "i", spec={}, status={})], "1.31"),
    "v1 too early": (3, [vs()], "1.21"),
    "filter of an API that is not served": (
        3,
        [{**envoy({"value": {}}), "apiVersion": "networking.istio.io/v1"}],
        "1.31",
    ),
    "selector of no gateway": (
        4,
        [
            gateway(),
            obj(
                "Deployment",
                "gateway",
                "istio-system",
                spec={"template": {"metadata": {"labels": {"a": "b"}}}},
            ),
        ],
        "1.31",
    ),
    "two on one host": (5, [vs("a"), vs("b")], "1.31"),
    "exact hides wildcard": (6, [vs("a"), vs("b", hosts=["*.com"])], "1.31"),
    "string prefix": (7, [match(uri={"prefix": "/foo"})], "1.31"),
    "look-around": (8, [match(uri={"regex": "/(?!x).*"})], "1.31"),
    "anchors": (8, [match(uri={"regex": "^/a$"})], "1.31"),
    "capital header": (9, [match(headers={"X-A": {}})], "1.31"),
    "ignored key": (9, [match(headers={"uri": {"exact": "/"}})], "1.31"),
    "missing is empty": (10, [match(withoutHeaders={"x-a": {"exact": "1"}})], "1.31"),
    "rewrite of a regex": (11, [vs(match=[{"uri": {"regex": "/a.*"}}], rewrite={"uri": "/b"})], "1.31"),
    "two rewrites": (
        11,
        [vs(rewrite={"uri": "/", "uriRegexRewrite": {"match": "a", "rewrite": "b"}})],
        "1.31",
    ),
    "rewrite too early": (11, [vs(rewrite={"uriRegexRewrite": {"match": "a", "rewrite": "b"}})], "1.18"),
    "redirect code": (12, [vs(redirect={"redirectCode": 305})], "1.31"),
    "redirect and route": (12, [vs(redirect={"uri": "/"}, route=TO)], "1.31"),
    "https redirect": (13, [gateway(tls={"httpsRedirect": True}), vs()], "1.31"),
    "large body": (14, [vs(directResponse={"status": 200, "body": {"string": "x" * 200_000}})], "1.31"),
    "timeout of retries": (15, [vs(timeout="3s", retries={"attempts": 3, "perTryTimeout": "2s"})], "1.31"),
    "default retries": (
        16,
        [obj("VirtualService", "v", spec={"hosts": ["a"], "http": [{"route": TO}]})],
        "1.31",
    ),
    "shadow": (17, [vs(mirror={"host": SHOP})], "1.27"),
    "preflights": (18, [vs(corsPolicy={"allowOrigins": []})], "1.31"),
    "fault of 0 %": (19, [vs(fault={"abort": {"httpStatus": 500}})], "1.31"),
    "host twice": (20, [vs(rewrite={"authority": "b"}, headers={"request": {"set": {"Host": "c"}}})], "1.31"),
    "percent": (20, [vs(headers={"request": {"set": {"x-a": "50%"}}})], "1.31"),
    "secret elsewhere": (
        21,
        [gateway(tls={"credentialName": "c"}), plain("Secret", "c", "shop"), vs()],
        "1.31",
    ),
    "names too early": (21, [gateway(tls={"credentialNames": ["c"]}), vs()], "1.25"),
    "lonely gateway": (22, [gateway("other"), vs()], "1.31"),
    "no tls settings": (23, [gateway(port={"number": 443, "protocol": "HTTPS"}), vs()], "1.31"),
    "one certificate": (
        24,
        [gateway("a", tls={"credentialName": "c"}), gateway("b", tls={"credentialName": "c"})],
        "1.31",
    ),
    "gateway of another namespace": (25, [obj("Gateway", "gw", "infra", spec={}), vs()], "1.31"),
    "delegate with hosts": (26, [vs(delegate={"name": "d", "namespace": "shop"}), vs("d")], "1.31"),
    "timeout of a socket": (
        27,
        [vs(match=[{"headers": {"upgrade": {"exact": "websocket"}}}], timeout="30s")],
        "1.31",
    ),
    "client protocol": (28, [rule(connectionPool={"http": {"useClientProtocol": True}})], "1.31"),
    "short host": (29, [obj("DestinationRule", "d", spec={"host": "cart"})], "1.31"),
    "unknown host": (29, [rule(), plain("Service", "other", spec={})], "1.31"),
    "subset": (30, [vs(route=[{"destination": {"host": SHOP, "subset": "v2"}}])], "1.31"),
    "levels": (31, [rule(portLevelSettings=[{}], outlierDetection={"maxEjectionPercent": 50})], "1.31"),
    "tls off": (32, [rule(tls={"mode": "DISABLE"})], "1.31"),
    "ten percent": (33, [rule(outlierDetection={})], "1.31"),
    "unverified": (34, [rule(tls={"mode": "SIMPLE"})], "1.20"),
    "least conn": (35, [rule(loadBalancer={"simple": "LEAST_CONN"})], "1.31"),
    "guessed protocol": (
        36,
        [vs(), plain("Service", "cart", spec={"ports": [{"port": 80, "name": "web"}]})],
        "1.31",
    ),
    "headless": (37, [vs(), plain("Service", "cart", spec={"clusterIP": "None"})], "1.31"),
    "external name": (38, [vs(), plain("Service", "cart", spec={"type": "ExternalName"})], "1.31"),
    "no token passes": (39, tokens()[:1], "1.31"),
    "every token": (40, tokens("istio-system"), "1.31"),
    "token removed": (41, tokens(forwardOriginalToken=False), "1.31"),
    "places replaced": (41, tokens(fromParams=["t"]), "1.31"),
    "no issuer": (42, tokens(issuer=""), "1.31"),
    "symmetric": (43, tokens(jwks='{"keys": [{"kty": "oct"}]}'), "1.31"),
    "istiod fetches": (44, tokens(jwksUri="https://i/jwks"), "1.31"),
    "allow on the gateway": (45, [policy("ALLOW", "istio-system", rules=[{}])], "1.31"),
    "host without port": (46, [policy(rules=to(hosts=["a.com"]))], "1.31"),
    "star inside": (46, [policy(rules=to(paths=["/a/*/b"]))], "1.31"),
    "ip blocks": (
        47,
        [policy(namespace="istio-system", rules=[{"from": [{"source": {"ipBlocks": ["1.2.3.4"]}}]}])],
        "1.31",
    ),
    "provider": (48, [policy("CUSTOM", provider={"name": "x"}, rules=[{}]), mesh()], "1.31"),
    "strict": (
        49,
        [obj("PeerAuthentication", "p", spec={"mtls": {"mode": "STRICT"}}), plain("Namespace", "apisix")],
        "1.31",
    ),
    "port without selector": (
        49,
        [obj("PeerAuthentication", "p", spec={"portLevelMtls": {"80": {}}})],
        "1.31",
    ),
    "deny by default": (50, [policy("ALLOW")], "1.31"),
    "any context": (51, [envoy({"value": {}}, match={})], "1.31"),
    "merged host": (
        52,
        [
            envoy(
                {"value": {}},
                applyTo="HTTP_ROUTE",
                match={"context": "GATEWAY", "routeConfiguration": {"vhost": {"name": "a:80"}}},
            )
        ],
        "1.31",
    ),
    "no extension": (53, [envoy({"value": {"name": "envoy.filters.http.custom_response"}})], "1.31"),
    "extension too early": (
        53,
        [envoy({"value": {"name": "envoy.filters.http.credential_injector"}})],
        "1.21",
    ),
    "not enforced": (54, [envoy({"value": {"stat_prefix": "s", "token_bucket": {}}})], "1.31"),
    "status": (54, [envoy(bucket(status={"code": 302}))], "1.31"),
    "few values": (
        54,
        [envoy(bucket(descriptors=[{"entries": [{"key": "a"}], "token_bucket": {}}]))],
        "1.31",
    ),
    "foreign lua": (55, [envoy({"value": {"typed_config": {"inline_code": "ngx.say(1)"}}})], "1.31"),
    "many concerns": (
        56,
        [
            obj(
                "EnvoyFilter",
                "e",
                spec={"configPatches": [{"match": {"context": "GATEWAY"}, "patch": {}}] * 9},
            )
        ],
        "1.31",
    ),
    "no access log": (58, [mesh(accessLogFile="")], "1.31"),
    "two telemetries": (58, [obj("Telemetry", n, spec={}) for n in "ab"], "1.31"),
    "sampling": (59, [obj("Telemetry", "t", spec={"tracing": [{}]})], "1.31"),
    "tracing provider": (
        59,
        [obj("Telemetry", "t", spec={"tracing": [{"providers": [{"name": "x"}]}]}), mesh()],
        "1.31",
    ),
    "both labels": (
        61,
        [plain("Namespace", "n", metadata={"labels": {"istio-injection": "enabled", "istio.io/rev": "x"}})],
        "1.31",
    ),
    "start before the sidecar": (
        62,
        [mesh(), plain("Namespace", "n", metadata={"labels": {"istio-injection": "enabled"}})],
        "1.26",
    ),
    "short drain": (63, [mesh(defaultConfig={})], "1.31"),
    "one pod": (
        63,
        [obj("HorizontalPodAutoscaler", "ingressgateway", "istio-system", spec={"minReplicas": 1})],
        "1.31",
    ),
    "hidden client": (
        64,
        [
            plain("Service", "gateway", "istio-system", spec={"type": "LoadBalancer"}),
            policy(namespace="istio-system", rules=[{"from": [{"source": {"ipBlocks": ["1.2.3.4"]}}]}]),
        ],
        "1.31",
    ),
    "too large": (66, [vs(headers={"response": {"set": {"x-a": "y" * 1_100_000}}})], "1.31"),
    "both APIs": (68, [vs(), plain("HTTPRoute", "h", spec={"hostnames": ["a.com"]})], "1.31"),
    "no way back": (
        69,
        [
            obj(
                "Deployment",
                "apisix",
                metadata={"labels": {"app.kubernetes.io/name": "apisix"}},
                spec={"replicas": 0},
            )
        ],
        "1.31",
    ),
}


@pytest.mark.parametrize("what", TRAPS)
def test_trap_is_seen(what: str) -> None:
    number, objects, version = TRAPS[what]
    causes = lint(objects, version=version)
    assert f"trap-{number}" in {c.code for c in causes}
    assert all(c.remedy and c.evidence and c.reference for c in causes)


def test_sound_objects_have_no_trap() -> None:
    objects = healthy()
    find(objects, "VirtualService", "vs")["spec"]["http"][0]["route"][0]["destination"]["host"] = SHOP
    # The whole host's fully named rule, with retries set, from a Gateway that is there: nothing to say.
    assert [c for c in lint(objects) if c.level != "info"] == []


def test_guarded_token_rule_that_forwards_is_fine() -> None:
    assert lint(tokens()) == ()


def test_every_trap_of_the_document_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("| trap | what is found |")[2].partition("## How well")[0]
    listed = {
        int(n) for line in table.splitlines() if line.startswith("| ") for n in line.split("|")[1].split(",")
    }
    assert listed - {number for number, *_ in TRAPS.values()} == {57}  # of the params: tested below


@pytest.mark.parametrize(
    ("selector", "found"),
    [('{reporter="destination"}', 1), ('reporter = "destination",app="x"', 1), ('reporter="source"', 0)],
)
def test_metrics_of_the_receiving_side_are_a_trap(selector: str, found: int) -> None:
    causes = list(metrics_selector(selector))
    assert [(c.code, c.level) for c in causes] == [("trap-57", "warning")] * found
    assert all('reporter="source"' in c.remedy for c in causes)


def test_the_params_selector_is_linted_in_a_cluster() -> None:
    context = Context(healthy())
    metrics = context.params.metrics.model_copy(update={"istio_selector": 'reporter="destination"'})
    context.params = context.params.model_copy(update={"metrics": metrics})
    assert "trap-57" in {c.code for c in run("lint", context)}


def test_files_are_judged_without_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([match(uri={"regex": "/(?!x).*"})]))
    result = CliRunner().invoke(lint_command, ["--files", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert "trap-8" in {c["code"] for c in json.loads(result.output)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "cannot be read"),
        ("just text", "no Kubernetes object"),
        ("kind: Gateway", "no metadata.name"),
        ("{kind: Gateway, metadata: {name: a}, spec: [1]}", "spec is no mapping"),
        ("", "no Kubernetes objects were given"),
        (
            "{kind: VirtualService, metadata: {name: a}, spec: {hosts: a.com}}",
            "(VirtualService): spec.hosts is no list",
        ),
        ("{kind: VirtualService, metadata: {name: a}, spec: {http: [null]}}", "spec.http[0] is no mapping"),
        (
            "{kind: Gateway, metadata: {name: a}, spec: {servers: [{port: 80}]}}",
            "spec.servers[0].port is no mapping",
        ),
        (
            "{kind: EnvoyFilter, metadata: {name: a}, spec: {configPatches: {}}}",
            "spec.configPatches is no list",
        ),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    result = CliRunner().invoke(lint_command, ["--files", str(file)])
    assert result.exit_code != 0
    assert said in str(result.exception)


def test_a_folder_may_hold_other_files(tmp_path: Path) -> None:
    """What `gateshift translate` writes has a ledger beside its objects, a repository has yet others."""
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(match(uri={"prefix": "/"})))
    (tmp_path / "ledger.json").write_text("[{}]")
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [v.yaml]\n"
    )
    (tmp_path / "values.yaml").write_text("replicas: 2\n")
    result = CliRunner().invoke(lint_command, ["--files", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "1 objects, 0 errors" in result.output
    assert "3 documents are no Kubernetes objects" in result.output


@pytest.mark.parametrize(("version", "fine"), [("v1.31.0-rc.0", True), ("1.31", True), ("latest", False)])
def test_the_version_is_read_or_refused(tmp_path: Path, version: str, fine: bool) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(vs()))
    result = CliRunner().invoke(lint_command, ["--files", str(tmp_path), "--istio-version", version])
    assert isinstance(result.exception, InputError) is not fine


def test_a_header_value_is_not_quoted() -> None:
    """It may be a credential."""
    causes = lint([vs(headers={"request": {"set": {"authorization": "Basic s3cr3t%"}}})])
    assert "trap-20" in {c.code for c in causes}
    assert "s3cr3t" not in str(causes)


def test_one_wrong_variable_beside_a_right_one_is_seen() -> None:
    causes = lint([vs(headers={"request": {"set": {"x-a": "%ROUTE_NAME% at 50%"}}})])
    assert "trap-20" in {c.code for c in causes}
