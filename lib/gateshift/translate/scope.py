"""Where a DENY policy has to hold: the routes that carry it, and no request more.

AuthorizationPolicy knows hosts, paths and methods, and is asked before routing. Patterns that are exact
paths or prefixes are either nested or disjoint, so the paths of one virtual host form a tree; in each
node's own region (the node without its children) the winner depends on the method alone. What cannot be
told apart that way (variables, regular expressions) raises :class:`Unscopable`: the route is held back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateshift.translate.job import Draft
from gateshift.translate.paths import Pattern

__all__ = ["Unscopable", "operations"]

_OTHER = "*"
"""Stands for every method that no route of the host names."""


class Unscopable(Exception):  # noqa: N818 - a verdict about one draft, caught by the caller
    """A policy cannot be limited to its route; carries the drafts that carry the policy."""

    def __init__(self, drafts: Sequence[Draft], reason: str) -> None:
        super().__init__(reason)
        self.drafts = tuple(drafts)


@dataclass(slots=True)
class _Node:
    pattern: Pattern | None
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    methods: frozenset[str] = frozenset()


def _methods_of(draft: Draft) -> frozenset[str] | None:
    """Return the methods of a draft that differs from others by path and method alone, else None."""
    found: set[str] = set()
    for condition in draft.conditions:
        if set(condition) - {"method"}:
            return None
        rule = condition.get("method")
        if rule is None:
            return frozenset({_OTHER})
        found |= {rule["exact"]} if "exact" in rule else set(rule["regex"].split("|"))
    return frozenset(found)


def _tree(patterns: Sequence[Pattern]) -> _Node:
    root = _Node(None)
    prefixes: dict[str, _Node] = {}
    distinct = {(one.kind, one.text): one for one in patterns if one.kind != "regex"}
    for pattern in sorted(distinct.values(), key=lambda p: (len(p.text), p.kind == "exact", p.text)):
        node = _above(pattern, prefixes) or root
        node.children.append(_Node(pattern, node))
        if pattern.kind == "prefix":
            prefixes[pattern.text] = node.children[-1]
    return root


def _above(pattern: Pattern, prefixes: Mapping[str, _Node]) -> _Node | None:
    """Return the longest prefix already known that covers *pattern*."""
    text = pattern.text
    covering = (prefixes[text[:size]] for size in range(len(text), -1, -1) if text[:size] in prefixes)
    return next(covering, None)


def _text(pattern: Pattern) -> str:
    return pattern.text if pattern.kind == "exact" else f"{pattern.text}*"


class _Host:
    def __init__(self, ordered: Sequence[tuple[Draft, Pattern]], key: str) -> None:
        self.ordered = ordered
        self.key = key
        names = {m for draft, _ in ordered for m in (_methods_of(draft) or ())}
        self.universe = frozenset(names | {_OTHER})
        carriers = [d for d, _ in ordered if self.carries(d)]
        for draft, pattern in ordered:
            if pattern.kind == "regex" and self.carries(draft):
                raise Unscopable([draft], f"its path {pattern.source} is a pattern that policies do not know")
        self.carriers = carriers
        self._methods = {id(draft): _methods_of(draft) for draft, _ in ordered}
        self._regexes = [place for place, (_, pattern) in enumerate(ordered) if pattern.kind == "regex"]
        self._places: dict[tuple[str, str], list[int]] = {}
        for place, (_, pattern) in enumerate(ordered):
            self._places.setdefault((pattern.kind, pattern.text), []).append(place)

    def carries(self, draft: Draft) -> bool:
        return any(one.key == self.key for one in draft.policies)

    def asked(self, node: _Node) -> list[int]:
        """Return the places of the rules that may win somewhere in the node's own region, in their order."""
        places: list[int] = []
        above: _Node | None = node
        while above is not None and above.pattern is not None:
            places += self._places[above.pattern.kind, above.pattern.text]
            above = above.parent
        if node.pattern is not None:
            # A regular expression may win anywhere below its literal; it carries nothing (see above).
            places += [p for p in self._regexes if _overlaps(self.ordered[p][1], node.pattern)]
        return sorted(places)

    def region(self, asked: Sequence[int], method: str) -> bool:
        """Tell whether the winner in a node's own region carries the policy."""
        open_above: bool | None = None
        for place in asked:
            draft, pattern = self.ordered[place]
            methods = self._methods[id(draft)]
            if pattern.kind == "regex" or methods is None:
                certain = False
            elif _OTHER in methods or method in methods:
                certain = True
            else:
                continue
            carries = self.carries(draft)
            if open_above is not None and open_above != carries:
                raise Unscopable(
                    self.carriers or [draft],
                    f"route {draft.id} is told from a neighbour by more than path and method",
                )
            if certain:
                return carries
            open_above = carries
        # Under a condition only: requests that fail it reach nothing, so denying them as well is right.
        return bool(open_above)


def _overlaps(pattern: Pattern, other: Pattern) -> bool:
    return other.text.startswith(pattern.literal) or pattern.literal.startswith(other.text)


def operations(
    ordered: Sequence[tuple[Draft, Pattern]], key: str, exempt: Sequence[str] = ()
) -> list[Mapping[str, Any]]:
    """Return the ``to.operation`` parts (without hosts) under which policy *key* must hold.

    *ordered* is one virtual host's list of routes, as it is tried. Raises Unscopable.
    """
    host = _Host(ordered, key)
    if not host.carriers:
        return []
    root = _tree([pattern for _, pattern in ordered])
    found: list[Mapping[str, Any]] = []

    def classify(node: _Node) -> None:
        if node.pattern is not None:
            asked = host.asked(node)
            protected = {m for m in host.universe if host.region(asked, m)}
            node.methods = frozenset(protected - set(exempt))
        for child in node.children:
            classify(child)

    def boundary(node: _Node, same: frozenset[str]) -> list[_Node]:
        """Return the nearest descendants whose protection differs from *same*."""
        edge: list[_Node] = []
        for child in node.children:
            edge += [child] if child.methods != same else boundary(child, same)
        return edge

    def walk(node: _Node) -> None:
        edge = boundary(node, node.methods)
        if node.pattern is not None and node.methods:
            rule: dict[str, Any] = {"paths": [_text(node.pattern)]}
            if edge:
                rule["notPaths"] = sorted(_text(one.pattern) for one in edge if one.pattern)
            if _OTHER in node.methods:
                spared = sorted((host.universe | set(exempt)) - node.methods - {_OTHER})
                if spared:
                    rule["notMethods"] = spared
            else:
                rule["methods"] = sorted(node.methods)
            found.append(rule)
        for one in edge:
            walk(one)

    classify(root)
    walk(root)
    merged: dict[str, dict[str, Any]] = {}
    for rule in found:
        if "notPaths" in rule:
            merged[f"own:{rule['paths'][0]}"] = dict(rule)
        else:
            label = f"{rule.get('methods')}:{rule.get('notMethods')}"
            group = merged.setdefault(label, {**rule, "paths": []})
            group["paths"] = sorted([*group["paths"], *rule["paths"]])
    return list(merged.values())
