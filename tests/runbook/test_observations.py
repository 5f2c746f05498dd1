"""A stage that died and is resumed, or is entered again, does not get its false-rollback budget anew."""

from pathlib import Path

import pytest

from gateshift.judge.verdict import attempt_share
from gateshift.migration.journal import Journal
from gateshift.runbook.resume import OBSERVED, observations
from tests.archive import story


def test_every_observation_on_record_counts_over_dead_runs_and_rollbacks(tmp_path: Path) -> None:
    path = story.write(tmp_path / "m" / "journal.jsonl", story.setup())
    spent = []
    for run in ("r2", "r3"):
        with Journal.open(path, who="ann", run=run) as journal:
            # The second run finds the first one's record, though that one died without a verdict.
            spent.append(observations(journal, 0))
            journal.append(OBSERVED, stage=0, attempt=spent[-1])
    story.write(path, story.stage(0, "rollback"), run="r3")
    story.write(path, story.rollback(10), run="r4")
    with Journal.open(path, who="ann", run="r5") as journal:
        spent.append(observations(journal, 0))
        assert observations(journal, 1) == 0
    assert spent == [0, 1, 2]
    assert sum(map(attempt_share, spent)) == pytest.approx(0.9 + 0.05 + 0.1 / 6)
