"""A rehearsal as it looks on a real terminal, small and wide: captured with tmux, on a lab of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.cells import cell_len

from gateshift import lab as laboratory
from gateshift.migration.journal import Record, read_records

pytestmark = [pytest.mark.lab, pytest.mark.long]

ROOT = Path(__file__).parents[2]
LAB = "terminal"
LIMIT = 600.0
SMALL, WIDE = (80, 24), (200, 50)
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")
HEADS = ["stage", "weight", "observed", "requests", "errors", "P95", "verdict", "time"]


@pytest.fixture(scope="module")
def tmux() -> str:
    program = shutil.which("tmux")
    if program is None:
        line = (
            "NO TMUX: how a rehearsal looks on a terminal was NOT tested. Install it: `apt-get install tmux`."
        )
        print(f"\n{'!' * 79}\n{line}\n{'!' * 79}", file=sys.stderr)
        pytest.skip(line)
    return program


@pytest.fixture(scope="module", autouse=True)
def _lab_is_ended() -> Iterator[None]:
    yield
    laboratory.down(LAB)


@dataclass
class Terminal:
    """A rehearsal in a terminal of a given size: its screens while it ran, and all it wrote at its end."""

    columns: int
    rows: int
    screens: list[str] = field(default_factory=list)
    wrapped: list[str] = field(default_factory=list)
    """Lines that the terminal broke, because they were longer than it is wide."""
    written: str = ""
    records: tuple[Record, ...] = ()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.written.splitlines()]

    def line(self, start: str) -> int:
        """The place of the line that begins with *start*."""
        return next(i for i, line in enumerate(self.lines) if line.strip().startswith(start))


def rehearsed(program: str, size: tuple[int, int], folder: Path) -> Terminal:
    """Run the rehearsal that is broken on purpose in a tmux session of *size*."""
    columns, rows = size
    name = f"gateshift-{os.getpid()}-{columns}"
    server = [program, "-L", name, "-f", "/dev/null"]

    def ask(*words: str) -> str:
        done = subprocess.run([*server, *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout

    command = [str(Path(sys.executable).with_name("gateshift")), "rehearse", "--short", "--only", "fault"]
    typed = shlex.join([*command, "--lab", LAB, "--keep"])
    # Kept open at its end, to be read; a CI's marks would make plain lines of it.
    typed = f"cd {shlex.quote(str(ROOT))}; {typed}; echo EXIT $?; sleep {LIMIT:.0f}"
    env = {k: v for k, v in os.environ.items() if k not in {"CI", "COLUMNS", "LINES", "NO_COLOR", "TMUX"}}
    subprocess.run(
        [*server, "new-session", "-d", "-s", "one", "-x", str(columns), "-y", str(rows), typed],
        env={**env, "LC_ALL": "C.UTF-8"},
        check=True,
        timeout=20,
    )
    seen = Terminal(columns, rows)
    try:
        deadline = time.monotonic() + LIMIT
        while not re.search(r"^EXIT \d+", seen.written, re.MULTILINE):
            assert time.monotonic() < deadline, seen.written
            time.sleep(1.0)
            seen.screens.append(ask("capture-pane", "-p", "-e", "-t", "one"))
            seen.written = ask("capture-pane", "-p", "-S", "-", "-t", "one")
            # With -J tmux puts together what it had to break.
            whole = ask("capture-pane", "-p", "-J", "-S", "-", "-t", "one")
            seen.wrapped += [line for line in whole.splitlines() if cell_len(line.rstrip()) > columns]
    finally:
        subprocess.run([*server, "kill-server"], check=False, timeout=20)
    for number, screen in enumerate(seen.screens):
        (folder / f"{columns}-{number:03}.txt").write_text(screen, encoding="utf-8")
    (folder / f"{columns}-end.txt").write_text(seen.written, encoding="utf-8")
    named = re.search(r"^archive: (\S+)$", seen.written, re.MULTILINE)
    assert named, seen.written
    seen.records = read_records(ROOT / named[1] / "journal.jsonl")
    shutil.rmtree(ROOT / named[1])
    return seen


@pytest.fixture(scope="module", params=[SMALL, WIDE], ids=["80x24", "200x50"])
def terminal(request: pytest.FixtureRequest, tmux: str, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return rehearsed(tmux, request.param, tmp_path_factory.mktemp("terminal"))


def test_it_ends_well_and_the_terminal_breaks_no_line(terminal: Terminal) -> None:
    assert "EXIT 0" in terminal.lines, terminal.written
    assert terminal.wrapped == []
    assert len(terminal.screens) > 20


def test_the_live_line_is_one_line_below_the_phases_and_leaves_nothing_behind(terminal: Terminal) -> None:
    spinning = 0
    for screen in terminal.screens:
        lines = [line.rstrip() for line in COLOUR.sub("", screen).splitlines()]
        live = [line for line in lines if re.match(r"[⠁-⣿] ", line)]
        spinning += bool(live)
        assert len(live) <= 1, screen
        for line in live:
            assert cell_len(line) <= terminal.columns
            assert "…" not in line or re.search(r"\S …$", line), f"cut in a word: {line}"
            below = lines[lines.index(line) + 1 :]
            assert not any(below), screen
    assert spinning > 20
    assert not re.search(r"^[⠁-⣿] ", terminal.written, re.MULTILINE), "the live line is gone at the end"


def test_each_phase_stands_whole_below_the_one_before(terminal: Terminal) -> None:
    phases = [line for line in terminal.lines if re.match(r"\[ *\d+ s\] ", line)]
    said = " ".join(terminal.written.split())
    for name in ("preflight", "install", "translate", "apply", "verify", "canary stage 1", "rollback"):
        assert sum(f"-fault: {name}" in line for line in phases) >= 1, terminal.written
    assert "canary stage 2, with " in said
    assert len({line.index("]") for line in phases}) == 1, "the times stand below each other"


def test_the_table_is_whole(terminal: Terminal) -> None:
    begin, end = (terminal.line(corner) for corner in ("┏", "└"))
    table = terminal.lines[begin : end + 1]
    assert len({cell_len(line) for line in table}) == 1, table
    assert [head.strip() for head in table[1].strip("┃ ").split("┃")] == HEADS
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in table[3:-1]]
    assert [len(row) for row in rows] == [len(HEADS)] * 2, table
    assert [row[0] for row in rows] == ["1", "2"], "one line each"
    assert all(all(row) for row in rows)
    assert "…" not in "".join(table)
    verdicts = [r.data["decision"] for r in terminal.records if r.kind == "verdict"]
    assert [row[HEADS.index("verdict")] for row in rows] == verdicts


def test_the_checklist_and_the_archive_are_said_in_whole_words(terminal: Terminal) -> None:
    begin = terminal.line("rollback: DNS change accepted")
    shown = terminal.lines[begin:]
    words = " ".join(shown).split()
    (done,) = (r for r in terminal.records if r.kind == "rollback.done")
    for what, standing, detail in done.data["checklist"]:
        wanted = f"[{standing}] {what}: {detail}".split()
        assert any(words[i : i + len(wanted)] == wanted for i in range(len(words))), (wanted, shown)
    assert not any("…" in line for line in shown)
    assert any(re.fullmatch(r"archive: outputs/rehearsal-\w+-fault", line) for line in shown)
    assert any(re.fullmatch(r"rehearsal took \d+ s", line) for line in shown)
