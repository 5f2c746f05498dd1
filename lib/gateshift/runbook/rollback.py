"""Roll back: the operator's way back to APISIX."""

from __future__ import annotations

import threading
import time
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar

from gateshift.archive.files import atomic_write
from gateshift.diagnose.model import Cause, Level
from gateshift.errors import (
    ClusterError,
    GateshiftError,
    InputError,
    LockHeld,
    NotEnoughEvidence,
    TrafficError,
    Unwritable,
)
from gateshift.migration.identity import identity
from gateshift.migration.lease import LeaseLock
from gateshift.migration.lock import LocalLock
from gateshift.notebook.progress import say
from gateshift.notebook.show import Note, Table
from gateshift.plan import Plan, Step
from gateshift.runbook.approvals import JOURNAL
from gateshift.runbook.base import Runbook
from gateshift.runbook.retreat import (
    NOTHING_OF_THE_CLUSTER,
    Return,
    bring_back,
    collect_evidence,
    still_back,
    watch_return,
)
from gateshift.words import gloss, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Rollback"]

_LEASE_PATIENCE = 1.0
"""Seconds the cluster's Lease may take: a cluster out of reach must not delay the way back."""
_WATCHES = 3

_TREES = {
    "gateway": "tree 1",
    "404": "tree 2",
    "503": "tree 3",
    "latency": "tree 4",
    "rate-limit": "tree 5",
}
"""The guide's troubleshooting trees by symptom."""


