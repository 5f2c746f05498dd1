"""What of the lab can be tested without starting one."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from gateshift.errors import InputError, LabError
from gateshift.lab import build, cli, controlplane, crilog, dataparts, lifecycle, mesh, seed, state, topology
from gateshift.lab.certs import Authority
from gateshift.lab.egress import EgressProxy
from gateshift.lab.process import Ports, kill_parts, spawn, stop, tail


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def gone(pid: int, created: float) -> bool:
    deadline = time.monotonic() + 5
    while state.alive(pid, created):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class TestState:
    def test_merges_supervisor_and_agent(self, home: Path) -> None:
        folder = state.lab_dir("demo")
        folder.mkdir(parents=True)
        part = state.Part("etcd", 1, 2.0, "x.log")
        main = {"phase": "ready", "values": {"a": 1}, "parts": [part.as_json()]}
        state.write_json(folder / "state.json", main)
        agent = {"parts": [state.Part("gateway", 3, 4.0, "y.log", status="crashed").as_json()], "notes": {}}
        state.write_json(folder / "agent.json", agent)
        found = state.load("demo")
        assert [p.name for p in found.parts] == ["etcd", "gateway"]
        assert [p.name for p in found.crashed] == ["gateway"]
        assert found["a"] == 1
        assert not found.running
        assert state.names() == ("demo",)
        assert (folder / "state.json").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("name", ["", "../x", "A", "a b", "-a", "x" * 60])
    def test_refuses_names_that_are_no_plain_word(self, home: Path, name: str) -> None:
        with pytest.raises(InputError):
            state.lab_dir(name)

    def test_a_clock_that_is_set_makes_no_running_part_dead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        created = state.process_started(os.getpid())
        assert created is not None
        # The kernel's time of boot, from which psutil tells the start of a process, goes with the clock.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: time.time() - 60.0)
        assert state.alive(os.getpid(), created)
        assert not state.alive(os.getpid(), created - 0.01)

    def test_a_stopped_lab_resolves_nothing(self, home: Path) -> None:
        folder = state.lab_dir("demo")
        folder.mkdir(parents=True)
        own = state.Part("supervisor", os.getpid(), 1.0, "")  # our pid, but another start time: reused
        data = {"phase": "ready", "values": {"a": 1}, "supervisor": own.as_json()}
        state.write_json(folder / "state.json", data)
        with pytest.raises(KeyError):
            state.resolver("demo")("a")
        now = state.process_started(os.getpid())
        assert now is not None
        data["supervisor"] = state.Part("supervisor", os.getpid(), now, "").as_json()
        state.write_json(folder / "state.json", data)
        assert state.resolver("demo")("a") == 1

    def test_a_damaged_file_is_said(self, home: Path) -> None:
        folder = state.lab_dir("demo")
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{")
        with pytest.raises(LabError, match=r"state\.json"):
            state.load("demo")


class TestProcesses:
    def test_ports_are_free_and_given_once(self) -> None:
        ports = Ports()
        given = [ports.take() for _ in range(200)]
        assert len(set(given)) == 200
        assert all(20000 <= p < 32000 for p in given)

    def test_two_processes_are_never_given_the_same_port(self) -> None:
        code = "from gateshift.lab.process import Ports; p = Ports(); print(*[p.take() for _ in range(150)])"
        others = [
            subprocess.Popen([sys.executable, "-c", f"{code}; input()"], stdin=-1, stdout=-1, text=True)
            for _ in range(4)
        ]
        given = [port for other in others for port in (other.stdout or []).readline().split()]
        for other in others:
            other.communicate("\n")
        assert len(set(given)) == len(given) == 600

    def test_a_process_group_ends_whole(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        child = spawn("x", ["sh", "-c", "sleep 60 & echo $!; wait"], log=log)
        while not log.read_text().strip():
            time.sleep(0.01)
        inner = int(log.read_text())
        started = state.process_started(inner)
        assert started is not None
        stop([child], grace=2)
        assert child.ended
        assert gone(inner, started)

    def test_a_process_that_ignores_sigterm_is_killed(self, tmp_path: Path) -> None:
        child = spawn("x", ["sh", "-c", "trap '' TERM; echo up; sleep 60"], log=tmp_path / "log")
        while "up" not in tail(tmp_path / "log"):
            time.sleep(0.01)
        stop([child], grace=0.2)
        assert child.process.returncode == -signal.SIGKILL

    def test_children_die_with_a_killed_parent(self, tmp_path: Path) -> None:
        code = textwrap.dedent(f"""
            import time
            from pathlib import Path
            from gateshift.lab.process import spawn
            child = spawn("x", ["sleep", "60"], log=Path({str(tmp_path / "log")!r}))
            print(child.part.pid, child.part.created, flush=True)
            time.sleep(60)
        """)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid, created = parent.stdout.readline().split()
            assert state.alive(int(pid), float(created))
            parent.kill()
        assert gone(int(pid), float(created))

    def test_a_reused_pid_is_not_killed(self, tmp_path: Path) -> None:
        child = spawn("x", ["sleep", "60"], log=tmp_path / "log")
        try:
            other = state.Part("x", child.part.pid, child.part.created - 100, "")
            assert kill_parts([other]) == 0
            assert not child.ended
            assert kill_parts([child.part]) == 1
        finally:
            child.process.wait(5)

    def test_cri_log_has_the_format_kwok_reads(self, tmp_path: Path) -> None:
        log = tmp_path / "x.cri"
        command = ["-m", "gateshift.lab.crilog", str(log), "sh", "-c", "echo one; echo two >&2; exit 3"]
        assert subprocess.run([sys.executable, *command], check=False).returncode == 3
        stamps, streams, flags, texts = zip(*(line.split(" ", 3) for line in tail(log)), strict=True)
        assert all(s.endswith("Z") and "T" in s for s in stamps)
        assert set(streams) == {"stdout"}
        assert set(flags) == {"F"}
        assert sorted(texts) == ["one", "two"]

    def test_a_full_log_is_kept_once(self, tmp_path: Path) -> None:
        log = tmp_path / "x.cri"
        lines = io.BytesIO(b"".join(b"line %d\n" % n for n in range(100)))
        crilog._copy(lines, log, limit=1000)
        older = tmp_path / "x.cri.1"
        assert log.stat().st_size <= 1000
        assert 900 < older.stat().st_size <= 1000
        assert tail(log)[-1].endswith("line 99")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.cri", "x.cri.1"]


class TestBuild:
    def test_pins_and_flags_decide_the_folder(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = build.GROUPS[0]
        first = build.entry_path(group)
        assert first == build.entry_path(group)
        other = build.Group(group.name, group.programs, group.version, ldflags="-s")
        assert build.entry_path(other) != first
        source = home / "source"
        (source / group.name).mkdir(parents=True)
        for name in ("go.mod", "go.sum"):
            pinned = (Path(build.__file__).parent / "build" / group.name / name).read_bytes()
            (source / group.name / name).write_bytes(pinned + b"\n// changed\n")
        monkeypatch.setattr(build, "_SOURCE", source)
        assert build.entry_path(group) != first

    def test_programs_on_path_are_used_only_in_the_pinned_version(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools = home / "bin"
        tools.mkdir()
        program = tools / "etcd"
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        group = build.GROUPS[0]
        for version, wanted in (("3.7.3", str(program)), ("3.7.30", None), ("3.6.1", None)):
            program.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
            program.chmod(0o755)
            assert build._on_path(group, "etcd") == wanted
        program.write_text("#!/bin/sh\necho 'etcd Version: 3.7.3'\n")
        entry = build.entry_path(group)
        dead = entry.with_name(f".{entry.name}.killed")  # of a build that was killed with -9
        (dead / "half").mkdir(parents=True)
        told: list[tuple[str, float]] = []
        found = build.ensure((group,), report=lambda name, part: told.append((name, part)))
        assert not dead.exists()
        assert told == [("etcd", 0.0), ("etcd", 1.0)]
        assert Path(found["etcd"]).resolve() == program.resolve()
        assert build.missing((group,)) == ()

    def test_a_failing_build_leaves_nothing(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tools = home / "bin"
        tools.mkdir()
        go = tools / "go"
        go.write_text(
            '#!/bin/sh\n[ "$1" = env ] && echo go1.99.0 && exit 0\necho "no such host" >&2\nexit 1\n'
        )
        go.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        with pytest.raises(LabError, match="no such host"):
            build.ensure((build.GROUPS[0],))
        assert [p for p in build.cache_home().iterdir() if p.is_dir()] == []

    def test_every_group_has_its_pins(self) -> None:
        for group in build.GROUPS:
            folder = Path(build.__file__).parent / "build" / group.name
            text = (folder / "go.mod").read_text()
            assert (folder / "go.sum").is_file()
            for package in group.programs.values():
                assert package in text
            assert set(group.version) == set(group.programs)


def _layout(folder: Path) -> controlplane.Layout:
    stages = folder / "stages"
    stages.mkdir()
    template = 'conditions:\n- status: "True"\n  type: Ready\n- status: "True"\n  type: ContainersReady\n'
    pod = {
        "kind": "Stage",
        "metadata": {"name": "pod-ready"},
        "spec": {
            "selector": {"matchExpressions": [{"key": ".x", "operator": "Exists"}]},
            "next": {"statusTemplate": template + "containerStatuses:\n- ready: true\n"},
        },
    }
    (stages / "pod-ready.yaml").write_text(yaml.safe_dump(pod))
    (stages / "node.yaml").write_text("kind: Stage\n")
    names = {f"stages/{p.name}": str(p) for p in stages.iterdir()}
    programs = dict.fromkeys((*(p for g in build.GROUPS for p in g.programs), "kubectl", "envoy"), "/x")
    ports = {name: 20000 + n for n, name in enumerate((*controlplane.PORTS, *dataparts.PORTS))}
    pki = controlplane.make_certificates(folder / "pki")
    return controlplane.Layout(folder, ports, pki, build.Binaries(programs, names))


class TestControlPlane:
    def test_only_the_gateways_pods_start_not_ready(self, tmp_path: Path) -> None:
        layout = _layout(tmp_path)
        controlplane.write_files(layout, "demo")
        documents = list(yaml.safe_load_all((tmp_path / "kwok.yaml").read_text()))
        stages = {d["metadata"]["name"]: d for d in documents if d and d.get("metadata", {}).get("name")}
        ready, started = stages["pod-ready"]["spec"], stages["pod-started"]["spec"]
        last = "matchExpressions"
        assert ready["selector"][last][-1]["operator"] == "NotIn"
        assert started["selector"][last][-1]["operator"] == "In"
        rendered = yaml.safe_load(started["next"]["statusTemplate"])
        assert {c["type"]: c["status"] for c in rendered["conditions"]} == {
            "Ready": "False",
            "ContainersReady": "False",
        }
        assert rendered["containerStatuses"] == [{"ready": False}]
        assert yaml.safe_load(ready["next"]["statusTemplate"])["containerStatuses"] == [{"ready": True}]
        kinds = {d["kind"] for d in documents if d}
        assert kinds >= {"ClusterPortForward", "ClusterLogs", "ClusterExec"}

    def test_every_listener_is_on_loopback_and_no_port_is_used_twice(self, tmp_path: Path) -> None:
        layout = _layout(tmp_path)
        ports: list[str] = []
        for name, command in controlplane.commands(layout).items():
            text = " ".join(command)
            assert "=0.0.0.0" not in text
            assert "//0.0.0.0" not in text
            if name.startswith("kube-"):
                assert "--bind-address=127.0.0.1" in command
                ports += [a for a in command if a.startswith("--secure-port=")]
        assert len(set(ports)) == len(ports) == 3

    def test_private_files_are_for_their_owner(self, tmp_path: Path) -> None:
        layout = _layout(tmp_path)
        controlplane.write_files(layout, "demo")
        for path in [*tmp_path.glob("pki/*.key"), *tmp_path.glob("*kubeconfig")]:
            assert path.stat().st_mode & 0o077 == 0, path

    def test_every_backend_has_a_service_and_no_pods(self) -> None:
        items = [item for _, item in seed.first_objects()]
        services = {i["metadata"]["name"]: i["spec"] for i in items if i["kind"] == "Service"}
        for backend in topology.BACKENDS:
            (port,) = services[backend.name]["ports"]
            assert (port["name"], port["port"]) == (backend.port_name, backend.port)
        assert [i["metadata"]["name"] for i in items if i["kind"] == "Deployment"] == ["apisix"]


class TestMesh:
    def test_the_mesh_keeps_everything_but_the_providers(self) -> None:
        kept = {"trustDomain": "cluster.local"}
        text = yaml.safe_dump({**kept, "defaultProviders": {"metrics": ["prometheus"]}})
        assert yaml.safe_load(mesh.mesh_for_lab(text)) == {**kept, "defaultProviders": {}}

    def test_istiod_keeps_the_pods_settings(self) -> None:
        environment = [{"name": "PILOT_X", "value": "1"}, {"name": "REF", "valueFrom": {}}]
        pod: dict[str, Any] = {
            "metadata": {"name": "istiod-1"},
            "spec": {"containers": [{"name": "discovery", "env": environment}]},
        }
        found = mesh.istiod_environment(pod)
        assert found["PILOT_X"] == "1"
        assert "REF" not in found
        assert found["PILOT_ENABLE_ALPN_FILTER"] == "false"

    def test_bootstrap_has_no_wildcard_listener(self, tmp_path: Path) -> None:
        source = tmp_path / "source.json"
        source.write_text('{"a": "{{ .wildcard }}", "stats_config": {}}')
        mesh.write_bootstrap(str(source), tmp_path / "target.json")
        assert (tmp_path / "target.json").read_text() == (
            '{"a": "{{ .localhost }}", "stats_flush_interval": "1s",\n  "stats_config": {}}'
        )


class TestEgress:
    @pytest.fixture
    def proxy(self, tmp_path: Path) -> tuple[int, ssl.SSLContext, int]:
        authority = Authority(tmp_path)
        server = authority.issue("server", "proxy", names=("127.0.0.1",))
        client = authority.issue("client", "apiserver")
        echo = socket.create_server(("127.0.0.1", 0))
        target = echo.getsockname()[1]

        def serve() -> None:
            while True:
                connection, _ = echo.accept()
                connection.sendall(b"hello " + connection.recv(100))
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        port = Ports().take()

        def resolve(address: str, number: int) -> int | None:
            return target if (address, number) == ("10.96.0.7", 443) else None

        ca = str(authority.certificate)
        EgressProxy(port, ca, str(server.certificate), str(server.key), resolve).start()
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(str(client.certificate), str(client.key))
        return port, context, target

    def ask(self, port: int, context: ssl.SSLContext, target: str) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as wire,
        ):
            wire.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            head = wire.recv(200)
            if b" 200 " not in head:
                return head
            wire.sendall(b"you")
            return wire.recv(100)

    def test_service_addresses_reach_the_local_program(self, proxy: tuple[int, ssl.SSLContext, int]) -> None:
        port, context, target = proxy
        assert self.ask(port, context, "10.96.0.7:443") == b"hello you"
        assert self.ask(port, context, f"127.0.0.1:{target}") == b"hello you"
        assert self.ask(port, context, f"{topology.NODE_NAME}:{target}") == b"hello you"
        assert b"502" in self.ask(port, context, "10.96.0.8:443")

    def test_strangers_are_refused(self, proxy: tuple[int, ssl.SSLContext, int], tmp_path: Path) -> None:
        port, _, _ = proxy
        stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        try:
            answer = self.ask(port, stranger, "10.96.0.7:443")
        except (ssl.SSLError, ConnectionError):
            answer = b""
        assert answer == b""  # with TLS 1.3 the refusal may show only as an end of the stream


class TestCommand:
    def test_status_without_a_lab(self, home: Path) -> None:
        plain = CliRunner().invoke(cli.lab, ["status", "--name", "none"])
        assert isinstance(plain.exception, LabError)
        assert "gateshift lab up --name none" in plain.exception.hint
        answer = CliRunner().invoke(cli.lab, ["status", "--name", "none", "--json"])
        assert answer.exit_code == 1
        assert json.loads(answer.stdout)["running"] is False

    def test_down_without_a_lab_leaves_nothing(self, home: Path) -> None:
        answer = CliRunner().invoke(cli.lab, ["down", "--name", "none"])
        assert answer.exit_code == 0
        assert "there was none" in answer.output
        assert list(state.state_home().iterdir()) == []

    def test_build_lines_name_group_and_progress(self) -> None:
        said: list[str] = []
        report = lifecycle.lines(said.append)
        report("kwok", 1.0)
        assert said == []  # it was in the cache
        for part in (0.01, 0.1, 0.3, 0.31, 0.99, 1.0):
            report("etcd", part)
        assert [s.split(",")[0] for s in said] == [
            "building etcd: 1%",
            "building etcd: 30%",
            "building etcd: 99%",
            "building etcd: 100%",
        ]

    def test_a_missing_configuration_is_said(self, home: Path) -> None:
        with pytest.raises(LabError, match="no APISIX configuration") as caught:
            dataparts.sample_configuration(str(home / "none.yaml"))
        assert "--config" in caught.value.hint


class TestReset:
    """A lab whose API server has everything, and an old gateway that is ready from some look on."""

    @pytest.fixture
    def server(self, home: Path) -> Iterator[dict[str, Any]]:
        folder = state.lab_dir("demo")
        folder.mkdir(parents=True)
        authority = Authority(folder / "pki")
        authority.issue("admin", "admin")
        pair = authority.issue("api", "api", names=["127.0.0.1"])
        knobs: dict[str, Any] = {"ready_at": 1, "fails_at": set(), "looks": 0, "asked": []}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                knobs["asked"].append(f"{self.command} {self.path}")
                body: dict[str, Any] = {}
                status = 200
                if self.path.endswith(f"deployments/{topology.APISIX_DEPLOYMENT}"):
                    knobs["looks"] += 1
                    ready = knobs["looks"] >= knobs["ready_at"]
                    status = 500 if knobs["looks"] in knobs["fails_at"] else 200
                    body = {"spec": {"replicas": 2}, "status": {"readyReplicas": 2 if ready else 1}}
                elif self.path.endswith(f"services/{topology.APISIX_SERVICE}"):
                    body = {"status": {"loadBalancer": {"ingress": [{"hostname": "old.example.com"}]}}}
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        # Nobody listens on the discard port: a reset that gets as far as the faults says so.
        values = {"api_url": f"https://127.0.0.1:{httpd.server_port}", "faults_url": "http://127.0.0.1:9"}
        me = state.Part("supervisor", os.getpid(), state.process_started(os.getpid()) or 0.0, "x.log")
        main = {"phase": "ready", "values": values, "supervisor": me.as_json()}
        state.write_json(folder / "state.json", main)
        yield knobs
        httpd.shutdown()
        httpd.server_close()

    def test_the_old_gateway_is_waited_for(self, server: dict[str, Any]) -> None:
        server |= {"ready_at": 4, "fails_at": {2}}  # one answer of an overloaded API server ends no wait
        with pytest.raises(httpx.ConnectError):
            lifecycle.reset("demo")
        assert server["looks"] == 4
        assert server["asked"][-1].endswith(f"services/{topology.APISIX_SERVICE}")

    def test_an_old_gateway_that_is_not_ready_is_told(
        self, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "_RESET_LIMIT", 0.5)
        server["ready_at"] = 1000
        with pytest.raises(LabError, match="the old gateway of lab demo was not ready"):
            lifecycle.reset("demo")
