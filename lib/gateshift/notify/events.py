"""What is worth telling: pure, from a journal's record or an error to one message with a key.

The key names the occurrence, not the attempt to tell it: a run that dies and resumes enters its stage
again, and nobody is told twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.errors import GateClosed, GateshiftError, Held, RolledBack
from gateshift.migration.journal import Record
from gateshift.migration.state import State
from gateshift.words import gloss, tell

__all__ = ["Event", "event_of", "problem", "waiting"]


@dataclass(frozen=True, slots=True)
class Event:
    """One message. *kind* is one of ``notify.events``, *level* apprise's: info, success, warning, failure."""

    kind: str
    key: str
    level: str
    text: str


def _stage(data: Mapping[str, Any]) -> int:
    return int(data["stage"])


def _started(data: Mapping[str, Any], state: State) -> Event:
    stage = _stage(data)
    text = tell("notify.stage_started", stage=stage + 1, weight=data["weight"])
    return Event("started", f"started/{state.attempts}/{stage}", "info", text)


def _promoted(data: Mapping[str, Any], state: State) -> Event:
    stage = _stage(data)
    text = tell("notify.promoted", stage=stage + 1, weight=state.weight_percent)
    return Event("promoted", f"promoted/{state.attempts}/{stage}", "success", text)


def _rollback(data: Mapping[str, Any], state: State) -> Event:
    text = tell("notify.rollback_started", weight=data["from"], reason=gloss(data["reason"]))
    return Event("rolled-back", f"rollback/{state.attempts}", "failure", text)


def _back(data: Mapping[str, Any], state: State) -> Event:
    if data.get("seconds_to_users", 0) is None:
        text = tell("notify.rollback_unproven")
        return Event("needs-person", f"unproven/{state.attempts}", "failure", text)
    # A finished rollback ends its attempt; it belongs to the one before.
    return Event("rolled-back", f"back/{state.attempts - 1}", "warning", tell("notify.rolled_back"))


_KINDS: Mapping[str, Callable[[Mapping[str, Any], State], Event]] = {
    "stage.entered": _started,
    "stage.promoted": _promoted,
    "rollback.started": _rollback,
    "rollback.done": _back,
}


def event_of(record: Record, state: State) -> Event | None:
    """Return what to tell about *record* (*state* is the one after it), or None."""
    make = _KINDS.get(record.kind)
    return make(record.data, state) if make else None


def waiting(digest: str, title: str, state: State) -> Event:
    """A plan waits for a person; the same plan in a later attempt waits anew."""
    text = tell("notify.needs_person", digest=digest, title=gloss(title))
    return Event("needs-person", f"plan/{state.attempts}/{digest}", "warning", text)


def problem(error: BaseException, notebook: str, state: State) -> Event | None:
    """Return what to tell about an *error* that ended a run, or None when it is told otherwise."""
    if isinstance(error, (RolledBack, GateClosed, KeyboardInterrupt)):
        return (
            None  # the rollback and the waiting plan have their own messages; a person interrupts knowingly
        )
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    # Without its figures: the same reason a minute later is the same occurrence.
    same = hashlib.sha256(re.sub(r"[\d.]+", "", reason).encode()).hexdigest()[:12]
    held = isinstance(error, Held)
    kind, level = ("held", "warning") if held else ("failed", "failure")
    if isinstance(error, GateshiftError) and error.exit_code == 2:
        return None  # a slip of the keyboard, answered where it was made
    text = tell(f"notify.{kind}", notebook=notebook, reason=gloss(reason))
    return Event(kind, f"{kind}/{state.attempts}/{state.stage_index}/{notebook}/{same}", level, text)
