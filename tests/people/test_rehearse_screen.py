"""What a rehearsal draws on a terminal: no line wraps by itself, so nothing of a line stays behind."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from gateshift import words
from gateshift.rehearse.director import Director
from gateshift.rehearse.screen import Screen
from gateshift.rehearse.table import folded, stage_table
from tests.words.reading import PHRASE

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONG = "rehearsal-20261129t210000-fault: canary stage 2, with the new gateway's backends cut connections"
_LINE = "12:00:01Z error rate [/0] % 共 2392 requests; 2 % or more is ruled out (at most 1 % chance of error)"


def drawn(monkeypatch: pytest.MonkeyPatch, columns: int, **environment: str) -> str:
    for name in ("CI", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    screen = Screen(file)
    screen.phase(_LONG)
    screen.line(_LINE)
    time.sleep(0.2)  # frames are drawn by a clock
    screen.close()
    return file.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    shown = drawn(monkeypatch, columns, TTY_COMPATIBLE="1")
    lines = _CONTROL.sub("", shown).replace("\r", "\n").splitlines()
    assert any("12:00:01Z" in line for line in lines)
    assert max(cell_len(line) for line in lines) <= columns
    assert "canary stage 2," in shown
    cut = [line.rstrip() for line in lines if line.rstrip().endswith("…")]
    assert cut or columns > cell_len(_LONG)
    whole = f"{_LONG} {_LINE}".split()
    assert all(line.endswith(" …") and line.split()[-2] in whole for line in cut), cut


def test_a_log_takes_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = drawn(monkeypatch, 80).splitlines()
    assert shown == [f"[    0 s] {_LONG}", f"{'':10}{_LINE}"]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_summary_speaks_the_language_in_use_and_fits(
    monkeypatch: pytest.MonkeyPatch, columns: int, lang: str
) -> None:
    """The migration that the archive has as its sample: promoted once, then rolled back."""
    journal = next((Path(__file__).parents[2] / "outputs" / "sample").glob("*/journal.jsonl"))
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(words, "_chosen", [lang])
    director = Director(
        migration=journal.parent.name,
        params_file="params/lab.yaml",
        outputs=journal.parents[1],
        overrides={},
        narrate=print,
    )
    shown = stage_table(words.term("promoted"), director)
    assert max(cell_len(line) for line in shown.splitlines()) <= columns
    # One long text per item of the checklist: its lines joined again, no sentence stays English.
    joined = " ".join(line.strip() for line in shown.splitlines())
    assert bool(PHRASE.search(joined)) is (lang == "en")
    for word in {"en": ("promote", "rollback", "[pass]"), "zh": ("晋级", "回滚", "[通过]")}[lang]:
        assert word in shown


@pytest.mark.parametrize("columns", [60, 80])
def test_how_a_rehearsal_failed_fits_and_its_path_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    path = "outputs/rehearsal-20261130t174030/40_verify-20261130T174106349Z/40_verify-attempt2.ipynb"
    lines = folded(
        f"失败：第一次迁移：{'网关的副本尚未就绪，' * 12}请查看 {path} 。\nsecond line"
    ).splitlines()
    assert max(cell_len(line) for line in lines if path not in line) <= columns
    assert [line.strip() for line in lines if path in line] == [path]
    assert lines[-1] == "second line"
