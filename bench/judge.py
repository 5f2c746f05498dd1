"""How often and how late judges of a canary are wrong: ours, Flagger, Argo Rollouts and Kayenta.

``python bench/judge.py --out docs/verdicts.md`` measures everything and writes its tables between the marks
in that file; without ``--out`` they are printed. Seeded: the same seed gives the same tables. Two processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta, nbinom

import judge_faults
from judge_cases import STAGES, STEP, Case, Noise, Played, draw, play, requests_of, shocks
from judge_ours import NEVER, PARAMS, STRENGTH, Before, promotes, rolls_back
from judge_rivals import argo, flagger, kayenta

SEED = 20251028
RATES = (2.0, 20.0, 200.0, 2000.0)
BASES = (0.001, 0.005, 0.01, 0.02)
SHAPES = (np.inf, 0.5, 0.1)
BAD = (0.02, 0.05, 0.10)
VARIANTS: tuple[dict[str, bool], ...] = ({}, {"drift": True}, {"drift": True, "incident": True})
BLOCK = 2_500
"""Runs played together; more would leave the processor's cache."""

KAYENTA_RUNS = 200
"""Kayenta sorts all differences of minutes, so it sees fewer of the same runs."""

READ_BEFORE = 1440
"""Scrapes before the stage that production reads (six hours)."""


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng([SEED, *key])


def name_of(case: Case) -> str:
    parts = ["drift"] * case.drift + ["incident"] * case.incident
    return " + ".join(parts) or "steady"


def upper(count: int, runs: int) -> float:
    """Clopper and Pearson's one-sided upper limit at 95 %."""
    return float(beta.ppf(0.95, count + 1, runs - count)) if count < runs else 1.0


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


_STRESS = {(20.0, 0.01), (200.0, 0.01), (200.0, 0.001)}
"""Rate and base of the cases in which an assumption is broken."""


def information(p1: float, p0: float, weight: float) -> float:
    """The information bound, in errors served by the canary (independent errors, both rates known)."""
    q = weight * p1 + (1 - weight) * p0

    def divergence(p: float) -> float:
        return float(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))

    requests = STRENGTH / (weight * divergence(p1) + (1 - weight) * divergence(p0))
    return requests * weight * p1


def burst_information(case: Case, n_c: int, n_b: int) -> float:
    """The information bound in errors served when errors burst: both rates and k known, scrape by scrape.

    Wald's bound: scrapes >= strength / KL, where KL is the divergence of one scrape's counts of both gateways
    (negative binomial) from the nearest law in which both have one rate.
    """
    assert case.canary is not None

    def divergence(n: int, p: float, q: float) -> float:
        law, null = (nbinom(case.k, case.k / (case.k + n * r)) for r in (p, q))
        x = np.arange(int(law.ppf(1 - 1e-10)) + 2)
        own, other = law.logpmf(x), null.logpmf(x)
        seen = np.isfinite(own)
        return float((np.exp(own[seen]) * (own[seen] - other[seen])).sum())

    def both(log_rate: float) -> float:
        rate = float(np.exp(log_rate))
        return divergence(n_c, case.canary or 0.0, rate) + divergence(n_b, case.base, rate)

    found = minimize_scalar(both, bounds=(np.log(case.base), np.log(case.canary)), method="bounded")
    return STRENGTH / float(found.fun) * n_c * case.canary


def sick_case(job: tuple[Case, int, int]) -> dict[str, float]:
    """A canary bad from the first request of stage 1: mean errors it serves until the rollback."""
    case, number, runs = job
    noise = Noise.make(case.k, runs, rng_of(4, number), history=READ_BEFORE)
    played = next(play(case, noise, rng_of(5, number), (0,)))
    total = played.canary.errors.cumsum(axis=0)

    def served(first: Any) -> float:
        return float(total[np.minimum(first, total.shape[0]) - 1, np.arange(runs)].mean())

    ours = rolls_back(played)
    assert case.canary is not None
    one_scrape = played.canary.requests * case.canary
    return {
        "ours": served(ours),
        "seconds": float(np.minimum(ours, total.shape[0]).mean() * STEP),
        "missed": float((ours == NEVER).mean()),
        "bound": (
            information(case.canary, case.base, STAGES[0].weight)
            if np.isinf(case.k)
            else burst_information(case, played.canary.requests, played.baseline.requests)
        ),
        "scrape": one_scrape,
        "flagger5": served(flagger(played, 5)),
        "flagger1": served(flagger(played, 1)),
        "argo": served(argo(played)),
        "kayenta": float((kayenta(_first_runs(played)) == NEVER).mean()),
    }


def _first_runs(played: Any) -> Any:
    return replace(
        played,
        canary=replace(played.canary, errors=played.canary.errors[:, :KAYENTA_RUNS]),
        baseline=replace(played.baseline, errors=played.baseline.errors[:, :KAYENTA_RUNS]),
    )


def frontier_case(job: tuple[float, float, int]) -> dict[str, float]:
    """One setting of the evidence asked against the limit: errors at 2 %, and rollbacks within the limit."""
    threshold, inside, runs = job
    found = {}
    for name, rate, canary in (("at2", 20.0, 0.02), ("inside", 200.0, inside)):
        noise = Noise.make(np.inf, runs, rng_of(6, round(rate)), history=READ_BEFORE)
        played = next(play(Case(rate, 0.001, np.inf, canary=canary), noise, rng_of(7, round(rate)), (0,)))
        first = rolls_back(played, limit_evidence=threshold)
        total = played.canary.errors.cumsum(axis=0)
        found[name] = float(total[np.minimum(first, total.shape[0]) - 1, np.arange(runs)].mean())
        found[f"{name}_share"] = float((first < NEVER).mean())
    return found


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


