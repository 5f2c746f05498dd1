"""After a death: what the journal says and what is really there become one again."""

from __future__ import annotations

from gateshift.errors import Blocked
from gateshift.migration.journal import Journal
from gateshift.migration.phases import RunMark, VerdictMark
from gateshift.runbook.context import Context
from gateshift.traffic.protocol import Weights

__all__ = ["OBSERVED", "bury_dead_runs", "fresh_verdict", "observations", "reconcile"]

OBSERVED = "note.stage.observed"
"""Kind of the record that an observation of a stage begins; it comes before the first look at a sample."""


def observations(journal: Journal, stage: int) -> int:
    """Count the observations of *stage* (from 0) on record, of dead runs and of earlier entries as well.

    Each began with evidence of its own and may have rolled back: together they may spend the stage's share
    of the migration's false-rollback budget once.
    """
    return sum(r.kind == OBSERVED and r.data.get("stage") == stage for r in journal.records)


def bury_dead_runs(context: Context) -> list[RunMark]:
    """Record the end of runs that died; call it with the lock held, which no live run can have.

    Runs that only read take no lock and may still be under way; the engine ends those.
    """
    journal = context.journal
    locked = {(r.run, r.data["notebook"]) for r in journal.records if r.kind == "run.started" and r.token}
    dead = [mark for mark in journal.state.open_runs if (mark.run, mark.notebook) in locked]
    for mark in dead:
        journal.append(
            "run.ended",
            run=mark.run,
            notebook=mark.notebook,
            outcome="interrupted",
            exit_code=5,
            error="the run died without a word; this record is by the run that found it",
            by="the next run",
        )
    return dead


def reconcile(context: Context, weights: Weights) -> int | None:
    """Bring the journal in line with the *weights* the provider has now.

    Returns the weight (percent on Istio) that a shift of unknown outcome turned out to have, or None when
    nothing was unknown. Raises :class:`~gateshift.errors.Blocked` when the provider has a weight that no
    record explains: somebody else changed it.
    """
    state, seen = context.state, weights.istio_percent
    if seen is None:
        if state.weight_percent == 0 or state.shifting_to is not None:
            return None  # not weighted yet, or a batch that is no single step: the shift finishes it
        why = "; ".join(weights.problems) or "the hosts have different weights"
        raise Blocked(
            f"the weights cannot be read as one number, the journal says {state.weight_percent} %: {why}",
            hint="find out who changed the records; `gateshift rollback` brings all of them back",
        )
    if seen not in state.possible_weights:
        known = " or ".join(f"{weight} %" for weight in sorted(state.possible_weights))
        raise Blocked(
            f"Istio has a weight of {seen} %, but this migration put it at {known}: somebody else changed it",
            hint="find out who manages these records; set them back, or `gateshift rollback`",
        )
    if state.shifting_to is None:
        return None
    context.journal.append("reconciled", weight=seen, asked=state.shifting_to)
    return seen


def fresh_verdict(context: Context, within: float) -> VerdictMark | None:
    """Return the verdict on the entered stage that a dead run left behind, if it may still be acted on.

    A verdict to roll back always may. One to promote rests on what the traffic did then: only one of the
    last *within* seconds counts.
    """
    mark = context.state.stage_verdict
    if mark is None or mark.decision == "rollback":
        return mark
    newest = next(r for r in reversed(context.journal.records) if r.kind == "verdict")
    age = context.now() - newest.unix
    return mark if mark.decision == "promote" and 0.0 <= age <= within else None
