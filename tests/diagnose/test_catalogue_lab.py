"""The short form of the fault catalogue, on a lab of real parts: one or two faults of each tree."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from bench import faults_backend, faults_gateway, faults_ours
from bench.catalogue import CATALOGUE, Fault
from bench.diagnose import LIMIT, healthy, mended, one
from bench.scene import Scene, open_scene

from gateshift import lab
from gateshift.diagnose import SYMPTOMS

pytestmark = pytest.mark.lab

SHORT = (
    "Gateway selector does not match the pods",
    "certificate expired",
    "an earlier rule takes the request (order)",
    "exportTo keeps it in its namespace",
    "gateway rejects its routes (EnvoyFilter), new rules have no effect",
    "subset without a DestinationRule",
    "STRICT sidecar, DestinationRule tls DISABLE",
    "the backend's certificate expired",
    "fault injection left in a rule (delay)",
    "filter_enforced 0 %",
    "somebody changed one host's DNS weight",
    "a rollback began and did not finish",
)


def test_the_catalogue_is_as_large_as_promised() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert len(CATALOGUE) >= 40
    assert {f.symptom for f in CATALOGUE} == set(SYMPTOMS) - {"lint"}
    assert all(module.__doc__ for module in (faults_backend, faults_gateway, faults_ours))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    before = {name: os.environ.get(name) for name in ("XDG_STATE_HOME", "GATESHIFT_LAB")}
    os.environ["XDG_STATE_HOME"] = str(folder)
    opened = None
    try:
        opened = open_scene("diagnose-test", folder / "outputs", lambda _: None, rate=5.0)
        yield opened
    finally:
        if opened is not None:
            opened.close()
        lab.down("diagnose-test")
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def test_healthy_lab_has_no_finding_of_level_error(scene: Scene) -> None:
    assert [(c.code, c.evidence) for c in healthy(scene, each=False)] == []


@pytest.mark.parametrize("name", SHORT)
def test_cause_of_a_real_symptom_ranks_first(scene: Scene, name: str) -> None:
    fault: Fault = next(f for f in CATALOGUE if f.name == name)
    begun = time.monotonic()
    result = one(scene, fault, settle=min(fault.settle, 1.6))
    assert not result.note, f"{result.note}; a client saw {result.seen}"
    assert result.place == 1, f"ranked {result.place or 'nowhere'}; first: {result.top}"
    assert result.seconds < LIMIT
    assert mended(scene) == ""
    assert time.monotonic() - begun < 120
