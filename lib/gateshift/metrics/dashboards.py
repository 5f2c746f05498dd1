"""Grafana dashboards generated from the catalogue: one query has one home. Pure; JSON out.

``python -m gateshift.metrics.dashboards DIR`` writes them. Canary and baseline stand in one panel, so that an
incident that both share is seen as one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateshift.metrics.catalogue import CATALOGUE, render

__all__ = ["OFFICIAL", "build", "write"]

OFFICIAL = {
    "Istio mesh": 7639,
    "Istio service": 7636,
    "Istio workload": 7630,
    "Istio performance": 11829,
}
"""Istio's own dashboards on grafana.com, by number."""

_UNITS = {"percent": "percent", "ms": "ms", "requests/s": "reqps", "bytes/s": "Bps", "connections": "short"}
_WINDOW = 60.0
_COLOURS = {"istio": "#0072B2", "apisix": "#E69F00"}

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Traffic comparison", "traffic", ("istio_request_rate", "apisix_request_rate")),
    ("Error rate (5xx)", "errors", ("istio_error_rate", "apisix_error_rate")),
    ("Latency P50", "latency", ("istio_p50", "apisix_p50")),
    ("Latency P95", "latency", ("istio_p95", "apisix_p95")),
    ("Latency P99", "latency", ("istio_p99", "apisix_p99")),
    ("Connections", "connections", ("istio_connections", "apisix_connections")),
    ("Throughput", "traffic", ("istio_throughput", "apisix_throughput")),
    ("Availability", "errors", ("istio_availability", "apisix_availability")),
    ("Error rate by service", "errors", ("istio_error_rate_by_service", "apisix_error_rate_by_service")),
    ("Requests over mutual TLS", "traffic", ("istio_mtls_coverage",)),
)
_BY_SERVICE = {"istio": "{{destination_service}}", "apisix": "{{service}}"}


def _target(name: str, number: int) -> dict[str, Any]:
    metric = CATALOGUE[name]
    gateway = "Istio (new)" if metric.gateway == "istio" else "APISIX (old)"
    by = f" {_BY_SERVICE[metric.gateway]}" if name.endswith("_by_service") else ""
    # Grafana fills in the variable; one reporter, since two of them would count every request twice.
    selector = "$envoy_selector" if metric.template.count("envoy_") else f"${metric.gateway}_selector"
    if metric.reporters:
        selector = f'reporter="{metric.reporters[0]}",{selector}'
    return {
        "refId": chr(ord("A") + number),
        "expr": render(metric, selector=selector, window=_WINDOW),
        "legendFormat": f"{gateway}{by}",
    }


def _colour(gateway: str, title: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byRegexp", "options": f"^{title}.*"},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": _COLOURS[gateway]}}],
    }


def _panel(number: int, title: str, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": "; ".join(f"{CATALOGUE[name].title}: {CATALOGUE[name].source}" for name in names),
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {
            # A gap stays a gap: drawing it as zero would show an outage as health.
            "defaults": {"unit": _UNITS[CATALOGUE[names[0]].unit], "custom": {"spanNulls": False}},
            "overrides": [_colour("istio", "Istio"), _colour("apisix", "APISIX")],
        },
        "targets": [_target(name, i) for i, name in enumerate(names)],
    }


def _variable(name: str, label: str, value: str) -> dict[str, Any]:
    option = {"text": value, "value": value, "selected": True}
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "query": value,
        "current": option,
        "options": [option],
    }


def _dashboard(uid: str, title: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "tags": ["gateshift"],
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "15s",
        "templating": {
            "list": [
                source,
                _variable("istio_selector", "Istio matchers", 'source_workload="istio-ingressgateway"'),
                # Envoy's own metrics lack Istio's labels; in a mesh name the gateway here, as in
                # pod=~"istio-ingressgateway-.*", or the sidecars' connections are added up as well.
                _variable("envoy_selector", "Envoy gateway matchers", 'job=~".+"'),
                _variable("apisix_selector", "APISIX matchers", 'job=~".+"'),
            ]
        },
        # `python -m gateshift.metrics.annotations ARCHIVE URL` writes them, one for each verdict.
        "annotations": {
            "list": [
                {
                    "name": "gateshift verdicts",
                    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
                    "enable": True,
                    "iconColor": "#D55E00",
                    "target": {"type": "tags", "tags": ["gateshift", "verdict"], "limit": 200},
                }
            ]
        },
        "links": [
            {
                "title": f"{name} ({number})",
                "type": "link",
                "url": f"https://grafana.com/grafana/dashboards/{number}",
                "targetBlank": True,
            }
            for name, number in OFFICIAL.items()
        ],
        "panels": panels,
    }


def build() -> Mapping[str, dict[str, Any]]:
    """Return all dashboards by file name."""
    canary = [_panel(i, title, names) for i, (title, _, names) in enumerate(_PANELS)]
    found = {"canary.json": _dashboard("gateshift-canary", "gateshift: APISIX to Istio", canary)}
    for topic, title in (
        ("traffic", "Gateway traffic comparison"),
        ("errors", "Error trend"),
        ("latency", "Latency distribution"),
        ("connections", "Connections"),
    ):
        chosen = [(name, names) for name, kind, names in _PANELS if kind == topic]
        panels = [_panel(i, name, names) for i, (name, names) in enumerate(chosen)]
        found[f"{topic}.json"] = _dashboard(f"gateshift-{topic}", f"gateshift: {title}", panels)
    return found


def write(folder: Path) -> None:
    """Write all dashboards into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dashboard in build().items():
        text = json.dumps(dashboard, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
