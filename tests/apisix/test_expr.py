from __future__ import annotations

import math
from typing import Any

import pytest

from gateshift.apisix.expr import InvalidExpression, compile_vars, evaluate
from gateshift.apisix.ipmatch import IpMatcher
from gateshift.apisix.lua import to_number, to_text
from gateshift.apisix.pcre import InvalidPattern, Untranslatable, compile_pattern


def holds(rule: Any, **values: Any) -> bool | None:
    node = compile_vars(rule)
    return True if node is None else evaluate(node, values.get)


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (["x", "==", 10], "0x0a", True),
        (["x", "==", 10], " 10 ", True),
        (["x", "==", "10"], "10.0", False),
        (["x", "==", 10], None, False),
        (["x", "~=", 10], None, True),
        (["x", "~=", "a"], None, True),
        (["x", "!", "==", "a"], None, True),
        (["x", "!", "~~", "a"], None, True),
        (["x", "!", "in", ["a"]], None, True),
        (["x", ">", 5], "10", True),
        (["x", ">", "5"], "10", True),
        (["x", ">", "abc"], "10", False),
        (["x", "!", ">", 5], "abc", True),
        (["x", "in", [1, 2]], "1", False),
        (["x", "IN", ["1", "2"]], "1", True),
        (["x", "has", "a"], "a", False),
        (["x", "~~", "^A"], "abc", False),
        (["x", "~*", "^A"], "abc", True),
        (["x", "~~", "("], "(", False),
        (["x", "!", "~~", "("], "(", True),
        (["x", "ipmatch", ["10.0.0.0/8"]], "10.2.3.4", True),
        (["x", "ipmatch", "::1"], "10.2.3.4", False),
        (["x", "FOO"], "foo", True),
        (["x", "FOO"], "FOO", False),
        (["x", 5], "5", True),
        (["x", "==", None], None, True),
        # Lua's numbers are doubles: these integers are one number
        (["x", "==", 9007199254740993], "9007199254740993", True),
        (["x", "==", 9007199254740993], "9007199254740992", True),
        (["x", "~=", 9007199254740993], "9007199254740992", False),
        (["x", ">", 9007199254740992], "9007199254740993", False),
        (["x", "==", 10**400], "1e999", True),
        (["x", "<", 10**400], "0x1p9999", False),
        (["x", "~~", 10**400], "inf", True),
    ],
)
def test_comparisons(rule: list[Any], value: Any, expected: bool) -> None:
    assert holds([rule], x=value) is expected


def test_logic_nests_and_negates() -> None:
    a, b = ["a", "==", "1"], ["b", "==", "1"]
    assert holds(["OR", a, b], b="1")
    assert not holds(["!OR", a, b], b="1")
    assert holds(["!AND", a, b], a="1")
    assert holds([["or", a, ["!and", a, b]], b], b="1")
    assert holds([], a="1")


@pytest.mark.parametrize(
    "rule",
    [
        ["x", "==", "1"],
        [["x", "=~", "1"]],
        [["x"]],
        [[]],
        ["OR", ["x", "==", "1"]],
        [["x", "?", "==", "1"]],
        [["x", "ipmatch", []]],
        [["x", "ipmatch", "nonsense"]],
        [["x", "==", "1"], "y"],
        "x",
    ],
)
def test_what_the_library_refuses(rule: Any) -> None:
    with pytest.raises(InvalidExpression):
        compile_vars(rule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e3", 1000), ("0b101", 5), ("0x1p4", 16), (".5", 0.5), ("5.", 5), ("1_0", None), ("", None),
     ("0x", None), ("1e", None), ("inf", math.inf), ("- 5", None), ("10ull", None), ("\v1", 1)],
)  # fmt: skip
def test_numbers_as_luajit_reads_them(text: str, expected: float | None) -> None:
    assert to_number(text) == expected


def test_numbers_as_lua_writes_them() -> None:
    assert [to_text(v) for v in (5, 5.0, 1e15, 0.1, True, None)] == ["5", "5", "1e+15", "0.1", "true", "nil"]


def test_addresses() -> None:
    blocks = IpMatcher(["10.0.0.0/8", "192.168.1.7", "2001:db8::/33", "[::1]"])
    for address in ("10.255.0.1", "192.168.1.7", "2001:db8:1::", "::1", "[::1]"):
        assert blocks.match(address), address
    for address in ("11.0.0.1", "192.168.1.8", "2001:db8:8000::", "010.0.0.1", "nonsense", None):
        assert not blocks.match(address), address
    assert IpMatcher(["0.0.0.0/0"]).match("1.2.3.4")
    assert not IpMatcher(["0.0.0.0/0"]).match("::1")
    with pytest.raises(ValueError, match="300"):
        IpMatcher(["300.0.0.1"])


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"^\Qa.b\E$", "a.b", True),
        (r"^[[:alpha:]]+$", "ab1", False),
        (r"a{,2}", "a{,2}", True),  # PCRE reads the brace as text
        (r"a\z", "a\n", False),
        (r"a\Z", "a\n", True),
        (r"a$", "a\n", True),
        (r"^(?<n>a)\1$", "aa", True),
        (r"^.$", "Ã©", False),  # one character is one byte
        (r"\B", "", True),
        (r"x(?i)A", "xa", True),
    ],
)
def test_pcre(pattern: str, text: str, expected: bool) -> None:
    assert (compile_pattern(pattern).search(text) is not None) is expected


def test_patterns_that_cannot_be_decided_say_so() -> None:
    for pattern in (r"\p{L}", r"(?R)", r"a\Kb", r"a(?i)b|c", r"(?m)^a"):
        with pytest.raises(Untranslatable):
            compile_pattern(pattern)
    for pattern in ("(", "a)", "^*", "[a", "\\"):
        with pytest.raises(InvalidPattern):
            compile_pattern(pattern)
