"""Faults of trees 1 and 2: the gateway is unreachable; requests get 404."""

from __future__ import annotations

import base64
import contextlib
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.catalogue import fault, is_code, unreachable
from bench.scene import API, APP, HOME, Answer, Scene, obj
from gateshift.cluster.gateways import proxy_status, rejected
from gateshift.lab import topology
from gateshift.lab.process import wait_for

CATALOG = "/api/v1/catalog/items"
ENVOY_TYPES = "type.googleapis.com/envoy.extensions"


def plain(scene: Scene) -> Answer:
    return scene.ask(CATALOG)


def secure(scene: Scene) -> Answer:
    return scene.ask(CATALOG, tls=True)


def deployment(scene: Scene, name: str = topology.GATEWAY_SERVICE) -> dict[str, Any]:
    return scene.get("Deployment", name, HOME)


def service(scene: Scene) -> dict[str, Any]:
    return scene.get("Service", topology.GATEWAY_SERVICE, HOME)


@contextlib.contextmanager
def healed(scene: Scene) -> Iterator[None]:
    """After a fault that takes pods away: wait until the gateway answers again."""
    try:
        yield
    finally:
        answer = scene.until(lambda: plain(scene), lambda a: a.code == 200, 60.0)
        assert answer.code == 200, f"the gateway did not come back: {answer}"


# -- tree 1 ----------------------------------------------------------------------------------------


@fault("gateway", "Gateway selector does not match the pods", {"gateway-selector"}, plain, unreachable)
def gateway_selector(scene: Scene) -> Any:
    return scene.changed(scene.gateway(), lambda g: g["spec"].update(selector={"istio": "ingress"}))


@fault(
    "gateway", "Gateway names the target port instead of the Service's", {"gateway-port"}, plain, unreachable
)
def gateway_port(scene: Scene) -> Any:
    def wrong(gateway: dict[str, Any]) -> None:
        for server in gateway["spec"]["servers"]:
            if server["port"]["number"] == 80:
                server["port"]["number"] = 8088

    return scene.changed(scene.gateway(), wrong)


@fault("gateway", "Service targetPort is not Envoy's port", {"service-target-port"}, plain, unreachable)
def target_port(scene: Scene) -> Any:
    def wrong(one: dict[str, Any]) -> None:
        next(p for p in one["spec"]["ports"] if p["port"] == 80)["targetPort"] = 18099

    return scene.changed(service(scene), wrong)


@fault("gateway", "Service is ClusterIP: no load balancer", {"no-load-balancer"}, plain, unreachable)
def cluster_ip(scene: Scene) -> Any:
    def wrong(one: dict[str, Any]) -> None:
        one["spec"]["type"] = "ClusterIP"
        for port in one["spec"]["ports"]:
            port.pop("nodePort", None)

    return scene.changed(service(scene), wrong)


@fault("gateway", "Service selector matches no pod", {"service-selector"}, plain, unreachable)
def service_selector(scene: Scene) -> Any:
    return scene.changed(
        service(scene), lambda s: s["spec"].update(selector={"app": "ingress", "istio": "x"})
    )


@fault("gateway", "Gateway resource deleted", {"gateway-missing"}, plain, unreachable)
def gateway_missing(scene: Scene) -> Any:
    return scene.removed(*scene.cluster.list("Gateway"))


@fault("gateway", "Deployment scaled to 0", {"gateway-no-pods"}, plain, unreachable, slow=True)
@contextlib.contextmanager
def no_pods(scene: Scene) -> Iterator[None]:
    with healed(scene), scene.changed(deployment(scene), lambda d: d["spec"].update(replicas=0)):
        yield


@contextlib.contextmanager
def _unschedulable(scene: Scene) -> Iterator[list[dict[str, Any]]]:
    """New pods that no node takes; the old ones are deleted."""

    def nowhere(one: dict[str, Any]) -> None:
        one["spec"]["template"]["spec"]["nodeSelector"] = {"pool": "gateways"}
        one["spec"]["strategy"] = {"type": "Recreate"}

    with healed(scene):
        try:
            with scene.changed(deployment(scene), nowhere):
                assert wait_for(lambda: _phases(scene) == {"Pending"}, timeout=30), "pods still run"
                yield scene.pods("istio=ingressgateway")
        finally:
            for pod in scene.pods("istio=ingressgateway"):
                if pod["status"].get("phase") == "Pending":
                    scene.cluster.delete("Pod", pod["metadata"]["name"], HOME)


