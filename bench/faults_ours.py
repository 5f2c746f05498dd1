"""Faults of trees 5 and 6: no rate limiting; share, metrics, webhook, parity, a stuck migration."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import httpx

from bench.catalogue import fault, is_code
from bench.faults_backend import ITEMS, fqdn, own
from bench.faults_gateway import plain
from bench.scene import API, HOME, Answer, Scene, free_port, obj
from gateshift.lab import topology

SEARCH = "/api/v1/catalog/search"
_LOCAL = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_FULL = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}


def burst(scene: Scene, host: str, path: str, count: int = 40) -> Answer:
    """Forty requests at once; the code is 429 when at least one of them was limited."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: scene.ask(path, host), range(count)))
    limited = sum(a.code == 429 for a in answers)
    slowest = max(a.seconds for a in answers)
    if limited:
        return Answer(429, f"{limited} of {count} limited", slowest)
    worst = max(answers, key=lambda a: a.code)
    return Answer(worst.code, f"none of {count} limited", slowest)


def host_of(name: str) -> str:
    return f"{name}.voiceassistant.com"


def unlimited(answer: Answer) -> bool:
    return answer.code == 200


def limit(
    *,
    namespace: str = HOME,
    selector: str = "ingressgateway",
    context: str = "GATEWAY",
    enabled: Any = _FULL,
    enforced: Any = _FULL,
    tokens: int = 3,
    match: dict[str, Any] | None = None,
    route: str = "limited",
    filter_: bool = True,
    **config: Any,
) -> dict[str, Any]:
    """An EnvoyFilter with a local rate limit for one route, as guides write it."""
    bucket = {"max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "1s"}
    limits: dict[str, Any] = {"@type": _LOCAL, "stat_prefix": "bench", "token_bucket": bucket, **config}
    if enabled is not None:
        limits["filter_enabled"] = enabled
    if enforced is not None:
        limits["filter_enforced"] = enforced
    name = "envoy.filters.http.local_ratelimit"
    table = match or {"vhost": {"route": {"name": route}}}
    patches = [
        {
            "applyTo": "HTTP_ROUTE",
            "match": {"context": context, "routeConfiguration": table},
            "patch": {"operation": "MERGE", "value": {"typed_per_filter_config": {name: limits}}},
        }
    ]
    if filter_:
        hcm = "envoy.filters.network.http_connection_manager"
        inside = {
            "filterChain": {"filter": {"name": hcm, "subFilter": {"name": "envoy.filters.http.router"}}}
        }
        patches.append(
            {
                "applyTo": "HTTP_FILTER",
                "match": {"context": context, "listener": inside},
                "patch": {
                    "operation": "INSERT_BEFORE",
                    "value": {"name": name, "typed_config": {"@type": _LOCAL, "stat_prefix": "bench"}},
                },
            }
        )
    return obj(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "bench-limit",
        namespace,
        spec={"workloadSelector": {"labels": {"istio": selector}}, "configPatches": patches},
    )


def on_limit(label: str, codes: set[str], make: Callable[[], dict[str, Any]], **more: Any) -> None:
    host = host_of("limited")

    @fault(
        "rate-limit",
        label,
        codes,
        lambda s: burst(s, host, ITEMS),
        unlimited,
        host=host,
        path=ITEMS,
        load=1,
        settle=1.5,
        **more,
    )
    @contextlib.contextmanager
    def inject(scene: Scene) -> Iterator[None]:
        with own(scene, "limited"), scene.added(make()):
            time.sleep(1.0)
            yield


on_limit(
    "EnvoyFilter in the application's namespace",
    {"limit-namespace"},
    lambda: limit(namespace="voiceassistant-prod"),
)
on_limit("EnvoyFilter selects other pods", {"limit-selector"}, lambda: limit(selector="ingress"))
on_limit("EnvoyFilter for sidecars (context)", {"limit-context"}, lambda: limit(context="SIDECAR_INBOUND"))
on_limit("filter_enabled not set", {"limit-percentage"}, lambda: limit(enabled=None))
on_limit(
    "filter_enforced 0 %",
    {"limit-percentage"},
    lambda: limit(enforced={"default_value": {"numerator": 0, "denominator": "HUNDRED"}}),
)
on_limit("route name that no rule has", {"limit-route"}, lambda: limit(route="catalogue"))
on_limit(
    "virtual host name that Envoy does not have",
    {"limit-vhost"},
    lambda: limit(match={"vhost": {"name": "limited.example.com:80", "route": {"name": "limited"}}}),
)
on_limit(
    "route table of a port that Envoy does not have",
    {"limit-listener"},
    lambda: limit(match={"name": "http.8080", "vhost": {"route": {"name": "limited"}}}),
)
on_limit("bucket far above the load", {"limit-too-high"}, lambda: limit(tokens=100_000))
on_limit(
    "descriptors that no action makes",
    {"limit-descriptors"},
    lambda: limit(
        tokens=1_000_000,
        rate_limits=[{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}],
        descriptors=[
            {
                "entries": [{"key": "client"}],
                "token_bucket": {"max_tokens": 2, "tokens_per_fill": 2, "fill_interval": "1s"},
            }
        ],
    ),
)


@fault(
    "rate-limit",
    "the translated EnvoyFilter was deleted",
    {"limit-missing"},
    lambda s: burst(s, API, f"{SEARCH}?q=a"),
    unlimited,
    host=API,
    path=SEARCH,
    load=1,
    settle=1.5,
)
def limit_deleted(scene: Scene) -> Any:
    from gateshift.diagnose.limits import ABOUT_LIMITS

    return scene.removed(
        *(f for f in scene.cluster.list("EnvoyFilter") if ABOUT_LIMITS.search(json.dumps(f["spec"])))
    )


def _global(cluster: str) -> dict[str, Any]:
    hcm = "envoy.filters.network.http_connection_manager"
    inside = {"filterChain": {"filter": {"name": hcm, "subFilter": {"name": "envoy.filters.http.router"}}}}
    config = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        "domain": "bench",
        "timeout": "0.2s",
        "rate_limit_service": {
            "grpc_service": {"envoy_grpc": {"cluster_name": cluster}},
            "transport_api_version": "V3",
        },
    }
    action = {"rate_limits": [{"actions": [{"remote_address": {}}]}]}
    return obj(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        "bench-global-limit",
        HOME,
        spec={
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            "configPatches": [
                {
                    "applyTo": "HTTP_FILTER",
                    "match": {"context": "GATEWAY", "listener": inside},
                    "patch": {
                        "operation": "INSERT_BEFORE",
                        "value": {"name": "envoy.filters.http.ratelimit", "typed_config": config},
                    },
                },
                {
                    "applyTo": "HTTP_ROUTE",
                    "match": {
                        "context": "GATEWAY",
                        "routeConfiguration": {"vhost": {"route": {"name": "limited"}}},
                    },
                    "patch": {"operation": "MERGE", "value": {"route": action}},
                },
            ],
        },
    )


