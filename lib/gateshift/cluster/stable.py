"""What a day of the stable run is looked at besides its metrics: logs, restarts, certificates, probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateshift.cluster import daylog, verify
from gateshift.cluster.certificates import certificate_problems, days_left
from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import persist
from gateshift.cluster.front import servers_of
from gateshift.cluster.gateways import gateway_pods, load_balancer_name, pod_ready, selector_text
from gateshift.cluster.logs import Pattern
from gateshift.cluster.objects import API_GATEWAY, MANAGED_BY, MANAGER, Object, name_of
from gateshift.cluster.operator import istiod_name
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["Day", "look"]

_SIDECARS = 50
"""Sidecars whose logs are read; in a larger mesh those of the first pods by name."""
_PATIENCE = 60.0
"""Seconds in which an API server that is away may come back: after a day not seen two weeks begin anew."""
_SETTLING = 120.0
"""Seconds that a pod may take to become ready: an autoscaler or a drain starts pods at any hour."""


@dataclass(frozen=True, slots=True)
class Day:
    """What was found. ``problems`` make the day unstable, ``notes`` do not."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    patterns: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    certificates: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, str] = field(default_factory=dict)
    covered: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the time looked at whose logs were still held, by pod."""

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON for the record."""
        return {
            "problems": list(self.problems),
            "notes": list(self.notes),
            "patterns": {
                part: [{"pattern": p.pattern, "count": p.count} for p in found[:20]]
                for part, found in self.patterns.items()
            },
            "restarts": dict(self.restarts),
            "certificates": dict(self.certificates),
            "probes": dict(self.probes),
            "covered": dict(self.covered),
        }


def look(params: Params, cluster: Cluster, *, seconds: float, before: Mapping[str, Any] | None = None) -> Day:
    """Look at the last *seconds*; *before* is the record (:meth:`Day.as_json`) of the run before.

    A part that cannot be looked at is a problem: what is not seen was not stable.
    """
    last = before or {}
    parts: list[Callable[[], Day]] = [
        lambda: _logs(params, cluster, seconds, last.get("patterns") or {}),
        lambda: _restarts(params, cluster, last.get("restarts")),
        lambda: _certificates(params, cluster),
        lambda: _probes(params, cluster),
    ]
    with ThreadPoolExecutor(len(parts)) as pool:
        found = list(pool.map(_safely, parts))
    return Day(
        problems=tuple(p for d in found for p in d.problems),
        notes=tuple(n for d in found for n in d.notes),
        patterns={k: v for d in found for k, v in d.patterns.items()},
        restarts={k: v for d in found for k, v in d.restarts.items()},
        certificates={k: v for d in found for k, v in d.certificates.items()},
        probes={k: v for d in found for k, v in d.probes.items()},
        covered={k: v for d in found for k, v in d.covered.items()},
    )


def _safely(part: Callable[[], Day]) -> Day:
    try:
        return persist(part, time.monotonic() + _PATIENCE)
    except ClusterError as error:
        return Day((f"not seen: {error}",), ())


def _alive(pods: Iterable[Object]) -> list[Object]:
    """Leave out what has ended (an evicted pod stays for days) and what is on its way out."""
    return [
        p
        for p in pods
        if p.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
        and not p["metadata"].get("deletionTimestamp")
    ]


def _gateway_pods(params: Params, cluster: Cluster) -> list[Object]:
    return _alive(gateway_pods(cluster, params))


def _istiod_pods(params: Params, cluster: Cluster) -> list[Object]:
    deployment = cluster.get("Deployment", istiod_name(params.istio), params.istio.namespace)
    if deployment is None:
        raise ClusterError("istiod's Deployment does not exist")
    labels = selector_text((deployment["spec"].get("selector") or {}).get("matchLabels") or {})
    return _alive(cluster.list("Pod", params.istio.namespace, labels=labels))


def _sidecar_pods(params: Params, cluster: Cluster) -> list[Object]:
    """Pods of the application with a sidecar, as a container or as a native one (an init container)."""
    return [
        p
        for p in _alive(cluster.list("Pod", params.cluster.application_namespace))
        if "istio-proxy"
        in {
            c.get("name")
            for c in (p["spec"].get("containers") or []) + (p["spec"].get("initContainers") or [])
        }
    ]


def _logs(params: Params, cluster: Cluster, seconds: float, before: Mapping[str, Any]) -> Day:
    sidecars = sorted(_sidecar_pods(params, cluster), key=name_of)
    found = daylog.read(
        cluster,
        {
            "gateway": (_gateway_pods(params, cluster), "istio-proxy"),
            "istiod": (_istiod_pods(params, cluster), "discovery"),
            "sidecars": (sidecars[:_SIDECARS], "istio-proxy"),
        },
        seconds,
    )
    problems: list[str] = []
    notes: list[str] = []
    if len(sidecars) > _SIDECARS:
        notes.append(f"logs of {_SIDECARS} of {len(sidecars)} sidecars were read")
    for part, log in found.items():
        # An application's pods come and go at any time; its sidecars' logs only add to what is known.
        (notes if part == "sidecars" else problems).extend(log.problems)
        notes += log.notes
        known = {p["pattern"] for p in before.get(part) or ()}
        fresh = [p for p in log.patterns if p.pattern not in known]
        notes += [f"new in the log of {part}: {p.pattern} ({p.count} times)" for p in fresh[:3]]
    return Day(
        tuple(problems),
        tuple(notes),
        patterns={part: log.patterns for part, log in found.items()},
        covered={pod: seen for log in found.values() for pod, seen in log.covered.items()},
    )


