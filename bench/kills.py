"""Deaths on the lab: canaries and rollbacks are killed with -9 at random moments, and must go on rightly.

Each command is a process of its own with its kernel, and all of it dies at once. After each death DNS must
stand at a weight the journal knows; when a migration has ended, nothing may be lost, doubled or left open,
a rollback that had begun must be finished, and the archive must verify. Every other migration is rolled back
on the way.

    python -m bench.kills --lab kills [--deaths 50] [--seed 1] [--minutes 12] [--write]

A lab that does not run yet is started, prepared and ended. ``--write`` puts the figures into docs/archive.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.pages import write_between
from bench.rollback import ready_lab
from bench.story import BEFORE_A_STAGE
from gateshift import lab as laboratory
from gateshift.archive.audit import verify
from gateshift.migration.journal import Journal, Record, read_records
from gateshift.migration.state import Phase, State, fold
from gateshift.rehearse.director import Director
from gateshift.runbook.inputs import project_root

MARKS = ("<!-- kills:begin (written by python -m bench.kills --write) -->", "<!-- kills:end -->")
LIVES = {"canary": 25.0, "rollback": 10.0}
"""Seconds after which a command dies at the latest, from the moment its run is on record to about its end."""
EARLY = 0.15
"""Share of the deaths before that moment: while the kernel starts."""
WEIGHTS = (20, 60, 100)
MOST = 60
"""Commands a migration may take to come to its end."""


@dataclass
class Story:
    """One migration: its driver, and what went wrong."""

    lab: str
    director: Director
    back_at: int | None
    """Promoted stages after which it is rolled back; None: never."""
    deaths: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The migration's state by its journal."""
        return fold(read_records(self.director.folder / "journal.jsonl"))

    def due(self) -> str | None:
        """The verb an operator would run now; None at the end."""
        state = self.state
        if state.phase is Phase.ROLLED_BACK or (self.back_at is None and state.stage_index == len(WEIGHTS)):
            return None
        wants = self.back_at is not None and state.stage_index >= self.back_at
        return "rollback" if state.rolling_back or wants else "canary"

    def run(self, verb: str, life: float | None, ends: frozenset[int] = frozenset({0, 4})) -> None:
        """Run one command; kill all of it after *life* seconds, or see it end with a code of *ends*."""
        values = {"migration": self.director.migration, **self.director.overrides}
        pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]
        command = [str(Path(sys.executable).parent / "gateshift"), verb, "-f", self.director.params_file]
        command += [*("--act", "--json"), *(word for pair in pairs for word in ("-p", pair))]
        runs = self._runs()
        with self.director.watching():
            process = subprocess.Popen(
                [*command, *(("--yes",) if verb == "rollback" else ())],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=240 if life is None else self._moment(process, runs, life))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        if code == -signal.SIGKILL:
            self.deaths[verb] += 1
        elif code not in ends:
            self.wrong.append(f"{verb} ended with exit code {code}")
        weight = weight_in_dns(self.lab)
        if weight not in (known := self.state.possible_weights):
            self.wrong.append(f"DNS is at {weight} %, the journal knows {sorted(known)}")

    def _runs(self) -> int:
        records = read_records(self.director.folder / "journal.jsonl")
        return sum(r.kind == "run.started" for r in records)

    def _moment(self, process: subprocess.Popen[bytes], runs: int, life: float) -> float:
        """Return how long to wait now; a negative *life* counts from the start of the process."""
        if life < 0:
            return -life
        deadline = time.monotonic() + 60
        while self._runs() == runs and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return life

    def judge(self) -> None:
        """Note what the ended migration got wrong."""
        records = read_records(self.director.folder / "journal.jsonl")
        kinds, state = Counter(r.kind for r in records), fold(records)
        back = self.back_at is not None
        stages = kinds["stage.entered"]
        settled = sum(r.kind == "reconciled" and r.data["weight"] == r.data["asked"] for r in records)
        promoted = len(WEIGHTS) if self.back_at is None else self.back_at
        begun = int(back) + _asked_again(records)
        expected = {
            "stages promoted": (kinds["stage.promoted"], promoted),
            "stages entered": (stages, len(WEIGHTS) if not back else stages),
            "shifts done": (kinds["shift.done"] + settled, stages),
            "rollbacks begun": (kinds["rollback.started"], begun),
            "rollbacks shifted": (kinds["rollback.shifted"], begun),
            "rollbacks done": (kinds["rollback.done"], begun),
            "weight": (state.weight_percent, 0 if back else 100),
            "weight in DNS": (weight_in_dns(self.lab), 0 if back else 100),
            "open runs": (len(state.open_runs), 0),
        }
        self.wrong += [
            f"{what}: {seen}, not {want}" for what, (seen, want) in expected.items() if seen != want
        ]
        self.wrong += [f"audit: {problem}" for problem in verify(self.director.folder)]


