"""The report in Chinese: every heading and sentence of ours, with data left as they are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from gateshift import words
from gateshift.archive.report import write_report
from tests.words.reading import PHRASE

SAMPLES = Path(__file__).parents[2] / "outputs" / "sample"


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    words.use("")


def test_what_is_said_of_a_rollback_is_what_was_measured(tmp_path: Path) -> None:
    """The provider accepts weights before its servers have them, and it need not be DNS that moves them."""
    source = sorted(SAMPLES.glob("*/journal.jsonl"))[0].parent
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    for lang, label, ended in (
        ("en", "until the weights were accepted", "ended: rolled back (stage 2 rolled back: "),
        ("zh", "回滚：权重被接受用时", "运行结束：已回滚（"),
    ):
        words.use(lang)
        page = unescape(write_report(folder).read_text(encoding="utf-8"))
        assert label in page
        assert ended in page


def test_the_report_of_a_rehearsal_speaks_chinese(tmp_path: Path) -> None:
    source = sorted(SAMPLES.glob("*/journal.jsonl"))[0].parent
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    words.use("zh")
    page = unescape(write_report(folder).read_text(encoding="utf-8"))
    assert '<html lang="zh">' in page
    for text in (
        "时间线",
        "各级与判定",
        "谁批准了什么",
        "本页的可信程度",
        "当前 Istio 权重",
        "迁移建立",
        "晋级",
    ):
        assert text in page, text
    heads = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert heads
    assert all(re.search(r"[\u4e00-\u9fff]", head) for head in heads), heads
    for english in ("traffic arrived", "entered, weight", "ruled out"):
        assert english not in page, english
    for sentence in ("All traffic back to APISIX", "of traffic to Istio", "traffic confirmed recovered"):
        assert sentence not in page, sentence
    assert "只按上限检验" in page
    assert "运行结束：已回滚" in page
    assert "可能是：后端自身应答 503" in page
    # The ledger is repeated as its notebook showed it, and diffs and figures are data: the rest is said.
    rest = re.sub(r'<h2 id="ledger">.*?(?=<h2)|<style>.*?</style>|<pre>.*?</pre>', "", page, flags=re.DOTALL)
    rest = re.sub(r"<td>dwell elapsed.*?</td>|<td>errors above limit.*?</td>", "", rest)
    assert PHRASE.findall(re.sub(r"<[^>]*>", " | ", rest)) == []
