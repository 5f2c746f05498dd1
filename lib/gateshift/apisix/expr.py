"""Conditions on variables (``vars``) as lua-resty-expr 1.3.2 compiles and evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.ipmatch import IpMatcher
from gateshift.apisix.lua import byte_string, lower, to_number, to_text
from gateshift.apisix.pcre import InvalidPattern, Untranslatable, compile_pattern

__all__ = [
    "Condition",
    "InvalidExpression",
    "Logic",
    "Node",
    "Value",
    "compile_vars",
    "evaluate",
    "variables_of",
]

Value = str | bool | int | float | None
"""A variable: text, True for an argument without a value, None when it is absent."""
Lookup = Callable[[str], Value]

OPERATORS = frozenset({"==", "~=", ">", ">=", "<", "<=", "~~", "~*", "in", "has", "ipmatch"})
_LOGIC = frozenset({"OR", "!OR", "AND", "!AND"})


class InvalidExpression(ValueError):  # noqa: N818 - carries lua-resty-expr's own message
    """lua-resty-expr refuses the expression, and APISIX drops the route that carries it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. ``test`` takes the variable's value; ``reverse`` is the ``!`` before the operator."""

    variable: str
    operator: str
    operand: Any
    reverse: bool
    test: Callable[[Value], bool]
    manual: str = ""
    """Why the comparison cannot be decided here (empty when it can)."""

    def __str__(self) -> str:
        negation = "! " if self.reverse else ""
        return f"{self.variable} {negation}{self.operator} {self.operand!r}"


@dataclass(frozen=True, slots=True)
class Logic:
    """``AND``, ``OR`` and their negations over nodes."""

    operator: str
    nodes: tuple[Node, ...]


Node = Condition | Logic


def variables_of(node: Node | None) -> frozenset[str]:
    """Return the names of all variables that *node* asks for, as byte strings."""
    if node is None:
        return frozenset()
    if isinstance(node, Condition):
        return frozenset({node.variable})
    return frozenset().union(*map(variables_of, node.nodes))


def _items(rule: object) -> list[Any]:
    """Return what Lua's ``#`` and index see: a list, or nothing for an object without array part."""
    if isinstance(rule, list | tuple):
        return list(rule)
    if isinstance(rule, Mapping):
        return []
    raise InvalidExpression("rule should be wrapped inside brackets")


def compile_vars(rule: object) -> Node | None:
    """Compile ``vars``; None stands for the empty rule, which matches everything.

    Raises :class:`InvalidExpression` where lua-resty-expr refuses the rule.
    """
    items = _items(rule)
    if not items:
        return None
    if not isinstance(items[0], list | tuple | Mapping) and _upper(items[0]) not in _LOGIC:
        raise InvalidExpression("rule should be wrapped inside brackets")
    return _compile(items)


