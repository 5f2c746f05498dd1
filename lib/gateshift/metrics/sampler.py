"""Samples both gateways: increases of raw counters since the previous sample, every lack of data named."""

from __future__ import annotations

import contextlib
import math
import re
import time as clock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from gateshift.errors import MetricsError
from gateshift.judge.model import Buckets, Missing, MissingKind, Sample, Side
from gateshift.metrics.catalogue import CATALOGUE, render
from gateshift.metrics.counters import Process, Snapshot, Target, counted, covered, increase
from gateshift.metrics.source import Answer, PrometheusSource
from gateshift.params.model import MetricsParams

__all__ = ["REFERENCE_INTERVALS", "Sampler", "until_known"]

_STALE_STEPS = 4.0
"""Scrapes that may fail to come before a series counts as stale; one second more forgives jitter."""


REFERENCE_INTERVALS = 1440
"""Intervals of the past that tell how errors burst: six hours at a scrape every 15 s."""

_MOST_POINTS = 1000
"""Points that one series of a range is read at, at most: Prometheus refuses more than 11,000."""


class _NoData(Exception):  # noqa: N818 - not an error: it carries the name of what is missing
    def __init__(self, kind: MissingKind, detail: str) -> None:
        super().__init__(detail)
        self.missing = Missing(kind, detail)


@dataclass(frozen=True, slots=True)
class _Gateway:
    """How one gateway is read: catalogue rows, its label for the code, and the params' selector."""

    name: str
    requests: str
    buckets: str
    scraped: str
    code: str
    selector: str


@dataclass(slots=True)
class _Memory:
    """What is remembered of one gateway between samples."""

    requests: Snapshot | None = None
    buckets: Snapshot | None = None
    reporter: str = ""


