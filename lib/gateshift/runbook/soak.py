"""The stable run at 100 %."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, ClassVar

from matplotlib.figure import Figure

from gateshift.errors import Blocked, NotEnoughEvidence
from gateshift.judge.replay import SampleLog
from gateshift.judge.verdict import Decision, judge
from gateshift.migration.state import Phase
from gateshift.notebook.live import LiveFigure
from gateshift.notebook.plots import canary_figure
from gateshift.notebook.progress import Waiting
from gateshift.notebook.show import Note, Table
from gateshift.params import Mode
from gateshift.runbook.base import Runbook, say
from gateshift.words import tell

__all__ = ["Soak"]


class Soak(Runbook):
    """``60_soak``: the stable run at 100 %, one sample a run, until the stable time is on record."""

    name: ClassVar[str] = "60_soak"
    title: ClassVar[str] = "Stable run"
    changes: ClassVar[bool] = False
    own: ClassVar[frozenset[str]] = frozenset({"samples"})

    def read(self) -> object:
        """Show what the record says so far."""
        state = self.context.state
        self.due = state.phase in {Phase.CANARY, Phase.SOAK, Phase.SOAKED} and state.stage_index >= len(
            self.params.stages
        )
        if not self.due and self.params.mode is Mode.ACT:
            raise Blocked(
                f"the stable run is not due: the migration is at {state.phase.value}",
                hint=self.next_step(),
            )
        rows = (
            ("stable time wanted", f"{self.params.soak.stable_for / 86400:.3g} days"),
            ("stable since", state.stable_since or "not yet"),
            ("samples on record", state.soak_samples),
        )
        return Table("Stable run", ("what", "value"), rows)

    def check(self) -> object:
        """Observe once (or *samples* times) and add to the record; a gap or an error starts it anew."""
        if not self.due:
            return Note("info", "the stable run is not due; nothing was measured")
        stage = self.params.stages[-1]
        live = LiveFigure()
        log = SampleLog(
            self.context.run_folder / "samples.jsonl", stage, self.params.judge, len(self.params.stages) - 1
        )
        outcome: Note | None = None
        for _ in range(int(self.extra.get("samples") or 1)):
            outcome = self._sample_once(stage, live, log)
        live.finish()
        return outcome

    def _sample_once(self, stage: Any, live: LiveFigure, log: SampleLog) -> Note:
        history = []
        waiting = Waiting(tell("wait.sample"), say, every=30.0)
        begun = since = time.time()
        verdict = None
        while time.time() - begun < self.params.soak.sample_for:
            time.sleep(self.params.metrics.step)
            now = time.time()
            sample = self.context.sampler.sample(since, now)
            since = now
            history.append(sample)
            log.write(sample)
            verdict = judge(
                history,
                stage,
                self.params.judge,
                stage_index=len(self.params.stages) - 1,
                stages=len(self.params.stages),
                started=begun,
                now=now,
            )
            live.update(partial(_soak_figure, history, stage, verdict, self.params.migration))
            seen = sum(s.canary.requests or 0 for s in history)
            waiting.beat(
                now - begun, self.params.soak.sample_for, tell("wait.sample.reason", requests=f"{seen:.0f}")
            )
        waiting.close()
        known = [s for s in history if s.canary.requests is not None]
        requests = sum(s.canary.requests or 0 for s in known)
        errors = sum(s.canary.errors or 0 for s in known)
        if verdict is None or not known or requests <= 0:
            raise NotEnoughEvidence(
                "stable run: no requests were measured, so nothing was added to the record"
            )
        stable = verdict.decision is not Decision.ROLLBACK
        self.record(
            "soak.sample",
            stable=stable,
            requests=requests,
            errors=errors,
            seconds=time.time() - begun,
            unmeasured=len(history) - len(known),
            reasons=list(verdict.reasons),
        )
        if not stable:
            raise Blocked(
                f"stable run: {'; '.join(verdict.reasons)}",
                hint="look at the plot; `gateshift rollback` brings back",
            )
        return self._conclude(requests, errors)

    def _conclude(self, requests: float, errors: float) -> Note:
        state = self.context.state
        stable_for = time.time() - (state.stable_since_unix or time.time())
        text = f"{requests:.0f} requests, {errors:.0f} errors; stable for {stable_for:.0f} s"
        if stable_for < self.params.soak.stable_for:
            return Note("info", f"{text} of {self.params.soak.stable_for:.0f} s")
        if state.phase is not Phase.SOAKED:
            self.record("soak.done", stable_seconds=stable_for)
        return Note("pass", f"{text}: the stable time is on record")


def _soak_figure(history: list[Any], stage: Any, verdict: Any, migration: str) -> Figure:
    return canary_figure(history, stage, verdict=verdict, title=f"{migration}: stable run")
