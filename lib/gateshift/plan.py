"""What would change, as data: shown before, approved by digest, recorded with the way back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Plan", "Step", "canonical_json", "digest_of", "parse_json"]


def canonical_json(value: Any) -> str:
    """Serialize so that equal values give equal bytes (sorted keys, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def parse_json(raw: str | bytes) -> Any:
    """Read JSON; raises ValueError for what is none, also for what is nested too deep to be read.

    What lies in a folder may be anything: one line of brackets must not end who looks at it by a traceback.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deep") from None


def digest_of(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 over the canonical JSON of *value*."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Step:
    """One change: *verb* on *target*, from *before* to *after* (plain JSON values; None = absent)."""

    verb: str
    target: str
    before: Any = None
    after: Any = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the step as plain JSON."""
        return {
            "verb": self.verb,
            "target": self.target,
            "before": self.before,
            "after": self.after,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """An ordered list of changes with the way back.

    ``digest`` covers kind, steps and inputs, not the prose: the same change planned twice has the same
    digest, and any difference in what would be done voids an approval.
    """

    kind: str
    title: str
    steps: tuple[Step, ...]
    way_back: str
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that an approval names."""
        return digest_of(
            {"kind": self.kind, "steps": [s.as_json() for s in self.steps], "inputs": dict(self.inputs)}
        )

    @property
    def empty(self) -> bool:
        """True when there is nothing to do."""
        return not self.steps

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON, digest included."""
        return {
            "kind": self.kind,
            "title": self.title,
            "digest": self.digest,
            "steps": [s.as_json() for s in self.steps],
            "way_back": self.way_back,
            "inputs": dict(self.inputs),
        }
