"""From raw counter snapshots to increases: resets, gaps, newcomers and stale series told apart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Increase", "Process", "Snapshot", "Target", "counted", "covered", "increase"]

Target = tuple[str, str]
"""One scraped process: (job, instance)."""


@dataclass(frozen=True, slots=True)
class Process:
    """Raw counters of one scraped process by key (a response code or a bucket edge), and when scraped."""

    counters: Mapping[str, float]
    scraped: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes of one gateway as Prometheus knew them at *time* (unix seconds)."""

    time: float
    processes: Mapping[Target, Process]


@dataclass(frozen=True, slots=True)
class Increase:
    """Increases by key, and the processes whose figures are not whole."""

    by_key: Mapping[str, float]
    reset: tuple[Target, ...] = ()
    vanished: tuple[Target, ...] = ()
    newcomers: tuple[Target, ...] = ()


def increase(before: Snapshot, after: Snapshot) -> Increase:
    """Return the increases from *before* to *after*.

    A key that a known process shows for the first time counts from zero: a first 503 is a real one, which
    ``increase()`` of PromQL would lose. A process seen for the first time is counted from its next scrape on,
    because nobody knows how old its counters are. After a restart the new value is the increase, as in
    PromQL, and the process is named.
    """
    sums: dict[str, float] = {}
    reset, newcomers = [], []
    for target, process in after.processes.items():
        old = before.processes.get(target)
        if old is None:
            newcomers.append(target)
            continue
        restarted = _restarted(old.counters, process.counters)
        if restarted:
            reset.append(target)
        for key, value in process.counters.items():
            grown = value if restarted else value - old.counters.get(key, 0.0)
            sums[key] = sums.get(key, 0.0) + grown
    vanished = tuple(sorted(set(before.processes) - set(after.processes)))
    return Increase(sums, tuple(sorted(reset)), vanished, tuple(sorted(newcomers)))


def _restarted(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return any(new.get(key, 0.0) < value for key, value in old.items())


def covered(before: Snapshot, after: Snapshot) -> float | None:
    """Return the seconds between the scrapes of *before* and *after*, on average over processes in both.

    None where there is no such process or the time of a scrape is not known.
    """
    pairs = [(before.processes[t], p) for t, p in after.processes.items() if t in before.processes]
    if not pairs or any(old.scraped <= 0 or new.scraped <= 0 for old, new in pairs):
        return None
    return sum(new.scraped - old.scraped for old, new in pairs) / len(pairs)


def counted(history: Sequence[Snapshot], from_zero: Collection[Target]) -> tuple[float, tuple[Target, ...]]:
    """Return how many requests *history* shows in all, and the processes of which that is not known.

    Other than the judge, who asks what changed, this asks whether anything was served at all: a restart
    counts from zero, and so does a process of *from_zero*, which was scraped at the beginning and had counted
    nothing. Of any other process first seen within the time nobody knows how old its counters are; the
    processes that came with more than nothing are named.
    """
    total, unknown = 0.0, set[Target]()
    last = {target: process.counters for target, process in history[0].processes.items()} if history else {}
    for snapshot in history[1:]:
        for target, process in snapshot.processes.items():
            served = sum(process.counters.values())
            old = last.get(target, {} if target in from_zero else None)
            last[target] = process.counters
            if old is not None:
                total += served - (0.0 if _restarted(old, process.counters) else sum(old.values()))
            elif served > 0:
                unknown.add(target)
    return total, tuple(sorted(unknown))
