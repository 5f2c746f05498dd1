"""Verdicts of real rehearsals with faults, recomputed from what they recorded: the same to the last letter.

The files are the ``samples.jsonl`` of both stages of ``gateshift rehearse --short --only fault``, as
Parquet. A judge that is changed on purpose needs new ones.
"""

from pathlib import Path

import pytest

from gateshift.judge.model import Decision
from gateshift.judge.replay import replay

FOLDER = Path(__file__).parent / "recorded"
SAID = {
    "errors-2": (Decision.ROLLBACK, "error rate 1.69 %"),
    "scrape": (Decision.ROLLBACK, "scrape gap"),
}


@pytest.mark.parametrize("fault", SAID)
def test_a_recorded_rehearsal_is_judged_again_bit_for_bit(fault: str) -> None:
    decision, words = SAID[fault]
    first, second = replay(FOLDER / f"{fault}.parquet")
    assert first.same
    assert second.same
    assert first.recomputed is not None
    assert second.recomputed is not None
    assert first.recomputed.decision is Decision.PROMOTE
    assert second.recomputed.decision is decision
    assert words in second.recomputed.reasons[0]


def test_every_recording_is_judged() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SAID)
