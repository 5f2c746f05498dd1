"""Health checks of upstreams: passive ones as outlier detection, active ones for Envoy itself.

Istio has no API for active checks. They travel in the traffic policy under :data:`CHECK`, so that two
upstreams that check one host in different ways get clusters of their own, and leave as one EnvoyFilter that
merges them into those clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Resource
from gateshift.translate.job import Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity
from gateshift.translate.secretive import looks_secret

__all__ = ["CHECK", "active_check", "check_filter", "outlier_detection"]

CHECK = "gateshift.activeCheck"
"""The key of a traffic policy that no DestinationRule has: it is taken out before one is written."""

_TARGET = "EnvoyFilter CLUSTER health_checks"
_HEALTHY = (200, 302)
_UNHEALTHY = (404, 429, 500, 501, 502, 503, 504, 505)
_LEAST, _PAST = 100, 600
"""Envoy knows statuses from 100 to 599."""
_TLS = ("https", "grpcs")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")
_FAILURES = {"http_failures": 5, "tcp_failures": 2, "timeouts": 3}


class _NoCheck(Exception):  # noqa: N818 - a verdict about one check, caught below
    """Envoy cannot make this check; says why."""


def active_check(
    job: Job, spec: Mapping[str, Any], owner: Resource, path: Path, nodes: Sequence[Any]
) -> dict[str, Any]:
    """Return the upstream's active check as Envoy's HealthCheck; empty where there is none or none can be.

    A check without ``host`` asks by the name of the cluster's own host, which :func:`check_filter` fills in.
    """
    checks = spec.get("checks")
    active = checks.get("active") if isinstance(checks, Mapping) else None
    if not isinstance(active, Mapping):
        return {}
    here = (*path, "checks", "active")
    try:
        found = _check(job, spec, active, nodes)
    except (TypeError, ValueError, ArithmeticError):
        job.mark(owner, here, Fidelity.MANUAL, "", "its options are not valid for APISIX: nothing is checked")
        job.warn(f"{owner.kind}/{owner.id}: its active health check has options that APISIX would refuse")
        return {}
    except _NoCheck as reason:
        note = f"{reason}: nothing is checked; give the pods a readiness probe instead"
        job.mark(owner, here, Fidelity.MANUAL, "Kubernetes readinessProbe", note)
        job.warn(f"{owner.kind}/{owner.id}: its active health check is not emitted: {reason}")
        return {}
    _account(job, spec, owner, here, found)
    return found


def _number(section: Mapping[str, Any], key: str, default: int) -> int:
    """Read a number. Raises ValueError or TypeError for what is none."""
    value = section.get(key)
    return default if value is None else int(value)


def _section(active: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = active.get(key)
    return value if isinstance(value, Mapping) else {}


def _statuses(section: Mapping[str, Any], default: Sequence[int]) -> set[int]:
    raw = section.get("http_statuses")
    return {int(one) for one in raw} if isinstance(raw, list | tuple) and raw else set(default)


def _ranges(statuses: Iterable[int]) -> list[dict[str, int]]:
    """Return Envoy's half-open ranges that hold exactly *statuses*."""
    found: list[dict[str, int]] = []
    for one in sorted(statuses):
        if found and found[-1]["end"] == one:
            found[-1]["end"] = one + 1
        else:
            found.append({"start": one, "end": one + 1})
    return found


def _limits(active: Mapping[str, Any]) -> dict[str, int]:
    """Return APISIX's limits of failures that this type of check can meet."""
    unhealthy = _section(active, "unhealthy")
    kinds = [one for one in _FAILURES if one != "http_failures" or active.get("type") != "tcp"]
    return {one: _number(unhealthy, one, _FAILURES[one]) for one in kinds}


