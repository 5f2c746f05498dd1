"""An error as a person at work needs it: what happened, what was not changed, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gateshift.errors import GateshiftError, Held
from gateshift.notebook.links import linked
from gateshift.words import gloss, known, language, tell

__all__ = ["Failure", "failure_of"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What is shown in place of a traceback."""

    held: bool
    happened: str
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    next_steps: tuple[str, ...]

    def _parts(self) -> list[tuple[str, tuple[str, ...]]]:
        parts: list[tuple[str, tuple[str, ...]]] = [(tell("error.happened"), (self.happened,))]
        if self.changed:
            parts.append((tell("error.changed"), self.changed))
        return [*parts, (tell("error.unchanged"), self.unchanged), (tell("error.next"), self.next_steps)]

    def _repr_html_(self) -> str:
        edge = "#8a4b00" if self.held else "#b3261e"
        body = "".join(
            f"<div><b>{escape(title)}:</b> {'<br>'.join(linked(line) for line in lines)}</div>"
            for title, lines in self._parts()
        )
        return (
            f"<div class='gateshift-error' style='border-left:10px solid {edge};padding:4px 12px;"
            f"max-width:60em'>{body}</div>"
        )

    def __repr__(self) -> str:
        return "\n".join(f"{title}: {' '.join(lines)}" for title, lines in self._parts())


def failure_of(
    error: BaseException, *, changed: Sequence[str] = (), unchanged: Sequence[str] = ()
) -> Failure:
    """Explain *error*; *changed* and *unchanged* say what the run did and did not do, by the journal."""
    if isinstance(error, GateshiftError):
        happened, steps = gloss(str(error)), [gloss(error.hint)]
        kind = type(error).__name__
        advice = tell(f"hint.{kind}") if known(f"hint.{kind}") else tell("hint.GateshiftError")
        if error.hint == error.default_hint:
            steps = [advice]
        elif language() != "en" and steps == [error.hint]:
            steps.append(advice)  # a hint that the catalogue does not know stays in English
    elif isinstance(error, KeyboardInterrupt):
        happened, steps = tell("error.interrupted"), [tell("error.interrupted.next")]
    else:
        happened = tell("error.unexpected", kind=type(error).__name__, message=str(error))
        steps = [tell("error.unexpected.next")]
    if not any("troubleshoot" in step or "80_rollback" in step or "diagnose" in step for step in steps):
        steps.append(tell("error.troubleshoot"))
    return Failure(
        isinstance(error, Held),
        happened,
        tuple(changed),
        tuple(unchanged) or (tell("error.early"),),
        tuple(steps),
    )
