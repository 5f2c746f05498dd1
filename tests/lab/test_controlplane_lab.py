"""The lab's control plane, Istio and Prometheus as one: everything here is the real program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
import yaml

from gateshift import lab
from gateshift.errors import LabError
from gateshift.lab import topology
from gateshift.lab.state import LabState, alive, load, resolver

pytestmark = pytest.mark.lab

NAMESPACE = topology.APPLICATION_NAMESPACE
OPERATOR: dict[str, Any] = {
    "apiVersion": "install.istio.io/v1alpha1",
    "kind": "IstioOperator",
    "spec": {"profile": "default"},
}
GATEWAY = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "main", "namespace": NAMESPACE},
    "spec": {
        "selector": {"istio": "ingressgateway"},
        "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*.voiceassistant.com"]}
        ],
    },
}


def route(name: str, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"hosts": [topology.HOST_API], "gateways": ["main"], "http": [rule]},
    }


IDENTITY = {
    "route": [
        {
            "destination": {
                "host": f"identity-service.{NAMESPACE}.svc.cluster.local",
                "port": {"number": 9000},
            }
        }
    ]
}


class Tools:
    """kubectl, istioctl and Prometheus of one lab."""

    def __init__(self, state: LabState, folder: Path) -> None:
        self.state, self.folder = state, folder

    def run(self, tool: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.state[tool], *arguments],
            env={**os.environ, "KUBECONFIG": self.state["kubeconfig"]},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def apply(self, *items: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return self.run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump_all(items))

    def install(self) -> subprocess.CompletedProcess[str]:
        operator = json.loads(json.dumps(OPERATOR))
        ports = [
            {"name": "status-port", "port": 15021, "targetPort": 15021},
            {"name": "http2", "port": 80, "targetPort": self.state["http_target_port"]},
            {"name": "https", "port": 443, "targetPort": self.state["https_target_port"]},
        ]
        operator["spec"]["components"] = {
            "ingressGateways": [
                {"name": "istio-ingressgateway", "enabled": True, "k8s": {"service": {"ports": ports}}}
            ]
        }
        path = self.folder / "operator.yaml"
        path.write_text(yaml.safe_dump(operator))
        return self.run("istioctl", "install", "-y", "-f", str(path), "--readiness-timeout", "60s")

    def get(self, path: str, method: str = "POST") -> int:
        url = f"http://{self.state['istio_http']}{path}"
        headers = {"Host": topology.HOST_API}
        try:
            return httpx.request(method, url, headers=headers, timeout=5, trust_env=False).status_code
        except httpx.HTTPError:
            return 0

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(
            f"{self.state['prometheus_url']}/api/v1/query",
            params={"query": expression},
            timeout=5,
            trust_env=False,
        )
        return list(answer.json()["data"]["result"])

    def value(self, expression: str) -> float:
        return sum(float(r["value"][1]) for r in self.query(expression))

    def pod(self) -> str:
        found = self.run(
            "kubectl", "get", "pods", "-n", "istio-system", "-l", "istio=ingressgateway", "-o", "name"
        )
        return found.stdout.split()[0].removeprefix("pod/")


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def tools(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    tools = Tools(running, tmp_path_factory.mktemp("tools"))
    installed = tools.install()
    assert installed.returncode == 0, installed.stdout + installed.stderr
    api = route("api", {"match": [{"uri": {"prefix": "/api/v1/auth"}}], **IDENTITY})
    limited = {"match": [{"uri": {"prefix": "/limited"}}], "directResponse": {"status": 429}}
    api["spec"]["http"].append(limited)
    applied = tools.apply(GATEWAY, api)
    assert applied.returncode == 0, applied.stderr
    assert eventually(lambda: tools.get("/api/v1/auth/login") == 200), tools.state.directory
    return tools


def test_up_again_returns_the_same_lab(running: LabState) -> None:
    assert lab.up("test").supervisor == running.supervisor


def test_load_balancers_have_hostnames(tools: Tools) -> None:
    found = tools.run("kubectl", "get", "service", "-A", "-o", "json")
    names = {
        s["metadata"]["name"]: s["status"]["loadBalancer"]["ingress"][0]["hostname"]
        for s in json.loads(found.stdout)["items"]
        if s["spec"]["type"] == "LoadBalancer"
    }
    assert names == {
        "apisix-gateway": topology.APISIX_LB_NAME,
        "istio-ingressgateway": topology.ISTIO_LB_NAME,
    }


def test_requests_pass_envoy_and_all_count(tools: Tools) -> None:
    assert eventually(lambda: tools.value('istio_requests_total{response_code="200"}') > 0)
    ok = 'istio_requests_total{response_code="200",source_workload="istio-ingressgateway"}'
    lost = 'istio_requests_total{response_code="404",destination_service="unknown",response_flags="NR"}'
    before = tools.value(ok)
    assert [tools.get("/api/v1/auth/login") for _ in range(7)] == [200] * 7
    assert [tools.get("/nowhere") for _ in range(5)] == [404] * 5
    assert [tools.get("/limited") for _ in range(3)] == [429] * 3
    assert eventually(lambda: tools.value(ok) == before + 7)
    assert eventually(lambda: tools.value('istio_requests_total{response_code="429"}') == 3)
    assert eventually(lambda: tools.value(lost) == 5)
    labels = tools.query(ok)[0]["metric"]
    assert labels["destination_service"] == f"identity-service.{NAMESPACE}.svc.cluster.local"
    assert labels["destination_service_name"] == "identity-service"
    assert labels["destination_service_namespace"] == NAMESPACE
    assert labels["reporter"] == "source"
    assert labels["request_protocol"] == "http"
    assert not any(name.startswith("upstream") for name in labels)
    buckets = {r["metric"]["le"] for r in tools.query("istio_request_duration_milliseconds_bucket")}
    assert {0.5, 50.0, 1000.0, float("inf")} <= {float(b) for b in buckets}  # Prometheus 3 writes 50.0
    durations = 'istio_request_duration_milliseconds_count{response_code="404"}'
    assert eventually(lambda: tools.value(durations) == 5, 4)


def test_admission_refuses_an_invalid_virtual_service(tools: Tools) -> None:
    bad = route("bad", {**IDENTITY, "redirect": {"uri": "/elsewhere"}})
    answer = tools.apply(bad)
    assert answer.returncode != 0
    assert "HTTP route cannot contain both route and redirect" in answer.stderr


def test_certificates_come_from_istiod(tools: Tools) -> None:
    certs = httpx.get(f"http://{tools.state['envoy_admin']}/certs", timeout=5, trust_env=False).json()
    names = {
        n.get("uri", "")
        for c in certs["certificates"]
        for chain in c["cert_chain"]
        for n in chain["subject_alt_names"]
    }
    assert "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account" in names


def test_istioctl_and_kubectl_reach_the_pods(tools: Tools) -> None:
    pod = tools.pod()
    routes = tools.run("istioctl", "proxy-config", "routes", f"{pod}.istio-system")
    assert f"api.{NAMESPACE}" in routes.stdout, routes.stderr
    status = tools.run("istioctl", "proxy-status")
    assert "1.31.0" in status.stdout, status.stderr
    logs = tools.run("kubectl", "logs", "-n", "istio-system", pod)
    assert "Envoy proxy is ready" in logs.stdout, logs.stderr


def test_installing_twice_changes_nothing(tools: Tools) -> None:
    pod, parts = tools.pod(), {p.name: p.pid for p in load("test").parts}
    again = tools.install()
    assert again.returncode == 0, again.stdout + again.stderr
    assert tools.pod() == pod
    assert {p.name: p.pid for p in load("test").parts} == parts
    assert tools.get("/api/v1/auth/login") == 200


def test_lab_values_resolve(running: LabState) -> None:
    value = resolver("test")
    assert value("kubeconfig") == running["kubeconfig"]
    connect = running["connect_to"]
    assert connect[f"{topology.ISTIO_LB_NAME}:80"] == running["istio_http"]
    with pytest.raises(KeyError):
        value("nothing")
    with pytest.raises(KeyError):
        resolver("another")("kubeconfig")


def test_everything_listens_on_loopback_except_the_agents_status_port(tools: Tools) -> None:
    pids = {tools.state.supervisor.pid} if tools.state.supervisor else set()
    for pid in list(pids):
        pids |= {c.pid for c in psutil.Process(pid).children(recursive=True)}
    outside = set()
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.pid in pids:
            assert connection.laddr
            address = connection.laddr.ip.removeprefix("::ffff:")
            if not address.startswith("127.") and address != "::1":
                outside.add((psutil.Process(connection.pid).name(), address))
    # pilot-agent binds its status port on every address and has no setting for it.
    assert {name for name, _ in outside} <= {"pilot-agent"}, outside


def test_a_killed_envoy_stays_down_until_its_pod_is_replaced(tools: Tools) -> None:
    (envoy,) = [p for p in load("test").parts if p.name == "gateway-envoy"]
    os.kill(envoy.pid, signal.SIGKILL)
    assert eventually(lambda: bool(load("test").crashed))
    assert not alive(envoy.pid, envoy.created)
    time.sleep(3)
    assert tools.get("/api/v1/auth/login") == 0

    def counted() -> int:
        ready = tools.run(
            "kubectl", "get", "deployment", "-n", "istio-system", "istio-ingressgateway", "-o", "json"
        )
        return int(json.loads(ready.stdout)["status"].get("readyReplicas", 0))

    assert eventually(lambda: counted() == 0)
    tools.run("kubectl", "delete", "pod", "-n", "istio-system", "-l", "istio=ingressgateway", "--wait=false")
    assert eventually(lambda: tools.get("/api/v1/auth/login") == 200, 40)


def test_uninstall_stops_the_programs(tools: Tools) -> None:
    removed = tools.run("istioctl", "uninstall", "--purge", "-y")
    assert removed.returncode == 0, removed.stderr
    assert eventually(lambda: {p.name for p in load("test").parts}.isdisjoint({"istiod", "gateway"}))
    assert tools.get("/api/v1/auth/login") == 0


def test_kill_9_of_the_supervisor_leaves_no_process(state_home: Path) -> None:
    state = lab.up("orphan")
    try:
        assert state.supervisor is not None
        pids = [(p.pid, p.created) for p in state.parts]
        assert len(pids) > 7
        os.kill(state.supervisor.pid, signal.SIGKILL)
        assert eventually(lambda: not any(alive(*p) for p in pids), 10)
        assert not load("orphan").running
    finally:
        assert lab.down("orphan")
    assert not (state_home / "gateshift" / "lab" / "orphan").exists()
    assert not lab.down("orphan")


def test_a_part_that_cannot_start_is_reported_with_its_log(state_home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "apisix.yaml"
    broken.write_text("routes: [{id: 1, uri: }\n")
    with pytest.raises(LabError, match="oldgateway ended with code") as caught:
        lab.up("broken", config=str(broken))
    assert "last log lines" in str(caught.value)
    left = load("broken")
    assert left.phase == "failed"
    assert not any(alive(p.pid, p.created) for p in left.parts)
    lab.down("broken")


def test_reset_puts_the_old_gateway_and_its_records_back(running: LabState, tmp_path: Path) -> None:
    kubectl = Tools(running, tmp_path)
    kubectl.run("kubectl", "delete", "namespace", topology.APISIX_NAMESPACE, "--wait=false")
    client = boto3.client(
        "route53",
        endpoint_url=running["route53_url"],
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    zone = client.list_hosted_zones_by_name(DNSName=topology.ZONE)["HostedZones"][0]["Id"]

    def records() -> list[dict[str, Any]]:
        answer = client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
        return [dict(r) for r in answer if r["Type"] == "A"]

    (simple,) = [r for r in records() if r["Name"] == f"{topology.HOST_API}."]
    weighted: Any = {**simple, "SetIdentifier": "istio", "Weight": 100}
    changes: Any = [
        {"Action": "DELETE", "ResourceRecordSet": simple},
        {"Action": "CREATE", "ResourceRecordSet": weighted},
    ]
    client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": changes})
    lab.reset("test")
    found = records()
    assert {r["Name"] for r in found} == {f"{h}." for h in topology.HOSTS}
    assert all("SetIdentifier" not in r for r in found)
    assert {r["AliasTarget"]["DNSName"] for r in found} == {f"{topology.APISIX_LB_NAME}."}

    def back() -> bool:
        answer = kubectl.run(
            "kubectl", "get", "deployment", "-n", topology.APISIX_NAMESPACE, "apisix", "-o", "json"
        )
        return answer.returncode == 0 and json.loads(answer.stdout)["status"].get("readyReplicas") == 2

    assert eventually(back)


def test_an_interrupted_start_leaves_nothing(state_home: Path) -> None:
    started = subprocess.Popen(
        [str(Path(sys.executable).parent / "gateshift"), "lab", "up", "--name", "cut"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert started.stderr is not None
    for line in started.stderr:
        if "scheduler" in line:
            break
    parts = load("cut").parts
    assert parts
    started.send_signal(signal.SIGINT)
    started.stderr.close()
    assert started.wait(30) != 0
    assert not any(alive(p.pid, p.created) for p in parts)
    assert not (state_home / "gateshift" / "lab" / "cut").exists()
