"""The translated objects into the cluster, all or nothing, and back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from gateshift.archive.snapshots import SnapshotFile, read_snapshot
from gateshift.cluster import acceptance
from gateshift.cluster import apply as cluster_apply
from gateshift.errors import Blocked
from gateshift.notebook.show import Note
from gateshift.plan import Plan
from gateshift.runbook.applied import keep_after
from gateshift.runbook.base import Runbook
from gateshift.runbook.source import read_configuration, translate_now

__all__ = ["Apply"]


class Apply(Runbook):
    """``30_apply``: the translated objects into the cluster, all or nothing."""

    name: ClassVar[str] = "30_apply"
    title: ClassVar[str] = "Apply"
    own: ClassVar[frozenset[str]] = frozenset({"undo"})

    def read(self) -> object:
        """Translate again from the live configuration, so that nothing stale is applied."""
        translation = translate_now(self.context, read_configuration(self.context))
        if translation.blockers:
            raise Blocked("apply: the translation has blockers", hint="run 20_translate first")
        self.objects = [dict(o) for o in translation.objects]
        return Note("info", f"{len(self.objects)} objects to apply")

    def make_plan(self) -> Plan:
        """Server-side dry run of every object; with *undo* the way back to before the last apply."""
        if self.extra.get("undo"):
            self.snapshot = self._last_snapshot()
            return cluster_apply.plan_undo(self.context.cluster, self.snapshot)
        return cluster_apply.plan(self.context.cluster, self.objects, migration=self.params.migration)

    def perform(self, plan: Plan) -> object:
        """Apply and wait for the gateway's acceptance; a failure half-way or a rejection restores."""
        if self.extra.get("undo"):
            return self._undo(plan)
        before = self.context.run_folder / "before.jsonl"
        kept = SnapshotFile(before)

        def save(part: Mapping[str, Any]) -> None:
            kept.write(cluster_apply.archived(part))

        self.record("apply.intent", snapshot=f"{self.context.run}/{before.name}", digest=plan.digest)
        cluster = self.context.cluster
        with self.narrated() as line:

            def accept() -> None:
                since = time.time() if acceptance.brings_push(plan.steps) else None
                line(acceptance.wait_in_sync(self.params, cluster, self.objects, progress=line, since=since))

            cluster_apply.execute(cluster, self.objects, plan, progress=line, accept=accept, save=save)
        self.record("apply.done", objects=len(self.objects), after=keep_after(self.context, self.objects))
        return Note("pass", f"{len(plan.steps)} changes applied and accepted by the gateway")

    def nothing_to_do(self, plan: Plan) -> object:
        """The cluster already has these objects."""
        if not self.extra.get("undo"):
            self.record("apply.intent", snapshot="", digest=plan.digest)
            self.record("apply.done", objects=len(self.objects), after=keep_after(self.context, self.objects))
        return super().nothing_to_do(plan)

    def _last_snapshot(self) -> dict[str, Any]:
        for record in reversed(self.context.journal.records):
            if record.kind == "apply.intent" and record.data.get("snapshot"):
                path = self.context.folder / str(record.data["snapshot"])
                try:
                    return read_snapshot(path)
                except (OSError, ValueError) as error:
                    raise Blocked(
                        f"the snapshot {path.parent.name}/{path.name} cannot be read: {error}"
                    ) from None
        raise Blocked("nothing was applied yet, so there is nothing to take back")

    def _undo(self, plan: Plan) -> object:
        self.record("apply.undo.intent", digest=plan.digest)
        left = cluster_apply.undo(self.context.cluster, self.snapshot)
        if left:
            raise Blocked(f"not everything was taken back: {'; '.join(left)}")
        changed = [_named(entry) for entry in self.snapshot["objects"]]
        self.record("apply.undone", objects=len(plan.steps), after=keep_after(self.context, changed))
        return Note("pass", f"{len(plan.steps)} objects are as before the apply")

    def check(self) -> object:
        """Wait until the gateway's Envoy really has the configuration."""
        if self.extra.get("undo"):
            return Note("pass", "the last apply is taken back")
        with self.narrated() as line:
            said = acceptance.wait_in_sync(self.params, self.context.cluster, self.objects, progress=line)
        return Note("pass", said)


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": entry["name"], "namespace": entry["namespace"]}
    return {"apiVersion": entry["apiVersion"], "kind": entry["kind"], "metadata": metadata}
