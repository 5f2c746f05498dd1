"""Where a migration stands, for the status card and for errors: read quickly, true when nothing answers."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateshift.errors import InputError, ParamsError
from gateshift.migration.journal import Record
from gateshift.migration.lock import holder_of
from gateshift.migration.state import State
from gateshift.params import Mode
from gateshift.runbook.inputs import project_root
from gateshift.words import decision_words, gloss, tell

if TYPE_CHECKING:
    from gateshift.runbook.context import Context

__all__ = [
    "PATIENCE",
    "changes_of",
    "facts",
    "lock_words",
    "phase_words",
    "typed",
    "verdict_words",
]

PATIENCE = 5.0
"""Seconds a card waits for the cluster and the traffic provider; then it says that they do not answer."""


def facts(context: Context, *, who: str, ours: bool, next_step: str) -> dict[str, str]:
    """Return the status card's facts in their order, in the language in use.

    The cluster and the provider are asked side by side, each no longer than :data:`PATIENCE`; what does not
    answer is said. Raises :class:`~gateshift.errors.InputError` when the cluster is the wrong one.
    """
    params, state = context.params, context.state
    cluster, weights = _ask(lambda: context.cluster.uid), _ask(lambda: _provider(context))
    wrong = cluster.wait()
    if isinstance(wrong, InputError) and not isinstance(wrong, ParamsError):
        raise wrong
    mode = "card.mode.plan" if params.mode is Mode.PLAN else "card.mode.act"
    return {
        tell("card.migration"): params.migration,
        tell("card.cluster"): _cluster(context, wrong),
        tell("card.mode"): tell(mode),
        tell("card.phase"): phase_words(state.phase.value),
        tell("card.weights"): _weights(context, weights.wait()),
        tell("card.verdict"): verdict_words(state),
        **({tell("card.dashboard"): shown} if (shown := _dashboard(context)) else {}),
        tell("card.lock"): tell("card.lock.ours", who=who) if ours else lock_words(context.folder),
        tell("card.next"): next_step,
        tell("card.back"): tell("card.back.how", params=typed(context.params_file)),
        tell("card.run"): context.run,
    }


def _dashboard(context: Context) -> str:
    """Return the address of the operator's dashboard from when the newest stage began; empty without one."""
    try:
        address = context.params.metrics.dashboard
    except ParamsError:
        return ""  # a reference without a value
    if not address:
        return ""
    began = next((r.unix for r in reversed(context.journal.records) if r.kind == "stage.entered"), None)
    if began is None:
        return address
    # Grafana's way to name a time; half an hour of before is what a stage is compared with.
    return f"{address}{'&' if '?' in address else '?'}from={1000 * (began - 1800):.0f}&to=now"


def typed(path: str) -> str:
    """Return *path* as a person would type it in the clone: relative to it, or from the home folder."""
    for base, start in ((project_root(), ""), (Path.home(), "~/")):
        with suppress(ValueError):
            return start + shlex.quote(str(Path(path).relative_to(base)))
    return shlex.quote(path)


def phase_words(phase: str) -> str:
    """Return a phase in the language in use."""
    return tell(f"phase.{phase.replace(' ', '_')}")


class _Asked:
    """A question to a system, asked in the background: an answer, an error, or neither in time."""

    def __init__(self, question: Callable[[], Any]) -> None:
        self._question = question
        self._answer: Any = TimeoutError(tell("card.late", seconds=f"{PATIENCE:g}"))
        self._until = time.monotonic() + PATIENCE
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._question()
        except Exception as error:  # noqa: BLE001 - a card is shown whatever a system answers
            self._answer = error

    def wait(self) -> Any:
        """Return the answer, or the exception that stands for it."""
        self._thread.join(max(0.0, self._until - time.monotonic()))
        return self._answer


def _ask(question: Callable[[], Any]) -> _Asked:
    return _Asked(question)


def _provider(context: Context) -> tuple[str, int | None]:
    shifter = context.shifter(back_only=True)
    return shifter.name, shifter.read().istio_percent


def _brief(error: BaseException, most: int = 90) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def _cluster(context: Context, answer: Any) -> str:
    cluster = context.params.cluster
    try:
        named = cluster.context or (cluster.kubeconfig and typed(cluster.kubeconfig))
    except ParamsError:
        named = "?"  # a reference without a value, which this run does not need; the answer says it
    name = named or tell("card.cluster.current")
    if isinstance(answer, BaseException):
        return tell("card.cluster.away", context=name, why=_brief(answer))
    return tell("card.cluster.known", context=name, uid=answer)


def _weights(context: Context, answer: Any) -> str:
    percent = context.state.weight_percent
    provider = context.params.traffic.mechanism.value
    if isinstance(answer, BaseException):
        return tell(
            "card.weights.unread", percent=percent, rest=100 - percent, provider=provider, why=_brief(answer)
        )
    provider, seen = answer
    if seen is None:
        return tell("card.weights.plain", provider=provider)
    if seen != percent:
        return tell("card.weights.differ", provider=provider, seen=seen, percent=percent)
    return tell("card.weights.same", percent=percent, rest=100 - percent, provider=provider)


def verdict_words(state: State) -> str:
    """Say the newest verdict and its first reason."""
    if not state.verdicts:
        return tell("card.verdict.none")
    mark = state.verdicts[-1]
    reason = gloss(mark.reasons[0]) if mark.reasons else ""
    return tell(
        "card.verdict.some", decision=decision_words(mark.decision), stage=mark.stage + 1, reason=reason
    )


def lock_words(folder: Path) -> str:
    """Say who holds the lock of the migration in *folder* on this machine or its shared disk."""
    holder = holder_of(folder / "lock")
    if holder is None:
        return tell("card.lock.free")
    who, left = holder
    return tell("card.lock.theirs", who=who, left=f"{left:.0f}")


def changes_of(state: State, records: Sequence[Record], run: str) -> tuple[list[str], list[str]]:
    """Return what *run* changed and what it did not, in sentences, from the journal's *records*."""
    kinds = [r.kind for r in records if r.run == run]
    percent = state.weight_percent
    changed, kept = [], []
    moved = any(kind in {"shift.done", "rollback.shifted"} for kind in kinds)
    if state.shifting_to is not None:
        changed.append(tell("error.weights.asked", percent=state.shifting_to))
    if moved:
        changed.append(tell("error.weights.moved", percent=percent, rest=100 - percent))
    for what in ("install", "apply", "cleanup"):
        if f"{what}.done" in kinds:
            changed.append(tell("error.objects.changed", what=what))
        elif f"{what}.intent" in kinds:
            changed.append(tell("error.pending", what=what))
    if not changed:
        kept.append(tell("error.nothing"))
    if not moved and state.shifting_to is None:
        kept.append(tell("error.weights.kept", percent=percent, rest=100 - percent))
    if changed and not any(kind.startswith(("install.", "apply.", "cleanup.")) for kind in kinds):
        kept.append(tell("error.objects.kept"))
    if not any(kind.startswith("cleanup.") for kind in kinds):
        kept.append(tell("error.apisix.kept"))
    return changed, kept
