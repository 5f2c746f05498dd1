"""An install that is killed between two of its writes, and repeated, ends as one that was left alone.

The installing process reaches the API server through a door that holds its Nth write back: there it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster import install, uninstall
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import Object, title_of, unmasked
from gateshift.cluster.ownership import owner_selector
from gateshift.errors import Blocked
from gateshift.lab.state import LabState
from gateshift.params import Params
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.inputs import resolvers
from tests.cluster.door import Door, door, number_of
from tests.cluster.operating import GATEWAY, PARAMS, own_lab, until

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAME = "killed"
CHILD = """
import sys
from gateshift.cluster import install
from gateshift.cluster.client import Cluster
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.inputs import resolvers
params = load(sys.argv[1], overrides={"migration": "killed"}, resolvers=resolvers())
params = params.model_copy(
    update={"cluster": params.cluster.model_copy(update={"kubeconfig": sys.argv[2]})}
)
cluster = Cluster.connect(params.cluster)
install.execute(install.plan(params, cluster), params, cluster)
"""

POINTS = {
    "namespace": "/api/v1/namespaces",
    "a definition in the middle": "customresourcedefinitions/sidecars.networking.istio.io",
    "istiod": "/deployments/istiod",
    "gateway": f"/deployments/{GATEWAY}",
    "validator of the default revision": "validatingwebhookconfigurations/istiod-default-validator",
}
WAYS = ("SIGKILL to all", "SIGTERM to all", "SIGKILL to ours, istioctl goes on")


@dataclass
class World:
    """A lab without Istio, and what an install that nobody disturbed makes of it."""

    params: Params
    running: LabState
    door: Door
    kubeconfig: str
    reference: dict[str, Any]
    writes: list[str]
    last: int

    @property
    def cluster(self) -> Cluster:
        """A connection of its own each time, as each run has: which kinds are served changes in between."""
        return Cluster.connect(self.params.cluster)

    def kill(self, at: int, way: str) -> None:
        """Begin an install and end it while its write number *at* has not reached the API server."""
        self.door.arm(at)
        child = begin(self.kubeconfig)
        self.last = child.pid
        try:
            assert until(lambda: self.door.held.is_set() or child.poll() is not None, 180), self.door.writes
            assert child.poll() is None, child.stderr and child.stderr.read()
        finally:
            if way == WAYS[2]:
                child.kill()
            else:
                os.killpg(child.pid, signal.SIGKILL if way == WAYS[0] else signal.SIGTERM)
            child.wait()
            if way != WAYS[2]:
                assert until(lambda: not group_lives(self.last), 20), "istioctl outlived the signal"
            self.door.release()

    def repeat(self) -> None:
        """Install again; while an istioctl of before still works, the plan is overtaken and made anew."""
        for _ in range(20):
            with contextlib.suppress(Blocked):
                cluster = self.cluster
                install.execute(install.plan(self.params, cluster), self.params, cluster)
                break
        assert install.plan(self.params, self.cluster).steps == ()
        assert until(lambda: standing(self.params, self.cluster) == self.reference, 60), differing(
            standing(self.params, self.cluster), self.reference
        )

    def remove(self) -> None:
        assert until(lambda: not group_lives(self.last), 60), "an istioctl of before still works"
        empty(self.params, self.running)


def begin(kubeconfig: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(PARAMS), kubeconfig]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def group_lives(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def standing(params: Params, cluster: Cluster) -> dict[str, Any]:
    """Everything of this installation as it is in the cluster, without what others write into it."""
    found = {}
    for kind in (*uninstall._KINDS, uninstall._LAST_KIND, "CustomResourceDefinition"):
        for one in cluster.list(kind, labels=owner_selector(params)):
            found[title_of(one)] = bare(one)
    return found


def bare(obj: Object) -> Object:
    out = unmasked(obj) or {}
    out["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
    for hook in out.get("webhooks") or []:
        hook["clientConfig"].pop("caBundle", None)  # istiod's, made anew with each installation
    spec = out.get("spec", {})
    if out["kind"] == "Deployment":
        spec.pop("replicas", None)  # the autoscaler's
    if out["kind"] == "Service":
        for name in ("clusterIP", "clusterIPs", "healthCheckNodePort"):
            spec.pop(name, None)
        for port in spec.get("ports") or []:
            port.pop("nodePort", None)
    return out


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(t for t in one.keys() | other.keys() if one.get(t) != other.get(t))


def empty(params: Params, running: LabState) -> None:
    """Uninstall; then the lab's own objects of Istio's kinds go, and the definitions that they kept."""
    for _ in range(2):
        cluster = Cluster.connect(params.cluster)
        plan = uninstall.plan(params, cluster)
        if plan.steps:
            uninstall.execute(plan, params, cluster)
        admin = Cluster.connect(ClusterParams(kubeconfig=running["kubeconfig"]))
        for kind in ("EnvoyFilter", "WorkloadEntry"):
            for obj in admin.list(kind) if admin.serves(kind) else ():
                admin.delete(kind, obj["metadata"]["name"], obj["metadata"]["namespace"])
    assert standing(params, cluster) == {}
    # The lab's certificate keeps the namespace; the next install begins at nothing.
    admin.delete("Namespace", "istio-system")
    assert until(lambda: admin.get("Namespace", "istio-system") is None, 90)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("door")
    with own_lab(NAME, tmp_path_factory.mktemp("state")) as running, _door(running, place) as before:
        params = load(PARAMS, overrides={"migration": NAME}, resolvers=resolvers())
        cluster = Cluster.connect(params.cluster)
        kubeconfig = before.kubeconfig(running["operator_kubeconfig"], place / "kubeconfig")
        before.arm(0)
        child = begin(kubeconfig)
        _, said = child.communicate(timeout=240)
        assert child.returncode == 0, said
        writes = list(before.writes)
        assert len(writes) > 30
        wanted = {title_of(o) for o in install.manifests(params)}
        assert until(lambda: wanted <= set(standing(params, cluster)), 10)
        found = World(params, running, before, kubeconfig, standing(params, cluster), writes, child.pid)
        found.repeat()  # a second install changes nothing
        found.remove()
        yield found


@contextlib.contextmanager
def _door(running: LabState, place: Path) -> Iterator[Door]:
    with door(running["api_url"], running.directory / "pki" / "ca.crt", place) as found:
        yield found


@pytest.mark.parametrize(
    ("point", "way"),
    [
        ("a definition in the middle", WAYS[0]),
        ("gateway", WAYS[1]),
        ("namespace", WAYS[0]),
        ("istiod", WAYS[1]),
        ("istiod", WAYS[2]),
        ("validator of the default revision", WAYS[0]),
    ],
)
def test_killed_and_repeated_it_ends_in_the_same_state(world: World, point: str, way: str) -> None:
    world.kill(number_of(world.writes, POINTS)[point], way)
    if way != WAYS[2]:
        assert standing(world.params, world.cluster) != world.reference
    world.repeat()
    world.remove()


def test_killed_and_removed_nothing_is_left(world: World) -> None:
    """The other way back of a half install."""
    for point in ("a definition in the middle", "istiod"):
        world.kill(number_of(world.writes, POINTS)[point], WAYS[0])
        assert standing(world.params, world.cluster)
        world.remove()


def test_killed_before_each_of_its_writes_in_turn(world: World) -> None:
    """Each install is killed one write later than the one before, on what that one left behind."""
    for at in range(1, len(world.writes) + 1):
        world.kill(at, WAYS[at % 2])
        made = set(standing(world.params, world.cluster))
        assert made <= set(world.reference)
        assert (made == set(world.reference)) <= (at == len(world.writes)), at
    print(f"killed before each of {len(world.writes)} writes")
    world.repeat()
    world.remove()
