"""The stable run at 100 %: each run covers the time since the one before, in one growing record."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from gateshift.archive.files import atomic_write
from gateshift.cluster import stable
from gateshift.errors import Blocked, NotEnoughEvidence
from gateshift.judge.measure import quantile, sum_buckets
from gateshift.judge.model import Sample
from gateshift.judge.replay import SampleLog
from gateshift.judge.verdict import Decision, judge
from gateshift.migration.state import Phase
from gateshift.notebook.live import LiveFigure
from gateshift.notebook.progress import Waiting, say
from gateshift.notebook.show import Note, Table
from gateshift.params import Mode, StageParams
from gateshift.runbook.base import Runbook
from gateshift.words import tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Soak", "limits_broken", "longest_gap"]

_WINDOWS = 96
"""Windows into which the time since the last run is divided: a quarter of an hour of a day."""
_CHUNKS = 24
"""Parts of a run that are judged by themselves, an hour of a day: no incident is averaged away."""


class Soak(Runbook):
    """``60_soak``: the stable run at 100 %, until the stable time is on record without a gap."""

    name: ClassVar[str] = "60_soak"
    title: ClassVar[str] = "Stable run"
    changes: ClassVar[bool] = False
    own: ClassVar[frozenset[str]] = frozenset({"samples"})

    def read(self) -> object:
        """Show the record so far, newest run last."""
        state = self.context.state
        self.due = state.phase in {Phase.CANARY, Phase.SOAK, Phase.SOAKED} and state.stage_index >= len(
            self.params.stages
        )
        if not self.due and self.params.mode is Mode.ACT:
            raise Blocked(
                f"the stable run is not due: the migration is at {state.phase.value}",
                hint=self.next_step(),
            )
        days = (time.time() - state.stable_since_unix) / 86400 if state.stable_since_unix else 0.0
        title = (
            f"Stable run: {days:.3g} of {self.params.soak.stable_for / 86400:.3g} days without a gap"
            f" (since {state.stable_since or 'never'})"
        )
        columns = ("covers", "requests", "errors", "error rate", "P95", "result", "what was found")
        return Table(title, columns, tuple(_row(d) for d in self._record()[-60:]))

    def _record(self) -> list[dict[str, Any]]:
        return [dict(r.data) for r in self.context.journal.records if r.kind == "soak.sample"]

    def check(self) -> object:
        """Observe the time since the last run and add it to the record."""
        if not self.due:
            return Note("info", "the stable run is not due; nothing was measured")
        outcome: Note | None = None
        for _ in range(int(self.extra.get("samples") or 1)):
            outcome = self._sample_once()
        return outcome

    def _begin(self, now: float) -> float:
        """Where the run before ended; not earlier than a run late by the grace would still cover."""
        state = self.context.state
        covered = state.soak_until if state.soak_until is not None else state.stable_since_unix
        soak = self.params.soak
        return max(covered if covered is not None else now, now - soak.sample_every - soak.grace)

    def _observe(self, begin: float, stage: StageParams) -> list[Sample]:
        live = LiveFigure()
        last = len(self.params.stages) - 1
        log = SampleLog(self.context.run_folder / "samples.jsonl", stage, self.params.judge, last)
        history: list[Sample] = []
        step = self.params.metrics.step

        def take(since: float, until: float) -> None:
            sample = self.context.sampler.sample(since, until)
            history.append(sample)
            log.write(sample)

        # What is past already, from Prometheus's memory. The newest scrape may not be in yet.
        end = time.time()
        count = min(_WINDOWS, int((end - begin) / step))
        edges = [begin + (end - begin) * k / count for k in range(count + 1)] if count else [begin]
        for since, until in pairwise(edges[:]):
            take(since, until)
        waiting = Waiting(tell("wait.sample"), say, every=30.0)
        while edges[-1] - begin < self.params.soak.sample_for:
            time.sleep(step)
            edges.append(time.time())
            take(edges[-2], edges[-1])
            seen = sum(sample.canary.requests or 0.0 for sample in history)
            waiting.beat(
                edges[-1] - begin,
                self.params.soak.sample_for,
                tell("wait.sample.reason", requests=f"{seen:.0f}"),
            )
            live.update(partial(_figure, list(history), stage, self.params.migration))
        waiting.close()
        live.update(partial(_figure, history, stage, self.params.migration))
        live.finish()
        return history

    def _sample_once(self) -> Note:
        stage = self.params.stages[-1]
        begin = self._begin(time.time())
        history = self._observe(begin, stage)
        end = history[-1].time
        known = [s for s in history if s.canary.requests is not None]
        requests = sum(s.canary.requests or 0 for s in known)
        errors = sum(s.canary.errors or 0 for s in known)
        if not known or requests <= 0:
            why = history[-1].canary.missing or "no request arrived"
            raise NotEnoughEvidence(
                f"stable run: no requests were measured ({why}), so nothing was added to the record"
            )
        before = self._record()
        day = stable.look(
            self.params,
            self.context.cluster,
            seconds=end - begin,
            before=before[-1].get("day") if before else None,
        )
        problems = [*limits_broken(known, stage), *self._incidents(known, stage), *day.problems]
        gap, resumed = longest_gap(history, begin, self.params.soak.grace)
        found: dict[str, Any] = {} if resumed is None else {"stable_from": resumed, "longest_gap": gap}
        p95 = quantile(sum_buckets([s.canary for s in known]), 0.95)
        self.record(
            "soak.sample",
            stable=not problems,
            requests=requests,
            errors=errors,
            p95_ms=p95.value,
            seconds=end - begin,
            unmeasured=len(history) - len(known),
            reasons=problems or ["within every limit"],
            day=day.as_json(),
            allowed_gap=1.0,
            **{"from": begin, "to": end},
            **found,
        )
        self._write_details(day)
        if problems:
            raise Blocked(
                f"stable run: {'; '.join(problems[:5])}",
                hint="the stable time begins anew; `gateshift diagnose` finds causes, `rollback` brings back",
            )
        return self._conclude(requests, errors, day)

    def _incidents(self, known: Sequence[Sample], stage: StageParams) -> list[str]:
        """Judge the run in parts: an hour that was worse than the limit is no stable day."""
        size = max(1, -(-len(known) // _CHUNKS))
        chunks = [known[i : i + size] for i in range(0, len(known), size)]
        found = []
        for chunk in chunks:
            verdict = judge(
                chunk,
                stage,
                self.params.judge,
                stage_index=len(self.params.stages) - 1,
                stages=len(self.params.stages) * len(chunks),
                started=chunk[0].time,
                now=chunk[-1].time,
            )
            if verdict.decision is Decision.ROLLBACK:
                found.append(f"around {_clock(chunk[0].time)}: {verdict.reasons[0]}")
        return found

    def _write_details(self, day: stable.Day) -> None:
        """Keep one line of each log pattern beside the notebook, without what is secret."""
        redact = self.context.journal.redactor.text
        details = {
            part: [
                {"pattern": redact(p.pattern), "count": p.count, "example": redact(p.example)} for p in found
            ]
            for part, found in day.patterns.items()
        }
        text = json.dumps({**day.as_json(), "patterns": details}, indent=1)
        atomic_write(self.context.run_folder / "soak.json", text + "\n")

    def _conclude(self, requests: float, errors: float, day: stable.Day) -> Note:
        state = self.context.state
        stable_for = time.time() - (state.stable_since_unix or time.time())
        text = f"{requests:.0f} requests, {errors:.0f} errors; stable for {stable_for / 86400:.3g} days"
        notes = "".join(f"\n{n}" for n in day.notes)
        if stable_for < self.params.soak.stable_for:
            return Note("info", f"{text} of {self.params.soak.stable_for / 86400:.3g}{notes}")
        if state.phase is not Phase.SOAKED:
            self.record("soak.done", stable_seconds=stable_for)
        return Note("pass", f"{text}: the stable time is on record{notes}")


def limits_broken(known: Sequence[Sample], stage: StageParams) -> list[str]:
    """Compare the measured time as a whole with the stage's limits; what cannot be compared is a problem."""
    requests = sum(s.canary.requests or 0 for s in known)
    errors = sum(s.canary.errors or 0 for s in known)
    rate = 100 * errors / requests
    found = []
    if rate > stage.error_rate_limit_percent:
        found.append(f"error rate {rate:.3g} %, limit {stage.error_rate_limit_percent:g} %")
    if 100 - rate < stage.availability_percent:
        found.append(f"availability {100 - rate:.4g} %, limit {stage.availability_percent:g} %")
    p95 = quantile(sum_buckets([s.canary for s in known]), 0.95)
    if p95.value is None:
        found.append("P95 could not be measured: there are no latency buckets")
    elif p95.value > stage.p95_limit_ms or (p95.beyond and p95.value >= stage.p95_limit_ms):
        found.append(f"P95 {p95}, limit {stage.p95_limit_ms:.0f} ms")
    elif p95.beyond:
        found.append(f"P95 {p95}: the histogram ends below the limit of {stage.p95_limit_ms:.0f} ms")
    return found


