"""STRICT mutual TLS, after APISIX is gone: only once the metrics show that nobody speaks plaintext."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Protocol

from gateshift.cluster import apply, verify
from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import HopelessError
from gateshift.cluster.gateways import load_balancer_name, proxy_states, rejected, watch
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.errors import Blocked, NotEnoughEvidence
from gateshift.metrics.source import Answer
from gateshift.params.model import Params
from gateshift.plan import Plan

__all__ = ["evidence", "execute", "plan", "policy"]

_SIDECAR = "istio-proxy"
_DRAIN = 50.0
"""Seconds: Envoy ends a listener's old connections within 45 (drainDuration of the proxy's configuration)."""
_PROBE_EVERY = 2.0
_SKEW = 2.0
"""Seconds by which istiod's clock may differ from ours."""


class Source(Protocol):
    """What is asked of Prometheus."""

    def instant(self, query: str, at: float) -> Answer:
        """Evaluate *query* at *at* (unix seconds)."""


def policy(params: Params, cluster: Cluster) -> Object:
    """Return the PeerAuthentication of the application's namespace, in a version that the cluster serves."""
    return {
        "apiVersion": cluster.resource("PeerAuthentication").api_version,
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": params.cluster.application_namespace},
        "spec": {"mtls": {"mode": "STRICT"}},
    }


def evidence(params: Params, cluster: Cluster, source: Source) -> str:
    """Return what shows that only mutual TLS is spoken to the application's pods.

    The receiving side's metrics are asked (``reporter="destination"``, istio-traps.md 49): requests and TCP
    connections of the last ``soak.sample_every``. Raises :class:`Blocked` naming who still speaks plaintext
    or which pods have no sidecar, :class:`NotEnoughEvidence` when the metrics say nothing.
    """
    namespace = params.cluster.application_namespace
    _sidecars(cluster, namespace)
    window = max(params.soak.sample_every, params.metrics.step * 4)
    selector = f'reporter=~"destination|waypoint",destination_workload_namespace="{namespace}"'
    mutual = 0.0
    plain: dict[str, float] = {}
    for metric in ("istio_requests_total", "istio_tcp_connections_opened_total"):
        answer = source.instant(_seen(f"{metric}{{{selector}}}", window), time.time())
        if answer.partial:
            raise NotEnoughEvidence(f"STRICT: Prometheus gave a partial answer: {answer.partial}")
        for series in answer.series:
            if series.labels.get("connection_security_policy") == "mutual_tls":
                mutual += series.value
            elif series.value > 0:
                who = "{source_workload_namespace}/{source_workload}".format_map(
                    {"source_workload_namespace": "?", "source_workload": "unknown", **series.labels}
                )
                plain[who] = plain.get(who, 0.0) + series.value
    if plain:
        named = ", ".join(f"{who} ({count:.0f})" for who, count in sorted(plain.items()))
        raise Blocked(
            f"plaintext still arrives in {namespace}, from {named}",
            hint="put these into the mesh, or exempt their port with portLevelMtls; STRICT cuts them off",
        )
    if mutual <= 0:
        raise NotEnoughEvidence(
            f"STRICT: no request over mutual TLS was measured in {namespace} in the last {window:.0f} s",
            hint='sidecars report with reporter="destination"; check that Prometheus scrapes them',
        )
    return f"{mutual:.0f} requests and connections in the last {window:.0f} s, none in plaintext"


def _seen(series: str, window: float) -> str:
    """Return the query for what *series* counted in the last *window* seconds, by caller and policy.

    A series that began within the window counts in full: ``increase`` takes its first value for its
    beginning, and a job that calls once a day would never be seen.
    """
    labels = "connection_security_policy,source_workload,source_workload_namespace"
    span = f"{window:.0f}s"
    begun = f"(max_over_time({series}[{span}]) unless {series} offset {span})"
    return f"sum by ({labels}) ({begun} or increase({series}[{span}]))"


