"""The gate before every change: who approved which plan, in params, at the prompt or in another terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection

from gateshift import notify
from gateshift.errors import GateClosed
from gateshift.migration.state import CONSUMING
from gateshift.notebook.progress import Waiting
from gateshift.notebook.show import PlanView
from gateshift.plan import Plan
from gateshift.runbook.approvals import JOURNAL, nameable, read_approval
from gateshift.runbook.context import Context, identity
from gateshift.words import gloss, tell

__all__ = ["Gate"]

_HOW = {
    "params": "gate.how.params",
    "prompt": "gate.how.prompt",
    "approval file": "gate.how.file",
}


class Gate:
    """Asks until *needed* different people have approved a plan's digest; the journal keeps each answer."""

    def __init__(
        self,
        context: Context,
        *,
        needed: int,
        say: Callable[[str], None],
        tell_people: Callable[[notify.Event | None], object],
    ) -> None:
        self.context, self.params = context, context.params
        self.needed = needed
        self._say, self._tell_people = say, tell_people

    def people(self, plan: Plan) -> frozenset[str]:
        """Who has approved *plan*, as the journal has it."""
        return self.context.state.approvers.get(plan.digest, frozenset())

    def passed(self, plan: Plan) -> bool:
        """True when enough people approved *plan*, or the journal itself allows it."""
        people = self.people(plan)
        return JOURNAL in people or len(people) >= self.needed

    def go_through(self, plan: Plan) -> str:
        """Get the approvals that are missing and return a sentence about them.

        Raises :class:`~gateshift.errors.GateClosed` when one is refused or does not come in time; what was
        given until then stays on record.
        """
        if self.passed(plan):
            return tell("gate.on_record", digest=plan.digest, who=_names(self.people(plan)))
        ways = []
        while not self.passed(plan):
            how, who = self._answer(plan, self.people(plan))
            self.context.journal.append("plan.approved", digest=plan.digest, who=who, how=how)
            ways.append(tell(_HOW[how]))
        return tell("gate.approved", digest=plan.digest, who=_names(self.people(plan)), how=", ".join(ways))

    def _answer(self, plan: Plan, besides: Collection[str]) -> tuple[str, str]:
        if self.params.approve:
            if self.params.approve != plan.digest:
                raise GateClosed(
                    f"the approval names {self.params.approve}, but the plan changed: it is {plan.digest}",
                    hint="read the new plan and approve its digest",
                )
            who = nameable(self.params.approver or identity())
            return ("params", who) if who not in besides else self._wait_for_file(plan, besides)
        if sys.stdin is not None and _interactive() and identity() not in besides:
            answer = self._ask_person(plan)
            if len(answer.strip()) >= 4 and plan.digest.startswith(answer.strip().lower()):
                return "prompt", identity()
            raise GateClosed(tell("gate.refused", digest=plan.digest))
        return self._wait_for_file(plan, besides)

    def _ask_person(self, plan: Plan) -> str:
        where = tell("where.production" if self.context.production else "where.lab")
        print(
            tell(
                "gate.question",
                where=where,
                count=len(plan.steps),
                title=gloss(plan.title),
                back=gloss(plan.way_back).rstrip("."),
            ),
            flush=True,
        )
        return input(tell("gate.type", digest=plan.digest))

    def _wait_for_file(self, plan: Plan, besides: Collection[str]) -> tuple[str, str]:
        folder, allowed = self.context.folder, self.params.gate_wait
        begun = time.monotonic()
        since = self._last_carried_out()
        who = read_approval(folder, plan.digest, besides, since=since)
        if who is None:
            self._tell_people(notify.waiting(plan.digest, plan.title))
        if who is None and not besides and "GATESHIFT_RUN" in os.environ:
            print(repr(PlanView(plan)), flush=True)  # whoever waits in a terminal has not seen it yet
        if besides and who is None:
            self._say(tell("gate.second", digest=plan.digest, who=_names(besides)))
        waiting = None
        if who is None and allowed:
            waiting = Waiting(tell("gate.wait", digest=plan.digest), self._say, every=30.0)
        while who is None:
            spent = time.monotonic() - begun
            if spent >= allowed:
                raise _closed(plan, besides)
            if waiting:
                waiting.beat(spent, allowed, tell("gate.waits", digest=plan.digest), left=allowed - spent)
            time.sleep(0.2)
            who = read_approval(folder, plan.digest, besides, since=since)
        if waiting:
            waiting.close()
        return "approval file", who

    def _last_carried_out(self) -> float:
        """Unix seconds of the newest record that used approvals up."""
        for record in reversed(self.context.journal.records):
            if record.kind in CONSUMING:
                return record.unix
        return 0.0


def _closed(plan: Plan, besides: Collection[str]) -> GateClosed:
    if not besides:
        return GateClosed(f"plan {plan.digest} of {plan.kind} waits for approval")
    return GateClosed(
        f"plan {plan.digest} was approved by {_names(besides)}; a second person must approve it, too",
        hint=f"another person: `gateshift approve {plan.digest} --who NAME`; then run the notebook again",
    )


def _names(people: Collection[str]) -> str:
    return ", ".join(sorted(people))


def _interactive() -> bool:
    """True when this kernel's front end can answer ``input()``."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]  # injected by IPython
    except NameError:
        return sys.stdin.isatty()
    kernel = getattr(shell, "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))
