"""What a person sees: cards, tables, waits and errors, as HTML and as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateshift import words
from gateshift.errors import Blocked, GateClosed, ParamsError
from gateshift.migration.journal import Journal
from gateshift.notebook.failure import failure_of
from gateshift.notebook.links import linked, place
from gateshift.notebook.progress import Waiting, narrated, spoken
from gateshift.notebook.show import Card, PlanView, Table, columns_of
from gateshift.plan import Plan, Step
from gateshift.runbook.standing import _dashboard, changes_of


@pytest.fixture(autouse=True)
def _english_by_hand():
    words.use("")
    place(Path("/clone/notebooks"), None)
    yield
    words.use("")
    place(Path("/clone/notebooks"), None)


def test_production_is_told_from_the_lab_in_words_and_in_the_band() -> None:
    production, lab = (Card("T", side, {"mode": "plan"}) for side in (True, False))
    assert "PRODUCTION" in repr(production)
    assert "PRODUCTION" in production._repr_html_()
    assert "PRODUCTION" not in repr(lab)
    assert "#b3261e" in production._repr_html_()
    assert "#b3261e" not in lab._repr_html_()


def test_values_are_escaped_and_notebooks_become_links() -> None:
    html = Card("T", False, {"next": "80_rollback <b>"})._repr_html_()
    assert '<a href="80_rollback.ipynb">80_rollback</a> &lt;b&gt;' in html
    assert '→ <a href="90_troubleshoot.ipynb">' in linked("see `gateshift diagnose -p symptom=share`")
    assert linked("gateshift rollback or 80_rollback").count("<a ") == 1


def test_links_of_an_archived_copy_lead_to_the_clone_and_vanish_outside_of_it(tmp_path: Path) -> None:
    place(tmp_path / "notebooks", tmp_path / "outputs" / "m" / "run")
    assert 'href="../../../notebooks/80_rollback.ipynb"' in linked("80_rollback")
    place(tmp_path / "clone" / "notebooks", tmp_path / "elsewhere")
    assert "<a" not in linked("80_rollback")


def test_a_long_path_may_be_broken_and_is_copied_whole() -> None:
    text = (
        "kubectl --kubeconfig ~/.local/state/gateshift/lab/a/operator.kubeconfig get pods, then 80_rollback"
    )
    page = linked(text)
    assert page.count("<wbr>") >= 4
    assert unescape(re.sub(r"<[^>]*>", "", page)) == text
    assert '<a href="80_rollback.ipynb">80_rollback</a>' in page
    assert "<wbr>" not in linked("a few short words and 127.0.0.1:8080")


def test_a_table_sorts_by_its_heads_and_marks_standings_with_a_sign() -> None:
    html = Table("T", ("result", "check"), (("fail", "quota"), ("pass", "uid")))._repr_html_()
    assert html.count("onclick=") == 2
    assert "✗ fail" in html
    assert "✓ pass" in html


_CLICK = """
const [script, cells] = JSON.parse(require("fs").readFileSync(0));
let order = cells.map((text) => ({cells: [{textContent: text}]}));
const body = {get rows() { return order.slice(); },
              appendChild(row) { order = order.filter((one) => one !== row).concat(row); }};
const head = {cellIndex: 0, closest: () => ({tBodies: [body]}), set: {},
              getAttribute(name) { return this.set[name] ?? null; },
              setAttribute(name, value) { this.set[name] = value; },
              removeAttribute(name) { delete this.set[name]; }};
