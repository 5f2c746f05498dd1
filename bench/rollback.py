"""Rollbacks at random moments on the lab: do all succeed, and how long until the users are back.

Each round begins a canary stage of a random weight in a process of its own and breaks it at a random moment:
before the change is accepted, while it spreads, or while it dwells. The canary is killed with -9, or lives on
and holds the lock; some rollbacks are killed with -9 themselves and started again. Then the command that an
operator types is timed from the start of its process: until the weights are accepted, and until the observed
share of APISIX is at least 99 % (both gateways' counters, sampling error included). Where the rollback was
killed, the acceptance counts from the command that got it (and is not timed when that one died before it was
on record), the users' return from the first command.

    python -m bench.rollback --lab bench [--rounds 20] [--ttl 2] [--seed 1] [--minutes 9] [--write]

A lab that does not run yet is started, brought to the point where a canary may begin, and ended at the end.
Rounds are kept in build/, so that a run which ended early (or was told to, by ``--minutes``) goes on with the
rounds that are missing. ``--write`` puts the tables of all rounds kept into docs/dns.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.pages import write_between
from bench.story import BEFORE_A_STAGE
from gateshift import lab as laboratory
from gateshift.errors import LabError
from gateshift.migration.journal import Record, read_records
from gateshift.params import Mode
from gateshift.params.load import load
from gateshift.rehearse.director import Director
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import project_root, resolvers

KEPT = project_root() / "build"
MARKS = ("<!-- rollback:begin (written by python -m bench.rollback --write) -->", "<!-- rollback:end -->")
ACCEPTED = 5.0
"""Seconds the acceptance of the weights may take."""

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
    """Run the missing rounds and print the table; exit 1 if any failed, was too late, or is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ttl", type=float, default=2.0, help="seconds that resolvers keep an answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round that would end later")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/dns.md")
    flags = parser.parse_args()
    kept = KEPT / f"rollback-ttl{flags.ttl:g}.jsonl"
    missing = [n for n in range(flags.rounds) if n not in {r["round"] - 1 for r in read_rounds(kept)}]
    if missing:
        with ready_lab(flags.lab, flags.ttl, (until := time.monotonic() + 60 * flags.minutes)):
            run_rounds(missing, flags, kept, until)
    rounds = read_rounds(kept)
    sys.stdout.write(table(flags.ttl, rounds) + "\n")
    if flags.write:
        write_docs()
    return 0 if len(rounds) >= flags.rounds and all(good(r, flags.ttl) for r in rounds) else 1


def run_rounds(missing: list[int], flags: argparse.Namespace, kept: Path, until: float) -> None:
    """Run the rounds with these numbers, each with chance of its own, until the time is up."""
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in missing:
            begun = time.monotonic()
            if begun + longest > until:
                return
            laboratory.forget_migrations(flags.lab)
            chance = random.Random(f"{flags.seed} {number}")
            done = one_round(Path(folder), number, flags.ttl, chance)
            longest = max(longest, time.monotonic() - begun)
            with kept.open("a", encoding="utf-8") as out:
                out.write(json.dumps(done) + "\n")
            sys.stderr.write(json.dumps(done) + "\n")


@contextmanager
def ready_lab(name: str, ttl: float, until: float) -> Iterator[None]:
    """Give a lab in which a canary may begin, its clients caching for *ttl*; one started here is ended."""
    os.environ["GATESHIFT_LAB"] = name
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        started = not laboratory.status(name).running
    except LabError:
        started = True
    try:
        if started:
            laboratory.up(name, rate=150.0, ttl=ttl)
            prepare()
            sys.stderr.write(f"lab ready, {(until - time.monotonic()) / 60:.1f} min left\n")
        lab = laboratory.status(name)
        httpx.put(f"{lab['traffic_url']}/ttl", json={"ttl": ttl}, timeout=5).raise_for_status()
        yield
    finally:
        if started:
            laboratory.down(name)


def prepare() -> None:
    """Preflight to verify by the notebooks themselves, as every migration before its first stage."""
    with tempfile.TemporaryDirectory() as outputs:
        director = Director(
            migration="bench-prepare",
            params_file=str(project_root() / "params" / "lab.yaml"),
            outputs=Path(outputs),
            overrides={"outputs": outputs},
            narrate=lambda _text: None,
        )
        for verb in ("preflight", "install", "translate", "apply", "verify"):
            director.run(verb)


def read_rounds(kept: Path) -> list[dict[str, Any]]:
    """Return the rounds kept so far, in their order."""
    if not kept.exists():
        return []
    found = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda r: int(r["round"]))


