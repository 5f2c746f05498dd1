"""Whether the Gateway API's precedence gives a list of rules in APISIX's order.

An HTTPRoute has no order of its own: its matches are sorted by kind and length of the path, by method, and by
how many headers and query parameters they name (see :mod:`gateshift.istio.gateway_api`). A list is exact
only if each two matches that one request can meet keep their places. Two that exclude each other may change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateshift.translate.paths import Pattern

__all__ = ["MAX_MATCHES", "Entry", "Inexact", "check_order", "entries_of"]

MAX_MATCHES = 1000
"""Matches a host; each pair is looked at, and a thousand take about half a second."""

Mode = Literal["prefix", "regex"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")
_PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+")
_FORBIDDEN = ("//", "/./", "/../", "%2f", "%2F", "#")
_LONGEST = 1024
_RANK = {"Exact": 0, "PathPrefix": 1, "RegularExpression": 2}
_ITEMS = 16


class Inexact(Exception):  # noqa: N818 - a verdict about one host, caught by the caller
    """The Gateway API cannot hold it exactly; the text says what and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One match of one rule. *literal* begins every path that it takes; *rule* is the rule's place."""

    rule: int
    match: Mapping[str, Any]
    literal: str
    title: str
    key: tuple[int, int, bool, int, int] = field(compare=False)

    @property
    def path(self) -> Mapping[str, str]:
        """The match's path."""
        found: Mapping[str, str] = self.match["path"]
        return found


def _usable(text: str) -> bool:
    """Tell whether the resource definition takes *text* as an Exact or PathPrefix value."""
    return bool(
        len(text) <= _LONGEST
        and text.startswith("/")
        and _PATH.fullmatch(text)
        and not any(one in text for one in _FORBIDDEN)
        and not text.endswith(("/.", "/.."))
    )


def _path(pattern: Pattern, mode: Mode) -> dict[str, str]:
    if pattern.kind == "exact":
        if not _usable(pattern.text):
            raise Inexact(f"{pattern.source} is no value that an Exact path can have")
        return {"type": "Exact", "value": pattern.text}
    if pattern.kind == "prefix" and mode == "prefix" and pattern.text.endswith("/"):
        value = pattern.text if pattern.text == "/" else pattern.text.removesuffix("/")
        if _usable(value):
            return {"type": "PathPrefix", "value": value}
    value = pattern.text if pattern.kind == "regex" else f"{re.escape(pattern.text)}.*"
    if len(value) > _LONGEST:
        raise Inexact(f"{pattern.source} is longer than the {_LONGEST} characters of a path")
    return {"type": "RegularExpression", "value": value}


def _methods(rule: Mapping[str, str] | None) -> list[str | None]:
    if rule is None:
        return [None]
    names = [rule["exact"]] if "exact" in rule else rule.get("regex", "").split("|")
    for one in names:
        if one not in _METHODS:
            raise Inexact(f"the method {one or 'pattern'} is none of the Gateway API's nine")
    return list(names)


def _items(rules: Mapping[str, Mapping[str, str]], what: str, longest: int) -> list[dict[str, str]]:
    if len(rules) > _ITEMS:
        raise Inexact(f"a match has room for {_ITEMS} {what}s, {len(rules)} are wanted")
    found = []
    for name, rule in rules.items():
        kind, text = next(iter(rule.items()))
        if not _NAME.fullmatch(name):
            raise Inexact(f"{name} is no {what} that the Gateway API can match")
        if kind == "exact":
            one = {"name": name, "type": "Exact", "value": text}
        else:
            value = ".*" if text == "*" else text if kind == "regex" else f"{re.escape(text)}.*"
            one = {"name": name, "type": "RegularExpression", "value": value}
        if not 0 < len(one["value"]) <= longest:
            raise Inexact(f"the value for {what} {name} is empty or longer than {longest} characters")
        found.append(one)
    return found


_WORDS = {
    "withoutHeaders": "a header that must be absent or different",
    "port": "the port",
    "scheme": "the scheme",
    "authority": "the Host header with its port",
    "ignoreUriCase": "the path in any case",
}


