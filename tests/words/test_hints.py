"""Each error's next step is said in Chinese too: every hint that the code gives is in the catalogue.

The hints are read off the code, so that one that is added, reworded or removed is noticed here. Otherwise it
would stay English for an operator who reads Chinese, and nobody would see it before that operator does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from gateshift import words

LIB = Path(words.__file__).parent.parent
PREFIX = "reason.hint."
CODE = re.compile(r"`[^`]+`")
PHRASE = re.compile(r"\b(?:[a-z][a-z']* ){3}[a-z][a-z']*\b")
"""Four words in a row: English prose, longer than any command or name in the catalogue."""
NOT_READ = {
    # The notebook that is due: a text of the catalogue (next.*), in the language in use already.
    ("runbook/canary.py", "self.next_step()"),
    ("runbook/cleanup.py", "self.next_step()"),
    ("runbook/soak.py", "self.next_step()"),
}
"""Hints whose text cannot be read off the code: file and expression, each with the reason."""


class NotReadError(Exception):
    """The texts of an expression are not known before it is run."""


class Hint(NamedTuple):
    """A hint as a person gets it; *values* are the samples that stand for what is filled in."""

    place: str
    text: str
    values: tuple[str, ...] = ()


Function = ast.FunctionDef | ast.AsyncFunctionDef
Text = tuple[str, tuple[str, ...]]


class Module:
    """The hints that one file gives: by the keyword ``hint``, and as ``default_hint`` of a class."""

    def __init__(self, path: Path, root: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.hints: list[Hint] = []
        self.not_read: set[tuple[str, str]] = set()
        self._visit(self.tree, None)

    def _visit(self, node: ast.AST, function: Function | None) -> None:
        given = isinstance(node, ast.keyword) and node.arg == "hint"
        if given or (isinstance(node, ast.stmt) and "default_hint" in set_by(node)):
            self._take(node.value, function)  # type: ignore[attr-defined]  # both have one
        inner = node if isinstance(node, Function) else function
        for child in ast.iter_child_nodes(node):
            self._visit(child, inner)

    def _take(self, node: ast.expr, function: Function | None) -> None:
        try:
            found = tuple(self._texts(node, function))
        except NotReadError:
            self.not_read.add((self.name, ast.unparse(node)))
        else:
            self.hints += [Hint(f"{self.name}:{node.lineno}", *one) for one in found]

    def _texts(self, node: ast.expr, function: Function | None) -> Iterator[Text]:
        """Give each text that *node* can be."""
        match node:
            case ast.Constant(value=None) | ast.Attribute(attr="hint"):
                return  # the default, or another error's own: read where they are written
            case ast.Name(id="hint") if function and "hint" in {a.arg for a in function.args.kwonlyargs}:
                return  # handed on, and read where this keyword is given
            case ast.Constant(value=str(text)):
                yield text, ()
            case ast.JoinedStr():
                yield self._filled(node)
            case ast.IfExp():
                choices = [node.body, node.orelse]
            case ast.Dict():
                choices = node.values
            case ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, *default]):
                choices = [table, *default]
            case ast.Name():
                choices = self._assigned(node.id, function)
            case _:
                raise NotReadError
        if not isinstance(node, ast.Constant | ast.JoinedStr):
            for choice in choices:
                yield from self._texts(choice, function)

    def _assigned(self, name: str, function: Function | None) -> list[ast.expr]:
        """Return everything that *name* is set to, in its function or else in the module."""
        for nodes in (ast.walk(function) if function else (), self.tree.body):
            found = [n for n in nodes if isinstance(n, ast.stmt) and name in set_by(n)]
            if any(isinstance(n, ast.AugAssign) for n in found):
                break
            if found:
                return [n.value for n in found]  # type: ignore[attr-defined]  # it sets a name
        raise NotReadError

    def _filled(self, node: ast.JoinedStr) -> Text:
        """Fill an f-string: with the module's own constants, and with numbers, which fit any name."""
        text, values, samples = "", [], count(7001)
        for part in node.values:
            value = part.value if isinstance(part, ast.FormattedValue) else part
            try:
                constant = isinstance(value, ast.Constant | ast.Name)
                ((said, inside),) = self._texts(value, None) if constant else ()
            except (NotReadError, ValueError):
                said = str(next(samples))
                inside = (said,)
            text += said
            values += inside
        return text, tuple(values)


def set_by(node: ast.stmt) -> set[str]:
    """The names that an assignment sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = getattr(node, "value", None)
    return {target.id for target in targets if isinstance(target, ast.Name)} if value else set()


MODULES = [Module(path, LIB) for path in sorted(LIB.rglob("*.py"))]
HINTS = {hint.text: hint for module in MODULES for hint in module.hints}


def only_code(text: str) -> bool:
    """True for a command that stands alone: it is typed as it stands, in every language."""
    return not re.search(r"\w", CODE.sub("", text))


def english(hint: Hint) -> str:
    """Say what of *hint* does not reach a reader of Chinese; nothing when all of it does."""
    if only_code(hint.text):
        return ""
    words.use("zh")
    try:
        said = words.gloss(hint.text)
    finally:
        words.use("")
    if not re.search(r"[\u4e00-\u9fff]", said):
        return f"it has no Chinese text: {said}"
    left = {part for part in hint.text.split("; ") if not only_code(part)} & set(said.split("；"))
    if left or PHRASE.search(CODE.sub("", said)):
        return f"a part of it stays English: {said}"
    lost = [part for part in (*hint.values, *CODE.findall(hint.text)) if part not in said]
    return f"the Chinese text lacks {', '.join(lost)}: {said}" if lost else ""


@pytest.mark.parametrize("hint", [pytest.param(hint, id=hint.place) for hint in HINTS.values()])
def test_each_hint_is_said_in_chinese_with_all_its_values(hint: Hint) -> None:
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
    module = Module(tmp_path / "new.py", tmp_path)
    assert [hint.text for hint in module.hints if english(hint)] == [
        "water them",
        "open the window",
        "give 7001 to the cat",
        "plan again; feed the cat",
        "water the plants daily",
        "open the door",
        "close 7001 and water the plants daily",
    ]
    assert module.not_read == {("new.py", "hint"), ("new.py", "f(name)")}
