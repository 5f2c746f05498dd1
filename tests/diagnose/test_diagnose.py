from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateshift import diagnose
from gateshift.cluster.client import ApiError
from gateshift.cluster.objects import API_VERSIONS, MANAGED_BY, MANAGER
from gateshift.diagnose.causes import KNOWN, found
from gateshift.diagnose.engine import PROBES, SYMPTOMS
from gateshift.diagnose.engine import run as run_probes
from gateshift.diagnose.model import Probe
from gateshift.diagnose.present import catalogue
from gateshift.errors import ClusterError, InputError
from gateshift.metrics.source import PrometheusSource
from gateshift.runbook.inputs import project_root
from tests.cluster.conftest import make_params
from tests.diagnose.admin import Admin, config_dump, route, serve


def obj(kind: str, name: str, namespace: str = "shop", **body: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, **body.pop("metadata", {})}
    return {"apiVersion": API_VERSIONS[kind][0], "kind": kind, "metadata": metadata, **body}


class Memory:
    """A read-only cluster of plain objects; what it does not have is absent."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = objects
        self.logs = ""
        self.skew = 0.0

    def clock_skew(self) -> float:
        return self.skew

    def serves(self, kind: str) -> bool:
        return True

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> Any:
        wanted = dict(p.split("=", 1) for p in labels.split(",") if p)
        return [
            o
            for o in self.objects
            if (f"{o['apiVersion']}/{o['kind']}" if "/" in kind else o["kind"]) == kind
            and ("/" in kind or o["apiVersion"] in API_VERSIONS.get(kind, (o["apiVersion"],)))
            and namespace in {None, o["metadata"]["namespace"]}
            and wanted.items() <= (o["metadata"].get("labels") or {}).items()
        ]

    def get(self, kind: str, name: str, namespace: str | None = None) -> Any:
        found = [o for o in self.list(kind, namespace) if o["metadata"]["name"] == name]
        return found[0] if found else None

    def log(self, *_: Any, **__: Any) -> str:
        return self.logs


class Context:
    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.params = make_params(
            istio={"version": "1.31.0", "istioctl": "/none/istioctl", "kubectl": "/none/kubectl"}
        )
        self.cluster = Memory(objects)
        self.source = PrometheusSource(self.params.metrics)

    def now(self) -> float:
        return time.time()


GATEWAY = {"istio": "ingressgateway"}


def healthy() -> list[dict[str, Any]]:
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    ports = [{"port": 80, "targetPort": 8080}, {"port": 443, "targetPort": 8443}]
    balancer = {"loadBalancer": {"ingress": [{"hostname": "127.0.0.1"}]}}
    server = {"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["*"]}
    rule = {
        "name": "all",
        "retries": {"attempts": 0},
        "match": [{"uri": {"prefix": "/"}}],
        "route": [{"destination": {"host": "cart", "port": {"number": 80}}}],
    }
    endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]
    name = {"labels": {"kubernetes.io/service-name": "istio-ingressgateway"}}
    cart = {"labels": {"kubernetes.io/service-name": "cart"}}
    deployment = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}
    return [
        obj(
            "Service",
            "istio-ingressgateway",
            "istio-system",
            spec={"type": "LoadBalancer", "selector": GATEWAY, "ports": ports},
            status=balancer,
        ),
        *(
            obj("Pod", f"g{n}", "istio-system", metadata={"labels": GATEWAY}, status=ready, spec={})
            for n in range(3)
        ),
        obj(
            "Deployment",
            "istiod",
            "istio-system",
            metadata={"generation": 1},
            spec={"replicas": 2},
            status=deployment,
        ),
        obj("EndpointSlice", "g", "istio-system", metadata=name, endpoints=endpoints),
        obj("Service", "apisix-gateway", "apisix", spec={"type": "LoadBalancer"}),
        obj(
            "Service",
            "cart",
            "shop",
            spec={"selector": {"app": "cart"}, "ports": [{"port": 80, "name": "http"}]},
        ),
        obj("EndpointSlice", "c", "shop", metadata=cart, endpoints=endpoints),
        obj("Gateway", "gw", "shop", spec={"selector": GATEWAY, "servers": [server]}),
        obj("VirtualService", "vs", "shop", spec={"hosts": ["a.com"], "gateways": ["gw"], "http": [rule]}),
    ]


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)


AWAY = {"load balancer", "webhook", "metrics", "observed share", "DNS weights", "parity"}
OFFLINE = [p for p in PROBES if p.name not in AWAY]


def errors(objects: list[dict[str, Any]], symptom: str, **more: Any) -> list[diagnose.Cause]:
    return [c for c in run_probes(symptom, Context(objects), probes=OFFLINE, **more) if c.level == "error"]


@pytest.mark.parametrize("symptom", [s for s in SYMPTOMS if s != "rate-limit"])
def test_healthy_objects_have_no_error(symptom: str) -> None:
    assert errors(healthy(), symptom, host="a.com") == []


def _set(kind: str, name: str, **spec: Any) -> Any:
    return lambda o: find(o, kind, name)["spec"].update(spec)


def _remove(kind: str, name: str) -> Any:
    return lambda o: o.remove(find(o, kind, name))


def _add(*more: dict[str, Any]) -> Any:
    return lambda o: o.extend(more)


def _rule(**values: Any) -> Any:
    return lambda o: find(o, "VirtualService", "vs")["spec"]["http"][0].update(values)


def _pods(**status: Any) -> Any:
    return lambda o: [p.update(status=status) for p in o if p["kind"] == "Pod"]


WAITING = {
    "name": "istio-proxy",
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}},
}
TLS = {
    "port": {"number": 443, "protocol": "HTTPS"},
    "hosts": ["*"],
    "tls": {"mode": "SIMPLE", "credentialName": "c"},
}
BUCKET = {"value": {"token_bucket": {"max_tokens": 1}, "name": "local_ratelimit"}}


SIDECAR = obj(
    "Pod",
    "cart-1",
    metadata={"labels": {"app": "cart"}},
    spec={"containers": [{"name": "app"}, {"name": "istio-proxy"}]},
)


def _envoy_filter(namespace: str = "istio-system", context: str = "GATEWAY", **labels: str) -> dict[str, Any]:
    full = {"value": {**BUCKET["value"], "filter_enabled": 1, "filter_enforced": 1}}
    patch = {"applyTo": "HTTP_FILTER", "match": {"context": context}, "patch": full}
    spec = {"workloadSelector": {"labels": labels or GATEWAY}, "configPatches": [patch]}
    return obj("EnvoyFilter", "limit", namespace, spec=spec)


FAULTS: dict[str, tuple[str, Any, str]] = {
    # fault: (symptom, inject, words of the top-ranked cause)
    "no pods": (
        "gateway",
        lambda o: [o.remove(p) for p in list(o) if p["kind"] == "Pod"],
        "no gateway pod exists",
    ),
    "image": ("gateway", _pods(phase="Pending", containerStatuses=[WAITING]), "image cannot be pulled"),
    "no service": ("gateway", _remove("Service", "istio-ingressgateway"), "Service does not exist"),
    "target port": (
        "gateway",
        _set(
            "Service",
            "istio-ingressgateway",
            ports=[{"port": 80, "targetPort": 80}, {"port": 443, "targetPort": 8443}],
        ),
        "leads to target port 80, Envoy listens on 8080",
    ),
    "cluster ip": ("gateway", _set("Service", "istio-ingressgateway", type="ClusterIP"), "no load balancer"),
    "no endpoints": ("gateway", _remove("EndpointSlice", "g"), "no ready endpoint"),
    "selector": ("gateway", _set("Gateway", "gw", selector={"istio": "other"}), "selects no gateway pod"),
    "port of service": (
        "gateway",
        _set("Gateway", "gw", servers=[{"port": {"number": 8080, "protocol": "HTTP"}, "hosts": ["*"]}]),
        "uses port 8080",
    ),
    "tls secret elsewhere": (
        "gateway",
        lambda o: (_set("Gateway", "gw", servers=[TLS])(o), o.append(obj("Secret", "c", "shop"))),
        "not in the gateway's namespace",
    ),
    "policy": (
        "gateway",
        _add(obj("NetworkPolicy", "d", "istio-system", spec={"podSelector": {}})),
        "denies all traffic",
    ),
    "istiod down": (
        "gateway",
        lambda o: find(o, "Deployment", "istiod")["status"].update(readyReplicas=0),
        "istiod is not ready",
    ),
    "no gateway": ("404", _remove("Gateway", "gw"), "there is no Gateway resource"),
    "wrong gateway": (
        "404",
        _set("VirtualService", "vs", gateways=["istio-system/gw"]),
        "istio-system/gw, which does not",
    ),
    "host not offered": (
        "404",
        _set("Gateway", "gw", servers=[{"port": {"number": 80}, "hosts": ["b.com"]}]),
        "does not offer host a.com",
    ),
    "namespace not offered": (
        "404",
        _set("Gateway", "gw", servers=[{"port": {"number": 80}, "hosts": ["infra/*"]}]),
        "to namespace shop",
    ),
    "not exported": ("404", _set("VirtualService", "vs", exportTo=["."]), "not exported"),
    "mesh only": ("404", _set("VirtualService", "vs", gateways=["mesh"]), "bound to a"),
    "mesh only, beside somebody's wildcard": (
        "404",
        lambda o: (
            _set("VirtualService", "vs", gateways=["mesh"])(o),
            o.append(obj("VirtualService", "any", spec={"hosts": ["*"], "gateways": ["gw"], "http": []})),
        ),
        "bound to a",
    ),
    "ours, misspelt": (
        "404",
        lambda o: (
            o.append(
                obj(
                    "Gateway",
                    "tls",
                    spec={
                        "selector": GATEWAY,
                        "servers": [{"port": {"number": 443}, "hosts": ["a.com"], "tls": {"mode": "SIMPLE"}}],
                    },
                )
            ),
            _set("VirtualService", "vs", hosts=["aa.com"], gateways=["gw", "tls"])(o),
            find(o, "VirtualService", "vs")["metadata"].update(labels={MANAGED_BY: MANAGER}),
        ),
        "does not offer host aa.com",
    ),
    "unknown host": (
        "503",
        _rule(route=[{"destination": {"host": "basket"}}]),
        "basket.shop.svc.cluster.local does not",
    ),
    "wrong port": (
        "503",
        _rule(route=[{"destination": {"host": "cart", "port": {"number": 8080}}}]),
        "has no port 8080",
    ),
    "backend gone": ("503", _remove("EndpointSlice", "c"), "no ready endpoint"),
    "subset": ("503", _rule(route=[{"destination": {"host": "cart", "subset": "v2"}}]), "subset v2"),
    "mtls off": (
        "503",
        _add(
            SIDECAR,
            obj("PeerAuthentication", "p", spec={"mtls": {"mode": "STRICT"}}),
            obj("DestinationRule", "d", spec={"host": "cart", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}),
        ),
        "demands mTLS",
    ),
    "mtls without sidecar": (
        "503",
        _add(
            obj(
                "Pod", "cart-1", metadata={"labels": {"app": "cart"}}, spec={"containers": [{"name": "app"}]}
            ),
            obj(
                "DestinationRule",
                "d",
                spec={"host": "cart", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}},
            ),
        ),
        "without a sidecar",
    ),
    "abort": (
        "503",
        _rule(fault={"abort": {"httpStatus": 503, "percentage": {"value": 50}}}),
        "injects a fault",
    ),
    "delay": (
        "latency",
        _rule(fault={"delay": {"fixedDelay": "3s", "percentage": {"value": 50}}}),
        "injects a fault",
    ),
    "no filter": ("rate-limit", lambda o: None, "no EnvoyFilter"),
    "filter elsewhere": ("rate-limit", _add(_envoy_filter("shop")), "not in the gateway's namespace"),
    "filter selector": ("rate-limit", _add(_envoy_filter(istio="egress")), "selects no gateway pod"),
    "filter context": (
        "rate-limit",
        _add(_envoy_filter(context="SIDECAR_INBOUND")),
        "patches SIDECAR_INBOUND",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_top_ranked_cause_is_the_injected_one(fault: str) -> None:
    symptom, inject, words = FAULTS[fault]
    objects = healthy()
    inject(objects)
    found = errors(objects, symptom, host="a.com")
    assert found, "nothing was found"
    assert words in found[0].title
    assert found[0].remedy
    assert found[0].equivalent
    assert found[0].reference


def test_two_faults_are_both_found() -> None:
    objects = healthy()
    _set("Service", "istio-ingressgateway", type="ClusterIP")(objects)
    _rule(route=[{"destination": {"host": "cart", "subset": "v2"}}])(objects)
    titles = " ".join(c.title for c in errors(objects, ""))
    assert "no load balancer" in titles
    assert "subset v2" in titles


def test_slow_backend_is_told_from_slow_gateway() -> None:
    context = Context(healthy())
    line = (
        '{"response_code": 200, "duration": %d, "upstream_service_time": "%d", "upstream_cluster": "cart"}\n'
    )
    context.cluster.logs = (line % (3000, 2950)) * 30
    assert run_probes("latency", context, probes=OFFLINE)[0].title == "the backend itself is slow"
    context = Context(healthy())
    context.cluster.logs = (line % (3000, 20)) * 30
    first = run_probes("latency", context, probes=OFFLINE)[0]
    # A stream of events or a download, which are healthy, look the same in the log: no error.
    assert ("outside the backend" in first.title, first.level) == (True, "warning")


def test_response_flags_are_decoded() -> None:
    context = Context(healthy())
    context.cluster.logs = (
        '{"response_code": 503, "response_flags": "UF,URX", "upstream_cluster": "cart"}\n' * 9
    )
    titles = [c.title for c in run_probes("503", context, probes=OFFLINE)]
    assert "the connection to the backend failed (UF)" in titles


def test_unknown_symptom_is_refused() -> None:
    with pytest.raises(InputError, match="'cold'"):
        diagnose.run("cold", Context([]))


def test_no_probe_can_hang_or_hide_the_others() -> None:
    def hang(_: Any) -> Any:
        time.sleep(30)

    def denied(_: Any) -> Any:
        raise ClusterError("pods is forbidden")

    def broken(_: Any) -> Any:
        raise ZeroDivisionError

    probes = [Probe(f.__name__, frozenset({"404"}), "kubectl", f) for f in (hang, denied, broken)]
    begun = time.monotonic()
    found = run_probes("404", Context([]), probes=probes, limit=0.3)
    assert time.monotonic() - begun < 2
    assert {c.level for c in found} == {"info"}
    assert [c.title for c in found] == ["not known: hang", "not known: denied", "not known: broken"]


def test_diagnosis_is_deterministic() -> None:
    objects = healthy()
    _remove("Gateway", "gw")(objects)
    runs = {run_probes("", Context(objects), probes=OFFLINE) for _ in range(3)}
    assert len(runs) == 1


def asked(tmp_path: Path, admin: Admin, **more: Any) -> tuple[diagnose.Cause, ...]:
    with serve(admin, tmp_path) as kubectl:
        context = Context(healthy())
        istio = context.params.istio.model_copy(update={"kubectl": kubectl})
        context.params = context.params.model_copy(update={"istio": istio})
        context.cluster.logs = more.pop("logs", "")
        return run_probes("404", context, probes=OFFLINE, host="a.com", **more)


def test_the_rule_that_was_meant_and_why_it_does_not_take_the_request(tmp_path: Path) -> None:
    early, late = (
        route("shop", "shop/vs", {"prefix": "/shop"}),
        route("cart", "shop/vs", {"path": "/shop/cart"}),
    )
    first = asked(tmp_path, Admin(config_dump({"a.com": [early, late]})), path="/shop/cart", rule="cart")[0]
    assert first.code == "rule-order"
    assert "shop of shop/vs" in first.title
    assert first.remedy == "move cart of shop/vs before shop of shop/vs"


def test_no_rule_names_the_nearest_and_its_condition(tmp_path: Path) -> None:
    rules = [route("cart", "shop/vs", {"path": "/shop/cart"}), route("x", "shop/vs", {"prefix": "/x"})]
    first = asked(tmp_path, Admin(config_dump({"a.com": rules})), path="/shop/cart/7")[0]
    assert first.code == "no-rule"
    assert "cart: wants exactly /shop/cart" in first.evidence


def test_exact_host_hides_the_wildcard_hosts_rules(tmp_path: Path) -> None:
    hosts = {
        "a.com": [route("cart", "shop/vs", {"prefix": "/cart"})],
        "*.com": [route("promo", "shop/wide", {"prefix": "/promo"})],
    }
    first = asked(tmp_path, Admin(config_dump(hosts)), path="/promo")[0]
    assert first.code == "host-shadowed"


def test_what_envoy_refused_is_quoted(tmp_path: Path) -> None:
    admin = Admin(config_dump({"a.com": [route("all", "shop/vs", {"prefix": "/"})]}, rejected="lua: bad"))
    first = asked(tmp_path, admin)[0]
    assert first.code == "xds-rejected"
    assert "RDS http.80: lua: bad" in first.evidence


def test_answers_of_the_backend_are_told_from_the_gateways(tmp_path: Path) -> None:
    now = datetime.now(UTC).isoformat()
    line = {
        "start_time": now,
        "authority": "a.com",
        "path": "/",
        "response_code": 404,
        "response_code_details": "via_upstream",
        "upstream_cluster": "outbound|80||cart.shop.svc.cluster.local;",
    }
    admin = Admin(config_dump({"a.com": [route("all", "shop/vs", {"prefix": "/"})]}))
    first = asked(tmp_path, admin, logs=json.dumps(line) + "\n")[0]
    assert first.code == "backend-404"


def test_missing_permission_is_said_with_the_grant_and_skipped() -> None:
    def denied(_: Any) -> Any:
        raise ApiError(
            'list of Pod: forbidden: User "x" cannot list resource "pods" in API group "" (HTTP 403)',
            status=403,
        )

    def fine(_: Any) -> Any:
        return [found("vs-none", "0 hosts", "apply")]

    probes = [Probe(f.__name__, frozenset({"404"}), "kubectl", f) for f in (denied, fine)]
    first, second = run_probes("404", Context([]), probes=probes)
    assert first.code == "vs-none"
    assert second.title == "skipped, no permission: denied"
    assert "--verb=get,list --resource=pods" in second.remedy


def test_a_gateway_of_the_gateway_api_is_a_gateway_and_its_certificate_is_looked_for() -> None:
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "nowhere"}]}
    https = {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "a.com", "tls": tls}
    gateway = obj("Gateway", "gateshift-gateway-api", "istio-system")
    gateway["apiVersion"] = "gateway.networking.k8s.io/v1"
    gateway["spec"] = {"gatewayClassName": "istio", "listeners": [https]}
    others = [o for o in healthy() if o["kind"] != "Gateway"]

    def codes(one: dict[str, Any]) -> set[str]:
        return {c.code for c in run_probes("", Context([*others, one]), probes=OFFLINE)}

    assert "tls-secret-missing" in codes(gateway)
    assert "gateway-missing" not in codes(gateway)
    theirs = codes({**gateway, "spec": {**gateway["spec"], "gatewayClassName": "apisix"}})
    assert "tls-secret-missing" not in theirs
    assert "gateway-missing" in theirs


def test_probe_that_fails_half_way_keeps_what_it_found() -> None:
    def half(_: Any) -> Any:
        yield found("vs-none", "0 hosts", "apply")
        raise ClusterError("gone")

    codes = [
        c.code for c in run_probes("404", Context([]), probes=[Probe("h", frozenset({"404"}), "k", half)])
    ]
    assert codes == ["vs-none", "not-known"]


@pytest.mark.parametrize(
    ("reason", "symptom"),
    [
        ("error rate 4 % over 1 %", "503"),
        ("P95 2400 ms over 2000 ms", "latency"),
        ("metrics of Istio are stale", "no-metrics"),
        ("asked by the operator", ""),
    ],
)
def test_rollback_asks_the_tree_that_its_reason_speaks_of(reason: str, symptom: str) -> None:
    assert diagnose.symptom_of(reason) == symptom


def test_archive_keeps_every_field_and_no_secret() -> None:
    cause = found("vs-none", "token s3cr3t", "apply")
    kept = json.loads(diagnose.archived([cause], lambda text: text.replace("s3cr3t", "***")))
    assert kept["causes"][0]["evidence"] == "token ***"
    assert set(kept["causes"][0]) >= {"code", "level", "remedy", "confidence", "reference", "equivalent"}


def test_every_known_cause_stands_in_the_document() -> None:
    page = (project_root() / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert catalogue() in page
    assert {k.tree for k in KNOWN.values()} - {"any"} == set(SYMPTOMS) - {"lint"}


@pytest.mark.parametrize("code", KNOWN)
def test_the_place_of_each_cause_in_the_document_exists(code: str) -> None:
    words = dict.fromkeys(re.findall(r"{(\w+)", KNOWN[code].title), 1)
    _, mark, anchor = found(code, "", "", **words).reference.partition("docs/troubleshooting.md#")
    page = (project_root() / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert not mark or f'<a id="{anchor}"></a>' in page


def test_many_cases_of_one_cause_do_not_hide_another() -> None:
    def hosts(_: Any) -> Any:
        for number in range(7):
            yield found("vs-host-not-offered", f"{number}", "list it", gateway="g", host="h", space="n")

    def order(_: Any) -> Any:
        yield found("rule-order", "it takes b", "put it above", taker="a", request="b", meant="c")

    probes = [Probe(name, frozenset({"404"}), "", ask) for name, ask in (("hosts", hosts), ("order", order))]
    codes = [c.code for c in run_probes("404", Context(healthy()), probes=probes)]
    assert sorted(codes[:2]) == ["rule-order", "vs-host-not-offered"]
    assert codes[2:] == ["vs-host-not-offered"] * 6
