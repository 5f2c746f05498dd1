"""The latency test: false rollbacks, and how long a slow canary stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from judge_cases import STAGES, STEP, Case, Noise, play
from judge_common import BLOCK, RATES, READ_BEFORE, SHAPES, Row, rng_of, shape_name, table, upper
from judge_ours import NEVER, SLOW_STRENGTH, Before, rolls_back

SLOW_LIMIT = 0.05
"""A P95 limit says that at most 5 % of the requests may be slower."""


SLOW_BASES = (0.01, 0.04)


SLOW_BAD = (0.1, 0.3, 1.0)


def slow_block(job: tuple[float, int, int]) -> dict[Case, int]:
    """Whole migrations that the latency test rolls back though both gateways are equally slow."""
    k, block, runs = job
    rng = rng_of(10, block, 0 if np.isinf(k) else round(100 * k))
    noise = Noise.make(k, runs, rng)
    found = {}
    for rate in RATES:
        for base in SLOW_BASES:
            case, wrong, past = Case(rate, base, k), np.zeros(runs, dtype=bool), Before()
            for played in play(case, noise, rng, tuple(range(len(STAGES)))):
                asked = replace(played, stage=replace(played.stage, limit=SLOW_LIMIT))
                wrong |= rolls_back(asked, past, strength=SLOW_STRENGTH) < NEVER
            found[case] = int(wrong.sum())
    return found


def slow_case(job: tuple[Case, int, int]) -> float:
    """Mean seconds until a canary that slows down at once is rolled back in stage 1."""
    case, number, runs = job
    noise = Noise.make(case.k, runs, rng_of(11, number), history=READ_BEFORE)
    played = next(play(case, noise, rng_of(12, number), (0,)))
    asked = replace(played, stage=replace(played.stage, limit=SLOW_LIMIT))
    first = rolls_back(asked, strength=SLOW_STRENGTH)
    return float(np.minimum(first, played.stage.scrapes).mean() * STEP)


def latency_table(run: Callable[..., Any], runs: int, sick_runs: int) -> list[str]:
    blocks, size = max(1, runs // BLOCK), min(runs, BLOCK)
    wrong: dict[Case, int] = {}
    for found in run(slow_block, [(k, block, size) for block in range(blocks) for k in SHAPES]):
        for case, count in found.items():
            wrong[case] = wrong.get(case, 0) + count
    all_runs = blocks * size
    sick = [Case(c.rate, c.base, c.k, canary=bad) for c in wrong for bad in SLOW_BAD]
    seconds = list(run(slow_case, [(case, i, sick_runs) for i, case in enumerate(sick)]))
    rows: list[Row] = []
    for i, (case, count) in enumerate(wrong.items()):
        late = seconds[i * len(SLOW_BAD) : (i + 1) * len(SLOW_BAD)]
        rows.append(
            (
                f"{case.rate:g}",
                f"{100 * case.base:g} %",
                shape_name(case.k),
                f"{count / all_runs:.2%}",
                f"{upper(count, all_runs):.2%}",
                *(f"{one:.0f} s" for one in late),
            )
        )
    return [
        f"### Latency: {all_runs:,} healthy migrations and {sick_runs:,} slow canaries a case",
        "",
        (
            "Both gateways have the same share of requests slower than the P95 limit (at most 5 %), through "
            "all five stages; the test may spend a fifth of the budget, 0.2 %. Right: mean time until one "
            "of which that share is slow from its first request on is rolled back in stage 1 (+3 s on every "
            "answer is 100 %); 1800 s is never."
        ),
        "",
        *table(
            (
                "req/s",
                "slow before",
                "k",
                "rolled back",
                "95 % upper",
                *(f"{100 * bad:g} % slow" for bad in SLOW_BAD),
            ),
            rows,
        ),
    ]
