"""``70_cleanup`` on real parts, as the least-privilege account: refusals, deletion, and the way back.

Then STRICT mutual TLS: by a real sidecar's metrics first, and undone by the command that its plan names.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from gateshift import lab
from gateshift.cluster import acceptance, apply, install
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import title_of
from gateshift.errors import Blocked, ClusterError, GateClosed, GateshiftError, NotEnoughEvidence
from gateshift.lab import topology
from gateshift.lab.sidecars import Sidecar
from gateshift.lab.state import LabState
from gateshift.migration.state import Phase
from gateshift.params import Params
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.cleanup import Cleanup
from gateshift.runbook.inputs import resolvers
from tests.archive import story
from tests.cluster.operating import PARAMS, SHOP, Users, added, gateway, item, own_lab, until, virtual_service

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAME = "goodbye"
WINDOW = 10.0
MESHED = "meshed"
HOST = f"{MESHED}.voiceassistant.com"


@dataclass
class World:
    """A lab whose Istio serves; every migration on it is at its end, as its journal tells."""

    running: LabState
    params: Params
    folder: Path
    cluster: Cluster
    admin: Cluster
    stable: bool = True
    count: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> Params:
        """A new migration that was promoted and ran stable; the one before is forgotten."""
        lab.forget_migrations(self.running.name)
        self.count += 1
        params = self.params.model_copy(update={"migration": f"m{self.count}", **self.changes})
        records = [*story.promoted(), *(STABLE if self.stable else ())]
        story.write(self.folder / params.migration / "journal.jsonl", iter(records))
        return params

    def dns(self, *, to: str) -> None:
        """All hosts point to one load balancer, by one simple record each."""
        for host in topology.HOSTS:
            self.record("UPSERT", host, to)

    def record(self, action: str, name: str, target: str) -> None:
        client: Any = boto3.client(
            "route53",
            endpoint_url=self.running["route53_url"],
            region_name="us-east-1",
            aws_access_key_id="lab",
            aws_secret_access_key="lab",
        )
        alias = {"HostedZoneId": topology.LB_ZONE_ID, "DNSName": f"{target}.", "EvaluateTargetHealth": False}
        change = {
            "Action": action,
            "ResourceRecordSet": {"Name": f"{name}.", "Type": "A", "AliasTarget": alias},
        }
        client.change_resource_record_sets(
            HostedZoneId=self.running["zone_id"], ChangeBatch={"Changes": [change]}
        )

    def old(self) -> int:
        """One request to the old gateway, as a client with an old answer of DNS."""
        target = self.running["connect_to"][f"{self.running['apisix_lb_name']}:80"]
        url, head = f"http://{target}/api/v1/auth/login", {"host": topology.HOST_API}
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.post(url, headers=head, json={"user": "probe"}).status_code


STABLE: tuple[tuple[str, dict[str, Any]], ...] = (("soak.sample", {"stable": True}), ("soak.done", {}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch, own_lab(NAME, tmp_path_factory.mktemp("state")) as running:
        patch.setenv("GATESHIFT_RUN", "cleanup-0")
        given = {"mode": "act", "outputs": str(folder), "confirm_namespace": "apisix", "migration": "m0"}
        params = load(PARAMS, overrides=given, resolvers=resolvers())
        soak = params.soak.model_copy(update={"sample_every": WINDOW})
        probe = params.verify.probes[0].model_copy(update={"name": MESHED, "host": HOST})
        verify = params.verify.model_copy(update={"probes": (probe,)})
        params = params.model_copy(update={"soak": soak, "verify": verify})
        cluster = Cluster.connect(params.cluster)
        install.execute(install.plan(params, cluster), params, cluster)
        side = Sidecar(running, MESHED, "127.0.0.9", running["backends"]["identity-service"], 9020)
        side.start()
        objects = [gateway(), virtual_service("a"), virtual_service(MESHED, to=MESHED, port=9020)]
        apply.execute(cluster, objects, apply.plan(cluster, objects))
        acceptance.wait_in_sync(params, cluster, objects)
        admin = Cluster.connect(ClusterParams(kubeconfig=running["kubeconfig"]))
        try:
            yield World(running, params, folder, cluster, admin)
        finally:
            side.stop()


@contextmanager
def still_in_dns(w: World) -> Iterator[None]:
    w.record("UPSERT", topology.HOST_API, topology.APISIX_LB_NAME)
    yield
    w.record("UPSERT", topology.HOST_API, topology.ISTIO_LB_NAME)


@contextmanager
def another_name(w: World) -> Iterator[None]:
    w.record("CREATE", f"old.{topology.ZONE}", topology.APISIX_LB_NAME)
    yield
    w.record("DELETE", f"old.{topology.ZONE}", topology.APISIX_LB_NAME)


@contextmanager
def not_stable(w: World) -> Iterator[None]:
    w.stable = False
    yield
    w.stable = True


@contextmanager
def served(w: World) -> Iterator[None]:
    for _ in range(5):
        assert w.old() == 200
        time.sleep(1.1)
    yield
    time.sleep(WINDOW)  # the next case asks about a time without requests


@contextmanager
def nothing_known(w: World) -> Iterator[None]:
    w.changes["metrics"] = w.params.metrics.model_copy(update={"apisix_selector": 'instance="gone"'})
    yield
    w.changes.clear()


def an_alias(w: World) -> Any:
    spec = {"type": "ExternalName", "externalName": "apisix-gateway.apisix.svc.cluster.local"}
    return added(w.admin, item("v1", "Service", "checkout", SHOP, spec=spec))


def a_route(w: World) -> Any:
    to = {"destination": {"host": "apisix-gateway.apisix.svc.cluster.local"}}
    spec = {"hosts": ["old.example.com"], "http": [{"route": [to]}]}
    return added(w.admin, item("networking.istio.io/v1", "VirtualService", "back", SHOP, spec=spec))


def another_workload(w: World) -> Any:
    labels = {"app": "reports"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "reports", "image": "reports"}]}}
    spec = {"selector": {"matchLabels": labels}, "template": pod}
    return added(w.admin, item("apps/v1", "Deployment", "reports", "apisix", spec=spec))


def an_ingress(w: World) -> Any:
    backend = {"service": {"name": "identity-service", "port": {"number": 9000}}}
    rule = {
        "host": "shop.example.com",
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    kind = item(
        "networking.k8s.io/v1", "IngressClass", "apisix", "", spec={"controller": "apisix.apache.org/c"}
    )
    used = item(
        "networking.k8s.io/v1", "Ingress", "shop", SHOP, spec={"ingressClassName": "apisix", "rules": [rule]}
    )
    return added(w.admin, kind, used)


def a_volume(w: World) -> Any:
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Delete",
        "hostPath": {"path": "/var/nothing"},
        "claimRef": {"namespace": "apisix", "name": "data-etcd-0"},
    }
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": "etcd-0",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    volume = item("v1", "PersistentVolume", "etcd-0", "", spec=spec)
    return added(w.admin, volume, item("v1", "PersistentVolumeClaim", "data-etcd-0", "apisix", spec=claim))


@contextmanager
def another_name_typed(w: World) -> Iterator[None]:
    w.changes["confirm_namespace"] = "apisix-old"
    yield
    w.changes.clear()


@contextmanager
def another_namespace(w: World) -> Iterator[None]:
    assert w.params.traffic.route53
    named = w.params.traffic.route53.model_copy(update={"apisix_target": topology.APISIX_LB_NAME})
    w.changes |= {
        "apisix": w.params.apisix.model_copy(update={"namespace": SHOP}),
        "traffic": w.params.traffic.model_copy(update={"route53": named}),
        "confirm_namespace": SHOP,
    }
    yield
    w.changes.clear()


CASES: dict[str, tuple[Callable[[World], Any], type[GateshiftError], str]] = {
    "stable days not on record": (not_stable, Blocked, "not due"),
    "DNS still points there": (still_in_dns, Blocked, "DNS still sends traffic to APISIX"),
    "another name points there": (another_name, Blocked, rf"old\.{topology.ZONE} still point to APISIX"),
    "APISIX still sees traffic": (served, Blocked, r"APISIX still served \d+ requests"),
    "not known whether it sees traffic": (nothing_known, NotEnoughEvidence, "is not known"),
    "an alias of another namespace": (an_alias, Blocked, f"Service {SHOP}/checkout is an alias of"),
    "a route of the mesh": (a_route, Blocked, f"VirtualService {SHOP}/back sends to apisix-gateway"),
    "an Ingress of its class": (an_ingress, Blocked, f"Ingress {SHOP}/shop"),
    "a workload of somebody else": (another_workload, Blocked, "reports is not a part of APISIX"),
    "a volume that would be destroyed": (a_volume, Blocked, "volume etcd-0 would be destroyed"),
    "another name typed": (another_name_typed, GateClosed, "not typed"),
    "a namespace that holds more": (another_namespace, Blocked, "holds more than APISIX"),
}


_RUNS = itertools.count(1)


def through(params: Params, **extra: Any) -> Cleanup:
    """The notebook's cells, one after another; approved is the digest that a run in mode plan showed."""
    os.environ["GATESHIFT_RUN"] = f"cleanup-{next(_RUNS)}"
    shown = Cleanup(params.model_copy(update={"mode": type(params.mode).PLAN}), extra)
    try:
        shown.read()
        shown.plan()
    finally:
        shown.close()
    assert shown.plan_
    runbook = Cleanup(params.model_copy(update={"approve": shown.plan_.digest, "approver": "lab"}), extra)
    try:
        runbook.read()
        runbook.plan()
        runbook.gate()
        runbook.act()
        runbook.verify()
    finally:
        runbook.close()
    return runbook