def good(done: dict[str, Any], ttl: float) -> bool:
    """Tell whether a rollback succeeded in time."""
    early = done["accepted_s"] is None or done["accepted_s"] <= ACCEPTED
    return bool(done["back"] and early and done["users_s"] <= min(ttl + 60.0, 300.0))


def table(ttl: float, rounds: list[dict[str, Any]]) -> str:
    """Return the distribution of the times as Markdown."""
    back = sum(r["back"] for r in rounds)
    killed = sum(r["canary"] == "killed" for r in rounds)
    twice = sum(r["rollback_killed"] for r in rounds)
    in_time = sum(good(r, ttl) for r in rounds)
    text = (
        f"TTL {ttl:g} s: {back} of {len(rounds)} rollbacks brought the users back, {in_time} of them in "
        f"time; {killed} canaries and {twice} rollbacks were killed with -9."
    )
    lines = [
        text,
        "",
        "| seconds from the command | fastest | median | 9 of 10 | slowest | target |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for key, text, limit in (
        ("accepted_s", "weights accepted", ACCEPTED),
        ("users_s", "at least 99 % of requests at APISIX", min(ttl + 60.0, 300.0)),
    ):
        values = sorted(r[key] for r in rounds if r[key] is not None)
        if values:
            ninth = values[math.ceil(0.9 * len(values)) - 1]
            cells = (values[0], statistics.median(values), ninth, values[-1], limit)
            timed = "" if len(values) == len(rounds) else f" ({len(values)} timed)"
            lines.append(f"| {text}{timed} | " + " | ".join(f"{c:.1f}" for c in cells) + " |")
    return "\n".join(lines)


def write_docs() -> None:
    """Write the table of every TTL that has rounds between the page's marks."""
    files = sorted(KEPT.glob("rollback-ttl*.jsonl"), key=lambda p: float(p.stem.removeprefix("rollback-ttl")))
    tables = [table(float(f.stem.removeprefix("rollback-ttl")), read_rounds(f)) for f in files]
    write_between("dns.md", MARKS, "\n\n".join(("", *tables, "")))


def one_round(folder: Path, number: int, ttl: float, chance: random.Random) -> dict[str, Any]:
    """Break a canary stage at a random moment and roll back; return what happened and the times."""
    weight = chance.randint(5, 100)
    path = params_file(folder, f"bench-rollback-{os.getpid()}-{number}", weight, ttl)
    params = load(path, resolvers=resolvers())
    context = Context(params, run="bench")
    for kind, data in BEFORE_A_STAGE:
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
    moment = chance.uniform(0.0, 1.5 * ttl + 6.0)
    time.sleep(moment)
    killed = chance.random() < 0.7
    if killed:
        canary.send_signal(signal.SIGKILL)
        canary.wait()
    began = [time.time()]
    again = chance.random() < 0.25
    code = roll_back(path, kill_after=chance.uniform(1.0, 6.0) if again else None)
    if again:
        began.append(time.time())
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


def times(records: tuple[Record, ...], began: list[float]) -> dict[str, Any]:
    """Return the seconds from the command to the acceptance and to the users, as the journal has them."""
    by_kind = {record.kind: record for record in records}
    done, started = by_kind.get("rollback.done"), by_kind.get("rollback.started")
    users = done.data["seconds_to_users"] if done else None
    first = next((r for r in records if r.kind == "rollback.shifted"), None)
    accepted = None
    # A command that found the weights back already (the one before was killed after it set them) has no time.
    if first is not None and first.data["seconds_to_dns"] > 0:
        at = first.unix - insync(first)
        accepted = round(at - max((b for b in began if b <= at), default=began[0]), 2)
    return {
        "back": bool(done and users is not None),
        "accepted_s": accepted,
        "users_s": None if users is None or started is None else round(users + started.unix - began[0], 1),
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


def params_file(folder: Path, migration: str, weight: int, ttl: float) -> Path:
    """Write the lab's params with one stage of *weight* that never ends by itself."""
    data = yaml.safe_load((project_root() / "params" / "lab.yaml").read_text(encoding="utf-8"))
    stage = {"dwell": "600s", "error_rate_limit_percent": 1.0}
    weights = [weight, 100] if weight < 100 else [100]
    data |= {
        "migration": migration,
        "mode": Mode.ACT.value,
        "outputs": str(folder / "outputs"),
        "stages": [{"weight_percent": w, **stage} for w in weights],
    }
    data["judge"]["hold_timeout"] = "900s"
    # Long enough to see a return that comes too late.
    data["traffic"] |= {"arrival_timeout": "900s", "rollback_target": f"{ttl + 120:g}s"}
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
