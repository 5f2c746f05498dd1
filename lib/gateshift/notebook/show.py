"""Displayable values: each renders as HTML in a notebook and as plain text in a terminal or log.

The HTML carries its own colours for its own grounds and inherits the rest, so that it reads in JupyterLab's
light and dark themes, in VS Code and in the archived page. Nothing depends on colour, on a widget or on a
script: without scripts a table is a table that does not sort.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gateshift.notebook.links import linked
from gateshift.notebook.theme import STYLE
from gateshift.plan import Plan
from gateshift.words import gloss, known, tell, term

__all__ = ["Card", "Note", "PlanView", "Table", "columns_of", "wrapped"]

_GROUNDS = {"pass": "#0a7d33", "warn": "#8a4b00", "fail": "#b3261e", "info": "#3b5b92"}
_MARKS = {"pass": "✓", "warn": "!", "fail": "✗", "info": "i"}
_CELL = "padding:2px 10px;text-align:left;vertical-align:top;border-bottom:1px solid rgba(128,128,128,.35)"
_VALUE = f"{_CELL};white-space:pre-line"
# Sorts its table by the clicked column; a second click turns the order round. A cell counts as a number when
# it is one, with or without a unit: a date, a clock time or a version only begins with one and is compared as
# text, runs of digits in it by their value.
_SORT = (
    "(function(h){var t=h.closest('table'),b=t.tBodies[0],i=h.cellIndex,"
    "d=h.getAttribute('aria-sort')==='ascending'?-1:1;"
    "Array.from(h.parentNode.cells).forEach(function(c){c.removeAttribute('aria-sort')});"
    "h.setAttribute('aria-sort',d>0?'ascending':'descending');"
    "var v=function(t){return /^\\s*[-+]?\\d+(\\.\\d+)?(\\s*[^-\\s\\d.,:/].*)?$/.test(t)?parseFloat(t):NaN};"
    "Array.from(b.rows).sort(function(x,y){var p=x.cells[i].textContent,q=y.cells[i].textContent,"
    "m=v(p),n=v(q);"
    "return d*(isNaN(m)||isNaN(n)?p.localeCompare(q,undefined,{numeric:true}):m-n)})"
    ".forEach(function(r){b.appendChild(r)})})(this)"
)


def _badge(text: str) -> str:
    standing = text.lower()
    if standing not in _GROUNDS:
        return linked(gloss(text))
    shown = tell(f"standing.{standing}") if known(f"standing.{standing}") else text
    return (
        f'<span style="background:{_GROUNDS[standing]};color:#fff;padding:0 7px;border-radius:3px;'
        f'white-space:nowrap">{_MARKS[standing]} {escape(shown)}</span>'
    )


def _plain(text: str) -> str:
    """Return a cell of a table as text."""
    return term(text) if text in _GROUNDS else gloss(text)


def columns_of(text: str) -> int:
    """Return how many columns of a terminal *text* takes: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int) -> str:
    return text + " " * max(0, width - columns_of(text))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with a title; a click on a column's head sorts. pass, warn, fail and info become badges.

    As text it is no wider than the terminal: cells wrap, and nothing is cut off.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th style="{_CELL};cursor:pointer" tabindex="0" role="columnheader" onclick="{_SORT}" '
            f"onkeydown=\"if(event.key==='Enter')this.click()\">{escape(term(c))}</th>"
            for c in self.columns
        )
        body = "".join(
            "<tr>" + "".join(f'<td style="{_VALUE}">{_badge(str(v))}</td>' for v in row) + "</tr>"
            for row in self.rows
        )
        return (
            f"<div><b>{escape(gloss(term(self.title)))}</b><table style='border-collapse:collapse'>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        heads = tuple(term(c) for c in self.columns)
        texts = [heads, *[tuple(_plain(str(v)) for v in row) for row in self.rows]]
        wanted = [max(_widest_line(row[i]) for row in texts) for i in range(len(self.columns))]
        room = shutil.get_terminal_size((110, 24)).columns - len(_GAP) * (len(wanted) - 1)
        widths = _shared(wanted, room)
        lines = [gloss(term(self.title))]
        for row in texts:
            cells = [wrapped(text, width) for text, width in zip(row, widths, strict=True)]
            for i in range(max(len(cell) for cell in cells)):
                parts = [cell[i] if i < len(cell) else "" for cell in cells]
                padded = (_padded(part, width) for part, width in zip(parts, widths, strict=True))
                lines.append(_GAP.join(padded).rstrip())
        return "\n".join(lines)


_GAP = "  "
_NARROW = 8
"""Columns of text that a table's column gets at least: one word."""


def _widest_line(text: str) -> int:
    return max((columns_of(line) for line in text.splitlines()), default=0)


def _shared(wanted: Sequence[int], room: int) -> list[int]:
    """Share *room* out: narrow columns get what they want, the others an equal part of the rest."""
    widths = list(wanted)
    over = sorted(range(len(wanted)), key=lambda i: wanted[i])
    left = room
    for place, i in enumerate(over):
        widths[i] = min(wanted[i], max(_NARROW, left // (len(over) - place)))
        left -= widths[i]
    return widths


def wrapped(text: str, width: int, *, paths_whole: bool = False) -> list[str]:
    """Break *text* into lines of at most *width* terminal columns, between words where it can be.

    With *paths_whole* a longer word of narrow characters alone stays in one piece, to be copied.
    """
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if columns_of(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            narrow = columns_of(line) == len(line)
            while columns_of(line) > width and not (paths_whole and narrow):
                cut = len(line)
                while columns_of(line[:cut]) > width:
                    cut -= 1
                cut = max(cut, 1)
                lines.append(line[:cut])
                line = line[cut:]
        lines.append(line)
    return lines


def _fact(text: str) -> str:
    if re.fullmatch(r"https?://\S+", text):
        return f'<a href="{escape(text)}" target="_blank" rel="noopener">{escape(text)}</a>'
    return linked(text)


@dataclass(frozen=True, slots=True)
class Card:
    """The status card at the head of every notebook. Production is a red band nobody can overlook."""

    title: str
    production: bool
    facts: Mapping[str, Any]

    def _repr_html_(self) -> str:
        ground = "#b3261e" if self.production else "#3b5b92"
        where = "production" if self.production else "lab"
        rows = "".join(
            f"<tr><td style='{_CELL};white-space:nowrap'>{escape(k)}</td>"
            f"<td style='{_CELL}'><b>{_fact(str(v))}</b></td></tr>"
            for k, v in self.facts.items()
        )
        return (
            f"{STYLE}<div class='gateshift-card' style='border:3px solid {ground};max-width:60em'>"
            f"<div style='background:{ground};color:#fff;padding:5px 14px;font-size:115%'>"
            f"<b>{'⚠ ' if self.production else ''}{tell(f'where.{where}')}</b>"
            f" &nbsp;{tell(f'where.{where}.note')}</div>"
            f"<div style='padding:6px 14px'><b>{escape(self.title)}</b>"
            f"<table style='border-collapse:collapse'>{rows}</table></div></div>"
        )

    def __repr__(self) -> str:
        where = "production" if self.production else "lab"
        band = f"{'!!! ' if self.production else ''}[{tell(f'where.{where}')}] {tell(f'where.{where}.note')}"
        width = max((columns_of(k) for k in self.facts), default=0)
        return "\n".join([band, self.title, *[f"  {_padded(k, width)}  {v}" for k, v in self.facts.items()]])


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence with its standing: pass, warn, fail or info."""

    standing: str
    text: str

    def _repr_html_(self) -> str:
        text = linked(gloss(self.text))
        if "\n" in self.text:
            head, _, rest = text.partition("\n")
            text = f"{head}<pre>{rest}</pre>"
        return f"<div>{_badge(self.standing)} {text}</div>"

    def __repr__(self) -> str:
        return f"{term(self.standing)}: {gloss(self.text)}"


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan as a person reads it: the steps, the digest, the way back."""

    plan: Plan
    most: int = 40
    digest: str = ""
    """The digest on record, for a plan that was read back (what is secret in it is not kept)."""

    def _table(self) -> Table:
        shown: Sequence[Any] = self.plan.steps[: self.most]
        rows = [
            (i + 1, s.verb, s.target, gloss(s.note), _change(s.before, s.after)) for i, s in enumerate(shown)
        ]
        columns = tuple(tell(f"plan.column.{name}") for name in ("verb", "target", "note", "change"))
        return Table(
            tell(
                "plan.title",
                title=gloss(self.plan.title),
                count=len(self.plan.steps),
                digest=self.digest or self.plan.digest,
            ),
            ("#", *columns),
            tuple(rows),
        )

    def _more(self) -> str:
        hidden = len(self.plan.steps) - self.most
        return tell("plan.more", count=hidden) if hidden > 0 else ""

    def _back(self) -> str:
        return tell("plan.back", how=gloss(self.plan.way_back))

    def _repr_html_(self) -> str:
        more = f"<p>{escape(self._more())}</p>" if self._more() else ""
        return f"{self._table()._repr_html_()}{more}<p>{linked(self._back())}</p>"

    def __repr__(self) -> str:
        lines = [repr(self._table()), self._more(), self._back()]
        return "\n".join(line for line in lines if line)


_MOST_FIELDS = 6


def _change(before: Any, after: Any) -> str:
    """Say what differs, field by field: two long records cut off alike would hide the very change."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = dict(_leaves(before)), dict(_leaves(after))
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        parts = [f"{key}: {_brief(old.get(key))} → {_brief(new.get(key))}" for key in changed[:_MOST_FIELDS]]
        if len(changed) > _MOST_FIELDS:
            parts.append(tell("plan.fields", count=len(changed) - _MOST_FIELDS))
        return "; ".join(parts) or tell("plan.same")
    if before is None and isinstance(after, Mapping):
        return ", ".join(f"{key}: {_brief(value)}" for key, value in list(_leaves(after))[:_MOST_FIELDS])
    return _brief(after, 200) if before is None else f"{_brief(before, 200)} → {_brief(after, 200)}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested mappings with its dotted path; a list is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _brief(value: Any, limit: int = 60) -> str:
    if value is None:
        return "—"
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