def kept(w: World) -> set[str]:
    kinds = ("Deployment", "Service", "ConfigMap", "Secret", "ServiceAccount", "PersistentVolumeClaim")
    return {f"{title_of(o)} {o['metadata']['uid']}" for kind in kinds for o in w.admin.list(kind, "apisix")}


def go(runbook: Cleanup) -> None:
    runbook.read()
    runbook.perform(runbook.make_plan())


@pytest.mark.parametrize("case", CASES)
def test_it_refuses(world: World, case: str) -> None:
    inject, error, said = CASES[case]
    world.dns(to=topology.ISTIO_LB_NAME)
    with inject(world):
        before = kept(world)
        params = world.begin()
        runbook = Cleanup(params, {})
        try:
            with pytest.raises(error, match=said):
                go(runbook)
            records = [r.kind for r in runbook.context.journal.records]
        finally:
            runbook.close()
        assert before
        assert kept(world) == before
        assert "cleanup.intent" not in records


def test_it_deletes_restores_and_traffic_flows_all_the_time(world: World) -> None:
    world.dns(to=topology.ISTIO_LB_NAME)
    params = world.begin()
    secret = item("v1", "Secret", "apisix-admin", "apisix", type="Opaque", stringData={"key": "sesame-7f3a"})
    world.admin.create(secret)
    before = {o["metadata"]["name"]: o["spec"] for o in world.admin.list("Deployment", "apisix")}
    with Users(world.running, "a.voiceassistant.com") as users:
        assert users.more()
        done = through(params)
        assert world.admin.get("Namespace", "apisix") is None
        assert done.context.state.phase is Phase.CLEANED
        assert users.more()
        back = through(params, undo=True)
        assert back.context.state.phase is Phase.SOAKED
        assert users.more()
    assert set(users.answers) == {200}
    assert {o["metadata"]["name"]: o["spec"] for o in world.admin.list("Deployment", "apisix")} == before

    again = world.admin.get("Secret", "apisix-admin", "apisix")
    assert again
    assert base64.b64decode(again["data"]["key"]) == b"sesame-7f3a"
    archived = [f for f in (world.folder / params.migration).rglob("*") if f.is_file()]
    assert any(f.name == "export.yaml" for f in archived)
    for file in archived:
        held = file.read_bytes()
        assert b"sesame-7f3a" not in held
        assert base64.b64encode(b"sesame-7f3a") not in held

    def serves() -> bool:
        service = world.admin.get("Service", "apisix-gateway", "apisix") or {}
        pods = world.admin.get("Deployment", "apisix", "apisix") or {}
        ready = pods.get("status", {}).get("readyReplicas", 0) == pods.get("spec", {}).get("replicas")
        return bool(ready and service.get("status", {}).get("loadBalancer", {}).get("ingress"))

    assert until(serves, 60)
    world.dns(to=topology.APISIX_LB_NAME)
    assert world.old() == 200
    world.dns(to=topology.ISTIO_LB_NAME)
    time.sleep(WINDOW)  # it served a moment ago; that would be refused
    assert through(params).context.state.phase is Phase.CLEANED


