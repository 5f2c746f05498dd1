"""An upstream's load balancing, timeouts, TLS and health checks as a DestinationRule traffic policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.versions import Feature
from gateshift.translate.health import CHECK, active_check, outlier_detection
from gateshift.translate.job import Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity

__all__ = ["duration", "traffic_policy"]

_TARGET = "DestinationRule trafficPolicy"


def duration(value: Any) -> str:
    """Write seconds as Istio does: ``10s``, ``500ms``."""
    seconds = float(value)
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


def traffic_policy(
    job: Job, spec: Mapping[str, Any], owner: Resource, path: Path, nodes: Sequence[Any]
) -> dict[str, Any]:
    """Return the policy and account for every field of the upstream but its nodes.

    Under :data:`~gateshift.translate.health.CHECK` it holds what no DestinationRule can: the active check.
    """
    policy: dict[str, Any] = {"loadBalancer": _balancer(job, spec, owner, path)}
    policy["connectionPool"] = _pool(job, spec, owner, path)
    tls = _tls(job, spec, owner, path, nodes)
    if tls:
        policy["tls"] = tls
    check = active_check(job, spec, owner, path, nodes)
    outlier = outlier_detection(job, spec, owner, path, active=bool(check))
    if outlier:
        policy["outlierDetection"] = outlier
    if check:
        policy[CHECK] = check
    _rest(job, spec, owner, path)
    return policy


def _balancer(  # noqa: PLR0911 - one return a kind of hashing
    job: Job, spec: Mapping[str, Any], owner: Resource, path: Path
) -> dict[str, Any]:
    kind = str(spec.get("type", "roundrobin"))
    target = f"{_TARGET}.loadBalancer"

    def mark(fidelity: Fidelity, note: str = "") -> None:
        for key in ("type", "hash_on", "key"):
            if key in spec:
                job.mark(owner, (*path, key), fidelity, target, note)

    if kind == "chash":
        on, key = str(spec.get("hash_on", "vars")), str(spec.get("key", "remote_addr"))
        ring = "the hash ring differs: every session moves once when traffic moves"
        mark(Fidelity.APPROXIMATE, ring)
        if on == "header":
            name = key.removeprefix("http_").replace("_", "-") if key.startswith("http_") else key
            return {"consistentHash": {"httpHeaderName": name.lower()}}
        if on == "cookie":
            return {"consistentHash": {"httpCookie": {"name": key.removeprefix("cookie_")}}}
        if on == "vars" and key.startswith("arg_"):
            return {"consistentHash": {"httpQueryParameterName": key.removeprefix("arg_")}}
        if on == "vars" and key in ("uri", "request_uri", "host"):
            return {"consistentHash": {"httpHeaderName": ":authority" if key == "host" else ":path"}}
        if on == "vars" and key.startswith(("http_", "cookie_")):
            name = key.split("_", 1)[1]
            if key.startswith("http_"):
                return {"consistentHash": {"httpHeaderName": name.replace("_", "-")}}
            return {"consistentHash": {"httpCookie": {"name": name}}}
        if not (on == "vars" and key == "remote_addr"):
            mark(Fidelity.APPROXIMATE, f"hashing on {on} {key} has no equivalent: the client address is used")
        return {"consistentHash": {"useSourceIp": True}}
    if kind in ("least_conn", "ewma"):
        note = "two random nodes are compared, not all" if kind == "least_conn" else "latency is not weighed"
        mark(Fidelity.APPROXIMATE, note)
        return {"simple": "LEAST_REQUEST"}
    if kind in ("roundrobin", ""):
        mark(Fidelity.EXACT)
    else:
        mark(Fidelity.MANUAL, f"unknown balancer {kind!r}: ROUND_ROBIN is emitted, check what was meant")
        job.warn(f"{owner.origin}: unknown load balancer type {kind!r}; ROUND_ROBIN is emitted")
    # Written out because Istio's own default is LEAST_REQUEST since 1.14.
    return {"simple": "ROUND_ROBIN"}


def _pool(job: Job, spec: Mapping[str, Any], owner: Resource, path: Path) -> dict[str, Any]:
    target = f"{_TARGET}.connectionPool"
    timeout = spec.get("timeout")
    connect = 60.0
    if isinstance(timeout, Mapping) and timeout.get("connect") is not None:
        connect = float(timeout["connect"])
        job.mark(owner, (*path, "timeout", "connect"), Fidelity.EXACT, f"{target}.tcp.connectTimeout")
    pool: dict[str, Any] = {"tcp": {"connectTimeout": duration(connect)}}
    http: dict[str, Any] = {}
    keepalive = spec.get("keepalive_pool")
    if isinstance(keepalive, Mapping):
        here = (*path, "keepalive_pool")
        if keepalive.get("idle_timeout") is not None:
            http["idleTimeout"] = duration(keepalive["idle_timeout"])
            job.mark(owner, (*here, "idle_timeout"), Fidelity.EXACT, f"{target}.http.idleTimeout")
        if keepalive.get("requests") is not None:
            http["maxRequestsPerConnection"] = int(keepalive["requests"])
            job.mark(owner, (*here, "requests"), Fidelity.EXACT, f"{target}.http.maxRequestsPerConnection")
        if "size" in keepalive:
            note = "Envoy keeps idle connections by time, not by number"
            job.mark(owner, (*here, "size"), Fidelity.NONE, "", note)
    if str(spec.get("scheme", "http")).startswith("grpc"):
        http["h2UpgradePolicy"] = "UPGRADE"
    if http:
        pool["http"] = http
    return pool


def _tls(  # noqa: PLR0912 - one branch an option
    job: Job, spec: Mapping[str, Any], owner: Resource, path: Path, nodes: Sequence[Any]
) -> dict[str, Any]:
    scheme = str(spec.get("scheme", "http"))
    target = f"{_TARGET}.tls"
    raw = spec.get("tls")
    tls = raw if isinstance(raw, Mapping) else {}
    if "scheme" in spec:
        if scheme in ("http", "grpc", "tcp"):
            job.mark(owner, (*path, "scheme"), Fidelity.EXACT, "port protocol")
        elif scheme in ("https", "grpcs"):
            note = (
                "APISIX does not verify upstream certificates; insecureSkipVerify keeps that, remove it soon"
            )
            job.mark(owner, (*path, "scheme"), Fidelity.APPROXIMATE, target, note)
            job.warn(f"{owner.kind}/{owner.id}: upstream certificates are not verified, as in APISIX")
        else:
            job.mark(
                owner, (*path, "scheme"), Fidelity.MANUAL, "", f"an HTTP route cannot use scheme {scheme}"
            )
    if scheme not in ("https", "grpcs"):
        for key in tls:
            job.mark(owner, (*path, "tls", key), Fidelity.IGNORED_DEFAULT, "", "the scheme is not TLS")
        return {}
    found: dict[str, Any] = {"mode": "SIMPLE", "insecureSkipVerify": True}
    if spec.get("pass_host") == "rewrite" and spec.get("upstream_host"):
        found["sni"] = str(spec["upstream_host"])
    elif len({node.host for node in nodes}) == 1:
        found["sni"] = str(nodes[0].host)
    secret = ""
    if tls.get("client_cert_id") is not None:
        secret = job.params.credentials.get(str(tls["client_cert_id"]), f"ssl-{tls['client_cert_id']}")
        if job.configuration.get(Kind.SSL, tls["client_cert_id"]) is None:
            job.warn(f"{owner.origin}: client_cert_id {tls['client_cert_id']} names no ssl")
    elif tls.get("client_cert") is not None:
        name = f"{owner.kind}/{owner.id}"
        secret = job.params.credentials.get(name, f"{owner.kind.rstrip('s')}-{owner.id}-client")
    for key in tls:
        if key in ("client_cert", "client_key", "client_cert_id"):
            note = f"put certificate and key into Secret {secret} in {job.target.gateway_namespace}"
            job.mark(owner, (*path, "tls", key), Fidelity.MANUAL, f"{target}.credentialName", note)
        elif key == "verify":
            note = "APISIX verifies only for kafka; nothing is verified here either"
            job.mark(owner, (*path, "tls", key), Fidelity.APPROXIMATE, target, note)
    if secret:
        found["mode"], found["credentialName"] = "MUTUAL", secret
    return found


_DOCUMENTATION = ("id", "name", "desc", "description", "labels")
_TIMES = ("create_time", "update_time")


def _rest(job: Job, spec: Mapping[str, Any], owner: Resource, path: Path) -> None:
    """Account for fields that other rooms read (retries, pass_host) or that mean nothing to Istio."""
    for key in spec:
        place = (*path, key)
        if key in _DOCUMENTATION or key in _TIMES:
            job.mark(owner, place, Fidelity.IGNORED_DEFAULT, "", "documentation only")
        elif key == "retries":
            note = "tried again on connection failures, not after the request was sent"
            reset = Feature.RETRY_RESET_BEFORE_REQUEST
            if not job.has(reset):
                note += f"; a connection reset before that is tried again from Istio {reset.since} on"
            job.mark(owner, place, Fidelity.APPROXIMATE, "VirtualService http[].retries.attempts", note)
        elif key == "retry_timeout":
            note = "no such field: the route's timeout bounds all tries together"
            job.mark(owner, place, Fidelity.NONE, "", note)
        elif key == "timeout":
            note = "APISIX limits each read, Istio the whole request; long downloads may be cut"
            job.mark(owner, place, Fidelity.APPROXIMATE, "VirtualService http[].timeout", note)
        elif key in ("pass_host", "upstream_host"):
            job.mark(owner, place, Fidelity.EXACT, "VirtualService http[].rewrite.authority")
        elif key not in _KNOWN:
            if not path:
                job.warn(f"{owner.origin}: {key} is not a field of an upstream that gateshift knows")
            job.mark(owner, place, Fidelity.MANUAL, "", "unknown field: check by hand whether it matters")


_KNOWN = frozenset(
    (
        "nodes",
        "type",
        "hash_on",
        "key",
        "scheme",
        "tls",
        "checks",
        "keepalive_pool",
        "service_name",
        "discovery_type",
        "discovery_args",
    )
)
