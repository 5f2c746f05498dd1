"""Each error's next step is said in Chinese too: every hint that the code gives is in the catalogue.

The hints are read off the code, so that one that is added, reworded or removed is noticed here. Otherwise it
would stay English for an operator who reads Chinese, and nobody would see it before that operator does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateshift import words
from tests.words.reading import LIB, Module, Said, english, set_by

PREFIX = "reason.hint."
NOT_READ = {
    # The notebook that is due: a text of the catalogue (next.*), in the language in use already.
    ("runbook/canary.py", "self.next_step()"),
    ("runbook/cleanup.py", "self.next_step()"),
    ("runbook/soak.py", "self.next_step()"),
}
"""Hints whose text cannot be read off the code: file and expression, each with the reason."""


def wanted(node: ast.AST) -> Iterator[ast.expr]:
    """The keyword ``hint``, and ``default_hint`` of a class."""
    if isinstance(node, ast.keyword) and node.arg == "hint":
        yield node.value
    elif isinstance(node, ast.stmt) and "default_hint" in set_by(node):
        yield node.value  # type: ignore[attr-defined]  # an assignment


MODULES = [Module(path, LIB, wanted) for path in sorted(LIB.rglob("*.py"))]
HINTS = {hint.text: hint for module in MODULES for hint in module.said}


@pytest.mark.parametrize("hint", [pytest.param(hint, id=hint.place) for hint in HINTS.values()])
def test_each_hint_is_said_in_chinese_with_all_its_values(hint: Said) -> None:
    assert english(hint) == ""


def test_each_hint_is_read() -> None:
    assert {one for module in MODULES for one in module.not_read} == NOT_READ


def test_each_hint_of_the_catalogue_is_one_that_the_code_gives() -> None:
    said = set()
    for text in HINTS:
        parts = text.split("; ")
        ends = range(1, len(parts) + 1)
        said |= {"; ".join(parts[begin:end]) for end in ends for begin in range(end)}
    stale = []
    for key, texts in words.catalogue().items():
        pattern = re.compile(".+".join(map(re.escape, re.split(r"\{\w+\}", texts["en"]))))
        if key.startswith(PREFIX) and not any(map(pattern.fullmatch, said)):
            stale.append(key)
    assert stale == []


def test_each_hint_is_in_the_catalogue_once() -> None:
    """The first of two equal sentences is never said, and whoever corrects it would change nothing."""
    keys: dict[str, list[str]] = {}
    for key, texts in words.catalogue().items():
        if key.startswith("reason."):
            keys.setdefault(texts["en"], []).append(key)
    assert [each for each in keys.values() if len(each) > 1 and str(each).count(PREFIX)] == []


NEW = """
_MORE = "water the plants daily"

class Dry(Exception):
    default_hint = "water them"

def f(name, hint, *, count):
    Error("", hint="open the window")
    Error("", hint=f"give {name} to the cat" if count else "plan again; feed the cat")
    Error("", hint=_MORE)
    Error("", hint={1: "open the door"}.get(count, f"close {name} and {_MORE}"))
    Error("", hint="`gateshift lab up`")
    Error("", hint="plan again")
    Error("", hint=hint)
    Error("", hint=f(name))
"""


def test_a_hint_that_is_not_in_the_catalogue_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(NEW, encoding="utf-8")
    module = Module(tmp_path / "new.py", tmp_path, wanted)
    assert [hint.text for hint in module.said if english(hint)] == [
        "water them",
        "open the window",
        "give 7001 to the cat",
        "plan again; feed the cat",
        "water the plants daily",
        "open the door",
        "close 7001 and water the plants daily",
    ]
    assert module.not_read == {("new.py", "hint"), ("new.py", "f(name)")}
