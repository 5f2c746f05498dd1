"""Errors that sick canaries serve, beside what no judge could undercut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom

from gateshift.judge import evidence
from judge_cases import STAGES, STEP, Case, Noise, play
from judge_common import RATES, READ_BEFORE, SHAPES, Row, rng_of, shape_name, table
from judge_ours import NEVER, STRENGTH, rolls_back
from judge_rivals import argo, flagger, kayenta

BAD = (0.02, 0.05, 0.10)


KAYENTA_RUNS = 200
"""Kayenta sorts all differences of minutes, so it sees fewer of the same runs."""


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


TURN = 60
"""Scrapes after which the canaries of the second frontier turn bad: 15 minutes, half of the stage."""


def turning_case(job: tuple[float, int]) -> dict[str, float]:
    """One weight of the evidence from the start: errors of canaries bad at once, and bad from *TURN* on."""
    from_start, runs = job
    found = {}
    for name, rate, bad, turn in (
        ("at once", 2.0, 0.10, 0),
        ("2 req/s", 2.0, 0.10, TURN),
        ("20 req/s", 20.0, 0.05, TURN),
        ("200 req/s", 200.0, 0.02, TURN),
    ):
        case = Case(rate, 0.001, np.inf, canary=bad)
        noise = Noise.make(np.inf, runs, rng_of(21, round(rate)), history=READ_BEFORE)
        played = next(play(case, noise, rng_of(22, round(rate)), (0,)))
        well = next(play(replace(case, canary=case.base), noise, rng_of(23, round(rate)), (0,)))
        errors = np.concatenate([well.canary.errors[:turn], played.canary.errors[turn:]])
        first = rolls_back(
            replace(played, canary=replace(played.canary, errors=errors)), from_start=from_start
        )
        errors[:turn] = 0
        total = errors.cumsum(axis=0)
        served = total[np.minimum(first, total.shape[0]) - 1, np.arange(runs)]
        found[name] = float(served[first > turn].mean())
    return found


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


def turning_table(run: Callable[..., Any], runs: int) -> list[str]:
    """The second frontier: how much weight the evidence from the stage's first interval gets."""
    cells = [(weight, runs) for weight in (0.5, 0.7, 0.85, 0.95)]
    floor = information(0.10, 0.001, STAGES[0].weight) + 2.0 * STAGES[0].weight * STEP * 0.10
    rows: list[Row] = [
        (
            f"{weight:g}",
            f"{got['at once']:.2f}",
            f"{got['at once'] / floor:.2f}",
            f"{got['2 req/s']:.1f}",
            f"{got['20 req/s']:.1f}",
            f"{got['200 req/s']:.1f}",
        )
        for (weight, _), got in zip(cells, run(turning_case, cells), strict=True)
    ]
    return [
        "### The frontier: bad at once, or bad later",
        "",
        (
            f"Weight of the evidence gathered from the stage's first interval; what is gathered anew on the "
            f"way shares the rest. Left: errors served by the hardest case of the table above, 2 req/s and "
            f"10 % from the first request on ({runs:,} runs), and their ratio to bound and one scrape. "
            f"Right: errors served after the turn by canaries that are well for 15 minutes and bad then. "
            f"Chosen: {evidence.FROM_START:g}."
        ),
        "",
        *table(
            (
                "weight", "bad at once", "ratio (target 1.5)", "later: 10 %, 2 req/s", "5 %, 20 req/s",
                "2 %, 200 req/s",
            ),
            rows,
        ),
    ]  # fmt: skip
