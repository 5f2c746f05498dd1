"""The catalogue is complete: each sentence in each language, with the same names, used, and nothing else."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest

from gateshift import errors, words
from gateshift.migration.state import Phase
from gateshift.runbook.order import NOTEBOOKS

LIB = Path(words.__file__).parent.parent
# Keys that code puts together: prefix, and every ending it can have.
BUILT = {
    "phase.": {phase.value.replace(" ", "_") for phase in Phase},
    "decision.": {"promote", "hold", "rollback"},
    "standing.": {"pass", "warn", "fail", "info"},
    "title.": set(NOTEBOOKS.values()),
    "hint.": set(errors.__all__),
    "notify.": {"held", "failed"},
    "report.section.": {
        *("timeline", "stages", "plots", "rollback", "approvals", "changes"),
        *("ledger", "attempts", "runs", "trust"),
    },
    "where.": {"production", "lab", "production.note", "lab.note"},
    "plan.column.": {"verb", "target", "note", "change"},
}


def names(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def constants() -> tuple[set[str], set[str]]:
    """Every text in the code, and those given to ``tell`` as they stand."""
    every, told = set(), set()
    for path in LIB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                every.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tell" and node.args:
                told |= {n.value for n in (node.args[0],) if isinstance(n, ast.Constant)}
    return every, told


@pytest.mark.parametrize("key", sorted(words.catalogue()))
def test_each_message_is_in_each_language_with_the_same_names(key: str) -> None:
    texts = words.catalogue()[key]
    assert set(texts) == set(words.LANGUAGES)
    assert all(text.strip() for text in texts.values())
    assert len({frozenset(names(text)) for text in texts.values()}) == 1


def test_chinese_is_chinese() -> None:
    """A text without a Chinese character may only be names, placeholders and punctuation."""
    english = [
        key
        for key, texts in words.catalogue().items()
        if not re.search(r"[\u4e00-\u9fff]", texts["zh"])
        and re.sub(r"\{\w+\}|gateshift|99_report|UID|[^a-zA-Z]", "", texts["zh"])
    ]
    assert english == []


def test_every_key_in_code_exists_and_every_key_is_used() -> None:
    built = {prefix + end for prefix, ends in BUILT.items() for end in ends}
    texts, told = constants()
    every = set(words.catalogue())
    assert (told | built) - every == set()
    # The report's columns and outcomes are looked up by the English words that stand in its code.
    spoken = {key for key in every if key.startswith(("report.col.", "report.word."))}
    slugs = {re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") for text in texts}
    assert {key.rpartition(".")[2] for key in spoken} - slugs == set()
    said = {key for key in every if key.startswith("report.said.")}
    short = {key.removeprefix("report.said.").removesuffix("_passed").removesuffix("_failed") for key in said}
    assert short - texts - {key.removeprefix("report.said.") for key in texts} == set()
    assert every - texts - built - spoken - said == set()


def test_language_of_params_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESHIFT_LANG", "zh_CN.UTF-8")
    try:
        words.use("")
        assert words.language() == "zh"
        words.use("en")
        assert words.language() == "en"
    finally:
        words.use("")


def test_a_missing_value_is_an_error_not_a_hole() -> None:
    with pytest.raises(KeyError):
        words.tell("gate.refused")
