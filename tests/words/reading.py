"""Reads off the code what it says to people: the texts an expression can be, with samples for its values."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from gateshift import words

LIB = Path(words.__file__).parent.parent
CODE = re.compile(r"`[^`]+`")
PHRASE = re.compile(r"\b(?:[a-z][a-z']* ){3}[a-z][a-z']*\b")
"""Four words in a row: English prose, longer than any command or name in the catalogue."""
Wanted = Callable[[ast.AST], Iterator[ast.expr]]
"""Which expressions of a node are said to people."""


class NotReadError(Exception):
    """The texts of an expression are not known before it is run."""


class Said(NamedTuple):
    """A text as a person gets it; *values* are the samples that stand for what is filled in."""

    place: str
    text: str
    values: tuple[str, ...] = ()


Function = ast.FunctionDef | ast.AsyncFunctionDef
Text = tuple[str, tuple[str, ...]]


class Module:
    """The texts that one file says where *wanted* looks for them."""

    def __init__(self, path: Path, root: Path, wanted: Wanted) -> None:
        self.name = path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.wanted = wanted
        self.said: list[Said] = []
        self.not_read: set[tuple[str, str]] = set()
        self._visit(self.tree, None)

    def _visit(self, node: ast.AST, function: Function | None) -> None:
        for found in self.wanted(node):
            self._take(found, function)
        inner = node if isinstance(node, Function) else function
        for child in ast.iter_child_nodes(node):
            self._visit(child, inner)

    def _take(self, node: ast.expr, function: Function | None) -> None:
        try:
            found = tuple(self._texts(node, function))
        except NotReadError:
            self.not_read.add((self.name, ast.unparse(node)))
        else:
            self.said += [Said(f"{self.name}:{node.lineno}", *one) for one in found]

    def _texts(self, node: ast.expr, function: Function | None) -> Iterator[Text]:
        """Give each text that *node* can be."""
        match node:
            case ast.Constant(value=None) | ast.Attribute(attr="hint"):
                return  # the default, or another error's own: read where they are written
            case ast.Name(id="hint") if function and "hint" in {a.arg for a in function.args.kwonlyargs}:
                return  # handed on, and read where this keyword is given
            case ast.Call(func=ast.Name(id="tell")):
                return  # a text of the catalogue already
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


def only_code(text: str) -> bool:
    """True for a command or a number that stands alone: it is the same in every language."""
    return not re.search(r"[^\W\d_]", CODE.sub("", text))


def english(text: Said) -> str:
    """Say what of *text* does not reach a reader of Chinese; nothing when all of it does."""
    if only_code(text.text):
        return ""
    words.use("zh")
    try:
        said = words.gloss(text.text)
    finally:
        words.use("")
    if not re.search(r"[\u4e00-\u9fff]", said):
        return f"it has no Chinese text: {said}"
    left = {part for part in text.text.split("; ") if not only_code(part)} & set(said.split("；"))
    if left or PHRASE.search(CODE.sub("", said)):
        return f"a part of it stays English: {said}"
    lost = [part for part in (*text.values, *CODE.findall(text.text)) if part not in said]
    return f"the Chinese text lacks {', '.join(lost)}: {said}" if lost else ""
