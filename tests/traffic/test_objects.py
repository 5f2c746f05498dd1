"""Weights in ApisixRoutes and VirtualServices, through the real client against an API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.apisix.model import Kind
from gateshift.apisix.own_shift import without_own_shift
from gateshift.apisix.readers import read_files
from gateshift.cluster.client import Cluster
from gateshift.errors import TrafficError
from gateshift.params.traffic import IstioFirstParams, TrafficSplitParams
from gateshift.traffic.istio_first import IstioFirstShifter
from gateshift.traffic.protocol import Changed, Shifter
from gateshift.traffic.split_crd import CrdSplitShifter
from tests.cluster.conftest import FakeApi, api, cluster, kubeconfig, server  # noqa: F401 - fixtures

APISIX = "apisix-gateway.apisix.svc.cluster.local"


def route(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "spec": {"http": list(rules)}}


def rule(name: str, **more: Any) -> dict[str, Any]:
    match = {"hosts": ["api.voiceassistant.com"], "paths": [f"/{name}/*"]}
    backends = [{"serviceName": f"{name}-service", "servicePort": 9000}]
    return {"name": name, "match": match, "backends": backends, **more}


@pytest.fixture
def routes(api: FakeApi) -> FakeApi:  # noqa: F811 - the fixture
    cors = {"name": "cors", "enable": True, "config": {"allow_origins": "*"}}
    api.add("ApisixRoute", "users", "prod", spec={"http": [rule("users", plugins=[cors]), rule("plain")]})
    api.add("ApisixRoute", "rpc", "prod", spec={"http": [rule("rpc")]})
    version = "apisix.apache.org/v2"
    api.kinds.add((version, "ApisixUpstream"))
    metadata = {"name": "rpc-service", "namespace": "prod"}
    spec = {"scheme": "grpc"}
    api.store({"apiVersion": version, "kind": "ApisixUpstream", "metadata": metadata, "spec": spec})
    return api


def split(cluster: Cluster, target: str = "istio-lb.example.net", **more: Any) -> CrdSplitShifter:  # noqa: F811
    params = TrafficSplitParams.model_validate({"through": "crds", **more})
    return CrdSplitShifter(params, lambda: cluster, istio_target=target)


def test_split_moves_every_rule_keeps_its_plugins_and_restores(
    routes: FakeApi,
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
) -> None:
    one = split(cluster)
    assert isinstance(one, Shifter)
    assert one.read().istio_percent == 0
    assert one.prepare_plan().empty
    snapshot = json.loads(json.dumps(one.snapshot()))
    receipt = one.set(one.plan(25))
    assert receipt.changed
    assert not one.set(one.plan(25)).changed
    assert one.read().istio_percent == 25
    spec = routes.find("ApisixRoute", "users", "prod")["spec"]["http"][0]  # type: ignore[index]
    assert [p["name"] for p in spec["plugins"]] == ["cors", "traffic-split"]
    # What the controller writes into APISIX for it is the same plugin, beside the route's own.
    file = tmp_path / "routes.json"
    objects = [o for k, o in routes.objects.items() if k[1].startswith("apisix")]
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    configuration = read_files([file])
    schemes = {}
    for found in configuration.of(Kind.ROUTE).values():
        ours, rest = found.spec["plugins"]["traffic-split"]["rules"][0]["weighted_upstreams"]
        assert (ours["weight"], rest) == (25, {"weight": 75})
        assert ours["upstream"]["nodes"] == {"istio-lb.example.net:80": 1}
        schemes[found.id.rsplit("_", 1)[-1]] = ours["upstream"]["scheme"]
    assert schemes == {"users": "http", "plain": "http", "rpc": "grpc"}
    for found in without_own_shift(configuration).of(Kind.ROUTE).values():
        assert "traffic-split" not in found.spec.get("plugins", {}), "a shift is no part of the source"
    one.set(one.plan(100))
    assert one.read().istio_percent == 100
    one.set(one.plan(0))
    assert one.read().istio_percent == 0
    assert one.restore_plan(snapshot).empty
    one.set(one.plan(50))
    one.set(one.restore_plan(snapshot))
    assert one.snapshot() == snapshot


def test_split_refuses_what_it_did_not_make(routes: FakeApi, cluster: Cluster) -> None:  # noqa: F811
    foreign = {"name": "traffic-split", "enable": True, "config": {"rules": []}}
    routes.add("ApisixRoute", "canary", "prod", spec={"http": [rule("canary", plugins=[foreign])]})
    two = rule("two")
    two["backends"].append({"serviceName": "other", "servicePort": 1, "weight": 10})
    routes.add("ApisixRoute", "weighted", "prod", spec={"http": [two]})
    with pytest.raises(TrafficError, match=r"canary rule canary has a traffic-split.*several backends"):
        split(cluster).plan(10)
    chosen = split(cluster, routes=["prod/users"])
    chosen.set(chosen.plan(10))
    split(cluster).set(split(cluster).plan(0))
    assert chosen.read().istio_percent == 0
    kept = routes.find("ApisixRoute", "canary", "prod")["spec"]["http"][0]["plugins"]  # type: ignore[index]
    assert kept == [foreign]
    with pytest.raises(TrafficError, match="the cluster has no ApisixRoute prod/none"):
        split(cluster, routes=["prod/none"]).read()
    with pytest.raises(TrafficError, match="no address"):
        split(cluster, "", routes=["prod/users"]).plan(10)


def test_a_canary_of_the_same_shape_is_not_taken_for_the_shift(routes: FakeApi, cluster: Cluster) -> None:  # noqa: F811
    inline = {"type": "roundrobin", "nodes": {"canary.prod.svc:80": 1}}
    rules = [{"weighted_upstreams": [{"upstream": inline, "weight": 20}, {"weight": 80}]}]
    theirs = {"name": "traffic-split", "enable": True, "config": {"rules": rules}}
    routes.add("ApisixRoute", "canary", "prod", spec={"http": [rule("canary", plugins=[theirs])]})
    one = split(cluster)
    with pytest.raises(TrafficError, match="canary rule canary has a traffic-split of its own"):
        one.plan(10)
    one.set(one.plan(0))
    kept = routes.find("ApisixRoute", "canary", "prod")["spec"]["http"][0]["plugins"]  # type: ignore[index]
    assert kept == [theirs]


def test_an_object_changed_since_the_plan_is_refused(routes: FakeApi, cluster: Cluster) -> None:  # noqa: F811
    one = split(cluster)
    plan = one.plan(10)
    one.set(one.plan(50))
    with pytest.raises(Changed, match="changed by somebody else since the plan"):
        one.set(plan)
    later = one.plan(75)
    # A controller that puts its own state back at once is noticed by reading back.
    routes.refuse = lambda method, path, body: (200, body) if method == "PUT" else None
    with pytest.raises(TrafficError, match="somebody else writes it too"):
        one.set(later)


def test_a_cluster_out_of_reach_is_one_clear_error() -> None:
    def away() -> Cluster:
        from gateshift.errors import ClusterError

        raise ClusterError("the API server does not answer")

    with pytest.raises(TrafficError, match="does not answer"):
        CrdSplitShifter(TrafficSplitParams(through="crds"), away, istio_target="x").read()


def service(name: str, *rules: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "metadata": {"labels": labels or {"app.kubernetes.io/managed-by": "gateshift"}},
        "spec": {"hosts": ["api.voiceassistant.com"], "http": list(rules)},
    }


def to(*destinations: tuple[str, int | None], **more: Any) -> dict[str, Any]:
    listed = []
    for host, weight in destinations:
        one: dict[str, Any] = {"destination": {"host": host, "port": {"number": 9000}}}
        listed.append(one if weight is None else {**one, "weight": weight})
    return {"route": listed, **more}


def first(cluster: Cluster, **params: Any) -> IstioFirstShifter:  # noqa: F811
    return IstioFirstShifter(
        IstioFirstParams.model_validate(params), lambda: cluster, namespace="prod", apisix_host=APISIX
    )


def add(api: FakeApi, name: str, *rules: dict[str, Any]) -> None:  # noqa: F811
    made = service(name, *rules)
    api.add("VirtualService", made.pop("name"), "prod", **made)


def test_istio_first_sends_a_share_back_and_keeps_own_proportions(
    api: FakeApi,  # noqa: F811
    cluster: Cluster,  # noqa: F811
) -> None:
    add(
        api,
        "users",
        to(("a.prod.svc.cluster.local", None)),
        to(("b", 90), ("c", 10)),
        {"redirect": {"uri": "/"}},
    )
    one = first(cluster)
    assert isinstance(one, Shifter)
    assert one.read().istio_percent == 100
    snapshot = json.loads(json.dumps(one.snapshot()))
    one.set(one.prepare_plan())
    assert one.read().istio_percent == 0
    assert one.prepare_plan().empty
    for percent in (10, 25, 75):
        one.set(one.plan(percent))
        assert one.read().istio_percent == percent
        assert one.plan(percent).empty
    rules = api.find("VirtualService", "users", "prod")["spec"]["http"]  # type: ignore[index]
    assert [d["weight"] for d in rules[0]["route"]] == [75, 25]
    assert rules[0]["route"][1]["destination"] == {"host": APISIX, "port": {"number": 80}}
    assert [d["weight"] for d in rules[1]["route"]] == [90 * 75, 10 * 75, 100 * 25]
    assert rules[2] == {"redirect": {"uri": "/"}}
    one.set(one.plan(0))
    one.set(one.plan(100))
    # Through a share of zero the proportions 90 to 10 are not forgotten, and nothing of ours is left.
    assert one.snapshot() == snapshot


def test_istio_first_refuses_rewrites_and_grpc_without_a_port(api: FakeApi, cluster: Cluster) -> None:  # noqa: F811
    add(api, "old", to(("a", None), rewrite={"uri": "/"}, name="v1"))
    with pytest.raises(TrafficError, match="route v1 rewrites the request"):
        first(cluster).prepare_plan()
    api.objects.clear()
    add(api, "rpc", to(("rpc.prod.svc.cluster.local", None)))
    api.add("Service", "rpc", "prod", spec={"ports": [{"name": "grpc", "port": 9000}]})
    with pytest.raises(TrafficError, match="is gRPC"):
        first(cluster).prepare_plan()
    one = first(cluster, grpc_port=9081)
    one.set(one.prepare_plan())
    rules = api.find("VirtualService", "rpc", "prod")["spec"]["http"]  # type: ignore[index]
    assert rules[0]["route"][1]["destination"]["port"] == {"number": 9081}


def test_istio_first_needs_what_30_apply_made(api: FakeApi, cluster: Cluster) -> None:  # noqa: F811
    foreign = service("theirs", to(("a", None)), labels={"app": "x"})
    api.add("VirtualService", foreign.pop("name"), "prod", **foreign)
    with pytest.raises(TrafficError, match="no VirtualService of gateshift's") as caught:
        first(cluster).read()
    assert "30_apply" in caught.value.hint
