"""Traffic-split first and DNS at the end; the way back with a dead API server; Istio-first on a real Envoy.

APISIX's stand-in takes the split through its Admin API, Route 53 the weights; Prometheus has the counters by
which the share is observed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateshift import lab as laboratory
from gateshift.apisix.admin import AdminClient
from gateshift.cluster.client import Cluster
from gateshift.cluster.evidence import sources
from gateshift.lab.state import LabState
from gateshift.migration.journal import Record, read_records
from gateshift.migration.state import Phase, fold
from gateshift.params import load
from gateshift.params.model import ClusterParams, IstioFirstParams
from gateshift.rehearse.director import Director
from gateshift.runbook.inputs import project_root, resolvers
from gateshift.traffic.istio_first import IstioFirstShifter

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAME = "by-both"
DOOR = "127.0.0.80"
"""Where APISIX sends Istio's share: an address of its own, as a load balancer has. All else is 127.0.0.1."""


@pytest.fixture(scope="module")
def lab(state_home: Path) -> Iterator[LabState]:
    before = os.environ.get("GATESHIFT_LAB")
    os.environ["GATESHIFT_LAB"] = NAME
    try:
        yield laboratory.up(NAME, rate=150)
    finally:
        laboratory.down(NAME)
        os.environ.pop("GATESHIFT_LAB")
        if before is not None:
            os.environ["GATESHIFT_LAB"] = before


@pytest.fixture(scope="module")
def relay(lab: LabState) -> Iterator[int]:
    """Listen on DOOR and pass every connection on to the Istio gateway."""
    loop = asyncio.new_event_loop()
    there, _, port = str(lab["istio_http"]).rpartition(":")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while part := await source.read(65536):
                sink.write(part)
                await sink.drain()
        sink.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(there, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def listen() -> int:
        server = await asyncio.start_server(pass_on, DOOR, 0)
        return int(server.sockets[0].getsockname()[1])

    async def end() -> None:
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for one in open_ones:
            one.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def stage(percent: int, dwell: str, **more: Any) -> dict[str, Any]:
    return {"weight_percent": percent, "dwell": dwell, "error_rate_limit_percent": 2.0, **more}


@pytest.fixture(scope="module")
def director(lab: LabState, relay: int, tmp_path_factory: pytest.TempPathFactory) -> Director:
    """A migration that is verified: 15 and 50 % by traffic-split, then DNS."""
    outputs = tmp_path_factory.mktemp("outputs")
    split = {"mechanism": "traffic-split"}
    with AdminClient(lab["admin_url"], lab["admin_key"]) as client:
        routes = [r["value"] for r in client.get("routes")["list"]]
    # One route of the sample splits by itself; it is left out, as the preflight asks for.
    ours = [r["id"] for r in routes if "traffic-split" not in (r.get("plugins") or {})]
    assert len(ours) == len(routes) - 1
    made = Director(
        migration="by-both",
        params_file=str(project_root() / "params" / "lab.yaml"),
        outputs=outputs,
        overrides={
            "outputs": str(outputs),
            "traffic.traffic_split": {"istio_target": DOOR, "port": relay, "routes": ours},
            "verify.generated": 40,
            # The machine may be busy; how fast is not what this test is about.
            "traffic.arrival_timeout": "240s",
            "judge.hold_timeout": "400s",
            "stages": [
                stage(15, "4s", **split),
                stage(50, "4s", **split),
                stage(80, "600s"),
                stage(100, "4s"),
            ],
        },
        narrate=lambda text: sys.stderr.write(f"{text}\n"),
    )
    for verb in ("preflight", "install", "translate", "apply", "verify"):
        made.run(verb)
    return made


def records(director: Director) -> tuple[Record, ...]:
    return read_records(director.folder / "journal.jsonl")


def dns(lab: LabState) -> dict[str, float]:
    answers = httpx.get(f"{lab['route53_url']}/lab/answers", timeout=5, trust_env=False).json()
    found = {
        tuple(sorted((a["target"].split("-")[0], a["weight"]) for a in one["answers"] if a["weight"]))
        for one in answers.values()
    }
    (share,) = found
    return dict(share)


def splits(lab: LabState) -> Counter[int]:
    with AdminClient(lab["admin_url"], lab["admin_key"]) as client:
        found = [r["value"].get("plugins") or {} for r in client.get("routes")["list"]]
    every = [p["traffic-split"]["rules"][0]["weighted_upstreams"] for p in found if "traffic-split" in p]
    ours = [both for both in every if str(both[0].get("upstream_id", "")).startswith("gateshift-istio")]
    return Counter(int(both[0]["weight"]) for both in ours)


def until(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"nothing happened within {seconds:.0f} s"
        time.sleep(0.2)


@contextmanager
def hung(lab: LabState, part: str) -> Iterator[None]:
    """Stop a part without ending it: it takes connections and answers nothing, the worst kind of dead."""
    pid = next(p.pid for p in laboratory.status(lab.name).parts if p.name == part)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_split_for_the_first_stages_then_dns_and_back_without_the_cluster(
    lab: LabState, director: Director
) -> None:
    for number, percent in ((1, 15), (2, 50)):
        director.run("canary", label=f"stage{number}")
        assert set(splits(lab)) == {percent}
        assert set(dns(lab)) == {"apisix"}, "DNS is not touched before its stage"
    seen = [r.data["observed"]["share_percent"] for r in records(director) if r.kind == "verdict"]
    assert seen == [pytest.approx(15, abs=2), pytest.approx(50, abs=2)]

    def by_dns() -> None:
        director.run("canary", label="stage3", expect=frozenset({0, 1, 3, 4, 5}))

    canary = threading.Thread(target=by_dns)
    canary.start()
    arrived = lambda: any(r.kind == "stage.arrived" and r.data["stage"] == 2 for r in records(director))  # noqa: E731
    until(arrived, 240)
    # Of the 50 parts that the split leaves to APISIX, DNS moves 30: 80 % of all requests.
    assert dns(lab) == {"apisix": 20, "istio": 30}
    with hung(lab, "kube-apiserver"):
        begun = time.time()
        command = [str(Path(sys.executable).parent / "gateshift"), "rollback", "-f", director.params_file]
        for key, value in {"migration": director.migration, **director.overrides}.items():
            command += ["-p", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        done = subprocess.run(
            [*command, "--act", "--yes", "--json"], capture_output=True, text=True, timeout=300, check=False
        )
    canary.join(120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dns(lab) == {"apisix": 100}
    assert set(splits(lab)) <= {0}
    book = records(director)
    assert fold(book).phase is Phase.ROLLED_BACK
    last = next(r for r in book if r.kind == "rollback.done")
    assert last.data["seconds_to_users"] is not None
    assert last.data["seconds_to_users"] < 120
    assert last.unix - begun < 300
    assert any("nothing of the cluster" in one for one in last.data["unchecked"]), (
        "it says what it did not check"
    )
    sys.stderr.write(
        f"accepted after {last.data['seconds_to_dns']:.1f} s, "
        f"users back after {last.data['seconds_to_users']:.1f} s\n"
    )


def by_hand(lab: LabState, cluster: Cluster) -> None:
    """A route of its own at both gateways, and APISIX's stand-in behind a Service of the mesh."""
    server = cluster.list("Gateway", "istio-system")[0]["spec"]["servers"][0]
    http = str(lab["apisix_http"]).rpartition(":")
    host = "first.voiceassistant.com"
    meta = {"namespace": "first", "labels": {"app.kubernetes.io/managed-by": "gateshift"}}
    backend = {"host": "catalog-service.voiceassistant-prod.svc.cluster.local", "port": {"number": 9004}}
    door = {"ports": [{"name": "http", "port": 80}], "selector": {"app": "apisix-door"}}
    for obj in (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "first"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "door", "namespace": "first"},
            "spec": door,
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": "door", "namespace": "first"},
            "spec": {"address": http[0], "labels": {"app": "apisix-door"}, "ports": {"http": int(http[2])}},
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "first", "namespace": "istio-system"},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "servers": [
                    {"port": {**server["port"], "name": "http-first", "protocol": "HTTP"}, "hosts": [host]}
                ],
            },
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "first", **meta},
            "spec": {
                "hosts": [host],
                "gateways": ["istio-system/first"],
                "http": [{"name": "catalog", "route": [{"destination": backend}]}],
            },
        },
    ):
        cluster.create(obj)
    route = {
        "host": host,
        "uri": "/api/*",
        "upstream": {"type": "roundrobin", "nodes": {"catalog-service:9004": 1}},
    }
    with AdminClient(lab["admin_url"], lab["admin_key"]) as client:
        client.put("routes/first", route)


