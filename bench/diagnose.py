"""The fault catalogue on a lab of real parts: each fault injected, seen by a client, diagnosed, mended.

Measured: how often the top-ranked cause is the right one, how often it is among the first three, errors on a
healthy lab, seconds a diagnosis takes, and how often both of two faults are found. `make bench-diagnose`
prints the table and writes it into docs/troubleshooting.md.

    python -m bench.diagnose [--only WORDS] [--pairs N] [--lab NAME] [--keep] [--write]

A pass takes about half an hour. With `--minutes N` it ends by itself after that time (exit 75) and `--resume`
goes on from its record, which belongs to one state of the code: results of two are never mixed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from bench import faults_backend, faults_gateway, faults_ours  # noqa: F401 - they fill the catalogue
from bench.catalogue import CATALOGUE, Fault
from bench.diagnose_report import LIMIT, Pair, Record, Result, write
from bench.scene import Scene, open_scene
from gateshift import diagnose, lab
from gateshift.diagnose import Cause
from gateshift.runbook.inputs import project_root

__all__ = ["LIMIT", "healthy", "main", "mended", "one"]

UNFINISHED = 75
"""Exit code of a pass that ended by its time (EX_TEMPFAIL of sysexits.h)."""


def place_of(fault: Fault, causes: tuple[Cause, ...]) -> int:
    """Return the place of the fault's cause among all findings."""
    return next((n for n, c in enumerate(causes, 1) if c.code in fault.codes), 0)


def ask_why(
    scene: Scene, fault: Fault, begun: float, symptom: str | None = None
) -> tuple[tuple[Cause, ...], float]:
    """Diagnose as an operator who saw the symptom."""
    started = time.monotonic()
    causes = diagnose.run(
        fault.symptom if symptom is None else symptom,
        scene.context,
        host=fault.host if symptom is None else "",
        path=fault.path if symptom is None else "",
        rule=fault.rule if symptom is None else "",
        window=time.time() - begun,
    )
    return causes, time.monotonic() - started


def one(scene: Scene, fault: Fault, *, settle: float | None = None) -> Result:
    """Inject, see, diagnose, mend."""
    with fault.inject(scene):
        seen = scene.until(lambda: fault.ask(scene), fault.shown)
        if not fault.shown(seen):
            return Result(fault.name, 0, 0.0, str(seen), "", "the symptom did not show")
        begun = time.time()
        with scene.load(lambda: fault.ask(scene), threads=fault.load):
            time.sleep(fault.settle if settle is None else settle)
            causes, seconds = ask_why(scene, fault, begun)
    top = f"{causes[0].code}: {causes[0].title}" if causes else "nothing"
    return Result(fault.name, place_of(fault, causes), seconds, str(seen), top)


def mended(scene: Scene) -> str:
    """Wait until clients are served again; an empty text when they are."""
    for ask in (faults_gateway.plain, faults_gateway.secure):
        answer = scene.until(lambda a=ask: a(scene), lambda a: a.code == 200, 45.0)
        if answer.code != 200:
            break
    return "" if answer.code == 200 else f"not mended: {answer}"


def healthy(scene: Scene, *, each: bool = True) -> list[Cause]:
    """Diagnose everything on the healthy lab under load (*each* tree also by itself); return the errors."""
    begun = time.time()
    with scene.load(lambda: faults_gateway.plain(scene)):
        time.sleep(1.0)
        found: list[Cause] = []
        # Nobody complains about limits here: "no 429" is the symptom itself, and has its own faults.
        trees = [s for s in diagnose.SYMPTOMS if s != "rate-limit"] if each else []
        for symptom in ("", *trees):
            causes = diagnose.run(symptom, scene.context, window=time.time() - begun)
            found += [c for c in causes if c.level == "error"]
    return found


def pairs(faults: list[Fault], count: int, seed: int = 7) -> list[tuple[Fault, Fault]]:
    """Choose pairs of faults that can both show: other trees or hosts, none that takes the gateway away."""
    usable = [
        f
        for f in faults
        if not f.slow and f.symptom in {"404", "503", "latency", "rate-limit", "share", "webhook"}
    ]
    every = [
        (a, b)
        for a, b in itertools.combinations(usable, 2)
        if a.host != b.host
        and not (a.codes & b.codes)
        and not a.options.get("alone")
        and not b.options.get("alone")
    ]
    random.Random(seed).shuffle(every)
    return every[:count]