def longest_gap(history: Sequence[Sample], begin: float, allowed: float) -> tuple[float, float | None]:
    """Return the longest stretch without figures in seconds, and the end of the last one beyond *allowed*."""
    longest: float = 0.0
    resumed: float | None = None
    since: float | None = None
    last = begin
    for sample in history:
        if sample.canary.requests is None:
            since = last if since is None else since
            longest = max(longest, sample.time - since)
            if sample.time - since > allowed:
                resumed = sample.time
        else:
            since = None
        last = sample.time
    return longest, resumed


def _clock(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M}Z"


def _row(data: dict[str, Any]) -> tuple[str, ...]:
    requests, errors = float(data.get("requests") or 0), float(data.get("errors") or 0)
    rate = f"{100 * errors / requests:.3g} %" if requests else "unknown"
    covers = f"{_clock(data['from'])} to {_clock(data['to'])}" if "from" in data else ""
    p95 = data.get("p95_ms")
    notes = [*data.get("reasons", ()), *(data.get("day") or {}).get("notes", ())]
    return (
        covers,
        f"{requests:.0f}",
        f"{errors:.0f}",
        rate,
        "unknown" if p95 is None else f"{p95:.0f} ms",
        "pass" if data.get("stable", True) else "fail",
        "; ".join(map(str, notes)),
    )


def _figure(history: list[Any], stage: Any, migration: str) -> Figure:
    from gateshift.notebook.plots import canary_figure  # noqa: PLC0415 - LiveFigure has loaded what is slow

    return canary_figure(history, stage, verdict=None, title=f"{migration}: stable run")
