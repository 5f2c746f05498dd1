"""Which notebook is due next."""

from __future__ import annotations

from gateshift.migration.state import Phase, State
from gateshift.words import tell

__all__ = ["NOTEBOOKS", "due_notebook", "next_notebook"]

NOTEBOOKS = {
    "preflight": "00_preflight",
    "install": "10_install",
    "translate": "20_translate",
    "apply": "30_apply",
    "verify": "40_verify",
    "canary": "50_canary",
    "soak": "60_soak",
    "cleanup": "70_cleanup",
    "rollback": "80_rollback",
    "diagnose": "90_troubleshoot",
    "report": "99_report",
}
"""Verb of the command line to the notebook it runs."""


def next_notebook(state: State, stages: int, *, lang: str | None = None) -> str:
    """Name the notebook that is due next after *state*, in plain words (of *lang*, else as chosen)."""
    if state.rolling_back:
        return tell("next.80_rollback", lang=lang)
    if state.phase is Phase.CANARY and state.stage_index >= stages:
        return tell("next.60_soak", lang=lang)
    return tell(_NEXT[state.phase], lang=lang)


def due_notebook(state: State, stages: int) -> str:
    """Return the name of the notebook an operator opens next."""
    return next_notebook(state, stages, lang="en").partition(":")[0].partition(",")[0].partition(";")[0]


_NEXT = {
    Phase.NEW: "next.00_preflight",
    Phase.OPENED: "next.00_preflight",
    Phase.PREFLIGHTED: "next.10_install",
    Phase.INSTALLED: "next.20_translate",
    Phase.APPLIED: "next.40_verify",
    Phase.VERIFIED: "next.50_canary",
    Phase.CANARY: "next.50_canary",
    Phase.SOAK: "next.60_soak",
    Phase.SOAKED: "next.70_cleanup",
    Phase.CLEANED: "next.99_report",
    Phase.ROLLING_BACK: "next.80_rollback",
    Phase.ROLLED_BACK: "next.again",
}
