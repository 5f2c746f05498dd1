"""Missing data injected into stages, judged by :func:`gateshift.judge.verdict.judge` itself, look by look.

Each run is a stage of six minutes (a scrape every 15 s) with one fault of a random kind and side:

* *end*: a healthy stage whose figures go missing and stay missing;
* *hidden*: as before, but the canary is sick while nobody sees it, and the figures come back;
* *holes*: a sick canary of which every second scrape is missing;
* *frozen*: the watcher itself stops taking samples.

A promotion is wrong if the newest figures are missing, if the canary is sick at that moment, or if the time
that was measured is shorter than the dwell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gateshift.judge.model import Decision, Missing, MissingKind, Sample, Side
from gateshift.judge.verdict import judge
from gateshift.params.model import JudgeParams, StageParams

STAGE = StageParams(weight_percent=10, dwell="360s", error_rate_limit_percent=1.0)
PARAMS = JudgeParams(missing_data_allowance="60s")
STEP, SCRAPES, REQUESTS = 15.0, 36, 3000
STORIES = ("end", "hidden", "holes", "frozen")
KINDS = tuple(MissingKind)


def _side(requests: int, rate: float, rng: np.random.Generator) -> Side:
    errors = float(rng.binomial(requests, rate))
    n = float(requests)
    return Side(n, errors, ((100.0, 0.9 * n), (1000.0, n), (2500.0, n), (float("inf"), n)))


def one_run(seed: int, story: str) -> tuple[int, int, str]:
    """Return (wrong promotions, looks, last decision) of one run."""
    rng = np.random.default_rng([seed, STORIES.index(story)])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    which = ("canary", "baseline", "both")[int(rng.integers(3))] if story != "hidden" else "both"
    begin = int(rng.integers(2, 26))
    length = int(rng.integers(1, 8))
    history: list[Sample] = []
    wrong = looks = 0
    decision = ""
    for index in range(SCRAPES):
        time = 1000.0 + STEP * (index + 1)
        gone = _gone(story, index, begin, length)
        sick = story == "holes" or (story == "hidden" and index >= begin)
        if not (story == "frozen" and gone):
            lost = Side(missing=Missing(kind, "injected"))
            canary = _side(REQUESTS, 0.02 if sick else 0.001, rng)
            baseline = _side(9 * REQUESTS, 0.001, rng)
            hit = gone and story != "frozen"
            history.append(
                Sample(
                    time,
                    lost if hit and which in {"canary", "both"} else canary,
                    lost if hit and which in {"baseline", "both"} else baseline,
                )
            )
        if index < 22 or index % 3:
            continue
        looks += 1
        verdict = judge(history, STAGE, PARAMS, stage_index=0, stages=5, started=1000.0, now=time)
        decision = verdict.decision.value
        measured = sum(STEP for sample in history if sample.canary.missing is None)
        if verdict.decision is Decision.PROMOTE and (sick or gone or measured < STAGE.dwell - 1e-6):
            wrong += 1
        if verdict.decision is not Decision.HOLD:
            break
    return wrong, looks, decision


def _gone(story: str, index: int, begin: int, length: int) -> bool:
    if story == "holes":
        return index % 2 == 1
    if story == "hidden":
        return begin <= index < begin + length
    return index >= begin


def _block(job: tuple[int, int, str]) -> tuple[str, int, int, int, dict[str, int]]:
    first, runs, story = job
    wrong = looks = 0
    decisions: dict[str, int] = {}
    for seed in range(first, first + runs):
        bad, seen, decision = one_run(seed, story)
        wrong, looks = wrong + bad, looks + seen
        decisions[decision] = decisions.get(decision, 0) + 1
    return story, runs, wrong, looks, decisions


def fault_table(run: Callable[..., Any], runs: int) -> list[str]:
    """Run all stories and return the table's lines."""
    each = max(runs // len(STORIES), 1)
    jobs = [(part * each // 5, each // 5 or 1, story) for story in STORIES for part in range(5)]
    sums: dict[str, list[Any]] = {story: [0, 0, 0, {}] for story in STORIES}
    for story, count, wrong, looks, decisions in run(_block, jobs):
        total = sums[story]
        total[0], total[1], total[2] = total[0] + count, total[1] + wrong, total[2] + looks
        for name, number in decisions.items():
            total[3][name] = total[3].get(name, 0) + number
    lines = [
        f"### Missing data: {sum(total[0] for total in sums.values()):,} runs with an injected fault",
        "",
        (
            "Judged by `judge()` itself. *end*: the figures of a healthy stage go missing for good. "
            "*hidden*: the canary turns sick while nothing is seen. *holes*: a sick canary, every second "
            "scrape missing. *frozen*: no samples are taken any more."
        ),
        "",
        "| story | runs | looks | wrong promotions | held | rolled back |",
        "|---|---|---|---|---|---|",
    ]
    for story, (count, wrong, looks, decisions) in sums.items():
        lines.append(
            f"| {story} | {count:,} | {looks:,} | {wrong} | {decisions.get('hold', 0):,} | "
            f"{decisions.get('rollback', 0):,} |"
        )
    return lines
