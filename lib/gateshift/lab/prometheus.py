"""Prometheus of the lab: scrapes both gateways every second and gives the metrics their real names.

Upstream Envoy has no ``istio.stats`` filter. The node agent adds Envoy's stats access logger instead, which
counts every finished request, also those that never reached a backend (404, 401, 429). Its series arrive as
``envoy_istio_requests_total`` with the tag ``upstream_cluster``; the rules below rename them and derive the
destination labels from it, as Istio writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import yaml

from gateshift.lab.controlplane import Layout

__all__ = ["TARGETS", "command", "ready", "write_config"]

TARGETS = "scraped"
"""Folder below the lab's, where a sidecar that starts says how Prometheus reaches it."""

_CLUSTER = r"outbound\|(\d+)\|([^|]*)\|(([^.|]+)\.([^.|]+)\.svc\.cluster\.local);?"


def _relabel(source: str, regex: str, target: str, replacement: str) -> dict[str, Any]:
    return {"source_labels": [source], "regex": regex, "target_label": target, "replacement": replacement}


def _renaming() -> list[dict[str, Any]]:
    unknown = [
        {
            "target_label": label,
            "replacement": "unknown",
            "source_labels": ["__name__"],
            "regex": "envoy_istio_.*",
        }
        for label in (
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "destination_version",
            "destination_workload",
            "destination_workload_namespace",
            "destination_app",
        )
    ]
    known = [
        _relabel("upstream_cluster", _CLUSTER, label, replacement)
        for label, replacement in (
            ("destination_service", "$3"),
            ("destination_service_name", "$4"),
            ("destination_service_namespace", "$5"),
            ("destination_workload", "$4"),
            ("destination_workload_namespace", "$5"),
            ("destination_app", "$4"),
        )
    ]
    # Istio says http or grpc, Envoy's operator says HTTP/1.1 or HTTP/2.
    protocols = [
        _relabel("request_protocol", "HTTP/.*", "request_protocol", "http"),
        _relabel("grpc_response_status", ".+", "request_protocol", "grpc"),
    ]
    subset = _relabel("upstream_cluster", r"outbound\|\d+\|([^|]+)\|.*", "destination_version", "$1")
    rename = _relabel("__name__", "envoy_(istio_.*)", "__name__", "$1")
    return [
        *unknown,
        *known,
        *protocols,
        subset,
        rename,
        {"action": "labeldrop", "regex": "upstream_cluster"},
    ]


def _sidecars() -> list[dict[str, Any]]:
    """Return how a sidecar's series become Istio's: the caller is who its certificate names."""
    caller = "spiffe://[^/]+/ns/([^/]+)/sa/(.+?)(?:-service-account)?"
    return [
        _relabel("__name__", "envoy_istio_.*", "source_workload", "unknown"),
        _relabel("__name__", "envoy_istio_.*", "source_workload_namespace", "unknown"),
        _relabel("source_principal", caller, "source_workload_namespace", "$1"),
        _relabel("source_principal", caller, "source_workload", "$2"),
        _relabel("source_principal", "-?", "source_principal", "unknown"),
        _relabel("__name__", "envoy_(istio_.*)", "__name__", "$1"),
    ]


def write_config(layout: Layout) -> Path:
    """Write the scrape configuration: what each gateway is called there is its job's name."""
    ports = layout.ports

    def target(port: str, instance: str) -> list[dict[str, Any]]:
        return [{"targets": [f"127.0.0.1:{ports[port]}"], "labels": {"instance": instance}}]

    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "istio-ingressgateway",
                "metrics_path": "/stats/prometheus",
                "params": {"filter": ["^istio"]},
                "static_configs": target("envoy_metrics", "istio-ingressgateway"),
                "metric_relabel_configs": _renaming(),
            },
            {
                # Everything else Envoy counts, for diagnosis; slower, because it is much more.
                "job_name": "istio-ingressgateway-envoy",
                "metrics_path": "/stats/prometheus",
                "params": {"usedonly": [""], "filter": ["^(cluster|http|listener|server)"]},
                "scrape_interval": "5s",
                "scrape_timeout": "4s",
                "static_configs": target("envoy_metrics", "istio-ingressgateway"),
            },
            {
                "job_name": "sidecars",
                "metrics_path": "/stats/prometheus",
                "params": {"filter": ["^istio"]},
                "file_sd_configs": [
                    {"files": [str(layout.folder / TARGETS / "*.json")], "refresh_interval": "1s"}
                ],
                "metric_relabel_configs": _sidecars(),
            },
            {
                "job_name": "istiod",
                "scrape_interval": "5s",
                "scrape_timeout": "4s",
                "static_configs": target("istiod_monitoring", "istiod"),
            },
            {
                "job_name": "apisix",
                "metrics_path": "/apisix/prometheus/metrics",
                "static_configs": target("apisix_metrics", "apisix"),
            },
        ],
    }
    path = layout.folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def command(layout: Layout, config: Path) -> list[str]:
    """Return Prometheus's command line."""
    return [
        layout.binaries["prometheus"],
        f"--config.file={config}",
        f"--storage.tsdb.path={layout.folder / 'prometheus'}",
        "--storage.tsdb.retention.time=2d",
        f"--web.listen-address=127.0.0.1:{layout.ports['prometheus']}",
        "--log.level=warn",
    ]


def ready(layout: Layout) -> bool:
    """Tell whether Prometheus answers queries."""
    try:
        url = f"http://127.0.0.1:{layout.ports['prometheus']}/-/ready"
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
