"""What each kind of record does to the state, and what it needs to be legal; the table is in ``state``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from gateshift.migration.phases import Entry, Phase, RunMark, State, VerdictMark

Step = Callable[[State, Entry], State]


class Illegal(Exception):  # noqa: N818 - never leaves this room
    """Why a transition is not legal, in words that follow 'record N (kind): '."""


def need(condition: bool, why: str) -> None:
    """Raise :class:`Illegal` with *why* unless *condition* holds."""
    if not condition:
        raise Illegal(why)


def opened(state: State, entry: Entry) -> State:
    """Begin the migration; opening it again with other params only changes their digest."""
    phase = Phase.OPENED if state.phase is Phase.NEW else state.phase
    return replace(state, phase=phase, params_digest=str(entry.data["params_digest"]))


def run_started(state: State, entry: Entry) -> State:
    """Note a run that is open until its end is on record."""
    mark = RunMark(entry.run, str(entry.data["notebook"]), entry.time)
    return replace(state, runs=(*state.runs, mark))


def run_ended(state: State, entry: Entry) -> State:
    """Close the newest open run of that name."""
    run, notebook = str(entry.data.get("run", entry.run)), str(entry.data["notebook"])
    runs = list(state.runs)
    for index in range(len(runs) - 1, -1, -1):
        mark = runs[index]
        if (mark.run, mark.notebook) == (run, notebook) and not mark.ended:
            runs[index] = replace(mark, ended=entry.time, outcome=str(entry.data["outcome"]))
            return replace(state, runs=tuple(runs))
    raise Illegal(f"run {run} of {notebook} is not open")


def plan_shown(state: State, entry: Entry) -> State:
    """Note a plan; one of the same kind with another digest voids what was approved before."""
    plan = entry.data["plan"]
    kind, digest = str(plan["kind"]), str(plan["digest"])
    # A changed plan voids what was approved for its kind.
    void = {old for old, of in state.plans.items() if of == kind and old != digest}
    return replace(
        state,
        plans={**state.plans, digest: kind},
        approvals=state.approvals - void,
        approvers={d: who for d, who in state.approvers.items() if d not in void},
    )


def plan_approved(state: State, entry: Entry) -> State:
    """Note who approved which digest; only a plan that was shown can be approved."""
    digest = str(entry.data["digest"])
    need(digest in state.plans, f"no plan with digest {digest} was shown")
    who = str(entry.data["who"])
    # Journals from before accounts were recorded: there a name stands for its account.
    people = {who: str(entry.data.get("account") or who), **state.approvers.get(digest, {})}
    return replace(state, approvals=state.approvals | {digest}, approvers={**state.approvers, digest: people})


def preflight(state: State, entry: Entry) -> State:
    """Move on after the checks passed, unless the migration is further already."""
    if state.phase not in {Phase.OPENED, Phase.PREFLIGHTED}:
        return state  # later on it is information; what was installed stays installed
    return replace(state, phase=Phase.PREFLIGHTED if entry.data["ok"] else Phase.OPENED)


def intent(what: str) -> Step:
    """Return the step that notes *what* as begun and not ended."""

    def apply(state: State, entry: Entry) -> State:
        del entry
        return replace(state, pending=what)

    return apply


def outcome(what: str, phase: Phase) -> Step:
    """Return the step that ends *what* and leads to *phase*; approvals are used up by it."""

    def apply(state: State, entry: Entry) -> State:
        del entry
        need(state.pending == what, f"the intent of {what} is not on record before it")
        # An approval is for one time: the same plan, due again later, is shown and approved again.
        return replace(state, phase=phase, pending="", approvals=frozenset(), approvers={})

    return apply


def verified(state: State, entry: Entry) -> State:
    """Move on after a verification that passed; one that failed takes it back."""
    if state.phase not in {Phase.APPLIED, Phase.VERIFIED, Phase.ROLLED_BACK}:
        return state
    if entry.data["ok"]:
        return replace(state, phase=Phase.VERIFIED)
    return state if state.phase is Phase.ROLLED_BACK else replace(state, phase=Phase.APPLIED)


def stage_entered(state: State, entry: Entry) -> State:
    """Begin the observation of the stage that is due."""
    stage, weight = int(entry.data["stage"]), int(entry.data["weight"])
    need(stage == state.stage_index, f"stage {stage} is not due, stage {state.stage_index} is")
    need(weight >= state.weight_percent, f"weight {weight} % is below the {state.weight_percent} % in force")
    need(0 < weight <= 100, f"weight {weight} % is not within 1-100")
    return replace(
        state,
        phase=Phase.CANARY,
        stage_entered=stage,
        stage_weight=weight,
        arrived=False,
        stage_verdict=None,
    )


def prepare_intent(state: State, entry: Entry) -> State:
    """The records become weighted, nobody is moved; what they were before the first time is what is restored.

    With one mechanism that is before its first shift. Of two, the second is prepared when its first stage
    comes, and what the first one has moved stays where it is.
    """
    snapshot = entry.data["snapshot"]
    mechanism = str(snapshot.get("mechanism", "")) if isinstance(snapshot, Mapping) else ""
    ready = state.weight_percent == 0 or "+" in mechanism
    need(ready and state.shifting_to is None, "traffic is on Istio already")
    return replace(state, original=state.original if state.original is not None else entry.data["snapshot"])


def shift_intent(state: State, entry: Entry) -> State:
    """Note the weight that is being asked for: until its outcome DNS is at either."""
    before, after, stage = int(entry.data["from"]), int(entry.data["to"]), int(entry.data["stage"])
    need(state.stage_entered == stage, f"stage {stage} was not entered")
    need(before == state.weight_percent, f"it starts from {before} %, in force are {state.weight_percent} %")
    need(after <= state.stage_weight, f"stage {stage} allows {state.stage_weight} %, not {after} %")
    need(after >= before, "a weight goes down only by a rollback")
    need(
        state.shifting_to in {None, after},
        f"a shift to {state.shifting_to} % is under way",
    )
    original = state.original if state.original is not None else entry.data.get("snapshot")
    return replace(state, shifting_to=after, original=original)


def shift_done(state: State, entry: Entry) -> State:
    """Note the weight that the provider confirmed."""
    after = int(entry.data["to"])
    need(state.shifting_to == after, f"no shift to {after} % is under way")
    return replace(state, weight_percent=after, shifting_to=None)


def _at_stage(state: State, entry: Entry) -> None:
    stage = int(entry.data["stage"])
    need(state.stage_entered == stage, f"stage {stage} was not entered")
    need(
        state.shifting_to is None and state.weight_percent == state.stage_weight,
        f"the weight of stage {stage} ({state.stage_weight} %) is not in force",
    )


def arrived(state: State, entry: Entry) -> State:
    """Note that the traffic of the entered stage follows its weight."""
    _at_stage(state, entry)
    return replace(state, arrived=True)


def verdict(state: State, entry: Entry) -> State:
    """Note a verdict on the entered stage."""
    need(state.stage_entered == int(entry.data["stage"]), f"stage {entry.data['stage']} was not entered")
    mark = VerdictMark(
        int(entry.data["stage"]),
        str(entry.data["decision"]).lower(),
        tuple(str(r) for r in entry.data.get("reasons", ())),
        entry.time,
    )
    return replace(state, verdicts=(*state.verdicts, mark), stage_verdict=mark)


def promoted(state: State, entry: Entry) -> State:
    """End a stage: in force, arrived, and its newest verdict says so."""
    _at_stage(state, entry)
    stage = int(entry.data["stage"])
    last = state.stage_verdict
    need(
        last is not None and last.stage == stage and last.decision == "promote",
        f"the last verdict is not a promotion of stage {stage}",
    )
    need(state.arrived, f"the traffic of stage {stage} has not arrived")
    at_full = state.weight_percent == 100
    return replace(
        state,
        stage_index=stage + 1,
        stage_entered=None,
        stage_verdict=None,
        arrived=False,
        approvals=frozenset(),
        approvers={},
        stable_since=entry.time if at_full else "",
        stable_since_unix=entry.unix if at_full else None,
    )


def rollback_started(state: State, entry: Entry) -> State:
    """Begin the way back; from here on it can only finish."""
    return replace(
        state,
        phase=Phase.ROLLING_BACK,
        rolling_back=True,
        rollback_reason=str(entry.data["reason"]),
        rollback_since=state.rollback_since if state.rolling_back else entry.time,
        rollback_shifted=False,
        stage_entered=None,
        stage_verdict=None,
        arrived=False,
    )


def rollback_shifted(state: State, entry: Entry) -> State:
    """Note that all weight is on APISIX."""
    del entry
    return replace(state, weight_percent=0, shifting_to=None, rollback_shifted=True)


def rollback_done(state: State, entry: Entry) -> State:
    """End the way back once it is proven that the users are there."""
    need(state.rollback_shifted, "the weights are not back on APISIX yet (rollback.shifted)")
    if entry.data.get("seconds_to_users", 0) is None:
        return state  # not proven that the users are back: the rollback goes on
    return replace(
        state,
        phase=Phase.ROLLED_BACK,
        rolling_back=False,
        stage_index=0,
        stage_entered=None,
        stage_weight=0,
        approvals=frozenset(),
        approvers={},
        original=None,
        attempts=state.attempts + 1,
        stable_since="",
        stable_since_unix=None,
        soak_samples=0,
        soak_until=None,
        pending="",
        cleanup_started=False,
    )


def soak_sample(state: State, entry: Entry) -> State:
    """A sample covers ``from`` to ``to`` (unix seconds); what no sample covers was not stable.

    ``stable_from`` moves the beginning of the stable time past a gap inside the sample, ``allowed_gap``
    (seconds) says how much may lie between two samples. Without them the sample is a moment.
    """
    need(state.weight_percent == 100 and state.shifting_to is None, "not all traffic is on Istio")
    need(state.stage_entered is None, f"stage {state.stage_entered} is not promoted yet")
    stable = bool(entry.data.get("stable", True))
    begin, end = float(entry.data.get("from", entry.unix)), float(entry.data.get("to", entry.unix))
    covered = state.soak_until if state.soak_until is not None else state.stable_since_unix
    allowed = entry.data.get("allowed_gap")
    gap = allowed is not None and covered is not None and begin - covered > float(allowed)
    since, unix = state.stable_since, state.stable_since_unix
    resumed = entry.data.get("stable_from")
    if not stable:
        since, unix = "", None
    elif unix is None or gap or (resumed is not None and float(resumed) > unix):
        unix = begin if resumed is None else float(resumed)
        since = datetime.fromtimestamp(unix, UTC).isoformat()
    phase = state.phase if stable and not gap and state.phase is Phase.SOAKED else Phase.SOAK
    return replace(
        state,
        phase=phase,
        soak_samples=state.soak_samples + 1,
        stable_since=since,
        stable_since_unix=unix,
        soak_until=end,
    )


def soak_done(state: State, entry: Entry) -> State:
    """End the stable run; a stable sample must be on record."""
    del entry
    need(state.soak_samples > 0 and state.stable_since_unix is not None, "no stable sample is on record")
    return replace(state, phase=Phase.SOAKED)


def cleanup_intent(state: State, entry: Entry) -> State:
    """Note that APISIX is being removed."""
    del entry
    return replace(state, pending="cleanup", cleanup_started=True)


def lock_acquired(state: State, entry: Entry) -> State:
    """Note the newest fencing token; what an earlier holder writes is refused from now on."""
    need(entry.token > state.token, f"token {entry.token} is not newer than {state.token}")
    return replace(state, token=entry.token)


def reconciled(state: State, entry: Entry) -> State:
    """Settle a shift of unknown outcome by what the provider really has."""
    weight = int(entry.data["weight"])
    need(
        weight in state.possible_weights,
        f"DNS is at {weight} %, the journal allows {sorted(state.possible_weights)}",
    )
    return replace(state, weight_percent=weight, shifting_to=None)


def nothing(state: State, entry: Entry) -> State:
    """Change nothing: the record is for readers."""
    del entry
    return state
