"""What a diagnosis is made of: facts read once, probes that judge them, causes they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateshift.diagnose.facts import Facts

__all__ = ["Cause", "Level", "Probe"]


class Level(StrEnum):
    """``error`` explains the symptom, ``warning`` may, ``info`` says what could not be asked."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause found. ``confidence`` is 0-1; ``equivalent`` is how to see the evidence by hand."""

    level: Level
    title: str
    evidence: str
    remedy: str
    equivalent: str = ""
    confidence: float = 0.5
    reference: str = ""
    symptom: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question of the trees named in *symptoms*; *look* returns causes, nothing when all is well."""

    name: str
    symptoms: frozenset[str]
    equivalent: str
    look: Callable[[Facts], Iterable[Cause]]
