"""What the users saw: counts by gateway and protocol, errors with their times, a line a second."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from dataclasses import asdict, dataclass, field
from typing import Any

from gateshift.lab.clients.mix import Call

__all__ = ["Outcome", "Problem", "Stats"]

_BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_RING = 2000
_SECONDS = 7200


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended: an HTTP status (101 for a WebSocket, gRPC's number for gRPC) or an *error*."""

    status: int | None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One unexpected outcome. *time* is unix seconds."""

    time: float
    gateway: str
    call: str
    protocol: str
    status: int | None
    error: str


@dataclass(slots=True)
class _Side:
    requests: int = 0
    errors: int = 0
    connection_errors: int = 0
    unexpected: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * (len(_BUCKETS_MS) + 1))


def _is_error(call: Call, outcome: Outcome) -> bool:
    """5xx, a gRPC error status, or no answer at all."""
    if outcome.status is None:
        return True
    return outcome.status != 0 if call.protocol == "grpc" else outcome.status >= 500


class Stats:
    """Everything since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.since = time.time()
        self.dropped = 0
        self.unresolved = 0
        self._sides: defaultdict[tuple[str, str], _Side] = defaultdict(_Side)
        self._problems: deque[Problem] = deque(maxlen=_RING)
        self._seconds: deque[tuple[int, Counter[str], Counter[str]]] = deque(maxlen=_SECONDS)

    def record(self, gateway: str, call: Call, outcome: Outcome) -> None:
        """Count one finished call."""
        now = time.time()
        side = self._sides[gateway, call.protocol]
        side.requests += 1
        side.statuses[str(outcome.status) if outcome.status is not None else outcome.error] += 1
        side.latency[bisect_left(_BUCKETS_MS, outcome.seconds * 1000)] += 1
        error = _is_error(call, outcome)
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, Counter(), Counter()))
        self._seconds[-1][1][gateway] += 1
        if error:
            side.errors += 1
            side.connection_errors += outcome.status is None
            self._seconds[-1][2][gateway] += 1
        unexpected = outcome.status not in call.expect
        if unexpected and not error:
            side.unexpected += 1
        if unexpected or error:
            self._problems.append(
                Problem(now, gateway, call.name, call.protocol, outcome.status, outcome.error)
            )

    def share(self, seconds: float) -> dict[str, Any]:
        """Requests by gateway over the last *seconds*, and each one's share in percent."""
        oldest = time.time() - seconds
        total: Counter[str] = Counter()
        for second, counts, _ in reversed(self._seconds):
            if second < oldest:
                break
            total.update(counts)
        everything = sum(total.values())
        return {
            "seconds": seconds,
            "requests": dict(total),
            "percent": {k: 100 * v / everything for k, v in total.items()},
        }

    def timeline(self, since: float = 0.0) -> list[dict[str, Any]]:
        """One row a second: unix time, requests and errors by gateway."""
        return [
            {"time": second, "requests": dict(counts), "errors": dict(errors)}
            for second, counts, errors in list(self._seconds)
            if second >= since
        ]

    def problems(self, since: float = 0.0) -> list[dict[str, Any]]:
        """Unexpected outcomes, oldest first (the last 2000)."""
        return [asdict(one) for one in self._problems if one.time >= since]

    def summary(self, window: float = 10.0) -> dict[str, Any]:
        """Counts by gateway and protocol, and the share over the last *window* seconds."""
        gateways: dict[str, Any] = {}
        for (gateway, protocol), side in sorted(self._sides.items()):
            entry = gateways.setdefault(
                gateway,
                {"requests": 0, "errors": 0, "connection_errors": 0, "unexpected": 0, "protocols": {}},
            )
            for name in ("requests", "errors", "connection_errors", "unexpected"):
                entry[name] += getattr(side, name)
            entry["protocols"][protocol] = {
                **{k: v for k, v in asdict(side).items() if k not in {"statuses", "latency"}},
                "statuses": dict(side.statuses),
                "latency_ms": {
                    str(le): count for le, count in zip((*_BUCKETS_MS, "inf"), side.latency, strict=True)
                },
            }
        return {
            "since": self.since,
            "requests": sum(e["requests"] for e in gateways.values()),
            "errors": sum(e["errors"] for e in gateways.values()),
            "unexpected": sum(e["unexpected"] for e in gateways.values()),
            "dropped": self.dropped,
            "unresolved": self.unresolved,
            "gateways": gateways,
            "share": self.share(window),
        }
