"""What the two tests of a stage found: evidence, the sums it rests on, and its thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gateshift.judge.measure import Quantile

__all__ = ["Finding", "LatencyFinding", "Window", "ratio"]


class _Counted:
    """The rates of what counts requests and events of both sides."""

    __slots__ = ()

    requests: float
    events: float
    baseline_requests: float
    baseline_events: float

    @property
    def rate(self) -> float:
        """Events per request of the canary."""
        return self.events / self.requests if self.requests > 0 else 0.0

    @property
    def baseline_rate(self) -> float:
        """Events per request of the baseline."""
        return self.baseline_events / self.baseline_requests if self.baseline_requests > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Window(_Counted):
    """Evidence gathered from interval *start* on, and the sums it rests on."""

    start: int
    requests: float
    events: float
    baseline_requests: float
    baseline_events: float
    relative: float
    absolute: float


@dataclass(frozen=True, slots=True)
class Finding(_Counted):
    """Evidence (natural logarithms, weights of the windows included) with its thresholds.

    ``window`` is the one that speaks loudest for rolling back; the other sums are over the whole history.
    ``tau`` is what evidence was divided by (:mod:`.persistence`).
    ``late`` is set when the newest intervals alone are above the limit: how many they are, and their rate.
    """

    requests: float
    events: float
    baseline_requests: float
    baseline_events: float
    late: tuple[int, float] | None
    window: Window
    relative_threshold: float
    absolute_threshold: float
    promotion: float
    promotion_threshold: float
    tau: float = 1.0
    rollback_reason: str = ""

    @property
    def relative(self) -> float:
        """Evidence against "no worse than the baseline"."""
        return self.window.relative

    @property
    def absolute(self) -> float:
        """Evidence against "within the limit"."""
        return self.window.absolute

    @property
    def rolls_back(self) -> bool:
        """Both tests have reached their thresholds."""
        return self.rollback_ratio >= 1.0

    @property
    def rollback_ratio(self) -> float:
        """Evidence over threshold, of the test that lags behind."""
        return ratio(self.window, self.relative_threshold, self.absolute_threshold)

    @property
    def promotion_ratio(self) -> float:
        """Evidence over threshold for "not worse than the limit by the margin"."""
        return self.promotion / self.promotion_threshold

    @property
    def guaranteed(self) -> bool:
        """Whether the promotion guarantee holds."""
        return self.requests > 0 and self.promotion >= self.promotion_threshold

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        compared = not math.isinf(self.relative_threshold)
        return {
            "requests": self.requests,
            "events": self.events,
            "baseline_requests": self.baseline_requests,
            "baseline_events": self.baseline_events,
            "late_intervals": self.late[0] if self.late else None,
            "late_rate": self.late[1] if self.late else None,
            "window_start": self.window.start,
            "window_requests": self.window.requests,
            "window_events": self.window.events,
            "worse_than_baseline": self.relative if compared else None,
            "worse_than_baseline_threshold": self.relative_threshold if compared else None,
            "above_limit": self.absolute,
            "above_limit_threshold": self.absolute_threshold,
            "below_limit_with_margin": self.promotion,
            "below_limit_with_margin_threshold": self.promotion_threshold,
            # Only where it matters, so that verdicts of before it was known replay to the same bytes.
            **({"persistence": self.tau} if self.tau > 1.0 else {}),
        }


@dataclass(frozen=True, slots=True)
class LatencyFinding:
    """The latency test with its P95; ``unknown`` says why there is none."""

    finding: Finding
    p95: Quantile
    baseline_p95: Quantile
    hold_reason: str = ""
    unknown: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            **self.finding.as_json(),
            "p95_ms": self.p95.value,
            "p95_in_last_bucket": self.p95.beyond,
            "baseline_p95_ms": self.baseline_p95.value,
            "unknown": self.unknown or None,
        }


def ratio(window: Window, relative_threshold: float, absolute_threshold: float) -> float:
    """Evidence over threshold, of the test that lags behind; without a comparison, of the limit alone."""
    absolute = window.absolute / absolute_threshold
    if math.isinf(relative_threshold):
        return absolute
    return min(absolute, window.relative / relative_threshold)
