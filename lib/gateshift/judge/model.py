"""What the judge reads and says. Frozen; plain JSON in and out without loss, so verdicts can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Buckets", "Decision", "Missing", "MissingKind", "Sample", "Side", "Verdict"]

Buckets = tuple[tuple[float, float], ...]
"""Pairs (upper edge in ms, cumulative increase), rising; the last edge is infinity."""


class Decision(StrEnum):
    """What a verdict asks for."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLLBACK = "rollback"


class MissingKind(StrEnum):
    """Why there is no usable figure. None of them ever counts as zero errors."""

    SCRAPE_GAP = "scrape gap"
    STALE_SERIES = "stale series"
    EMPTY_ANSWER = "empty answer"
    QUERY_ERROR = "query error"
    TOO_FEW_REQUESTS = "too few requests"
    COUNTER_RESET = "counter reset"
    PARTIAL_RESPONSE = "partial response"
    NEW_PROCESS = "new process"


@dataclass(frozen=True, slots=True)
class Missing:
    """One named absence of data, with the detail an operator needs."""

    kind: MissingKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.detail})" if self.detail else self.kind.value


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Side:
    """One gateway over one interval: increases since the previous sample.

    ``requests`` and ``errors`` are counts (errors: 5xx answers), ``buckets`` cumulative latency counts in
    milliseconds. When ``missing`` is set the figures are None. ``source`` says where the figures come from,
    for example ``reporter="source"``. ``covered`` is the time in seconds between the scrapes that the figures
    lie between: with a scrape more or less it differs from the interval, and from the other side's.
    """

    requests: float | None = None
    errors: float | None = None
    buckets: Buckets | None = None
    missing: Missing | None = None
    source: str = ""
    covered: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON; infinity is written as the text ``+Inf``, as Prometheus does.

        Counts are written as floats whatever they were built from, so that reading back and writing again
        gives the same bytes, which the digest of a verdict's samples rests on.
        """
        buckets = None
        if self.buckets is not None:
            buckets = [["+Inf" if le == float("inf") else float(le), float(n)] for le, n in self.buckets]
        missing = None
        if self.missing is not None:
            missing = {"kind": self.missing.kind.value, "detail": self.missing.detail}
        return {
            "requests": _float(self.requests),
            "errors": _float(self.errors),
            "buckets": buckets,
            "missing": missing,
            "source": self.source,
            # Only where it is known, so that samples of before it was recorded give the same bytes.
            **({} if self.covered is None else {"covered": float(self.covered)}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Side:
        """Read what :meth:`as_json` wrote."""
        buckets = data.get("buckets")
        missing = data.get("missing")
        return cls(
            requests=_float(data.get("requests")),
            errors=_float(data.get("errors")),
            buckets=None if buckets is None else tuple((float(le), float(count)) for le, count in buckets),
            missing=None if missing is None else Missing(MissingKind(missing["kind"]), missing["detail"]),
            source=data.get("source", ""),
            covered=_float(data.get("covered")),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """Both gateways over one interval ending at *time* (unix seconds). Canary is Istio, baseline APISIX."""

    time: float
    canary: Side
    baseline: Side

    @classmethod
    def unknown(cls, time: float, detail: str, kind: MissingKind = MissingKind.QUERY_ERROR) -> Sample:
        """Return a sample of which neither side is known, for example when Prometheus does not answer."""
        side = Side(missing=Missing(kind, detail))
        return cls(time, side, side)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "time": float(self.time),
            "canary": self.canary.as_json(),
            "baseline": self.baseline.as_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """Read what :meth:`as_json` wrote."""
        return cls(float(data["time"]), Side.from_json(data["canary"]), Side.from_json(data["baseline"]))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reasons (sentences for people) and evidence (plain JSON for the archive)."""

    decision: Decision
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "decision": self.decision.value,
            "reasons": list(self.reasons),
            "evidence": dict(self.evidence),
        }
