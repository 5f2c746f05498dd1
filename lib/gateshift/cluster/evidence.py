"""What explains a failure afterwards: logs, events and the gateway's state, each read on its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import config_dump, gateway_pods, proxy_status, selector_text
from gateshift.cluster.objects import name_of
from gateshift.cluster.operator import istiod_name
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["redacted", "sources"]

_TAIL = 500
_PODS = 3
"""Gateway pods whose configuration is kept: they have the same one, unless one of them is behind."""


def sources(params: Params) -> Mapping[str, Callable[[Cluster], str]]:
    """Return, per file name, how to read that piece of evidence. Each raises :class:`ClusterError` alone."""
    return {
        "gateway.log": lambda c: _gateway_logs(params, c),
        "istiod.log": lambda c: _istiod_logs(params, c),
        "events.txt": lambda c: _events(params, c),
        "pods.txt": lambda c: _pods(params, c),
        "proxy-status.json": lambda _: json.dumps(proxy_status(params), indent=1, sort_keys=True),
        "proxy-config.json": lambda c: _proxy_config(params, c),
    }


def _proxy_config(params: Params, cluster: Cluster) -> str:
    """Return what each gateway pod's Envoy really has (its config dump), without secrets."""
    pods = [name_of(p) for p in gateway_pods(cluster, params)]
    if not pods:
        raise ClusterError("no gateway pods, so no configuration")
    return json.dumps({pod: redacted(config_dump(params, pod)) for pod in pods[:_PODS]}, indent=1)


def redacted(value: Any) -> Any:
    """Return *value* without what is secret in an Envoy configuration, by the names of its fields.

    Envoy itself leaves out what its API marks as sensitive (private keys, passwords); a header or a query
    that carries a credential, an inline secret of a filter and a secret's own content are not marked.
    """
    if isinstance(value, dict):
        return {k: _HIDDEN if _secret(k, value) else redacted(v) for k, v in value.items()}
    return [redacted(v) for v in value] if isinstance(value, list) else value


def _secret(key: str, around: Mapping[str, Any]) -> bool:
    plain = re.sub("[^a-z]", "", key.lower())
    if plain in {"value", "rawvalue", "defaultvalue"}:
        return bool(_CREDENTIAL.search(str(around.get("key") or around.get("name") or "")))
    return plain in _SECRET_FIELDS


_HIDDEN = "[redacted]"
_SECRET_FIELDS = frozenset(
    {
        *("privatekey", "privatekeyprovider", "password", "passwordinfo", "genericsecret", "hmacsecret"),
        *("tokensecret", "clientsecret", "sessionticketkeys", "users", "inlinecredential"),
    }
)
_CREDENTIAL = re.compile("authorization|cookie|api-?key|token|secret|password", re.IGNORECASE)


def _logs(cluster: Cluster, namespace: str, pods: list[str]) -> str:
    if not pods:
        raise ClusterError("no pods, so no logs")
    return "\n".join(f"== {namespace}/{pod}\n{cluster.log(namespace, pod, tail=_TAIL)}" for pod in pods)


def _gateway_logs(params: Params, cluster: Cluster) -> str:
    return _logs(cluster, params.istio.namespace, [name_of(p) for p in gateway_pods(cluster, params)])


def _istiod_logs(params: Params, cluster: Cluster) -> str:
    deployment = cluster.get("Deployment", istiod_name(params.istio), params.istio.namespace)
    if deployment is None:
        raise ClusterError("istiod's Deployment does not exist")
    labels = selector_text((deployment["spec"].get("selector") or {}).get("matchLabels") or {})
    pods = cluster.list("Pod", params.istio.namespace, labels=labels)
    return _logs(cluster, params.istio.namespace, [name_of(p) for p in pods])


def _events(params: Params, cluster: Cluster) -> str:
    lines = []
    for namespace in (params.istio.namespace, params.cluster.application_namespace):
        for event in cluster.list("Event", namespace, fields="type=Warning"):
            about = event.get("involvedObject", {})
            when = event.get("lastTimestamp") or event.get("eventTime") or ""
            lines.append(
                f"{when} {namespace} {about.get('kind')}/{about.get('name')} "
                f"{event.get('reason')}: {event.get('message')}"
            )
    return "\n".join(sorted(lines)) or "no warning events"


def _pods(params: Params, cluster: Cluster) -> str:
    lines = []
    for pod in cluster.list("Pod", params.istio.namespace):
        states = pod.get("status", {}).get("containerStatuses") or []
        restarts = sum(int(s.get("restartCount", 0)) for s in states)
        ready = f"{sum(1 for s in states if s.get('ready'))}/{len(states)}"
        lines.append(f"{name_of(pod)} {ready} {pod.get('status', {}).get('phase')} restarts={restarts}")
    return "\n".join(lines) or "no pods"
