"""Simulated traffic of a migration: requests and errors of both gateways by scrape.

One run is a migration of the guide (10, 25, 50, 75, 100 %; 30, 30, 60, 60, 60 min; a scrape every 15 s)
after a time in which the old gateway served alone. The rate of each gateway and scrape is the base rate
times a gamma variable of mean 1 and shape k, independent over gateways and scrapes (k = infinity: 1).
Drift lets both rates swing by 50 % over each stage; an incident multiplies both by ten for five minutes.
Runs of different cases share their gamma variables, which saves most of the time and changes no case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import judge_kernel as kernel

STEP = 15.0
HISTORY = 480
"""Scrapes of the old gateway before the migration: two hours."""

INCIDENT = 20
"""Scrapes that a shared incident lasts."""

Counts = npt.NDArray[np.int32]
Shocks = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """One stage: weight (ratio 0-1), limit (ratio 0-1), scrapes of its dwell."""

    weight: float
    limit: float
    scrapes: int


STAGES = (
    Stage(0.10, 0.010, 120),
    Stage(0.25, 0.010, 120),
    Stage(0.50, 0.005, 240),
    Stage(0.75, 0.005, 240),
    Stage(1.00, 0.001, 240),
)


@dataclass(frozen=True)
class Case:
    """Requests a second over both gateways, error ratios 0-1; ``canary`` is None where it is healthy.

    ``k_canary`` is only set where both gateways burst differently on purpose, ``family``
    where another mechanism than the model's makes the bursts (see :func:`held_out`).
    """

    rate: float
    base: float
    k: float
    canary: float | None = None
    drift: bool = False
    incident: bool = False
    k_canary: float | None = None
    family: str = ""


@dataclass(frozen=True)
class Traffic:
    """Requests a scrape (0: none) and errors, shape (scrapes, runs), of one gateway."""

    requests: int
    errors: Counts


@dataclass(frozen=True)
class Played:
    """One stage as it was played; ``before`` are the old gateway's scrapes of before it."""

    stage: Stage
    canary: Traffic
    baseline: Traffic
    before: tuple[Traffic, ...]


def shocks(k: float, scrapes: int, runs: int, rng: np.random.Generator) -> Shocks:
    """Return gamma variables of mean 1 and shape *k*, shape (scrapes, runs)."""
    if np.isinf(k):
        return np.ones((scrapes, runs), dtype=np.float32)
    return rng.standard_gamma(k, (scrapes, runs), dtype=np.float32) * np.float32(1 / k)


def held_out(family: str, scrapes: int, runs: int, rng: np.random.Generator) -> Shocks:
    """Return factors of mean 1 whose bursts are made otherwise than the judge's model has it.

    *markov* is a gateway that is calm or, one twentieth of the time and for a minute on average, ten times as
    bad; *markov, longer*: one tenth of the time, for three minutes, five times; *lognormal* has heavier tails
    than a gamma variable of the same variance (e - 1).
    """
    if family == "lognormal":
        return np.exp(rng.standard_normal((scrapes, runs)) - 0.5).astype(np.float32)
    leave, share, worse = (0.25, 0.05, 10.0) if family == "markov" else (1 / 12, 0.1, 5.0)
    enter = leave * share / (1 - share)
    state = rng.random(runs) < share
    found = np.empty((scrapes, runs), dtype=np.float32)
    for t in range(scrapes):
        found[t] = np.where(state, worse, 1.0) / (1 + share * (worse - 1))
        chance = rng.random(runs)
        state = np.where(state, chance >= leave, chance < enter)
    return found


def level(case: Case, stage: Stage) -> npt.NDArray[np.float32]:
    """Return the factor on both rates by scrape. An incident cannot be shared where one gateway is alone."""
    time = np.arange(stage.scrapes) / stage.scrapes
    found = 1 + 0.5 * np.sin(2 * np.pi * time) if case.drift else np.ones(stage.scrapes)
    if case.incident and stage.weight < 1:
        begin = stage.scrapes // 3
        found[begin : begin + INCIDENT] *= 10
    return found.astype(np.float32)


def draw(requests: int, rates: npt.NDArray[np.float32], shock: Shocks, rng: np.random.Generator) -> Traffic:
    """Draw errors: Poisson around requests x rate x shock, never more than requests."""
    if requests == 0:
        return Traffic(0, np.zeros(shock.shape, dtype=np.int32))
    kernel.seed(int(rng.integers(1 << 31)))
    return Traffic(requests, kernel.errors(requests, rates, shock))


def requests_of(case: Case, stage: Stage) -> tuple[int, int]:
    """Return requests a scrape of canary and baseline; at least one for the canary."""
    total = case.rate * STEP
    return max(round(total * stage.weight), 1), round(total * (1 - stage.weight))


@dataclass(frozen=True)
class Noise:
    """The gamma variables of one block of runs: history, then (canary, baseline) of each stage."""

    history: Shocks
    stages: tuple[tuple[Shocks, Shocks], ...]

    @classmethod
    def make(
        cls,
        k: float,
        runs: int,
        rng: np.random.Generator,
        k_canary: float | None = None,
        history: int = HISTORY,
        family: str = "",
    ) -> Noise:
        """Draw them for *runs* runs."""
        if family:
            return cls(
                held_out(family, history, runs, rng),
                tuple(
                    (held_out(family, s.scrapes, runs, rng), held_out(family, s.scrapes, runs, rng))
                    for s in STAGES
                ),
            )
        return cls(
            shocks(k, history, runs, rng),
            tuple(
                (shocks(k_canary or k, s.scrapes, runs, rng), shocks(k, s.scrapes, runs, rng)) for s in STAGES
            ),
        )


def play(case: Case, noise: Noise, rng: np.random.Generator, stages: tuple[int, ...]) -> Iterator[Played]:
    """Play the stages with these indices, in order; the others only become history."""
    scrapes = noise.history.shape[0]
    flat = np.full(scrapes, case.base, dtype=np.float32)
    if case.drift:
        flat *= (1 + 0.5 * np.sin(2 * np.pi * np.arange(scrapes) / 240)).astype(np.float32)
    past = [draw(round(case.rate * STEP), flat, noise.history, rng)]
    for index in range(max(stages) + 1):
        stage = STAGES[index]
        n_c, n_b = requests_of(case, stage)
        factor = level(case, stage)
        shock_c, shock_b = noise.stages[index]
        baseline = draw(n_b, case.base * factor, shock_b, rng)
        if index in stages:
            rate = case.base if case.canary is None else case.canary
            canary = draw(n_c, rate * factor, shock_c, rng)
            yield Played(stage, canary, baseline, tuple(t for t in past if t.requests))
        past.append(baseline)