def _restarts(params: Params, cluster: Cluster, before: Mapping[str, int] | None) -> Day:
    """Compare restart counts by pod: a crash of gateway or istiod is no stable day, a replaced pod is."""
    problems: list[str] = []
    notes: list[str] = []
    core: list[Object] = []
    for part, pods in (
        ("gateway", _gateway_pods(params, cluster)),
        ("istiod", _istiod_pods(params, cluster)),
    ):
        core += pods
        late, starting = _unready(pods)
        if late or len(starting) == len(pods):
            problems.append(f"not ready: {', '.join(late + starting) or f'no pod of {part}'}")
        elif starting:
            notes.append(f"just starting: {', '.join(starting)}")
    counts: dict[str, int] = {}
    for pods, where in ((core, problems), (_sidecar_pods(params, cluster), notes)):
        for pod in pods:
            states = daylog.container_states(pod)
            counts[name_of(pod)] = count = sum(int(s.get("restartCount", 0)) for s in states)
            grown = count - (before or {}).get(name_of(pod), 0)
            if grown > 0 and before is not None:
                where.append(f"{name_of(pod)} restarted {grown} times ({_why(states)})")
    return Day(tuple(problems), tuple(notes), restarts=counts)


def _unready(pods: Iterable[Object]) -> tuple[list[str], list[str]]:
    """Return the pods that have not been ready for too long, and those that have only just begun to be so."""
    late: list[str] = []
    starting: list[str] = []
    for pod in pods:
        if pod_ready(pod):
            continue
        conditions = pod.get("status", {}).get("conditions") or []
        changed = next((c.get("lastTransitionTime") for c in conditions if c.get("type") == "Ready"), None)
        since = changed or pod["metadata"].get("creationTimestamp")
        (starting if since and _age(str(since)) < _SETTLING else late).append(name_of(pod))
    return late, starting


def _age(stamp: str) -> float:
    """Return the seconds since an RFC 3339 time."""
    return (datetime.now(UTC) - datetime.fromisoformat(stamp.replace("Z", "+00:00"))).total_seconds()


def _why(states: Iterable[Mapping[str, Any]]) -> str:
    for state in states:
        ended = state.get("lastState", {}).get("terminated")
        if ended:
            return f"{ended.get('reason', 'ended')}, code {ended.get('exitCode', '?')}"
    return "reason unknown"


def _certificates(params: Params, cluster: Cluster) -> Day:
    """Look at the certificates our Gateways serve; one that expires before the next run is a problem."""
    namespace = params.istio.namespace
    names: dict[str, set[str]] = {}
    gateways = cluster.list("Gateway", labels=f"{MANAGED_BY}={MANAGER}")
    if cluster.serves(API_GATEWAY):
        gateways += cluster.list(API_GATEWAY, labels=f"{MANAGED_BY}={MANAGER}")
    for gateway in gateways:
        for server in servers_of(gateway):
            tls = server.get("tls") or {}
            for name in filter(None, [tls.get("credentialName"), *(tls.get("credentialNames") or [])]):
                names.setdefault(str(name), set()).update(server.get("hosts") or [])
    problems, notes = [], []
    left: dict[str, float] = {}
    for name in sorted(names):
        secret = cluster.get("Secret", name, namespace)
        if secret is None:
            problems.append(f"certificate {name}: Secret {namespace}/{name} does not exist")
            continue
        days = days_left(secret, now=datetime.now(UTC))
        left[name] = round(days, 2)
        wrong = certificate_problems(secret, (), soon_days=2 * params.soak.sample_every / 86400)
        problems += [f"certificate {name}: {text}" for text in wrong]
        if not wrong and days < 30:
            notes.append(f"certificate {name} expires in {days:.0f} days")
    return Day(tuple(problems), tuple(notes), certificates=left)


def _probes(params: Params, cluster: Cluster) -> Day:
    if not params.verify.probes:
        return Day((), ("no functional checks: verify.probes is empty",))
    istio = params.istio
    target = load_balancer_name(cluster, istio.namespace, istio.gateway_service)
    found = list(verify.probe_checks(params, target))
    problems = [f"{c.name}: {c.measured}" for c in found if c.status == "fail"]
    return Day(tuple(problems), (), probes={c.name: f"{c.status}: {c.measured}" for c in found})
