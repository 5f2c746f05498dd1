"""What a production cluster answers when things go wrong: late, half, too much, or something else."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gateshift.cluster.client import ApiError
from gateshift.diagnose import envoy as reading
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.engine import PROBES
from gateshift.diagnose.engine import run as run_probes
from gateshift.diagnose.model import Probe
from gateshift.diagnose.requests import parse_log
from gateshift.errors import ClusterError
from gateshift.runbook.report import Troubleshoot
from tests.cluster.conftest import make_params
from tests.diagnose.admin import Admin, config_dump, route, serve
from tests.diagnose.test_diagnose import GATEWAY, OFFLINE, Context, _set, find, healthy, obj
from tests.diagnose.test_trees import CLUSTER, ask, log

TEXT = (
    '[TIME] "GET /v1/cart?token=s3cr3t HTTP/2" 503 UF,URX '
    "upstream_reset_before_response_started{connection_failure} - "
    '"delayed connect error: 111" 0 91 12 - "10.1.1.1" "curl/8" "0c6c-8f" "a.com:443" "10.0.0.1:80" '
    "outbound|80||cart.shop.svc.cluster.local; - 10.0.0.9:8443 10.1.1.1:5555 a.com all\n"
)
"""A line of Istio's default format (``accessLogEncoding: TEXT``)."""


def text_line(at: datetime) -> str:
    return TEXT.replace("TIME", f"{at:%Y-%m-%dT%H:%M:%S}.123Z")


def test_istios_default_log_which_is_no_json_is_read() -> None:
    (entry,) = parse_log("2026-01-02T03:04:05Z info xdsproxy connected\n" + text_line(datetime.now(UTC)))
    assert (entry.host, entry.path, entry.method, entry.code) == ("a.com", "/v1/cart", "GET", 503)
    assert entry.flags == ("UF", "URX")
    assert entry.cluster == "outbound|80||cart.shop.svc.cluster.local"
    assert entry.transport_failure == "delayed connect error: 111"
    assert (entry.duration, entry.upstream, entry.endpoint, entry.route) == (12.0, None, "10.0.0.1:80", "all")


def test_a_log_that_cannot_be_read_is_said() -> None:
    context = Context(healthy())
    context.cluster.logs = 'a.com - [x] "GET / HTTP/1.1" 503 12ms\n' * 3
    causes = run_probes("503", context, probes=OFFLINE)
    assert [c.evidence for c in causes if "access log" in c.evidence and "format" in c.evidence]


def test_only_the_proxys_log_is_read_and_a_pod_without_one_hides_no_other() -> None:
    objects = healthy()
    for pod in (o for o in objects if o["kind"] == "Pod"):
        pod["spec"] = {"containers": [{"name": "vault-agent"}, {"name": "istio-proxy"}]}
    context = Context(objects)
    asked: list[str] = []

    def read(namespace: str, pod: str, *, container: str = "", **_: Any) -> str:
        asked.append(container)
        if pod == "g0":
            raise ApiError("container is waiting to start: ContainerCreating", status=400)
        return log(9, response_code=503, response_flags="UF") if pod == "g1" else ""

    context.cluster.log = read  # type: ignore[method-assign]
    assert "connection-failed" in {c.code for c in run_probes("503", context, probes=OFFLINE)}
    assert set(asked) == {"istio-proxy"}


def test_requests_are_found_although_the_clocks_differ() -> None:
    context = Context(healthy())
    context.cluster.skew = -3600.0
    early = (datetime.now(UTC) - timedelta(seconds=3600)).isoformat()
    context.cluster.logs = log(9, response_code=503, response_flags="UF", start_time=early)
    assert "connection-failed" in {c.code for c in run_probes("503", context, probes=OFFLINE)}