class Sampler:
    """Reads increases over (since, now] of Istio (canary) and APISIX (baseline).

    The previous raw snapshot is kept; after a restart, or when *since* is not the previous *now*, it is read
    again at *since*. Selectors are lists of label matchers; given ones override those of the params.
    """

    def __init__(
        self,
        source: PrometheusSource,
        params: MetricsParams,
        apisix_selector: str | None = None,
        istio_selector: str | None = None,
    ) -> None:
        self._source = source
        self._step = params.step
        self._istio = _Gateway(
            "Istio gateway",
            "istio_requests_raw",
            "istio_buckets_raw",
            "istio_scraped",
            "response_code",
            params.istio_selector if istio_selector is None else istio_selector,
        )
        self._apisix = _Gateway(
            "APISIX",
            "apisix_requests_raw",
            "apisix_buckets_raw",
            "apisix_scraped",
            "code",
            params.apisix_selector if apisix_selector is None else apisix_selector,
        )
        self._memory = {self._istio.name: _Memory(), self._apisix.name: _Memory()}

    def sample(self, since: float, now: float) -> Sample:
        """Return both sides' increases. Never raises for missing data: each side names what it lacks."""
        return Sample(now, self._side(self._istio, since, now), self._side(self._apisix, since, now))

    def reference(self, until: float, intervals: int = REFERENCE_INTERVALS) -> tuple[tuple[Side, ...], str]:
        """Return APISIX's own intervals of before *until*, oldest first, and why there are none.

        They tell the judge how much errors burst where nothing is being changed. Only whole intervals are
        returned: a restart, a process that comes or goes or an unanswered scrape leaves a hole. Without a
        past (empty result, reason given) a judge has to assume bursts until it has seen otherwise.
        """
        start = until - intervals * self._step
        try:
            requests = self._past(self._apisix.requests, self._apisix.code, start, until, self._step)
            buckets = self._past(self._apisix.buckets, "le", start, until, self._step)
        except (_NoData, MetricsError) as error:
            return (), str(_lack(error))
        shapes = dict(_steps(buckets))
        found = tuple(
            Side(*_counted(grown), buckets=_buckets(shapes.get(time, {})), source=self._apisix.name)
            for time, grown in _steps(requests)
            if sum(grown.values()) > 0
        )
        lacking = Missing(MissingKind.EMPTY_ANSWER, f"APISIX: nothing counted in {until - start:.0f} s")
        return found, "" if found else str(lacking)

    def served(self, since: float, now: float) -> Side:
        """Return how many requests APISIX served in all over (since, now], or why that is not known.

        For the question whether it is idle, where a request overlooked is worse than one too many: every
        scrape of the time is read, a target that does not answer now and a process whose counters may be of
        before are not known. Never raises for missing data.
        """
        gateway, memory = self._apisix, self._memory[self._apisix.name]
        try:
            step = max(self._step, (now - since) / _MOST_POINTS)
            history = self._past(gateway.requests, gateway.code, since, now, step)
            newest = self._snapshot(gateway, memory, gateway.requests, gateway.code, now)
            self._refuse_stale(gateway, newest, now)
            silent = self._targets(gateway.selector, now, 0.0)
            if silent:
                raise _NoData(MissingKind.SCRAPE_GAP, f"APISIX: {_names(silent)} did not answer the scrape")
            if not history or history[0].time > since + step / 2:  # nothing was scraped yet when it began
                history.insert(0, Snapshot(since, {}))
            requests, unknown = counted([*history, newest], self._targets(gateway.selector, since, 1.0))
        except (_NoData, MetricsError) as error:
            return Side(missing=_lack(error), source=gateway.name)
        if unknown and not requests:
            told = f"APISIX: {_names(unknown)} was first scraped within the last {now - since:.0f} s"
            return Side(missing=Missing(MissingKind.NEW_PROCESS, told), source=gateway.name)
        return Side(requests=requests, source=gateway.name, covered=now - since)

    def _targets(self, selector: str, at: float, up: float) -> tuple[Target, ...]:
        """Return the targets that answered their last scrape before *at* (*up* 1), or did not (0)."""
        found = self._ask("target_up", selector, at).series
        return tuple(sorted(_target(series.labels) for series in found if series.value == up))

    def connections(self, at: float) -> tuple[float | None, float | None]:
        """Return the open client connections of Istio and APISIX at *at*; None where they are not known.

        To watch only, no verdict rests on them. Envoy's own figures lack the labels of Istio's metrics: the
        gateway's are those of the instances whose requests were counted.
        """
        known = self._memory[self._istio.name].requests
        instances = sorted({instance for _, instance in known.processes if instance}) if known else []
        named = "|".join(_escaped(re.escape(instance)) for instance in instances)
        istio = self._number("istio_connections", f'instance=~"{named}"', at) if instances else None
        return istio, self._number("apisix_connections", self._apisix.selector, at)

    def _number(self, row: str, selector: str, at: float) -> float | None:
        try:
            values = [series.value for series in self._ask(row, selector, at).series]
        except (_NoData, MetricsError):
            return None
        return values[0] if values and math.isfinite(values[0]) else None

    def _past(self, row: str, key: str, start: float, end: float, step: float) -> list[Snapshot]:
        """Read APISIX's raw counters at every *step* seconds of a time that is over."""
        query = render(CATALOGUE[row], selector=self._apisix.selector)
        answer = self._source.range(query, start, end, step)
        if answer.partial:
            raise _NoData(MissingKind.PARTIAL_RESPONSE, answer.partial)
        times: dict[float, dict[Target, dict[str, float]]] = {}
        for series in answer.series:
            target, label = _target(series.labels), series.labels.get(key, "")
            for time, value in series.points:
                if math.isfinite(value):
                    times.setdefault(time, {}).setdefault(target, {})[label] = value
        return [
            Snapshot(time, {target: Process(counters, time) for target, counters in found.items()})
            for time, found in sorted(times.items())
        ]

    def _side(self, gateway: _Gateway, since: float, now: float) -> Side:
        memory = self._memory[gateway.name]
        try:
            if memory.requests is None or abs(memory.requests.time - since) > 0.001:
                self._restart(gateway, memory, since)
            return self._read(gateway, memory, now)
        except (_NoData, MetricsError) as error:
            return Side(missing=_lack(error), source=_source_text(gateway, memory.reporter))
        finally:
            # Also after a lack: the next interval starts here, and what was known of a process stays known.
            if memory.requests is not None:
                memory.requests = Snapshot(now, memory.requests.processes)

    def _restart(self, gateway: _Gateway, memory: _Memory, since: float) -> None:
        """Read the state at *since*, as far as there was one; emptiness then is no finding."""
        known: Mapping[Target, Process] = {}
        edges: Mapping[Target, Process] = {}
        with contextlib.suppress(_NoData):
            known = self._snapshot(gateway, memory, gateway.requests, gateway.code, since).processes
            edges = self._snapshot(gateway, memory, gateway.buckets, "le", since).processes
        if memory.requests is not None:
            known = {**memory.requests.processes, **known}
            edges = {**(memory.buckets.processes if memory.buckets else {}), **edges}
        memory.requests = Snapshot(since, known)
        memory.buckets = Snapshot(since, edges)

    def _read(self, gateway: _Gateway, memory: _Memory, now: float) -> Side:
        before = memory.requests
        before_buckets = memory.buckets
        if before is None or before_buckets is None:  # _restart has set both
            raise _NoData(MissingKind.EMPTY_ANSWER, "no earlier state")
        after = self._snapshot(gateway, memory, gateway.requests, gateway.code, now, may_be_empty=True)
        if not after.processes:
            silent = self._gone(tuple(sorted(before.processes)), now)
            if silent:
                raise _NoData(
                    MissingKind.SCRAPE_GAP, f"{gateway.name}: {_names(silent)} did not answer the scrape"
                )
            raise _NoData(MissingKind.EMPTY_ANSWER, f"{gateway.name}: no series match {{{gateway.selector}}}")
        after_buckets = self._snapshot(gateway, memory, gateway.buckets, "le", now, may_be_empty=True)
        self._refuse_stale(gateway, after, now)
        grown = increase(before, after)
        shape = increase(before_buckets, after_buckets)
        gone = self._gone(grown.vanished, now)
        # Processes that failed this scrape keep their last state, so that their next one is differenced.
        kept = {target: before.processes[target] for target in gone}
        memory.requests = Snapshot(now, {**kept, **after.processes})
        kept_buckets = {t: before_buckets.processes[t] for t in gone if t in before_buckets.processes}
        memory.buckets = Snapshot(now, {**kept_buckets, **after_buckets.processes})
        if gone:
            raise _NoData(MissingKind.SCRAPE_GAP, f"{gateway.name}: {_names(gone)} did not answer the scrape")
        if grown.reset:
            raise _NoData(MissingKind.COUNTER_RESET, f"{gateway.name}: {_names(grown.reset)} restarted")
        requests, errors = _counted(grown.by_key)
        return Side(
            requests=requests,
            errors=errors,
            buckets=_buckets(shape.by_key),
            source=_source_text(gateway, memory.reporter),
            covered=covered(before, after),
        )

    def _snapshot(
        self,
        gateway: _Gateway,
        memory: _Memory,
        row: str,
        key: str,
        at: float,
        *,
        may_be_empty: bool = False,
    ) -> Snapshot:
        answer = self._ask(row, gateway.selector, at)
        if not answer.series and not may_be_empty:
            raise _NoData(MissingKind.EMPTY_ANSWER, f"{gateway.name}: no series match {{{gateway.selector}}}")
        if CATALOGUE[row].reporters:
            memory.reporter = _reporter(answer, row) or memory.reporter
        scraped = {
            _target(series.labels): series.value
            for series in self._ask(gateway.scraped, gateway.selector, at).series
        }
        found: dict[Target, dict[str, float]] = {}
        for series in answer.series:
            if series.labels.get("reporter", "") != memory.reporter and CATALOGUE[row].reporters:
                continue
            if not math.isfinite(series.value):
                continue
            counters = found.setdefault(_target(series.labels), {})
            label = series.labels.get(key, "")
            counters[label] = counters.get(label, 0.0) + series.value
        return Snapshot(
            at, {target: Process(values, scraped.get(target, 0.0)) for target, values in found.items()}
        )

    def _ask(self, row: str, selector: str, at: float) -> Answer:
        answer = self._source.instant(render(CATALOGUE[row], selector=selector), at)
        if answer.partial:
            raise _NoData(MissingKind.PARTIAL_RESPONSE, answer.partial)
        return answer

    def _refuse_stale(self, gateway: _Gateway, after: Snapshot, now: float) -> None:
        allowed = _STALE_STEPS * self._step + 1.0
        old = {t: now - p.scraped for t, p in after.processes.items() if now - p.scraped > allowed}
        if old:
            names = ", ".join(f"{instance} {age:.0f} s" for (_, instance), age in sorted(old.items()))
            raise _NoData(MissingKind.STALE_SERIES, f"{gateway.name}: last scraped: {names} ago")

    def _gone(self, vanished: tuple[Target, ...], now: float) -> tuple[Target, ...]:
        """Of the processes that vanished, return those still listed but not answering.

        A process that is no longer a target was scaled down or replaced: its counters end, that is no gap.
        """
        still = []
        for job, instance in vanished:
            selector = ",".join(
                f'{k}="{_escaped(v)}"' for k, v in (("job", job), ("instance", instance)) if v
            )
            if self._targets(selector, now, 0.0):
                still.append((job, instance))
        return tuple(still)


