"""Match conditions: APISIX ``methods`` and ``vars`` as VirtualService match blocks.

A condition is a plain mapping with the keys of HTTPMatchRequest except ``uri``. A list of conditions is an
OR; combining two conditions is an AND. What Envoy cannot express raises :class:`Inexpressible`, and the
route is then held back: a condition that is dropped would send requests to the wrong route.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Condition", "Inexpressible", "combine", "combine_all", "from_methods", "from_vars", "rewrap"]

Condition = Mapping[str, Any]
MAX_ALTERNATIVES = 64
"""OR inside AND multiplies; beyond this many blocks a route would no longer be readable nor quick."""

_LOGIC = {"AND", "OR", "!AND", "!OR"}
_NOT_RE2 = re.compile(r"\(\?(?:[=!>]|<[=!]|R|\d|P[=>]|\()|\\[1-9ZGKRX]|[*+?}]\+|\\g\{|\\k[<{']")


class Inexpressible(Exception):  # noqa: N818 - a verdict about a condition, caught by the caller
    """The condition has no equivalent in a VirtualService match; the message says why."""


def _same(left: Mapping[str, str], right: Mapping[str, str]) -> Mapping[str, str] | None:
    """AND two string matches of one header: None when they exclude each other."""
    if left == right:
        return left
    for one, other in ((left, right), (right, left)):
        if "exact" in one:
            value = one["exact"]
            if "exact" in other:
                return None
            if "prefix" in other:
                return one if value.startswith(other["prefix"]) else None
            return one if other["regex"] == "*" or re.fullmatch(other["regex"], value) else None
        if one.get("regex") == "*":
            return other
    raise Inexpressible("two patterns on the same header cannot both be required in one match")


def rewrap(rule: Mapping[str, str]) -> str:
    """Write a string match as a regular expression that must match in full."""
    if "exact" in rule:
        return re.escape(rule["exact"])
    if "prefix" in rule:
        return re.escape(rule["prefix"]) + ".*"
    return rule["regex"]


def combine(left: Condition, right: Condition) -> Condition | None:  # noqa: PLR0912 - one branch a kind of match
    """AND two conditions; None when no request can meet both."""
    merged: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in left.items()}
    for key, value in right.items():
        if key not in merged:
            merged[key] = value
        elif key in ("headers", "queryParams"):
            for name, rule in value.items():
                if name in merged[key]:
                    both = _same(merged[key][name], rule)
                    if both is None:
                        return None
                    merged[key][name] = both
                else:
                    merged[key][name] = rule
        elif key == "withoutHeaders":
            for name, rule in value.items():
                known = merged[key].get(name)
                if known in (None, rule):
                    merged[key][name] = rule
                elif {"regex": "*"} in (known, rule):
                    raise Inexpressible(f"header {name} must be absent and unlike a pattern")
                else:
                    merged[key][name] = {"regex": f"(?:{rewrap(known)})|(?:{rewrap(rule)})"}
        elif key == "port":
            if merged[key] != value:
                return None
        else:
            both = _same(merged[key], value)
            if both is None:
                return None
            merged[key] = both
    return merged


def combine_all(left: Sequence[Condition], right: Sequence[Condition]) -> list[Condition]:
    """AND two ORs of conditions (the cross product), dropping impossible combinations."""
    if len(left) * len(right) > MAX_ALTERNATIVES:
        raise Inexpressible(f"the condition expands to more than {MAX_ALTERNATIVES} match blocks")
    found: list[Condition] = []
    for one in left:
        for other in right:
            both = combine(one, other)
            if both is not None and both not in found:
                found.append(both)
    return found


def from_methods(methods: Sequence[str]) -> list[Condition]:
    """Return the condition for a list of methods; none means any."""
    names = sorted({str(one).upper() for one in methods})
    if not names:
        return [{}]
    if len(names) == 1:
        return [{"method": {"exact": names[0]}}]
    return [{"method": {"regex": "|".join(re.escape(one) for one in names)}}]


def check_regex(pattern: str) -> str:
    """Return *pattern* if RE2 takes it; PCRE's look-around, back references and possessives do not exist."""
    if _NOT_RE2.search(pattern):
        raise Inexpressible("the pattern uses what Envoy's RE2 does not have (look-around, back reference)")
    try:
        re.compile(pattern)
    except re.error as error:
        raise Inexpressible(f"the pattern is not a valid regular expression: {error}") from error
    return pattern


def unanchored(pattern: str, *, ignore_case: bool = False) -> str:
    """Write a PCRE search as an RE2 full match."""
    check_regex(pattern)
    return f"{'(?i)' if ignore_case else ''}.*(?:{pattern}).*"


_Build = Callable[[str, Mapping[str, str], bool], Condition]


def _header(name: str, rule: Mapping[str, str], negative: bool) -> Condition:
    return {"withoutHeaders" if negative else "headers": {name: dict(rule)}}


