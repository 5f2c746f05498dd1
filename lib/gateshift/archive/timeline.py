"""The weights over time as one drawing: steps, verdicts, rollback. Plain SVG, no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gateshift.migration.journal import Record
from gateshift.words import decision_words, gloss, tell

__all__ = ["timeline_svg"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 1000, 260, 48, 24, 34
_MARKS = {"promote": ("▲", "#0a7d33"), "hold": ("■", "#a15c00"), "rollback": ("▼", "#b3261e")}


def timeline_svg(records: Sequence[Record]) -> str:
    """Draw weight on Istio (percent) against time; empty when no weight was ever set.

    Verdicts are marked by shape and word as well as colour.
    """
    steps = _steps(records)
    if len(steps) < 2:
        return ""
    begin, end = steps[0][0], max(records[-1].unix, steps[0][0] + 1.0)

    def x(unix: float) -> float:
        return _LEFT + (unix - begin) / (end - begin) * (_WIDTH - _LEFT - 16)

    def y(weight: float) -> float:
        return _TOP + (100.0 - weight) / 100.0 * (_HEIGHT - _TOP - _BOTTOM)

    path = [f"M{x(begin):.1f},{y(steps[0][1]):.1f}"]
    for unix, weight in steps[1:]:
        path.append(f"H{x(unix):.1f}V{y(weight):.1f}")
    path.append(f"H{x(end):.1f}")
    parts = [_grid(y), f'<path d="{"".join(path)}" fill="none" stroke="#3b5b92" stroke-width="2.5"/>']
    weight_now = 0
    for record in records:
        if record.kind == "shift.done":
            weight_now = int(record.data["to"])
        elif record.kind == "verdict":
            shape, colour = _MARKS.get(str(record.data["decision"]).lower(), ("●", "#666"))
            word = tell(
                "timeline.verdict",
                stage=int(record.data["stage"]) + 1,
                decision=decision_words(str(record.data["decision"])),
            )
            parts.append(_mark(x(record.unix), y(weight_now), shape, colour, word))
        elif record.kind == "rollback.started":
            place, why = x(record.unix), gloss(str(record.data["reason"]))
            parts.append(
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
                f'stroke="#b3261e" stroke-dasharray="4 3"><title>'
                f"{escape(tell('decision.rollback'))}: {escape(why)}</title></line>"
            )
        elif record.kind == "rollback.shifted":
            weight_now = 0
    minutes = (end - begin) / 60.0
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 10}">{escape(records[0].time[:16].replace("T", " "))} UTC</text>'
        f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 10}" text-anchor="end">'
        f"{escape(tell('report.after', minutes=f'{minutes:.1f}'))}</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Weight on Istio over time" '
        f'font-family="system-ui,sans-serif" font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )


def _steps(records: Sequence[Record]) -> list[tuple[float, float]]:
    steps: list[tuple[float, float]] = []
    for record in records:
        if not steps:
            steps.append((record.unix, 0.0))
        if record.kind == "shift.done":
            steps.append((record.unix, float(record.data["to"])))
        elif record.kind == "rollback.shifted":
            steps.append((record.unix, 0.0))
    return steps


def _grid(y: object) -> str:
    assert callable(y)  # noqa: S101 - narrows the type for the checker
    lines = []
    for weight in (0, 25, 50, 75, 100):
        place = y(weight)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{place:.1f}" y2="{place:.1f}" '
            f'stroke="currentColor" stroke-opacity=".2"/>'
            f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{weight} %</text>'
        )
    return "".join(lines)


def _mark(x: float, y: float, shape: str, colour: str, word: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" fill="{colour}">{shape}'
        f"<title>{escape(word)}</title></text>"
    )
