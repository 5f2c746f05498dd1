"""Match conditions: APISIX ``methods`` and ``vars`` as VirtualService match blocks.

A condition is a plain mapping with the keys of HTTPMatchRequest except ``uri``. A list of conditions is an
OR; combining two conditions is an AND. What Envoy cannot express raises :class:`Inexpressible`, and the
route is then held back: a condition that is dropped would send requests to the wrong route.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.expr import Condition as Test
from gateshift.apisix.expr import InvalidExpression, Logic, Node, compile_vars
from gateshift.apisix.lua import from_byte_string, to_text
from gateshift.apisix.pcre import InvalidPattern, Untranslatable, compile_pattern
from gateshift.translate.paths import encode_path
from gateshift.translate.regexes import Inexpressible, check_regex, full_match

__all__ = [
    "Condition",
    "Inexpressible",
    "check_regex",
    "combine",
    "combine_all",
    "differences",
    "from_methods",
    "from_vars",
    "rewrap",
]

Condition = Mapping[str, Any]
MAX_ALTERNATIVES = 64
"""OR inside AND multiplies; beyond this many blocks a route would no longer be readable nor quick."""


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
    names = sorted({str(one) for one in methods})
    if not names:
        return [{}]
    if len(names) == 1:
        return [{"method": {"exact": names[0]}}]
    return [{"method": {"regex": "|".join(re.escape(one) for one in names)}}]


Rule = Mapping[str, str]
_Build = Callable[[str, Rule, bool], list[Condition]]
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")


@dataclass(frozen=True, slots=True)
class _Subject:
    """Where a variable is found. *excluded* cannot stand in its value, only around it."""

    key: str
    build: _Build
    excluded: str = ""
    encoded: bool = False


def _header(name: str, rule: Rule, negative: bool) -> list[Condition]:
    if not negative:
        return [{"headers": {name: dict(rule)}}]
    found: list[Condition] = [{"withoutHeaders": {name: dict(rule)}}]
    if "regex" in rule and not name.startswith(":") and re.fullmatch(rule["regex"], ""):
        # Istio reads a missing header as empty text, APISIX as no match
        found.append({"withoutHeaders": {name: {"regex": "*"}}})
    return found


def _around(name: str, before: str, pattern: str, after: str, negative: bool) -> list[Condition]:
    side = "withoutHeaders" if negative else "headers"
    return [{side: {name: {"regex": f"{before}(?:{pattern}){after}"}}}]


def _argument(name: str, rule: Rule, negative: bool) -> list[Condition]:
    # Envoy compares arguments as they were sent: what a URL has to encode is looked for in that form
    if "exact" in rule and not _UNRESERVED.fullmatch(rule["exact"]):
        rule = {"regex": _as_sent(rule["exact"])}
    if not negative:
        return [{"queryParams": {name: dict(rule)}}]
    # there is no negative match on arguments: the path with its query serves
    return _around(":path", rf"[^?]*\?(?:.*&)?{_as_sent(name)}=", rewrap(rule), "(?:&.*)?", True)


def _as_sent(text: str) -> str:
    """A regular expression of *text* as it stands in a query string."""
    out = []
    for char in text:
        if _UNRESERVED.fullmatch(char):
            out.append(re.escape(char))
            continue
        code = "".join(f"%(?i:{byte:02X})" for byte in char.encode())
        plain = "\\+" if char == " " else re.escape(char) if char.isascii() and char not in "&#+%=" else ""
        out.append(f"(?:{code}|{plain})" if plain else code)
    return "".join(out)


def _cookie(name: str, rule: Rule, negative: bool) -> list[Condition]:
    return _around("cookie", rf"(?:.*;\s*)?{re.escape(name)}=", rewrap(rule), "(?:;.*)?", negative)


def _uri(_: str, rule: Rule, negative: bool) -> list[Condition]:
    pattern = re.escape(encode_path(rule["exact"])) if "exact" in rule else rule["regex"]
    return _around(":path", "", pattern, r"(?:\?.*)?", negative)


def _host(_: str, rule: Rule, negative: bool) -> list[Condition]:
    pattern = f"(?i:{re.escape(rule['exact'])})" if "exact" in rule else rule["regex"]
    return _around(":authority", "", pattern, r"\.?(?::\d+)?", negative)


_SUBJECTS: dict[str, _Subject] = {
    "request_uri": _Subject(":path", _header),
    "uri": _Subject("", _uri, "?", encoded=True),
    "document_uri": _Subject("", _uri, "?", encoded=True),
    "request_method": _Subject(":method", _header),
    "method": _Subject(":method", _header),
    "host": _Subject("", _host, ":"),
    "scheme": _Subject(":scheme", _header),
    "content_type": _Subject("content-type", _header),
}


def _subject(name: str) -> _Subject:
    if name in _SUBJECTS:
        return _SUBJECTS[name]
    if name.startswith("http_"):
        header = name[5:].lower().replace("_", "-")
        return _Subject(":authority" if header == "host" else header, _header)
    if name.startswith("arg_"):
        return _Subject(name[4:], _argument, "&")
    if name.startswith("cookie_"):
        return _Subject(name[7:], _cookie, ";")
    raise Inexpressible(f"the variable {name!r} is not visible to a VirtualService match")


def _number(value: float) -> str:
    """A regular expression of a number's decimal notations: APISIX compares numbers, Envoy text."""
    text = to_text(value)
    found = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise Inexpressible(f"the number {text} has no equivalent in a VirtualService match")
    whole = found[2].lstrip("0")
    fraction = f"\\.{found[3]}0*" if found[3] else r"(?:\.0*)?"
    sign = "-" if found[1] else r"\+?"
    return f"{sign}0*{whole}{fraction}" if whole or found[3] else rf"[-+]?0+{fraction}"