def _headers(job: Job, active: Mapping[str, Any]) -> list[dict[str, Any]]:
    raw = active.get("req_headers") or ()
    if isinstance(raw, Mapping):
        pairs = [
            (str(name), str(one))
            for name, value in raw.items()
            for one in (value if isinstance(value, list | tuple) else [value])
        ]
    else:
        pairs = [tuple(map(str.strip, str(one).split(":", 1))) for one in raw]  # type: ignore[misc]
    found = []
    for pair in pairs:
        if len(pair) != 2:
            raise _NoCheck("a line of req_headers is no header")
        name, value = pair
        if looks_secret(name) and not job.params.inline_credentials:
            raise _NoCheck(f"its header {name} carries a credential, which would be readable in an object")
        header = {"key": name.lower(), "value": value.replace("%", "%%")}
        found.append({"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
    return found


def _host(spec: Mapping[str, Any], active: Mapping[str, Any], nodes: Sequence[Any]) -> str:
    """Return the Host header of APISIX's checks, as far as it is one for all nodes; empty where it is not."""
    if spec.get("pass_host") == "rewrite" and spec.get("upstream_host"):
        return str(spec["upstream_host"])
    names = {str(one.host) for one in nodes}
    name = names.pop() if len(names) == 1 else ""
    if name.replace(".", "").isdigit() or ":" in name:
        name = ""  # an address, and APISIX's check of an address asks by active.host
    if name and spec.get("pass_host") == "node":
        return name
    return str(active.get("host") or name)


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _check(
    job: Job, spec: Mapping[str, Any], active: Mapping[str, Any], nodes: Sequence[Any]
) -> dict[str, Any]:
    kind, scheme = str(active.get("type", "http")), str(spec.get("scheme", "http"))
    port = active.get("port")
    if port is not None and any(one.port != int(port) for one in nodes):
        raise _NoCheck("Envoy checks the port that it sends requests to, and active.port is another")
    if kind not in ("http", "https", "tcp"):
        raise _NoCheck(f"{kind} is no type of check")
    if kind != "tcp" and (kind == "https") != (scheme in _TLS):
        raise _NoCheck(f"Envoy checks as it sends requests ({scheme}), and the check is {kind}")
    healthy, unhealthy = _section(active, "healthy"), _section(active, "unhealthy")
    interval = _number(healthy, "interval", 1)
    successes, failures = _number(healthy, "successes", 2), min(_limits(active).values())
    timeout = float(active.get("timeout", 1))
    if min(interval, _number(unhealthy, "interval", 1), successes, failures) < 1 or timeout <= 0:
        raise _NoCheck("an interval, a limit or the timeout is zero, which switches off half of the check")
    found: dict[str, Any] = {
        "timeout": _seconds(timeout),
        "interval": _seconds(interval),
        "unhealthy_interval": _seconds(_number(unhealthy, "interval", 1)),
        # Envoy would wait 60 s between checks until the first request came.
        "no_traffic_interval": _seconds(_number(unhealthy, "interval", 1)),
        "no_traffic_healthy_interval": _seconds(interval),
        "healthy_threshold": successes,
        "unhealthy_threshold": failures,
        "reuse_connection": False,
    }
    if kind == "tcp":
        return found | {"tcp_health_check": {}}
    bad = _statuses(unhealthy, _UNHEALTHY) - _statuses(healthy, _HEALTHY)
    method = str(active.get("http_method", "GET"))
    if active.get("http_req_body") or method not in _METHODS:
        raise _NoCheck(f"it sends a body or the method {method}")
    request: dict[str, Any] = {
        "path": str(active.get("http_path", "/")),
        **({"method": method} if method != "GET" else {}),
        "expected_statuses": _ranges(set(range(_LEAST, _PAST)) - bad),
        # Without this a single one of them takes the endpoint out, whatever the threshold.
        "retriable_statuses": _ranges(bad),
    }
    host = _host(spec, active, nodes)
    if host:
        request["host"] = host
    headers = _headers(job, active)
    if headers:
        request["request_headers_to_add"] = headers
    if kind == "https":
        found["tls_options"] = {"alpn_protocols": ["http/1.1"]}
    return found | {"http_health_check": request}


_EVERY = (
    "each gateway pod checks each endpoint (each pod behind a Service, where APISIX knows the Service's one "
    "address), and an endpoint gets no request before its first check has passed"
)
_SUCCESSES = "exact but for new endpoints, which need one success"
_NO_STATUS = "a TCP check reads no status"
_NEITHER = "a status in neither list counts as success, where APISIX ignores it"


def _account(job: Job, spec: Mapping[str, Any], owner: Resource, here: Path, sent: Mapping[str, Any]) -> None:
    active: Mapping[str, Any] = spec["checks"]["active"]

    def mark(key: str, fidelity: Fidelity, field: str, note: str = "", section: str = "") -> None:
        place = (*here, section, key) if section else (*here, key)
        if key in (_section(active, section) if section else active):
            job.mark(owner, place, fidelity, f"{_TARGET}.{field}" if field else "", note)

    exact, near = Fidelity.EXACT, Fidelity.APPROXIMATE
    job.mark(owner, here, near, _TARGET, _EVERY)
    for section, known in _KNOWN.items():
        for key in _section(active, section) if section else active:
            if key not in known:
                place = (*here, section, key) if section else (*here, key)
                job.mark(owner, place, Fidelity.MANUAL, "", "no option of a check that gateshift knows")
    kind, http = str(active.get("type", "http")), "http_health_check"
    tls = "the check makes a TLS handshake as requests do, APISIX only connects"
    mark("type", near, "", f"{_EVERY}; {tls}" if kind == "tcp" and spec.get("scheme") in _TLS else _EVERY)
    mark("timeout", near, "timeout", "bounds the whole check, in APISIX each step of it")
    mark("concurrency", Fidelity.NONE, "", "Envoy checks all endpoints side by side")
    mark("port", exact, "", "the port of the nodes")
    mark("http_path", exact, f"{http}.path")
    mark("http_method", exact, f"{http}.method")
    mark("http_req_body", Fidelity.IGNORED_DEFAULT, "", "empty")
    mark("req_headers", near, f"{http}.request_headers_to_add", "Envoy adds its own User-Agent where none is")
    verify = "the certificate is not verified, as for requests"
    mark("https_verify_certificate", near if active.get("https_verify_certificate") else exact, "", verify)
    host = sent.get(http, {}).get("host")
    if kind == "tcp" or host != active.get("host"):
        mark("host", exact, "", "pass_host, or a check without Host header, makes it nothing, as in APISIX")
    else:
        note = "sent to every node; APISIX 3.18 itself prefers the name of a node that has one"
        mark("host", near, f"{http}.host", note)
    mark("interval", exact, "interval", section="healthy")
    mark("successes", near, "healthy_threshold", _SUCCESSES, section="healthy")
    mark("http_statuses", near, f"{http}.expected_statuses", _NEITHER, section="healthy")
    mark("interval", exact, "unhealthy_interval", section="unhealthy")
    mark("http_statuses", near, f"{http}.retriable_statuses", _NEITHER, section="unhealthy")
    limits = _limits(active)
    least = min(limits.values())
    note = f"Envoy counts failures of all kinds together: {least} in turn, the least of APISIX's limits"
    for key, limit in limits.items():
        alone = limit == least and len(set(limits.values())) == 1
        mark(key, near, "unhealthy_threshold", "all kinds together" if alone else note, section="unhealthy")
    if kind == "tcp":
        for section, key in (
            ("healthy", "http_statuses"),
            ("unhealthy", "http_statuses"),
            ("unhealthy", "http_failures"),
        ):
            mark(key, Fidelity.IGNORED_DEFAULT, "", _NO_STATUS, section=section)


_KNOWN = {
    "": (
        "type",
        "timeout",
        "concurrency",
        "host",
        "port",
        "http_path",
        "http_method",
        "http_req_body",
        "https_verify_certificate",
        "healthy",
        "unhealthy",
        "req_headers",
    ),
    "healthy": ("interval", "successes", "http_statuses"),
    "unhealthy": ("interval", "http_statuses", *_FAILURES),
}


def outlier_detection(
    job: Job, spec: Mapping[str, Any], owner: Resource, path: Path, *, active: bool
) -> dict[str, Any]:
    """Return the passive check as ``outlierDetection``; *active* says that Envoy checks as well."""
    checks = spec.get("checks")
    passive = checks.get("passive") if isinstance(checks, Mapping) else None
    if not isinstance(passive, Mapping):
        return {}
    unhealthy = _section(passive, "unhealthy")
    try:
        http, tcp = _number(unhealthy, "http_failures", 5), _number(unhealthy, "tcp_failures", 2)
    except (TypeError, ValueError, ArithmeticError):
        note = "its options are not valid for APISIX: nothing is checked"
        job.mark(owner, (*path, "checks", "passive"), Fidelity.MANUAL, "", note)
        return {}
    back = "the first active check that passes" if active else "30 s, longer each time,"
    note = f"only 5xx count, and nodes come back after {back} whatever healthy says"
    target = "DestinationRule trafficPolicy.outlierDetection"
    job.mark(owner, (*path, "checks", "passive"), Fidelity.APPROXIMATE, target, note)
    return {
        "consecutive5xxErrors": http,
        "splitExternalLocalOriginErrors": True,
        "consecutiveLocalOriginFailures": tcp,
        "interval": "10s",
        "baseEjectionTime": "30s",
        # APISIX takes out every failing node but never the last; Istio's default stops at a tenth of them.
        "maxEjectionPercent": 99,
    }


def check_filter(
    job: Job, checks: Mapping[tuple[str, str], Mapping[str, Any]], sources: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the EnvoyFilters of *checks*, by cluster and default Host header."""
    patches = []
    for (cluster, name), check in sorted(checks.items()):
        one = dict(check)
        if "http_health_check" in one:
            one["http_health_check"] = {"host": name, **one["http_health_check"]}
        value = {
            # APISIX sends to all nodes when none is healthy. One percent, rounded down, is none of up to a
            # hundred; Istio's own setting beside outlier detection is to answer 503 instead.
            "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
            # An endpoint that is gone from its Service must not be used until a check fails.
            "ignore_health_on_host_removal": True,
            "health_checks": [one],
        }
        match = {"context": "GATEWAY", "cluster": {"name": cluster}}
        patches.append(
            {"applyTo": "CLUSTER", "match": match, "patch": {"operation": "MERGE", "value": value}}
        )
    return job.envoy_filters(("gateshift-health-checks",), patches, sources)
