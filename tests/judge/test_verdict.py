import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gateshift.errors import InputError, NotEnoughEvidence
from gateshift.judge.command import judge_group
from gateshift.judge.measure import quantile
from gateshift.judge.model import Decision, Missing, MissingKind, Sample, Side, Verdict
from gateshift.judge.replay import SampleLog, replay, write_parquet
from gateshift.judge.verdict import EDITION, attempt_share, judge
from gateshift.params.model import JudgeParams, StageParams

FIRST = StageParams(weight_percent=10, dwell="12s", error_rate_limit_percent=1.0)
SECOND = StageParams(weight_percent=25, dwell="12s", error_rate_limit_percent=1.0)
LATER = StageParams(weight_percent=25, dwell="12s", error_rate_limit_percent=2.0)
HALF = StageParams(weight_percent=50, dwell="12s", error_rate_limit_percent=0.5)
LAST = StageParams(weight_percent=100, dwell="12s", error_rate_limit_percent=0.1)
PARAMS = JudgeParams(missing_data_allowance="20s")
LAB = JudgeParams(missing_data_allowance="20s", dispersion_floor=1.0)
INF = float("inf")


def side(n: float, x: float = 0.0, slow: float = 0.0) -> Side:
    return Side(n, x, ((10.0, (n - slow) / 2), (1000.0, n - slow), (2500.0, n - slow), (5000.0, n), (INF, n)))


def gone(kind: MissingKind) -> Side:
    return Side(missing=Missing(kind, "pod-a"))


def line(*parts: tuple[int, Side, Side]) -> list[Sample]:
    samples: list[Sample] = []
    for count, canary, baseline in parts:
        samples += [Sample(1000.0 + len(samples) + i, canary, baseline) for i in range(count)]
    return samples


def verdict(
    history: list[Sample], stage: StageParams = FIRST, params: JudgeParams = PARAMS, **at: float
) -> Verdict:
    now = at.get("now", history[-1].time if history else 1000.0)
    return judge(history, stage, params, stage_index=0, stages=5, started=at.get("started", 999.0), now=now)


@pytest.mark.parametrize(
    ("stage", "canary", "baseline"), [(FIRST, side(20), side(180)), (LAST, side(200), side(0))]
)
def test_a_healthy_stage_is_promoted_soon_after_its_dwell(
    stage: StageParams, canary: Side, baseline: Side
) -> None:
    assert verdict(line((10, canary, baseline)), stage, LAB).decision is Decision.HOLD
    assert verdict(line((16, canary, baseline)), stage, LAB).decision is Decision.PROMOTE
    assert verdict(line((34, canary, baseline)), stage, PARAMS).decision is Decision.PROMOTE


def test_never_before_the_dwell() -> None:
    early = verdict(line((100, side(2000), side(18000))), started=1095.0)
    assert early.decision is Decision.HOLD
    assert "of 12 s" in early.reasons[0]


@pytest.mark.parametrize("left", [0.0, 1.0, 3.0])
def test_traffic_that_fell_away_holds_although_enough_was_seen_before(left: float) -> None:
    """At both gateways: nothing says that this one is worse, and nothing that it is still well."""
    good = (34, side(50), side(150))
    assert verdict(line(good), LATER).decision is Decision.PROMOTE
    gone_quiet = line(good, (2, side(left), side(3 * left)))
    held = verdict(gone_quiet, LATER)
    assert held.decision is Decision.HOLD
    assert held.reasons == (
        f"too few requests to go on: {2 * left:.0f} in the last 2 s, 100 were due at the rate before",
    )
    half = line(good, (2, side(25), side(75)))
    assert verdict(half, LATER).decision is Decision.PROMOTE, "an evening is no incident"


def test_after_a_fall_of_traffic_the_stage_goes_on_once_enough_is_seen_at_the_new_rate() -> None:
    steps = ((34, side(50), side(150)), (600, side(1), side(3)))
    assert verdict(line(steps[0], (60, *steps[1][1:])), LATER).decision is Decision.HOLD
    assert verdict(line(*steps), LATER).decision is Decision.PROMOTE


