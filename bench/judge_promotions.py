"""Promotions: wrong ones, and how soon a healthy canary is promoted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from judge_cases import STAGES, STEP, Case, Played, draw, requests_of, shocks
from judge_common import RATES, SHAPES, Row, rng_of, shape_name, table, upper
from judge_ours import NEVER, PARAMS, promotes


def promoted_case(job: tuple[float, float, int, float, int]) -> dict[str, float]:
    """One stage, looked at from the end of its dwell until four times as long; who is promoted when."""
    rate, k, index, times, runs = job
    stage = STAGES[index]
    long = replace(stage, scrapes=stage.scrapes * 4)
    looks = np.arange(stage.scrapes, long.scrapes + 1, stage.scrapes // 6)
    case = Case(rate, 0.001, k, canary=stage.limit * times)
    rng = rng_of(8, index, round(rate), round(times * 10), 0 if np.isinf(k) else round(100 * k))
    n_c, n_b = requests_of(case, stage)
    flat = np.ones(long.scrapes, dtype=np.float32)
    past = draw(round(rate * STEP), np.full(480, 0.001, np.float32), shocks(k, 480, runs, rng), rng)
    played = Played(
        long,
        draw(n_c, stage.limit * times * flat, shocks(k, long.scrapes, runs, rng), rng),
        draw(n_b, 0.001 * flat, shocks(k, long.scrapes, runs, rng), rng),
        (past,),
    )
    first = promotes(played, looks)
    seen = first < NEVER
    return {
        "count": int(seen.sum()),
        "share": float(seen.mean()),
        "minutes": float(np.median(first[seen]) * STEP / 60) if seen.any() else np.nan,
    }


def promotion_tables(run: Callable[..., Any], runs: int, healthy_runs: int) -> list[str]:
    cells = [(rate, k, index) for rate in RATES for k in SHAPES for index in (0, 2, 4)]
    bad = list(run(promoted_case, [(*cell, 1 + PARAMS.margin, runs) for cell in cells]))
    good = list(run(promoted_case, [(*cell, 0.1, healthy_runs) for cell in cells]))
    rows: list[Row] = [
        (
            f"{rate:g}",
            shape_name(k),
            f"{index + 1} ({100 * STAGES[index].limit:g} %)",
            f"{wrong['share']:.3%}",
            f"{upper(int(wrong['count']), runs):.3%}",
            f"{right['share']:.0%}",
            "–" if np.isnan(right["minutes"]) else f"{right['minutes']:.0f} min",
        )
        for (rate, k, index), wrong, right in zip(cells, bad, good, strict=True)
    ]
    return [
        f"### Promotions: {runs:,} runs worse than the limit by the margin a case, {healthy_runs:,} healthy",
        "",
        (
            "*Wrong*: the canary's rate is twice the limit and it is promoted at any look, from the end "
            "of the dwell until four times as long (rollbacks, which come first nearly always, are left "
            "out of account). *Healthy*: a tenth of the limit; the share promoted in that time, and when "
            "(median). The rest holds."
        ),
        "",
        *table(("req/s", "k", "stage (limit)", "wrong", "95 % upper", "healthy promoted", "after"), rows),
    ]
