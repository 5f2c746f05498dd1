"""What the journal of a migration holds before its first stage: benches and tests begin there."""

from __future__ import annotations

from typing import Any

__all__ = ["BEFORE_A_STAGE"]

BEFORE_A_STAGE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("migration.opened", {"params_digest": "x"}),
    ("preflight.done", {"ok": True}),
    ("install.intent", {}),
    ("install.done", {}),
    ("apply.intent", {"snapshot": ""}),
    ("apply.done", {}),
    ("verify.done", {"ok": True}),
)
"""Records as (kind, data), oldest first."""
