"""A whole migration as its runbooks record it, for tests: no cluster, no DNS, the real journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateshift.migration.journal import Journal

WEIGHTS = (10, 25, 50, 75, 100)


def plan(kind: str, digest: str) -> dict[str, Any]:
    step = {"verb": "update", "target": f"dns {digest}", "before": {"w": 0}, "after": {"w": 1}, "note": ""}
    return {
        "kind": kind,
        "title": f"plan of {kind}",
        "digest": digest,
        "steps": [step],
        "way_back": "rollback",
    }


def setup() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "migration.opened", {"params_digest": "0" * 16}
    yield "run.started", {"notebook": "00_preflight"}
    yield "preflight.done", {"ok": True, "failed": []}
    yield "plan.shown", {"plan": plan("10_install", "a" * 16)}
    yield "plan.approved", {"digest": "a" * 16, "who": "ann@ops", "how": "params"}
    yield "install.intent", {"digest": "a" * 16}
    yield "install.done", {"version": "1.29.0"}
    yield "apply.intent", {"snapshot": "before.yaml"}
    yield "apply.done", {"objects": 31}
    yield "verify.done", {"ok": True, "failed": []}
    yield "run.ended", {"notebook": "00_preflight", "outcome": "done"}


def stage(index: int, decision: str = "promote") -> Iterator[tuple[str, dict[str, Any]]]:
    weight, before = WEIGHTS[index], (0, *WEIGHTS)[index]
    digest = f"{index + 1:016x}"
    yield "run.started", {"notebook": "50_canary"}
    yield "plan.shown", {"plan": plan("50_canary", digest)}
    yield "plan.approved", {"digest": digest, "who": "ann@ops", "how": "prompt"}
    yield "stage.entered", {"stage": index, "weight": weight}
    yield "shift.intent", {"stage": index, "from": before, "to": weight, "snapshot": {"records": []}}
    yield "shift.done", {"to": weight, "accepted_s": 0.4, "insync_s": 31.0}
    yield "stage.arrived", {"stage": index, "share": weight + 0.3}
    yield (
        "verdict",
        {"stage": index, "decision": decision, "reasons": ["enough evidence"], "evidence": {"p95_ms": 80.5}},
    )
    if decision == "promote":
        yield "stage.promoted", {"stage": index}
        yield "run.ended", {"notebook": "50_canary", "outcome": "done"}


def rollback(before: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "rollback.started", {"reason": "error rate 5.1 % is above 1 %", "from": before}
    yield "rollback.shifted", {"seconds_to_dns": 0.6}
    yield (
        "rollback.done",
        {
            "seconds_to_dns": 0.6,
            "seconds_to_users": 41.0,
            "checklist": [["DNS back at 100 % APISIX", "pass", "accepted after 0.6 s"]],
        },
    )


def promoted() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from setup()
    for index in range(len(WEIGHTS)):
        yield from stage(index)


def rolled_back() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from setup()
    yield from stage(0)
    yield from stage(1, "rollback")
    yield from rollback(25)


def write(path: Path, story: Iterator[tuple[str, dict[str, Any]]], *, run: str = "r1") -> Path:
    with Journal.open(path, who="ann@ops", run=run) as journal:
        for kind, data in story:
            journal.append(kind, **data)
    return path
