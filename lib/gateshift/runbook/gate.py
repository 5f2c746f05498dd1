"""The gate before every change: who approved which plan, in params, at the prompt or in another terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateshift import notify
from gateshift.errors import GateClosed
from gateshift.migration.state import CONSUMING
from gateshift.notebook.progress import Waiting
from gateshift.notebook.show import PlanView
from gateshift.plan import Plan
from gateshift.runbook.approvals import JOURNAL, Approval, nameable, read_approval
from gateshift.runbook.context import Context, identity
from gateshift.runbook.standing import typed
from gateshift.words import gloss, tell

__all__ = ["Gate"]

_HOW = {
    "params": "gate.how.params",
    "prompt": "gate.how.prompt",
    "approval file": "gate.how.file",
}

_LOOK = 0.2
"""Seconds between two looks for an approval from elsewhere."""


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
        # The command is copied into another terminal: without the file it would look for the lab's plans.
        self._params = typed(context.params_file)

    def people(self, plan: Plan) -> Mapping[str, str]:
        """Who has approved *plan*, each with the account it was given from, as the journal has it."""
        return self.context.state.approvers.get(plan.digest, {})

    def passed(self, plan: Plan) -> bool:
        """True when enough people approved *plan*, from as many accounts, or the journal itself allows it."""
        people = self.people(plan)
        return JOURNAL in people or min(len(people), len(set(people.values()))) >= self.needed

    def go_through(self, plan: Plan) -> str:
        """Get the approvals that are missing and return a sentence about them.

        Raises :class:`~gateshift.errors.GateClosed` when one is refused or does not come in time; what was
        given until then stays on record.
        """
        if self.passed(plan):
            return tell("gate.on_record", digest=plan.digest, who=_names(self.people(plan)))
        ways = []
        while not self.passed(plan):
            how, (who, account) = self._answer(plan, self.people(plan))
            self.context.journal.append(
                "plan.approved", digest=plan.digest, who=who, how=how, account=account
            )
            ways.append(tell(_HOW[how]))
        return tell("gate.approved", digest=plan.digest, who=_names(self.people(plan)), how=", ".join(ways))

    def _answer(self, plan: Plan, besides: Mapping[str, str]) -> tuple[str, Approval]:
        here = identity()
        if self.params.approve:
            if self.params.approve != plan.digest:
                raise GateClosed(
                    f"the approval names {self.params.approve}, but the plan changed: it is {plan.digest}",
                    hint="read the new plan and approve its digest",
                )
            who = nameable(self.params.approver or here)
            if who not in besides and here not in besides.values():
                return "params", Approval(who, here)
        elif sys.stdin is not None and here not in {*besides, *besides.values()} and _interactive():
            answer = self._ask_person(plan, besides)
            if isinstance(answer, Approval):
                return "approval file", answer
            if len(answer.strip()) >= 4 and plan.digest.startswith(answer.strip().lower()):
                return "prompt", Approval(here, here)
            raise GateClosed(tell("gate.refused", digest=plan.digest))
        return self._wait_for_file(plan, besides)

    def _ask_person(self, plan: Plan, besides: Mapping[str, str]) -> str | Approval:
        """Return what a person typed, or at a terminal an approval from elsewhere that came first."""
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
        if _kernel() is not None:
            # A notebook's input() cannot be interrupted; there the person types.
            return input(tell("gate.type", digest=plan.digest))
        print(tell("gate.type.terminal", digest=plan.digest, params=self._params), end="", flush=True)
        since = self._last_carried_out()
        while not select.select([sys.stdin], [], [], _LOOK)[0]:
            if given := self._given(plan, besides, since):
                print(flush=True)
                return given
        return sys.stdin.readline()

    def _given(self, plan: Plan, besides: Mapping[str, str], since: float) -> Approval | None:
        accounts = set(besides.values())
        return read_approval(self.context.folder, plan.digest, besides, accounts=accounts, since=since)

    def _wait_for_file(self, plan: Plan, besides: Mapping[str, str]) -> tuple[str, Approval]:
        allowed = self.params.gate_wait
        begun = time.monotonic()
        since = self._last_carried_out()
        given = self._given(plan, besides, since)
        if given is None:
            self._tell_people(notify.waiting(plan.digest, plan.title, self.context.state))
        if given is None and not besides and "GATESHIFT_RUN" in os.environ:
            print(repr(PlanView(plan)), flush=True)  # whoever waits in a terminal has not seen it yet
        if besides and given is None:
            self._say(tell("gate.second", digest=plan.digest, who=_names(besides), params=self._params))
        waiting = None
        if given is None and allowed:
            what = tell("gate.wait", digest=plan.digest, params=self._params)
            waiting = Waiting(what, self._say, every=30.0)
        while given is None:
            spent = time.monotonic() - begun
            if spent >= allowed:
                raise self._closed(plan, besides)
            if waiting:
                why = tell("gate.waits", digest=plan.digest, params=self._params)
                waiting.beat(spent, allowed, why, left=allowed - spent)
            time.sleep(_LOOK)
            given = self._given(plan, besides, since)
        if waiting:
            waiting.close()
        return "approval file", given

    def _closed(self, plan: Plan, besides: Collection[str]) -> GateClosed:
        if not besides:
            return GateClosed(f"plan {plan.digest} of {plan.kind} waits for approval")
        command = f"gateshift approve -f {self._params} {plan.digest} --who NAME"
        return GateClosed(
            f"plan {plan.digest} was approved by {_names(besides)}; a second person must approve it, too",
            hint=f"another person, from an account of their own: `{command}`; then run the notebook again",
        )

    def _last_carried_out(self) -> float:
        """Unix seconds of the newest record that used approvals up."""
        for record in reversed(self.context.journal.records):
            if record.kind in CONSUMING:
                return record.unix
        return 0.0


def _names(people: Collection[str]) -> str:
    return ", ".join(sorted(people))


def _kernel() -> Any:
    """Return the Jupyter kernel that this process is, or None at a terminal."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]  # injected by IPython
    except NameError:
        return None
    return getattr(shell, "kernel", None)


def _interactive() -> bool:
    """True when a person can answer: at a terminal, or in a front end of this kernel."""
    kernel = _kernel()
    return sys.stdin.isatty() if kernel is None else bool(getattr(kernel, "_allow_stdin", False))
