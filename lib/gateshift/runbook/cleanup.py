"""Clean-up: APISIX goes, after the stable run; and comes back, when somebody wants it."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import yaml

from gateshift.archive.files import atomic_write
from gateshift.cluster import cleanup as cluster_cleanup
from gateshift.cluster import leftovers
from gateshift.cluster import restore as cluster_restore
from gateshift.cluster import strict as cluster_strict
from gateshift.cluster.exported import shown
from gateshift.errors import Blocked, InputError, NotEnoughEvidence
from gateshift.judge.model import Side
from gateshift.metrics.sampler import until_known
from gateshift.migration.state import Phase
from gateshift.notebook.progress import say
from gateshift.notebook.show import Note
from gateshift.params import Mode
from gateshift.plan import Plan
from gateshift.runbook.base import Runbook
from gateshift.runbook.shifting import settle, split_settling, with_settling

__all__ = ["Cleanup"]

_SCRAPED = 15.0
"""Seconds at least in which a scrape that failed may be followed by one that does not."""


class Cleanup(Runbook):
    """``70_cleanup``: APISIX goes, after the stable time, exported first, by typed name.

    With *undo* what was deleted is restored; with *strict_mtls* the mesh accepts only mutual TLS afterwards.
    """

    name: ClassVar[str] = "70_cleanup"
    title: ClassVar[str] = "Clean up APISIX"
    own: ClassVar[frozenset[str]] = frozenset({"undo", "strict_mtls"})

    @property
    def task(self) -> str:
        """What this run is for: ``delete``, ``restore`` or ``strict``."""
        if self.extra.get("undo") and self.extra.get("strict_mtls"):
            raise InputError("undo and strict_mtls are two tasks; set one of them")
        return (
            "restore" if self.extra.get("undo") else "strict" if self.extra.get("strict_mtls") else "delete"
        )

    @property
    def resuming(self) -> bool:
        """True after a clean-up that was begun and not ended."""
        return self.context.state.pending == "cleanup"

    def read(self) -> object:
        """Refuse unless the stable time is on record and APISIX is idle."""
        phase = self.context.state.phase
        due = {
            "delete": {Phase.SOAKED, Phase.CLEANED},
            "restore": {Phase.SOAKED, Phase.CLEANED},
            "strict": {Phase.CLEANED},
        }[self.task]
        if phase not in due:
            reason = f"{self.title} ({self.task}) is not due: the migration is at {phase.value}"
            if self.params.mode is Mode.ACT:
                raise Blocked(reason, hint=self.next_step())
            return Note("warn", reason)
        if self.task == "restore":
            return Note("info", f"{len(self._exported())} objects are in the export")
        if self.task == "strict":
            evidence = cluster_strict.evidence(self.params, self.context.cluster, self.context.source)
            return Note("pass", f"mutual TLS everywhere: {evidence}")
        return self._idle()

    def _idle(self) -> Note:
        shifter = self.context.shifter()
        weights = shifter.read()
        if weights.istio_percent != 100:
            raise Blocked(f"DNS still sends traffic to APISIX: Istio has {weights.istio_percent} %")
        names_at = getattr(shifter, "names_at", None)  # only where records are names, as in Route 53
        others = names_at(self.context.apisix_target) if names_at else []
        if others:
            raise Blocked(
                f"DNS: {', '.join(others[:5])} still point to APISIX's load balancer",
                hint="move or delete these records first; they are not in traffic.route53.hosts",
            )
        # As long as one stable run's interval, but never reaching back before the stable time.
        soak = self.params.soak
        window = max(min(soak.sample_every, soak.stable_for), self.params.metrics.step * 3)

        def look() -> Side:
            now = time.time()
            return self.context.sampler.served(now - window, now)

        step = self.params.metrics.step
        patience = 0.0 if self.resuming else max(_SCRAPED, 4 * step)
        seen = until_known(look, seconds=patience, every=step)
        if seen.requests is None and self.resuming:  # its processes are gone by now, and nobody scrapes them
            return Note("pass", "DNS at 100 % Istio; APISIX was idle when this clean-up began")
        if seen.requests is None:
            raise NotEnoughEvidence(
                f"clean-up: whether APISIX still serves traffic is not known ({seen.missing})",
                hint="every APISIX process must have been scraped for that long; one that has not served a"
                " request since its start shows nothing: send it one, and come back when that is over",
            )
        if seen.requests > 0:
            raise Blocked(
                f"APISIX still served {seen.requests:.0f} requests in the last {window:.0f} s",
                hint="find who still sends there: APISIX's access log has the clients",
            )
        return Note(
            "pass", f"stable time on record, DNS at 100 % Istio, APISIX served nothing for {window:.0f} s"
        )

    def make_plan(self) -> Plan:
        """List everything that would be deleted, with owners; or restored; or enforced."""
        if self.task == "restore":
            return cluster_restore.plan(self.params, self.context.cluster, self._exported())
        if self.task == "strict":
            return cluster_strict.plan(self.params, self.context.cluster)
        try:
            plan = cluster_cleanup.plan(
                self.params,
                self.context.cluster,
                resuming=self.resuming,
                redactor=self.context.journal.redactor,
            )
        except Blocked as refusal:
            if self.params.mode is Mode.ACT:
                raise
            # Reading is always possible; the plan says why nothing could be deleted now.
            return Plan(kind="cleanup", title=str(refusal), steps=(), way_back="nothing is changed")
        return with_settling(self.context, plan)

    def perform(self, plan: Plan) -> object:
        """Export, then delete in a safe order; or the other task."""
        cluster = self.context.cluster
        if self.task == "restore":
            self.record("restore.intent", export=",".join(self._exports()), digest=plan.digest)
            cluster_restore.execute(self.params, cluster, plan, self._exported(), progress=say)
            self.record("restore.done", restored=len(plan.steps))
            return Note("pass", f"{len(plan.steps)} objects restored")
        if self.task == "strict":
            self.record("note.strict_mtls.intent", digest=plan.digest)
            cluster_strict.execute(self.params, cluster, plan, self.context.source, progress=say)
            self.record("note.strict_mtls", namespace=self.params.cluster.application_namespace)
            return Note("pass", "only mutual TLS is accepted now")
        cluster_cleanup.need_typed_name(self.params)  # before the journal says that the clean-up has begun
        plan, last = split_settling(plan)
        redactor = self.context.journal.redactor
        objects = [shown(o, redactor) for o in cluster_cleanup.export(self.params, cluster, plan)]
        path = self.context.run_folder / "export.yaml"
        atomic_write(path, yaml.safe_dump_all(objects, sort_keys=False))
        self.record("cleanup.intent", export=f"{self.context.run}/{path.name}", digest=plan.digest)
        with self.narrated() as line:
            cluster_cleanup.execute(
                self.params, cluster, plan, resuming=self.resuming, redactor=redactor, progress=line
            )
        if last is not None:
            settle(self.context, last)
        self.record("cleanup.done", deleted=len(plan.steps))
        return Note("pass", f"{len(plan.steps)} objects deleted; export in {path.name}")

    def nothing_to_do(self, plan: Plan) -> object:
        """End a clean-up that died after its last deletion."""
        if self.task == "delete" and self.resuming and self.params.mode is Mode.ACT:
            with self.narrated() as line:
                cluster_cleanup.wait_gone(self.params, self.context.cluster, progress=line)
            self.record("cleanup.done", deleted=0)
            return Note("pass", "the clean-up was complete already")
        return super().nothing_to_do(plan)

    def _exports(self) -> list[str]:
        return [str(r.data["export"]) for r in self.context.journal.records if r.kind == "cleanup.intent"]

    def _exported(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name in self._exports():
            try:
                text = (self.context.folder / name).read_text(encoding="utf-8")
                found += [o for o in yaml.safe_load_all(text) if o]
            except (OSError, yaml.YAMLError) as error:
                raise Blocked(f"the export {name} cannot be read: {error}") from None
        if not found:
            raise Blocked("there is no export of a clean-up to restore from")
        return found

    def check(self) -> object:
        """Say what is left."""
        if self.task != "delete":
            return Note("pass", f"{self.task}: done")
        if self.context.cluster.get("Namespace", self.params.apisix.namespace) is not None:
            raise Blocked(f"namespace {self.params.apisix.namespace} is still there")
        _, used = leftovers.crds(self.context.cluster, self.params.apisix.namespace)
        kept = "; ".join(f"{name}: {why}" for name, why in used.items()) or "none"
        return Note("pass", f"namespace {self.params.apisix.namespace} is gone; CRDs kept: {kept}")
