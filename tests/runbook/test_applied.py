"""What was applied is kept as the cluster has it, and looked for again before each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster import apply as cluster_apply
from gateshift.cluster.client import Cluster
from gateshift.errors import Blocked
from gateshift.runbook.applied import keep_after, missing_objects, require_applied
from gateshift.runbook.context import Context
from tests.archive import story
from tests.cluster.conftest import api, cluster, kubeconfig, make_params, server  # noqa: F401 - fixtures

OBJECTS: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"a": name},
    }
    for name in ("one", "two")
]


@pytest.fixture
def context(cluster: Cluster, tmp_path: Path) -> Context:  # noqa: F811 - the imported fixture
    params = make_params(mode="act", outputs=str(tmp_path), migration="m")
    story.write(tmp_path / "m" / "journal.jsonl", story.setup())
    made = Context(params, run="30_apply-r2")
    made.__dict__["cluster"] = cluster
    made.run_folder.mkdir()
    return made


def test_applied_objects_that_are_gone_hold_the_next_stage(context: Context) -> None:
    assert missing_objects(context) is None, "an archive from before this was recorded holds nothing up"
    plan = cluster_apply.plan(context.cluster, OBJECTS, migration="m")
    cluster_apply.execute(context.cluster, OBJECTS, plan)
    context.journal.append("apply.intent", snapshot="s")
    context.journal.append("apply.done", objects=2, after=keep_after(context, OBJECTS))
    kept = json.loads((context.run_folder / "after.json").read_text())
    assert {o["name"]: o["after"]["data"]["a"] for o in kept["objects"]} == {"one": "one", "two": "two"}
    require_applied(context)
    context.cluster.delete("v1/ConfigMap", "two", "default")
    with pytest.raises(
        Blocked, match=r"1 objects that were applied are gone from the cluster: .*two"
    ) as held:
        require_applied(context)
    assert "gateshift rollback" in held.value.hint


def test_a_list_that_cannot_be_read_holds_as_well(context: Context) -> None:
    context.journal.append("apply.intent", snapshot="s")
    context.journal.append("apply.done", objects=2, after="30_apply-r2/after.json")
    with pytest.raises(Blocked, match=r"what was applied cannot be read"):
        require_applied(context)