Row = tuple[object, ...]


def table(head: tuple[str, ...], rows: Iterable[Row]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def shape_name(k: float) -> str:
    return "∞" if np.isinf(k) else f"{k:g}"


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
            "case. First rows: the canary bursts as the old gateway never did; then one k between two of "
            "the judge's grid. *markov*: each gateway is, one twentieth of the time and for a minute on "
            "average, ten times as bad, so scrapes are not independent; *lognormal*: heavier tails than "
            "gamma. No figure of the judge was chosen on these."
        ),
        "",
        *table(("bursts", "traffic", "req/s", "base", "ours", "95 % upper", "Flagger 5"), rows),
    ]


def sick_table(run: Callable[..., Any], runs: int) -> list[str]:
    cases = [Case(rate, 0.001, k, canary=bad) for rate in RATES for bad in BAD for k in SHAPES]
    rows: list[Row] = []
    for case, got in zip(cases, run(sick_case, [(c, i, runs) for i, c in enumerate(cases)]), strict=True):
        ratio = got["ours"] / (got["bound"] + got["scrape"])
        rows.append(
            (
                f"{case.rate:g}",
                f"{100 * (case.canary or 0):g} %",
                shape_name(case.k),
                f"{got['ours']:.1f}",
                f"{got['bound']:.1f} + {got['scrape']:.1f}",
                f"{ratio:.2f}",
                f"{got['seconds']:.0f} s",
                f"{got['missed']:.1%}",
                f"{got['flagger5']:.0f}",
                f"{got['flagger5'] / got['ours']:.1f}",
                f"{got['flagger5'] / (got['bound'] + got['scrape']):.1f}",
                f"{got['flagger1']:.0f}",
                f"{got['argo']:.0f}",
                f"{got['kayenta']:.0%}",
            )
        )
    return [
        f"### Sick canaries: errors served before the rollback, {runs:,} runs a case",
        "",
        (
            "The canary has this error rate from the first request of stage 1 on (10 %, limit 1 %), the "
            "old gateway 0.1 %. *Bound* is the information bound (rates and k known, k the same at both) "
            "and the errors of one scrape; *ratio* ours over their sum (target 1.5 for k = ∞). *In time* "
            "ours takes so long; *missed*: not rolled back within the stage's 30 minutes (nor promoted: "
            "see below). *At best*: Flagger's errors over the bound, which no judge that keeps the budget "
            "can exceed; where it is below 10, ten times fewer errors than Flagger are out of reach for "
            "any."
        ),
        "",
        *table(
            (
                "req/s", "errors", "k", "ours", "bound", "ratio", "in time", "missed", "Flagger 5",
                "Flagger 5 / ours", "at best", "Flagger 1", "Argo", "Kayenta misses",
            ),
            rows,
        ),
    ]  # fmt: skip


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


def frontier_table(run: Callable[..., Any], runs: int) -> list[str]:
    cells = [
        (threshold, 0.005, runs)
        for threshold in (0.0, float(np.log(1.4)), float(np.log(2)), float(np.log(4)))
    ]
    rows: list[Row] = [
        (
            f"ln {np.exp(threshold):.2g}",
            f"{got['at2']:.1f}",
            f"{1.5 * (information(0.02, 0.001, 0.1) + 0.6):.1f}",
            f"{got['inside_share']:.0%}",
        )
        for (threshold, _, _), got in zip(cells, run(frontier_case, cells), strict=True)
    ]
    return [
        "### The frontier: early, or lenient within the limit",
        "",
        (
            "What is asked against the limit, beside the full evidence against the baseline. Left: errors "
            "served at 20 req/s by a canary of 2 % (limit 1 %). Right: rollbacks in stage 1 at 200 req/s "
            "of a canary with 0.5 %, five times the baseline but within the limit. Chosen: ln 1.4."
        ),
        "",
        *table(("asked against the limit", "errors at 2 %", "target", "rolled back at 0.5 %"), rows),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="healthy and wrong-promotion runs a case")
    parser.add_argument("--sick-runs", type=int, default=2_000)
    parser.add_argument("--fault-runs", type=int, default=10_000, help="runs with injected missing data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file with the marks to write between")
    options = parser.parse_args()
    begun = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        sick, healthy = options.sick_runs, options.runs
        work: tuple[tuple[str, Callable[[], list[str]]], ...] = (
            ("sick canaries", lambda: sick_table(pool.map, sick)),
            ("frontier", lambda: frontier_table(pool.map, sick)),
            ("promotions", lambda: promotion_tables(pool.map, healthy, max(sick // 10, 20))),
            ("missing data", lambda: judge_faults.fault_table(pool.map, options.fault_runs)),
            ("other bursts", lambda: stress_table(pool.map, sick)),
            ("healthy migrations", lambda: healthy_tables(pool.map, healthy)),
        )
        parts = []
        for what, measure in work:
            parts.append(measure())
            sys.stderr.write(f"{what}: measured after {time.monotonic() - begun:.0f} s\n")
    seconds = time.monotonic() - begun
    text = "\n\n".join("\n".join(part) for part in parts)
    text = f"Measured by `bench/judge.py`, seed {SEED}, in {seconds / 60:.0f} minutes.\n\n{text}\n"
    if options.out is None:
        sys.stdout.write(text)
        return 0
    page = options.out.read_text(encoding="utf-8")
    head, _, rest = page.partition("<!-- bench -->\n")
    tail = rest.partition("<!-- /bench -->")[2]
    options.out.write_text(f"{head}<!-- bench -->\n{text}<!-- /bench -->{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
