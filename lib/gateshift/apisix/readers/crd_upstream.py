"""Upstreams of the ingress controller: a Service behind a route, with the settings of an ApisixUpstream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.manifest import Manifest, objects_of
from gateshift.apisix.templates import gaps

__all__ = ["backend_upstream", "external_upstream", "seconds", "service_nodes"]

_PORTS = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}


def service_nodes(name: str, namespace: str, port: object, weight: int = 100) -> dict[str, Any]:
    """Return the fields that lead to a Service: a node by number, Kubernetes discovery by port name.

    The controller writes the pods' addresses; the Service's own name is what outlives them.
    """
    if isinstance(port, int) or (isinstance(port, str) and port.isdigit()):
        host = f"{name}.{namespace}.svc.cluster.local"
        return {"nodes": [{"host": host, "port": int(port), "weight": weight}]}
    return {"discovery_type": "kubernetes", "service_name": f"{namespace}/{name}:{port}"}


def backend_upstream(
    backend: Mapping[str, Any], manifest: Manifest, settings: Manifest | None, builder: Builder
) -> dict[str, Any]:
    """Return the upstream of one backend of a route."""
    port = backend.get("servicePort")
    upstream: dict[str, Any] = {"type": "roundrobin"}
    upstream |= service_nodes(str(backend["serviceName"]), manifest.namespace, port)
    if settings is not None:
        spec = dict(settings.spec)
        for level in objects_of(spec.pop("portLevelSettings", None), "portLevelSettings"):
            if isinstance(level, Mapping) and level.get("port") == port:
                spec |= {k: v for k, v in level.items() if k != "port"}
        upstream |= _settings(spec, settings, builder)
    if backend.get("subset"):
        upstream["_subset"] = backend["subset"]
        builder.warn(
            manifest.origin,
            f"backend {backend['serviceName']} uses subset {backend['subset']}: a choice of pods by label",
            "check that the labels stand on the pods that Istio will see",
        )
    return upstream


def external_upstream(manifest: Manifest, builder: Builder) -> dict[str, Any]:
    """Return the upstream of an ApisixUpstream that names its own nodes (or the Service of its name)."""
    upstream: dict[str, Any] = {"id": manifest.id, "type": "roundrobin"}
    spec = manifest.spec
    external = objects_of(spec.get("externalNodes"), "externalNodes")
    default = _PORTS.get(str(spec.get("scheme") or "http"), 80)
    nodes = []
    for i, node in enumerate(external):
        if not isinstance(node, Mapping) or not node.get("name"):
            builder.error(manifest.at(f"externalNodes[{i}]"), "an external node needs its name")
            continue
        host = str(node["name"])
        if node.get("type") == "Service":
            host = f"{host}.{manifest.namespace}.svc.cluster.local"
        nodes.append({"host": host, "port": node.get("port", default), "weight": node.get("weight", 100)})
    if nodes:
        upstream["nodes"] = nodes
    discovery = spec.get("discovery")
    if isinstance(discovery, Mapping):
        upstream["discovery_type"] = discovery.get("type")
        upstream["service_name"] = discovery.get("serviceName")
        if discovery.get("args"):
            upstream["discovery_args"] = discovery["args"]
    return upstream | _settings(spec, manifest, builder)


def _settings(spec: Mapping[str, Any], manifest: Manifest, builder: Builder) -> dict[str, Any]:
    """Translate the settings that ApisixUpstream and its port levels share."""
    # What reads as no value is left out below: then the default must not be taken for meant.
    open_ = [f"{manifest.kind}/{manifest.name}.{gap}" for gap in gaps({"spec": spec})]
    out: dict[str, Any] = {"_unfilled": open_} if open_ else {}
    balancer = spec.get("loadbalancer")
    if isinstance(balancer, Mapping):
        out["type"] = balancer.get("type") or "roundrobin"
        for key, target in (("hashOn", "hash_on"), ("key", "key")):
            if balancer.get(key):
                out[target] = balancer[key]
    for key, target in (("scheme", "scheme"), ("retries", "retries"), ("upstreamHost", "upstream_host")):
        if spec.get(key) is not None:
            out[target] = spec[key]
    if spec.get("passHost"):
        out["pass_host"] = spec["passHost"]
    if isinstance(spec.get("timeout"), Mapping):
        out["timeout"] = {k: seconds(v) for k, v in spec["timeout"].items()}
    if isinstance(spec.get("healthCheck"), Mapping):
        out["checks"] = _checks(spec["healthCheck"])
    if isinstance(spec.get("tlsSecret"), Mapping):
        secret = spec["tlsSecret"]
        base = f"$secret://kubernetes/{secret.get('namespace') or manifest.namespace}/{secret.get('name')}"
        out["tls"] = {"client_cert": f"{base}/tls.crt", "client_key": f"{base}/tls.key"}
    if spec.get("subsets"):
        out["_subsets"] = spec["subsets"]
    known = {
        "loadbalancer", "scheme", "retries", "upstreamHost", "passHost", "timeout", "healthCheck",
        "tlsSecret", "subsets", "externalNodes", "discovery", "portLevelSettings", "ingressClassName",
    }  # fmt: skip
    for key in spec:
        if key not in known:
            builder.warn(manifest.at(str(key)), f"{key} is no setting of an ApisixUpstream; it was not read")
    return out


_CHECKS = {
    "httpPath": "http_path",
    "httpCodes": "http_statuses",
    "httpFailures": "http_failures",
    "tcpFailures": "tcp_failures",
    "requestHeaders": "req_headers",
    "strictTLS": "https_verify_certificate",
}
"""What the controller's health checks (api/v2 of apisix-ingress-controller) are called in APISIX."""
_NANOSECONDS = 1_000_000_000


def _checks(value: Mapping[str, Any]) -> dict[str, Any]:
    """Read health checks: names as in APISIX, durations as seconds, ``unhealthy.timeout`` as a number."""
    found: dict[str, Any] = {}
    for kind, check in value.items():
        if not isinstance(check, Mapping):
            found[str(kind)] = check
            continue
        found[str(kind)] = {}
        for key, item in check.items():
            if isinstance(item, Mapping):
                known = _CHECKS | {"timeout": "timeouts"}
                found[str(kind)][str(key)] = {known.get(str(k), str(k)): seconds(v) for k, v in item.items()}
            elif key == "timeout" and isinstance(item, int):
                # A number is a Go duration, and the controller hands on whole seconds, if any.
                if item >= _NANOSECONDS:
                    found[str(kind)][key] = item // _NANOSECONDS
            else:
                found[str(kind)][_CHECKS.get(str(key), str(key))] = seconds(item)
    return found


def seconds(value: object) -> object:
    """Read a Kubernetes duration (``5s``, ``1m30s``) as seconds; anything else is returned as it is."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
    if not parts or "".join(a + b for a, b in parts) != value:
        return value
    total = sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)
    return int(total) if total == int(total) else total
