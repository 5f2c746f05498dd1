"""Every query gateshift asks, one frozen definition a row; nothing else builds PromQL.

The guide filters on ``reporter="destination"``, which is empty where the workloads have no sidecars: a
gateway reports as ``source``. The selector is therefore completed with the reporter that has data.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from types import MappingProxyType

__all__ = ["CATALOGUE", "Metric", "render"]

_ISTIO = "https://istio.io/latest/docs/reference/config/metrics/"
_APISIX = "https://apisix.apache.org/docs/apisix/plugins/prometheus/"
_ENVOY = "https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/stats"
_REPORTERS = ("source", "destination", "waypoint")


@dataclass(frozen=True, slots=True)
class Metric:
    """One query. ``$selector`` and ``$window`` are filled in by :func:`render`.

    ``gateway`` is istio or apisix, ``labels`` are those the query needs, ``reporters`` the values of the
    ``reporter`` label in order of preference (none for APISIX), ``source`` where the metric is documented.
    """

    name: str
    gateway: str
    title: str
    template: str
    unit: str
    labels: tuple[str, ...]
    source: str
    reporters: tuple[str, ...] = ()


def render(metric: Metric, *, selector: str = "", window: float = 60.0) -> str:
    """Return the PromQL of *metric*; *selector* is a list of matchers without braces, *window* seconds."""
    text = Template(metric.template).substitute(
        selector=selector.strip().strip("{}").strip().rstrip(","), window=f"{max(round(window * 1000), 1)}ms"
    )
    # The selector stands last in its braces; PromQL allows a comma after the last matcher but not alone.
    return text.replace("{,", "{").replace(",}", "}")


def _istio(name: str, title: str, template: str, unit: str, *labels: str) -> Metric:
    return Metric(name, "istio", title, template, unit, ("reporter", *labels), _ISTIO, _REPORTERS)


def _apisix(name: str, title: str, template: str, unit: str, *labels: str) -> Metric:
    return Metric(name, "apisix", title, template, unit, labels, _APISIX)


_RQ = "istio_requests_total"
_DURATION = "istio_request_duration_milliseconds_bucket"
_HTTP = "apisix_http_status"
_LATENCY = "apisix_http_latency_bucket"


def _quantiles() -> tuple[Metric, ...]:
    rows = []
    for q in (50, 90, 95, 99):
        rows.append(
            _istio(
                f"istio_p{q}",
                f"Istio gateway P{q} latency",
                f"histogram_quantile({q / 100:g}, sum by (le) (rate({_DURATION}{{$selector}}[$window])))",
                "ms",
                "le",
            )
        )
        rows.append(
            _apisix(
                f"apisix_p{q}",
                f"APISIX P{q} latency",
                f'histogram_quantile({q / 100:g}, sum by (le) (rate({_LATENCY}{{type="request",$selector}}'
                "[$window])))",
                "ms",
                "le",
                "type",
            )
        )
    return tuple(rows)


_ROWS = (
    # Raw counters by scraped process: what the judge differences itself, so that resets, gaps and first
    # appearances (an error code seen for the first time!) are its own knowledge and not extrapolated.
    _istio(
        "istio_requests_raw",
        "Requests counted by each Istio gateway pod",
        f"sum by (job, instance, reporter, response_code) ({_RQ}{{$selector}})",
        "requests",
        "response_code",
        "instance",
    ),
    _istio(
        "istio_buckets_raw",
        "Latency histogram of each Istio gateway pod",
        f"sum by (job, instance, reporter, le) ({_DURATION}{{$selector}})",
        "requests",
        "le",
        "instance",
    ),
    _istio(
        "istio_scraped",
        "When each Istio gateway pod was last scraped",
        f"max by (job, instance) (timestamp({_RQ}{{$selector}}))",
        "unix seconds",
        "instance",
    ),
    _apisix(
        "apisix_requests_raw",
        "Requests counted by each APISIX pod",
        f"sum by (job, instance, code) ({_HTTP}{{$selector}})",
        "requests",
        "code",
        "instance",
    ),
    _apisix(
        "apisix_buckets_raw",
        "Latency histogram of each APISIX pod",
        f'sum by (job, instance, le) ({_LATENCY}{{type="request",$selector}})',
        "requests",
        "le",
        "type",
        "instance",
    ),
    _apisix(
        "apisix_scraped",
        "When each APISIX pod was last scraped",
        f"max by (job, instance) (timestamp({_HTTP}{{$selector}}))",
        "unix seconds",
        "instance",
    ),
    Metric(
        "target_up",
        "any",
        "Whether a target answered its last scrape",
        "max by (job, instance) (up{$selector})",
        "0 or 1",
        ("job", "instance"),
        "https://prometheus.io/docs/concepts/jobs_instances/",
    ),
    _istio(
        "istio_error_rate",
        "Istio gateway error rate (5xx)",
        f'100 * (sum(rate({_RQ}{{response_code=~"5..",$selector}}[$window])) or vector(0)) '
        f"/ sum(rate({_RQ}{{$selector}}[$window]))",
        "percent",
        "response_code",
    ),
    _apisix(
        "apisix_error_rate",
        "APISIX error rate (5xx)",
        f'100 * (sum(rate({_HTTP}{{code=~"5..",$selector}}[$window])) or vector(0)) '
        f"/ sum(rate({_HTTP}{{$selector}}[$window]))",
        "percent",
        "code",
    ),
    _istio(
        "istio_error_rate_by_service",
        "Istio error rate (5xx) by service",
        # "or 0 *": a service without a single error has no series of them, and would vanish from the panel.
        f'100 * (sum by (destination_service) (rate({_RQ}{{response_code=~"5..",$selector}}[$window])) '
        f"or 0 * sum by (destination_service) (rate({_RQ}{{$selector}}[$window]))) "
        f"/ sum by (destination_service) (rate({_RQ}{{$selector}}[$window]))",
        "percent",
        "response_code",
        "destination_service",
    ),
    _apisix(
        "apisix_error_rate_by_service",
        "APISIX error rate (5xx) by service",
        f'100 * (sum by (service) (rate({_HTTP}{{code=~"5..",$selector}}[$window])) '
        f"or 0 * sum by (service) (rate({_HTTP}{{$selector}}[$window]))) "
        f"/ sum by (service) (rate({_HTTP}{{$selector}}[$window]))",
        "percent",
        "code",
        "service",
    ),
    *_quantiles(),
    _istio("istio_request_rate", "Istio requests", f"sum(rate({_RQ}{{$selector}}[$window]))", "requests/s"),
    _apisix(
        "apisix_request_rate",
        "APISIX request rate",
        f"sum(rate({_HTTP}{{$selector}}[$window]))",
        "requests/s",
    ),
    _istio(
        "istio_throughput",
        "Istio gateway throughput, both directions",
        "sum(rate(istio_request_bytes_sum{$selector}[$window])) "
        "+ sum(rate(istio_response_bytes_sum{$selector}[$window]))",
        "bytes/s",
    ),
    _apisix(
        "apisix_throughput",
        "APISIX throughput, both directions",
        "sum(rate(apisix_bandwidth{$selector}[$window]))",
        "bytes/s",
        "type",
    ),
    _istio(
        "istio_availability",
        "Istio availability (answers other than 5xx)",
        f'100 * (sum(rate({_RQ}{{response_code!~"5..",$selector}}[$window])) or vector(0)) '
        f"/ sum(rate({_RQ}{{$selector}}[$window]))",
        "percent",
        "response_code",
    ),
    _apisix(
        "apisix_availability",
        "APISIX availability (answers other than 5xx)",
        f'100 * (sum(rate({_HTTP}{{code!~"5..",$selector}}[$window])) or vector(0)) '
        f"/ sum(rate({_HTTP}{{$selector}}[$window]))",
        "percent",
        "code",
    ),
    Metric(
        "istio_mtls_coverage",
        "istio",
        "Share of requests that arrived over mutual TLS",
        f'100 * (sum(rate({_RQ}{{connection_security_policy="mutual_tls",$selector}}[$window])) '
        "or vector(0)) "
        f"/ sum(rate({_RQ}{{$selector}}[$window]))",
        "percent",
        ("reporter", "connection_security_policy"),
        _ISTIO,
        # Only the receiving side knows how it was connected: source reports "unknown".
        ("destination", "waypoint"),
    ),
    Metric(
        "istio_connections",
        "istio",
        "Open downstream connections of the Istio gateway",
        'sum(envoy_http_downstream_cx_active{http_conn_manager_prefix=~"outbound_.*",$selector})',
        "connections",
        ("http_conn_manager_prefix",),
        _ENVOY,
    ),
    _apisix(
        "apisix_connections",
        "Open connections of APISIX",
        'sum(apisix_nginx_http_current_connections{state="active",$selector})',
        "connections",
        "state",
    ),
)

CATALOGUE = MappingProxyType({row.name: row for row in _ROWS})
"""All rows by name; read-only."""