def test_five_percent_errors_roll_back_within_seconds() -> None:
    result = verdict(line((6, side(50, 2.5), side(150))), SECOND)
    assert result.decision is Decision.ROLLBACK
    assert "5 %" in result.reasons[0]


def test_turning_bad_after_a_long_healthy_time_is_seen_within_seconds() -> None:
    result = verdict(line((600, side(50), side(150)), (12, side(50, 2.5), side(150))), SECOND)
    assert result.decision is Decision.ROLLBACK
    assert "in the last" in result.reasons[0]


def test_three_seconds_of_latency_roll_back() -> None:
    result = verdict(line((8, side(20, 0, 20), side(180))))
    assert result.decision is Decision.ROLLBACK
    assert "2500 ms" in result.reasons[0]


def test_a_shared_incident_holds() -> None:
    for length in (5, 50, 300):
        result = verdict(line((length, side(20, 1), side(180, 9))))
        assert result.decision is Decision.HOLD
    assert any("shared" in reason for reason in result.reasons)


def test_worse_than_the_baseline_but_within_the_limit_does_not_roll_back() -> None:
    assert verdict(line((300, side(300, 1.5), side(2700, 0.3)))).decision is not Decision.ROLLBACK


def test_at_100_percent_the_limit_alone_is_tested() -> None:
    bad = verdict(line((8, side(200, 2), side(0))), LAST)
    assert bad.decision is Decision.ROLLBACK
    assert "limit alone" in bad.reasons[0]
    unknown_baseline = line((20, side(200), gone(MissingKind.EMPTY_ANSWER)))
    assert verdict(unknown_baseline, LAST, LAB).decision is Decision.PROMOTE


@pytest.mark.parametrize("kind", list(MissingKind))
@pytest.mark.parametrize("which", ["canary", "baseline", "both"])
def test_missing_data_hold_by_name_and_roll_back_beyond_the_allowance(kind: MissingKind, which: str) -> None:
    lost = gone(kind)
    canary = lost if which in ("canary", "both") else side(20)
    baseline = lost if which in ("baseline", "both") else side(180)
    good = (60, side(20), side(180))
    assert verdict(line(good)).decision is Decision.PROMOTE
    held = verdict(line(good, (10, canary, baseline)))
    assert held.decision is Decision.HOLD
    assert kind.value in held.reasons[0]
    back = verdict(line(good, (25, canary, baseline)))
    assert back.decision is Decision.ROLLBACK
    assert kind.value in back.reasons[0]


def test_nothing_at_all_holds_and_time_without_samples_is_a_gap() -> None:
    assert verdict([]).decision is Decision.HOLD
    history = line((60, side(20), side(180)))
    assert verdict(history, now=history[-1].time + 10).decision is Decision.HOLD
    assert verdict(history, now=history[-1].time + 30).decision is Decision.ROLLBACK


def test_one_request_a_minute_holds_with_a_forecast_and_never_rolls_back() -> None:
    quiet, busy = (59, side(0), side(0)), (1, side(1), side(2))
    result = verdict(line(*[quiet, busy] * 10), params=JudgeParams())
    assert result.decision is Decision.HOLD
    assert "too few requests" in result.reasons[0]
    assert "present rate" in result.reasons[0]


def test_silence_of_the_canary_beside_a_busy_baseline_rolls_back() -> None:
    history = line((30, side(20), side(180)), (30, side(0), side(200)))
    result = verdict(history)
    assert result.decision is Decision.ROLLBACK
    assert "no request reached" in result.reasons[0]
    assert verdict(history[:40]).decision is Decision.HOLD