def _asked_again(records: Sequence[Record]) -> int:
    """Count the rollbacks of commands that were given when one was done: each is run whole once more.

    A kernel outlives its killed command by a second, and may finish the rollback while the next one starts.
    """
    done, begun, again = 0, {}, 0
    for record in records:
        if record.kind == "run.started":
            begun[record.run] = record.seq
        elif record.kind == "rollback.done":
            done = record.seq
        elif record.kind == "rollback.started":
            again += 0 < done < begun[record.run]
    return again


def weight_in_dns(lab: str) -> int:
    """Percent on Istio as resolvers are answered, the same for every host (-1: not the same)."""
    url = f"{laboratory.status(lab)['route53_url']}/lab/answers"
    shares = set()
    for one in httpx.get(url, timeout=5, trust_env=False).json().values():
        weights = {a["target"].split("-")[0]: a["weight"] for a in one["answers"]}
        shares.add(round(100 * weights.get("istio", 0) / sum(weights.values())) if len(weights) > 1 else 0)
    return shares.pop() if len(shares) == 1 else -1


def story(lab: str, outputs: Path, number: int, chance: random.Random) -> Story:
    """Begin a migration that may enter its first stage."""
    director = Director(
        migration=f"kills-{os.getpid()}-{number}",
        params_file=str(project_root() / "params" / "lab.yaml"),
        outputs=outputs,
        overrides={
            "outputs": str(outputs),
            "stages": [
                {"weight_percent": w, "dwell": "3s", "error_rate_limit_percent": 5.0} for w in WEIGHTS
            ],
        },
        narrate=lambda _text: None,
    )
    with Journal.open(director.folder / "journal.jsonl", who="bench", run="bench") as journal:
        for kind, data in BEFORE_A_STAGE:
            journal.append(kind, **data)
    return Story(lab, director, chance.randrange(len(WEIGHTS)) if number % 2 else None)


def main() -> int:
    """Run until there were enough deaths; exit 1 if anything was wrong or too few died."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", required=True)
    parser.add_argument("--deaths", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no migration later")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/archive.md")
    flags = parser.parse_args()
    chance = random.Random(flags.seed)
    until = time.monotonic() + 60 * flags.minutes
    told: list[Story] = []
    deaths: Counter[str] = Counter()
    with ready_lab(flags.lab, 2.0, until), tempfile.TemporaryDirectory() as folder:
        while deaths.total() < flags.deaths and time.monotonic() < until:
            laboratory.reset(flags.lab)  # DNS simple again, as before any migration
            while weight_in_dns(flags.lab):
                time.sleep(0.2)  # resolvers are answered as before until the change is in sync
            one = story(flags.lab, Path(folder), len(told), chance)
            told.append(one)
            for _ in range(MOST):
                verb = one.due()
                if verb is None:
                    break
                dies = deaths.total() + one.deaths.total() < flags.deaths and chance.random() < 0.85
                early = chance.random() < EARLY
                life = -chance.uniform(0.5, 4.0) if early else chance.uniform(0, LIVES[verb])
                one.run(verb, life if dies else None)
            if one.state.open_runs:
                # It died when all was done but its own end: an operator who looks again sees that buried.
                one.run("canary" if one.back_at is None else "rollback", None, frozenset({0, 3, 4}))
            one.judge()
            deaths += one.deaths
            sys.stderr.write(f"{one.director.migration}: {dict(one.deaths)} died, wrong: {one.wrong}\n")
    wrong = sum(bool(one.wrong) for one in told)
    many = "migrations" if len(told) > 1 else "migration"
    text = (
        f"{deaths.total()} deaths by kill -9 at random moments of {len(told)} {many} on the lab "
        f"({deaths['canary']} canaries, {deaths['rollback']} rollbacks, each with its kernel): "
        f"{len(told) - wrong} ended right, {wrong} did not."
    )
    sys.stdout.write(text + "\n")
    if flags.write:
        write_between("archive.md", MARKS, f"\n{text}\n")
    return 0 if not wrong and deaths.total() >= flags.deaths else 1


if __name__ == "__main__":
    sys.exit(main())
