"""A production cluster has more than our gateway: what belongs to others, and is healthy, is no error."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.cluster.objects import API_VERSIONS
from gateshift.diagnose.engine import SYMPTOMS
from gateshift.diagnose.engine import run as run_probes
from tests.diagnose.test_diagnose import (
    GATEWAY,
    OFFLINE,
    SIDECAR,
    Context,
    _add,
    _envoy_filter,
    _rule,
    _set,
    find,
    healthy,
    obj,
)

HTTP = {"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["*"]}
NETWORK = "type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3"
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
NAMED = {"labels": {"app": "cart"}}


def pod(name: str, namespace: str = "shop", *, status: Any = None, **labels: str) -> dict[str, Any]:
    return obj("Pod", name, namespace, metadata={"labels": labels}, spec={}, status=status or READY)


def tls(name: str, port: int = 443) -> dict[str, Any]:
    server = {"port": {"number": port, "protocol": "HTTPS"}, "hosts": ["*"]}
    return {**server, "tls": {"mode": "SIMPLE", "credentialName": name}}


def limit(context: str, namespace: str, **labels: str) -> dict[str, Any]:
    return _envoy_filter(namespace, context, **labels)


def network_policy(name: str, **spec: Any) -> dict[str, Any]:
    return obj("NetworkPolicy", name, "istio-system", spec=spec)


def _delegating(objects: list[dict[str, Any]]) -> None:
    root = {"match": [{"uri": {"prefix": "/"}}], "delegate": {"name": "cart", "namespace": "shop"}}
    last = {"name": "last", "directResponse": {"status": 404}}
    find(objects, "VirtualService", "vs")["spec"]["http"] = [root, last]
    rule = {"match": [{"uri": {"prefix": "/cart"}}], "route": [{"destination": {"host": "cart"}}]}
    objects.append(obj("VirtualService", "cart", spec={"http": [rule]}))


HEALTHY: dict[str, Any] = {
    "another gateway with its own workload, Secret and port": _add(
        pod("internal-1", "istio-internal", istio="internal"),
        obj(
            "Gateway",
            "internal",
            "infra",
            spec={"selector": {"istio": "internal"}, "servers": [tls("c", 8443)]},
        ),
        obj("Secret", "c", "istio-internal", data={}),
        obj(
            "VirtualService",
            "internal",
            "infra",
            spec={"hosts": ["i.com"], "gateways": ["internal"], "exportTo": ["."], "http": [{"route": []}]},
        ),
    ),
    "a second Service of the same pods opens another port": _add(
        obj("Service", "private", "istio-system", spec={"selector": GATEWAY, "ports": [{"port": 8443}]}),
        obj(
            "Gateway",
            "private",
            "infra",
            spec={"selector": GATEWAY, "servers": [{**HTTP, "port": {"number": 8443}}]},
        ),
    ),
    "no port for HTTPS, where none is served": _set(
        "Service", "istio-ingressgateway", ports=[{"port": 80, "targetPort": 8080}]
    ),
    "target ports by name": lambda o: (
        _set(
            "Service",
            "istio-ingressgateway",
            ports=[{"port": 80, "targetPort": "http2"}, {"port": 443, "targetPort": "https"}],
        )(o),
        [
            p["spec"].update(
                containers=[
                    {
                        "name": "istio-proxy",
                        "ports": [
                            {"name": "http2", "containerPort": 8080},
                            {"name": "https", "containerPort": 8443},
                        ],
                    }
                ]
            )
            for p in o
            if p["kind"] == "Pod"
        ],
    ),
    "deny by default, and one policy that lets clients in": _add(
        network_policy("default-deny", podSelector={}, policyTypes=["Ingress"]),
        network_policy(
            "clients", podSelector={"matchLabels": GATEWAY}, ingress=[{"ports": [{"port": 8080}]}]
        ),
    ),
    "a policy without ingress that selects other pods by an expression": _add(
        network_policy(
            "db", podSelector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["db"]}]}
        ),
    ),
    "hosts for the mesh beside one for the gateway": lambda o: (
        _set("Gateway", "gw", servers=[{**HTTP, "hosts": ["a.com"]}])(o),
        _set("VirtualService", "vs", hosts=["cart.shop.svc.cluster.local", "a.com"], gateways=["mesh", "gw"])(
            o
        ),
    ),
    "a VirtualService on two gateways, each with one of its hosts": lambda o: (
        _set("Gateway", "gw", servers=[{**HTTP, "hosts": ["a.com"]}])(o),
        o.append(
            obj("Gateway", "gw2", spec={"selector": GATEWAY, "servers": [{**HTTP, "hosts": ["b.com"]}]})
        ),
        _set("VirtualService", "vs", hosts=["a.com", "b.com"], gateways=["gw", "gw2"])(o),
    ),
    "a VirtualService for the mesh, said in words": _add(
        obj("VirtualService", "mesh", spec={"hosts": ["cart"], "gateways": ["mesh"], "http": [{"route": []}]})
    ),
    "a VirtualService that is not exported because it is for the mesh": _add(
        obj("VirtualService", "mesh", spec={"hosts": ["cart"], "exportTo": ["."], "http": [{"route": []}]})
    ),
    "rules handed on to a delegate": _delegating,
    "a destination without weight and without pods yet": lambda o: (
        o.append(obj("Service", "green", spec={"selector": {"app": "green"}, "ports": [{"port": 80}]})),
        _rule(
            route=[
                {"destination": {"host": "cart"}, "weight": 100},
                {"destination": {"host": "green"}, "weight": 0},
            ]
        )(o),
    ),
    "a cluster whose domain is its own": _rule(
        route=[{"destination": {"host": "cart.shop.svc.prod.corp", "port": {"number": 80}}}]
    ),
    "subsets by a wildcard": lambda o: (
        o.append(
            obj(
                "DestinationRule", "d", spec={"host": "*.shop.svc.cluster.local", "subsets": [{"name": "v1"}]}
            )
        ),
        _rule(route=[{"destination": {"host": "cart", "subset": "v1"}}])(o),
    ),
    "a fault of 0 %, and one inside of the mesh": lambda o: (
        _rule(fault={"abort": {"httpStatus": 503, "percentage": {"value": 0}}})(o),
        o.append(
            obj(
                "VirtualService",
                "chaos",
                spec={"hosts": ["x"], "http": [{"fault": {"delay": {"percentage": {"value": 9}}}}]},
            )
        ),
    ),
    "mTLS to pods of the ambient mesh": _add(
        obj(
            "Pod",
            "cart-1",
            metadata={**NAMED, "annotations": {"ambient.istio.io/redirection": "enabled"}},
            spec={"containers": [{"name": "app"}]},
        ),
        obj(
            "DestinationRule", "d", spec={"host": "cart", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
        ),
    ),
    "mTLS while a finished pod has no sidecar": _add(
        SIDECAR,
        pod("cart-job", app="cart", status={"phase": "Succeeded"}),
        obj(
            "DestinationRule", "d", spec={"host": "cart", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
        ),
    ),
    "STRICT in a namespace that APISIX never serves": _add(
        obj("Service", "ledger", "bank", spec={"selector": {"app": "ledger"}, "ports": [{"port": 80}]}),
        obj(
            "Pod",
            "ledger-1",
            "bank",
            metadata={"labels": {"app": "ledger"}},
            spec={"containers": [{"name": "istio-proxy"}]},
        ),
        obj("PeerAuthentication", "default", "bank", spec={"mtls": {"mode": "STRICT"}}),
    ),
    "STRICT while APISIX has a native sidecar": _add(
        SIDECAR,
        obj("PeerAuthentication", "p", spec={"mtls": {"mode": "STRICT"}}),
        obj("Pod", "apisix-1", "apisix", spec={"initContainers": [{"name": "istio-proxy"}]}),
    ),
    "STRICT but for the port that APISIX uses": _add(
        SIDECAR,
        obj(
            "PeerAuthentication",
            "p",
            spec={
                "selector": {"matchLabels": {"app": "cart"}},
                "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"80": {"mode": "PERMISSIVE"}},
            },
        ),
    ),
    "limits of sidecars": _add(
        pod("cart-1", app="cart"),
        limit("SIDECAR_INBOUND", "shop", app="cart"),
    ),
    "limits of connections": _add(
        obj(
            "EnvoyFilter",
            "connections",
            "istio-system",
            spec={
                "workloadSelector": {"labels": GATEWAY},
                "configPatches": [
                    {
                        "applyTo": "NETWORK_FILTER",
                        "match": {"context": "GATEWAY"},
                        "patch": {
                            "value": {
                                "name": "envoy.filters.network.local_ratelimit",
                                "typed_config": {
                                    "@type": f"{NETWORK}.LocalRateLimit",
                                    "stat_prefix": "c",
                                    "token_bucket": {"max_tokens": 9},
                                },
                            }
                        },
                    }
                ],
            },
        )
    ),
    "limits of another gateway": _add(
        pod("internal-1", "istio-internal", istio="internal"),
        limit("GATEWAY", "istio-internal", istio="internal"),
    ),
    "objects without a spec": _add(
        *(
            {
                "apiVersion": API_VERSIONS[kind][0],
                "kind": kind,
                "metadata": {"name": "e", "namespace": "shop", "labels": None},
                **more,
            }
            for kind in (
                "PeerAuthentication",
                "EnvoyFilter",
                "DestinationRule",
                "VirtualService",
                "Gateway",
                "Service",
                "Pod",
                "ServiceEntry",
                "HTTPRoute",
            )
            for more in ({}, {"spec": None, "status": None})
        )
    ),
}


@pytest.mark.parametrize("what", HEALTHY)
def test_what_is_healthy_is_no_error(what: str) -> None:
    objects = healthy()
    HEALTHY[what](objects)
    for symptom in ("", *(s for s in SYMPTOMS if s != "rate-limit")):
        causes = run_probes(symptom, Context(objects), probes=[p for p in OFFLINE if p.name != "migration"])
        assert [(c.code, c.title, c.evidence) for c in causes if c.level == "error"] == [], symptom
        assert [c.evidence for c in causes if "itself broke" in c.evidence] == [], symptom