@pytest.mark.parametrize("config", [[], "text", {"configs": [1, None]}, {"configs": {"a": 1}}])
def test_an_admin_interface_that_answers_something_else_is_no_crash(tmp_path: Path, config: Any) -> None:
    admin = Admin()
    admin.config = config
    causes = ask("gateway", tmp_path, admin, "")
    assert "gateway-crash" not in {c.code for c in causes}
    assert not [c for c in causes if "itself broke" in c.evidence]
    assert [c for c in causes if c.code == "not-known" and "listeners" in c.title]


def test_a_dump_that_is_too_large_or_too_slow_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To restart a gateway because its configuration is long would cut every connection for nothing."""
    monkeypatch.setattr(reading, "MOST_BYTES", 2000)
    admin = Admin(config_dump({f"h{n}.com": [route("r", "shop/vs", {"prefix": "/"})] for n in range(50)}))
    causes = ask("gateway", tmp_path, admin, "")
    assert "gateway-crash" not in {c.code for c in causes}
    assert [c.evidence for c in causes if "more than" in c.evidence]


def test_the_whole_reading_of_an_envoy_ends_in_time(tmp_path: Path) -> None:
    class Slow(Admin):
        def answer(self, path: str) -> bytes:
            time.sleep(0.4)  # each answer is in time, all of them together are not
            return super().answer(path)

    with serve(Slow(), tmp_path) as kubectl:
        params = make_params(istio={"version": "1.31.0", "istioctl": "/none", "kubectl": kubectl})
        begun = time.monotonic()
        with pytest.raises(ClusterError, match=r"within 0\.9 s"):
            reading.read(params, "gw", timeout=0.9)
    assert time.monotonic() - begun < 2


def test_no_forward_outlives_the_process(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    kubectl.chmod(0o755)
    program = f"""
        import threading, time, pathlib
        from gateshift.diagnose import envoy
        from tests.cluster.conftest import make_params
        params = make_params(
            istio={{"version": "1.31.0", "istioctl": "/none", "kubectl": {str(kubectl)!r}}}
        )
        threading.Thread(target=lambda: envoy.read(params, "gw", timeout=30), daemon=True).start()
        while not pathlib.Path({str(tmp_path / "pid")!r}).exists():
            time.sleep(0.02)
        time.sleep(0.1)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=30)
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_read_that_breaks_is_not_repeated_by_each_probe() -> None:
    context = Context(healthy())
    calls: list[str] = []

    def broken(*_: Any, **__: Any) -> str:
        calls.append("log")
        raise ZeroDivisionError

    context.cluster.log = broken  # type: ignore[method-assign]
    run_probes("503", context, probes=OFFLINE)
    assert len(calls) <= 3  # once for each pod


