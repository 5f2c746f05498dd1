"""Text that was to be filled in before APISIX reads it: Helm, Jinja, envsubst, and APISIX's own ``${{VAR}}``.

What such a text will be is not known, so nothing may be emitted from it as if it were meant. Texts that a
plugin fills in itself, and code, are no gaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.apisix.model import Configuration, Kind, Resource

__all__ = [
    "EXPRESSION",
    "REMEDY",
    "Gap",
    "decides",
    "dotted",
    "gap_in",
    "gaps",
    "structural_lines",
    "unknown_existence",
    "unknown_match",
]

Path = tuple[str | int, ...]

REMEDY = "render the template (helm template, jinja, envsubst) or set the variable, and read the result"

EXPRESSION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}")
"""One expression of Helm or Jinja on one line."""
_OWN = re.compile(r"\$\{\{[^{}]*\}\}")
_SHELL = re.compile(r"\$\{[A-Za-z_][\w:.-]*\}")
# In plugins ${name} is a variable of a request, and those have lower case; an environment's do not.
_ENVIRONMENT = re.compile(r"\$\{[A-Z_][A-Z0-9_]*(?::[-=?+][^}]*)?\}")

_CODE = frozenset({"filter_func", "script", "functions"})
_OWN_TEMPLATES = frozenset({"body-transformer", "ai-prompt-template"})
"""Plugins that fill in ``{{name}}`` themselves, at each request."""
_DOCUMENTATION = frozenset(
    {"name", "desc", "description", "labels", "create_time", "update_time", "created_at"}
)
_MATCHED = frozenset(
    {"uri", "uris", "host", "hosts", "methods", "priority", "remote_addr", "remote_addrs", "vars", "status"}
)


@dataclass(frozen=True, slots=True)
class Gap:
    """A place in an object, and the text there that nothing filled in."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)} holds {self.text}, which was never filled in"


def dotted(path: Path) -> str:
    """Write a path as ``plugins.cors.allow_origins[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def gap_in(text: str, path: Path = ()) -> str:
    """Return what in *text* still waits to be filled in; empty for a text that is meant as it stands."""
    if "{" not in text:
        return ""
    named = [part for part in path if isinstance(part, str)]
    if not _CODE.isdisjoint(named):
        return ""
    found = _OWN.search(text)
    if found is None and _OWN_TEMPLATES.isdisjoint(named):
        found = EXPRESSION.search(text) if "{{" in text or "{%" in text else None
    if found is None:
        found = (_ENVIRONMENT if "plugins" in named or named[-1:] == ["key"] else _SHELL).search(text)
    return found[0] if found else ""


def gaps(value: Any, path: Path = ()) -> Iterator[Gap]:
    """Yield every gap in the keys and values of an object; its documentation may hold what it likes."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = str(key)
            if not path and name in _DOCUMENTATION:
                continue
            if name == "config" and value.get("name") in _OWN_TEMPLATES:
                continue  # a plugin as a custom resource writes it
            below = (*path, name)
            if "{" in name and (found := gap_in(name, below)):
                yield Gap(below, found)
            if isinstance(item, str):
                if "{" in item and (found := gap_in(item, below)):
                    yield Gap(below, found)
            elif isinstance(item, Mapping | list | tuple):
                yield from gaps(item, below)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from gaps(item, (*path, i))
    elif isinstance(value, str) and (found := gap_in(value, path)):
        yield Gap(path, found)


def unknown_existence(configuration: Configuration, resource: Resource) -> str:
    """Say why it is not known whether *resource* exists: a template's conditions and loops decide."""
    for one in configuration.unfilled:
        if not one.exists and one.covers(resource.origin):
            return f"it stands in a template, and {one.text} ({one.origin}) decides what is in that"
    return ""


def unknown_match(configuration: Configuration, route: Resource) -> str:
    """Say why it is not known which requests *route* takes; empty when it is."""
    reason = unknown_existence(configuration, route)
    if reason:
        return reason
    for gap in gaps(route.spec):
        if gap.path[0] in _MATCHED:
            return f"its {gap}"
    named = route.spec.get("service_id")
    if named is None or route.spec.get("hosts") is not None or route.spec.get("host") is not None:
        return ""
    service = configuration.get(Kind.SERVICE, named)
    if service is None:
        return ""
    return next((f"services/{service.id}: its {g}" for g in gaps(service.spec) if g.path[0] == "hosts"), "")


_SAID = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}|\{%-?\s*(.*?)\s*-?%\}|\{#.*?#\}")
_HARMLESS = re.compile(r"/\*|\$\w+\s*:?=|set\s+\w+\s*=")


def structural_lines(text: str) -> list[int]:
    """Return the lines, from 0, that consist of expressions: conditions, loops, and what they include."""
    found = []
    for number, line in enumerate(text.split("\n")):
        if ("{{" in line or "{%" in line or "{#" in line) and not EXPRESSION.sub("", line).strip():
            found.append(number)
    return found


def decides(line: str) -> bool:
    """Tell whether a line of expressions says what is in the file; comments and assignments do not."""
    said = [one[1] or one[2] or "" for one in _SAID.finditer(line)]
    return any(one and not _HARMLESS.match(one) for one in said)
