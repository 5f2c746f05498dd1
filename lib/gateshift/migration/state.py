"""The state of a migration: the fold of its journal, and the only transitions there are.

Nothing here reads a clock or a file. :func:`step` is the whole state machine; the journal asks it before
it writes, so a record that stands in a journal was legal when it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gateshift.errors import JournalError
from gateshift.migration.phases import Entry, Phase, RunMark, State, VerdictMark

__all__ = [
    "CONSUMING",
    "RULES",
    "Phase",
    "Rule",
    "RunMark",
    "State",
    "VerdictMark",
    "diagram",
    "fold",
    "step",
]

Step = Callable[[State, Entry], State]


class _Illegal(Exception):  # noqa: N818 - never leaves this module
    """Why a transition is not legal, in words that follow 'record N (kind): '."""


def _need(condition: bool, why: str) -> None:
    if not condition:
        raise _Illegal(why)


# -- what each kind does ---------------------------------------------------------------------------


def _opened(state: State, entry: Entry) -> State:
    phase = Phase.OPENED if state.phase is Phase.NEW else state.phase
    return replace(state, phase=phase, params_digest=str(entry.data["params_digest"]))


def _run_started(state: State, entry: Entry) -> State:
    mark = RunMark(entry.run, str(entry.data["notebook"]), entry.time)
    return replace(state, runs=(*state.runs, mark))


def _run_ended(state: State, entry: Entry) -> State:
    run, notebook = str(entry.data.get("run", entry.run)), str(entry.data["notebook"])
    runs = list(state.runs)
    for index in range(len(runs) - 1, -1, -1):
        mark = runs[index]
        if (mark.run, mark.notebook) == (run, notebook) and not mark.ended:
            runs[index] = replace(mark, ended=entry.time, outcome=str(entry.data["outcome"]))
            return replace(state, runs=tuple(runs))
    raise _Illegal(f"run {run} of {notebook} is not open")


def _plan_shown(state: State, entry: Entry) -> State:
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


def _plan_approved(state: State, entry: Entry) -> State:
    digest = str(entry.data["digest"])
    _need(digest in state.plans, f"no plan with digest {digest} was shown")
    who = state.approvers.get(digest, frozenset()) | {str(entry.data["who"])}
    return replace(state, approvals=state.approvals | {digest}, approvers={**state.approvers, digest: who})


def _preflight(state: State, entry: Entry) -> State:
    if state.phase not in {Phase.OPENED, Phase.PREFLIGHTED}:
        return state  # later on it is information; what was installed stays installed
    return replace(state, phase=Phase.PREFLIGHTED if entry.data["ok"] else Phase.OPENED)


def _intent(what: str) -> Step:
    def apply(state: State, entry: Entry) -> State:
        del entry
        return replace(state, pending=what)

    return apply


def _outcome(what: str, phase: Phase) -> Step:
    def apply(state: State, entry: Entry) -> State:
        del entry
        _need(state.pending == what, f"the intent of {what} is not on record before it")
        # An approval is for one time: the same plan, due again later, is shown and approved again.
        return replace(state, phase=phase, pending="", approvals=frozenset(), approvers={})

    return apply


def _verified(state: State, entry: Entry) -> State:
    if state.phase not in {Phase.APPLIED, Phase.VERIFIED, Phase.ROLLED_BACK}:
        return state
    if entry.data["ok"]:
        return replace(state, phase=Phase.VERIFIED)
    return state if state.phase is Phase.ROLLED_BACK else replace(state, phase=Phase.APPLIED)


def _stage_entered(state: State, entry: Entry) -> State:
    stage, weight = int(entry.data["stage"]), int(entry.data["weight"])
    _need(stage == state.stage_index, f"stage {stage} is not due, stage {state.stage_index} is")
    _need(weight >= state.weight_percent, f"weight {weight} % is below the {state.weight_percent} % in force")
    _need(0 < weight <= 100, f"weight {weight} % is not within 1-100")
    return replace(
        state,
        phase=Phase.CANARY,
        stage_entered=stage,
        stage_weight=weight,
        arrived=False,
        stage_verdict=None,
    )


def _prepare_intent(state: State, entry: Entry) -> State:
    """The records become weighted, everybody staying on APISIX; what they were is what is restored."""
    _need(state.weight_percent == 0 and state.shifting_to is None, "traffic is on Istio already")
    return replace(state, original=state.original if state.original is not None else entry.data["snapshot"])


def _shift_intent(state: State, entry: Entry) -> State:
    before, after, stage = int(entry.data["from"]), int(entry.data["to"]), int(entry.data["stage"])
    _need(state.stage_entered == stage, f"stage {stage} was not entered")
    _need(before == state.weight_percent, f"it starts from {before} %, in force are {state.weight_percent} %")
    _need(after <= state.stage_weight, f"stage {stage} allows {state.stage_weight} %, not {after} %")
    _need(after >= before, "a weight goes down only by a rollback")
    _need(
        state.shifting_to in {None, after},
        f"a shift to {state.shifting_to} % is under way",
    )
    original = state.original if state.original is not None else entry.data.get("snapshot")
    return replace(state, shifting_to=after, original=original)


def _shift_done(state: State, entry: Entry) -> State:
    after = int(entry.data["to"])
    _need(state.shifting_to == after, f"no shift to {after} % is under way")
    return replace(state, weight_percent=after, shifting_to=None)


def _at_stage(state: State, entry: Entry) -> None:
    stage = int(entry.data["stage"])
    _need(state.stage_entered == stage, f"stage {stage} was not entered")
    _need(
        state.shifting_to is None and state.weight_percent == state.stage_weight,
        f"the weight of stage {stage} ({state.stage_weight} %) is not in force",
    )


def _arrived(state: State, entry: Entry) -> State:
    _at_stage(state, entry)
    return replace(state, arrived=True)


def _verdict(state: State, entry: Entry) -> State:
    _need(state.stage_entered == int(entry.data["stage"]), f"stage {entry.data['stage']} was not entered")
    mark = VerdictMark(
        int(entry.data["stage"]),
        str(entry.data["decision"]).lower(),
        tuple(str(r) for r in entry.data.get("reasons", ())),
        entry.time,
    )
    return replace(state, verdicts=(*state.verdicts, mark), stage_verdict=mark)


def _promoted(state: State, entry: Entry) -> State:
    _at_stage(state, entry)
    stage = int(entry.data["stage"])
    last = state.stage_verdict
    _need(
        last is not None and last.stage == stage and last.decision == "promote",
        f"the last verdict is not a promotion of stage {stage}",
    )
    _need(state.arrived, f"the traffic of stage {stage} has not arrived")
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


def _rollback_started(state: State, entry: Entry) -> State:
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


def _rollback_shifted(state: State, entry: Entry) -> State:
    del entry
    return replace(state, weight_percent=0, shifting_to=None, rollback_shifted=True)


def _rollback_done(state: State, entry: Entry) -> State:
    _need(state.rollback_shifted, "the weights are not back on APISIX yet (rollback.shifted)")
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


def _soak_sample(state: State, entry: Entry) -> State:
    """A sample covers ``from`` to ``to`` (unix seconds); what no sample covers was not stable.

    ``stable_from`` moves the beginning of the stable time past a gap inside the sample, ``allowed_gap``
    (seconds) says how much may lie between two samples. Without them the sample is a moment.
    """
    _need(state.weight_percent == 100 and state.shifting_to is None, "not all traffic is on Istio")
    _need(state.stage_entered is None, f"stage {state.stage_entered} is not promoted yet")
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


def _soak_done(state: State, entry: Entry) -> State:
    del entry
    _need(state.soak_samples > 0 and state.stable_since_unix is not None, "no stable sample is on record")
    return replace(state, phase=Phase.SOAKED)


def _cleanup_intent(state: State, entry: Entry) -> State:
    del entry
    return replace(state, pending="cleanup", cleanup_started=True)


def _lock_acquired(state: State, entry: Entry) -> State:
    _need(entry.token > state.token, f"token {entry.token} is not newer than {state.token}")
    return replace(state, token=entry.token)


def _reconciled(state: State, entry: Entry) -> State:
    weight = int(entry.data["weight"])
    _need(
        weight in state.possible_weights,
        f"DNS is at {weight} %, the journal allows {sorted(state.possible_weights)}",
    )
    return replace(state, weight_percent=weight, shifting_to=None)


def _nothing(state: State, entry: Entry) -> State:
    del entry
    return state


# -- the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of record: the data it must carry, the phases it is legal in, and what it does."""

    kind: str
    keys: tuple[str, ...]
    phases: frozenset[Phase]
    apply: Step
    to: Phase | None = None


