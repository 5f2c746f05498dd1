"""The catalogue is complete: each sentence in each language, with the same names, used, and nothing else."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateshift import errors, words
from gateshift.diagnose.causes import KNOWN
from gateshift.migration.state import Phase
from gateshift.runbook.order import NOTEBOOKS

LIB = Path(words.__file__).parent.parent
RECORDED = ("reason.", "term.")
# Keys that code puts together: prefix, and every ending it can have.
BUILT = {
    "phase.": {phase.value.replace(" ", "_") for phase in Phase},
    "decision.": {"promote", "hold", "rollback"},
    "standing.": {"pass", "warn", "fail", "info"},
    "title.": set(NOTEBOOKS.values()),
    "hint.": set(errors.__all__),
    "rehearse.verb.": {"preflight", "install", "translate", "apply", "verify"},
    "notify.": {"held", "failed"},
    "report.section.": {
        *("timeline", "stages", "plots", "rollback", "approvals", "changes", "compared"),
        *("ledger", "attempts", "runs", "trust"),
    },
    "status.label.": {
        *("migration", "phase", "stage", "weight_percent", "rolling_back", "records", "last_record"),
        *("last_verdict", "lock", "next"),
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


def whole(texts: Mapping[str, str]) -> bool:
    """Return whether a message is in each language, with the same names in each."""
    said = set(texts) == set(words.LANGUAGES) and all(text.strip() for text in texts.values())
    return said and len({frozenset(names(text)) for text in texts.values()}) == 1


def test_each_message_is_in_each_language_with_the_same_names() -> None:
    assert words.catalogue()
    assert [key for key, texts in words.catalogue().items() if not whole(texts)] == []


@pytest.mark.parametrize("texts", [{"en": "a"}, {"en": "a", "zh": " "}, {"en": "{a}", "zh": "{b}"}])
def test_a_message_that_is_not_whole_is_seen(texts: dict[str, str]) -> None:
    assert not whole(texts)
    assert whole({"en": "{a} b", "zh": "b {a}"})


def test_each_key_is_written_once() -> None:
    """YAML keeps the last of two and says nothing: the first sentence would stay English."""
    text = (LIB / "words" / "messages.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^([\w.]+):", text, re.MULTILINE)
    assert sorted(keys) == sorted(words.catalogue())


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
    recorded = {key for key in every if key.startswith(RECORDED)}  # found by their English form
    single = {key for key in every if key.endswith(".one") and key.removesuffix(".one") in every}
    assert every - texts - built - spoken - said - recorded - single == set()


def test_one_thing_is_no_plural() -> None:
    titles = {count: words.tell("plan.title", title="T", count=count, digest="d") for count in (1, 2)}
    assert titles == {1: "T — 1 step, digest d", 2: "T — 2 steps, digest d"}


def fragments(text: str) -> list[str]:
    """The parts of a sentence between its values."""
    return [part for part in re.split(r"\{\w+\}", text) if part.strip(" %;,.()")]


def test_every_recorded_sentence_is_made_by_the_code_as_it_stands_in_the_catalogue() -> None:
    """Whoever rewords a reason in the code has to reword it here: else it would stay English unnoticed."""
    made = [text for text in constants()[0] if len(text) > 2]
    made += [cause.title for cause in KNOWN.values()]
    gone = {
        key: part
        for key, texts in words.catalogue().items()
        if key.startswith(RECORDED) and not key.startswith("reason.hint.")  # these: test_hints.py, whole
        for part in fragments(texts["en"])
        if not covered(part.strip(" %;,.():s"), made)
    }
    assert gone == {}


def test_every_cause_that_can_be_named_is_in_the_catalogue() -> None:
    found = {
        key.removeprefix("reason.cause.").replace("_", "-"): texts["en"]
        for key, texts in words.catalogue().items()
        if key.startswith("reason.cause.")
    }
    plain = {code: re.sub(r"\{(\w+):[^}]*\}", r"{\1}", cause.title) for code, cause in KNOWN.items()}
    assert found == plain


def covered(part: str, made: list[str]) -> bool:
    """True when *part* stands in one text of the code, or is put together from several."""
    if any(part in text for text in made):
        return True
    inside = sorted((text.strip() for text in made if text.strip() in part), key=len, reverse=True)
    left = part
    for text in inside:
        left = left.replace(text, " ", 1)
    return not left.strip(" %;,.()in")


def test_a_recorded_reason_is_said_in_the_language_in_use_and_what_is_unknown_is_kept() -> None:
    reason = (
        "error rate 0 % over 2392 requests; 2 % or more is ruled out (at most 1 % chance of being wrong); "
        "P95 100 ms, limit 2000 ms; something new"
    )
    try:
        words.use("en")
        assert words.gloss(reason) == reason
        words.use("zh")
        said = words.gloss(reason)
    finally:
        words.use("")
    assert said.split("；")[-1] == "something new"
    assert "错误率 0 %（共 2392 个请求）" in said
    assert "P95 100 ms，上限 2000 毫秒" in said
    assert "ruled out" not in said


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


def test_a_value_that_is_a_sentence_or_a_name_of_ours_is_said_too_and_a_text_of_lines_line_by_line() -> None:
    try:
        words.use("zh")
        assert words.gloss("[3/20] APISIX pods: pass") == "[3/20] APISIX 的 pod：通过"
        said = words.gloss("a rollback was started elsewhere (asked by the operator); this stage ends here")
        assert said == "别处已开始回滚（由操作人员要求）；本级到此结束"
        assert words.gloss("bind this ClusterRole:\nkind: ClusterRole") == (
            "请绑定此 ClusterRole：\nkind: ClusterRole"
        )
        assert words.gloss("spec: a; b") == "spec: a; b"  # not ours: as it was
        assert words.term("remedy") == "处理办法"
        assert words.gloss("kind") == "kind"  # a word is a name only where it stands for one
    finally:
        words.use("")
    assert words.term("remedy") == "remedy"