def test_traffic_that_ends_for_both_holds_though_the_old_gateway_counts_on_for_a_while() -> None:
    """Its last scrape came later, and WebSocket connections are counted when they close."""
    ending = [(1, side(0), side(served)) for served in (1, 0, 29, 0, 55, 0, 6, 80)]
    history = line((8, side(250), side(250)), *ending, (40, side(0), side(0)))
    for end in range(9, len(history) + 1):
        result = verdict(history[:end], HALF)
        assert result.decision is Decision.HOLD
    assert "too few requests" in result.reasons[0]


def test_a_verdict_may_not_know_the_future() -> None:
    with pytest.raises(ValueError, match="newer"):
        verdict(line((3, side(20), side(180))), now=1000.5)


def test_buckets_that_cannot_tell_hold() -> None:
    slowish = Side(20.0, 0.0, ((1000.0, 10.0), (2500.0, 20.0), (INF, 20.0)))
    result = verdict(line((60, slowish, side(180))))
    assert result.decision is Decision.HOLD
    assert any("P95" in reason for reason in result.reasons)


SIDES = st.one_of(
    st.builds(gone, st.sampled_from(list(MissingKind))),
    st.builds(lambda n, x: side(float(n), float(min(n, x))), st.integers(0, 5000), st.integers(0, 5000)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), max_size=12), st.sampled_from([FIRST, LAST]))
def test_any_history_gives_a_verdict_and_missing_never_promotes(
    pairs: list[tuple[Side, Side]], stage: StageParams
) -> None:
    history = [Sample(1000.0 + i, a, b) for i, (a, b) in enumerate(pairs)]
    result = verdict(history, stage, now=1000.0 + len(pairs))
    json.dumps(result.as_json(), allow_nan=False)
    assert result.reasons
    again = [Sample.from_json(json.loads(json.dumps(sample.as_json()))) for sample in history]
    assert again == history
    assert [json.dumps(sample.as_json()) for sample in again] == [json.dumps(s.as_json()) for s in history]
    if result.decision is Decision.PROMOTE:
        assert history[-1].canary.missing is None


def test_a_canary_worse_by_the_margin_gathers_no_evidence_for_promotion() -> None:
    for burst in (1, 10, 60):
        history = line(
            *[(burst - 1, side(300), side(2700)), (1, side(300, min(6 * burst, 300)), side(2700))] * 4
        )
        evidence = verdict(history).evidence["errors"]
        assert evidence["below_limit_with_margin"] < evidence["below_limit_with_margin_threshold"]


def test_quantiles_are_prometheus_ones() -> None:
    buckets = ((10.0, 50.0), (100.0, 90.0), (INF, 100.0))
    assert quantile(buckets, 0.5).value == pytest.approx(10.0)
    assert quantile(buckets, 0.7).value == pytest.approx(55.0)
    last = quantile(buckets, 0.95)
    assert (last.value, last.beyond) == (100.0, True)
    assert quantile(((10.0, 0.0), (INF, 0.0)), 0.5).value is None
    assert quantile(((10.0, 5.0),), 0.5).value is None


def record(folder: Path, history: list[Sample], stage: StageParams) -> tuple[Path, Verdict]:
    path = folder / "run" / "samples.jsonl"
    log = SampleLog(path, stage, PARAMS, 0)
    for sample in history:
        log.write(sample)
    result = verdict(history, stage)
    (folder / "journal.jsonl").write_text(
        json.dumps({"kind": "verdict", "data": {"stage": 0, **result.as_json()}}) + "\n"
    )
    return path, result


def test_replay_gives_the_same_verdict_bit_for_bit(tmp_path: Path) -> None:
    record(tmp_path, line((5, side(20), side(180)), (20, side(50, 3.25), side(150, 1 / 3))), FIRST)
    (found,) = replay(tmp_path)
    assert found.same
    assert judge_group.main(["replay", str(tmp_path)], standalone_mode=False) is None


def test_replay_notices_a_changed_sample(tmp_path: Path) -> None:
    path, _ = record(tmp_path, line((9, side(50, 3), side(150))), FIRST)
    path.write_text(path.read_text().replace('"errors":3.0', '"errors":2.0', 1))
    (found,) = replay(tmp_path)
    assert not found.same
    assert "digest" in found.reason


