"""Simulated migrations: how often the judge, Flagger, Argo Rollouts and Kayenta are wrong, and how late.

Seeded and vectorised; the judge's evidence is :mod:`gateshift.judge.evidence` itself, evaluated only where a
cheap upper bound says that it may decide. Run ``python bench/judge.py --runs 20000 --out docs/judge-bench.md``.

One run is a five-stage migration of the guide (10, 25, 50, 75, 100 %; 30, 30, 60, 60, 60 min; a scrape every
15 s). Errors of each side and scrape are binomial with a rate multiplied by a gamma variable of mean 1 and
shape k, independent over sides and scrapes (k = infinity: plain binomial).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gateshift.judge import evidence
from gateshift.judge.stage_tests import ERROR_SHARE, LIMIT_EVIDENCE
from gateshift.params.model import JudgeParams
from scipy.stats import beta, mannwhitneyu

STAGES = ((10, 1.0, 120), (25, 1.0, 120), (50, 0.5, 240), (75, 0.5, 240), (100, 0.1, 240))
STEP = 15.0
PARAMS = JudgeParams()
GRID = evidence.dispersion_grid(PARAMS.dispersion_floor)
STRENGTH = -np.log(PARAMS.false_rollback_budget / len(STAGES) * ERROR_SHARE)
GUARANTEE = -np.log(PARAMS.wrong_promotion)
NEVER = 1 << 30


@dataclass(frozen=True)
class Case:
    rate: float
    base: float
    k: float
    canary: float | None = None
    drift: float = 0.0
    incident: bool = False


def errors_of(case: Case, weight: float, length: int, runs: int, rng: np.random.Generator):
    """Return (requests a scrape of canary and baseline, errors of each by run and scrape)."""
    n_c = max(round(case.rate * weight * STEP), 1)
    n_b = round(case.rate * (1 - weight) * STEP)
    level = 1 + case.drift * np.sin(np.arange(length) / length * 2 * np.pi)
    if case.incident:
        level[length // 3 : length // 3 + 20] *= 10
    sides = []
    for n, p in ((n_c, case.canary if case.canary is not None else case.base), (n_b, case.base)):
        shock = np.ones((runs, length)) if np.isinf(case.k) else rng.gamma(case.k, 1 / case.k, (runs, length))
        sides.append(rng.binomial(n, np.minimum(p * level * shock, 1.0)).astype(float))
    return n_c, n_b, sides[0], sides[1]


def tilted(n: int, events: np.ndarray) -> evidence.Tilted:
    return evidence.Tilted.of(evidence.Counts(np.full(events.shape, float(n)), events), GRID)


def ours_rollback(n_c: int, n_b: int, x_c: np.ndarray, x_b: np.ndarray, limit: float) -> np.ndarray:
    """Return the first scrape at which the judge rolls back, by run (NEVER if it does not)."""
    runs, length = x_c.shape
    first = np.full(runs, NEVER)
    sum_c = np.concatenate([np.zeros((runs, 1)), x_c.cumsum(1)], axis=1)
    sum_b = np.concatenate([np.zeros((runs, 1)), x_b.cumsum(1)], axis=1)
    for end in range(1, length + 1):
        for start, weight in evidence.windows(end):
            t = end - start
            c, b = sum_c[:, end] - sum_c[:, start], sum_b[:, end] - sum_b[:, start]
            open_ = (first == NEVER) & (c > limit * n_c * t)
            # With independent errors the likelihood ratio bounds the mixture (its null is the largest over k).
            bound = poisson_ratio(c, b, n_c * t, n_b * t, limit)
            needed = (STRENGTH - weight) if n_b == 0 else STRENGTH - weight
            rows = np.flatnonzero(open_ & (bound > needed - 1.0))
            for part in np.array_split(rows, max(1, rows.size * t * 300 // 20_000_000 + 1)):
                if part.size == 0:
                    continue
                new, old = tilted(n_c, x_c[part, start:end]), tilted(n_b, x_b[part, start:end])
                absolute = evidence.above_limit(new, old if n_b else None, limit)
                if n_b == 0:
                    hit = absolute + weight >= STRENGTH
                else:
                    hit = absolute >= LIMIT_EVIDENCE
                    keep = np.flatnonzero(hit)
                    if keep.size:
                        relative = evidence.worse_than_baseline(
                            tilted(n_c, x_c[part[keep], start:end]), tilted(n_b, x_b[part[keep], start:end])
                        )
                        hit[keep] = relative + weight >= STRENGTH
                first[part[hit]] = end
    return first


def poisson_ratio(c: np.ndarray, b: np.ndarray, n_c: float, n_b: float, limit: float) -> np.ndarray:
    """Log likelihood ratio with independent errors, an upper bound of what the mixture can reach (nearly)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(c > 0, c * np.log(np.where(c > 0, c / n_c, 1)), 0.0)
        if n_b == 0:
            return np.where(c > limit * n_c, own - c * np.log(limit) - (c - limit * n_c), 0.0)
        other = np.where(b > 0, b * np.log(np.where(b > 0, b / n_b, 1)), 0.0)
        pooled = (c + b) * np.log(np.maximum(c + b, 1e-9) / (n_c + n_b))
        return np.where(c * n_b > b * n_c, own + other - pooled, 0.0)


