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


# -- network policies by port, and backends in another namespace -------------------------------------------

NETWORK = ("mTLS mode", "network policies", "service ports")


def served(world: World, namespace: str, name: str, *, target: Any = 8080) -> None:  # noqa: F811
    """A Service on port 80 and one pod behind it that listens on 8080 (named http) and 9102."""
    labels = {"app": name}
    ports = [{"name": "http", "port": 80, "targetPort": target}]
    world.api.add("Service", name, namespace, spec={"selector": labels, "ports": ports})
    listens = [{"containerPort": 8080, "name": "http"}, {"containerPort": 9102, "name": "metrics"}]
    spec = {"containers": [{"name": name, "ports": listens}]}
    world.api.add("Pod", f"{name}-1", namespace, metadata={"labels": labels}, spec=spec)


def policy(world: World, namespace: str, direction: str, *ports: dict[str, Any]) -> None:  # noqa: F811
    rules = {direction.lower(): [{"ports": list(ports)}]} if ports else {}
    spec = {"podSelector": {}, "policyTypes": [direction], **rules}
    world.api.add("NetworkPolicy", "p", namespace, spec=spec)


@pytest.mark.parametrize(
    ("target", "ports", "status"),
    [
        (8080, [{"port": 9102}], "fail"),
        (8080, [{"port": 8080}], "pass"),
        (8080, [{"port": 8000, "endPort": 8100}], "pass"),
        (8080, [{"port": 8081, "endPort": 8100}], "fail"),
        (8080, [{"port": 8080, "protocol": "UDP"}], "fail"),
        (8080, [{"protocol": "TCP"}], "pass"),
        (8080, [{"port": "http"}], "pass"),
        (8080, [{"port": "metrics"}], "fail"),
        ("http", [{"port": 8080}], "pass"),
        ("http", [{"port": 9102}], "fail"),
    ],
)
def test_a_policy_is_judged_by_the_ports_that_services_send_to(
    world: World,  # noqa: F811 - the fixture
    cluster: Cluster,
    target: Any,
    ports: list[dict[str, Any]],
    status: str,
) -> None:
    served(world, "shop", "cart", target=target)
    policy(world, "shop", "Ingress", *ports)
    backend = route("a.com", "cart.shop.svc.cluster.local")
    assert look(world, cluster, backend, only=NETWORK)["network policies"][0].status == status


def test_some_open_ports_are_a_warning_and_two_policies_add_up(
    world: World,  # noqa: F811 - the fixture
    cluster: Cluster,
) -> None:
    served(world, "shop", "cart")
    live = world.api.find("Service", "cart", "shop")
    assert live
    live["spec"]["ports"].append({"name": "http-admin", "port": 81, "targetPort": 8081})
    policy(world, "shop", "Ingress", {"port": 8080})
    backends = (
        route("a.com", "cart.shop.svc.cluster.local"),
        route("b.com", "cart.shop.svc.cluster.local", 81),
    )
    check = look(world, cluster, *backends, only=NETWORK)["network policies"][0]
    assert (check.status, "shop/p" in check.measured) == ("warn", True)
    more = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 8081}]}]}
    world.api.add("NetworkPolicy", "more", "shop", spec=more)
    assert look(world, cluster, *backends, only=NETWORK)["network policies"][0].status == "pass"
    del world.api.objects[("networking.k8s.io/v1", "networkpolicies", "shop", "more")]
    only = look(world, cluster, backends[0], only=NETWORK)["network policies"][0]
    assert only.status == "pass"  # nobody is routed to the port that is shut


def test_pods_that_no_route_leads_to_may_be_shut(world: World, cluster: Cluster) -> None:  # noqa: F811
    served(world, "shop", "cart")
    served(world, "shop", "db")
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}
    world.api.add("NetworkPolicy", "db", "shop", spec=spec)
    backend = route("a.com", "cart.shop.svc.cluster.local")
    assert look(world, cluster, backend, only=NETWORK)["network policies"][0].status == "pass"


@pytest.mark.parametrize(
    ("ports", "status"),
    [
        ([{"port": 443}], "fail"),
        ([{"port": 8080}], "fail"),  # istiod is not reached
        ([{"port": 8080}, {"port": 15012}], "fail"),  # nor is the cluster's DNS
        ([{"port": 8080}, {"port": 15012}, {"port": 53}, {"port": 53, "protocol": "UDP"}], "warn"),
    ],
)
def test_the_gateway_must_be_let_out_to_backends_istiod_and_dns(
    world: World,  # noqa: F811 - the fixture
    cluster: Cluster,
    ports: list[dict[str, Any]],
    status: str,
) -> None:
    served(world, "shop", "cart")
    names = {"k8s-app": "kube-dns"}
    listed = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    world.api.add("Service", "kube-dns", "kube-system", spec={"selector": names, "ports": listed})
    world.api.add("Pod", "dns", "kube-system", metadata={"labels": names}, spec={"containers": []})
    policy(world, "istio-system", "Egress", *ports)
    backend = route("a.com", "cart.shop.svc.cluster.local")
    check = look(world, cluster, backend, only=NETWORK)["policies of the gateways"][0]
    assert check.status == status, check


def test_a_policy_without_a_spec_is_not_strict(world: World, cluster: Cluster) -> None:  # noqa: F811
    world.api.add("PeerAuthentication", "default", "istio-system")
    assert look(world, cluster, only=NETWORK)["mTLS mode"][0].status == "pass"


def test_the_namespaces_of_backends_are_looked_at_too(world: World, cluster: Cluster) -> None:  # noqa: F811
    served(world, "billing", "pay")
    live = world.api.find("Service", "pay", "billing")
    assert live
    live["spec"]["ports"][0]["name"] = "web"
    world.api.add("PeerAuthentication", "p", "billing", spec={"mtls": {"mode": "STRICT"}})
    policy(world, "billing", "Ingress")
    backend = route("a.com", "pay.billing.svc.cluster.local")
    found = look(world, cluster, backend, only=(*NETWORK, "sidecars"))
    assert "billing/p" in found["mTLS mode"][0].measured
    assert (found["network policies"][0].status, found["mTLS mode"][0].status) == ("fail", "fail")
    assert "billing/pay:80 (web)" in found["service ports"][0].measured
    assert [c.measured.partition(":")[0] for c in found["sidecars"]] == ["shop", "billing"]
