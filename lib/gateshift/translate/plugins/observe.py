"""Metrics, tracing, request ids and logs."""

from __future__ import annotations

from gateshift.istio.builders import build
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.values import header_value

_LOGGERS = (
    "loki-logger",
    "elasticsearch-logger",
    "loggly",
    "http-logger",
    "splunk-hec-logging",
    "skywalking-logger",
    "google-cloud-logging",
    "sls-logger",
    "tcp-logger",
    "kafka-logger",
    "rocketmq-logger",
    "syslog",
    "udp-logger",
    "file-logger",
    "clickhouse-logger",
    "tencent-cloud-cls",
)


@handles("prometheus")
def prometheus(use: Use) -> None:
    """Istio's standard metrics; the Telemetry object is only needed where the mesh has no default."""
    note = "metric names change (istio_requests_total, reporter=source): dashboards and alerts must follow"
    use.approximate(target="Telemetry metrics", note=note)
    use.none("prefer_name", note="the route's name is not a label of Istio's metrics")
    if use.job.params.emit_metrics_telemetry:
        job = use.job
        job.source("metrics", f"{use.owner.kind}/{use.owner.id}")
        spec = {
            "selector": {"matchLabels": dict(job.target.gateway_selector)},
            "metrics": [{"providers": [{"name": "prometheus"}]}],
        }
        namespace = job.target.gateway_namespace
        job.extra["telemetry.yaml"] = [
            *(
                one
                for one in job.extra.get("telemetry.yaml", [])
                if one["metadata"]["name"] != "gateshift-metrics"
            ),
            build(job.version, "Telemetry", "gateshift-metrics", namespace, spec, job.sources["metrics"]),
        ]


@handles("opentelemetry", "zipkin", "skywalking")
def tracing(use: Use) -> None:
    """Tracing is switched on for a whole gateway and needs a provider in MeshConfig first."""
    note = (
        "define the collector under meshConfig.extensionProviders, then a Telemetry object with the sampling "
        "share; it holds for the whole gateway, not for one route"
    )
    use.manual(target="Telemetry tracing", note=note)
    use.job.warn(f"{use.owner.kind}/{use.owner.id}: {use.name} is not emitted: {note}")


@handles("request-id")
def request_id(use: Use) -> None:
    """Envoy makes the id; it goes back to the client where APISIX sends it back."""
    name = str(use.config.get("header_name", "X-Request-Id")).lower()
    kept = "Envoy replaces an id that the client sent, and always writes UUIDs"
    if name != "x-request-id":
        use.draft.headers("request", "set")[name] = header_value("$request_id")
    if use.config.get("include_in_response", True):
        use.draft.headers("response", "set")[name] = header_value("$request_id")
    use.approximate(target="VirtualService http[].headers", note=kept)
    use.exact("header_name", "include_in_response", target="VirtualService http[].headers")
    use.approximate("algorithm", "nanoid", "snowflake", "range_id", note="Envoy's ids are UUIDs")


@handles(*_LOGGERS)
def logger(use: Use) -> None:
    """Access logs leave the gateway as JSON on stdout; a collector sends them on."""
    note = (
        "set meshConfig.accessLogFile and accessLogFormat, and let the cluster's collector send the log on; "
        "bodies are not logged"
    )
    use.manual(target="meshConfig accessLogFormat", note=note)
    use.job.warn(f"{use.owner.kind}/{use.owner.id}: {use.name} is not emitted: {note}")
