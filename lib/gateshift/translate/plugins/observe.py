"""Metrics, request ids, tracing and access logs: objects for the whole gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateshift.istio.builders import build
from gateshift.translate.plugins.envoy import on_gateway
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


def _telemetry(use: Use, name: str, part: Mapping[str, Any]) -> bool:
    """Emit one Telemetry object of the gateway; False when another route asked for other settings."""
    job = use.job
    job.source(name, f"{use.owner.kind}/{use.owner.id}")
    spec = {"selector": {"matchLabels": dict(job.target.gateway_selector)}, **part}
    known = [one for one in job.extra.get("telemetry.yaml", []) if one["metadata"]["name"] == name]
    if known and known[0]["spec"] != spec:
        return False
    job.extra["telemetry.yaml"] = [
        *(one for one in job.extra.get("telemetry.yaml", []) if one["metadata"]["name"] != name),
        build(job.version, "Telemetry", name, job.target.gateway_namespace, spec, job.sources[name]),
    ]
    return True


@handles("prometheus")
def prometheus(use: Use) -> None:
    """Istio's standard metrics; the Telemetry object is only needed where the mesh has no default."""
    note = "metric names change (istio_requests_total, reporter=source): dashboards and alerts must follow"
    use.approximate(target="Telemetry metrics", note=note)
    use.none("prefer_name", note="the route's name is not a label of Istio's metrics")
    if use.job.params.emit_metrics_telemetry:
        _telemetry(use, "gateshift-metrics", {"metrics": [{"providers": [{"name": "prometheus"}]}]})


def _share(use: Use) -> float:
    """Return the sampling share in percent. APISIX samples nothing by opentelemetry's default."""
    config = use.config
    if use.name != "opentelemetry":
        return float(config.get("sample_ratio", 1)) * 100
    raw = config.get("sampler")
    sampler: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    options = sampler.get("options")
    options = options if isinstance(options, Mapping) else {}
    name = str(sampler.get("name", "always_off"))
    if name == "parent_base":
        root = options.get("root")
        root = root if isinstance(root, Mapping) else {}
        name, options = str(root.get("name", "always_off")), root.get("options") or {}
    if name == "trace_id_ratio":
        return float(options.get("fraction", 0)) * 100
    return 100.0 if name == "always_on" else 0.0


def _collector(use: Use) -> str:
    """Say where the provider of MeshConfig has to send to, as far as the configuration tells.

    Without ``timeout`` Envoy refuses the whole listener (seen with Istio 1.31).
    """
    if use.name == "zipkin" and use.config.get("endpoint"):
        parts = urlsplit(str(use.config["endpoint"]))
        return f"zipkin: {{service: {parts.hostname}, port: {parts.port or 9411}, path: {parts.path or '/'}}}"
    if use.name == "skywalking":
        return "skywalking: {service: <OAP>, port: 11800} (gRPC; APISIX used HTTP 12800)"
    return "opentelemetry: {service: <collector>, port: 4318, http: {path: /v1/traces, timeout: 3s}}"


@handles("opentelemetry", "zipkin", "skywalking")
def tracing(use: Use) -> None:
    """Trace by a Telemetry object; its provider has to stand in MeshConfig first."""
    provider = use.job.params.tracing_provider or f"gateshift-{use.name}"
    share = round(_share(use), 4)
    spans: dict[str, Any] = {"providers": [{"name": provider}], "randomSamplingPercentage": share}
    headers = use.config.get("additional_header_prefix_attributes") if use.name == "opentelemetry" else None
    names = [str(one) for one in headers or () if not str(one).endswith("*")]
    if names:
        spans["customTags"] = {name: {"header": {"name": name.lower()}} for name in sorted(names)}
    target = "Telemetry tracing"
    if not _telemetry(use, "gateshift-tracing", {"tracing": [spans]}):
        use.job.warn(
            f"{use.owner.kind}/{use.owner.id}: another route's tracing settings hold for the gateway"
        )
    note = "it holds for the whole gateway, not for one route"
    use.approximate(target=target, note=note)
    use.approximate("endpoint", "sampler", "sample_ratio", target=target, note=note)
    use.none("server_addr", "span_version", "set_ngx_var", note="Envoy has no such setting")
    use.none("report_interval", "service_instance_name", note="Envoy has no such setting")
    wild = "only whole header names become tags"
    use.approximate("additional_header_prefix_attributes", target=target, note=wild)
    use.none("additional_attributes", note="Envoy reads no variables into spans")
    use.job.warn(
        f"tracing goes to the provider {provider}: define it under meshConfig.extensionProviders "
        f"({_collector(use)}), with a ServiceEntry when it stands outside the cluster"
    )


@handles("request-id")
def request_id(use: Use) -> None:
    """Envoy makes the id and keeps one that the client sent; it goes back where APISIX sends it back."""
    name = str(use.config.get("header_name", "X-Request-Id")).lower()
    if name != "x-request-id":
        use.draft.headers("request", "set")[name] = header_value(use, "$request_id")
    else:
        on_gateway(use, "request-id", {"preserve_external_request_id": True})
    if use.config.get("include_in_response", True):
        use.draft.headers("response", "set")[name] = header_value(use, "$request_id")
    kept = "Envoy always writes UUIDs; x-request-id from clients is kept on every route of the gateway"
    use.approximate(target="VirtualService http[].headers", note=kept)
    use.exact("include_in_response", target="VirtualService http[].headers")
    other = "" if name == "x-request-id" else f"an id that the client sent as {name} is replaced"
    use.approximate("header_name", target="VirtualService http[].headers", note=other)
    use.approximate("algorithm", "nanoid", "snowflake", "range_id", note="Envoy's ids are UUIDs")


@handles(*_LOGGERS)
def logger(use: Use) -> None:
    """Access logs leave the gateway on stdout; the cluster's collector sends them on."""
    _telemetry(use, "gateshift-access-log", {"accessLogging": [{"providers": [{"name": "envoy"}]}]})
    target = "Telemetry accessLogging"
    note = "every route of the gateway is logged; the fields are those of meshConfig.accessLogFormat"
    if use.name == "file-logger":
        use.approximate(target=target, note=note)
        use.approximate("path", target=target, note="the log goes to stdout, not to a file in the pod")
        use.approximate("log_format", target=target, note="set the same fields in meshConfig.accessLogFormat")
    else:
        send = "let the cluster's collector read the gateway's stdout and send it to the same place"
        use.manual(target=target, note=f"{send}; {note}")
    for key in ("include_req_body", "include_resp_body"):
        if use.config.get(key):
            use.none(key, f"{key}_expr", note="bodies are not logged")
    use.job.warn(
        f"{use.name}: access logs go to the gateway's stdout; send them on with the cluster's collector"
    )
