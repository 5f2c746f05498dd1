"""Translation and proof: time and memory against the number of routes. Run: python -m bench.translate

Each size runs in a process of its own, so that its peak memory is its own. A tenth of the routes have a
wildcard host and are copied into every host's VirtualService, as APISIX asks them there too: what is written
grows faster than the routes, and is printed for that. Targets: 1,000 routes in 3 s,
10,000 in 30 s, under 1 GB, growth close to linear; a proof of 10,000 requests at 1,000 routes in 30 s.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gateshift.apisix.readers import read_files
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, prove, translate
from gateshift.translate.report import write_translation

TARGETS = {1_000: 3.0, 10_000: 30.0}
PROOF_REQUESTS, PROOF_ROUTES, PROOF_SECONDS = 10_000, 1_000, 30.0
MEMORY_MB = 1_000


def configuration(routes: int, seed: int = 0) -> dict[str, Any]:
    """A gateway as they grow: a host a team, prefixes and exact paths, the usual plugins here and there."""
    rng = random.Random(seed)
    hosts = max(4, routes // 50)
    found: list[dict[str, Any]] = []
    for i in range(routes):
        service = f"svc-{i % max(10, routes // 5)}"
        one: dict[str, Any] = {
            "id": f"r{i}",
            "uri": f"/api/v{i % 3}/{service}/{i}" + rng.choice(["", "/*", "/*", "/items/*"]),
            "host": f"team{i % hosts}.example.com" if rng.random() < 0.9 else "*.example.com",
            "upstream": {"type": "roundrobin", "nodes": {f"{service}:8080": 1}, "timeout": {"read": 15}},
            "priority": rng.choice([0, 0, 0, 5]),
        }
        if i % 4 == 0:
            one["methods"] = rng.sample(["GET", "POST", "PUT", "DELETE"], 2)
        if i % 7 == 0:
            one["vars"] = [["http_x_version", "==", "2"], ["arg_beta", "~~", "^(1|true)$"]]
        if i % 3 == 0:
            one["plugins"] = {"proxy-rewrite": {"regex_uri": ["^/api/v\\d/(.*)", "/$1"]}}
        if i % 11 == 0:
            addresses = {"whitelist": [f"10.{i % 4}.0.0/16"]}
            one.setdefault("plugins", {})["ip-restriction"] = addresses
        if i % 5 == 0:
            one.setdefault("plugins", {})["cors"] = {"allow_origins": "https://app.example.com"}
        found.append(one)
    return {"routes": found}


def measure(routes: int, requests: int) -> dict[str, float]:
    """Read, translate, write and prove one configuration; seconds, megabytes and counts."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "apisix.json")
        source.write_text(json.dumps(configuration(routes)))
        started = time.perf_counter()
        model = read_files([source])
        translation = translate(model, TranslateParams(), Target(version="1.31", namespace="shop"))
        written = write_translation(translation, Path(name, "out"))
        spent = time.perf_counter() - started
        proof_started = time.perf_counter()
        proof = prove(model, translation, requests=requests)
        proved = time.perf_counter() - proof_started
        output = sum(one.stat().st_size for one in written) / 1e6
    assert not proof.disagreements, proof.disagreements[0]
    return {
        "translate": spent,
        "prove": proved,
        "checked": proof.checked,
        "objects": len(translation.objects),
        "rules": sum(len(one["spec"]["http"]) for one in translation.files["virtual-service.yaml"]),
        "output": output,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> int:
    """Print one line a size; exit 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", type=int, help="measure this many routes and print JSON")
    parser.add_argument("--requests", type=int, default=1_000)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one, arguments.requests)) + "\n")
        return 0
    missed = False
    for routes in (300, 1_000, 3_000, 10_000):
        requests = PROOF_REQUESTS if routes == PROOF_ROUTES else 1_000
        command = [sys.executable, "-m", "bench.translate", "--one", str(routes), "--requests", str(requests)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        late = found["translate"] > TARGETS.get(routes, 1e9) or found["megabytes"] > MEMORY_MB
        late |= routes == PROOF_ROUTES and found["prove"] > PROOF_SECONDS
        missed |= late
        sys.stdout.write(
            f"{routes:6} routes: translated in {found['translate']:.2f} s"
            f" ({1e3 * found['translate'] / routes:.2f} ms a route), {found['objects']} objects,"
            f" {found['rules']} rules, {found['output']:.1f} MB written,"
            f" {found['megabytes']:.0f} MB of memory;"
            f" {found['checked']} requests proved in {found['prove']:.1f} s"
            f"{'  MISSED' if late else ''}\n"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
