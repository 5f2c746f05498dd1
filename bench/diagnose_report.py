"""What a pass of the diagnosis bench measured: kept result by result, and the table made of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.catalogue import CATALOGUE, Fault
from gateshift.diagnose.present import catalogue
from gateshift.runbook.inputs import project_root

__all__ = ["LIMIT", "Pair", "Record", "Report", "Result", "write"]

LIMIT = 15.0
"""Seconds a diagnosis may take."""

PAGE = Path("docs") / "troubleshooting.md"


@dataclass(frozen=True)
class Result:
    """One diagnosis: the place of the right cause (1 is the top, 0 not found), and how long it took.

    *fault* is its name; a *note* says why nothing could be measured.
    """

    fault: str
    place: int
    seconds: float
    seen: str
    top: str
    note: str = ""

    @property
    def about(self) -> Fault:
        return next(f for f in CATALOGUE if f.name == self.fault)


@dataclass(frozen=True)
class Pair:
    """Two faults at once: which of them was found; a *note* says why they did not show together."""

    first: str
    second: str
    first_found: bool
    second_found: bool
    seconds: float
    note: str = ""


@dataclass
class Report:
    """All figures of one pass; *errors* are findings of level error on the healthy lab."""

    results: list[Result] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    together: list[Pair] = field(default_factory=list)

    @property
    def shown(self) -> list[Result]:
        return [r for r in self.results if not r.note]

    @property
    def judged(self) -> list[Pair]:
        return [t for t in self.together if not t.note]

    @property
    def good(self) -> bool:
        return (
            not self.errors
            and len(self.shown) == len(self.results)
            and self.share(1) >= 0.95
            and self.share(3) == 1.0
            and all(s < LIMIT for s in self.times)
            and (not self.judged or self.pair_share() >= 0.8)
        )

    @property
    def times(self) -> list[float]:
        return sorted([r.seconds for r in self.shown] + [t.seconds for t in self.judged]) or [0.0]

    def share(self, places: int) -> float:
        return sum(1 <= r.place <= places for r in self.results) / max(len(self.results), 1)

    def pair_share(self) -> float:
        return sum(t.first_found and t.second_found for t in self.judged) / max(len(self.judged), 1)

    def table(self) -> str:
        times, pairs = self.times, len(self.judged)
        aside = len(self.together) - pairs
        shown, median = len(self.shown), times[len(times) // 2]
        lines = [
            "| measure | bound | measured |",
            "|---|---|---|",
            f"| faults injected, symptom seen by a real request | 40 | {shown} of {len(self.results)} |",
            f"| top-ranked cause is right | >= 95 % | {self.share(1):.1%} |",
            f"| right cause among the first three | 100 % | {self.share(3):.1%} |",
            f"| findings of level error on the healthy lab, all trees | 0 | {len(self.errors)} |",
            f"| longest diagnosis | < {LIMIT:.0f} s | {times[-1]:.1f} s (median {median:.1f} s) |",
            f"| two faults at once, both found | >= 80 % | {self.pair_share():.0%} of {pairs} pairs |",
            "",
            "| tree | fault | a client sees | place | s | top-ranked cause |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.about.symptom} | {r.fault}{' ¹' if r.about.replaced else ''} | {_clean(r.seen)} "
            f"| {r.place or 'not found'} | {r.seconds:.1f} | {_clean(r.note or r.top)} |"
            for r in self.results
        ]
        if notes := sorted({r.about.replaced for r in self.results if r.about.replaced}):
            lines += ["", "¹ " + "; ".join(notes) + "."]
        if missed := [t for t in self.judged if not (t.first_found and t.second_found)]:
            lines += ["", "Pairs of which one was not found:", ""]
            lines += [
                f"- {t.first}{'' if t.first_found else ' (not found)'} + "
                f"{t.second}{'' if t.second_found else ' (not found)'}"
                for t in missed
            ]
        if aside:
            lines += ["", f"{aside} more pairs cannot show together (one hides the other from every client)."]
        return "\n".join(lines)


def _clean(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:110]


class Record:
    """A pass on disk, a line per result, so that it can go on after an interruption.

    The first line has the digest of the code that is measured. With *resume* a record of other code raises
    SystemExit; without it the record begins anew.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.report = Report()
        self.checked = False
        code = _code()
        if resume and path.exists():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if lines[0] != {"code": code}:
                raise SystemExit(f"{path} was measured with other code: begin anew, without --resume")
            for line in lines[1:]:
                self._take(line)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"code": code}) + "\n", encoding="utf-8")

    def _take(self, line: dict[str, Any]) -> None:
        if "healthy" in line:
            self.checked = True
            self.report.errors = line["healthy"]
        elif "first" in line:
            self.report.together.append(Pair(**line))
        else:
            self.report.results.append(Result(**line))

    def add(self, what: Result | Pair | list[str]) -> None:
        """Keep a result, a pair, or the errors found on the healthy lab."""
        line = {"healthy": what} if isinstance(what, list) else asdict(what)
        self._take(line)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def has(self, first: str, second: str = "") -> bool:
        """Whether a fault (or a pair of them) is measured already."""
        if second:
            return any((t.first, t.second) == (first, second) for t in self.report.together)
        return any(r.fault == first for r in self.report.results)


def _code() -> str:
    """The digest of everything whose change would make results of two passes differ."""
    digest = hashlib.sha256()
    root = project_root()
    for folder, pattern in (("lib/gateshift", "**/*"), ("bench", "*.py"), ("params", "*.yaml")):
        for path in sorted((root / folder).glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def write(text: str) -> None:
    """Put the figures, and the causes as the code knows them, between their marks in the document."""
    path = project_root() / PAGE
    page = path.read_text(encoding="utf-8")
    for begin, end, body in (
        ("<!-- bench:begin (written by make bench-diagnose) -->", "<!-- bench:end -->", text),
        ("<!-- causes:begin -->", "<!-- causes:end -->", f"\n{catalogue()}\n"),
    ):
        head, _, rest = page.partition(begin)
        page = f"{head}{begin}\n{body}\n{end}{rest.partition(end)[2]}"
    path.write_text(page, encoding="utf-8")