def until_known(look: Callable[[], Side], *, seconds: float, every: float) -> Side:
    """Return what *look* sees, asked again every *every* seconds while figures are missing, for *seconds*.

    One scrape that is late takes a process's series away until the next one: for a question that is asked
    once, and not of each interval, that is no answer yet. A lack that lasts is returned as such.
    """
    deadline = clock.monotonic() + seconds
    while (side := look()).missing is not None and clock.monotonic() < deadline:
        clock.sleep(every)
    return side


def _lack(error: _NoData | MetricsError) -> Missing:
    """What is missing, by name: an answer that could not be had is a lack like any other."""
    return error.missing if isinstance(error, _NoData) else Missing(MissingKind.QUERY_ERROR, str(error))


def _counted(by_code: Mapping[str, float]) -> tuple[float, float]:
    """Requests and errors (5xx answers)."""
    errors = sum(value for code, value in by_code.items() if code.startswith("5") and len(code) == 3)
    return sum(by_code.values()), errors


def _steps(snapshots: list[Snapshot]) -> Iterator[tuple[float, Mapping[str, float]]]:
    """Increases from each snapshot to the next, of those that are whole."""
    for before, after in pairwise(snapshots):
        grown = increase(before, after)
        if not (grown.reset or grown.vanished or grown.newcomers):
            yield after.time, grown.by_key


def _target(labels: Mapping[str, str]) -> Target:
    return labels.get("job", ""), labels.get("instance", "")


def _names(targets: tuple[Target, ...]) -> str:
    return ", ".join(instance for _, instance in targets)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _reporter(answer: Answer, row: str) -> str:
    """Choose the one reporter to read: two of them would count every request twice."""
    present = {series.labels.get("reporter", "") for series in answer.series}
    for reporter in CATALOGUE[row].reporters:
        if reporter in present:
            return reporter
    return ""


def _source_text(gateway: _Gateway, reporter: str) -> str:
    return f'{gateway.name}, reporter="{reporter}"' if reporter else gateway.name


def _buckets(by_edge: Mapping[str, float]) -> Buckets | None:
    if not by_edge:
        return None
    return tuple(sorted((float(edge), count) for edge, count in by_edge.items()))
