"""The arrival forecast against a simulation of resolvers and connections, and the reasons given."""

from __future__ import annotations

import numpy as np
import pytest

from gateshift.traffic.arrival import Clients, forecast_arrival, forecast_share, likely_reason
from gateshift.traffic.protocol import HostWeights, Weights


def simulate(clients: Clients, before: float, after: float, window: int, seed: int) -> float:
    """Seconds until the share is seen at its target over *window* seconds; 6,000 clients and resolvers."""
    random = np.random.default_rng(seed)
    n = 6_000
    slow = random.random(n) < clients.tail
    ttl = np.where(slow, clients.tail_ttl, clients.ttl)
    refreshed = clients.propagation + random.random(n) * ttl
    old, new = random.random(n) < before / 100, random.random(n) < after / 100
    long_lived = random.random(n) < clients.sticky
    renewal = random.exponential(clients.connection_age, n)
    gateway = old.copy()
    step = 1.0
    counted: list[float] = []
    within = 1.0 if after in (0, 100) else 2.0
    for now in np.arange(0.0, 3600.0, step):
        answer = np.where(refreshed <= now, new, old)
        due = ~long_lived | (renewal <= now)
        gateway = np.where(due, answer, gateway)
        again = long_lived & (renewal <= now)
        renewal = np.where(again, now + random.exponential(clients.connection_age, n), renewal)
        counted.append(100 * float(gateway.mean()))
        if abs(np.mean(counted[-max(1, window) :]) - 100 * new.mean()) <= within:
            return float(now)
    raise AssertionError("never arrived")


@pytest.mark.parametrize(
    "clients",
    [
        Clients(),
        Clients(tail=0.0, sticky=0.0),
        Clients(ttl=60, tail=0.2, tail_ttl=600, sticky=0.0),
        Clients(ttl=60, tail=0.05, tail_ttl=300, sticky=0.4, connection_age=300),
        Clients(ttl=300, propagation=20, tail=0.1, tail_ttl=900, sticky=0.2, connection_age=60),
    ],
)
@pytest.mark.parametrize(("before", "after"), [(0, 10), (25, 50), (75, 100), (100, 0)])
@pytest.mark.parametrize("window", [0, 120])
def test_the_forecast_is_within_20_percent_of_the_simulation(
    clients: Clients, before: int, after: int, window: int
) -> None:
    forecast = forecast_arrival(clients, before, after, window=window)
    simulated = np.mean([simulate(clients, before, after, window, seed) for seed in range(4)])
    assert forecast == pytest.approx(simulated, rel=0.2)


def test_the_share_rises_to_the_weight_and_not_beyond() -> None:
    shares = [forecast_share(Clients(), 10, 25, t) for t in range(0, 2000, 20)]
    assert shares[0] == pytest.approx(10)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(25, abs=0.01)


def test_what_is_observed_follows_what_is_true() -> None:
    for seconds in (30, 60, 200):
        seen = forecast_share(Clients(), 10, 25, seconds, window=120)
        assert seen < forecast_share(Clients(), 10, 25, seconds)
    assert forecast_arrival(Clients(), 10, 25, window=120) > forecast_arrival(Clients(), 10, 25)


def test_a_shift_smaller_than_the_tolerance_is_there_at_once() -> None:
    assert forecast_arrival(Clients(), 10, 11) == 0


def weights(percent: int | None, problem: str = "") -> Weights:
    return Weights(percent, {"a": HostWeights("a", percent, True, {}, problem)})


@pytest.mark.parametrize(
    ("read", "observed", "elapsed", "expected"),
    [
        (weights(None, "a: foreign set identifier"), 5.0, 999, "foreign set identifier"),
        (weights(10), 10.0, 999, "somebody changed them"),
        (weights(25), None, 999, "counters are missing"),
        (weights(25), 12.0, 10, "it is early"),
        (weights(25), 10.2, 999, "another zone"),
        (weights(25), 20.0, 999, "long connections"),
        (weights(25), 40.0, 999, "more traffic than the weight"),
    ],
)
def test_the_likely_reason(read: Weights, observed: float | None, elapsed: float, expected: str) -> None:
    reason = likely_reason(
        read, before_percent=10, target_percent=25, observed_percent=observed, elapsed=elapsed, forecast=120
    )
    assert expected in reason
