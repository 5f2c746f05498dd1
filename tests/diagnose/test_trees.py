"""Trees 4 and 5 against an Envoy admin interface and an access log at the wire."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from gateshift import diagnose
from gateshift.diagnose.engine import PROBES
from gateshift.diagnose.engine import run as run_probes
from gateshift.metrics.sampler import Sampler
from gateshift.metrics.source import PrometheusSource
from gateshift.migration.state import State
from tests.diagnose.admin import Admin, config_dump, route, serve
from tests.diagnose.test_diagnose import OFFLINE, Context, _envoy_filter, healthy
from tests.metrics.prometheus import Responder
from tests.metrics.prometheus import serve as serve_prometheus
from tests.served import served

CLUSTER = "outbound|80||cart.shop.svc.cluster.local"
_LOCAL = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
FULL = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}


def log(count: int, **fields: Any) -> str:
    line = {
        "start_time": datetime.now(UTC).isoformat(),
        "authority": "a.com",
        "path": "/",
        "response_code": 200,
        "response_code_details": "via_upstream",
        "upstream_cluster": CLUSTER,
        "upstream_host": "10.0.0.1:80",
        "duration": 5,
        "upstream_service_time": "4",
        **fields,
    }
    return f"{json.dumps(line)}\n" * count


def ask(symptom: str, tmp_path: Path, admin: Admin, logs: str, **more: Any) -> tuple[diagnose.Cause, ...]:
    objects = [*healthy(), *more.pop("objects", [])]
    with serve(admin, tmp_path) as kubectl:
        context = Context(objects)
        istio = context.params.istio.model_copy(update={"kubectl": kubectl})
        context.params = context.params.model_copy(update={"istio": istio})
        context.cluster.logs = logs
        return run_probes(symptom, context, probes=OFFLINE, **more)


def counters(**values: tuple[int, int]) -> list[str]:
    return ["".join(f"cluster.{CLUSTER};.{k}: {pair[n]}\n" for k, pair in values.items()) for n in (0, 1)]


def admin(**values: tuple[int, int]) -> Admin:
    found = Admin(config_dump({"a.com": [route("all", "shop/vs", {"prefix": "/"})]}))
    assert found.config is not None
    found.config["configs"][2]["dynamic_active_clusters"] = [{"cluster": {"name": CLUSTER}}]
    found.stats = counters(**values) or [""]
    return found


@pytest.mark.parametrize(
    ("values", "logs", "code"),
    [
        (
            {"upstream_cx_overflow": (3, 9)},
            log(20, duration=3000, upstream_service_time="2900"),
            "pool-waiting",
        ),
        ({"upstream_rq_retry": (0, 30), "upstream_rq_total": (0, 40)}, log(20), "retries-amplify"),
        (
            {"upstream_cx_overflow": (9, 9)},
            log(20, duration=3000, upstream_service_time="20"),
            "slow-in-gateway",
        ),
        (
            {},
            log(20, duration=3000, upstream_service_time="2990")
            + log(20, upstream_host="10.0.0.2:80", duration=9, upstream_service_time="8"),
            "slow-endpoint",
        ),
    ],
    ids=["pool", "retries", "gateway", "endpoint"],  # the logs hold the present time, which no name may
)
def test_where_the_time_goes(
    tmp_path: Path, values: dict[str, tuple[int, int]], logs: str, code: str
) -> None:
    assert ask("latency", tmp_path, admin(**values), logs)[0].code == code


def test_threads_that_stand_still_matter_when_requests_are_slow(tmp_path: Path) -> None:
    for duration, level in ((3000, "error"), (5, "warning")):
        one = admin()
        one.stats = ["server.worker_0.watchdog_miss: 1\n", "server.worker_0.watchdog_miss: 2\n"]
        causes = ask("latency", tmp_path, one, log(20, duration=duration, upstream_service_time="4"))
        assert [c.level for c in causes if c.code == "cpu-starved"] == [level]


def limited(**config: Any) -> dict[str, Any]:
    full = {
        "@type": _LOCAL,
        "stat_prefix": "x",
        "token_bucket": {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "1s"},
        "filter_enabled": FULL,
        "filter_enforced": FULL,
        **config,
    }
    name = "envoy.filters.http.local_ratelimit"
    one = route("all", "shop/vs", {"prefix": "/"})
    return {**one, "typed_per_filter_config": {name: full}}


@pytest.mark.parametrize(
    ("rule", "installed", "code"),
    [
        (limited(filter_enforced={}), True, "limit-percentage"),
        (limited(), False, "limit-no-filter"),
        (route("all", "shop/vs", {"prefix": "/"}), True, "limit-no-bucket"),
        (limited(token_bucket={"max_tokens": 10_000, "tokens_per_fill": 10_000}), True, "limit-too-high"),
        (limited(descriptors=[{"entries": [{"key": "user"}]}]), True, "limit-descriptors"),
    ],
)
def test_limit_as_envoy_has_it(tmp_path: Path, rule: dict[str, Any], installed: bool, code: str) -> None:
    filters = [{"name": "envoy.filters.http.local_ratelimit", "typed_config": {"@type": _LOCAL}}]
    dump = config_dump({"a.com": [rule]}, filters=filters if installed else [])
    causes = ask(
        "rate-limit", tmp_path, Admin(dump), log(30), objects=[_envoy_filter()], host="a.com", path="/"
    )
    assert causes[0].code == code


def test_rollback_without_a_telling_reason_asks_all_trees_but_its_own(tmp_path: Path) -> None:
    causes = diagnose.explain_rollback("asked by the operator", Context(healthy()))
    assert not [c for c in causes if c.symptom in {"stuck", "lint"}]
    assert "the cause" not in diagnose.sentence(causes)


def test_envoy_that_does_not_answer_is_told_although_its_pod_counts_as_ready(tmp_path: Path) -> None:
    silent = admin()
    silent.config = None  # the stand-in breaks the connection, as a port-forward to an ended Envoy does
    causes = ask("gateway", tmp_path, silent, "")
    crash = next(c for c in causes if c.code == "gateway-crash")
    assert crash.level == "error"
    assert "still counts as ready" in crash.evidence


@pytest.mark.parametrize(("ends", "found"), [(-60, 1), (3600, 0)])
def test_the_gateways_own_certificate(tmp_path: Path, ends: int, found: int) -> None:
    """As Envoy's /certs tells it; the lab's istiod issues for 24 hours and cannot be made to expire one."""
    end = (datetime.now(UTC) + timedelta(seconds=ends)).strftime("%Y-%m-%dT%H:%M:%SZ")
    gateway = "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"
    one = admin()
    chain = {"subject_alt_names": [{"uri": gateway}], "expiration_time": end, "days_until_expiration": "0"}
    one.certificates = [{"ca_cert": [], "cert_chain": [chain]}]
    causes = [c for c in ask("503", tmp_path, one, "") if c.code == "sidecar-certificate"]
    assert len(causes) == found
    assert all(c.level == "error" and gateway in c.evidence for c in causes)


@pytest.mark.parametrize(("active", "found"), [((30, 2, 2), 1), ((12, 11, 11), 0), ((9, 1, 1), 0)])
def test_an_endpoint_that_takes_most_of_the_load(tmp_path: Path, active: tuple[int, ...], found: int) -> None:
    hosts = [
        {
            "address": {"socket_address": {"address": f"10.0.0.{n}", "port_value": 80}},
            "health_status": {"eds_health_status": "HEALTHY"},
            "stats": [{"name": "rq_active", "value": str(value)}],
        }
        for n, value in enumerate(active, 1)
    ]
    one = admin()
    one.clusters = {"cluster_statuses": [{"name": CLUSTER, "host_statuses": hosts}]}
    causes = [c for c in ask("latency", tmp_path, one, "") if c.code == "hot-endpoint"]
    assert len(causes) == found
    assert all("10.0.0.1:80 has 30 of 34 requests in flight" in c.evidence for c in causes)


class DownTarget(BaseHTTPRequestHandler):
    """A Prometheus that cannot scrape the gateway and knows nothing else."""

    def do_GET(self) -> None:
        """Answer any query; only ``up == 0`` has a series."""
        asked = self.path + self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        down = {"metric": {"job": "istio-ingressgateway", "instance": "pod"}, "value": [time.time(), "0"]}
        text = unquote_plus(asked)
        found = [down] if "up == 0" in text or "max_over_time(up[" in text else []
        data = {"resultType": "vector", "result": found}
        body = json.dumps({"status": "success", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - named by http.server

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("dead", "first"), [(True, "gateway-crash"), (False, "metrics-target-down")])
def test_figures_that_ended_with_their_gateway(tmp_path: Path, dead: bool, first: str) -> None:
    """Prometheus is named only where the gateway itself is alive."""
    envoy = admin()
    if dead:
        envoy.config = None
    with serve(envoy, tmp_path) as kubectl, served(DownTarget) as prometheus:
        context = Context(healthy())
        istio = context.params.istio.model_copy(update={"kubectl": kubectl})
        metrics = context.params.metrics.model_copy(update={"url": prometheus})
        context.params = context.params.model_copy(update={"istio": istio, "metrics": metrics})
        context.source = PrometheusSource(metrics)
        reason = "no figures of the new gateway (Istio) for 21 s: scrape gap"
        causes = diagnose.explain_rollback(reason, context)
    codes = [c.code for c in causes]
    assert codes[0] == first
    assert "metrics-target-down" in codes


def ask_metrics(answer: Responder, **given: Any) -> tuple[diagnose.Cause, ...]:
    """What the probe of the metrics finds by a Prometheus that answers so."""
    with serve_prometheus() as prometheus:
        prometheus.responder = answer
        context = Context(healthy())
        metrics = context.params.metrics.model_copy(update={"url": prometheus.url, **given})
        context.params = context.params.model_copy(update={"metrics": metrics})
        context.source = PrometheusSource(metrics)
        context.sampler = Sampler(context.source, metrics)
        context.state = State()
        probe = next(p for p in PROBES if p.name == "metrics")
        return run_probes("no-metrics", context, probes=[probe])


@pytest.mark.parametrize(("lasting", "level"), [(True, "error"), (False, "warning")])
def test_one_scrape_that_failed_is_a_hint_and_no_target_that_is_down(lasting: bool, level: str) -> None:
    def answer(query: str, at: float) -> object:
        down = query == "up == 0" or (lasting and query.startswith("max_over_time(up["))
        labels = {"job": "istio-ingressgateway-envoy", "instance": "gateway"}
        return [{"metric": labels, "value": [at, "0"]}] if down else []

    assert [str(c.level) for c in ask_metrics(answer) if c.code == "metrics-target-down"] == [level]


@pytest.mark.parametrize(
    ("now", "lately", "selected", "codes"),
    [
        # A new gateway that nobody is sent to has counted nothing yet.
        (0, 0, 0, []),
        # Its target answers, but what it answers lacks the series since a while.
        (0, 12, 0, ["metrics-missing"]),
        (12, 12, 0, ["metrics-selector"]),
    ],
)
def test_series_that_ended_are_told_from_those_that_never_were(
    now: int, lately: int, selected: int, codes: list[str]
) -> None:
    def answer(query: str, at: float) -> object:
        if query == "count(istio_requests_total)":
            count = now
        elif query == "count(last_over_time(istio_requests_total[15m]))":
            count = lately
        elif query.startswith("count(istio_requests_total{"):
            count = selected
        elif "apisix_http_status" in query:
            value = str(at) if "timestamp(" in query else "9"
            return [{"metric": {"job": "a", "instance": "a", "code": "200"}, "value": [at, value]}]
        else:
            return []
        return [{"metric": {}, "value": [at, str(count)]}] if count else []

    assert [c.code for c in ask_metrics(answer, istio_selector='job="gateway"')] == codes