class Rollback(Runbook):
    """``80_rollback``: weights first, then the proof that users are back, then the evidence.

    Possible from any state: while another run holds the lock (that run ends at its next look into the
    journal), after a run that died, and with the cluster out of reach.
    """

    name: ClassVar[str] = "80_rollback"
    title: ClassVar[str] = "Roll back"
    own: ClassVar[frozenset[str]] = frozenset({"reason", "asked"})
    way_back: ClassVar[bool] = True

    def _hold(self, lock: LocalLock) -> None:
        try:
            super()._hold(lock)
        except Unwritable as full:
            self._lock = self._lease = None
            say(f"{full}; the rollback goes on without this machine's lock")
        except LockHeld as held:
            self._lock = self._lease = None
            say(f"{held}; the rollback does not wait for it: that run ends at its next look into the journal")

    def _stand_back(self, why: str, *, hint: str) -> None:
        say(f"{why}; a rollback goes on in any case ({hint})")

    def _people_needed(self) -> int:
        """One confirmation is enough for the way back, whatever the way forward asks for."""
        return 1

    def _finish_rollback(self) -> None:
        """This notebook is the one that finishes: its cells do it in their order."""

    def _take_lease(self) -> LeaseLock | None:
        """Take the Lease if that is quick; a rollback goes on without it."""
        found: list[LeaseLock | None] = []
        why = f"the cluster did not answer within {_LEASE_PATIENCE:g} s"

        def take() -> None:
            nonlocal why
            try:
                found.append(super(Rollback, self)._take_lease())
            except (ClusterError, InputError, LockHeld) as error:  # also the wrong cluster, or none named
                why = str(error)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(_LEASE_PATIENCE)
        if not found:
            say(f"the rollback goes on without the cluster's Lease: {why}")
        return found[0] if found else None

    def read(self) -> object:
        """Show the weights and whether a rollback is already under way."""
        self.already = self.context.state.rolling_back
        rows = [("rollback under way", "yes: this run finishes it" if self.already else "no")]
        try:
            weights = self.context.shifter(back_only=True).read()
        except TrafficError as error:
            rows.append(("weight on Istio", f"cannot be read in full: {error}"))
        else:
            percent = weights.istio_percent
            rows.append(("weight on Istio", "not the same everywhere" if percent is None else f"{percent} %"))
            rows += [(host, f"{w.istio_percent} %") for host, w in weights.hosts.items() if percent is None]
        return Table("Now", ("what", "value"), tuple(rows))

    def make_plan(self) -> Plan:
        """Weights to APISIX, then proof and evidence."""
        shift = self.context.shifter(back_only=True).plan(0)
        follow = Step("verify", "observed share", None, ">= 99 % on APISIX", "then evidence and checklist")
        return Plan(
            kind=self.name,
            title="All traffic back to APISIX; Istio stays for investigation",
            steps=(*shift.steps, follow),
            way_back="a new canary, after the cause is fixed",
        )

    def gate(self) -> Note:
        """A rollback that has started needs no second confirmation: it must finish."""
        plan = self._planned()
        if self.already:
            self.record("plan.approved", digest=plan.digest, who=JOURNAL, how="rollback already started")
            return Note("pass", "the rollback has started and will be finished")
        return super().gate()

    def confirm(self) -> None:
        """Record the one confirmation of a person who gave it with the command."""
        who = identity()
        self.record("plan.approved", digest=self._planned().digest, who=who, how="--yes", account=who)

    def shift_back(self) -> float:
        """Put the weights back; return the seconds from the command (or the gate) to the acceptance."""
        asked = self.extra.get("asked")
        reason = str(self.extra.get("reason") or "asked by the operator")
        return bring_back(self.context, reason, asked=None if asked is None else float(asked))

    def perform(self, plan: Plan) -> object:
        """Bring back, watch, collect, fill the checklist."""
        del plan
        begun = self._started_at()
        to_dns = self.shift_back()
        seen = self._watch(begun, to_dns)
        to_users = time.time() - begun if seen.proven else None
        missing = collect_evidence(self.context, self._write)
        self.checklist = self._fill(to_dns, seen, missing)
        self.record(
            "rollback.done",
            seconds_to_dns=to_dns,
            seconds_to_users=to_users,
            checklist=[list(c) for c in self.checklist],
            unchecked=missing,
        )
        if to_users is None:
            raise NotEnoughEvidence(
                f"the weights are back on APISIX, but it is not proven that the users are ({seen.why})",
                hint="look at APISIX's own access log, then run 80_rollback again",
            )
        return Note("pass", tell("rollback.proven", seconds=f"{to_users:.0f}"))

    def _watch(self, begun: float, to_dns: float) -> Return:
        """Watch the users come back; weights that somebody moves in the meantime are set back again."""
        # Imported late, as everything here that the weights do not need: what draws is slow to load.
        from gateshift.notebook.live import LiveFigure  # noqa: PLC0415 - see above
        from gateshift.notebook.progress import Waiting  # noqa: PLC0415 - see above
        from gateshift.notebook.return_plot import return_figure  # noqa: PLC0415 - see above

        limit = self.params.traffic.rollback_target
        waiting, live = Waiting(tell("wait.return"), say, every=5.0), LiveFigure()

        def figure(seen: Return) -> Figure:
            title = f"{self.params.migration}: rollback, observed share"
            return return_figure(seen.shares, begun, begun + to_dns, limit, title=title)

        def redraw(seen: Return) -> None:
            share = "?" if seen.percent is None else f"{100 - seen.percent:.1f}"
            waiting.beat(seen.seconds, limit, tell("wait.return.reason", share=share))
            if seen.shares:
                live.update(lambda: figure(seen))

        seen = Return()
        for _ in range(_WATCHES):
            seen = watch_return(self.context, redraw)
            if still_back(self.context):
                break
        live.finish()
        waiting.close(well=seen.proven)
        return seen

    def _fill(self, to_dns: float, seen: Return, missing: list[str]) -> list[tuple[str, str, str]]:
        """Fill the guide's five points."""
        share = "nothing was seen" if seen.percent is None else f"{seen.percent:.1f} % on APISIX"
        recovered = share if seen.proven else f"{share}: {seen.why}"
        away = [one for one in missing if one.startswith(NOTHING_OF_THE_CLUSTER)]
        causes = (Cause(Level.INFO, "not asked", away[0], ""),) if away else self._causes()
        known = any(cause.level is not Level.INFO for cause in causes)
        return [
            ("DNS back at 100 % APISIX", "pass", f"accepted after {to_dns:.1f} s"),
            ("traffic confirmed recovered", "pass" if seen.proven else "warn", recovered),
            (
                "Istio error logs collected",
                "warn" if missing else "pass",
                f"could not be collected: {'; '.join(missing)}" if missing else "in the archive: evidence/",
            ),
            ("root cause analysed", "info", _told(causes) if known else _unknown(causes)),
            ("configuration fixed, then retry", "info", "open: a person's decision"),
        ]

    def _started_at(self) -> float:
        for record in reversed(self.context.journal.records):
            if record.kind == "rollback.started" and self.context.state.rolling_back:
                return record.unix
        return time.time()

    def _write(self, name: str, text: str) -> None:
        folder = self.context.run_folder / "evidence"
        with self._disk():
            folder.mkdir(exist_ok=True)
            atomic_write(folder / name, self.context.journal.redactor.text(text))

    def _causes(self) -> tuple[Cause, ...]:
        """Run the tree that the rollback's reason speaks of; the whole answer goes into the evidence."""
        from gateshift import diagnose  # noqa: PLC0415 - the weights come first

        reason = self.context.state.rollback_reason or str(self.extra.get("reason") or "")
        try:
            causes = diagnose.explain_rollback(reason, self.context, progress=say)
        except GateshiftError as error:
            return (Cause(Level.INFO, "not known", str(error), error.hint),)
        self._write("causes.json", diagnose.archived(causes, self.context.journal.redactor.text))
        return causes

    def check(self) -> object:
        """Show the guide's checklist."""
        rows = tuple((standing, gloss(what), gloss(how)) for what, standing, how in self.checklist)
        return Table("Rollback checklist", ("result", "item", "detail"), rows)


def _told(causes: tuple[Cause, ...]) -> str:
    """Name the likeliest causes, each with its troubleshooting tree (the notebook's name becomes a link).

    One cause at several places (services, pods) is named once, with what was seen at each.
    """
    places: dict[tuple[str, str, str], list[str]] = {}
    for cause in causes:
        if cause.level is not Level.INFO:
            key = cause.title, cause.symptom, _TREES.get(cause.symptom, cause.reference)
            places.setdefault(key, []).append(shorten(cause.evidence, 160, placeholder=" …"))
    return "; ".join(
        f"{'likely' if i == 0 else 'or'} {title} ({'; '.join(seen[:3])}; "
        f"90_troubleshoot with symptom={symptom}, {tree})"
        for i, ((title, symptom, tree), seen) in enumerate(list(places.items())[:3])
    )


def _unknown(causes: tuple[Cause, ...]) -> str:
    unasked = "; ".join(
        f"{cause.title}: {shorten(cause.evidence, 120, placeholder=' …')}" for cause in causes[:2]
    )
    return f"no finding: look at the evidence, then 90_troubleshoot{f' ({unasked})' if unasked else ''}"