def _argument(name: str, rule: Mapping[str, str], negative: bool) -> Condition:
    if not negative:
        return {"queryParams": {name: dict(rule)}}
    value = rewrap(rule)
    return {"withoutHeaders": {":path": {"regex": rf"[^?]*\?(?:.*&)?{re.escape(name)}=(?:{value})(?:&.*)?"}}}


def _cookie(name: str, rule: Mapping[str, str], negative: bool) -> Condition:
    pattern = rf"(?:.*;\s*)?{re.escape(name)}=(?:{rewrap(rule)})(?:;.*)?"
    return _header("cookie", {"regex": pattern}, negative)


def _uri(_: str, rule: Mapping[str, str], negative: bool) -> Condition:
    return _header(":path", {"regex": rf"(?:{rewrap(rule)})(?:\?.*)?"}, negative)


def _host(_: str, rule: Mapping[str, str], negative: bool) -> Condition:
    return _header(":authority", {"regex": rf"(?:{rewrap(rule)})(?::\d+)?"}, negative)


_SIMPLE: dict[str, tuple[str, _Build]] = {
    "request_uri": (":path", _header),
    "uri": ("", _uri),
    "request_method": (":method", _header),
    "method": (":method", _header),
    "host": ("", _host),
    "scheme": (":scheme", _header),
    "content_type": ("content-type", _header),
}


def _subject(name: str) -> tuple[str, _Build]:
    if name in _SIMPLE:
        return _SIMPLE[name]
    if name.startswith("http_"):
        return name[5:].lower().replace("_", "-"), _header
    if name.startswith("arg_"):
        return name[4:], _argument
    if name.startswith("cookie_"):
        return name[7:], _cookie
    raise Inexpressible(f"the variable {name!r} is not visible to a VirtualService match")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise Inexpressible(f"a comparison with {type(value).__name__} has no equivalent")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _rule(operator: str, value: Any) -> Mapping[str, str]:
    if operator == "==":
        text = _text(value)
        if not text:
            raise Inexpressible("a comparison with the empty text cannot be told from an absent value")
        return {"exact": text}
    if operator in ("~~", "~*"):
        return {"regex": unanchored(_text(value), ignore_case=operator == "~*")}
    if operator == "in":
        if not isinstance(value, list) or not value:
            raise Inexpressible("`in` needs a list of values")
        return {"regex": "|".join(re.escape(_text(one)) for one in value)}
    raise Inexpressible(f"the operator {operator!r} has no equivalent in a VirtualService match")


def _port(operator: str, value: Any, negative: bool, ports: Mapping[int, int]) -> list[Condition]:
    wanted = value if isinstance(value, list) else [value]
    if operator not in ("==", "in"):
        raise Inexpressible("server_port can only be compared with == or in")
    try:
        chosen = {ports[int(one)] for one in wanted}
    except (KeyError, TypeError, ValueError) as error:
        raise Inexpressible(f"server_port {value!r} is no port of the new gateway") from error
    listening = set(ports.values())
    return [{"port": port} for port in sorted(listening - chosen if negative else chosen)]


def _single(rule: Sequence[Any], negate: bool, ports: Mapping[int, int]) -> list[Condition]:
    if len(rule) == 2:
        name, operator, value = rule[0], "==", rule[1]
    elif len(rule) == 3:
        name, operator, value = rule
    elif len(rule) == 4 and rule[1] == "!":
        name, _, operator, value = rule
        negate = not negate
    else:
        raise Inexpressible(f"a condition of {len(rule)} parts is not understood")
    name, operator = str(name), str(operator)
    if operator == "~=":
        operator, negate = "==", not negate
    if operator == "has":
        # `has` looks into a table, and every request variable is text: never true.
        return [{}] if negate else []
    if name == "server_port":
        return _port(operator, value, negate, ports)
    key, build = _subject(name)
    return [build(key, _rule(operator, value), negate)]


def from_vars(expression: Any, ports: Mapping[int, int], *, negate: bool = False) -> list[Condition]:
    """Return the OR of match conditions for a lua-resty-expr expression.

    *ports* maps APISIX's listening ports to the new gateway's. Raises Inexpressible.
    """
    if not isinstance(expression, list):
        raise Inexpressible("vars is not a list")
    if not expression:
        return [{}]
    head = expression[0]
    if isinstance(head, str) and head in _LOGIC:
        parts = expression[1:]
        inner_negate = negate != head.startswith("!")
        conjunctive = head.endswith("AND") != inner_negate
    elif isinstance(head, str):
        return _single(expression, negate, ports)
    else:
        parts, inner_negate, conjunctive = expression, negate, not negate
    result: list[Condition] = [{}] if conjunctive else []
    for part in parts:
        alternatives = from_vars(part, ports, negate=inner_negate)
        if conjunctive:
            result = combine_all(result, alternatives)
        else:
            result += [one for one in alternatives if one not in result]
            if len(result) > MAX_ALTERNATIVES:
                raise Inexpressible(f"the condition expands to more than {MAX_ALTERNATIVES} match blocks")
    return result
