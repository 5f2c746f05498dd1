import json
from collections.abc import Iterator

import pytest

from gateshift.judge.model import MissingKind, Side
from gateshift.metrics.sampler import Sampler
from gateshift.metrics.source import PrometheusSource
from gateshift.params.model import MetricsParams

from .prometheus import Scrapes, Wire, serve


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with serve() as running:
        yield running


@pytest.fixture
def wire(server: Wire) -> Wire:
    server.extra, server.raw = {}, None
    return server


@pytest.fixture
def scrapes(wire: Wire) -> Scrapes:
    state = Scrapes()
    state.istio = {"pod-a": {"200": 1000.0}}
    state.apisix = {"old": {"200": 5000.0, "502": 10.0}}
    wire.responder = state
    return state


@pytest.fixture
def sampler(wire: Wire) -> Sampler:
    params = MetricsParams(url=wire.url, step="1s", timeout="2s")
    return Sampler(PrometheusSource(params), params)


def test_increases_and_a_first_error_code_counts_from_zero(scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    scrapes.istio["pod-a"] = {"200": 1040.0, "503": 5.0}
    scrapes.apisix["old"] = {"200": 5090.0, "502": 11.0}
    sample = sampler.sample(100, 101)
    assert (sample.canary.requests, sample.canary.errors) == (45.0, 5.0)
    assert (sample.baseline.requests, sample.baseline.errors) == (91.0, 1.0)
    assert sample.canary.buckets == ((10.0, 22.5), (float("inf"), 45.0))
    assert 'reporter="source"' in sample.canary.source


def test_the_time_between_the_scrapes_is_told(scrapes: Scrapes, sampler: Sampler) -> None:
    scrapes.scraped_at = 99.2
    sampler.sample(99, 100)
    scrapes.scraped_at = 101.4
    scrapes.istio["pod-b"] = {"200": 5.0}  # not there before: it covers nothing yet
    side = sampler.sample(100, 101.5).canary
    assert side.covered == pytest.approx(2.2)
    assert Side.from_json(side.as_json()) == side
    assert "covered" not in Side(requests=1.0).as_json()  # samples of before keep their bytes


def test_the_state_at_since_is_read_after_a_restart(wire: Wire, scrapes: Scrapes, sampler: Sampler) -> None:
    def responder(query: str, at: float) -> object:
        scrapes.istio["pod-a"]["200"] = 1000.0 if at < 100 else 1030.0
        return scrapes(query, at)

    wire.responder = responder
    assert sampler.sample(99, 100).canary.requests == 30.0


def test_two_reporters_are_not_added_up(scrapes: Scrapes, sampler: Sampler) -> None:
    scrapes.both_reporters = True
    sampler.sample(99, 100)
    scrapes.istio["pod-a"]["200"] = 1010.0
    assert sampler.sample(100, 101).canary.requests == 10.0


def test_destination_is_found_where_source_is_empty(scrapes: Scrapes, sampler: Sampler) -> None:
    scrapes.istio_reporter = "destination"
    assert 'reporter="destination"' in sampler.sample(99, 100).canary.source


def test_empty_is_never_zero(scrapes: Scrapes, sampler: Sampler) -> None:
    scrapes.istio = {}
    side = sampler.sample(99, 100).canary
    assert side.missing is not None
    assert side.missing.kind is MissingKind.EMPTY_ANSWER
    assert side.requests is None


def test_scrape_gap_then_nothing_is_lost(scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    pod = scrapes.istio.pop("pod-a")
    scrapes.up = {"pod-a": 0}
    side = sampler.sample(100, 101).canary
    assert side.missing is not None
    assert side.missing.kind is MissingKind.SCRAPE_GAP
    scrapes.istio["pod-a"] = {"200": pod["200"] + 7}
    scrapes.up = {"pod-a": 1}
    assert sampler.sample(101, 102).canary.requests == 7.0


def test_one_of_two_pods_silent_is_a_gap_but_scaled_down_is_not(scrapes: Scrapes, sampler: Sampler) -> None:
    scrapes.istio["pod-b"] = {"200": 10.0}
    sampler.sample(99, 100)
    del scrapes.istio["pod-b"]
    scrapes.up = {"pod-b": 0}
    assert sampler.sample(100, 101).canary.missing is not None
    scrapes.up = {}
    scrapes.istio["pod-a"]["200"] = 1004.0
    assert sampler.sample(101, 102).canary.requests == 4.0


def test_a_new_pod_counts_from_its_second_scrape(scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    scrapes.istio["pod-b"] = {"200": 1e6}
    assert sampler.sample(100, 101).canary.requests == 0.0
    scrapes.istio["pod-b"] = {"200": 1e6 + 3}
    assert sampler.sample(101, 102).canary.requests == 3.0


def test_counter_reset(scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    scrapes.istio["pod-a"] = {"200": 3.0}
    side = sampler.sample(100, 101).canary
    assert side.missing is not None
    assert side.missing.kind is MissingKind.COUNTER_RESET
    scrapes.istio["pod-a"] = {"200": 13.0}
    assert sampler.sample(101, 102).canary.requests == 10.0


def test_stale_series(scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    scrapes.scraped_at = 100.0
    assert sampler.sample(100, 104).canary.missing is None
    side = sampler.sample(104, 110).canary
    assert side.missing is not None
    assert side.missing.kind is MissingKind.STALE_SERIES


def test_partial_response_and_query_error(wire: Wire, scrapes: Scrapes, sampler: Sampler) -> None:
    sampler.sample(99, 100)
    wire.extra = {"warnings": ["one store did not answer"]}
    side = sampler.sample(100, 101).canary
    assert side.missing is not None
    assert side.missing.kind is MissingKind.PARTIAL_RESPONSE
    wire.raw = (503, b"{}")
    side = sampler.sample(101, 102).baseline
    assert side.missing is not None
    assert side.missing.kind is MissingKind.QUERY_ERROR
    wire.extra, wire.raw = {}, None
    scrapes.istio["pod-a"]["200"] = 1002.0
    assert sampler.sample(102, 103).canary.requests == 2.0


def test_connections_are_those_of_the_gateway_that_was_counted(
    wire: Wire, scrapes: Scrapes, sampler: Sampler
) -> None:
    asked: list[str] = []

    def responder(query: str, at: float) -> object:
        if "cx_active" not in query and "current_connections" not in query:
            return scrapes(query, at)
        asked.append(query)
        return [{"metric": {}, "value": [at, "17" if "envoy" in query else "230"]}]

    wire.responder = responder
    assert sampler.connections(99) == (None, 230.0), "before a sample nobody knows the gateway's instances"
    sampler.sample(99, 100)
    assert sampler.connections(100) == (17.0, 230.0)
    assert 'instance=~"pod\\\\-a"' in asked[-2]
    wire.responder = lambda query, at: []
    assert sampler.connections(101) == (None, None)
    wire.raw = (500, b"")
    assert sampler.connections(102) == (None, None)


def matrix(**series: list[float]) -> bytes:
    result = [
        {
            "metric": {"job": "g", "instance": "old", "code": code[1:], "le": le},
            "values": [[100 + i, str(value)] for i, value in enumerate(values)],
        }
        for (code, values), le in zip(series.items(), ("10", "+Inf"), strict=True)
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


def test_the_past_of_the_old_gateway_is_read_without_restarts(wire: Wire, sampler: Sampler) -> None:
    wire.raw = (200, matrix(c200=[10, 20, 30, 5, 15], c502=[0, 1, 1, 0, 2]))
    past, lacking = sampler.reference(104, 4)
    assert [(side.requests, side.errors) for side in past] == [(11.0, 1.0), (10.0, 0.0), (12.0, 2.0)]
    assert past[0].buckets == ((10.0, 10.0), (float("inf"), 1.0))
    assert lacking == ""


def test_no_past_says_why(wire: Wire, sampler: Sampler) -> None:
    wire.raw = (503, b"{}")
    past, lacking = sampler.reference(104, 4)
    assert past == ()
    assert "query error" in lacking
    wire.raw = (
        200,
        b'{"status":"success","data":{"resultType":"matrix","result":[]},"warnings":["store down"]}',
    )
    assert "partial response" in sampler.reference(104, 4)[1]
    wire.raw = (200, b'{"status":"success","data":{"resultType":"matrix","result":[]}}')
    assert "empty answer" in sampler.reference(104, 4)[1]


# -- whether APISIX served anything at all -----------------------------------------------------------------

Told = dict[str, list[float | None]]


def served(wire: Wire, sampler: Sampler, counters: Told, up: Told | None = None) -> Side:
    """Ask about the four seconds from 100 to 104; *counters* and *up* are by pod and second; None: unseen."""
    whole = {pod: [1.0] * 5 for pod in counters} if up is None else up

    def responder(query: str, at: float) -> object:
        state, second = Scrapes(), min(4, max(0, int(at) - 100))
        state.apisix = {p: {"200": seen} for p, c in counters.items() if (seen := c[second]) is not None}
        state.up = {p: int(seen) for p, c in whole.items() if (seen := c[second]) is not None}
        return state(query, at)

    wire.responder = responder
    return sampler.served(100, 104)


@pytest.mark.parametrize(
    ("counters", "up", "requests"),
    [
        ({"old": [9, 9, 9, 9, 9]}, None, 0.0),
        ({"old": [9, 9, 9, 9, 10]}, None, 1.0),
        ({"old": [9, 9, 12, 12, 12]}, None, 3.0),
        # Its first request ever: scraped at the beginning, it had nothing to show.
        ({"old": [None, None, 5, 5, 5]}, None, 5.0),
        ({"old": [9, 9, 9, 9, 9], "b": [None, 1, 1, 1, 1]}, None, 1.0),
        # It restarted, and so did what it counts.
        ({"old": [9, 9, 2, 2, 2]}, None, 2.0),
        # It served, and was scaled down within the time; it is no target any more.
        (
            {"old": [9, 9, 9, 9, 9], "b": [4, 6, 6, None, None]},
            {"old": [1] * 5, "b": [1, 1, 1, None, None]},
            2.0,
        ),
        # Unanswered scrapes in between lose nothing.
        ({"old": [9, None, None, 9, 9]}, {"old": [1, 0, 0, 1, 1]}, 0.0),
        # A newcomer may hide requests; those of another process are known.
        ({"old": [9, 9, 9, 9, 11], "b": [None, 4, 4, 4, 4]}, {"old": [1] * 5, "b": [None, 1, 1, 1, 1]}, 2.0),
    ],
)
def test_what_apisix_served(wire: Wire, sampler: Sampler, counters: Told, up: Told, requests: float) -> None:
    side = served(wire, sampler, counters, up)
    assert (side.requests, side.missing) == (requests, None)


@pytest.mark.parametrize(
    ("counters", "up", "kind"),
    [
        ({"old": [None] * 5}, None, MissingKind.EMPTY_ANSWER),
        # First scraped in between: nobody knows of when its requests are.
        ({"old": [None, 5, 5, 5, 5]}, {"old": [None, 1, 1, 1, 1]}, MissingKind.NEW_PROCESS),
        ({"old": [None, 5, 5, 5, 5]}, {"old": [0, 1, 1, 1, 1]}, MissingKind.NEW_PROCESS),
        (
            {"old": [9, 9, 9, 9, 9], "b": [None, None, None, 4, 4]},
            {"old": [1] * 5, "b": [None, None, None, 1, 1]},
            MissingKind.NEW_PROCESS,
        ),
        # One that does not answer now may serve; also one that never did.
        (
            {"old": [9, 9, 9, 9, 9], "b": [4, 4, 4, 4, None]},
            {"old": [1] * 5, "b": [1, 1, 1, 1, 0]},
            MissingKind.SCRAPE_GAP,
        ),
        ({"old": [9, 9, 9, 9, 9]}, {"old": [1] * 5, "b": [0] * 5}, MissingKind.SCRAPE_GAP),
    ],
)
def test_idle_is_never_concluded_from_what_is_not_known(
    wire: Wire, sampler: Sampler, counters: Told, up: Told, kind: MissingKind
) -> None:
    side = served(wire, sampler, counters, up)
    assert side.requests is None
    assert side.missing
    assert side.missing.kind is kind


def test_a_prometheus_that_fails_does_not_say_idle(wire: Wire, sampler: Sampler) -> None:
    wire.raw = (503, b"no")
    side = sampler.served(100, 104)
    assert side.missing
    assert side.missing.kind is MissingKind.QUERY_ERROR
    wire.raw = None
    wire.extra = {"warnings": ["a store is down"]}
    side = served(wire, sampler, {"old": [9.0] * 5})
    assert side.missing
    assert side.missing.kind is MissingKind.PARTIAL_RESPONSE
