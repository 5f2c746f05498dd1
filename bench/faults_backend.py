"""Faults of trees 3 and 4: 503 and mTLS; P95 above the limit."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from bench.catalogue import fault, is_code
from bench.faults_gateway import plain
from bench.scene import API, APP, Answer, Scene, free_port, obj
from gateshift.lab import topology

ITEMS = "/api/v1/catalog/items"
SECURE = "secure.voiceassistant.com"
unavailable = is_code(502, 503, 504)


def host_of(name: str) -> str:
    return f"{name}.voiceassistant.com"


def asks(name: str, path: str = ITEMS, **more: Any) -> Callable[[Scene], Answer]:
    return lambda scene: scene.ask(path, host_of(name), **more)


def fqdn(name: str) -> str:
    return f"{name}.{APP}.svc.cluster.local"


def rule_for(name: str, **spec: Any) -> dict[str, Any]:
    return obj("networking.istio.io/v1", "DestinationRule", name, spec={"host": fqdn(name), **spec})


def app(scene: Scene, service: str = "catalog-service") -> int:
    return int(scene.state["backends"][service])


def own(
    scene: Scene,
    name: str,
    *rules: dict[str, Any],
    port: int = 9100,
    app_port: int | None = None,
    to: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    **rule: Any,
) -> contextlib.AbstractContextManager[None]:
    """A Service, a route to it under a host of its own, and DestinationRules."""
    made = scene.service(name, port, app(scene) if app_port is None else app_port, **(fields or {}))
    destination = {"host": fqdn(name), "port": {"number": port}, **(to or {})}
    return scene.added(*made, *rules, scene.route(name, destination, "/", **rule))


def on_503(name: str, label: str, codes: set[str], *, path: str = ITEMS, **more: Any) -> Any:
    ask = more.pop("ask", asks(name, path))
    shown = more.pop("shown", unavailable)
    return fault("503", label, codes, ask, shown, host=host_of(name), path=path, **more)


# -- tree 3: what is declared ------------------------------------------------------------------------


@on_503("subset", "subset without a DestinationRule", {"subset-missing"})
def subset(scene: Scene) -> Any:
    return own(scene, "subset", to={"subset": "v2"})


@on_503("nolabel", "subset whose labels no endpoint has", {"subset-empty"})
def subset_empty(scene: Scene) -> Any:
    rule = rule_for("nolabel", subsets=[{"name": "v2", "labels": {"version": "v2"}}])
    return own(scene, "nolabel", rule, to={"subset": "v2"})


@on_503("wrongport", "destination port that the Service does not have", {"destination-port"})
def wrong_port(scene: Scene) -> Any:
    return own(scene, "wrongport", to={"port": {"number": 8080}})


@on_503(
    "nohost", "destination host that does not exist", {"destination-unknown"}, shown=is_code(500, 502, 503)
)
def no_host(scene: Scene) -> Any:
    return own(scene, "nohost", to={"host": fqdn("basket")})


@on_503("nopods", "Service whose selector matches nothing", {"no-endpoint"})
def no_endpoints(scene: Scene) -> Any:
    service, entry = scene.service("nopods", 9100, app(scene))
    service["spec"]["selector"] = {"app": "nopods", "version": "v2"}
    return scene.added(service, entry, scene.route("nopods", {"host": fqdn("nopods")}, "/"))


@on_503("abort", "fault injection left in a rule (abort)", {"fault-injected"})
def abort(scene: Scene) -> Any:
    return own(scene, "abort", fault={"abort": {"httpStatus": 503, "percentage": {"value": 100}}})


@on_503("refused", "nothing listens at the endpoint's port", {"connection-refused"})
def refused(scene: Scene) -> Any:
    return own(scene, "refused", app_port=free_port())


@on_503("cut", "the backend closes the connection", {"connection-closed"})
@contextlib.contextmanager
def cut(scene: Scene) -> Iterator[None]:
    with own(scene, "cut", app_port=app(scene, "billing-service")):
        scene.fault(service="billing-service", refuse=True)
        try:
            yield
        finally:
            scene.no_fault()


@on_503("own503", "the backend itself answers 503", {"backend-5xx"})
@contextlib.contextmanager
def backend_errors(scene: Scene) -> Iterator[None]:
    with own(scene, "own503", app_port=app(scene, "billing-service")):
        scene.fault(service="billing-service", error_ratio=1.0, status=503)
        try:
            yield
        finally:
            scene.no_fault()


@on_503("timeout", "the route's timeout is shorter than the backend", {"upstream-timeout"})
@contextlib.contextmanager
def timeout(scene: Scene) -> Iterator[None]:
    with own(scene, "timeout", app_port=app(scene, "billing-service"), timeout="0.3s"):
        scene.fault(service="billing-service", latency_ms=900)
        try:
            yield
        finally:
            scene.no_fault()


def crowd(ask: Callable[[Scene], Answer], count: int) -> Callable[[Scene], Answer]:
    """Several clients at once; the worst answer counts."""

    def many(scene: Scene) -> Answer:
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(lambda _: ask(scene), range(count)))
        return max(answers, key=lambda a: (a.code >= 500, a.seconds))

    return many


@on_503(
    "breaker", "circuit breaker open (pool of one)", {"circuit-open"}, ask=crowd(asks("breaker"), 6), load=2
)
@contextlib.contextmanager
def breaker(scene: Scene) -> Iterator[None]:
    pool = {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}
    rule = rule_for("breaker", trafficPolicy={"connectionPool": pool})
    with own(scene, "breaker", rule, app_port=app(scene, "billing-service")):
        scene.fault(service="billing-service", latency_ms=300)
        try:
            yield
        finally:
            scene.no_fault()


@on_503("ejected", "outlier detection ejected every endpoint", {"ejected"})
@contextlib.contextmanager
def ejected(scene: Scene) -> Iterator[None]:
    policy = {
        "consecutive5xxErrors": 2,
        "interval": "1s",
        "baseEjectionTime": "30s",
        "maxEjectionPercent": 100,
    }
    rule = rule_for("ejected", trafficPolicy={"outlierDetection": policy})
    with own(scene, "ejected", rule, app_port=app(scene, "billing-service")):
        scene.fault(service="billing-service", error_ratio=1.0, status=503)
        try:
            scene.until(lambda: asks("ejected")(scene), lambda a: a.code == 503 and "no healthy" in a.text)
            yield
        finally:
            scene.no_fault()


@on_503(
    "plaingrpc",
    "gRPC behind a port named http",
    {"protocol-name"},
    path="/identity.v1.Identity/GetUser",
    ask=lambda s: grpc_call(s, "plaingrpc"),
    shown=lambda a: "UNAVAILABLE" in a.text or "INTERNAL" in a.text,
)
def grpc_port(scene: Scene) -> Any:
    return own(scene, "plaingrpc", app_port=app(scene, "identity-grpc"))


def grpc_call(scene: Scene, name: str) -> Answer:
    """A gRPC request over HTTP/2; the code is 200 only for grpc-status 0."""
    import grpc

    target = scene.context.params.verify.connect_to[f"{scene.address()}:80"]
    begun = time.monotonic()
    with grpc.insecure_channel(target, options=[("grpc.default_authority", host_of(name))]) as channel:
        call = channel.unary_unary("/identity.v1.Identity/GetUser")
        try:
            call(b"", timeout=3.0)
        except grpc.RpcError as error:
            code = error.code()
            text = f"{code.name}: {error.details()}"
            ok = code in {
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
            }
            return Answer(200 if ok else 0, text[:120], time.monotonic() - begun)
    return Answer(200, "OK", time.monotonic() - begun)


# -- tree 3: TLS and mTLS ----------------------------------------------------------------------------


def peer(mode: str) -> dict[str, Any]:
    return obj(
        "security.istio.io/v1",
        "PeerAuthentication",
        "secure-service",
        spec={"selector": {"matchLabels": {"app": "secure-service"}}, "mtls": {"mode": mode}},
    )


def secure_ask(scene: Scene) -> Answer:
    return scene.ask(ITEMS, SECURE)


def on_mtls(label: str, codes: set[str], ask: Any = secure_ask, shown: Any = unavailable, **more: Any) -> Any:
    return fault("503", label, codes, ask, shown, host=SECURE, path=ITEMS, **more)


def direct(scene: Scene) -> Answer:
    """A caller without a sidecar, as APISIX is: plaintext straight to the workload."""
    import httpx

    assert scene.sidecar is not None
    begun = time.monotonic()
    try:
        url = f"http://{scene.sidecar.address}:{scene.sidecar.port}{ITEMS}"
        answer = httpx.get(url, headers={"Host": SECURE}, timeout=5.0, trust_env=False)
        return Answer(answer.status_code, answer.text[:80], time.monotonic() - begun)
    except httpx.HTTPError as error:
        return Answer(0, f"{type(error).__name__}: {error}"[:120], time.monotonic() - begun)


@on_mtls("STRICT sidecar, DestinationRule tls DISABLE", {"mtls-off"})
def mtls_disabled(scene: Scene) -> Any:
    return scene.added(peer("STRICT"), rule_for("secure-service", trafficPolicy={"tls": {"mode": "DISABLE"}}))


@on_mtls("STRICT sidecar, DestinationRule tls SIMPLE", {"mtls-off"})
def mtls_simple(scene: Scene) -> Any:
    return scene.added(peer("STRICT"), rule_for("secure-service", trafficPolicy={"tls": {"mode": "SIMPLE"}}))


@on_mtls(
    "STRICT cuts off a plaintext caller (as APISIX is)",
    {"mtls-plaintext-client"},
    ask=direct,
    shown=lambda a: a.code == 0,
)
def mtls_plaintext(scene: Scene) -> Any:
    return scene.added(peer("STRICT"))


@on_mtls("DestinationRule wants another SPIFFE name", {"tls-upstream-name"})
def mtls_name(scene: Scene) -> Any:
    tls = {"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://cluster.local/ns/other/sa/other"]}
    return scene.added(rule_for("secure-service", trafficPolicy={"tls": tls}))


@on_503("nosidecar", "ISTIO_MUTUAL to a backend without a sidecar", {"mtls-without-sidecar"})
def mutual_without(scene: Scene) -> Any:
    rule = rule_for("nosidecar", trafficPolicy={"tls": {"mode": "ISTIO_MUTUAL"}})
    return own(scene, "nosidecar", rule)


@on_503("simple", "DestinationRule tls SIMPLE to a plaintext backend", {"tls-to-plaintext"})
def tls_to_plaintext(scene: Scene) -> Any:
    return own(scene, "simple", rule_for("simple", trafficPolicy={"tls": {"mode": "SIMPLE"}}))


@contextlib.contextmanager
def tls_upstream(scene: Scene, name: str, tls: Mapping[str, Any], **backend: Any) -> Iterator[None]:
    life = backend.pop("life", timedelta(days=30))
    names = backend.pop("names", [fqdn(name)])
    trusted = backend.pop("trusted", True)
    assert scene.ca is not None
    pair = scene.ca.issue(name, name, names=names, life=life)
    port = scene.tls_backend(pair.certificate, pair.key, **backend)
    secret = obj(
        "v1",
        "Secret",
        f"{name}-ca",
        topology.GATEWAY_NAMESPACE,
        stringData={"ca.crt": scene.ca.certificate.read_text()},
    )
    settings = {"mode": "SIMPLE", "sni": fqdn(name), "subjectAltNames": [fqdn(name)], **tls}
    if trusted:
        settings["credentialName"] = f"{name}-ca"
    rule = rule_for(name, trafficPolicy={"tls": settings})
    with scene.added(secret), own(scene, name, rule, app_port=port):
        yield


@on_503("tlsexpired", "the backend's certificate expired", {"tls-upstream-expired"})
def tls_expired(scene: Scene) -> Any:
    return tls_upstream(scene, "tlsexpired", {}, life=timedelta(hours=-1))


@on_503("tlsunknown", "the backend's certificate is of an unknown CA", {"tls-upstream-untrusted"})
def tls_unknown(scene: Scene) -> Any:
    return tls_upstream(scene, "tlsunknown", {}, trusted=False)


@on_503("tlsname", "the backend's certificate has another name", {"tls-upstream-name"})
def tls_name(scene: Scene) -> Any:
    return tls_upstream(scene, "tlsname", {}, names=["other.example.com"])


@on_503("tlssni", "the backend does not know the SNI", {"tls-upstream-sni"})
def tls_sni(scene: Scene) -> Any:
    return tls_upstream(scene, "tlssni", {"sni": "wrong.example.com"}, sni=fqdn("tlssni"))


# -- tree 4 ------------------------------------------------------------------------------------------

SLOW_MS = 2600.0


def slow(answer: Answer) -> bool:
    return answer.seconds > 2.0


def on_slow(name: str, label: str, codes: set[str], *, path: str = ITEMS, **more: Any) -> Any:
    ask = more.pop("ask", asks(name, path))
    shown = more.pop("shown", slow)
    more = {"load": 12, "settle": 5.5, **more}
    return fault("latency", label, codes, ask, shown, host=host_of(name), path=path, **more)


@contextlib.contextmanager
def latency(scene: Scene, **rule: Any) -> Iterator[None]:
    scene.fault(**rule)
    try:
        yield
    finally:
        scene.no_fault()


@fault(
    "latency",
    "the backend is slow through both gateways",
    {"slow-backend"},
    plain,
    slow,
    host=API,
    path=ITEMS,
    load=12,
    settle=6.5,
)
@contextlib.contextmanager
def slow_backend(scene: Scene) -> Iterator[None]:
    stop = threading.Event()

    def old_users() -> None:
        while not stop.is_set():
            scene.ask(ITEMS, old=True)

    with latency(scene, service="catalog-service", latency_ms=SLOW_MS):
        crowd_ = [threading.Thread(target=old_users, daemon=True) for _ in range(4)]
        for one in crowd_:
            one.start()
        time.sleep(3.5)  # so that APISIX has slow answers on record at the same time
        try:
            yield
        finally:
            stop.set()


@fault(
    "latency",
    "the backend is slow for Istio only",
    {"slow-only-through-istio"},
    plain,
    slow,
    host=API,
    path=ITEMS,
    load=12,
    settle=5.5,
)
def slow_istio(scene: Scene) -> Any:
    return latency(scene, service="catalog-service", gateway="istio", latency_ms=SLOW_MS)


@on_slow("delay", "fault injection left in a rule (delay)", {"fault-injected"})
def delay(scene: Scene) -> Any:
    return own(scene, "delay", fault={"delay": {"fixedDelay": "2.5s", "percentage": {"value": 100}}})


@on_slow(
    "pool",
    "requests wait for a connection (pool of one)",
    {"pool-waiting"},
    ask=crowd(asks("pool"), 10),
    load=2,
    settle=5.0,
)
@contextlib.contextmanager
def pool_waiting(scene: Scene) -> Iterator[None]:
    rule = rule_for("pool", trafficPolicy={"connectionPool": {"tcp": {"maxConnections": 1}}})
    slow = latency(scene, service="billing-service", latency_ms=350)
    with own(scene, "pool", rule, app_port=app(scene, "billing-service")), slow:
        yield


@on_slow("retries", "retries multiply the load of a failing backend", {"retries-amplify"}, load=6)
@contextlib.contextmanager
def retries(scene: Scene) -> Iterator[None]:
    policy = {"attempts": 10, "retryOn": "5xx", "perTryTimeout": "5s"}
    failing = latency(scene, service="billing-service", latency_ms=400, error_ratio=0.97, status=503)
    with own(scene, "retries", app_port=app(scene, "billing-service"), retries=policy), failing:
        yield


@on_slow("hot", "one of two endpoints is slow", {"slow-endpoint"}, ask=crowd(asks("hot"), 4), load=4)
@contextlib.contextmanager
def slow_endpoint(scene: Scene) -> Iterator[None]:
    second = obj(
        "networking.istio.io/v1",
        "WorkloadEntry",
        "hot-2",
        spec={"address": "127.0.0.1", "labels": {"app": "hot"}, "ports": {"http": app(scene)}},
    )
    policy = rule_for("hot", trafficPolicy={"loadBalancer": {"simple": "ROUND_ROBIN"}})
    slow = latency(scene, service="billing-service", latency_ms=SLOW_MS)
    with own(scene, "hot", policy, app_port=app(scene, "billing-service")), scene.added(second), slow:
        yield


@on_slow("handshake", "connecting to the backend takes seconds (TLS)", {"connect-slow"}, load=10, settle=6.0)
@contextlib.contextmanager
def slow_handshake(scene: Scene) -> Iterator[None]:
    with tls_upstream(scene, "handshake", {}, wait=2.4):
        rule = scene.get("DestinationRule", "handshake")
        pool = {"http": {"maxRequestsPerConnection": 1}}
        with scene.changed(rule, lambda r: r["spec"]["trafficPolicy"].update(connectionPool=pool)):
            yield


@fault(
    "latency",
    "the gateway gets too little CPU",
    {"cpu-starved"},
    plain,
    lambda a: a.seconds > 1.0,
    host=API,
    path=ITEMS,
    load=4,
    settle=5.0,
    replaced="no cgroup limits here: Envoy is stopped and continued by signals, 2.4 s of every 2.6 s",
    options={"alone": True},
)
@contextlib.contextmanager
def starved(scene: Scene) -> Iterator[None]:
    process = scene.process("gateway-envoy")
    stop = threading.Event()

    def throttle() -> None:
        while not stop.is_set():
            process.send_signal(signal.SIGSTOP)
            stop.wait(2.4)
            process.send_signal(signal.SIGCONT)
            stop.wait(0.2)

    worker = threading.Thread(target=throttle, daemon=True)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()
        process.send_signal(signal.SIGCONT)