def ways(lab: LabState, times: int) -> Counter[str]:
    """Ask the Istio gateway, and count by whom the answer passed."""
    url, headers = f"http://{lab['istio_http']}/api/v1/catalog/skills/1", {"Host": "first.voiceassistant.com"}
    with httpx.Client(trust_env=False, timeout=10) as client:
        got = [client.get(url, headers=headers) for _ in range(times)]
    assert {one.status_code for one in got} == {200}
    return Counter("apisix" if "x-first" in one.headers else "istio" for one in got)


def test_istio_first_sends_requests_back_by_envoys_weights(lab: LabState, director: Director) -> None:
    cluster = Cluster.connect(ClusterParams(kubeconfig=lab["kubeconfig"]))
    by_hand(lab, cluster)
    with AdminClient(lab["admin_url"], lab["admin_key"]) as client:
        # Envoy writes its own Server header over APISIX's; this one says that APISIX was passed.
        client.patch(
            "routes/first", {"plugins": {"response-rewrite": {"headers": {"set": {"X-First": "1"}}}}}
        )
    params = IstioFirstParams.model_validate({"front": "route53"})
    one = IstioFirstShifter(
        params, lambda: cluster, namespace="first", apisix_host="door.first.svc.cluster.local"
    )

    def eventually(wanted: set[str]) -> None:
        def there() -> bool:
            with suppress(AssertionError, httpx.HTTPError):
                return set(ways(lab, 20)) == wanted
            return False

        until(there, 60)

    eventually({"istio"})
    one.set(one.prepare_plan())
    eventually({"apisix"})
    one.set(one.plan(30))
    assert one.read().istio_percent == 30
    eventually({"istio", "apisix"})
    seen = ways(lab, 300)
    assert 55 <= seen["istio"] <= 130, seen  # binomial(300, 0.3): outside with probability 2e-5
    one.set(one.plan(100))
    eventually({"istio"})
    begun = time.monotonic()
    one.set(one.plan(0))
    eventually({"apisix"})
    assert ways(lab, 50) == {"apisix": 50}
    sys.stderr.write(f"back after {time.monotonic() - begun:.1f} s\n")
    kept = sources(load(director.params_file, resolvers=resolvers()))["proxy-config.json"](cluster)
    assert all(json.loads(kept).values())
    assert "first.voiceassistant.com" in kept, "what a rollback keeps is what Envoy really has"
    assert "PRIVATE KEY" not in kept
