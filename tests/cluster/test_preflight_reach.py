"""Preflight looks at the hosts and backends that are really moved, whatever moves them."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift import traffic
from gateshift.cluster import preflight, verify
from gateshift.cluster.checks import Check
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import MANAGED_BY, MANAGER
from gateshift.cluster.reach import Reach, overlap
from gateshift.errors import ApisixError
from gateshift.traffic.protocol import HostWeights
from tests.cluster.conftest import make_params
from tests.cluster.test_cluster_preflight import World, tls_secret, world  # noqa: F401 - a fixture

CLOUDFLARE = {
    "mechanism": "cloudflare",
    "route53": None,
    "cloudflare": {
        "api_token": "t",
        "zone": "shop.com",
        "hosts": ["api.shop.com"],
        "apisix_pool": "old",
        "istio_pool": "new",
    },
}
SPLIT = {"mechanism": "traffic-split", "route53": None, "traffic_split": {"through": "crds"}}


def route(host: str, backend: str, port: int = 80, *, namespace: str = "shop", **more: Any) -> dict[str, Any]:
    rule = {"route": [{"destination": {"host": backend, "port": {"number": port}}}], **more}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": host.replace(".", "-").replace("*", "any"), "namespace": namespace},
        "spec": {"hosts": [host], "gateways": ["istio-system/g"], "http": [rule]},
    }


def gateway(*hosts: str, secret: str = "") -> dict[str, Any]:
    server: dict[str, Any] = {"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": hosts}
    if secret:
        server["tls"] = {"mode": "SIMPLE", "credentialName": secret}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "g", "namespace": "istio-system"},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]},
    }


def look(
    world: World,  # noqa: F811 - the fixture
    cluster: Cluster,
    *objects: dict[str, Any],
    only: tuple[str, ...] = ("other Istio objects", "certificates", "DNS"),
) -> dict[str, list[Check]]:
    params = make_params(world.kubeconfig, **world.sections)
    found: dict[str, list[Check]] = {}
    for one in preflight.run(
        params, cluster, read_traffic=world.traffic, translated=lambda: objects, only=only
    ):
        found.setdefault(one.name, []).append(one)
    return found


def theirs(world: World, *hosts: str) -> None:  # noqa: F811 - the fixture
    world.api.add("VirtualService", "theirs", "team", spec={"hosts": list(hosts), "http": []})


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("api.shop.com", "api.shop.com", True),
        ("api.shop.com", "*.shop.com", True),
        ("*.com", "a.b.shop.com", True),
        ("*.api.shop.com", "*.shop.com", True),
        ("api.shop.com", "*", True),
        ("shop.com", "*.shop.com", False),
        ("api.shop.com", "api.shop.org", False),
        ("*.shop.com", "*.shop.org", False),
        ("*.xshop.com", "*.shop.com", False),
    ],
)
def test_hosts_overlap_as_istio_matches_them(one: str, other: str, wanted: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is wanted


def test_the_hosts_of_cloudflare_are_checked(world: World, cluster: Cluster) -> None:  # noqa: F811
    world.sections["traffic"] = CLOUDFLARE
    world.traffic = lambda: traffic.Weights(
        0, {"api.shop.com": HostWeights("api.shop.com", 0.0, True, ttl=600)}
    )
    theirs(world, "api.shop.com")
    live = world.api.find("Secret", "tls", "istio-system")
    assert live
    live["data"] = tls_secret(name="other.com")
    found = look(world, cluster)
    assert [c.status for c in found["other Istio objects"]] == ["fail"]
    assert "VirtualService team/theirs also serves api.shop.com" in found["other Istio objects"][0].measured
    assert "covers api.shop.com" in found["hosts without certificate"][0].measured
    assert found["DNS TTL"][0].status == "fail"
    assert "api.shop.com 600 s" in found["DNS TTL"][0].measured


def test_the_hosts_of_the_translation_are_checked_where_no_record_is_moved(
    world: World,  # noqa: F811
    cluster: Cluster,
) -> None:
    world.sections["traffic"] = SPLIT
    theirs(world, "ws.shop.com")
    objects = (
        route("api.shop.com", "shop"),
        route("ws.shop.com", "shop"),
        gateway("api.shop.com", "ws.shop.com", secret="tls"),
    )
    found = look(world, cluster, *objects)
    assert "also serves ws.shop.com" in found["other Istio objects"][0].measured
    assert "covers ws.shop.com" in found["hosts without certificate"][0].measured
    assert "DNS TTL" not in found  # nothing that a resolver keeps is moved


def test_hosts_without_tls_need_no_certificate(world: World, cluster: Cluster) -> None:  # noqa: F811
    world.sections["traffic"] = SPLIT
    found = look(world, cluster, route("ws.shop.com", "shop"), route("*", "shop"))
    assert "hosts without certificate" not in found
    assert [c.status for c in found["other Istio objects"]] == ["pass"]
    assert {c.status for checks in found.values() for c in checks} == {"pass"}


def test_unknown_hosts_are_no_pass(world: World, cluster: Cluster) -> None:  # noqa: F811 - the fixture
    world.sections["traffic"] = SPLIT
    theirs(world, "api.shop.com")
    found = look(world, cluster)
    assert [c.status for c in found["other Istio objects"]] == ["warn"]


def test_a_configuration_that_cannot_be_read_leaves_what_the_params_say() -> None:
    def broken() -> list[dict[str, Any]]:
        raise ApisixError("the Admin API is down")

    reach = Reach(make_params(), broken)
    assert (reach.hosts(), reach.namespaces(), reach.backends()) == (["api.shop.com"], ["shop"], {})


def test_backends_are_found_in_every_form_of_a_route() -> None:
    mirror = {"host": "shadow.audit.svc.cluster.local"}
    grpc = {
        "kind": "GRPCRoute",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"rules": [{"backendRefs": [{"name": "rpc", "namespace": "grpc", "port": 90}]}]},
    }
    tcp = {
        "kind": "VirtualService",
        "metadata": {"name": "t", "namespace": "shop"},
        "spec": {"tcp": [{"route": [{"destination": {"host": "db", "port": {"number": 5432}}}]}]},
    }
    objects = [
        route("a.com", "cart.billing.svc.cluster.local", 8080, mirrors=[{"destination": mirror}]),
        route("b.com", "cart.billing.svc.cluster.local", 8081),
        route("c.com", "api.partner.example.com"),
        grpc,
        tcp,
    ]
    reach = Reach(make_params(), lambda: objects)
    assert reach.backends() == {
        ("billing", "cart"): {8080, 8081},
        ("audit", "shadow"): set(),
        ("grpc", "rpc"): {90},
        ("shop", "db"): {5432},
    }
    assert reach.namespaces() == ["shop", "billing", "audit", "grpc"]


def test_verify_asks_for_the_applied_hosts_where_no_record_is_moved(
    world: World,  # noqa: F811
    cluster: Cluster,
) -> None:
    world.sections["traffic"] = SPLIT
    params = make_params(world.kubeconfig, **world.sections)
    for one in (route("api.shop.com", "shop"), route("*.shop.com", "shop")):
        one["metadata"]["labels"] = {MANAGED_BY: MANAGER}
        world.api.store(one)
    assert verify._Checks(params, cluster)._hosts() == ["api.shop.com"]
