"""Every notebook's runbook opens in plan mode with nothing but its params: no cluster, no metrics, no DNS."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from gateshift.migration.journal import read_records
from gateshift.runbook import _RUNBOOKS
from tests.cluster.conftest import make_params


@pytest.mark.parametrize("name", sorted(_RUNBOOKS))
def test_a_run_opens_and_closes_without_any_system(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATESHIFT_RUN", raising=False)
    module, _, kind = _RUNBOOKS[name].partition(":")
    params = make_params(str(tmp_path / "absent"), mode="plan", outputs=str(tmp_path), migration="m")
    run = getattr(importlib.import_module(f"gateshift.runbook.{module}"), kind)(params, {})
    assert run.card().title
    run.close()
    kinds = [r.kind for r in read_records(tmp_path / "m" / "journal.jsonl")]
    assert kinds[:2] == ["migration.opened", "run.started"]
    assert kinds[-1] == "run.ended"
