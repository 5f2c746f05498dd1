"""False rollbacks of healthy migrations, and where the judge's assumption is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from judge_cases import STAGES, Case, Noise, play
from judge_common import BLOCK, RATES, SHAPES, Row, rng_of, shape_name, table, upper
from judge_ours import NEVER, PARAMS, Before, rolls_back
from judge_rivals import argo, flagger, kayenta
from judge_sick import KAYENTA_RUNS

BASES = (0.001, 0.005, 0.01, 0.02)


VARIANTS: tuple[dict[str, bool], ...] = ({}, {"drift": True}, {"drift": True, "incident": True})


_STRESS = {(20.0, 0.01), (200.0, 0.01), (200.0, 0.001)}
"""Rate and base of the cases in which an assumption is broken."""


def name_of(case: Case) -> str:
    parts = ["drift"] * case.drift + ["incident"] * case.incident
    return " + ".join(parts) or "steady"


def stages_of(case: Case) -> tuple[int, ...]:
    """The stages in which this canary is healthy: at 100 % only if the rate keeps the limit throughout."""
    alone_is_healthy = case.base * (1.5 if case.drift else 1.0) <= STAGES[-1].limit
    return tuple(i for i, stage in enumerate(STAGES) if stage.weight < 1 or alone_is_healthy)


def healthy_block(
    job: tuple[float, tuple[dict[str, bool], ...], int, int, float | None, str],
) -> dict[Case, Any]:
    """All cases of one shape k over one block of runs; counts of migrations that each judge rolls back."""
    k, variants, block, runs, k_canary, family = job
    rng = rng_of(2, block, round(k * 100) if np.isfinite(k) else 0)
    noise = Noise.make(k, runs, rng, k_canary, family=family)
    few_cases = bool(family) or k_canary is not None
    found = {}
    for number, (variant, rate, base) in enumerate(
        (v, r, b) for v in variants for r in RATES for b in BASES if not few_cases or (r, b) in _STRESS
    ):
        case = Case(rate, base, k, k_canary=k_canary, family=family, **variant)
        wrong = {name: np.zeros(runs, dtype=bool) for name in ("ours", "flagger5", "flagger1", "argo")}
        sorted_too = np.zeros(min(runs, KAYENTA_RUNS), dtype=bool)
        past = Before()
        for played in play(case, noise, rng_of(3, block, number), stages_of(case)):
            wrong["ours"] |= rolls_back(played, past) < NEVER
            wrong["flagger5"] |= flagger(played, 5) < NEVER
            wrong["flagger1"] |= flagger(played, 1) < NEVER
            wrong["argo"] |= argo(played) < NEVER
            few = replace(
                played,
                canary=replace(played.canary, errors=played.canary.errors[:, : sorted_too.size]),
                baseline=replace(played.baseline, errors=played.baseline.errors[:, : sorted_too.size]),
            )
            if block == 0:
                sorted_too |= kayenta(few) < NEVER
        found[case] = {n: int(w.sum()) for n, w in wrong.items()} | {"kayenta": float(sorted_too.mean())}
    return found


def healthy_tables(run: Callable[..., Any], runs: int) -> list[str]:
    blocks = max(1, runs // BLOCK)
    size = min(runs, BLOCK)
    jobs = [(k, (v,), block, size, None, "") for block in range(blocks) for k in SHAPES for v in VARIANTS]
    sums: dict[Case, dict[str, float]] = {}
    for found in run(healthy_block, jobs):
        for case, counts in found.items():
            total = sums.setdefault(case, dict.fromkeys(counts, 0.0))
            for name, value in counts.items():
                total[name] += value
    all_runs = blocks * size
    ordered = sorted(sums.items(), key=lambda item: (-upper(int(item[1]["ours"]), all_runs), item[0].rate))
    worst_case, worst = ordered[0]
    mean = float(np.mean([counts["ours"] for counts in sums.values()])) / all_runs
    lines = [
        f"### False rollbacks: healthy migrations, {all_runs:,} runs a case, {len(sums)} cases",
        "",
        (
            "Share of whole migrations that a judge rolls back although the canary is like the baseline. "
            f"Ours: mean over the cases {mean:.2%}, worst case {worst['ours'] / all_runs:.2%} "
            f"({worst_case.rate:g} req/s, base {100 * worst_case.base:g} %, k = "
            f"{shape_name(worst_case.k)}, {name_of(worst_case)}; 95 % upper limit "
            f"{upper(int(worst['ours']), all_runs):.2%}); the budget is {PARAMS.false_rollback_budget:.0%}."
        ),
        "",
    ]
    rows: list[Row] = []
    for case in sorted(sums, key=lambda c: (c.drift + c.incident, c.rate, c.base, -min(c.k, 99))):
        counts = sums[case]
        rows.append(
            (
                name_of(case),
                f"{case.rate:g}",
                f"{100 * case.base:g} %",
                shape_name(case.k),
                f"{counts['ours'] / all_runs:.2%}",
                f"{upper(int(counts['ours']), all_runs):.2%}",
                *(f"{counts[name] / all_runs:.1%}" for name in ("flagger5", "flagger1", "argo")),
                f"{counts['kayenta']:.0%}",
            )
        )
    head = (
        "traffic",
        "req/s",
        "base",
        "k",
        "ours",
        "95 % upper",
        "Flagger 5",
        "Flagger 1",
        "Argo",
        "Kayenta",
    )
    return lines + table(head, rows)


def stress_table(run: Callable[..., Any], runs: int) -> list[str]:
    worst = ({}, {"drift": True, "incident": True})
    jobs: list[tuple[Any, ...]] = [
        (np.inf, ({},), 90, runs, 0.5, ""),
        (0.5, ({},), 91, runs, 0.25, ""),
        (0.42, ({},), 92, runs, 0.42, ""),
        (np.inf, worst, 93, runs, None, "markov"),
        (np.inf, worst, 94, runs, None, "lognormal"),
        (np.inf, worst, 95, runs, None, "markov, longer"),
    ]
    rows: list[Row] = []
    for found in run(healthy_block, jobs):
        for case, counts in found.items():
            bursts = case.family or f"k = {shape_name(case.k)}, canary {shape_name(case.k_canary or case.k)}"
            rows.append(
                (
                    bursts,
                    name_of(case),
                    f"{case.rate:g}",
                    f"{100 * case.base:g} %",
                    f"{counts['ours'] / runs:.2%}",
                    f"{upper(int(counts['ours']), runs):.2%}",
                    f"{counts['flagger5'] / runs:.1%}",
                )
            )
    return [
        "### Where the assumption is broken, and bursts the judge was not made for",
        "",
        (
            f"Whole migrations rolled back though both gateways have the same mean rate, {runs:,} runs a "
            "case. First rows: the canary bursts as the old gateway never did; then one k between two of the "
            "judge's grid. *markov*: each gateway is, one twentieth of the time and for a minute on average, "
            "ten times as bad, so scrapes are not independent (on this one the judge's CAUTION was chosen); "
            "*markov, longer*: one tenth of the time, for three minutes, five times as bad; *lognormal*: "
            "heavier tails than gamma. On the last two no figure of the judge was chosen."
        ),
        "",
        *table(("bursts", "traffic", "req/s", "base", "ours", "95 % upper", "Flagger 5"), rows),
    ]
