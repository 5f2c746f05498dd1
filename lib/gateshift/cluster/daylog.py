"""The logs of a day: error patterns by part of the system, and how much of the day the logs still hold.

A node keeps some megabytes of a container's log (the kubelet's default is 10 MiB a file); a busy gateway's
access log fills that in minutes. What it no longer holds was not seen, and is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import ApiError
from gateshift.cluster.logs import Pattern, group, merged
from gateshift.cluster.objects import Object, name_of

__all__ = ["PartLog", "container_states", "read"]

_BYTES = 256 * 2**20
_SECONDS = 60.0
"""What is read of one container at most; more than that is said, not silently left out."""
_AT_ONCE = 8
_FIRST = 60.0
"""Seconds after its start within which a container has logged its first line."""


@dataclass(frozen=True, slots=True)
class PartLog:
    """What the logs of one part held. ``covered`` are the seconds seen, by pod."""

    patterns: tuple[Pattern, ...]
    covered: Mapping[str, float]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def container_states(pod: Object) -> list[dict[str, Any]]:
    """Return the status of each container; a native sidecar is among the init containers."""
    status = pod.get("status", {})
    return [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]


def read(
    cluster: Cluster, parts: Mapping[str, tuple[Sequence[Object], str]], seconds: float
) -> dict[str, PartLog]:
    """Read the last *seconds* of the logs of each part (its pods and the container's name), side by side.

    A pod that has no log (it is just starting, or gone) is a note; none of a part's pods having one is a
    problem. Raises :class:`ClusterError` when logs may not be read or the API does not answer.
    """
    every = [(part, pod, container) for part, (pods, container) in parts.items() for pod in pods]

    def one(item: tuple[str, Object, str]) -> _Read | str:
        _, pod, container = item
        try:
            return _Reading(cluster, pod, container, seconds).read()
        except ApiError as error:
            if error.status not in {400, 404}:
                raise
            return str(error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(one, every))
    return {
        part: _part(part, [(name_of(p), r) for (of, p, _), r in zip(every, found, strict=True) if of == part])
        for part in parts
    }


def _part(part: str, found: Sequence[tuple[str, _Read | str]]) -> PartLog:
    seen = {pod: one for pod, one in found if isinstance(one, _Read)}
    unread = [(pod, why) for pod, why in found if isinstance(why, str)]
    problems: list[str] = []
    notes: list[str] = []
    if unread:
        pods = ", ".join(pod for pod, _ in unread[:5])
        text = f"no log of {pods}{' and others' if len(unread) > 5 else ''}: {unread[0][1]}"
        (notes if seen else problems).append(text)
    short = {pod: one for pod, one in seen.items() if one.missing > 0}
    if short:
        pod, worst = max(short.items(), key=lambda item: item[1].missing)
        asked = worst.covered + worst.missing
        more = f" and less than all at {len(short) - 1} more" if len(short) > 1 else ""
        held = f"{_span(worst.covered)} of {_span(asked)} at {pod}{more}"
        notes.append(f"the logs of {part} hold {held}; the rest was not seen")
    return PartLog(
        merged(one.patterns for one in seen.values()),
        {pod: round(one.covered, 1) for pod, one in seen.items()},
        tuple(problems),
        tuple(notes),
    )


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


@dataclass(frozen=True, slots=True)
class _Read:
    """One container's patterns, and the seconds of its log that were seen and that were not."""

    patterns: tuple[Pattern, ...]
    covered: float
    missing: float


class _Reading:
    """The reading of one container's log."""

    def __init__(self, cluster: Cluster, pod: Object, container: str, seconds: float) -> None:
        self.cluster, self.container, self.seconds = cluster, container, seconds
        self.where = (str(pod["metadata"]["namespace"]), name_of(pod))
        self.begin = time.time() - seconds
        self.state = next((s for s in container_states(pod) if s.get("name") == container), {})
        self.missing = 0.0

    def read(self) -> _Read:
        patterns = [group(self._lines(time.time()))]
        self.missing += self._before()
        ended = _unix(self.state.get("lastState", {}).get("terminated", {}).get("finishedAt"))
        if ended is not None and ended > self.begin:
            # What it said before it was restarted explains the restart. It may be gone already.
            try:
                patterns.append(group(self._lines(ended, previous=True)))
            except ApiError as error:
                if error.status not in {400, 404}:
                    raise
        missing = min(self.seconds, self.missing)
        return _Read(merged(patterns), self.seconds - missing, missing)

    def _lines(self, end: float, *, previous: bool = False) -> Iterator[str]:
        """Yield the log's lines without their times; the seconds up to *end* (Unix) left unread are kept."""
        left, deadline = _BYTES, time.monotonic() + _SECONDS
        namespace, pod = self.where
        for line in self.cluster.log_lines(
            namespace, pod, container=self.container, seconds=self.seconds, previous=previous
        ):
            stamp, _, text = line.partition(" ")
            left -= len(line)
            if left < 0 or time.monotonic() > deadline:
                self.missing += max(0.0, end - (_unix(stamp) or self.begin))
                return
            yield text

    def _before(self) -> float:
        """Return the seconds of the asked time that lie before the oldest line that is still held."""
        namespace, pod = self.where
        first = next(self.cluster.log_lines(namespace, pod, container=self.container, limit=4096), "")
        oldest = _unix(first.partition(" ")[0])
        if oldest is None:
            return 0.0  # nothing was logged at all
        started = _unix(self.state.get("state", {}).get("running", {}).get("startedAt"))
        if started is not None and oldest - started < _FIRST:
            return 0.0  # the log begins where the container did
        return max(0.0, oldest - self.begin)


def _unix(stamp: object) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp() if stamp else None
    except ValueError:
        return None
