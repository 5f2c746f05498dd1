"""The rhythm of every notebook: open, read, plan, gate, act, verify, close.

The order is enforced here through the journal, not by the order of cells: ``act`` refuses a plan whose
digest was not approved, and the state machine refuses a step that is not due.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from gateshift import notify
from gateshift.archive import display
from gateshift.archive.files import atomic_write
from gateshift.archive.opened import Opened, announce
from gateshift.errors import GateClosed, GateshiftError, InputError, LockHeld, RolledBack, Unwritable
from gateshift.migration.guard import LEASE, Guard, anchors, annotations_of, refusal
from gateshift.migration.lease import LeaseLock
from gateshift.migration.lock import LocalLock
from gateshift.notebook.failure import failure_of
from gateshift.notebook.links import place
from gateshift.notebook.progress import narrated, say
from gateshift.notebook.show import Card, Note, PlanView
from gateshift.params import Mode, Params, plain, secrets_of, unset_of
from gateshift.plan import Plan
from gateshift.runbook.context import Context, identity
from gateshift.runbook.gate import Gate
from gateshift.runbook.inputs import project_root
from gateshift.runbook.resume import bury_dead_runs
from gateshift.runbook.standing import changes_of, facts, phase_words
from gateshift.words import tell, use

__all__ = ["Runbook"]

_HOLDING: list[Runbook] = []
"""The run of this process that holds the locks, if any."""


class Runbook:
    """One open notebook run. Subclasses say what is read, planned, done and verified."""

    name: ClassVar[str]
    title: ClassVar[str]
    own: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[bool] = True
    way_back: ClassVar[bool] = False
    """True for a notebook that a full or read-only disk must not stop."""

    def __init__(self, params: Params, extra: Mapping[str, Any]) -> None:
        self.params = params
        self.extra = dict(extra)
        use(params.lang)
        run = os.environ.get("GATESHIFT_RUN") or f"{self.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self.context = Context(params, run=run, params_file=str(self.extra.get("params_file") or ""))
        self.context.journal.way_back = self.way_back
        with self._disk():
            self.context.run_folder.mkdir(parents=True, exist_ok=True)
            announce(Opened(self.context.run_folder, self.name, self._archive_wishes()))
        self._headless = "GATESHIFT_RUN" in os.environ
        if unset := unset_of(params):
            say(tell("params.unset", keys=", ".join(f"{one.key} ({one.reference})" for one in unset)))
        place(project_root() / "notebooks", self.context.run_folder if self._headless else None)
        display.install(secrets_of(params), explain=self._explain)
        self.context.journal.redactor.learn(secrets_of(params))
        self.notifier = self.context.notifier()
        self.context.journal.listener = lambda record: self.notifier.tell(
            notify.event_of(record, self.context.journal.state)
        )
        self._gate = Gate(self.context, needed=self._people_needed(), say=say, tell_people=self.notifier.tell)
        self._lock = LocalLock(self.context.folder / "lock", who=identity()) if self._locks() else None
        self._lease: LeaseLock | None = None
        self.context.journal.inputs = self.params_digest()
        if self._lock:
            self._hold(self._lock)
        self.plan_: Plan | None = None
        self._opened = time.monotonic()
        self._check_environment()
        if not self.context.journal.records:
            self.record("migration.opened", params_digest=self.params_digest())
        self.record("run.started", notebook=self.name, cluster_uid=self._cluster_uid())
        if self._lock:
            self._finish_rollback()

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
        return Card(
            title=f"{self.heading} — {self.params.migration}",
            production=self.context.production,
            facts=facts(
                self.context, who=identity(), ours=self._lock is not None, next_step=self.next_step()
            ),
        )

    @property
    def heading(self) -> str:
        """The notebook's title in the language in use."""
        return tell(f"title.{self.name}")

    def plan(self) -> PlanView:
        """Make, record and show the plan."""
        self.plan_ = self.make_plan()
        redact = self.context.journal.redactor.value
        shown = json.dumps(redact(json.loads(json.dumps(self.plan_.as_json(), default=str))), indent=2)
        with self._disk():
            atomic_write(self.context.run_folder / "plan.json", shown + "\n")
        self.context.journal.inputs = self.plan_.digest
        self.record("plan.shown", plan=self.plan_.as_json())
        return PlanView(self.plan_)

    def gate(self) -> Note:
        """Pass only with mode ``act`` and an approval of this very plan's digest.

        The answer comes from ``approve`` in params, from a person at the prompt, or from
        ``gateshift approve`` in another terminal while the gate waits (``gate_wait``). With
        ``second_person`` two different people must answer; the first answer stays on record. An approval
        on record whose plan was not carried out yet still holds.
        """
        plan = self._planned()
        if plan.empty:
            if self._headless:
                say(tell("gate.nothing"))
            return Note("pass", tell("gate.nothing"))
        if self.params.mode is Mode.PLAN:
            return Note("info", tell("gate.plan_mode", digest=plan.digest))
        return Note("pass", self._gate.go_through(plan))

    def act(self) -> object:
        """Carry out the plan, if the journal has its approval."""
        plan = self._planned()
        if plan.empty:
            return self.nothing_to_do(plan)
        if self.params.mode is Mode.PLAN:
            return Note("info", tell("act.skipped"))
        if not self._gate.passed(plan):
            raise GateClosed(f"plan {plan.digest} of {self.name} is not approved")
        return self.perform(plan)

    def narrated(self) -> AbstractContextManager[Callable[[str], None]]:
        """Show work of the cluster as one wait with a bar and heartbeats; the result takes its lines."""
        return narrated(self.heading, say)

    def nothing_to_do(self, plan: Plan) -> object:
        """Say that reality is already as planned; subclasses may record it."""
        del plan
        return Note("pass", tell("act.already"))

    def verify(self) -> object:
        """Verify the outcome, in mode ``act``."""
        if self.params.mode is Mode.PLAN and self.changes:
            return Note("info", tell("verify.skipped"))
        return self.check()

    def close(self) -> Card:
        """End the run and show where the migration stands."""
        self.record("run.ended", notebook=self.name, outcome="done", cluster_uid=self._cluster_uid())
        self.context.journal.close()
        self.notifier.flush()
        self._let_go()
        seconds = time.monotonic() - self._opened
        percent = self.context.state.weight_percent
        return Card(
            title=tell("card.done", title=self.heading, seconds=f"{seconds:.0f}"),
            production=self.context.production,
            facts={
                tell("card.phase"): phase_words(self.context.state.phase.value),
                tell("card.weights"): f"Istio {percent} %, APISIX {100 - percent} %",
                tell("card.archive"): self.context.run_folder.name,
                tell("card.next"): self.next_step(),
            },
        )

    def next_step(self) -> str:
        """Name the notebook that is due next."""
        from gateshift.runbook.order import next_notebook  # noqa: PLC0415 - order imports the runbooks

        return next_notebook(self.context.state, len(self.params.stages))

    def _hold(self, lock: LocalLock) -> None:
        """Take this machine's lock and the cluster's Lease, or neither; then the journal is ours."""
        # A notebook that is run again in its kernel is the same person at work: the run before ends here.
        for before in tuple(_HOLDING):
            before._let_go()
        lock.acquire()
        _HOLDING.append(self)
        try:
            self._lease = self._take_lease()
            if self._lease is not None:
                journal, migration = self.context.journal, self.params.migration
                refused = refusal(anchors(self._lease.annotations), migration, journal.records)
                if refused is not None:
                    self._stand_back(refused.why, hint=refused.hint)
                self._lease.annotate = lambda: annotations_of(journal, migration)
            self.context.journal.hold(Guard(lock, self._lease))
        except BaseException:
            self._let_go()
            raise
        # A kernel that ends in order leaves no lock behind, and the newest head in the cluster.
        atexit.register(self._let_go)
        for mark in bury_dead_runs(self.context):
            say(f"the run {mark.run} died; this run goes on from the journal")

    def _let_go(self) -> None:
        if self in _HOLDING:
            _HOLDING.remove(self)
        if self._lease:
            self._lease.release()
        if self._lock:
            self._lock.release()

    def _stand_back(self, why: str, *, hint: str) -> None:
        """Refuse to act on the wrong journal, or beside another migration. A rollback says it and goes on."""
        raise LockHeld(why, hint=hint)

    def _finish_rollback(self) -> None:
        """Whatever notebook is run after a rollback died: its weights come first."""
        from gateshift.runbook.retreat import bring_back  # noqa: PLC0415 - retreat imports this module

        state = self.context.state
        if not state.rolling_back or state.rollback_shifted:
            return
        say(f"ROLLBACK under way since {state.rollback_since[:19]}Z, its weights first")
        bring_back(self.context, state.rollback_reason)
        raise RolledBack(
            f"a rollback had begun ({state.rollback_reason}); its weights are back on APISIX now",
            hint="run 80_rollback: it proves that the users are back and collects the evidence",
        )

    def _archive_wishes(self) -> dict[str, Any]:
        """Return ``archive`` of the params for the engine; nothing when a reference in it has no value."""
        try:
            return self.params.archive.model_dump(mode="json")
        except (GateshiftError, ValueError):
            return {}

    def _cluster_uid(self) -> str:
        """The cluster's uid, if this run has spoken to it; a run that needs no cluster does not ask."""
        cluster = self.context.__dict__.get("cluster")
        try:
            return str(cluster.uid) if cluster is not None else ""
        except GateshiftError:
            return ""

    def _take_lease(self) -> LeaseLock | None:
        """Take the cluster's Lease: one migration at a time, for everybody who uses this cluster."""
        lease = LeaseLock(self.context.cluster, *LEASE, who=identity())
        lease.acquire()
        return lease

    def _locks(self) -> bool:
        return self.changes and self.params.mode is Mode.ACT

    # -- helpers -----------------------------------------------------------------------------

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Write files of the archive: what the disk does not take stops a run, but never the way back."""
        try:
            yield
        except OSError as error:
            why = Unwritable.of(error.filename or self.context.run_folder, error)
            if not self.way_back:
                raise why from None
            say(f"{why}; the rollback goes on without it")

    def record(self, kind: str, **data: Any) -> None:
        """Append one record to the journal."""
        self.context.journal.append(kind, **data)

    def params_digest(self) -> str:
        """Digest of the params without their secrets."""
        from gateshift.plan import digest_of  # noqa: PLC0415 - keeps the module's imports to what it shows

        changing = {"mode", "approve", "approver", "confirm_namespace", "lang", "notify"}
        return digest_of(plain(self.params, leave_out=changing))

    def _people_needed(self) -> int:
        """How many people must approve a plan of this notebook."""
        return 2 if self.params.second_person else 1

    def _planned(self) -> Plan:
        if self.plan_ is None:
            raise GateshiftError("no plan was made in this run", hint="run the plan cell first")
        return self.plan_

    def _check_environment(self) -> None:
        if self.context.production and os.environ.get("GATESHIFT_LAB_ONLY"):
            raise InputError("this process was started for the lab, the params say production")

    def _explain(self, error: BaseException) -> object:
        """Return what a person is shown for *error*, with what this run changed and what it did not."""
        changed, kept = changes_of(self.context.state, self.context.journal.records, self.context.run)
        self.notifier.tell(notify.problem(error, self.name, self.context.state))
        self.notifier.flush()
        return failure_of(error, changed=changed, unchanged=kept)
