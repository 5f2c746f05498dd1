"""The shape of objects in files, as far as the lint goes into them: the API server would refuse another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["misshapen"]

# A mapping of names to shapes, a list of one shape, or None for anything.
_NAMED: dict[str, Any] = {}
_SELECTOR = {"matchLabels": _NAMED}
_SIDE = {"set": _NAMED, "add": _NAMED}
_HTTP = {
    "match": [{"uri": _NAMED, "headers": _NAMED, "withoutHeaders": _NAMED, "queryParams": _NAMED}],
    "route": [{"destination": _NAMED}],
    "headers": {"request": _SIDE, "response": _SIDE},
    "fault": {"delay": _NAMED, "abort": _NAMED},
    "directResponse": {"body": _NAMED},
    **dict.fromkeys(("delegate", "redirect", "rewrite", "retries", "corsPolicy"), _NAMED),
}
_POLICY = {
    "tls": _NAMED,
    "connectionPool": {"http": _NAMED, "tcp": _NAMED},
    "outlierDetection": _NAMED,
    "loadBalancer": _NAMED,
    "portLevelSettings": [_NAMED],
}
_RULE = {"from": [{"source": _NAMED}], "to": [{"operation": {"hosts": [None], "paths": [None]}}]}
_SHAPES: Mapping[str, Any] = {
    "VirtualService": {"hosts": [None], "gateways": [None], "exportTo": [None], "http": [_HTTP]},
    "Gateway": {
        "selector": _NAMED,
        "servers": [{"port": _NAMED, "hosts": [None], "tls": _NAMED}],
        "listeners": [_NAMED],
    },
    "HTTPRoute": {"hostnames": [None]},
    "DestinationRule": {"trafficPolicy": _POLICY, "subsets": [_NAMED]},
    "ServiceEntry": {"hosts": [None]},
    "EnvoyFilter": {
        "workloadSelector": {"labels": _NAMED},
        "configPatches": [{"match": {"routeConfiguration": {"vhost": _NAMED}}, "patch": _NAMED}],
    },
    "AuthorizationPolicy": {"selector": _SELECTOR, "provider": _NAMED, "rules": [_RULE]},
    "RequestAuthentication": {"selector": _SELECTOR, "jwtRules": [_NAMED]},
    "PeerAuthentication": {"selector": _SELECTOR, "mtls": _NAMED, "portLevelMtls": _NAMED},
    "Telemetry": {"selector": _SELECTOR, "tracing": [{"providers": [_NAMED]}], "accessLogging": [_NAMED]},
    "Service": {"selector": None, "ports": [_NAMED]},
    "Deployment": {"template": {"metadata": {"labels": _NAMED}, "spec": {"containers": [{"env": [_NAMED]}]}}},
}


def misshapen(obj: Mapping[str, Any]) -> str:
    """Return what is no list or no mapping where one must be, as ``spec.hosts is no list``; else nothing."""
    labels = {"labels": _NAMED, "annotations": _NAMED}
    return _wrong(obj.get("metadata"), labels, "metadata") or _wrong(
        obj.get("spec"), _SHAPES.get(str(obj.get("kind"))), "spec"
    )


def _wrong(value: object, shape: Any, where: str) -> str:
    if shape is None or value is None:
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        inner = shape[0]
        if inner is None:
            return next(
                (f"{where}[{n}] is no text" for n, v in enumerate(value) if not isinstance(v, str)), ""
            )
        return next(
            (
                said
                for n, one in enumerate(value)
                if (
                    said := f"{where}[{n}] is no mapping"
                    if one is None
                    else _wrong(one, inner, f"{where}[{n}]")
                )
            ),
            "",
        )
    if not isinstance(value, dict):
        return f"{where} is no mapping"
    return next(
        (said for key, inner in shape.items() if (said := _wrong(value.get(key), inner, f"{where}.{key}"))),
        "",
    )