def _upper(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return to_text(value).upper()
    raise InvalidExpression(f"a rule starts with a variable's name, not {value!r}")


def _compile(rules: list[Any]) -> Node:
    if not rules:
        raise InvalidExpression("rule too short")
    if isinstance(rules[0], list | tuple | Mapping):
        # Every further item is compiled as a rule too; text in its place is an error in Lua as well
        return Logic("AND", tuple(_compile(_items(item)) for item in rules))
    logic = _upper(rules[0])
    if logic in _LOGIC:
        if len(rules) <= 2:
            raise InvalidExpression("rule too short")
        return Logic(logic, tuple(_compile(_items(item)) for item in rules[1:]))
    return _comparison(rules)


def _comparison(rules: list[Any]) -> Condition:
    padded: list[Any] = [*rules, _NIL, _NIL, _NIL]
    reverse = len(rules) == 4
    if reverse:
        if rules[1] != "!":
            raise InvalidExpression("bad 'not' expression")
        left, operator, operand = rules[0], rules[2], rules[3]
    else:
        left, operator, operand = padded[:3]
    if operator is not _NIL:
        if isinstance(operator, bool) or not isinstance(operator, str | int | float):
            raise InvalidExpression(f"invalid operator {operator!r}")
        operator = lower(operator) if isinstance(operator, str) else to_text(operator)
    if operand is _NIL and operator not in OPERATORS:
        # The two-element form means "==", and its value has gone through string.lower with the operator.
        operand, operator = operator, "=="
        if operand is _NIL:
            raise InvalidExpression("invalid expression")
    if operator not in OPERATORS:
        raise InvalidExpression(f"invalid operator '{operator}'")
    value = None if operand is _NIL else operand
    test, manual = _test(operator, value)
    return Condition(to_text(left), operator, value, reverse, test, manual)


class _Nil:
    """An element that is not there, other than one that is null."""


_NIL = _Nil()


def _test(operator: str, operand: Any) -> tuple[Callable[[Value], bool], str]:
    manual = ""
    if operator in ("==", "~="):
        test = _equal(operand) if operator == "==" else _unequal(operand)
    elif operator in (">", ">=", "<", "<="):
        test = _ordered(operator, to_number(operand))
    elif operator in ("~~", "~*"):
        test, manual = _regex(to_text(operand), ignore_case=operator == "~*")
    elif operator == "in":
        test = _in(operand)
    elif operator == "ipmatch":
        test = _ipmatch(operand)
    else:
        test = _never  # has: the left side would have to be a table, and no request variable is
    return test, manual


def _never(_: Value) -> bool:
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(left: Value, right: object) -> bool:
    """Lua's ``==``: no conversion between types."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and left == right if isinstance(right, str) else left == right


def _equal(operand: Any) -> Callable[[Value], bool]:
    if _is_number(operand):
        wanted = to_number(operand)
        return lambda value: (number := to_number(value)) is not None and number == wanted
    if isinstance(operand, str):
        text = byte_string(operand)
        return lambda value: value == text
    return lambda value: _same(value, operand)


def _unequal(operand: Any) -> Callable[[Value], bool]:
    if _is_number(operand):
        wanted = to_number(operand)
        return lambda value: (number := to_number(value)) is None or number != wanted
    if isinstance(operand, str):
        text = byte_string(operand)
        return lambda value: value != text
    return lambda value: not _same(value, operand)


def _ordered(operator: str, operand: float | None) -> Callable[[Value], bool]:
    if operand is None:
        return _never
    bound = operand
    if operator == ">":
        return lambda value: (number := to_number(value)) is not None and number > bound
    if operator == ">=":
        return lambda value: (number := to_number(value)) is not None and number >= bound
    if operator == "<":
        return lambda value: (number := to_number(value)) is not None and number < bound
    return lambda value: (number := to_number(value)) is not None and number <= bound


def _regex(pattern: str, *, ignore_case: bool) -> tuple[Callable[[Value], bool], str]:
    try:
        search = compile_pattern(pattern, ignore_case=ignore_case).search
    except InvalidPattern:
        return _never, ""  # ngx.re.find returns an error and expr takes it as no match
    except Untranslatable as error:
        return _never, f"the PCRE pattern {error} has no equal here"

    def test(value: Value) -> bool:
        if value is None:
            return False
        return search(value if isinstance(value, str) else to_text(value)) is not None

    return test, ""


def _in(operand: Any) -> Callable[[Value], bool]:
    if not isinstance(operand, list | tuple):
        return _never
    texts = frozenset(byte_string(item) for item in operand if isinstance(item, str))
    true = any(item is True for item in operand)
    return lambda value: value in texts if isinstance(value, str) else (value is True and true)


def _ipmatch(operand: Any) -> Callable[[Value], bool]:
    if operand is None or operand == "":
        raise InvalidExpression("invalid ip address")
    entries = list(operand) if isinstance(operand, list | tuple) else [operand]
    if not entries:
        raise InvalidExpression("invalid ip address")
    try:
        return IpMatcher(entries).match
    except ValueError as error:
        raise InvalidExpression(str(error)) from None


def evaluate(node: Node, lookup: Lookup, failed: list[str] | None = None) -> bool | None:
    """Evaluate *node*; None when a part that cannot be decided here decides it.

    When the result is not True and *failed* is given, the reasons are appended to it.
    """
    if isinstance(node, Condition):
        if node.manual:
            if failed is not None:
                failed.append(f"vars: {node}: {node.manual}")
            return None
        value = lookup(node.variable)
        result = node.test(value) is not node.reverse
        if not result and failed is not None:
            failed.append(f"vars: {node} ({node.variable} is {'absent' if value is None else repr(value)})")
        return result
    operator = node.operator
    if operator in ("AND", "!AND"):
        outcome = _all(node.nodes, lookup, failed if operator == "AND" else None)
    else:
        outcome = _any(node.nodes, lookup)
    if outcome is not None and operator[0] == "!":
        outcome = not outcome
    if outcome is not True and failed is not None and operator != "AND":
        failed.append(
            f"vars: {operator} of {len(node.nodes)} conditions is {outcome}".replace("None", "open")
        )
    return outcome


def _all(nodes: tuple[Node, ...], lookup: Lookup, failed: list[str] | None) -> bool | None:
    outcome: bool | None = True
    for node in nodes:
        one = evaluate(node, lookup, failed)
        if one is False:
            return False
        if one is None:
            outcome = None
    return outcome


def _any(nodes: tuple[Node, ...], lookup: Lookup) -> bool | None:
    outcome: bool | None = False
    for node in nodes:
        one = evaluate(node, lookup)
        if one:
            return True
        if one is None:
            outcome = None
    return outcome
