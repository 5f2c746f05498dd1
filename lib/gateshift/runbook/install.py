"""Install Istio beside APISIX, and take it back."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import yaml

from gateshift.archive.files import atomic_write
from gateshift.cluster import install as cluster_install
from gateshift.cluster import uninstall as cluster_uninstall
from gateshift.cluster.objects import title_of
from gateshift.errors import Blocked
from gateshift.notebook.show import Note
from gateshift.plan import Plan
from gateshift.runbook.applied import keep_after
from gateshift.runbook.base import Runbook
from gateshift.runbook.wayback import write_json

__all__ = ["Install"]


class Install(Runbook):
    """``10_install``: Istio with the guide's production settings, beside APISIX."""

    name: ClassVar[str] = "10_install"
    title: ClassVar[str] = "Install Istio"
    own: ClassVar[frozenset[str]] = frozenset({"undo"})

    @property
    def undo(self) -> bool:
        """True when this run takes the install back (``gateshift uninstall``)."""
        return bool(self.extra.get("undo"))

    def read(self) -> object:
        """Show the IstioOperator file, archive it with the equal Helm values, and run istioctl's precheck."""
        text = cluster_install.render(self.params)
        atomic_write(self.context.run_folder / "istio-operator.yaml", text)
        for chart, values in cluster_install.helm_values(self.params).items():
            atomic_write(self.context.run_folder / f"values-{chart}.yaml", yaml.safe_dump(values))
        said = "" if self.undo else f"istioctl precheck: {cluster_install.precheck(self.params)}\n"
        head = "IstioOperator to take back:\n" if self.undo else "IstioOperator to install:\n"
        return Note("info", f"{said}{head}{text}")

    def make_plan(self) -> Plan:
        """Diff the wanted components against the cluster; with *undo*, list what goes."""
        if self.undo:
            self._history()
            return cluster_uninstall.plan(
                self.params,
                self.context.cluster,
                before=self.before,
                created_namespace=self.created_namespace,
            )
        return cluster_install.plan(self.params, self.context.cluster)

    def perform(self, plan: Plan) -> object:
        """Install and wait until everything answers, or take the install back."""
        if self.undo:
            return self._uninstall(plan)
        created = [s.target for s in plan.steps if s.verb == "create"]
        before = cluster_uninstall.shared_before(self.params, self.context.cluster)
        if before:
            write_json(self.context.run_folder / "before.json", before)
        where = f"{self.context.run}/before.json" if before else ""
        self.record("install.intent", digest=plan.digest, created=created, before=where)
        with self.narrated() as line:
            cluster_install.execute(plan, self.params, self.context.cluster, progress=line)
        after = keep_after(self.context, cluster_install.manifests(self.params))
        self.record("install.done", version=self.params.istio.version, after=after)
        return Note("pass", f"Istio {self.params.istio.version} installed")

    def nothing_to_do(self, plan: Plan) -> object:
        """Istio is there as wanted, or nothing of it is left."""
        if self.undo:
            return Note("pass", "nothing that this installation made is left")
        self.record("install.intent", digest=plan.digest)
        with self.narrated() as line:
            cluster_install.wait_ready(self.params, self.context.cluster, progress=line)
        self.record("install.done", version=self.params.istio.version)
        return Note("pass", f"Istio {self.params.istio.version} is already installed as planned")

    def _history(self) -> None:
        """Read from the journal what the installs of this migration found and made."""
        self.before: list[dict[str, Any]] = []
        self.created_namespace = False
        known = set()
        for record in self.context.journal.records:
            if record.kind != "install.intent":
                continue
            created = record.data.get("created") or ()
            self.created_namespace |= f"Namespace {self.params.istio.namespace}" in created
            if name := record.data.get("before"):
                for obj in json.loads((self.context.folder / str(name)).read_text(encoding="utf-8")):
                    if title_of(obj) not in known:  # the oldest is what was there before us
                        known.add(title_of(obj))
                        self.before.append(obj)

    def _uninstall(self, plan: Plan) -> object:
        self.record("uninstall.intent", digest=plan.digest)
        with self.narrated() as line:
            cluster_uninstall.execute(
                plan,
                self.params,
                self.context.cluster,
                before=self.before,
                created_namespace=self.created_namespace,
                progress=line,
            )
        self.record("uninstall.done", removed=len(plan.steps))
        return Note("pass", f"{len(plan.steps)} objects taken back")

    def check(self) -> object:
        """Name the new gateway's address; after an uninstall, that nothing is left."""
        if not self.undo:
            return Note("pass", f"gateway load balancer: {self.context.istio_target}")
        left = self.make_plan()
        if left.steps:
            raise Blocked(f"uninstall: {len(left.steps)} objects are left, first: {left.steps[0].target}")
        return Note("pass", left.title)
