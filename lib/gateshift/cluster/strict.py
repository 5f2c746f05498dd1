"""STRICT mutual TLS, after APISIX is gone: only once the metrics show that nobody speaks plaintext."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from gateshift.cluster import apply, verify
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import load_balancer_name
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.errors import Blocked, ClusterError, NotEnoughEvidence
from gateshift.metrics.source import Answer
from gateshift.params.model import Params
from gateshift.plan import Plan

__all__ = ["evidence", "execute", "plan", "policy"]

_SIDECAR = "istio-proxy"


class Source(Protocol):
    """What is asked of Prometheus."""

    def instant(self, query: str, at: float) -> Answer:
        """Evaluate *query* at *at* (unix seconds)."""


def policy(params: Params) -> Object:
    """Return the PeerAuthentication of the application's namespace."""
    return {
        "apiVersion": "security.istio.io/v1",
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
        labels = "connection_security_policy,source_workload,source_workload_namespace"
        answer = source.instant(
            f"sum by ({labels}) (increase({metric}{{{selector}}}[{window:.0f}s]))", time.time()
        )
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
    found = apply.plan(cluster, [policy(params)], prune=False, migration=params.migration)
    others = [
        title_of(p)
        for p in cluster.list("PeerAuthentication", params.cluster.application_namespace)
        if name_of(p) != "default"
    ]
    title = "accept only mutual TLS"
    if others:
        title += f"; more specific policies stay: {', '.join(others)}"
    return Plan(
        kind="strict-mtls",
        title=title,
        steps=found.steps,
        way_back="kubectl delete peerauthentication default, or set its mode to PERMISSIVE",
        inputs={**found.inputs, "kind": found.kind},
    )


def execute(
    params: Params,
    cluster: Cluster,
    plan_: Plan,
    source: Source,
    *,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Look at the metrics once more, apply, probe; a probe that fails takes the change back."""
    evidence(params, cluster, source)
    wanted = [policy(params)]
    fresh = apply.plan(cluster, wanted, prune=False, migration=params.migration)
    if [s.as_json() for s in fresh.steps] != [s.as_json() for s in plan_.steps]:
        raise Blocked("the cluster changed since this plan was made", hint="read the new plan and approve it")

    def accept() -> None:
        istio = params.istio
        target = load_balancer_name(cluster, istio.namespace, istio.gateway_service)
        bad = [c for c in verify.probe_checks(params, target) if c.status == "fail"]
        if bad:
            raise ClusterError(f"after STRICT {bad[0].name}: {bad[0].measured}")

    apply.execute(cluster, wanted, fresh, progress=progress, accept=accept)
