"""The record of the stable run: real journal, Prometheus and API server at the wire, seconds for days."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import Blocked, NotEnoughEvidence
from gateshift.migration.journal import Record, read_records
from gateshift.migration.state import Phase, fold
from gateshift.params.model import Params
from gateshift.runbook.soak import Soak
from tests.archive import story
from tests.cluster.conftest import make_params
from tests.cluster.test_cluster_stable import calm  # noqa: F401 - a fixture
from tests.metrics.prometheus import Wire, serve

pytestmark = pytest.mark.slow  # each run draws its plot and reads a log

LADDER = [
    {"weight_percent": w, "dwell": "1s", "error_rate_limit_percent": 1.0, "availability_percent": 98.0}
    for w in story.WEIGHTS
]


class Counters:
    """Both gateways' counters as functions of time: 1000 requests a second at Istio, *errors* of them bad."""

    def __init__(self) -> None:
        self.begin = time.time() - 60
        self.errors = 0.0
        self.blind: tuple[float, float] = (0.0, 0.0)

    def __call__(self, query: str, at: float) -> Any:
        if self.blind[0] <= at <= self.blind[1]:
            return []
        istio = "istio_" in query
        base = {"job": "g", "instance": "p", **({"reporter": "source"} if istio else {})}
        total = 1000 * (at - self.begin) if istio else 0.0
        if "timestamp(" in query:
            return [{"metric": base, "value": [at, str(at)]}]
        if "_bucket" in query:
            return [{"metric": {**base, "le": le}, "value": [at, str(total)]} for le in ("100", "+Inf")]
        label = "response_code" if istio else "code"
        bad = self.errors * (at - self.begin)
        return [
            {"metric": {**base, label: code}, "value": [at, str(value)]}
            for code, value in (("200", total - bad), ("503", bad))
        ]


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def wire(counters: Counters) -> Iterator[Wire]:
    with serve() as found:
        found.responder = counters
        yield found


@pytest.fixture
def params(kubeconfig: str, wire: Wire, tmp_path: Path) -> Params:
    soak = {"stable_for": "3s", "sample_every": "60s", "sample_for": "800ms", "grace": "600ms"}
    made = make_params(
        kubeconfig,
        outputs=str(tmp_path / "outputs"),
        mode="act",
        metrics={"url": wire.url, "step": "200ms"},
        stages=LADDER,
        soak=soak,
    )
    story.write(tmp_path / "outputs" / "test" / "journal.jsonl", story.promoted())
    return made


@pytest.fixture
def once(params: Params, calm: Params) -> Callable[[], object]:  # noqa: F811 - the fixture
    """Run the notebook's cells once."""
    del calm

    def run() -> object:
        soak = Soak(params, {})
        try:
            soak.read()
            return soak.verify()
        finally:
            soak.context.journal.close()

    return run


def journal(params: Params) -> tuple[Record, ...]:
    return read_records(Path(params.outputs) / "test" / "journal.jsonl")


def samples(params: Params) -> list[dict[str, Any]]:
    return [dict(r.data) for r in journal(params) if r.kind == "soak.sample"]


def test_runs_join_without_a_gap_until_the_time_is_on_record(once: Any, params: Params) -> None:
    once()
    time.sleep(1.0)  # longer than a step, shorter than a day: the next run covers it from Prometheus's memory
    once()
    while fold(journal(params)).phase is not Phase.SOAKED:
        once()
    found = samples(params)
    assert all(a["to"] == b["from"] for a, b in pairwise(found))
    assert all(s["stable"] for s in found)
    state = fold(journal(params))
    promoted = next(r for r in reversed(journal(params)) if r.kind == "stage.promoted")
    assert state.stable_since_unix == promoted.unix
    assert sum(s["requests"] for s in found) == pytest.approx(
        1000 * (found[-1]["to"] - found[0]["from"]), rel=0.02
    )


def test_errors_above_the_limit_begin_the_stable_time_anew(
    once: Any, params: Params, counters: Counters
) -> None:
    once()
    counters.errors = 50.0
    with pytest.raises(Blocked, match=r"error rate [\d.]+ %, limit 1 %"):
        once()
    counters.errors = 0.0
    state = fold(journal(params))
    assert (state.stable_since_unix, state.phase) == (None, Phase.SOAK)
    assert samples(params)[-1]["stable"] is False


def test_a_gap_in_the_metrics_moves_the_beginning(once: Any, params: Params, counters: Counters) -> None:
    once()
    before = samples(params)[-1]["to"]
    counters.blind = (before, before + 1.0)
    time.sleep(1.4)
    once()
    state = fold(journal(params))
    assert state.stable_since_unix is not None
    assert before + 0.6 < state.stable_since_unix < samples(params)[-1]["to"]
    assert samples(params)[-1]["unmeasured"] > 0


def test_a_late_run_is_a_gap(once: Any, params: Params) -> None:
    once()
    late = params.model_copy(update={"soak": params.soak.model_copy(update={"sample_every": 0.2})})
    time.sleep(2.5)
    soak = Soak(late, {})
    soak.read()
    soak.verify()
    soak.context.journal.close()
    first, last = samples(params)
    assert last["from"] > first["to"] + 1.0
    state = fold(journal(params))
    assert state.stable_since_unix == last["from"]


def test_nothing_measured_adds_nothing(once: Any, params: Params, counters: Counters) -> None:
    counters.blind = (0.0, time.time() + 3600)
    with pytest.raises(NotEnoughEvidence, match="nothing was added to the record"):
        once()
    assert samples(params) == []