def on_service(label: str, codes: set[str], inject: Callable[[Scene], Any], **more: Any) -> None:
    host = host_of("limited")
    ask = lambda s: burst(s, host, ITEMS)  # noqa: E731 - one line a fault reads as a table
    fault("rate-limit", label, codes, ask, unlimited, host=host, path=ITEMS, load=1, settle=1.5, **more)(
        inject
    )


@contextlib.contextmanager
def _limit_service(scene: Scene, *, cluster: str = "", redis: bool = False) -> Iterator[None]:
    name = f"outbound|8081||{fqdn('ratelimit')}"
    server, port = _without_redis() if redis else (None, free_port())
    made = scene.service("ratelimit", 8081, port, name="grpc-ratelimit")
    if redis:
        container = {
            "name": "ratelimit",
            "image": "envoyproxy/ratelimit:master",
            "env": [{"name": "REDIS_URL", "value": "redis.voiceassistant-prod.svc.cluster.local:6379"}],
        }
        made.append(
            obj(
                "apps/v1",
                "Deployment",
                "ratelimit",
                spec={
                    "replicas": 0,  # a pod of kwok has an address that nobody answers
                    "selector": {"matchLabels": {"app": "ratelimit"}},
                    "template": {
                        "metadata": {"labels": {"app": "ratelimit"}},
                        "spec": {"containers": [container]},
                    },
                },
            )
        )
        made.append(
            obj("v1", "Service", "redis", spec={"selector": {"app": "redis"}, "ports": [{"port": 6379}]})
        )
    try:
        with own(scene, "limited"), scene.added(*made), scene.added(_global(cluster or name)):
            time.sleep(1.0)
            yield
    finally:
        if server is not None:
            server.stop(None)