_ANY = frozenset(Phase)
_OPEN = _ANY - {Phase.NEW}
# Objects are not installed or applied under live traffic, nor while a rollback runs.
_SETUP = frozenset({Phase.PREFLIGHTED, Phase.INSTALLED, Phase.APPLIED, Phase.VERIFIED, Phase.ROLLED_BACK})
_APPLY = _SETUP - {Phase.PREFLIGHTED}
_UNDO = _SETUP - {Phase.PREFLIGHTED}
_STAGE = frozenset({Phase.VERIFIED, Phase.CANARY})
_CANARY = frozenset({Phase.CANARY})
_BACK = frozenset({Phase.ROLLING_BACK})
_GONE = frozenset({Phase.SOAKED, Phase.CLEANED})  # a clean-up that died half-way is restored as well
_SOAK = frozenset({Phase.CANARY, Phase.SOAK, Phase.SOAKED})

_RULES = (
    Rule("migration.opened", ("params_digest",), _ANY, _opened, Phase.OPENED),
    Rule("run.started", ("notebook",), _OPEN, _run_started),
    Rule("run.ended", ("notebook", "outcome"), _OPEN, _run_ended),
    Rule("plan.shown", ("plan",), _OPEN, _plan_shown),
    Rule("plan.approved", ("digest", "who", "how"), _OPEN, _plan_approved),
    Rule("preflight.done", ("ok",), _OPEN, _preflight, Phase.PREFLIGHTED),
    Rule("install.intent", (), _SETUP, _intent("install")),
    Rule("install.done", (), _SETUP, _outcome("install", Phase.INSTALLED), Phase.INSTALLED),
    Rule("uninstall.intent", (), _SETUP, _intent("uninstall")),
    Rule("uninstall.done", (), _SETUP, _outcome("uninstall", Phase.PREFLIGHTED), Phase.PREFLIGHTED),
    Rule("translate.done", (), _OPEN, _nothing),
    Rule("apply.intent", ("snapshot",), _APPLY, _intent("apply")),
    Rule("apply.done", (), _APPLY, _outcome("apply", Phase.APPLIED), Phase.APPLIED),
    Rule("apply.undo.intent", (), _UNDO, _intent("apply undo")),
    Rule("apply.undone", (), _UNDO, _outcome("apply undo", Phase.INSTALLED), Phase.INSTALLED),
    Rule("verify.done", ("ok",), _OPEN - {Phase.ROLLING_BACK}, _verified, Phase.VERIFIED),
    Rule("stage.entered", ("stage", "weight"), _STAGE, _stage_entered, Phase.CANARY),
    Rule("prepare.intent", ("snapshot",), _CANARY, _prepare_intent),
    Rule("prepare.done", (), _CANARY, _nothing),
    Rule("shift.intent", ("stage", "from", "to", "snapshot"), _CANARY, _shift_intent),
    Rule("shift.done", ("to",), _CANARY, _shift_done),
    Rule("stage.arrived", ("stage", "share"), _CANARY, _arrived),
    Rule("verdict", ("stage", "decision"), _CANARY, _verdict),
    Rule("stage.promoted", ("stage",), _CANARY, _promoted),
    Rule(
        "rollback.started",
        ("reason", "from"),
        _OPEN - {Phase.CLEANED},
        _rollback_started,
        Phase.ROLLING_BACK,
    ),
    Rule("rollback.shifted", (), _BACK, _rollback_shifted),
    Rule("rollback.done", ("checklist",), _BACK, _rollback_done, Phase.ROLLED_BACK),
    Rule("soak.sample", (), _SOAK, _soak_sample, Phase.SOAK),
    Rule("soak.done", (), frozenset({Phase.SOAK, Phase.SOAKED}), _soak_done, Phase.SOAKED),
    Rule("cleanup.intent", ("export",), frozenset({Phase.SOAKED}), _cleanup_intent),
    Rule("cleanup.done", (), frozenset({Phase.SOAKED}), _outcome("cleanup", Phase.CLEANED), Phase.CLEANED),
    Rule("restore.intent", ("export",), _GONE, _intent("restore")),
    Rule("restore.done", (), _GONE, _outcome("restore", Phase.SOAKED), Phase.SOAKED),
    Rule("lock.acquired", ("holder",), _ANY, _lock_acquired),
    Rule("lock.released", ("holder",), _ANY, _nothing),
    Rule("reconciled", ("weight",), _OPEN, _reconciled),
    Rule("journal.repaired", ("dropped_bytes",), _ANY, _nothing),
    Rule("archive.sealed", ("run", "manifest"), _ANY, _nothing),
    Rule("diagnose.done", (), _ANY, _nothing),
    Rule("report.done", (), _ANY, _nothing),
)

