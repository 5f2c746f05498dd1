"""The state of a migration: the fold of its journal, and the only transitions there are.

Nothing here reads a clock or a file. :func:`step` is the whole state machine; the journal asks it before
it writes, so a record that stands in a journal was legal when it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateshift.errors import JournalError
from gateshift.migration import transitions as on
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


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of record: the data it must carry, the phases it is legal in, and what it does."""

    kind: str
    keys: tuple[str, ...]
    phases: frozenset[Phase]
    apply: on.Step
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
    Rule("migration.opened", ("params_digest",), _ANY, on.opened, Phase.OPENED),
    Rule("run.started", ("notebook",), _OPEN, on.run_started),
    Rule("run.ended", ("notebook", "outcome"), _OPEN, on.run_ended),
    Rule("plan.shown", ("plan",), _OPEN, on.plan_shown),
    Rule("plan.approved", ("digest", "who", "how"), _OPEN, on.plan_approved),
    Rule("preflight.done", ("ok",), _OPEN, on.preflight, Phase.PREFLIGHTED),
    Rule("install.intent", (), _SETUP, on.intent("install")),
    Rule("install.done", (), _SETUP, on.outcome("install", Phase.INSTALLED), Phase.INSTALLED),
    Rule("uninstall.intent", (), _SETUP, on.intent("uninstall")),
    Rule("uninstall.done", (), _SETUP, on.outcome("uninstall", Phase.PREFLIGHTED), Phase.PREFLIGHTED),
    Rule("translate.done", (), _OPEN, on.nothing),
    Rule("apply.intent", ("snapshot",), _APPLY, on.intent("apply")),
    Rule("apply.done", (), _APPLY, on.outcome("apply", Phase.APPLIED), Phase.APPLIED),
    Rule("apply.undo.intent", (), _UNDO, on.intent("apply undo")),
    Rule("apply.undone", (), _UNDO, on.outcome("apply undo", Phase.INSTALLED), Phase.INSTALLED),
    Rule("verify.done", ("ok",), _OPEN - {Phase.ROLLING_BACK}, on.verified, Phase.VERIFIED),
    Rule("stage.entered", ("stage", "weight"), _STAGE, on.stage_entered, Phase.CANARY),
    Rule("prepare.intent", ("snapshot",), _CANARY, on.prepare_intent),
    Rule("prepare.done", (), _CANARY, on.nothing),
    Rule("shift.intent", ("stage", "from", "to", "snapshot"), _CANARY, on.shift_intent),
    Rule("shift.done", ("to",), _CANARY, on.shift_done),
    Rule("stage.arrived", ("stage", "share"), _CANARY, on.arrived),
    Rule("verdict", ("stage", "decision"), _CANARY, on.verdict),
    Rule("stage.promoted", ("stage",), _CANARY, on.promoted),
    Rule(
        "rollback.started",
        ("reason", "from"),
        _OPEN - {Phase.CLEANED},
        on.rollback_started,
        Phase.ROLLING_BACK,
    ),
    Rule("rollback.shifted", (), _BACK, on.rollback_shifted),
    Rule("rollback.done", ("checklist",), _BACK, on.rollback_done, Phase.ROLLED_BACK),
    Rule("soak.sample", (), _SOAK, on.soak_sample, Phase.SOAK),
    Rule("soak.done", (), frozenset({Phase.SOAK, Phase.SOAKED}), on.soak_done, Phase.SOAKED),
    Rule("cleanup.intent", ("export",), frozenset({Phase.SOAKED}), on.cleanup_intent),
    Rule("cleanup.done", (), frozenset({Phase.SOAKED}), on.outcome("cleanup", Phase.CLEANED), Phase.CLEANED),
    Rule("restore.intent", ("export",), _GONE, on.intent("restore")),
    Rule("restore.done", (), _GONE, on.outcome("restore", Phase.SOAKED), Phase.SOAKED),
    Rule("lock.acquired", ("holder",), _ANY, on.lock_acquired),
    Rule("lock.released", ("holder",), _ANY, on.nothing),
    Rule("reconciled", ("weight",), _OPEN, on.reconciled),
    Rule("journal.repaired", ("dropped_bytes",), _ANY, on.nothing),
    Rule("archive.sealed", ("run", "manifest"), _ANY, on.nothing),
    Rule("diagnose.done", (), _ANY, on.nothing),
    Rule("report.done", (), _ANY, on.nothing),
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
        on.need(not missing, f"it lacks {', '.join(missing)}")
        on.need(state.phase in rule.phases, f"not legal while the migration is {state.phase.value}")
        on.need(
            not entry.token or entry.token >= state.token,
            f"its lock (token {entry.token}) was taken over (token {state.token})",
        )
        return rule.apply(state, entry)
    except on.Illegal as why:
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
