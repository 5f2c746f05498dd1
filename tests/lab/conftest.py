"""One lab for the tests that are marked ``lab``; nothing of it is left afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateshift import lab
from gateshift.cluster.client import Cluster
from gateshift.lab.state import LabState
from gateshift.params.model import ClusterParams
from tests.lab.both_gateways import TARGET, Backends, Loop

if TYPE_CHECKING:
    from tests.lab.test_controlplane_lab import Tools


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


@pytest.fixture(scope="module")
def cluster(tools: Tools) -> Cluster:
    """Return the cluster of the module's ``tools``, with a namespace for what is translated."""
    found = Cluster.connect(ClusterParams(kubeconfig=tools.state["kubeconfig"]))
    found.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TARGET.namespace}})
    return found


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


@pytest.fixture(scope="module")
def backends(loop: Loop) -> Iterator[Backends]:
    found = Backends(loop)
    yield found
    found.close()