def ours_promotes(n_c: int, n_b: int, x_c: np.ndarray, x_b: np.ndarray, limit: float) -> np.ndarray:
    """Whether the judge would promote at any of 8 looks from the end of the dwell on (a hold looks again)."""
    runs, length = x_c.shape
    done = np.zeros(runs, dtype=bool)
    for end in np.unique(np.linspace(length // 2, length, 8).astype(int)):
        recent = x_c[:, end - max(8, end // 4) : end].mean(1)
        ok = ~done & (x_c[:, :end].mean(1) <= limit * n_c) & (recent <= limit * n_c)
        rows = np.flatnonzero(ok)
        for part in np.array_split(rows, max(1, rows.size * end * 100 // 20_000_000 + 1)):
            if part.size:
                old = tilted(n_b, x_b[part, :end]) if n_b else None
                worst = limit * (1 + PARAMS.margin)
                done[part] = evidence.below_limit(tilted(n_c, x_c[part, :end]), old, worst) >= GUARANTEE
    return done


def by_minute(n: int, x: np.ndarray, scrapes: int) -> tuple[float, np.ndarray]:
    whole = x.shape[1] // scrapes * scrapes
    return n * scrapes, x[:, :whole].reshape(x.shape[0], -1, scrapes).sum(2)


def flagger(n: int, x: np.ndarray, *, threshold: int) -> np.ndarray:
    """Flagger: every minute success rate < 99 % is a failed check; rolls back at *threshold* failed checks.

    Tutorial: interval 1m, threshold 5, request-success-rate min 99. Failed checks add up over the analysis.
    """
    requests, errors = by_minute(n, x, 4)
    failed = (1 - errors / requests) < 0.99
    return _first(failed.cumsum(1) >= threshold) * 4


def argo(n: int, x: np.ndarray) -> np.ndarray:
    """Argo Rollouts, docs example: interval 5m, successCondition >= 0.95, failureLimit 3: fails at the 4th."""
    requests, errors = by_minute(n, x, 20)
    failed = (1 - errors / requests) < 0.95
    return _first(failed.cumsum(1) > 3) * 20


def kayenta(x_c: np.ndarray, x_b: np.ndarray, n_c: int, n_b: int) -> np.ndarray:
    """Kayenta's judge: Mann-Whitney at 98 % on per-minute error rates, every 30 minutes, direction increase.

    A classification "High" with the single metric gives score 0 and fails; the effect must exceed 1 x.
    """
    _, a = by_minute(n_c, x_c, 4)
    _, b = by_minute(n_b, x_b, 4)
    a, b = a / (n_c * 4), b / (n_b * 4)
    first = np.full(x_c.shape[0], NEVER)
    for end in range(30, a.shape[1] + 1, 30):
        part_a, part_b = a[:, :end], b[:, :end]
        with np.errstate(divide="ignore", invalid="ignore"):
            p = mannwhitneyu(part_a, part_b, axis=1, alternative="two-sided").pvalue
        high = (p < 0.02) & (part_a.mean(1) > part_b.mean(1))
        first = np.where((first == NEVER) & high, end * 4, first)
    return first


def _first(hit: np.ndarray) -> np.ndarray:
    return np.where(hit.any(1), hit.argmax(1) + 1, NEVER // 64)


def upper(count: int, runs: int) -> float:
    return float(beta.ppf(0.95, count + 1, runs - count)) if count < runs else 1.0


def healthy(case: Case, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """One migration a run. The last stage is only counted where the canary keeps its limit (see the docs)."""
    wrong = {name: np.zeros(runs, dtype=bool) for name in ("ours", "flagger5", "flagger1", "argo", "kayenta")}
    for weight, limit, length in STAGES:
        if weight == 100 and case.base > limit / 100:
            continue
        n_c, n_b, x_c, x_b = errors_of(case, weight / 100, length, runs, rng)
        wrong["ours"] |= ours_rollback(n_c, n_b, x_c, x_b, limit / 100) < NEVER
        wrong["flagger5"] |= flagger(n_c, x_c, threshold=5) <= length
        wrong["flagger1"] |= flagger(n_c, x_c, threshold=1) <= length
        wrong["argo"] |= argo(n_c, x_c) <= length
        if n_b and runs <= 4000:
            wrong["kayenta"] |= kayenta(x_c, x_b, n_c, n_b) <= length
    result = {name: float(found.mean()) for name, found in wrong.items()}
    result["ours_upper"] = upper(int(wrong["ours"].sum()), runs)
    return result


def information_bound(p1: float, p0: float, weight: float) -> float:
    """Canary errors at least served before the comparison with the baseline can decide (independent errors)."""
    q = weight * p1 + (1 - weight) * p0

    def kl(p: float) -> float:
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    requests = STRENGTH / (weight * kl(p1) + (1 - weight) * kl(p0))
    return float(requests * weight * p1)


def sick(case: Case, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """A canary bad from the first request of stage 1: errors served until the rollback, wrong promotions."""
    weight, limit, length = STAGES[0]
    n_c, n_b, x_c, x_b = errors_of(case, weight / 100, length, runs, rng)
    total = x_c.cumsum(1)

    def served(first: np.ndarray) -> float:
        return float(total[np.arange(runs), np.minimum(first, length) - 1].mean())

    ours = ours_rollback(n_c, n_b, x_c, x_b, limit / 100)
    assert case.canary is not None
    return {
        "ours": served(ours),
        "missed": float((ours == NEVER).mean()),
        "bound": information_bound(case.canary, case.base, weight / 100) + n_c * case.canary,
        "flagger5": served(flagger(n_c, x_c, threshold=5)),
        "flagger1": served(flagger(n_c, x_c, threshold=1)),
        "argo": served(argo(n_c, x_c)),
        "promoted": float((ours_promotes(n_c, n_b, x_c, x_b, limit / 100) & (ours == NEVER)).mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20000)
    parser.add_argument("--sick-runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20251028)
    parser.add_argument("--rates", type=float, nargs="*", default=[2, 20, 200, 2000])
    parser.add_argument("--bases", type=float, nargs="*", default=[0.1, 0.5, 1, 2])
    parser.add_argument("--seconds", type=float, default=1e9, help="stop beginning new cases after this long")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun = time.monotonic()
    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        if options.out:
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    say(f"Measured by `bench/judge.py`, seed {options.seed}.\n")
    say(
        "Sick canary from the first request of stage 1 (10 %, limit 1 %); baseline 0.1 % errors. Mean errors "
        f"served by the canary until the rollback, {options.sick_runs} runs a case.\n"
    )
    say(
        "| req/s | errors | k | ours | bound + one scrape | Flagger 5 | Flagger 1 | Argo | ours missed | "
        "ours promoted |"
    )
    say("|---|---|---|---|---|---|---|---|---|---|")
    number = 0
    for rate in options.rates:
        for bad in (0.02, 0.05, 0.10):
            for k in (np.inf, 0.5, 0.1):
                number += 1
                if time.monotonic() - begun > options.seconds / 2:
                    continue
                rng = np.random.default_rng([options.seed, 1, number])
                got = sick(Case(rate, 0.001, k, canary=bad), options.sick_runs, rng)
                say(
                    f"| {rate:g} | {bad:.0%} | {k:g} | {got['ours']:.1f} | {got['bound']:.1f} | "
                    f"{got['flagger5']:.1f} | {got['flagger1']:.1f} | {got['argo']:.1f} | {got['missed']:.1%} | "
                    f"{got['promoted']:.2%} |"
                )
    say(
        f"\nHealthy canary (same rate as the baseline), share of whole migrations rolled back, {options.runs} runs "
        "a case. The stage at 100 % counts where the rate keeps its limit of 0.1 %.\n"
    )
    say("| req/s | base | k | variant | ours | 95 % upper | Flagger 5 | Flagger 1 | Argo |")
    say("|---|---|---|---|---|---|---|---|---|")
    number = 0
    for variant in ({}, {"drift": 0.5}, {"incident": True}):
        for rate in options.rates:
            for base in options.bases:
                for k in (np.inf, 0.5, 0.1):
                    number += 1
                    if time.monotonic() - begun > options.seconds:
                        continue
                    rng = np.random.default_rng([options.seed, 2, number])
                    got = healthy(Case(rate, base / 100, k, **variant), options.runs, rng)
                    name = next(iter(variant), "steady")
                    say(
                        f"| {rate:g} | {base:g} % | {k:g} | {name} | {got['ours']:.2%} | {got['ours_upper']:.2%} | "
                        f"{got['flagger5']:.1%} | {got['flagger1']:.1%} | {got['argo']:.1%} |"
                    )
    say(f"\nTook {time.monotonic() - begun:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
