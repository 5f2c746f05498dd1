"""What the state of a migration consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

__all__ = ["Entry", "Phase", "RunMark", "State", "VerdictMark"]


class Phase(StrEnum):
    """Where a migration stands."""

    NEW = "new"
    OPENED = "opened"
    PREFLIGHTED = "preflighted"
    INSTALLED = "installed"
    APPLIED = "applied"
    VERIFIED = "verified"
    CANARY = "canary"
    SOAK = "soak"
    SOAKED = "soaked"
    CLEANED = "cleaned"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"


class Entry(Protocol):
    """What the fold needs of a journal record."""

    @property
    def seq(self) -> int:
        """Position in the journal, from 1."""

    @property
    def time(self) -> str:
        """UTC time as text."""

    @property
    def unix(self) -> float:
        """The same in unix seconds."""

    @property
    def run(self) -> str:
        """Run that wrote it."""

    @property
    def who(self) -> str:
        """Who acts."""

    @property
    def kind(self) -> str:
        """Kind of record."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Data of that kind."""

    @property
    def token(self) -> int:
        """Fencing token, 0 without a lock."""


@dataclass(frozen=True, slots=True)
class VerdictMark:
    """One verdict on record; ``str()`` is how a card shows it."""

    stage: int
    decision: str
    reasons: tuple[str, ...]
    time: str

    def __str__(self) -> str:
        reason = f": {self.reasons[0]}" if self.reasons else ""
        return f"{self.decision} at stage {self.stage + 1}{reason}"


@dataclass(frozen=True, slots=True)
class RunMark:
    """One run of one notebook. ``outcome`` is empty while it is open, or when it died."""

    run: str
    notebook: str
    started: str
    ended: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Everything the next decision needs. Weights are percent on Istio; stages count from 0."""

    phase: Phase = Phase.NEW
    params_digest: str = ""
    stage_index: int = 0
    """The first stage that is not promoted yet; the number of stages when all are."""
    stage_entered: int | None = None
    """The stage whose observation has begun and not ended."""
    stage_weight: int = 0
    arrived: bool = False
    weight_percent: int = 0
    """The last weight the provider confirmed."""
    shifting_to: int | None = None
    """A weight that was asked for and not confirmed: DNS is at this one or at ``weight_percent``."""
    rolling_back: bool = False
    rollback_reason: str = ""
    rollback_since: str = ""
    rollback_shifted: bool = False
    pending: str = ""
    """The intent whose outcome is not on record (``install``, ``apply``, ``cleanup``)."""
    cleanup_started: bool = False
    approvals: frozenset[str] = frozenset()
    approvers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By the digest of a plan: who approved it, each with the account that was used."""
    plans: Mapping[str, str] = field(default_factory=dict)
    """Digest of each plan shown, with its kind."""
    verdicts: tuple[VerdictMark, ...] = ()
    stage_verdict: VerdictMark | None = None
    """The newest verdict on the entered stage; None before its first."""
    runs: tuple[RunMark, ...] = ()
    attempts: int = 1
    original: Any = None
    """Snapshot before the first change of this attempt: what a full restore goes back to."""
    stable_since: str = ""
    stable_since_unix: float | None = None
    soak_samples: int = 0
    soak_until: float | None = None
    """Unix seconds up to which the stable run's samples cover the time."""
    token: int = 0
    """The newest fencing token; writes with an older one are refused."""

    @property
    def open_runs(self) -> tuple[RunMark, ...]:
        """Runs without an end on record: under way, or dead."""
        return tuple(run for run in self.runs if not run.ended)

    @property
    def possible_weights(self) -> frozenset[int]:
        """Every weight DNS may be at, as far as the journal knows."""
        known = {self.weight_percent}
        if self.shifting_to is not None:
            known.add(self.shifting_to)
        if self.rolling_back:
            known.add(0)
        return frozenset(known)

    @property
    def is_open(self) -> bool:
        """True while the migration is neither done nor brought back."""
        return self.phase not in {Phase.NEW, Phase.CLEANED, Phase.ROLLED_BACK}
