"""The bench measures the judge that production uses: both give the same verdicts on the same traffic."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gateshift.judge.model import Sample, Side
from gateshift.judge.stage_tests import ERROR_SHARE, errors_test
from gateshift.judge.verdict import attempt_share
from gateshift.params.model import JudgeParams, StageParams

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
@pytest.mark.parametrize("k", [np.inf, 0.5])
def test_the_first_rollback_is_the_same_scrape(k: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import judge_cases
    import judge_ours

    runs = 5
    rng = np.random.default_rng(7)
    noise = judge_cases.Noise.make(k, runs, rng, history=60)
    case = judge_cases.Case(20.0, 0.004, k, canary=0.03 if np.isinf(k) else 0.1)
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
    sys.modules.pop("judge_cases"), sys.modules.pop("judge_ours")