def both(scene: Scene, first: Fault, second: Fault) -> Pair:
    """Two faults at once, all trees asked in one run; found means an error among the first six findings.

    A limit that does not fire shows nowhere by itself: for that tree the complaint is stated as well.
    """
    with ExitStack() as stack:
        for fault in (first, second):
            stack.enter_context(fault.inject(scene))
        for fault in (first, second):
            seen = scene.until(lambda f=fault: f.ask(scene), fault.shown)
            if not fault.shown(seen):
                why = f"not shown together: {fault.name}: {seen}"
                return Pair(first.name, second.name, False, False, 0.0, why)
        begun = time.time()
        for fault in (first, second):
            stack.enter_context(scene.load(lambda f=fault: f.ask(scene), threads=fault.load))
        time.sleep(max(first.settle, second.settle))
        causes, seconds = ask_why(scene, first, begun, symptom="")
        places = []
        for fault in (first, second):
            listed = causes
            if fault.symptom == "rate-limit":
                listed, _ = ask_why(scene, fault, begun)
            place = place_of(fault, listed)
            places.append(1 <= place <= 6)
            if not places[-1]:
                say(f"    {fault.name}: place {place} of {[c.code for c in listed]}")
    return Pair(first.name, second.name, places[0], places[1], seconds)


def main() -> int:
    """Run the bench; exit 1 when a bound is missed, 75 when time was over first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name, symptom or code has these words")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--pairs-only", action="store_true", help="leave out the single faults")
    parser.add_argument("--lab", default="diagnose")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    parser.add_argument("--write", action="store_true", help="write the table into docs/troubleshooting.md")
    parser.add_argument("--record", type=Path, default=project_root() / "build" / "bench-diagnose.jsonl")
    parser.add_argument("--resume", action="store_true", help="go on from the record")
    parser.add_argument("--minutes", type=float, default=0.0, help="take no more faults after this time")
    parser.add_argument("--verbose", action="store_true")
    flags = parser.parse_args()
    ends = time.monotonic() + flags.minutes * 60 if flags.minutes else float("inf")
    words = flags.only.split(",") if flags.only else []
    chosen = [
        f
        for f in CATALOGUE
        if not words or any(w in f"{f.name} {f.symptom} {' '.join(f.codes)}" for w in words)
    ]
    record = Record(flags.record, resume=flags.resume)
    with tempfile.TemporaryDirectory() as folder:
        scene = open_scene(flags.lab, Path(folder), lambda text: say(f"  {text}"))
        try:
            if not record.checked:
                check(scene, record)
            left = [] if flags.pairs_only else singles(scene, record, chosen, ends, verbose=flags.verbose)
            left += together(scene, record, pairs(chosen, flags.pairs), ends)
        finally:
            scene.close()
            if not flags.keep:
                lab.down(flags.lab)
    if left:
        say(f"time is over, {len(left)} left: go on with --resume")
        return UNFINISHED
    text = record.report.table()
    sys.stdout.write(text + "\n")
    if flags.write:
        write(text)
    return 0 if record.report.good else 1


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def check(scene: Scene, record: Record) -> None:
    """Keep what is found on the healthy lab."""
    say("healthy lab")
    errors = [f"{c.code} {c.title}: {c.evidence} [{c.symptom}]" for c in healthy(scene)]
    for error in errors:
        say(f"  ERROR on the healthy lab: {error}")
    record.add(errors)


def singles(scene: Scene, record: Record, chosen: list[Fault], ends: float, *, verbose: bool) -> list[str]:
    """Measure the faults that are not on record; return those that time did not allow."""
    left = []
    for number, fault in enumerate(chosen, 1):
        if record.has(fault.name):
            continue
        begun = time.monotonic()
        if begun > ends:
            left.append(fault.name)
            continue
        try:
            result = one(scene, fault)
        except Exception as error:  # noqa: BLE001 - one broken fault must not hide the others
            result = Result(fault.name, 0, 0.0, "", "", f"{type(error).__name__}: {error}")
            if verbose:
                traceback.print_exc()
        record.add(result)
        took = time.monotonic() - begun
        if trouble := mended(scene):
            say(f"    {trouble}")
        say(
            f"{number:3}/{len(chosen)} [{fault.symptom}] {fault.name}: place {result.place} "
            f"in {result.seconds:.1f} s, {result.note or result.top} (client: {result.seen}; {took:.0f} s "
            f"and {time.monotonic() - begun - took:.0f} s to mend)"
        )
    return left


def together(scene: Scene, record: Record, wanted: list[tuple[Fault, Fault]], ends: float) -> list[str]:
    """Measure the pairs that are not on record; return those that time did not allow."""
    left = []
    for first, second in wanted:
        if record.has(first.name, second.name):
            continue
        begun = time.monotonic()
        if begun > ends:
            left.append(f"{first.name} + {second.name}")
            continue
        try:
            pair = both(scene, first, second)
        except Exception as error:  # noqa: BLE001 - as above; it counts as not found
            pair = Pair(first.name, second.name, False, False, time.monotonic() - begun)
            say(f"    {type(error).__name__}: {error}")
        record.add(pair)
        say(f"pair {pair} ({time.monotonic() - begun:.0f} s)")
        mended(scene)
    return left


if __name__ == "__main__":
    sys.exit(main())
