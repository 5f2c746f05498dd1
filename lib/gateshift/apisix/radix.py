"""Path lookup in the order of lua-resty-radixtree 2.9.2, for uris and for reversed host names.

Exact paths come before every prefix; prefixes come from the longest to the shortest literal text before the
first ``*`` (or ``:`` when parameters are on). Entries of one literal text are sorted by priority, then by
the length of the path as written, then by insertion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateshift.apisix.pcre import InvalidPattern, Untranslatable, compile_pattern

__all__ = ["Entry", "PathTree", "is_plain", "make_entry"]

T = TypeVar("T")

# Text that a regular expression matches only as itself; a dot matches itself too, and the text before the
# first wildcard has already been compared literally.
_PLAIN = re.compile(r"[A-Za-z0-9_\-.~%,;=@!&':/]*")


def is_plain(text: str) -> bool:
    """True for text that means itself as a regular expression too."""
    return _PLAIN.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One path of one route. ``pattern`` must match the whole path when it is not None."""

    path: str
    payload: T
    priority: float
    exact: bool
    literal: str
    pattern: re.Pattern[str] | None = None
    never: bool = False
    """The library compiles the path to an invalid regular expression, which matches nothing."""
    manual: str = ""
    """Why the whole path's pattern cannot be decided here."""

    def accepts(self, path: str) -> bool:
        """Compare the whole path; the literal part is known to match."""
        if self.pattern is None:
            return not self.never
        found = self.pattern.search(path)
        return found is not None and found[0] == path


def _pattern_of(path: str, compared: int) -> str | None:
    """The library's regular expression of a path, or None when every path with the prefix is accepted.

    The first *compared* characters are the literal text that the tree has compared already.
    """
    items = path.split("/")
    while items and not items[-1]:
        items.pop()
    names = 0
    out = []
    for item in items:
        if item.startswith(":"):
            out.append("([^\\/]+)")
            names += 1
        elif item.startswith("*"):
            out.append("((?:.|\\n)*)")
            names += 1
        else:
            out.append(item)
    if not names:
        return None
    last_only = names == 1 and items[-1].startswith("*") and compared == len(path) - len(items[-1])
    if last_only and not path.endswith("/") and is_plain("/".join(items[:-1])):
        return None  # the common "/prefix/*": whatever follows the literal text matches
    return "\\/".join(out) + ("\\/" if path.endswith("/") else "")


def make_entry(path: str, payload: T, priority: float, *, parameters: bool) -> Entry[T]:
    """Compile one path (a byte string)."""
    at = path.find(":") if parameters else -1
    if at < 0:
        at = path.find("*")
    if at < 0:
        return Entry(path, payload, priority, True, path)
    text = _pattern_of(path, at)
    pattern, never, manual = None, False, ""
    if text is not None:
        try:
            pattern = compile_pattern(text)
        except InvalidPattern:
            never = True
        except Untranslatable as error:
            never, manual = True, f"the path's regular expression {error} has no equal here"
    return Entry(path, payload, priority, False, path[:at], pattern, never, manual)


class PathTree(Generic[T]):
    """All entries of one router."""

    __slots__ = ("_exact", "_lengths", "_parameters", "_prefix", "size")

    def __init__(self, *, parameters: bool = False) -> None:
        self._parameters = parameters
        self._exact: dict[str, list[Entry[T]]] = {}
        self._prefix: dict[str, list[Entry[T]]] = {}
        self._lengths: tuple[int, ...] = ()
        self.size = 0

    def add(self, path: str, payload: T, priority: float = 0) -> None:
        """Add one path of a route; the order of calls is the insertion order."""
        entry = make_entry(path, payload, priority, parameters=self._parameters)
        table = self._exact if entry.exact else self._prefix
        entries = table.setdefault(entry.literal, [])
        entries.append(entry)
        self.size += 1

    def freeze(self) -> PathTree[T]:
        """Sort after the last :meth:`add`; the tree cannot be searched before."""
        for table in (self._exact, self._prefix):
            for entries in table.values():
                entries.sort(key=lambda e: (-e.priority, -len(e.path)))
        self._lengths = tuple(sorted({len(literal) for literal in self._prefix}, reverse=True))
        return self

    def groups(self, path: str) -> Iterator[list[Entry[T]]]:
        """Yield the entries of each literal text that matches, in the order in which the library tries them.

        Prefix entries still have to pass :meth:`Entry.accepts`; the library asks that last.
        """
        exact = self._exact.get(path)
        if exact is not None:
            yield exact
        prefix, size = self._prefix, len(path)
        for length in self._lengths:
            if length <= size:
                entries = prefix.get(path[:length])
                if entries is not None:
                    yield entries

    def search(self, path: str) -> Iterator[Entry[T]]:
        """Yield the same entries one by one."""
        for entries in self.groups(path):
            yield from entries