def _rule(test: Test, subject: _Subject) -> Rule | None:
    """Return the string match of a comparison; None when no text can meet it."""
    value = test.operand
    if test.operator in ("==", "~="):
        if isinstance(value, bool) or value is None or isinstance(value, list | tuple | Mapping):
            raise Inexpressible(f"a comparison with {type(value).__name__} has no equivalent")
        if isinstance(value, int | float):
            return {"regex": _number(value)}
        if not value:
            raise Inexpressible("a comparison with the empty text cannot be told from an absent value")
        return {"exact": value}
    if test.operator in ("~~", "~*"):
        return _pattern(to_text(value), subject, ignore_case=test.operator == "~*")
    if test.operator == "in":
        texts = [one for one in value if isinstance(one, str)] if isinstance(value, list | tuple) else []
        return _one_of(texts, subject) if texts else None
    if test.operator == "has":
        return None  # it looks into a table, and every request variable is text
    raise Inexpressible(f"the operator {test.operator!r} has no equivalent in a VirtualService match")


def _one_of(texts: Sequence[str], subject: _Subject) -> Rule:
    if "" in texts:
        raise Inexpressible("a comparison with the empty text cannot be told from an absent value")
    if subject.build is _argument:
        return {"regex": "|".join(map(_as_sent, texts))}
    written = [encode_path(one) for one in texts] if subject.encoded else texts
    return {"regex": "|".join(map(re.escape, written))}


def _pattern(pattern: str, subject: _Subject, *, ignore_case: bool) -> Rule | None:
    try:
        compile_pattern(pattern, ignore_case=ignore_case)
    except InvalidPattern:
        return None  # nginx takes a pattern that it cannot compile as no match
    except Untranslatable as reason:
        raise Inexpressible(f"the pattern {reason} has no equivalent") from None
    text = from_byte_string(pattern)
    return {
        "regex": full_match(text, ignore_case=ignore_case, excluded=subject.excluded, encoded=subject.encoded)
    }


def _port(test: Test, ports: Mapping[int, int], negative: bool) -> list[Condition]:
    wanted = test.operand if isinstance(test.operand, list | tuple) else [test.operand]
    if test.operator not in ("==", "~=", "in"):
        raise Inexpressible("server_port can only be compared with == or in")
    try:
        chosen = {ports[int(one)] for one in wanted}
    except (KeyError, TypeError, ValueError) as error:
        raise Inexpressible(f"server_port {test.operand!r} is no port of the new gateway") from error
    listening = set(ports.values())
    return [{"port": port} for port in sorted(listening - chosen if negative else chosen)]


def _single(test: Test, ports: Mapping[int, int], negate: bool) -> list[Condition]:
    negative = (negate != test.reverse) != (test.operator == "~=")
    name = from_byte_string(test.variable)
    if name == "server_port":
        return _port(test, ports, negative)
    subject = _subject(name)
    rule = _rule(test, subject)
    if rule is None:
        return [{}] if negative else []
    if name == "host" and "exact" in rule and rule["exact"] != rule["exact"].lower():
        return [{}] if negative else []  # nginx's $host is lower case
    return subject.build(subject.key, rule, negative)


def from_vars(expression: Any, ports: Mapping[int, int], *, negate: bool = False) -> list[Condition]:
    """Return the OR of match conditions for a lua-resty-expr expression.

    *ports* maps APISIX's listening ports to the new gateway's. Raises Inexpressible.
    """
    node = _compiled(expression)
    return [{}] * (not negate) if node is None else _conditions(node, ports, negate)


def _compiled(expression: Any) -> Node | None:
    if not isinstance(expression, list | tuple):
        raise Inexpressible("vars is not a list")
    try:
        return compile_vars(expression)
    except InvalidExpression as reason:
        raise Inexpressible(f"APISIX refuses the expression: {reason}") from None


def _conditions(node: Node, ports: Mapping[int, int], negate: bool) -> list[Condition]:
    if isinstance(node, Test):
        return _single(node, ports, negate)
    inner = negate != node.operator.startswith("!")
    conjunctive = node.operator.endswith("AND") != inner
    result: list[Condition] = [{}] if conjunctive else []
    for part in node.nodes:
        alternatives = _conditions(part, ports, inner)
        if conjunctive:
            result = combine_all(result, alternatives)
        else:
            result += [one for one in alternatives if one not in result]
            if len(result) > MAX_ALTERNATIVES:
                raise Inexpressible(f"the condition expands to more than {MAX_ALTERNATIVES} match blocks")
    return result


def differences(expression: Any) -> list[str]:
    """Say in which rare requests the translated *expression* decides otherwise; empty when in none."""
    node = _compiled(expression)
    return [] if node is None else list(dict.fromkeys(_differences(node)))


def _differences(node: Node) -> Iterator[str]:
    if isinstance(node, Logic):
        for part in node.nodes:
            yield from _differences(part)
        return
    name = node.variable
    if isinstance(node.operand, int | float) and node.operator in ("==", "~=") and name != "server_port":
        yield "numbers are compared by their decimal notations: 0x10 or 1e1 no longer equal 16 or 10"
    if name.startswith("arg_") and node.operator in ("~~", "~*"):
        yield f"{name}: the pattern meets the argument as it was sent, percent signs not decoded"
    if name.startswith("arg_") and (node.reverse or node.operator == "~="):
        yield f"{name}: of a repeated argument any may be the one that is refused, not only the first"
    if name.startswith("cookie_"):
        yield f"{name}: of a repeated cookie any may match, not only the last"