def _phases(scene: Scene) -> set[str]:
    return {p["status"].get("phase") for p in scene.pods("istio=ingressgateway")}


@fault(
    "gateway",
    "no node takes the pods (nodeSelector)",
    {"gateway-unschedulable"},
    plain,
    unreachable,
    slow=True,
)
@contextlib.contextmanager
def unschedulable(scene: Scene) -> Iterator[None]:
    with _unschedulable(scene):
        yield


@fault(
    "gateway",
    "image cannot be pulled",
    {"gateway-image"},
    plain,
    unreachable,
    slow=True,
    replaced=(
        "kwok pulls no images: the pods are kept Pending, and their waiting state written as a kubelet would"
    ),
)
@contextlib.contextmanager
def image_pull(scene: Scene) -> Iterator[None]:
    with _unschedulable(scene) as pods:
        waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "proxyv2:1.99"'}
        for pod in pods:
            state = {
                "name": "istio-proxy",
                "image": "proxyv2:1.99",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"waiting": waiting},
            }
            scene.status(pod, {"containerStatuses": [state]})
        yield


@fault("gateway", "Envoy killed, the pod stays crashed", {"gateway-crash"}, plain, unreachable, slow=True)
@contextlib.contextmanager
def crashed(scene: Scene) -> Iterator[None]:
    with healed(scene):
        scene.process("gateway-envoy").send_signal(signal.SIGKILL)
        try:
            yield
        finally:
            for pod in scene.pods("istio=ingressgateway"):
                scene.cluster.delete("Pod", pod["metadata"]["name"], HOME)


@fault(
    "gateway",
    "istiod gone, a new gateway gets no configuration",
    {"istiod-down"},
    plain,
    unreachable,
    slow=True,
)
@contextlib.contextmanager
def istiod_down(scene: Scene) -> Iterator[None]:
    with healed(scene), scene.changed(deployment(scene, "istiod"), lambda d: d["spec"].update(replicas=0)):
        assert wait_for(lambda: not scene.pods("app=istiod"), timeout=30)
        for pod in scene.pods("istio=ingressgateway"):
            scene.cluster.delete("Pod", pod["metadata"]["name"], HOME)
        yield


def _credential(name: str) -> Any:
    def wrong(gateway: dict[str, Any]) -> None:
        for server in gateway["spec"]["servers"]:
            if "credentialName" in server.get("tls", {}):
                server["tls"]["credentialName"] = name

    return wrong


def tls_broken(answer: Answer) -> bool:
    return answer.code == 0


def _tls_secret(name: str, namespace: str, certificate: Path, key: Path) -> dict[str, Any]:
    data = {
        "tls.crt": base64.b64encode(certificate.read_bytes()).decode(),
        "tls.key": base64.b64encode(key.read_bytes()).decode(),
    }
    return obj("v1", "Secret", name, namespace, type="kubernetes.io/tls", data=data)


@fault("gateway", "TLS Secret does not exist", {"tls-secret-missing"}, secure, tls_broken)
def secret_missing(scene: Scene) -> Any:
    return scene.changed(scene.gateway(443), _credential("no-such-secret"))


@fault("gateway", "TLS Secret in the application's namespace", {"tls-secret-namespace"}, secure, tls_broken)
@contextlib.contextmanager
def secret_elsewhere(scene: Scene) -> Iterator[None]:
    pair = scene.ca.issue("elsewhere", API, names=[API])
    secret = _tls_secret("tls-elsewhere", APP, pair.certificate, pair.key)
    with scene.added(secret), scene.changed(scene.gateway(443), _credential("tls-elsewhere")):
        yield


@fault("gateway", "certificate expired", {"tls-certificate"}, secure, tls_broken, host=API)
@contextlib.contextmanager
def certificate_expired(scene: Scene) -> Iterator[None]:
    pair = scene.ca.issue("expired", API, names=list(topology.HOSTS), life=timedelta(hours=-1))
    secret = _tls_secret("tls-expired", HOME, pair.certificate, pair.key)
    with scene.added(secret), scene.changed(scene.gateway(443), _credential("tls-expired")):
        yield


