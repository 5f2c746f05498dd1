"""Which notebook is due next."""

from __future__ import annotations

from gateshift.migration.state import Phase, State

__all__ = ["NOTEBOOKS", "next_notebook"]

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


def next_notebook(state: State, stages: int) -> str:
    """Name the notebook that is due next after *state*, in plain words."""
    if state.rolling_back:
        return "80_rollback (a rollback is under way and must finish)"
    if state.phase is Phase.CANARY and state.stage_index >= stages:
        return "60_soak"
    return _NEXT[state.phase]


_NEXT = {
    Phase.NEW: "00_preflight",
    Phase.OPENED: "00_preflight",
    Phase.PREFLIGHTED: "10_install",
    Phase.INSTALLED: "20_translate, then 30_apply",
    Phase.APPLIED: "40_verify",
    Phase.VERIFIED: "50_canary",
    Phase.CANARY: "50_canary (the next stage)",
    Phase.SOAK: "60_soak",
    Phase.SOAKED: "70_cleanup",
    Phase.CLEANED: "99_report",
    Phase.ROLLING_BACK: "80_rollback (a rollback is under way and must finish)",
    Phase.ROLLED_BACK: "99_report; after the cause is fixed, 40_verify begins a new attempt",
}
