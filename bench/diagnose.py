"""The fault catalogue on a lab of real parts: each fault injected, seen by a client, diagnosed, mended.

Measured: how often the top-ranked cause is the right one, how often it is among the first three, errors on a
healthy lab, seconds a diagnosis takes, and how often both of two faults are found. `make bench-diagnose`
prints the table and writes it into docs/troubleshooting.md.

    python -m bench.diagnose [--only WORDS] [--no-pairs] [--lab NAME] [--keep] [--write]
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
from dataclasses import dataclass
from pathlib import Path

from bench import faults_backend, faults_gateway, faults_ours  # noqa: F401 - they fill the catalogue
from bench.catalogue import CATALOGUE, Fault
from bench.scene import Scene, open_scene
from gateshift import diagnose, lab
from gateshift.diagnose import Cause
from gateshift.diagnose.present import catalogue
from gateshift.runbook.inputs import project_root

LIMIT = 15.0
"""Seconds a diagnosis may take."""


@dataclass(frozen=True)
class Result:
    """One diagnosis: the place of the right cause (1 is the top, 0 not found), and how long it took."""

    fault: Fault
    place: int
    seconds: float
    seen: str
    top: str
    note: str = ""


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
            return Result(fault, 0, 0.0, str(seen), "", "the symptom did not show")
        begun = time.time()
        with scene.load(lambda: fault.ask(scene), threads=fault.load):
            time.sleep(fault.settle if settle is None else settle)
            causes, seconds = ask_why(scene, fault, begun)
    top = f"{causes[0].code}: {causes[0].title}" if causes else "nothing"
    return Result(fault, place_of(fault, causes), seconds, str(seen), top)


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


def both(scene: Scene, first: Fault, second: Fault) -> tuple[bool, bool, float, str]:
    """Two faults at once, all trees asked in one run; found means an error among the first six findings.

    A limit that does not fire shows nowhere by itself: for that tree the complaint is stated as well.
    """
    with ExitStack() as stack:
        for fault in (first, second):
            stack.enter_context(fault.inject(scene))
        for fault in (first, second):
            seen = scene.until(lambda f=fault: f.ask(scene), fault.shown)
            if not fault.shown(seen):
                return True, True, 0.0, f"not shown together: {fault.name}: {seen}"
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
            places.append(1 <= place_of(fault, listed) <= 6)
    return places[0], places[1], seconds, ""


def main() -> int:
    """Run the bench; exit 1 when a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name, symptom or code has these words")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--pairs-only", action="store_true", help="leave out the single faults")
    parser.add_argument("--lab", default="diagnose")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    parser.add_argument("--write", action="store_true", help="write the table into docs/troubleshooting.md")
    parser.add_argument("--verbose", action="store_true")
    flags = parser.parse_args()
    words = flags.only.split(",") if flags.only else []
    chosen = [
        f
        for f in CATALOGUE
        if not words or any(w in f"{f.name} {f.symptom} {' '.join(f.codes)}" for w in words)
    ]
    with tempfile.TemporaryDirectory() as folder:
        scene = open_scene(flags.lab, Path(folder), lambda text: say(f"  {text}"))
        try:
            report = run(scene, chosen, flags.pairs, single=not flags.pairs_only, verbose=flags.verbose)
        finally:
            scene.close()
            if not flags.keep:
                lab.down(flags.lab)
    text = report.table()
    sys.stdout.write(text + "\n")
    if flags.write:
        write(text)
    return 0 if report.good else 1


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass
class Report:
    """All figures of one run."""

    results: list[Result]
    errors: list[Cause]
    together: list[tuple[Fault, Fault, bool, bool, float, str]]

    @property
    def shown(self) -> list[Result]:
        return [r for r in self.results if not r.note]

    @property
    def judged(self) -> list[tuple[Fault, Fault, bool, bool, float, str]]:
        return [t for t in self.together if not t[5]]

    @property
    def good(self) -> bool:
        top1, top3 = self.share(1), self.share(3)
        found = self.pair_share()
        return (
            not self.errors
            and len(self.shown) == len(self.results)
            and top1 >= 0.95
            and top3 == 1.0
            and all(r.seconds < LIMIT for r in self.results)
            and (not self.judged or found >= 0.8)
        )

    def share(self, places: int) -> float:
        return sum(1 <= r.place <= places for r in self.results) / max(len(self.results), 1)

    def pair_share(self) -> float:
        return sum(a and b for _, _, a, b, _, _ in self.judged) / max(len(self.judged), 1)

    def table(self) -> str:
        times = sorted(r.seconds for r in self.shown) or [0.0]
        slowest = max([*times, *(t[4] for t in self.judged)])
        median, shown, both = times[len(times) // 2], len(self.shown), self.pair_share()
        lines = [
            "| measure | bound | measured |",
            "|---|---|---|",
            f"| faults injected, symptom seen by a real request | 40 | {shown} of {len(self.results)} |",
            f"| top-ranked cause is right | >= 95 % | {self.share(1):.1%} |",
            f"| right cause among the first three | 100 % | {self.share(3):.1%} |",
            f"| findings of level error on the healthy lab, all trees | 0 | {len(self.errors)} |",
            f"| longest diagnosis | < {LIMIT:.0f} s | {slowest:.1f} s (median {median:.1f} s) |",
            f"| two faults at once, both found | >= 80 % | {both:.0%} of {len(self.judged)} pairs |",
            "",
            "| tree | fault | a client sees | place | s | top-ranked cause |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.fault.symptom} | {r.fault.name}{' ¹' if r.fault.replaced else ''} | {clean(r.seen)} "
            f"| {r.place or 'not found'} | {r.seconds:.1f} | {clean(r.note or r.top)} |"
            for r in self.results
        ]
        notes = sorted({r.fault.replaced for r in self.results if r.fault.replaced})
        if notes:
            lines += ["", "¹ " + "; ".join(notes) + "."]
        missed = [t for t in self.judged if not (t[2] and t[3])]
        if missed:
            lines += ["", "Pairs of which one was not found: "]
            lines += [
                f"- {a.name}{'' if x else ' (not found)'} + {b.name}{'' if y else ' (not found)'}"
                for a, b, x, y, _, _ in missed
            ]
        return "\n".join(lines)


def clean(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:110]


def run(
    scene: Scene, chosen: list[Fault], count: int, *, single: bool = True, verbose: bool = False
) -> Report:
    """Run the whole catalogue on an open scene."""
    say("healthy lab")
    errors = healthy(scene)
    for cause in errors:
        say(f"  ERROR on the healthy lab: {cause.code} {cause.title}: {cause.evidence} [{cause.symptom}]")
    results = []
    for number, fault in enumerate(chosen if single else [], 1):
        begun = time.monotonic()
        try:
            result = one(scene, fault)
        except Exception as error:  # noqa: BLE001 - one broken fault must not hide the others
            result = Result(fault, 0, 0.0, "", "", f"{type(error).__name__}: {error}")
            if verbose:
                traceback.print_exc()
        results.append(result)
        say(
            f"{number:3}/{len(chosen)} [{fault.symptom}] {fault.name}: place {result.place} "
            f"in {result.seconds:.1f} s, {result.note or result.top} "
            f"(client: {result.seen}; {time.monotonic() - begun:.0f} s)"
        )
        if trouble := mended(scene):
            say(f"    {trouble}")
    together = []
    for first, second in pairs(chosen, count):
        try:
            found = both(scene, first, second)
        except Exception as error:  # noqa: BLE001 - as above
            found = (False, False, 0.0, f"{type(error).__name__}: {error}")
        together.append((first, second, *found))
        say(f"pair {first.name} + {second.name}: {found}")
        mended(scene)
    return Report(results, errors, together)


def write(text: str) -> None:
    """Put the figures, and the causes as the code knows them, between their marks in the document."""
    path = project_root() / "docs" / "troubleshooting.md"
    page = path.read_text(encoding="utf-8")
    for begin, end, body in (
        ("<!-- bench:begin (written by make bench-diagnose) -->", "<!-- bench:end -->", text),
        ("<!-- causes:begin -->", "<!-- causes:end -->", f"\n{catalogue()}\n"),
    ):
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{body}\n{end}{rest.partition(end)[2]}"
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