def test_one_kind_that_may_not_be_read_hides_no_trap_of_the_others() -> None:
    objects = healthy()
    find(objects, "VirtualService", "vs")["spec"]["http"][0]["match"] = [{"uri": {"regex": "/(?!x).*"}}]
    context = Context(objects)
    listed = context.cluster.list

    def read(kind: str, *args: Any, **more: Any) -> Any:
        if kind == "EnvoyFilter":
            raise ApiError(
                'User "jo" cannot list resource "envoyfilters" in API group "networking.istio.io" (HTTP 403)',
                status=403,
            )
        return listed(kind, *args, **more)

    context.cluster.list = read  # type: ignore[method-assign]
    causes = run_probes("lint", context)
    assert "trap-8" in {c.code for c in causes}
    (denied,) = (c for c in causes if c.code == "no-permission" and "traps" in c.title)
    assert "gateshift-diagnose-envoyfilters --verb=get,list" in denied.remedy
    assert "--user=jo" in denied.remedy


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/k/config", "/k/config"),
        (f"{Path.home()}/.kube/config", "~/.kube/config"),
        (f"{Path.home()}/a b", shlex.quote(f"{Path.home()}/a b")),  # a shell leaves ~ alone in quotes
    ],
)
def test_commands_name_the_cluster_that_was_asked(file: str, shown: str) -> None:
    """On a machine with many contexts a pasted command must not change another cluster."""
    context = Context(healthy())
    cluster = context.params.cluster.model_copy(update={"context": "prod eu", "kubeconfig": file})
    context.params = context.params.model_copy(update={"cluster": cluster})

    def look(_: Any) -> Any:
        yield found(
            "vs-none", "0", "kubectl -n a get x | sed 's/a/b/' | kubectl apply -f - (see kubectl logs)"
        )

    equivalent = "istioctl proxy-config listeners <pod>; kubectl get pods"
    (cause,) = run_probes("404", context, probes=[Probe("p", frozenset({"404"}), equivalent, look)])
    flags = f"--kubeconfig {shown} --context 'prod eu'"
    assert cause.remedy.startswith(f"kubectl {flags} -n a get x | sed 's/a/b/' | kubectl {flags} apply -f -")
    assert cause.equivalent.startswith(f"istioctl {flags} proxy-config")
    assert f"kubectl {flags} get pods" in cause.equivalent


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("A.com", "/v1/cart?token=s3cr3t"),
        ("a.com:443", "v1/cart"),
        ("https://a.com/v1/cart?token=s3cr3t", ""),
        ("a.com.", "https://a.com/v1/cart"),
    ],
)
def test_the_request_is_understood_as_it_is_pasted(tmp_path: Path, host: str, path: str) -> None:
    admin = Admin(config_dump({"a.com": [route("cart", "shop/vs", {"path": "/v1/cart"})]}))
    logs = log(9, path="/v1/cart?token=s3cr3t", response_code=404)
    causes = ask("404", tmp_path, admin, logs, host=host, path=path)
    assert "backend-404" in {c.code for c in causes}
    assert "s3cr3t" not in str(causes)


