"""One lab for the tests that are marked ``lab``; nothing of it is left afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateshift import lab
from gateshift.lab.state import LabState


@pytest.fixture(scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder of our own, so that a lab of the user's is never touched."""
    home = tmp_path_factory.mktemp("state")
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="module")
def running(state_home: Path) -> Iterator[LabState]:
    """A lab that is up, without Istio."""
    state = lab.up("test", rate=0)
    try:
        yield state
    finally:
        lab.down("test")
