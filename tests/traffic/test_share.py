"""The observed share: no data and too few requests never count as arrived."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateshift.traffic import observed_share
from gateshift.traffic.share import window_share


@pytest.mark.parametrize(
    ("istio", "apisix"), [(None, 10.0), (10.0, None), (None, None), (0.0, 0.0), (math.nan, 5.0), (-1.0, 5.0)]
)
def test_missing_or_empty_never_arrives(istio: float | None, apisix: float | None) -> None:
    share = observed_share(istio, apisix, 10)
    assert not share.arrived
    assert share.percent is None
    assert share.reason


@pytest.mark.parametrize(
    ("istio", "apisix", "target", "arrived"),
    [
        (1000, 9000, 10, True),
        (1190, 8810, 10, True),
        (1250, 8750, 10, False),
        (1, 9, 10, False),  # exactly 10 %, but of ten requests
        (10_000, 0, 100, True),
        (9_850, 150, 100, False),  # the last 1.5 % have not moved
        (0, 10_000, 0, True),
        (200, 9_800, 0, False),
        (0, 3, 0, False),
    ],
)
def test_arrived(istio: float, apisix: float, target: float, arrived: bool) -> None:
    assert observed_share(istio, apisix, target).arrived is arrived


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 100))
def test_bounds_hold_the_share(istio: int, apisix: int, target: int) -> None:
    share = observed_share(float(istio), float(apisix), target)
    if share.percent is None:
        assert istio + apisix == 0
        return
    assert share.low is not None
    assert share.high is not None
    assert 0 <= share.low <= share.percent + 1e-9
    assert share.percent - 1e-9 <= share.high <= 100
    assert share.arrived <= (abs(share.percent - target) <= 2)


def test_little_traffic_arrives_later_and_not_never() -> None:
    steps = [(1.0, 9.0)] * 7
    assert not window_share(steps, 10).arrived  # 70 requests say little about 10 %
    assert window_share([(1.0, 9.0)] * 64, 10).arrived


def test_old_intervals_do_not_speak_when_the_new_ones_suffice() -> None:
    before, after = [(0.0, 1000.0)] * 50, [(100.0, 900.0)] * 8
    assert window_share([*before, *after], 10).arrived
    assert not window_share([*after, *before], 10).arrived
    assert not window_share([], 10).arrived


def test_a_scrape_more_of_one_gateway_moves_no_share() -> None:
    # 300 requests a second, half each; Istio's window happens to hold nine scrapes, APISIX's eight.
    requests = [(150.0, 150.0)] * 7 + [(300.0, 150.0)]
    seconds = [(1.0, 1.0)] * 7 + [(2.0, 1.0)]
    assert not window_share(requests, 50).arrived
    aligned = window_share(requests, 50, seconds=seconds)
    assert aligned.percent == pytest.approx(50)
    assert aligned.arrived
    # Unknown times, or none passed at one side, leave the counts as they are.
    for unknown in ([*seconds[:-1], (None, 1.0)], [(0.0, 1.0)] * 8, seconds[1:]):
        assert window_share(requests, 50, seconds=unknown).percent == pytest.approx(52.94, abs=0.01)