def test_replay_reads_parquet_and_forgives_only_a_torn_last_line(tmp_path: Path) -> None:
    history = line((9, side(50, 3), side(150)))
    path = tmp_path / "samples.jsonl"
    log = SampleLog(path, FIRST, PARAMS, 0)
    for sample in history:
        log.write(sample)
    log.verdict(verdict(history))
    with path.open("a") as file:
        file.write('{"sample":{"ti')
    write_parquet(path, tmp_path / "x.parquet")
    assert [r.same for r in replay(path)] == [True]
    assert [r.same for r in replay(tmp_path / "x.parquet")] == [True]
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(InputError, match="line 1"):
        replay(path)


def test_replay_needs_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recorded samples"):
        replay(tmp_path)
    assert math.isinf(INF)


def test_observations_of_a_stage_share_its_budget_however_often_it_is_resumed() -> None:
    assert sum(attempt_share(n) for n in range(5000)) <= 1.0
    assert sum(attempt_share(n) for n in range(5000)) == pytest.approx(1.0, abs=1e-4)
    history = line((2, side(20), side(180)))
    asked = []
    for attempt in (None, 0, 1, 2):
        found = judge(
            history, FIRST, PARAMS, stage_index=0, stages=5, started=999.0, now=1001.0, attempt=attempt
        ).evidence
        asked.append(math.exp(-found["errors"]["worse_than_baseline_threshold"]))
        asked[-1] += math.exp(-found["latency"]["worse_than_baseline_threshold"])
        assert found["inputs"].get("attempt") == attempt
    share = PARAMS.false_rollback_budget / 5
    assert asked == pytest.approx([share, 0.9 * share, 0.05 * share, 0.1 / 6 * share])


def test_a_resumed_observation_needs_more_evidence_to_roll_back() -> None:
    def first_rollback(attempt: int) -> int:
        history = line((60, side(50, 1.5), side(150)))
        for end in range(1, 61):
            now = history[end - 1].time
            found = judge(
                history[:end],
                SECOND,
                PARAMS,
                stage_index=1,
                stages=5,
                started=999.0,
                now=now,
                attempt=attempt,
            )
            if found.decision is Decision.ROLLBACK:
                return end
        raise AssertionError("never rolled back")

    firsts = [first_rollback(attempt) for attempt in (0, 1, 5)]
    assert firsts == sorted(firsts)
    assert firsts[0] < firsts[2]


def test_replay_knows_which_observation_of_the_stage_it_was(tmp_path: Path) -> None:
    history = line((9, side(50, 3), side(150)))
    log = SampleLog(tmp_path / "samples.jsonl", FIRST, PARAMS, 0)
    for sample in history:
        log.write(sample)
    now = history[-1].time
    log.verdict(judge(history, FIRST, PARAMS, stage_index=0, stages=5, started=999.0, now=now, attempt=3))
    assert [r.same for r in replay(tmp_path)] == [True]


def test_a_verdict_of_another_edition_is_not_called_different(tmp_path: Path) -> None:
    history = line((9, side(50, 3), side(150)))
    log = SampleLog(tmp_path / "samples.jsonl", FIRST, PARAMS, 0)
    for sample in history:
        log.write(sample)
    now = history[-1].time
    log.verdict(judge(history, FIRST, PARAMS, stage_index=0, stages=5, started=999.0, now=now))
    file = tmp_path / "samples.jsonl"
    file.write_text(file.read_text().replace(f'"judge":{EDITION},', '"judge":1,'))
    (found,) = replay(tmp_path)
    assert (found.same, found.other_edition) == (False, True)
    assert "edition 1" in found.reason
    said = CliRunner().invoke(judge_group, ["replay", str(tmp_path)])
    assert isinstance(said.exception, NotEnoughEvidence)
    assert "NOT REPLAYED: stage 1" in said.output