CONSUMING = frozenset(
    {
        *("install.done", "uninstall.done", "apply.done", "apply.undone"),
        *("stage.promoted", "rollback.done", "cleanup.done", "restore.done"),
    }
)
"""Kinds that use up the approvals given before them."""

RULES: Mapping[str, Rule] = {rule.kind: rule for rule in _RULES}
"""Every kind of record. Kinds that begin with ``note.`` are free and change nothing."""


def step(state: State, entry: Entry) -> State:
    """Return the state after *entry*; raises :class:`JournalError` when it is not legal in *state*."""
    rule = RULES.get(entry.kind)
    if rule is None:
        if entry.kind.startswith("note."):
            return state
        raise JournalError(f"record {entry.seq}: there is no kind {entry.kind!r}")
    try:
        missing = [key for key in rule.keys if key not in entry.data]
        _need(not missing, f"it lacks {', '.join(missing)}")
        _need(state.phase in rule.phases, f"not legal while the migration is {state.phase.value}")
        _need(
            not entry.token or entry.token >= state.token,
            f"its lock (token {entry.token}) was taken over (token {state.token})",
        )
        return rule.apply(state, entry)
    except _Illegal as why:
        raise JournalError(
            f"record {entry.seq} ({entry.kind}): {why}",
            hint="`gateshift status` says where the migration stands and what is next",
        ) from None
    except (TypeError, ValueError, KeyError) as error:
        raise JournalError(f"record {entry.seq} ({entry.kind}): its data cannot be read: {error}") from None


def fold(records: Iterable[Entry]) -> State:
    """Return the state after all *records*; raises :class:`JournalError` at the first illegal one."""
    state = State()
    for record in records:
        state = step(state, record)
    return state


def diagram() -> str:
    """Draw the machine's changes of phase as a Mermaid state diagram, from the table itself."""
    lines = ["stateDiagram-v2", f"    [*] --> {_node(Phase.NEW)}"]
    for rule in _RULES:
        if rule.to is None:
            continue
        sources = [p for p in Phase if p in rule.phases and p is not rule.to and _moves(rule, p)]
        lines += [f"    {_node(p)} --> {_node(rule.to)}: {rule.kind}" for p in sources]
    lines.append(f"    {_node(Phase.CLEANED)} --> [*]")
    return "\n".join(lines) + "\n"


def _moves(rule: Rule, phase: Phase) -> bool:
    only = {
        "migration.opened": {Phase.NEW},
        "preflight.done": {Phase.OPENED},
        "verify.done": {Phase.APPLIED, Phase.ROLLED_BACK},
    }
    return phase in only.get(rule.kind, _ANY)


def _node(phase: Phase) -> str:
    return phase.value.replace(" ", "_")
