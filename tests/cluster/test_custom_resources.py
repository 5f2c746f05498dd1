"""APISIX's custom resources from the API server: the same model as from files, and never half of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gateshift.apisix.model import Configuration, Kind
from gateshift.apisix.readers import read_files
from gateshift.cli.translation import translate_command
from gateshift.cluster import preflight_apisix
from gateshift.cluster.checks import run_items
from gateshift.cluster.client import Call, Cluster
from gateshift.cluster.custom_resources import KINDS, read_custom_resources
from gateshift.cluster.permissions import covered, needed
from gateshift.errors import ClusterError, InputError, ParamsError
from gateshift.params import validate
from tests.cluster.conftest import FakeApi, make_params, plural

V2 = "apisix.apache.org/v2"
API = "gateway.networking.k8s.io/v1"
OWN = (
    "ApisixUpstream",
    "ApisixPluginConfig",
    "ApisixRoute",
    "ApisixGlobalRule",
    "ApisixTls",
    "ApisixConsumer",
)


def backend(name: str) -> dict[str, Any]:
    return {"serviceName": name, "servicePort": 80}


def manifest(kind: str, name: str, namespace: str, spec: dict[str, Any], version: str = V2) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def apisix_route(name: str, namespace: str, path: str, **rule: Any) -> dict[str, Any]:
    match = {"hosts": [f"{namespace}.example.com"], "paths": [path]}
    http = [{"name": "r", "match": match, "backends": [backend(name)], **rule}]
    return manifest("ApisixRoute", name, namespace, {"http": http})


def world() -> list[dict[str, Any]]:
    """Objects of every kind of the controller's, in two namespaces, more than one page of routes."""
    cors = [{"name": "cors", "enable": True, "config": {"allow_origins": "https://x.test"}}]
    ingress = {
        "ingressClassName": "apisix",
        "rules": [
            {
                "host": "in.example.com",
                "http": {
                    "paths": [
                        {
                            "path": "/",
                            "pathType": "Prefix",
                            "backend": {"service": {"name": "in", "port": {"number": 80}}},
                        }
                    ]
                },
            }
        ],
    }
    return [
        manifest("ApisixUpstream", "cart", "shop", {"retries": 2}),
        manifest("ApisixPluginConfig", "common", "shop", {"plugins": cors}),
        *(apisix_route(f"r{i}", "shop", f"/r{i}") for i in range(7)),
        apisix_route("cart", "shop", "/cart", plugin_config_name="common"),
        apisix_route("other", "bank", "/other"),
        manifest("ApisixGlobalRule", "all", "bank", {"plugins": cors}),
        manifest("ApisixTls", "tls", "bank", {"hosts": ["bank.example.com"], "secret": {"name": "t"}}),
        manifest("ApisixConsumer", "ada", "bank", {"authParameter": {"keyAuth": {"value": {"key": "k"}}}}),
        manifest("Ingress", "in", "shop", ingress, "networking.k8s.io/v1"),
    ]


@pytest.fixture
def apisix(api: FakeApi) -> FakeApi:
    """The fake server with the controller's definitions and the objects above."""
    api.kinds |= {(V2, kind) for kind in OWN}
    api.add("IngressClass", "apisix", spec={"controller": "apisix.apache.org/apisix-ingress"})
    for one in world():
        api.store(json.loads(json.dumps(one)))
    return api


def model(configuration: Configuration) -> dict[tuple[str, str], Any]:
    return {(one.kind.value, one.id): one.spec for one in configuration}


def said(configuration: Configuration) -> str:
    return "\n".join(f"{one.origin}: {one.message}" for one in configuration.findings)