def _sidecars(cluster: Cluster, namespace: str) -> None:
    bare = []
    pods = [
        p
        for p in cluster.list("Pod", namespace)
        if p.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
    ]
    for pod in pods:
        containers = (pod["spec"].get("containers") or []) + (pod["spec"].get("initContainers") or [])
        if _SIDECAR not in {c.get("name") for c in containers}:
            bare.append(name_of(pod))
    if not pods or bare:
        what = (
            f"{len(bare)} of {len(pods)} pods have no sidecar: {', '.join(bare[:5])}" if pods else "no pods"
        )
        raise Blocked(
            f"STRICT acts at the sidecar, and in {namespace} there are {what}",
            hint=f"label the namespace for injection and restart the pods: kubectl -n {namespace} "
            "rollout restart deployment",
        )


def plan(params: Params, cluster: Cluster) -> Plan:
    """Show the change of the PeerAuthentication; exemptions in place are named and stay."""
    namespace = params.cluster.application_namespace
    live = cluster.get("PeerAuthentication", "default", namespace)
    found = apply.plan(cluster, [policy(params, cluster)], prune=False, migration=params.migration)
    others = [title_of(p) for p in cluster.list("PeerAuthentication", namespace) if name_of(p) != "default"]
    title = "accept only mutual TLS"
    if others:
        title += f"; more specific policies stay: {', '.join(others)}"
    return Plan(
        kind="strict-mtls",
        title=title,
        steps=found.steps,
        way_back=f"`{_way_back(namespace, live)}` accepts plaintext again",
        inputs={**found.inputs, "kind": found.kind},
    )


def _way_back(namespace: str, live: Object | None) -> str:
    """Return the command that gives back what was there: no policy of ours, or the mode it had."""
    if live is None:
        return f"kubectl -n {namespace} delete peerauthentication default"
    mode = (live.get("spec", {}).get("mtls") or {}).get("mode", "UNSET")
    patch = json.dumps({"spec": {"mtls": {"mode": mode}}})
    return f"kubectl -n {namespace} patch peerauthentication default --type merge -p '{patch}'"


def execute(
    params: Params,
    cluster: Cluster,
    plan_: Plan,
    source: Source,
    *,
    progress: Callable[[str], None] | None = None,
    watch_for: float = _DRAIN,
) -> None:
    """Look at the metrics once more, apply, probe; a probe that fails takes the change back.

    Probes are sent for *watch_for* seconds from the moment at which every sidecar has the change: plaintext
    on connections that were open before ends only with Envoy's old listeners.
    """
    say = progress or (lambda _: None)
    evidence(params, cluster, source)
    wanted = [policy(params, cluster)]
    fresh = apply.plan(cluster, wanted, prune=False, migration=params.migration)
    if [s.as_json() for s in fresh.steps] != [s.as_json() for s in plan_.steps]:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")
    since = time.time()

    def accept() -> None:
        watch(
            lambda: _behind(params, since),
            timeout=params.istio.ready_timeout,
            progress=say,
            subject="sidecars",
        )
        if params.verify.probes:
            say(f"every sidecar has it; probing for {watch_for:.0f} s, while old connections end")
        istio = params.istio
        target = load_balancer_name(cluster, istio.namespace, istio.gateway_service)
        deadline = time.monotonic() + watch_for
        while True:
            bad = [c for c in verify.probe_checks(params, target) if c.status == "fail"]
            if bad:
                raise HopelessError(f"after STRICT {bad[0].name}: {bad[0].measured}")
            if time.monotonic() >= deadline or not params.verify.probes:
                return
            time.sleep(_PROBE_EVERY)

    apply.execute(cluster, wanted, fresh, progress=progress, accept=accept)


def _behind(params: Params, since: float) -> str:
    """Name the sidecars without what was applied at *since* (unix seconds); empty when all have it."""
    end = f".{params.cluster.application_namespace}"
    states = {name: kinds for name, kinds in proxy_states(params).items() if name.endswith(end)}
    if not states:
        return f"none of {params.cluster.application_namespace} is connected to istiod"
    late = rejected(
        {name: {kind: told for kind, (told, _) in kinds.items()} for name, kinds in states.items()}
    )
    late += [
        f"{name} was sent nothing new yet"
        for name, kinds in sorted(states.items())
        if kinds.get("Listener", ("", 0.0))[1] < since - _SKEW
    ]
    return "; ".join(late[:5])