# -- STRICT, in the order of the file: refused for each reason, then applied, then taken back ---------------


def strict(world: World, **changes: Any) -> Cleanup:
    params = world.params.model_copy(update={"migration": f"m{world.count}", **changes})
    return through(params, strict_mtls=True)


def plaintext(count: int) -> Callable[[World], list[int]]:
    """Requests straight to the sidecar without a certificate, as a pod outside the mesh sends them."""

    def send(world: World) -> list[int]:
        address = sidecar_address(world)
        with httpx.Client(trust_env=False, timeout=5) as client:
            body, url = {"user": "cron"}, f"http://{address}/api/v1/auth/login"
            return [client.post(url, json=body).status_code for _ in range(count)]

    return send


def sidecar_address(world: World) -> str:
    spec = (world.admin.get("WorkloadEntry", MESHED, SHOP) or {})["spec"]
    return f"{spec['address']}:{spec['ports']['http']}"


def cut_off(world: World) -> bool:
    try:
        plaintext(1)(world)
    except httpx.HTTPError:
        return True
    return False


def refused(world: World, error: type[GateshiftError], said: str) -> None:
    with pytest.raises(error, match=said):
        strict(world)
    assert world.admin.list("PeerAuthentication") == []


def test_strict_is_not_due_before_apisix_is_gone(world: World) -> None:
    params = world.begin()
    runbook = Cleanup(params, {"strict_mtls": True})
    with pytest.raises(Blocked, match=r"\(strict\) is not due"):
        runbook.read()
    runbook.close()
    story.write(
        world.folder / params.migration / "journal.jsonl",
        iter([("cleanup.intent", {"export": "none"}), ("cleanup.done", {"deleted": 0})]),
    )


