"""APISIX's Prometheus metrics, under its names and labels (apisix/plugins/prometheus/exporter.lua).

The Prometheus client library cannot be used here: it insists on ``_total`` at the end of a counter's name,
and APISIX's ``apisix_http_status`` has none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BUCKETS", "Connections", "Metrics"]

BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000)
"""Upper limits of the latency histogram in milliseconds (APISIX's DEFAULT_BUCKETS)."""

_STATUS = ("code", "route", "matched_uri", "matched_host", "service", "consumer", "node")
_FLOW = ("type", "route", "service", "consumer", "node")


@dataclass(slots=True)
class Connections:
    """nginx's connection counters."""

    active: int = 0
    accepted: int = 0
    reading: int = 0
    writing: int = 0


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True))


class Metrics:
    """Counts of the gateway since its start."""

    def __init__(self) -> None:
        self.connections = Connections()
        self.requests = 0
        self._status: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._bandwidth: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._latency: defaultdict[tuple[str, ...], _Histogram] = defaultdict(_Histogram)

    def log(
        self,
        *,
        code: int,
        route: str,
        matched_uri: str,
        matched_host: str,
        service: str,
        consumer: str,
        node: str,
        total_ms: float,
        upstream_ms: float | None,
        received: int,
        sent: int,
    ) -> None:
        """Count one finished request; *upstream_ms* is None when no upstream was asked."""
        self._status[str(code), route, matched_uri, matched_host, service, consumer, node] += 1
        rest = (route, service, consumer, node)
        self._observe(("request", *rest), total_ms)
        own = total_ms
        if upstream_ms is not None:
            self._observe(("upstream", *rest), upstream_ms)
            own = max(total_ms - upstream_ms, 0.0)
        self._observe(("apisix", *rest), own)
        self._bandwidth["ingress", *rest] += received
        self._bandwidth["egress", *rest] += sent

    def _observe(self, labels: tuple[str, ...], value: float) -> None:
        histogram = self._latency[labels]
        histogram.counts[bisect_left(BUCKETS, value)] += 1
        histogram.total += value

    def render(self) -> bytes:
        """The text exposition."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _lines(self) -> Iterator[str]:
        yield "# HELP apisix_bandwidth Total bandwidth in bytes consumed per service in APISIX"
        yield "# TYPE apisix_bandwidth counter"
        for labels, count in self._bandwidth.items():
            yield f"apisix_bandwidth{{{_labels(_FLOW, labels)}}} {count}"
        yield "# HELP apisix_http_latency HTTP request latency in milliseconds per service in APISIX"
        yield "# TYPE apisix_http_latency histogram"
        for labels, histogram in self._latency.items():
            text = _labels(_FLOW, labels)
            seen = 0
            for limit, count in zip((*BUCKETS, "+Inf"), histogram.counts, strict=True):
                seen += count
                yield f'apisix_http_latency_bucket{{{text},le="{limit}"}} {seen}'
            yield f"apisix_http_latency_count{{{text}}} {seen}"
            yield f"apisix_http_latency_sum{{{text}}} {histogram.total:.3f}"
        yield "# HELP apisix_http_requests_total The total number of client requests since APISIX started"
        yield "# TYPE apisix_http_requests_total gauge"
        yield f"apisix_http_requests_total {self.requests}"
        yield "# HELP apisix_http_status HTTP status codes per service in APISIX"
        yield "# TYPE apisix_http_status counter"
        for labels, count in self._status.items():
            yield f"apisix_http_status{{{_labels(_STATUS, labels)}}} {count}"
        yield "# HELP apisix_nginx_http_current_connections Number of HTTP connections"
        yield "# TYPE apisix_nginx_http_current_connections gauge"
        now = self.connections
        states = {
            "accepted": now.accepted,
            "active": now.active,
            "handled": now.accepted,
            "reading": now.reading,
            "waiting": max(now.active - now.writing, 0),
            "writing": now.writing,
        }
        for state, count in states.items():
            yield f'apisix_nginx_http_current_connections{{state="{state}"}} {count}'
        yield "# HELP apisix_node_info Info of APISIX node"
        yield "# TYPE apisix_node_info gauge"
        yield 'apisix_node_info{hostname="apisix-lab"} 1'
        yield "# HELP apisix_etcd_reachable Config server etcd reachable from APISIX, 0 is unreachable"
        yield "# TYPE apisix_etcd_reachable gauge"
        yield "apisix_etcd_reachable 1"
