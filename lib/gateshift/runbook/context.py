"""What a run works with: params, journal, and the systems, each connected when first used."""

from __future__ import annotations

import time
from functools import cached_property

from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import load_balancer_name
from gateshift.errors import ClusterError, InputError, MetricsError, ParamsError, TrafficError
from gateshift.metrics.sampler import Sampler
from gateshift.metrics.source import PrometheusSource
from gateshift.migration.identity import identity
from gateshift.migration.journal import Journal
from gateshift.migration.state import State
from gateshift.notify import Notifier
from gateshift.params import Environment, Params, secrets_of
from gateshift.runbook.inputs import migration_folder
from gateshift.traffic import make_shifter
from gateshift.traffic.forwarded import own_selectors
from gateshift.traffic.protocol import Shifter
from gateshift.words import tell

__all__ = ["Context", "identity"]


class Context:
    """Params plus lazily connected systems. Nothing is contacted before it is needed."""

    def __init__(self, params: Params, *, run: str, params_file: str = "") -> None:
        self.params = params
        self.run = run
        self.params_file = params_file or "params/lab.yaml"
        """The params file as a person would name it, for commands that are shown."""
        self.folder = migration_folder(params)
        self.run_folder = self.folder / run
        self._sampler: Sampler | None = None
        self._sampled: object = None
        self.journal = Journal.open(self.folder / "journal.jsonl", who=identity(), run=run)

    @property
    def state(self) -> State:
        """The migration's state: the fold of its journal."""
        return self.journal.state

    @cached_property
    def cluster(self) -> Cluster:
        """The Kubernetes cluster; refuses one whose UID is not the expected."""
        cluster = Cluster.connect(self.params.cluster)
        wanted = self.params.cluster.uid
        if wanted and cluster.uid != wanted:
            raise InputError(
                f"cluster.uid: the context points to cluster {cluster.uid}, the params name {wanted}",
                hint="correct cluster.context or cluster.uid; nothing was changed",
            )
        return cluster

    @cached_property
    def apisix_target(self) -> str:
        """DNS name of the old gateway's load balancer."""
        named = self.params.traffic.route53 and self.params.traffic.route53.apisix_target
        if named:
            return named
        try:
            return load_balancer_name(self.cluster, self.params.apisix.namespace, self.params.apisix.service)
        except ClusterError:
            recorded = self._recorded_target("apisix_target")
            if not recorded:
                raise
            return recorded

    @property
    def istio_target(self) -> str:
        """DNS name of the new gateway's load balancer, or an empty text before it exists."""
        named = self.params.traffic.route53 and self.params.traffic.route53.istio_target
        if named:
            return named
        try:
            return load_balancer_name(
                self.cluster, self.params.istio.namespace, self.params.istio.gateway_service
            )
        except ClusterError:
            return self._recorded_target("istio_target")

    def _recorded_target(self, key: str) -> str:
        """Load balancer named by the last shift: a rollback must work with the cluster out of reach."""
        for record in reversed(self.journal.records):
            if record.kind in {"shift.intent", "note.traffic.original"}:
                return str(record.data.get(key, ""))
        return ""

    def shifter(self, *, stage: int | None = None, back_only: bool = False) -> Shifter:
        """Return the traffic shifter of *stage* (from 0; None: the one that knows all mechanisms in use).

        Moving towards Istio needs both load balancers. Going back (*back_only*) asks no cluster for them:
        it may be what has failed, and a time-out would delay the way back; the journal has their names.
        """
        if back_only:
            apisix, istio = self._recorded_target("apisix_target"), self._recorded_target("istio_target")
        else:
            istio = self.istio_target
            if not istio:
                raise TrafficError(
                    "the Istio gateway has no load-balancer address yet", hint="run 10_install first"
                )
            apisix = self.apisix_target
        return make_shifter(
            self.params, apisix_target=apisix, istio_target=istio, objects=lambda: self.cluster, stage=stage
        )

    def notifier(self) -> Notifier:
        """Who tells people; says nothing when the params name no service."""
        where = tell("where.production" if self.production else "where.lab")
        return Notifier(
            secrets_of(self.params.notify),  # those that have a value; nothing stops for the others
            self.folder,
            title=tell("notify.title", where=where, migration=self.params.migration),
            kinds=self.params.notify.events,
            clean=self.journal.redactor.text,
        )

    @cached_property
    def source(self) -> PrometheusSource:
        """The metrics source; MetricsError when its address or credentials have no value.

        Steps that must have metrics were refused before. Those that only ask what is there do without.
        """
        try:
            return PrometheusSource(self.params.metrics)
        except ParamsError as error:
            raise MetricsError(str(error), hint=error.hint) from None

    @property
    def sampler(self) -> Sampler:
        """The sampler over both gateways; each side leaves out what it only hands on to the other."""
        target, stage = self._recorded_target("istio_target"), self.state.stage_entered
        apisix, istio = own_selectors(self.params, target, stage=stage)
        metrics = self.params.metrics
        if self._sampler is None or self._sampled != (metrics, apisix, istio):
            self._sampled = metrics, apisix, istio
            self._sampler = Sampler(
                self.source,
                metrics,
                apisix_selector=_both(metrics.apisix_selector, apisix),
                istio_selector=_both(metrics.istio_selector, istio),
            )
        return self._sampler

    @property
    def production(self) -> bool:
        """True unless this is the rehearsal lab."""
        return self.params.environment is Environment.PRODUCTION

    def record_rollback(self, reason: str, weight: int) -> None:
        """Record that a rollback starts; from here on only a rollback may go on."""
        self.journal.append("rollback.started", reason=reason, **{"from": weight})

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()


def _both(one: str, other: str) -> str:
    """Join two lists of label matchers."""
    return ",".join(part.strip().strip("{}").rstrip(",") for part in (one, other) if part.strip())