head.parentNode = {cells: [head]};
(function () { eval(script); }).call(head);
console.log(JSON.stringify(order.map((row) => row.cells[0].textContent)));
"""


@pytest.mark.parametrize(
    "ordered",
    [
        ("2026-09-30 23:59", "2026-11-02 08:30", "2026-11-12 07:00"),
        ("07:59:59Z", "08:05:10Z", "08:30:00Z"),
        ("-3", "0.5", "9", "10", "200"),
        ("2 %", "10 %", "99.9 %"),
        ("9s", "10s", "100s"),
        ("1.9.0", "1.21.4", "1.31.0"),
        ("9/30", "10/30", "11/20"),
        ("api", "istio", "ws"),
    ],
)
def test_a_column_sorts_by_what_its_cells_are(ordered: tuple[str, ...]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("the script of a table runs in a browser, or in node")
    found = re.search(r'onclick="([^"]+)"', Table("T", ("x",), ())._repr_html_())
    assert found is not None
    asked = json.dumps([unescape(found[1]), [*ordered[1:], ordered[0]][::-1]])
    done = subprocess.run(
        [node, "-e", _CLICK], input=asked, capture_output=True, text=True, check=True, timeout=60
    )
    assert tuple(json.loads(done.stdout)) == ordered


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_fits_its_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = repr(Table("T", ("result", "check", "why"), (("fail", "quota", "word " * 60),)))
    assert max(columns_of(line) for line in text.splitlines()) <= width
    assert text.count("word") == 60


@pytest.mark.parametrize("width", [80, 200])
def test_a_wide_table_wraps_every_column_and_cuts_nothing_off(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("result", "check", "measured", "why", "remedy")
    row = ("fail", "quota", "GET http://127.0.0.1:9/" + "x" * 90, "因为" * 40, "gateshift diagnose " * 9)
    lines = repr(Table("T", columns, (row,))).splitlines()
    assert max(columns_of(line) for line in lines) <= width
    squeezed = "".join(lines).replace(" ", "")
    assert squeezed.count("x") == 90
    assert squeezed.count("因") == 40
    assert "".join(lines).count("diagnose") == 9


def test_chinese_columns_line_up() -> None:
    text = repr(Table("表", ("项目", "值"), (("权重", "1"), ("a", "2"))))
    starts = [columns_of(line[: re.search(r"[12值]\Z", line).start()]) for line in text.splitlines()[1:]]
    assert len(set(starts)) == 1


def test_a_long_plan_says_how_much_it_does_not_show() -> None:
    plan = Plan("k", "t", tuple(Step("set", f"r{i}") for i in range(50)), "back")
    assert "10 more steps" in repr(PlanView(plan))
    assert "10 more steps" in PlanView(plan)._repr_html_()


def test_a_wait_shows_progress_time_left_and_beats() -> None:
    now, lines = [0.0], []
    waiting = Waiting("dwell", lines.append, every=10.0, clock=lambda: now[0])
    for second in range(31):
        now[0] = float(second)
        waiting.beat(second, 60, "share 10 %")
    assert len(lines) == 4
    assert "50 %" in lines[-1]
    assert "about 30 s left" in lines[-1]
    assert "share 10 %" in lines[-1]
    waiting.close()
    assert "done after 30 s" in lines[-1]


def test_a_wait_without_an_end_says_how_long_it_has_been() -> None:
    lines: list[str] = []
    Waiting("arrival", lines.append).beat(0, None, "nothing yet")
    assert "so far" in lines[0]


def test_work_that_tells_its_steps_beats_in_between_and_says_how_it_ended() -> None:
    lines: list[str] = []
    with narrated("Install Istio", lines.append, every=0.05, tick=0.01) as take:
        take("istiod: 0 of 1 pods ready")
        deadline = time.monotonic() + 5
        while len(lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines[0] == "istiod: 0 of 1 pods ready"
    assert "Install Istio" in lines[1]
    assert "so far; istiod: 0 of 1 pods ready" in lines[1]
    silent = len(lines)
    time.sleep(0.1)
    assert len(lines) == silent


def test_work_that_fails_ends_its_wait_and_keeps_its_error() -> None:
    before = threading.active_count()
    with pytest.raises(Blocked), narrated("Apply", lambda _: None):
        raise Blocked("x")
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h"), (14 * 86400, "14 d")]
)
def test_durations_as_said(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def journal(tmp_path: Path, *kinds: tuple[str, dict[str, object]]) -> Journal:
    book = Journal.open(tmp_path / "journal.jsonl", who="t", run="r")
    book.append("migration.opened", params_digest="0")
    book.append("run.started", notebook="00_preflight")
    book.append("preflight.done", ok=True)
    for kind, data in kinds:
        book.append(kind, **data)
    return book


def test_an_error_before_any_change_says_that_nothing_was_changed(tmp_path: Path) -> None:
    book = journal(tmp_path)
    changed, kept = changes_of(book.state, book.records, "r")
    text = repr(failure_of(GateClosed("plan x waits"), changed=changed, unchanged=kept))
    assert changed == []
    assert "plan x waits" in text
    assert "Nothing was changed in this run" in text
    assert "Istio 0 %, APISIX 100 %" in text


def test_an_error_in_the_middle_of_an_install_does_not_claim_that_nothing_happened(tmp_path: Path) -> None:
    book = journal(tmp_path, ("install.intent", {}))
    changed, kept = changes_of(book.state, book.records, "r")
    assert any("install had begun" in line for line in changed)
    assert not any("Nothing was changed" in line for line in kept)
    assert any("weights" in line.lower() for line in kept)


def test_an_error_links_to_the_notebook_that_helps() -> None:
    html = failure_of(Blocked("preflight: 2 checks failed"))._repr_html_()
    assert 'href="90_troubleshoot.ipynb"' in html
    assert "What was not changed" in html


def test_a_defect_is_called_one_and_an_interrupt_is_not() -> None:
    assert "defect of gateshift" in repr(failure_of(ZeroDivisionError("x")))
    assert "interrupted" in repr(failure_of(KeyboardInterrupt()))


def test_errors_speak_chinese_with_the_detail_kept() -> None:
    words.use("zh")
    text = repr(failure_of(ParamsError("params/x.yaml: stages: weights must rise")))
    assert "发生了什么: params/x.yaml: stages: weights must rise" in text
    assert "更正参数文件" in text


def test_a_table_speaks_the_language_in_use_in_a_notebook_and_in_a_terminal() -> None:
    table = Table("Preflight", ("result", "why it matters"), (("warn", "the way back leads here"),))
    try:
        words.use("zh")
        for said in (table._repr_html_(), repr(table)):
            assert "预检" in said
            assert "为何重要" in said
            assert "警告" in said
            assert "退路通向这里" in said
            assert "why it matters" not in said
    finally:
        words.use("")


@pytest.mark.parametrize(
    ("address", "records", "wanted"),
    [
        (None, [], ""),
        ("https://g.example/d/canary", [], "https://g.example/d/canary"),
        (
            "https://g.example/d/canary",
            ["stage.entered"],
            "https://g.example/d/canary?from=1790000000000&to=now",
        ),
        (
            "https://g.example/d/c?orgId=1",
            ["verdict", "stage.entered"],
            "https://g.example/d/c?orgId=1&from=179",
        ),
    ],
)
def test_the_card_links_to_the_dashboard_at_the_time_of_the_stage(
    address: str | None, records: list[str], wanted: str
) -> None:
    metrics = SimpleNamespace(dashboard=address)
    journal = SimpleNamespace(records=[SimpleNamespace(kind=kind, unix=1.79e9 + 1800) for kind in records])
    found = _dashboard(SimpleNamespace(params=SimpleNamespace(metrics=metrics), journal=journal))  # type: ignore[arg-type]  # what it reads
    assert found.startswith(wanted)
    assert bool(found) == bool(wanted)
    html = Card("T", True, {"dashboard": found})._repr_html_()
    assert (f'href="{found.replace("&", "&amp;")}"' in html) == bool(found)
    assert "<script" not in Card("T", True, {"dashboard": 'https://x"><script>'})._repr_html_()
