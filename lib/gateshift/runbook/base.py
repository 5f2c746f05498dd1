"""The rhythm of every notebook: open, read, plan, gate, act, verify, close.

The order is enforced here through the journal, not by the order of cells: ``act`` refuses a plan whose
digest was not approved, and the state machine refuses a step that is not due.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from gateshift.archive import display
from gateshift.errors import GateClosed, GateshiftError, InputError
from gateshift.migration.lock import LeaseLock, LocalLock
from gateshift.notebook.show import Card, Note, PlanView
from gateshift.params import Mode, Params, secrets_of
from gateshift.plan import Plan
from gateshift.runbook.approvals import read_approval
from gateshift.runbook.context import Context, identity

__all__ = ["Runbook", "say"]


def say(text: str) -> None:
    """Print one progress line at once, so that papermill's archive and the terminal see it live."""
    print(f"{datetime.now(UTC):%H:%M:%S}Z {text}", flush=True)


class Runbook:
    """One open notebook run. Subclasses say what is read, planned, done and verified."""

    name: ClassVar[str]
    title: ClassVar[str]
    own: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[bool] = True

    def __init__(self, params: Params, extra: Mapping[str, Any]) -> None:
        self.params = params
        self.extra = dict(extra)
        run = os.environ.get("GATESHIFT_RUN") or f"{self.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self.context = Context(params, run=run)
        self.context.run_folder.mkdir(parents=True, exist_ok=True)
        display.install(secrets_of(params))
        self.context.journal.redactor.learn(secrets_of(params))
        self._lock = LocalLock(self.context.folder / "lock", who=identity()) if self._locks() else None
        self._lease: LeaseLock | None = None
        if self._lock:
            self._lock.acquire()
            self._lease = self._take_lease()
            self.context.journal.hold(self._lock)
        self.plan_: Plan | None = None
        self._opened = time.monotonic()
        self._check_environment()
        if not self.context.journal.records:
            self.record("migration.opened", params_digest=self.params_digest())
        self.record("run.started", notebook=self.name)

    # -- what subclasses fill in -------------------------------------------------------------

    def read(self) -> object:
        """Read the facts and return something to show."""
        return Note("info", "nothing to read")

    def make_plan(self) -> Plan:
        """Return what would change."""
        return Plan(kind=self.name, title=self.title, steps=(), way_back="nothing is changed")

    def perform(self, plan: Plan) -> object:
        """Carry out an approved plan."""
        return Note("info", "nothing to do")

    def check(self) -> object:
        """Verify the outcome and return something to show."""
        return Note("pass", "nothing was changed")

    # -- the rhythm --------------------------------------------------------------------------

    def card(self) -> Card:
        """Return the status card."""
        state = self.context.state
        return Card(
            title=f"{self.title} — {self.params.migration}",
            production=self.context.production,
            facts={
                "mode": f"{self.params.mode.value}"
                + (" (reads and shows only)" if self.params.mode is Mode.PLAN else ""),
                "cluster": self.params.cluster.context or self.params.cluster.kubeconfig or "current context",
                "phase": state.phase.value,
                "weight on Istio": f"{state.weight_percent} %",
                "last verdict": state.verdicts[-1] if state.verdicts else "none yet",
                "holder of the lock": identity() if self._lock else "not taken (read-only)",
                "run": self.context.run,
                "way back": f"gateshift rollback (migration {self.params.migration}) or 80_rollback.ipynb",
            },
        )

    def plan(self) -> PlanView:
        """Make, record and show the plan."""
        self.plan_ = self.make_plan()
        target = self.context.run_folder / "plan.json"
        target.write_text(json.dumps(self.plan_.as_json(), indent=2, default=str) + "\n")
        self.record("plan.shown", plan=self.plan_.as_json())
        return PlanView(self.plan_)

    def gate(self) -> Note:
        """Pass only with mode ``act`` and an approval of this very plan's digest.

        The answer comes from ``approve`` in params, from a person at the prompt, or from
        ``gateshift approve`` in another terminal while the gate waits (``gate_wait``).
        """
        plan = self._planned()
        if plan.empty:
            return Note("pass", "nothing would change; no approval needed")
        if self.params.mode is Mode.PLAN:
            return Note("info", f"mode is plan: nothing is changed. To act: mode=act approve={plan.digest}")
        how, who = self._answer(plan)
        self.record("plan.approved", digest=plan.digest, who=who, how=how)
        return Note("pass", f"plan {plan.digest} approved by {who} ({how})")

    def act(self) -> object:
        """Carry out the plan, if the journal has its approval."""
        plan = self._planned()
        if plan.empty:
            return self.nothing_to_do(plan)
        if self.params.mode is Mode.PLAN:
            return Note("info", "mode is plan: skipped")
        if plan.digest not in self.context.state.approvals:
            raise GateClosed(f"plan {plan.digest} of {self.name} is not approved")
        return self.perform(plan)

    def nothing_to_do(self, plan: Plan) -> object:
        """Say that reality is already as planned; subclasses may record it."""
        del plan
        return Note("pass", "already as planned; nothing was changed")

    def verify(self) -> object:
        """Verify the outcome, in mode ``act``."""
        if self.params.mode is Mode.PLAN and self.changes:
            return Note("info", "mode is plan: nothing to verify")
        return self.check()

    def close(self) -> Card:
        """End the run and show where the migration stands."""
        self.record("run.ended", notebook=self.name, outcome="done")
        self.context.journal.close()
        if self._lease:
            self._lease.release()
        if self._lock:
            self._lock.release()
        seconds = time.monotonic() - self._opened
        return Card(
            title=f"{self.title} — done in {seconds:.0f} s",
            production=self.context.production,
            facts={
                "phase": self.context.state.phase.value,
                "weight on Istio": f"{self.context.state.weight_percent} %",
                "archive": self.context.run_folder.name,
                "next": self.next_step(),
            },
        )

    def next_step(self) -> str:
        """Name the notebook that is due next."""
        from gateshift.runbook.order import next_notebook  # noqa: PLC0415 - order imports the runbooks

        return next_notebook(self.context.state, len(self.params.stages))

    def _take_lease(self) -> LeaseLock | None:
        """Take the cluster's Lease: one migration at a time, for everybody who uses this cluster."""
        lease = LeaseLock(self.context.cluster, "kube-system", "gateshift", who=identity())
        lease.acquire()
        return lease

    def _locks(self) -> bool:
        return self.changes and self.params.mode is Mode.ACT

    # -- helpers -----------------------------------------------------------------------------

    def record(self, kind: str, **data: Any) -> None:
        """Append one record to the journal."""
        self.context.journal.append(kind, **data)

    def params_digest(self) -> str:
        """Digest of the params without their secrets."""
        from gateshift.plan import digest_of  # noqa: PLC0415 - keeps the module's imports to what it shows

        return digest_of(
            self.params.model_dump(mode="json", exclude={"mode", "approve", "approver", "confirm_namespace"})
        )

    def _planned(self) -> Plan:
        if self.plan_ is None:
            raise GateshiftError("no plan was made in this run", hint="run the plan cell first")
        return self.plan_

    def _check_environment(self) -> None:
        if self.context.production and os.environ.get("GATESHIFT_LAB_ONLY"):
            raise InputError("this process was started for the lab, the params say production")

    def _answer(self, plan: Plan) -> tuple[str, str]:
        if self.params.approve:
            if self.params.approve != plan.digest:
                raise GateClosed(
                    f"the approval names {self.params.approve}, but the plan changed: it is {plan.digest}",
                    hint="read the new plan and approve its digest",
                )
            return "params", self.params.approver or identity()
        if sys.stdin is not None and _interactive():
            answer = input(f"Approve plan {plan.digest}? Type the digest (or its first 4 digits) to go on: ")
            if len(answer.strip()) >= 4 and plan.digest.startswith(answer.strip()):
                return "prompt", identity()
            raise GateClosed(f"plan {plan.digest} was not approved at the prompt")
        return self._wait_for_file(plan)

    def _wait_for_file(self, plan: Plan) -> tuple[str, str]:
        folder = self.context.folder
        deadline = time.monotonic() + self.params.gate_wait
        who = read_approval(folder, plan.digest)
        if who is None and self.params.gate_wait:
            say(f"gate: plan {plan.digest} waits for approval ({self.params.gate_wait:.0f} s)")
        while who is None:
            if time.monotonic() >= deadline:
                raise GateClosed(f"plan {plan.digest} of {self.name} waits for approval")
            time.sleep(0.2)
            who = read_approval(folder, plan.digest)
        return "approval file", who


def _interactive() -> bool:
    """True when this kernel's front end can answer ``input()``."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]  # injected by IPython
    except NameError:
        return sys.stdin.isatty()
    kernel = getattr(shell, "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