def test_strict_refuses_pods_without_a_sidecar(world: World) -> None:
    refused(world, Blocked, "there are no pods")
    labels = {"app": "shop-front"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "front", "image": "front"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": pod}
    world.admin.create(item("apps/v1", "Deployment", "shop-front", SHOP, spec=spec))

    def pods() -> list[str]:
        return [p["metadata"]["name"] for p in world.admin.list("Pod", SHOP)]

    assert until(lambda: len(pods()) == 2, 60)
    refused(world, Blocked, "2 of 2 pods have no sidecar")
    # As its hint says: label the namespace, restart; istiod's real webhook puts the sidecars in.
    home = world.admin.get("Namespace", SHOP)
    assert home
    home["metadata"]["labels"]["istio-injection"] = "enabled"
    world.admin.update(home)
    old = set(pods())
    run(world, f"kubectl -n {SHOP} rollout restart deployment")
    assert until(lambda: len(pods()) == 2 and not old & set(pods()), 60)


def run(world: World, command: str) -> None:
    """Type a command that we name to operators, as an operator with rights of his own."""
    program, *arguments = shlex.split(command)
    assert program == "kubectl"
    subprocess.run(
        [world.params.istio.kubectl, *arguments, "--kubeconfig", world.running["kubeconfig"]],
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_strict_refuses_when_nothing_was_measured(world: World) -> None:
    refused(world, NotEnoughEvidence, "no request over mutual TLS was measured")


def test_strict_refuses_after_a_single_plaintext_request(world: World) -> None:
    with Users(world.running, HOST) as users:
        assert users.more()
        assert plaintext(1)(world) == [200]
        time.sleep(3)  # scraped each second
        refused(world, Blocked, rf"plaintext still arrives in {SHOP}, from unknown/unknown \(1\)")
        time.sleep(WINDOW)
    assert set(users.answers) == {200}


def test_strict_is_applied_and_undone_by_the_way_back_that_its_plan_names(world: World) -> None:
    with Users(world.running, HOST) as users:
        assert users.more()
        time.sleep(3)
        done = strict(world)
        (policy,) = world.admin.list("PeerAuthentication", SHOP)
        assert policy["spec"] == {"mtls": {"mode": "STRICT"}}
        assert until(lambda: cut_off(world), 30)
        assert users.more(60)
        recorded = [r.data["plan"] for r in done.context.journal.records if r.kind == "plan.shown"][-1]
        found = re.search(r"`(kubectl [^`]+)`", recorded["way_back"])
        assert found
        run(world, found[1])
        assert world.admin.list("PeerAuthentication", SHOP) == []
        assert until(lambda: not cut_off(world), 30)
        assert users.more()
    assert set(users.answers) == {200}


def test_strict_is_taken_back_when_a_probe_fails(world: World) -> None:
    """A second name of the same pods, to which the gateway is told to speak plaintext; nobody used it yet."""
    entry = world.admin.get("WorkloadEntry", MESHED, SHOP)
    assert entry
    port = {"name": "http", "port": 9021, "targetPort": entry["spec"]["ports"]["http"]}
    service = item("v1", "Service", "by-probe", SHOP, spec={"selector": {"app": MESHED}, "ports": [port]})
    route = virtual_service("by-probe", to="by-probe", port=9021)
    policy = {"host": f"by-probe.{SHOP}.svc.cluster.local", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}
    rule = item("networking.istio.io/v1", "DestinationRule", "by-probe", SHOP, spec=policy)
    probe = world.params.verify.probes[0].model_copy(update={"host": "by-probe.voiceassistant.com"})
    verify = world.params.verify.model_copy(update={"probes": (probe,)})
    with added(world.admin, service, route, rule), Users(world.running, HOST) as users:
        acceptance.wait_in_sync(world.params, world.cluster, [route, rule])
        time.sleep(WINDOW)  # the plaintext of the test before is out of sight
        with pytest.raises(ClusterError, match=r"after STRICT probe meshed.*everything was restored"):
            strict(world, verify=verify)
        assert world.admin.list("PeerAuthentication") == []
        assert until(lambda: not cut_off(world), 30)
        assert users.more()
    assert set(users.answers) == {200}
