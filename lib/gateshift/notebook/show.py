"""Displayable values: each renders as HTML in a notebook and as plain text in a terminal or log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gateshift.plan import Plan

__all__ = ["Card", "Note", "PlanView", "Table"]

_COLOURS = {"pass": "#0a7d33", "warn": "#a15c00", "fail": "#b3261e", "info": "#3b5b92"}
_CELL = "padding:2px 10px;text-align:left;vertical-align:top;border-bottom:1px solid rgba(128,128,128,.35)"


def _badge(text: str) -> str:
    colour = _COLOURS.get(text.lower())
    return f'<b style="color:{colour}">{escape(text)}</b>' if colour else escape(text)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with a title. The words pass, warn and fail are coloured; nothing depends on colour alone."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def _repr_html_(self) -> str:
        head = "".join(f'<th style="{_CELL}">{escape(c)}</th>' for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{_badge(str(v))}</td>' for v in row) + "</tr>"
            for row in self.rows
        )
        return (
            f"<div><b>{escape(self.title)}</b><table style='border-collapse:collapse'>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        texts = [self.columns, *[tuple(str(v) for v in row) for row in self.rows]]
        widths = [min(60, max(len(str(row[i])) for row in texts)) for i in range(len(self.columns))]
        lines = [
            "  ".join(str(v)[:60].ljust(w) for v, w in zip(row, widths, strict=True)).rstrip()
            for row in texts
        ]
        return "\n".join([self.title, *lines])


@dataclass(frozen=True, slots=True)
class Card:
    """The status card at the head of every notebook."""

    title: str
    production: bool
    facts: Mapping[str, Any]

    def _repr_html_(self) -> str:
        colour = "#b3261e" if self.production else "#3b5b92"
        where = "PRODUCTION" if self.production else "LAB"
        rows = "".join(
            f"<tr><td style='{_CELL}'>{escape(k)}</td><td style='{_CELL}'><b>{escape(str(v))}</b></td></tr>"
            for k, v in self.facts.items()
        )
        return (
            f"<div style='border:2px solid {colour};border-left-width:12px;padding:8px 14px'>"
            f"<b style='color:{colour}'>{where}</b> &nbsp;<b>{escape(self.title)}</b>"
            f"<table style='border-collapse:collapse'>{rows}</table></div>"
        )

    def __repr__(self) -> str:
        where = "PRODUCTION" if self.production else "LAB"
        return "\n".join([f"[{where}] {self.title}", *[f"  {k}: {v}" for k, v in self.facts.items()]])


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence with its standing: pass, warn, fail or info."""

    standing: str
    text: str

    def _repr_html_(self) -> str:
        return f"<p>{_badge(self.standing)} — {escape(self.text)}</p>"

    def __repr__(self) -> str:
        return f"{self.standing}: {self.text}"


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan as a person reads it: the steps, the digest, the way back."""

    plan: Plan
    most: int = 40

    def _table(self) -> Table:
        shown: Sequence[Any] = self.plan.steps[: self.most]
        rows = [
            (i + 1, s.verb, s.target, _brief(s.before), _brief(s.after), s.note) for i, s in enumerate(shown)
        ]
        return Table(
            f"{self.plan.title} — {len(self.plan.steps)} steps, digest {self.plan.digest}",
            ("#", "verb", "target", "before", "after", "note"),
            tuple(rows),
        )

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>Way back: {escape(self.plan.way_back)}</p>"

    def __repr__(self) -> str:
        return f"{self._table()!r}\nWay back: {self.plan.way_back}"


def _brief(value: Any, limit: int = 90) -> str:
    if value is None:
        return "—"
    if isinstance(value, Mapping):
        value = ", ".join(f"{k}={v}" for k, v in value.items())
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