def test_the_cluster_gives_the_same_model_as_files(apisix: FakeApi, cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    ingress_class = {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass"}
    spec = {"metadata": {"name": "apisix"}, "spec": {"controller": "apisix.apache.org/apisix-ingress"}}
    file.write_text(yaml.safe_dump_all([{**ingress_class, **spec}, *world()]))
    from_files = model(read_files([file], env={}))
    found = read_custom_resources(cluster)
    assert model(found) == from_files
    assert len(found.of(Kind.ROUTE)) == 10
    assert found.of(Kind.GLOBAL_RULE)
    assert found.of(Kind.SSL)
    assert found.of(Kind.CONSUMER)
    assert {method for method, _ in apisix.requests} == {"GET"}
    assert not covered(cluster.calls)
    origin = next(iter(found.of(Kind.SSL).values())).origin
    assert str(origin).startswith("kube:///bank")


def test_only_the_named_namespaces_are_asked(apisix: FakeApi, cluster: Cluster) -> None:
    found = read_custom_resources(cluster, ["bank"])
    assert {one.id for one in found.of(Kind.ROUTE).values()} == {"bank_other_r"}
    assert "only the namespaces bank were read" in said(found)
    lists = [path for _, path in apisix.requests if "/apisixroutes" in path]
    assert all("/namespaces/bank/" in path for path in lists)
    both = read_custom_resources(cluster, ["bank", "shop"])
    assert model(both) == model(read_custom_resources(cluster))


@pytest.mark.parametrize("namespaces", [(), ("bank", "shop")])
def test_what_may_not_be_read_stops_everything_by_name(
    apisix: FakeApi, cluster: Cluster, namespaces: tuple[str, ...]
) -> None:
    apisix.refuse = lambda _, path, __: (
        (403, {"message": "forbidden"}) if path.endswith(("/apisixtlses", "/apisixconsumers")) else None
    )
    with pytest.raises(ClusterError) as refused:
        read_custom_resources(cluster, namespaces)
    where = " in namespace bank" if namespaces else ""
    assert f"list apisixtlses.apisix.apache.org{where}" in str(refused.value)
    assert f"list apisixconsumers.apisix.apache.org{where}" in str(refused.value)
    assert "deploy/rbac.yaml" in refused.value.hint


def test_another_error_is_not_taken_for_an_empty_answer(apisix: FakeApi, cluster: Cluster) -> None:
    """The second page fails: what the first held must not pass for the whole."""
    apisix.refuse = lambda _, path, __: (
        (410, {"message": "the continue token is too old"})
        if path.endswith("/apisixroutes") and len([p for _, p in apisix.requests if "apisixroutes" in p]) > 1
        else None
    )
    with pytest.raises(ClusterError, match="continue token is too old"):
        read_custom_resources(cluster)


def test_a_missing_definition_is_named_and_an_old_one_is_read(apisix: FakeApi, cluster: Cluster) -> None:
    apisix.kinds -= {(V2, "ApisixConsumer"), (V2, "ApisixGlobalRule")}
    found = read_custom_resources(cluster)
    assert "does not serve ApisixGlobalRule, ApisixConsumer: the definitions are missing" in said(found)
    assert not found.of(Kind.CONSUMER)
    old = "apisix.apache.org/v2beta3"
    apisix.kinds = {k for k in apisix.kinds if k[1] not in OWN} | {(old, "ApisixRoute")}
    apisix.store({**apisix_route("old", "shop", "/old"), "apiVersion": old})
    found = read_custom_resources(Cluster(cluster._api))
    assert {one.id for one in found.of(Kind.ROUTE).values()} == {"shop_old_r", "shop_in_0-0"}
    assert "v2beta3 is an old version of ApisixRoute" in said(found)


def routed(name: str, gateway: str, namespace: str = "shop") -> dict[str, Any]:
    rule = {"backendRefs": [{"name": name, "port": 80}]}
    spec = {"parentRefs": [{"name": gateway, "namespace": "edge"}], "rules": [rule]}
    return manifest("HTTPRoute", name, namespace, spec, API)


def gateway(name: str, class_: str, **listener: Any) -> dict[str, Any]:
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP", **listener}]
    return manifest("Gateway", name, "edge", {"gatewayClassName": class_, "listeners": listeners}, API)


@pytest.fixture
def routes(apisix: FakeApi) -> FakeApi:
    """Routes of the Gateway API on a Gateway of APISIX's and on one of Istio's."""
    apisix.add(
        "GatewayClass", "apisix", spec={"controllerName": "apisix.apache.org/apisix-ingress-controller"}
    )
    apisix.add("GatewayClass", "istio", spec={"controllerName": "istio.io/gateway-controller"})
    for one in (
        gateway("old", "apisix"),
        gateway("new", "istio", hostname="x.test"),
        routed("mine", "old"),
        routed("theirs", "new"),
        routed("lost", "nowhere"),
    ):
        apisix.store(one)
    return apisix


def test_routes_count_where_their_gateway_is_apisixs(routes: FakeApi, cluster: Cluster) -> None:
    found = read_custom_resources(cluster)
    of_api = [
        one.id
        for one in found.of(Kind.ROUTE).values()
        if one.id.startswith("shop_") and one.id.endswith("_0_0")
    ]
    assert of_api == ["shop_mine_0_0"]
    assert "HTTPRoute shop/theirs hangs on no Gateway of APISIX" in said(found)
    assert "HTTPRoute shop/lost hangs on no Gateway of APISIX" in said(found)
    assert not [one for one in found.findings if one.unread]
    assert not covered(cluster.calls)


def test_a_listener_that_narrows_its_routes_blocks_and_so_do_policies(
    routes: FakeApi, cluster: Cluster
) -> None:
    routes.store(gateway("old", "apisix", hostname="only.test"))
    routes.kinds.add(("apisix.apache.org/v1alpha1", "HTTPRoutePolicy"))
    routes.store(manifest("HTTPRoutePolicy", "p", "shop", {}, "apisix.apache.org/v1alpha1"))
    found = read_custom_resources(cluster)
    assert {one.unread for one in found.findings if one.unread} == {"Gateway/old", "HTTPRoutePolicy/p"}


def test_a_gateway_that_may_not_be_read_stops_everything(routes: FakeApi, cluster: Cluster) -> None:
    routes.refuse = lambda _, path, __: (
        (403, {"message": "forbidden"}) if path.endswith("/gateways/old") else None
    )
    with pytest.raises(ClusterError, match=r"get gateways\.gateway\.networking\.k8s\.io old"):
        read_custom_resources(cluster)


def test_every_kind_that_is_read_is_in_the_permission_table() -> None:
    table = set(needed())
    for kind, versions in KINDS.items():
        assert Call("list", versions[0].partition("/")[0], plural(kind)) in table, kind


def test_the_command_reads_a_cluster_by_its_context(
    apisix: FakeApi, kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    out = tmp_path / "out"
    command = ["--in", "kube://", "--in-namespace", "bank", "--out", str(out), "--json"]
    result = CliRunner().invoke(translate_command, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["proof"]["disagreements"] == []
    assert any("bank.example.com" in text.read_text() for text in out.glob("*.yaml"))
    wrong = CliRunner().invoke(translate_command, ["--in", "kube://no-such", "--out", str(out)])
    assert isinstance(wrong.exception, ClusterError)
    joined = CliRunner().invoke(translate_command, ["--in", "kube://", "--in", "a.yaml", "--out", str(out)])
    assert isinstance(joined.exception, InputError)
    alone = CliRunner().invoke(
        translate_command, ["--in", "a.yaml", "--in-namespace", "x", "--out", str(out)]
    )
    assert isinstance(alone.exception, InputError)


def test_params_name_one_source_and_preflight_reads_it(
    apisix: FakeApi, cluster: Cluster, kubeconfig: str
) -> None:
    params = make_params(kubeconfig, apisix={"files": [], "read_cluster": True, "read_namespaces": ["shop"]})
    (check,) = [
        c
        for c in run_items(preflight_apisix.items(params, cluster), limit=10)
        if c.name == "APISIX configuration"
    ]
    assert (check.status, check.measured) == ("pass", "1 plugin_configs, 9 routes")
    with pytest.raises(ParamsError, match="exactly one source"):
        validate({"migration": "m", "apisix": {"files": ["a"], "read_cluster": True}}, source="test")
    with pytest.raises(ParamsError, match="read_namespaces needs read_cluster"):
        validate({"migration": "m", "apisix": {"files": ["a"], "read_namespaces": ["x"]}}, source="test")
