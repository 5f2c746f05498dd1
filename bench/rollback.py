"""Rollbacks at random moments on the lab: do all succeed, and how long until the users are back.

Each round begins a canary stage of a random weight in a process of its own and breaks it at a random moment:
before the change is accepted, while it spreads, or while it dwells. The canary is killed with -9, or lives on
and holds the lock; some rollbacks are killed with -9 themselves and started again. Then the command that an
operator types is timed from the start of its process: until the weights are accepted, and until the observed
share of APISIX is at least 99 % (both gateways' counters, sampling error included).

Run it on a lab where Istio is installed and configured, which a kept rehearsal leaves:

    gateshift rehearse --short --only fault --keep --lab bench
    python bench/rollback.py --lab bench [--rounds 20] [--ttl 2] [--seed 1]
    gateshift lab down --name bench
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from gateshift import lab as laboratory
from gateshift.migration.journal import Record, read_records
from gateshift.params import Mode
from gateshift.params.load import load
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import project_root, resolvers

CANARY = """
import sys
from gateshift.runbook import open_run
from gateshift.runbook.approvals import write_approval
run = open_run("50_canary", {"params_file": sys.argv[1]})
run.read()
write_approval(run.context.folder, run.plan().plan.digest, "bench")
run.gate()
run.act()
"""


def main() -> int:
    """Run the rounds and print one JSON document; exit 1 if any rollback failed or was too late."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ttl", type=float, default=2.0, help="seconds that resolvers keep an answer")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    os.environ["GATESHIFT_LAB"] = flags.lab
    state = laboratory.status(flags.lab)
    httpx.put(f"{state['traffic_url']}/ttl", json={"ttl": flags.ttl}, timeout=5).raise_for_status()
    chance = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        rounds = []
        for number in range(flags.rounds):
            rounds.append(one_round(Path(folder), number, flags.ttl, chance))
            sys.stderr.write(json.dumps(rounds[-1]) + "\n")
    print(json.dumps(summary(rounds, flags.ttl), indent=1))
    limit = min(flags.ttl + 60.0, 300.0)
    good = all(r["back"] and r["accepted_s"] <= 5.0 and r["users_s"] <= limit for r in rounds)
    return 0 if good else 1


def summary(rounds: list[dict[str, Any]], ttl: float) -> dict[str, Any]:
    """Return the distribution of the times, in seconds."""
    out: dict[str, Any] = {"rounds": len(rounds), "ttl_s": ttl, "back": sum(r["back"] for r in rounds)}
    for key in ("accepted_s", "users_s"):
        values = sorted(r[key] for r in rounds if r[key] is not None)
        if values:
            out[key] = {
                "min": round(values[0], 1),
                "median": round(statistics.median(values), 1),
                "p90": round(values[int(0.9 * (len(values) - 1))], 1),
                "max": round(values[-1], 1),
            }
    return out


def one_round(folder: Path, number: int, ttl: float, chance: random.Random) -> dict[str, Any]:
    """Break a canary stage at a random moment and roll back; return what happened and the times."""
    weight = chance.randint(5, 100)
    path = params_file(folder, f"bench-rollback-{os.getpid()}-{number}", weight)
    params = load(path, resolvers=resolvers())
    context = Context(params, run="bench")
    for kind, data in (
        # What the rehearsal before has done; the rollback is what is measured here.
        ("migration.opened", {"params_digest": "bench"}),
        ("preflight.done", {"ok": True}),
        ("install.intent", {}),
        ("install.done", {}),
        ("apply.intent", {"snapshot": ""}),
        ("apply.done", {}),
        ("verify.done", {"ok": True}),
    ):
        context.journal.append(kind, **data)
    journal = context.journal.path
    context.journal.close()
    canary = subprocess.Popen(
        [sys.executable, "-c", CANARY, str(path)],
        cwd=project_root(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(journal, "shift.intent", canary)
    moment = chance.uniform(0.0, 3.0 * ttl + 6.0)
    time.sleep(moment)
    killed = chance.random() < 0.7
    if killed:
        canary.send_signal(signal.SIGKILL)
        canary.wait()
    began = time.time()
    again = chance.random() < 0.25
    code = roll_back(path, kill_after=chance.uniform(1.0, 6.0) if again else None)
    if again:
        code = roll_back(path)
    if not killed:
        canary.wait(timeout=120)
    return {
        "round": number + 1,
        "weight": weight,
        "broken_after_s": round(moment, 1),
        "canary": "killed" if killed else f"ended by itself ({canary.returncode})",
        "rollback_killed": again,
        "exit_code": code,
        **times(read_records(journal), began),
    }


def times(records: tuple[Record, ...], began: float) -> dict[str, Any]:
    """Return the seconds from the command to the acceptance and to the users, as the journal has them."""
    by_kind = {record.kind: record for record in records}
    first = next((r for r in records if r.kind == "rollback.shifted"), None)
    done = by_kind.get("rollback.done")
    users = done.data["seconds_to_users"] if done else None
    started = by_kind.get("rollback.started")
    return {
        "back": bool(done and users is not None),
        "accepted_s": None if first is None else round(first.unix - began - insync(first), 2),
        "users_s": None if users is None or started is None else round(users + started.unix - began, 1),
    }


def insync(record: Record) -> float:
    """Return the seconds of *record* that were spent after the acceptance, on INSYNC."""
    return float(max(0.0, record.data["seconds_to_insync"] - record.data["seconds_to_dns"]))


def roll_back(path: Path, kill_after: float | None = None) -> int:
    """Type the command; return its exit code (negative when it was killed)."""
    command = [
        str(Path(sys.executable).parent / "gateshift"),
        "rollback",
        "-f",
        str(path),
        "--act",
        "--yes",
        "--json",
    ]
    process = subprocess.Popen(
        command,
        cwd=project_root(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its kernel too: nothing of it goes on
        return process.wait()


def params_file(folder: Path, migration: str, weight: int) -> Path:
    """Write the lab's params with one stage of *weight* that never ends by itself."""
    data = yaml.safe_load((project_root() / "params" / "lab.yaml").read_text(encoding="utf-8"))
    stage = {"dwell": "600s", "error_rate_limit_percent": 1.0}
    weights = [weight, 100] if weight < 100 else [100]
    data |= {
        "migration": migration,
        "mode": Mode.ACT.value,
        "stages": [{"weight_percent": w, **stage} for w in weights],
    }
    data["judge"]["hold_timeout"] = "900s"
    path = folder / f"{migration}.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def wait_for(journal: Path, kind: str, process: subprocess.Popen[bytes], limit: float = 120.0) -> None:
    """Wait until *kind* is on record."""
    until = time.monotonic() + limit
    while not any(r.kind == kind for r in read_records(journal)):
        if time.monotonic() > until or process.poll() is not None:
            raise SystemExit(f"the canary wrote no {kind} (exit code {process.poll()}): see {journal}")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
