import io
import math
import warnings
from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateshift.judge.model import Decision, Missing, MissingKind, Sample, Side, Verdict
from gateshift.judge.verdict import judge
from gateshift.notebook.plots import canary_figure
from gateshift.notebook.return_plot import return_figure
from gateshift.params.model import JudgeParams, StageParams

STAGE = StageParams(weight_percent=25, dwell="10s", error_rate_limit_percent=1.0)


def history(length: int) -> list[Sample]:
    def side(n: float, x: float) -> Side:
        return Side(n, x, ((10.0, n / 2), (100.0, n), (float("inf"), n)))

    gap = Side(missing=Missing(MissingKind.SCRAPE_GAP, "pod-a"))
    return [
        Sample(1.79e9 + i, gap if 5 <= i < 8 else side(50, float(i % 2)), side(150, 1.0))
        for i in range(length)
    ]


@pytest.mark.parametrize("length", [0, 1, 2, 30])
def test_draws_any_history(length: int) -> None:
    samples = history(length)
    verdict = None
    if samples:
        verdict = judge(
            samples, STAGE, JudgeParams(), stage_index=1, stages=5, started=1.79e9, now=samples[-1].time
        )
    figure = canary_figure(
        samples, STAGE, verdict=verdict, title="t", zone=timezone(timedelta(hours=2), "CEST")
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert len(figure.axes) == 6


def test_a_long_reason_ends_between_words() -> None:
    words = [f"word{number}" for number in range(40)]
    verdict = Verdict(Decision.HOLD, (" ".join(words),))
    figure = canary_figure(history(30), STAGE, verdict=verdict, title="t")
    shown = figure.get_suptitle().removeprefix("t\n… HOLD: ").split()
    assert shown[-1] == "…"
    assert shown[:-1] == words[: len(shown) - 1]
    assert len(shown) > 10


def test_no_length_of_a_stage_makes_matplotlib_warn() -> None:
    figure = canary_figure(history(30), STAGE)
    locator = figure.axes[0].xaxis.get_major_locator()
    begin = datetime(2026, 11, 30, 1, 30, 7, tzinfo=UTC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seconds in (*range(1, 4000), *range(4000, 400_000, 97)):
            assert len(locator.tick_values(begin, begin + timedelta(seconds=seconds)))


def test_connections_are_drawn_where_they_are_known() -> None:
    samples = history(30)
    known = [(s.time, None if i < 3 else 40.0 + i, 900.0) for i, s in enumerate(samples)]
    figure = canary_figure(samples, STAGE, connections=known)
    axes = next(axes for axes in figure.axes if axes.get_title() == "open connections")
    istio = next(line for line in axes.lines if "Istio" in str(line.get_label()))
    assert [math.isnan(v) for v in list(istio.get_ydata())[:4]] == [True, True, True, False]
    unknown = canary_figure(samples, STAGE, connections=[(s.time, None, None) for s in samples])
    assert len(unknown.axes) == len(figure.axes) - 1 == 6


def test_a_gap_is_a_gap_and_named_not_zero() -> None:
    figure = canary_figure(history(30), STAGE)
    errors = next(axes for axes in figure.axes if "error rate" in axes.get_title())
    canary = next(line for line in errors.lines if "Istio" in str(line.get_label()))
    assert all(math.isnan(value) for value in list(canary.get_ydata())[5:8])
    assert any(text.get_text() == "scrape gap" for text in errors.texts)


def test_limits_are_drawn_and_nothing_depends_on_colour_alone() -> None:
    figure = canary_figure(history(30), STAGE)
    errors = next(axes for axes in figure.axes if "error rate" in axes.get_title())
    assert any("limit 1 %" in str(line.get_label()) for line in errors.lines)
    styles = [(line.get_linestyle()) for line in errors.lines]
    assert len(set(styles)) == len(styles)


def test_both_clocks_are_shown() -> None:
    figure = canary_figure(history(30), STAGE, zone=timezone(timedelta(hours=2), "CEST"))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert any("CEST" in label and "UTC" in label for label in labels)


def test_what_is_expected_can_be_told_from_the_target() -> None:
    shares = [(1.79e9 + i, 25.0) for i in range(30)]
    figure = canary_figure(history(30), STAGE, shares=shares, forecast=shares)
    share = next(axes for axes in figure.axes if "share" in axes.get_title())
    lines = {str(line.get_label()): line for line in share.lines}
    assert lines["expected"].get_linewidth() > 2 * lines["observed"].get_linewidth()
    assert share.get_ylim()[1] < 50, "a weight of 25 % is not drawn on a scale to 100"


def test_the_way_back_without_a_share_says_so() -> None:
    figure = return_figure([], 0.0, 1.4, 300.0, title="t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no share was observed"]
    seen = return_figure([(5.0, 40.0), (30.0, 0.2)], 0.0, 1.4, 300.0, title="t")
    labels = {str(line.get_label()) for line in seen.axes[0].lines}
    assert {"weights accepted, 1.4 s", "99 % reached, 30 s"} <= labels