def test_a_request_is_judged_by_its_own_method(tmp_path: Path) -> None:
    """Most requests that fail are no GET; and what a backend answered was taken by a rule."""
    match = {"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}
    admin = Admin(config_dump({"a.com": [route("orders", "shop/vs", match)]}))
    posts = log(9, path="/orders", method="POST", response_code=503)
    assert "no-rule" not in {c.code for c in ask("404", tmp_path, admin, posts)}
    by_header = {"prefix": "/", "headers": [{"name": "x-beta", "present_match": True}]}
    admin = Admin(config_dump({"a.com": [route("beta", "shop/vs", by_header)]}))
    assert "no-rule" not in {c.code for c in ask("404", tmp_path, admin, posts)}


def test_a_host_of_the_gateway_api_is_known(tmp_path: Path) -> None:
    own = {"match": {"prefix": "/"}, "route": {"cluster": CLUSTER}}
    admin = Admin(config_dump({"b.com": [own]}))
    api = obj("HTTPRoute", "b", spec={"hostnames": ["b.com"]})
    causes = ask("404", tmp_path, admin, "", objects=[api], host="b.com", path="/x")
    assert not {"host-unknown", "no-rule"} & {c.code for c in causes}


@pytest.mark.parametrize(
    "secret",
    [
        "Authorization: Bearer abcdefghijkl0123456789",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "redis://:pa55word@redis:6379",
        '"client_secret": "abcdef0123456789"',
    ],
)
def test_no_secret_is_quoted(secret: str) -> None:
    def look(_: Any) -> Any:
        yield found("xds-rejected", f"RDS: bad value {secret} in it", f"see {secret}")

    (cause,) = run_probes("404", Context([]), probes=[Probe("p", frozenset({"404"}), "kubectl", look)])
    value = secret.rsplit(maxsplit=1)[-1].strip('"')
    assert value not in str(cause)
    assert "[redacted]" in cause.evidence


def test_patches_are_quoted_and_name_the_api() -> None:
    gateway = obj("Gateway", "gw", spec={})
    text = patch_command(gateway, {"selector": {"a": "it's"}})
    assert text.startswith("kubectl -n shop patch gateway.networking.istio.io gw --type=merge -p ")
    shown = subprocess.run(
        ["/bin/sh", "-c", text.replace("kubectl", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout.splitlines()[-1]) == {"spec": {"selector": {"a": "it's"}}}


def test_the_equivalent_of_what_is_not_known_can_be_pasted() -> None:
    def denied(_: Any) -> Any:
        raise ClusterError("gone")

    probe = Probe("d", frozenset({"404"}), "kubectl -n <ns> get service <service>", denied)
    (cause,) = run_probes("404", Context(healthy()), probes=[probe])
    assert cause.equivalent == "kubectl -n istio-system get service istio-ingressgateway"


def test_every_placeholder_of_a_probe_is_filled() -> None:
    context = Context(healthy())
    for probe in PROBES:
        asked = Probe(probe.name, probe.symptoms, probe.equivalent, _gone)
        (told,) = run_probes("", context, probes=[asked])
        assert not re.search("<(ns|service|labels|istiod|apisix|apisix-ns|app)>", told.equivalent)


def _gone(_: Any) -> Any:
    raise ClusterError("gone")


@pytest.mark.slow
def test_the_same_state_gives_the_same_text_in_every_process() -> None:
    program = """
        from tests.diagnose.test_diagnose import OFFLINE, Context, _set, find, healthy, run_probes
        objects = healthy()
        _set("Service", "istio-ingressgateway", selector={"a": "1", "b": "2", "c": "3", "d": "4"})(objects)
        find(objects, "Gateway", "gw")["spec"]["servers"][0]["hosts"] = ["x.com", "y.com", "z.com"]
        probes = [p for p in OFFLINE if p.name != "migration"]
        print([c.as_json() for c in run_probes("", Context(objects), probes=probes)])
    """
    told = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1


def test_a_patch_for_a_selector_is_the_same_each_time() -> None:
    objects = healthy()
    _set("Service", "istio-ingressgateway", selector={"b": "2", "a": "1"})(objects)
    for pod in (o for o in objects if o["kind"] == "Pod"):
        pod["metadata"]["labels"] = {"app": "x", **GATEWAY}
    objects.append(
        obj(
            "Deployment",
            "istio-ingressgateway",
            "istio-system",
            spec={"selector": {"matchLabels": GATEWAY}},
        )
    )
    causes = run_probes("gateway", Context(objects), probes=OFFLINE)
    (cause,) = (c for c in causes if c.code == "service-selector")
    assert '{"selector":{"a":null,"b":null,"app":"x","istio":"ingressgateway"}}' in cause.remedy


def test_an_api_server_without_an_answer_is_said_once() -> None:
    """Forty rows of one reason hide the one that matters."""

    def silent(kind: str) -> Any:
        def look(_: Any) -> Any:
            raise ClusterError(
                f"list of {kind}: the API server https://x is not reachable: no answer within 10 s"
            )

        return look

    def hang(_: Any) -> Any:
        time.sleep(20)

    probes = [
        Probe(n, frozenset({"404"}), f"kubectl get {n}", silent(n)) for n in ("pods", "services", "pods")
    ]
    probes += [Probe(n, frozenset({"404"}), f"kubectl get {n}", hang) for n in ("nodes", "events")]
    first, second = run_probes("404", Context([]), probes=probes, limit=0.5)
    assert first.title == "not known: pods, services"
    assert first.evidence.startswith("the API server https://x")
    assert first.equivalent == "kubectl get pods; kubectl get services"
    assert second.title == "not known: nodes, events"


def test_the_end_of_a_run_does_not_wait_for_a_silent_cluster_again() -> None:
    class Asked:
        @property
        def uid(self) -> str:
            raise AssertionError("it was asked")

    run = Troubleshoot.__new__(Troubleshoot)
    run.context = SimpleNamespace(cluster=Asked())  # type: ignore[assignment]
    run.causes = (found("not-known", "the API server https://x is not reachable", "", probe="pods"),)
    assert not run._cluster_uid()