@fault("gateway", "certificate of another host", {"tls-certificate"}, secure, tls_broken, host=API)
@contextlib.contextmanager
def certificate_name(scene: Scene) -> Iterator[None]:
    pair = scene.ca.issue("other", "example.com", names=["example.com"])
    secret = _tls_secret("tls-other", HOME, pair.certificate, pair.key)
    with scene.added(secret), scene.changed(scene.gateway(443), _credential("tls-other")):
        yield


@fault("gateway", "HTTPS server does not list the host (SNI)", {"tls-sni"}, secure, tls_broken, host=API)
def sni(scene: Scene) -> Any:
    def wrong(gateway: dict[str, Any]) -> None:
        for server in gateway["spec"]["servers"]:
            if server["port"]["number"] == 443:
                server["hosts"] = ["other.voiceassistant.com"]

    return scene.changed(scene.gateway(443), wrong)


# -- tree 2 ----------------------------------------------------------------------------------------

not_found = is_code(404)


def vs_spec(**spec: Any) -> Any:
    return lambda scene: scene.changed(scene.virtual_service(), lambda v: v["spec"].update(spec))


def on_404(name: str, codes: set[str], **more: Any) -> Any:
    return fault("404", name, codes, plain, not_found, host=API, path=CATALOG, **more)


on_404("VirtualService names a Gateway that does not exist", {"vs-wrong-gateway"})(
    vs_spec(gateways=["istio-system/gateway-that-was"])
)
on_404("VirtualService names the Gateway without its namespace", {"vs-wrong-gateway"})(
    vs_spec(gateways=["public-gateway-elsewhere"])
)
on_404("VirtualService for the mesh only", {"vs-no-gateway"})(vs_spec(gateways=["mesh"]))
on_404("exportTo keeps it in its namespace", {"vs-not-exported"})(vs_spec(exportTo=["."]))


@on_404("Gateway does not list the host", {"vs-host-not-offered"})
def host_not_offered(scene: Scene) -> Any:
    def wrong(gateway: dict[str, Any]) -> None:
        for server in gateway["spec"]["servers"]:
            server["hosts"] = ["www.voiceassistant.com"]

    return scene.changed(scene.gateway(), wrong)


@on_404("Gateway hosts admit another namespace only", {"vs-host-not-offered"})
def namespace_not_offered(scene: Scene) -> Any:
    def wrong(gateway: dict[str, Any]) -> None:
        for server in gateway["spec"]["servers"]:
            server["hosts"] = [f"infra/{h.rpartition('/')[2]}" for h in server["hosts"]]

    return scene.changed(scene.gateway(), wrong)


@on_404("VirtualService for a misspelt host", {"host-unknown", "vs-host-not-offered"})
def host_typo(scene: Scene) -> Any:
    return scene.changed(
        scene.virtual_service(),
        lambda v: v["spec"].update(hosts=["api.voiceassistent.com"]),
    )


@on_404("all VirtualServices deleted", {"vs-none"})
def none_at_all(scene: Scene) -> Any:
    return scene.removed(*scene.cluster.list("VirtualService"))


def _own(
    scene: Scene, name: str, rules: list[dict[str, Any]], hosts: list[str] | None = None
) -> dict[str, Any]:
    to = [{"destination": {"host": f"catalog-service.{APP}.svc.cluster.local", "port": {"number": 9004}}}]
    full = [{"route": to, **r} if not {"redirect", "directResponse"} & set(r) else r for r in rules]
    return obj(
        "networking.istio.io/v1",
        "VirtualService",
        name,
        spec={
            "hosts": hosts or [f"{name}.voiceassistant.com"],
            "gateways": [scene.gateway_name()],
            "http": full,
        },
    )


def own_rules(name: str, label: str, codes: set[str], path: str, *rules: dict[str, Any], **more: Any) -> None:
    """A fault in a VirtualService of its own host."""
    host = f"{name}.voiceassistant.com"

    @fault("404", label, codes, lambda s: s.ask(path, host), not_found, host=host, path=path, **more)
    def inject(scene: Scene) -> Any:
        return scene.added(_own(scene, name, list(rules)))


