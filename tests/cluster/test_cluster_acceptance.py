"""What istiod says of Gateway API objects in their status decides whether they are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.cluster import acceptance
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import wanted_routes
from gateshift.cluster.permissions import covered
from tests.cluster.conftest import FakeApi

API = "gateway.networking.k8s.io/v1"


def condition(name: str, status: str = "True", seen: int = 3, **more: str) -> dict[str, Any]:
    said = {"reason": "Fine", "message": "all is well", **more}
    return {"type": name, "status": status, "observedGeneration": seen, **said}


def parent(*conditions: dict[str, Any], controller: str = "istio.io/gateway-controller") -> dict[str, Any]:
    return {"controllerName": controller, "conditions": list(conditions)}


GOOD = parent(condition("Accepted"), condition("ResolvedRefs"))


def http_route(*parents: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "generation": 3},
        "spec": {"hostnames": ["a.com"], "parentRefs": [{"name": "g"}]},
        "status": {"parents": list(parents)},
    }


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([GOOD], ""),
        ([], "istiod has not looked at it yet"),
        ([parent(condition("Accepted"), controller="example.com/other")], "istiod has not looked at it yet"),
        ([parent(condition("Accepted"))], "istiod has not looked at it yet"),
        (
            [parent(condition("Accepted", seen=2), condition("ResolvedRefs"))],
            "istiod has not looked at it yet",
        ),
        (
            [
                parent(
                    condition("Accepted"),
                    condition(
                        "ResolvedRefs", "False", reason="BackendNotFound", message="backend(x) not found"
                    ),
                )
            ],
            "BackendNotFound: backend(x) not found",
        ),
    ],
)
def test_a_route_is_accepted_by_its_newest_status_only(
    api: FakeApi, cluster: Cluster, parents: list[dict[str, Any]], said: str
) -> None:
    obj = http_route(*parents)
    api.store(obj)
    wanted = [f"HTTPRoute shop/r: {said}"] if said else []
    assert acceptance.unaccepted(cluster, [obj]) == wanted
    assert not covered(cluster.calls)


def test_a_listener_that_is_refused_is_named_and_istios_own_gateway_has_no_status(
    api: FakeApi, cluster: Cluster
) -> None:
    metadata = {"name": "g", "namespace": "shop", "generation": 3}
    bad = condition("ResolvedRefs", "False", reason="InvalidCertificateRef", message="no such secret")
    status = {
        "conditions": [condition("Accepted")],
        "listeners": [{"conditions": [condition("Accepted"), bad]}],
    }
    gateway = {"apiVersion": API, "kind": "Gateway", "metadata": metadata, "spec": {}, "status": status}
    api.store(gateway)
    istio = {"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": metadata, "spec": {}}
    assert acceptance.unaccepted(cluster, [gateway, istio]) == [
        "Gateway shop/g: InvalidCertificateRef: no such secret"
    ]


def test_the_hosts_of_routes_are_wanted_in_envoy() -> None:
    found = wanted_routes([http_route(), {**http_route(), "spec": {}}])
    assert found == {"a.com": set(), "*": set()}


def test_a_listener_is_waited_for_on_the_services_target_port() -> None:
    spec = {
        "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP"},
            {"name": "x", "port": 81, "protocol": "HTTP"},
        ]
    }
    gateway = {"apiVersion": API, "kind": "Gateway", "metadata": {"name": "g"}, "spec": spec}
    service = {"metadata": {"name": "in"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}]}}
    ports, problems = acceptance.wanted_listeners([gateway], service, {})
    assert ports == {8080}
    assert problems == ["Gateway g names port 81, which Service in does not have"]