def entries_of(
    number: int, matches: Sequence[Mapping[str, Any]], pattern: Pattern, mode: Mode
) -> list[Entry]:
    """Return the entries of rule *number*, whose VirtualService *matches* all have *pattern* as their path.

    Raises :class:`Inexact` for what an HTTPRoute cannot match.
    """
    path, found = _path(pattern, mode), []
    for condition in matches:
        for key in condition:
            if key not in ("uri", "method", "headers", "queryParams"):
                raise Inexact(f"{_WORDS.get(key, key)} is nothing that the Gateway API can match")
        headers = _items(condition.get("headers", {}), "header", 4096)
        queries = _items(condition.get("queryParams", {}), "query parameter", 1024)
        for method in _methods(condition.get("method")):
            match: dict[str, Any] = {"path": path}
            if method is not None:
                match["method"] = method
            if headers:
                match["headers"] = headers
            if queries:
                match["queryParams"] = queries
            order = (_RANK[path["type"]], -len(path["value"]), method is None, -len(headers), -len(queries))
            literal = pattern.text if pattern.kind != "regex" else pattern.literal
            found.append(Entry(number, match, literal, pattern.source, order))
    return found


def _apart(one: Entry, other: Entry) -> bool:
    """Tell whether no request meets both; False when that is not certain."""
    if _paths_apart(one, other):
        return True
    mine, theirs = one.match.get("method"), other.match.get("method")
    if mine is not None and theirs is not None and mine != theirs:
        return True
    return any(
        _values_apart(one.match.get(f, ()), other.match.get(f, ())) for f in ("headers", "queryParams")
    )


def _paths_apart(one: Entry, other: Entry) -> bool:
    exact = one.path["type"] == "Exact", other.path["type"] == "Exact"
    if all(exact):
        return one.literal != other.literal
    if any(exact):
        fixed, open_ = (one, other) if exact[0] else (other, one)
        if open_.path["type"] == "RegularExpression":
            return re.fullmatch(open_.path["value"], fixed.literal) is None
        return not fixed.literal.startswith(open_.literal)
    return not (one.literal.startswith(other.literal) or other.literal.startswith(one.literal))


def _values_apart(mine: Sequence[Mapping[str, str]], theirs: Sequence[Mapping[str, str]]) -> bool:
    known = {one["name"]: one for one in theirs}
    for one in mine:
        other = known.get(one["name"])
        if other is None:
            continue
        exact = [each for each in (one, other) if each["type"] == "Exact"]
        if len(exact) == 2 and one["value"] != other["value"]:
            return True
        if len(exact) == 1:
            pattern = other if exact[0] is one else one
            if re.fullmatch(pattern["value"], exact[0]["value"]) is None:
                return True
    return False


def _covered(entries: Sequence[Entry]) -> None:
    """Raise Inexact unless PathPrefix ``/a`` is kept from the path ``/a``, which ``/a/*`` does not take."""
    exact: dict[str, list[Entry]] = {}
    for one in entries:
        if one.path["type"] == "Exact":
            exact.setdefault(one.path["value"], []).append(one)
    for one in entries:
        if one.path["type"] != "PathPrefix" or one.path["value"] == "/":
            continue
        mine = {key: value for key, value in one.match.items() if key != "path"}
        if not any(
            all(mine.get(key) == value for key, value in above.match.items() if key != "path")
            for above in exact.get(one.path["value"], ())
        ):
            raise Inexact(f"{one.title} does not take {one.path['value']}, a PathPrefix would")


def check_order(entries: Sequence[Entry], object_of: Mapping[int, int]) -> None:
    """Raise Inexact unless the Gateway API tries *entries*, given in APISIX's order, to the same end.

    *object_of* gives the number of the object that each rule stands in: between two objects age decides what
    the matches do not, and nobody can promise that.
    """
    _covered(entries)
    for place, later in enumerate(entries):
        for earlier in entries[:place]:
            if earlier.key < later.key or earlier.rule == later.rule:
                continue
            if earlier.key == later.key and object_of[earlier.rule] == object_of[later.rule]:
                continue
            if not _apart(earlier, later):
                why = "age would decide between them" if earlier.key == later.key else "the other way round"
                raise Inexact(f"APISIX tries {earlier.title} before {later.title}, the Gateway API: {why}")