own_rules(
    "exactly",
    "exact where a prefix was meant",
    {"no-rule"},
    "/shop/cart",
    {"name": "shop", "match": [{"uri": {"exact": "/shop"}}]},
)
own_rules(
    "regex",
    "regular expression does not match the whole path",
    {"no-rule"},
    "/shop/cart/7",
    {"name": "cart", "match": [{"uri": {"regex": "/shop/cart"}}]},
)
own_rules(
    "method",
    "rule for another method",
    {"no-rule"},
    "/orders",
    {"name": "orders", "match": [{"uri": {"prefix": "/orders"}, "method": {"exact": "POST"}}]},
)
own_rules(
    "header",
    "rule wants a header that clients do not send",
    {"no-rule"},
    "/beta",
    {"name": "beta", "match": [{"uri": {"prefix": "/beta"}, "headers": {"x-beta": {"exact": "1"}}}]},
)
own_rules(
    "direct",
    "a rule answers 404 itself",
    {"rule-answers"},
    "/old/page",
    {"name": "gone", "match": [{"uri": {"prefix": "/old"}}], "directResponse": {"status": 404}},
)
own_rules(
    "ordered",
    "an earlier rule takes the request (order)",
    {"rule-order"},
    "/shop/special",
    {"name": "shop", "match": [{"uri": {"prefix": "/shop"}}], "directResponse": {"status": 404}},
    {"name": "special", "match": [{"uri": {"exact": "/shop/special"}}]},
    rule="special",
)
own_rules(
    "hidden",
    "a catch-all stands before the rule",
    {"rule-unreachable"},
    "/shop/special",
    {"name": "all", "directResponse": {"status": 404}},
    {"name": "special", "match": [{"uri": {"exact": "/shop/special"}}]},
)


@fault(
    "404",
    "an exact host hides the wildcard host's rules",
    {"host-shadowed"},
    lambda s: s.ask("/promo", "shadow.voiceassistant.com"),
    not_found,
    host="shadow.voiceassistant.com",
    path="/promo",
)
def shadowed(scene: Scene) -> Any:
    wide = _own(
        scene, "wide", [{"name": "promo", "match": [{"uri": {"prefix": "/promo"}}]}], ["*.voiceassistant.com"]
    )
    narrow = _own(scene, "shadow", [{"name": "shop", "match": [{"uri": {"prefix": "/shop"}}]}])
    return scene.added(wide, narrow)


@fault(
    "404",
    "gateway rejects its routes (EnvoyFilter), new rules have no effect",
    {"xds-rejected"},
    lambda s: s.ask("/new", "rejected.voiceassistant.com"),
    not_found,
    host="rejected.voiceassistant.com",
    path="/new",
)
@contextlib.contextmanager
def rejected_routes(scene: Scene) -> Iterator[None]:
    bad = obj(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "bad-routes",
        HOME,
        spec={
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            "configPatches": [
                {
                    "applyTo": "ROUTE_CONFIGURATION",
                    "match": {"context": "GATEWAY"},
                    "patch": {
                        "operation": "MERGE",
                        "value": {
                            "typed_per_filter_config": {
                                "envoy.filters.http.lua": {
                                    "@type": f"{ENVOY_TYPES}.filters.http.lua.v3.LuaPerRoute",
                                    "source_code": {
                                        "inline_string": "function envoy_on_request( -- not closed"
                                    },
                                }
                            }
                        },
                    },
                }
            ],
        },
    )
    with rejection_over(scene), scene.added(bad):
        time.sleep(1.5)
        new = _own(scene, "rejected", [{"name": "new", "match": [{"uri": {"prefix": "/new"}}]}])
        with scene.added(new):
            yield


@contextlib.contextmanager
def rejection_over(scene: Scene) -> Iterator[None]:
    """Afterwards wait until the gateway has accepted a newer push, so that the next fault is alone."""
    try:
        yield
    finally:
        params = scene.context.params
        assert wait_for(
            lambda: not any("ERROR" in line for line in rejected(proxy_status(params))), timeout=20, every=0.5
        )


@fault(
    "404",
    "the gateway's xDS connection stands still (stale)",
    {"xds-stale"},
    lambda s: s.ask("/new", "stale.voiceassistant.com"),
    not_found,
    host="stale.voiceassistant.com",
    path="/new",
)
@contextlib.contextmanager
def stale(scene: Scene) -> Iterator[None]:
    agent = next(p for p in scene.process("gateway-envoy").parents() if p.name() == "pilot-agent")
    agent.send_signal(signal.SIGSTOP)
    try:
        with scene.added(_own(scene, "stale", [{"name": "new", "match": [{"uri": {"prefix": "/new"}}]}])):
            time.sleep(1.0)
            yield
    finally:
        agent.send_signal(signal.SIGCONT)
