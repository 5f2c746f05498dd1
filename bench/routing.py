"""Routing model: requests a second at 1,000 routes, and the command's start. Run: python bench/routing.py"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gateshift.apisix.explain import run


def write_input(folder: Path, routes: int, requests: int, seed: int = 0) -> tuple[Path, Path]:
    rng = random.Random(seed)
    table = []
    for i in range(routes):
        route: dict[str, object] = {
            "id": f"r{i}",
            "uri": f"/api/v{i % 7}/service{i % (routes // 2 + 1)}" + rng.choice(["", "/*", "/items/*", "*"]),
            "upstream": {"type": "roundrobin", "nodes": {"backend:80": 1}},
        }
        if i % 2:
            route["host"] = rng.choice([f"h{i % 50}.example.com", "*.example.com"])
        if i % 5 == 0:
            route["vars"] = [["http_x_version", "~~", "^v[0-9]+$"], ["arg_beta", "==", "1"]]
        if i % 11 == 0:
            route["remote_addrs"] = ["10.0.0.0/8", "192.168.0.0/16"]
        if i % 3 == 0:
            route["methods"] = ["GET", "POST"]
        table.append(route)
    config = folder / "apisix.json"
    config.write_text(json.dumps({"routes": table}))
    lines = folder / "requests.jsonl"
    with lines.open("w") as out:
        for _ in range(requests):
            i = rng.randrange(routes)
            request = {
                "method": rng.choice(["GET", "POST", "DELETE"]),
                "host": f"h{i % 50}.example.com",
                "path": f"/api/v{i % 7}/service{i % (routes // 2 + 1)}" + rng.choice(["", "/x", "/items/9"]),
                "headers": {"X-Version": rng.choice(["v1", "none"])},
                "args": {"beta": "1"},
                "remote_addr": f"10.0.{i % 250}.9",
            }
            out.write(json.dumps(request) + "\n")
    return config, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config, lines = write_input(Path(name), arguments.routes, arguments.requests)
        out = io.StringIO()
        started = time.perf_counter()
        count = run([config], None, lines, False, out)
        spent = time.perf_counter() - started
        assert count == arguments.requests
        won = sum('"winner": null' not in line for line in out.getvalue().splitlines())
        print(
            f"{count} requests, {arguments.routes} routes: {spent:.1f} s,"
            f" {1e6 * spent / count:.1f} us each, {won} with a winner (target 1,000,000 under 300 s)"
        )
        config, lines = write_input(Path(name), 300, 12_000)
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from gateshift.apisix.explain import explain_command; explain_command()",
                "--config",
                str(config),
                "--requests",
                str(lines),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        spent = time.perf_counter() - started
        print(f"12000 requests, 300 routes, with start: {spent:.2f} s (target 20 s)")


if __name__ == "__main__":
    main()
