"""The bench measures the judge that production uses: both give the same verdicts on the same traffic."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateshift.judge.model import Sample, Side
from gateshift.judge.persistence import CAUTION, LONGEST, TREND, persistence
from gateshift.judge.stage_tests import ERROR_SHARE, errors_test
from gateshift.judge.verdict import attempt_share
from gateshift.params.model import JudgeParams, StageParams

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.parametrize(("k", "family"), [(np.inf, ""), (0.5, ""), (np.inf, "markov")])
def test_the_first_rollback_is_the_same_scrape(
    k: float, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import judge_cases
    import judge_ours

    runs = 5
    rng = np.random.default_rng(7)
    noise = judge_cases.Noise.make(k, runs, rng, history=400 if family else 60, family=family)
    case = judge_cases.Case(20.0, 0.004, k, canary=0.4 if family else 0.03 if np.isinf(k) else 0.1)
    played = next(judge_cases.play(case, noise, rng, (0,)))
    twin = judge_ours.rolls_back(played)
    stage = StageParams(weight_percent=10, dwell="30m", error_rate_limit_percent=1.0)
    params = JudgeParams()
    alpha = params.false_rollback_budget / 5 * attempt_share(0) * ERROR_SHARE
    checked = 0
    for run in range(runs):
        reference = [
            Side(float(t.requests), float(x)) for t in played.before for x in t.errors[:, run].tolist()
        ]
        new, old = played.canary, played.baseline
        history = [
            Sample(15.0 * i, Side(float(new.requests), float(c)), Side(float(old.requests), float(b)))
            for i, (c, b) in enumerate(
                zip(new.errors[:, run].tolist(), old.errors[:, run].tolist(), strict=True)
            )
        ]
        first = int(twin[run])
        if first > 40:
            continue
        checked += 1
        for end in range(1, first + 1):
            found = errors_test(history[:end], stage, params, alpha, reference)
            assert found.rolls_back == (end == first), (run, end)
    assert checked >= 2
    if family:
        assert min(persistence(_past(played, run)) for run in range(runs)) > 1.0
    for name in ("judge_cases", "judge_ours"):
        sys.modules.pop(name)


def _past(played: Any, run: int) -> list[tuple[float, float]]:
    return [(float(t.requests), float(x)) for t in played.before for x in t.errors[:, run]]


def test_bursts_that_last_are_told_from_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import judge_cases
    import judge_kernel

    runs = 30
    rng = np.random.default_rng(11)
    means = {}
    for family in ("markov", "lognormal", ""):
        if family:
            shock = judge_cases.held_out(family, 480, runs, rng)
        else:
            shock = judge_cases.shocks(0.5, 480, runs, rng)
        traffic = judge_cases.draw(300, np.full(480, 0.01, np.float32), shock, rng)
        rates = traffic.errors / 300.0
        ours = [persistence([(300.0, x * 300.0) for x in rates[:, run]]) for run in range(runs)]
        assert judge_kernel.persistence(rates, TREND, LONGEST, CAUTION) == pytest.approx(np.array(ours))
        means[family] = float(np.mean(ours))
    assert means["markov"] > 3.0
    assert max(means["lognormal"], means[""]) < 1.2
    # Independent scrapes with a slow swing of a half are no bursts.
    swing = 0.01 * (1 + 0.5 * np.sin(2 * np.pi * np.arange(480) / 240))
    steady = [persistence([(300.0, float(x)) for x in rng.poisson(300 * swing)]) for _ in range(runs)]
    assert float(np.mean(steady)) < 1.4
    assert persistence([(300.0, 3.0)] * 20) == 1.0
    sys.modules.pop("judge_cases")