def _without_redis() -> tuple[Any, int]:
    """A rate limit service that answers each question as the real one does when Redis is away."""
    import grpc

    class Broken(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            def answer(__: bytes, context: Any) -> bytes:
                context.abort(grpc.StatusCode.UNKNOWN, "redis error: dial tcp: connection refused")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Broken(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, int(port)


on_service(
    "rate limit service's cluster does not exist",
    {"limit-service-cluster"},
    lambda s: _limit_service(s, cluster="rate_limit_cluster"),
)
on_service("rate limit service down, requests pass", {"limit-service-down"}, _limit_service)
on_service(
    "rate limit service without Redis",
    {"limit-redis"},
    lambda s: _limit_service(s, redis=True),
    replaced="the rate limit service is a stand-in that answers as the real one does without Redis",
)


# -- tree 6: share ---------------------------------------------------------------------------------


def dns(scene: Scene) -> Answer:
    """What resolvers answer now, as (share of Istio in percent) in the text."""
    weights = scene.context.shifter().read()
    texts = {h: w.istio_percent for h, w in weights.hosts.items()}
    return Answer(200, json.dumps(texts), 0.0)


def _route53(scene: Scene) -> Any:
    return boto3.client(
        "route53",
        endpoint_url=scene.state["route53_url"],
        region_name="us-east-1",
        aws_access_key_id="lab",
        aws_secret_access_key="lab",  # noqa: S106 - the lab's Route 53 takes any
    )


@contextlib.contextmanager
def _weights(scene: Scene, hosts: dict[str, int]) -> Iterator[None]:
    """Weighted records as the migration makes them, then *hosts* changed by somebody."""
    shifter = scene.context.shifter()
    snapshot = shifter.snapshot()
    for plan in (shifter.prepare_plan(), shifter.plan(0)):
        if not plan.empty:
            shifter.confirm(shifter.set(plan))
    client = _route53(scene)
    zone = client.list_hosted_zones()["HostedZones"][0]["Id"]
    records = client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    try:
        changes = [
            {
                "Action": "UPSERT",
                "ResourceRecordSet": {
                    **record,
                    "Weight": hosts[record["Name"].rstrip(".")]
                    if record["SetIdentifier"] == "istio"
                    else 100 - hosts[record["Name"].rstrip(".")],
                },
            }
            for record in records
            if record.get("SetIdentifier") and record["Name"].rstrip(".") in hosts
        ]
        client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": changes})
        time.sleep(1.0)
        yield
    finally:
        plan = scene.context.shifter().restore_plan(snapshot)
        if not plan.empty:
            shifter.confirm(shifter.set(plan))


@fault("share", "somebody changed all DNS weights", {"share-weights"}, dns, lambda a: "50" in a.text)
def weights_changed(scene: Scene) -> Any:
    return _weights(scene, dict.fromkeys(topology.HOSTS, 50))


@fault(
    "share", "somebody changed one host's DNS weight", {"share-hosts-differ"}, dns, lambda a: "25" in a.text
)
def weights_differ(scene: Scene) -> Any:
    return _weights(scene, {topology.HOST_API: 25})


# -- tree 6: metrics -------------------------------------------------------------------------------


def query(scene: Scene, text: str = "sum(apisix_http_status)") -> Answer:
    try:
        url = f"{scene.state['prometheus_url']}/api/v1/query"
        answer = httpx.get(url, params={"query": text}, timeout=2.0, trust_env=False)
    except httpx.HTTPError as error:
        return Answer(0, type(error).__name__, 2.0)
    series = answer.json()["data"]["result"]
    return Answer(200 if series else 204, str(series)[:80], 0.0)


@contextlib.contextmanager
def _stopped(scene: Scene, part: str) -> Iterator[None]:
    process = scene.process(part)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        time.sleep(2.0)


@fault("no-metrics", "Prometheus does not answer", {"metrics-unreachable"}, query, is_code(0))
def prometheus_down(scene: Scene) -> Any:
    return _stopped(scene, "prometheus")


@fault(
    "no-metrics",
    "the gateway cannot be scraped",
    {"metrics-target-down"},
    lambda s: query(s, 'up{job="istio-ingressgateway"} == 0'),
    is_code(200),
    settle=3.0,  # one failed scrape is not yet a target that is down
    options={"alone": True},
)
def not_scraped(scene: Scene) -> Any:
    return _stopped(scene, "gateway-envoy")


@fault(
    "no-metrics",
    "the selector in the params matches nothing",
    {"metrics-selector"},
    lambda s: query(s, f"sum(istio_requests_total{{{s.context.params.metrics.istio_selector}}})"),
    is_code(204),
)
@contextlib.contextmanager
def wrong_selector(scene: Scene) -> Iterator[None]:
    # The fault before stopped the gateway: until it is scraped again no selector matches anything.
    steady = "count_over_time(istio_requests_total[5s]) >= 4"
    counted = scene.until(lambda: query(scene, steady), is_code(200), 30.0)
    assert counted.code == 200, "the gateway's requests are not counted"
    before = scene.context.params
    metrics = before.metrics.model_copy(update={"istio_selector": 'reporter="destination"'})
    scene.context.params = before.model_copy(update={"metrics": metrics})
    try:
        yield
    finally:
        scene.context.params = before


# -- tree 6: webhook, parity, stuck ----------------------------------------------------------------


def change_config(scene: Scene) -> Answer:
    """An operator applies a good VirtualService."""
    from gateshift.cluster.client import ApiError
    from gateshift.errors import ClusterError

    begun = time.monotonic()
    try:
        scene.cluster.apply(scene.route("probe", {"host": fqdn("catalog-service")}, "/"), dry_run=True)
    except (ApiError, ClusterError) as error:
        return Answer(500, str(error)[:120], time.monotonic() - begun)
    return Answer(200, "accepted", time.monotonic() - begun)


def _istio_webhook(scene: Scene) -> dict[str, Any]:
    """The one that judges objects without a revision label: Istio has another for labelled ones."""
    found = [
        c
        for c in scene.cluster.list("ValidatingWebhookConfiguration")
        if any("istiod" in json.dumps(h.get("clientConfig", {})) for h in c["webhooks"])
    ]
    return max(found, key=lambda c: "default-validator" in c["metadata"]["name"])


@fault(
    "webhook",
    "istiod stands still: the webhook does not answer",
    {"webhook-silent"},
    change_config,
    is_code(500),
    options={"alone": True},
)
def webhook_hangs(scene: Scene) -> Any:
    return _stopped_istiod(scene)


@contextlib.contextmanager
def _stopped_istiod(scene: Scene) -> Iterator[None]:
    import psutil

    wrapper = scene.process("istiod")
    found = [
        p
        for p in [wrapper, *psutil.Process(wrapper.pid).children(recursive=True)]
        if p.name() == "pilot-discovery"
    ]
    found[0].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        found[0].send_signal(signal.SIGCONT)


@fault(
    "webhook",
    "a webhook whose Service is gone refuses everything",
    {"webhook-service"},
    change_config,
    is_code(500),
    options={"alone": True},
)
def webhook_gone(scene: Scene) -> Any:
    hook = copy.deepcopy(_istio_webhook(scene))
    rules = [
        {"apiGroups": ["networking.istio.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}
    ]
    return scene.added(
        {
            "apiVersion": hook["apiVersion"],
            "kind": hook["kind"],
            "metadata": {"name": "policy-gone"},
            "webhooks": [
                {
                    "name": "policy.gone.example.com",
                    "clientConfig": {"service": {"name": "gone", "namespace": "policy", "path": "/"}},
                    "rules": rules,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                    "failurePolicy": "Fail",
                    "timeoutSeconds": 2,
                }
            ],
        }
    )


@fault(
    "webhook",
    "the webhook is called at a port that istiod does not have",
    {"webhook-silent"},
    change_config,
    is_code(500),
    options={"alone": True},
)
def webhook_port(scene: Scene) -> Any:
    def wrong(config: dict[str, Any]) -> None:
        for hook in config["webhooks"]:
            hook["clientConfig"]["service"]["port"] = 16017

    return scene.changed(_istio_webhook(scene), wrong)


@fault(
    "parity",
    "an ALLOW policy on the gateway denies the rest",
    {"parity-rbac"},
    plain,
    is_code(403),
    host=API,
    path=ITEMS,
)
def allow_policy(scene: Scene) -> Any:
    return scene.added(
        obj(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "only-auth",
            HOME,
            spec={
                "selector": {"matchLabels": {"istio": "ingressgateway"}},
                "action": "ALLOW",
                "rules": [{"to": [{"operation": {"paths": ["/api/v1/auth/*"]}}]}],
            },
        )
    )


@fault(
    "parity",
    "Istio answers another status than APISIX",
    {"parity"},
    plain,
    is_code(410),
    host=API,
    path=ITEMS,
)
def other_status(scene: Scene) -> Any:
    def wrong(one: dict[str, Any]) -> None:
        gone = {"name": "gone", "match": [{"uri": {"prefix": ITEMS}}], "directResponse": {"status": 410}}
        one["spec"]["http"].insert(0, gone)

    return scene.changed(scene.virtual_service(), wrong)


def standing(scene: Scene) -> Answer:
    state = scene.context.state
    text = f"rolling back: {state.rolling_back}, pending: {state.pending!r}"
    return Answer(409 if state.rolling_back or state.pending else 200, text, 0.0)


@fault("stuck", "an apply died half-way", {"migration-intent"}, standing, is_code(409))
@contextlib.contextmanager
def apply_died(scene: Scene) -> Iterator[None]:
    journal = scene.context.journal
    _installed(scene)
    journal.append("apply.intent", snapshot="before.json")
    try:
        yield
    finally:
        journal.append("apply.done")


def _installed(scene: Scene) -> None:
    if scene.context.state.phase.value in {"opened", "preflighted"}:
        scene.context.journal.append("preflight.done", ok=True)
        scene.context.journal.append("install.intent")
        scene.context.journal.append("install.done")


@fault(
    "stuck",
    "somebody else holds the migration's Lease",
    {"migration-lease"},
    lambda s: lease(s),  # noqa: PLW0108 - defined below
    is_code(409),
)
def lease_held(scene: Scene) -> Any:
    from datetime import UTC, datetime

    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return scene.added(
        obj(
            "coordination.k8s.io/v1",
            "Lease",
            "gateshift",
            "kube-system",
            spec={
                "holderIdentity": "ci:GITHUB_RUN_ID=77 runner-3/4242/1/x",
                "leaseDurationSeconds": 60,
                "renewTime": now,
                "acquireTime": now,
            },
        )
    )


def lease(scene: Scene) -> Answer:
    found = scene.cluster.get("Lease", "gateshift", "kube-system")
    return Answer(409 if found else 200, "held" if found else "free", 0.0)


@fault("stuck", "a rollback began and did not finish", {"migration-rollback"}, standing, is_code(409))
@contextlib.contextmanager
def rollback_died(scene: Scene) -> Iterator[None]:
    scene.context.record_rollback("error rate 4 % over 1 %", 0)
    try:
        yield
    finally:
        scene.context.journal.append("rollback.shifted")
        scene.context.journal.append("rollback.done", checklist=[])
