"""Figures of a canary stage. Pure ``matplotlib.figure.Figure``: no backend, no global state, no window.

Colours are told apart with every common kind of colour blindness; canary and baseline also differ by line
style. The figure brings its own white ground: what shows it as it is keeps it readable, and a dark theme
turns it over (:mod:`gateshift.notebook.theme`). tests/plots measures the colours on both grounds.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure

from gateshift.judge.measure import quantile, sum_buckets, totals
from gateshift.judge.model import Sample, Side, Verdict
from gateshift.judge.verdict import evidence_curve
from gateshift.params.model import JudgeParams, StageParams

__all__ = ["canary_figure"]

_ISTIO = "#0072B2"
_APISIX = "#CC7E00"
_LIMIT = "#B00020"
_PROMOTE = "#009E73"
_INK = "#2b2b2b"
_EXPECTED = "#94948d"
_GROUND = "#ffffff"
_GRID = "#d8d8d2"
_WINDOW = 10
"""Intervals over which plotted rates and quantiles are taken: one scrape alone is mostly noise."""

_CURVE_POINTS = 40


def canary_figure(
    history: Sequence[Sample],
    stage: StageParams,
    *,
    shares: Sequence[tuple[float, float]] = (),
    forecast: Sequence[tuple[float, float]] = (),
    connections: Sequence[tuple[float, float | None, float | None]] = (),
    verdict: Verdict | None = None,
    title: str = "",
    params: JudgeParams | None = None,
    reference: Sequence[Side] = (),
    zone: tzinfo | None = None,
) -> Figure:
    """Draw a stage: share, error rates with limit, evidence, latency and request rate.

    *shares* and *forecast* are (unix seconds, percent on Istio), observed and expected; *connections* are
    (unix seconds, open on Istio, open on APISIX), drawn if any is known. *zone* is the
    operator's time zone (default: the machine's); UTC stands beside it. Gaps in the data are shaded and
    named, never drawn as zero.
    """
    local = zone or datetime.now().astimezone().tzinfo or UTC
    figure = Figure(figsize=(11, 8.6), dpi=100, facecolor=_GROUND, layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(1.15, 0.8, 1.15))
    share = figure.add_subplot(grid[0, 0])
    errors = figure.add_subplot(grid[0, 1], sharex=share)
    proof = figure.add_subplot(grid[1, 1], sharex=share)
    watched = any(istio is not None or apisix is not None for _, istio, apisix in connections)
    left = grid[1, 0].subgridspec(1, 2) if watched else None
    rate = figure.add_subplot(left[0, 0] if left else grid[1, 0], sharex=share)
    upper = [share, errors, proof, rate]
    if left:
        upper.append(figure.add_subplot(left[0, 1], sharex=share))
        _connections(upper[-1], connections)
    fast = figure.add_subplot(grid[2, 0], sharex=share)
    slow = figure.add_subplot(grid[2, 1], sharex=share, sharey=fast)
    _share(share, history, stage, shares, forecast)
    _errors(errors, history, stage)
    _evidence(proof, history, stage, verdict, params or JudgeParams(), reference)
    _rate(rate, history)
    _latency(fast, history, stage, "canary", "Istio (new) latency, ms")
    _latency(slow, history, stage, "baseline", "APISIX (old) latency, ms")
    for axes in (*upper, fast, slow):
        _dress(axes)
        _gaps(axes, history, ("baseline",) if axes is slow else ("canary", "baseline"))
    for axes in (fast, slow):
        _clock(axes, history, local)
    for axes in upper:
        axes.tick_params(labelbottom=False)
    figure.suptitle(_heading(title, verdict), color=_INK, fontsize=11.5, fontweight="bold", wrap=True)
    return figure


def _heading(title: str, verdict: Verdict | None) -> str:
    if verdict is None:
        return title
    mark = {"promote": "✓ PROMOTE", "hold": "… HOLD", "rollback": "✗ ROLL BACK"}[verdict.decision.value]
    reason = verdict.reasons[0] if verdict.reasons else ""
    short = textwrap.shorten(reason, 130, placeholder=" …")
    return f"{title}\n{mark}: {short}" if title else f"{mark}: {short}"


def _moment(time: float) -> float:
    return float(date2num(datetime.fromtimestamp(time, UTC)))  # type: ignore[no-untyped-call]  # matplotlib.dates is untyped


def _moments(history: Sequence[Sample]) -> list[float]:
    return [_moment(sample.time) for sample in history]


def _rolling(
    history: Sequence[Sample], side: str, figure_of: Callable[[Sequence[Side]], float | None]
) -> list[float]:
    """Apply *figure_of* over a trailing window; nan where the newest interval is missing or says nothing."""
    values = []
    for end in range(1, len(history) + 1):
        sides = [getattr(sample, side) for sample in history[max(0, end - _WINDOW) : end]]
        value = None if sides[-1].missing is not None else figure_of(sides)
        values.append(math.nan if value is None else value)
    return values


def _error_rate(sides: Sequence[Side]) -> float | None:
    requests, errors = totals(sides)
    return 100 * errors / requests if requests > 0 else None


def _style(side: str) -> dict[str, Any]:
    if side == "canary":
        return {"color": _ISTIO, "linestyle": "-", "linewidth": 1.9}
    return {"color": _APISIX, "linestyle": (0, (5, 2)), "linewidth": 1.9}


def _both(axes: Axes, history: Sequence[Sample], figure_of: Callable[[Sequence[Side]], float | None]) -> None:
    for side, label in (("baseline", "APISIX (old)"), ("canary", "Istio (new)")):
        axes.plot(_moments(history), _rolling(history, side, figure_of), label=label, **_style(side))


def _share(
    axes: Axes,
    history: Sequence[Sample],
    stage: StageParams,
    shares: Sequence[tuple[float, float]],
    forecast: Sequence[tuple[float, float]],
) -> None:
    if forecast:
        axes.plot(
            [_moment(t) for t, _ in forecast],
            [p for _, p in forecast],
            color=_EXPECTED,  # a broad band under the observed line, seen also where both are the same
            linewidth=5.5,
            solid_capstyle="butt",
            label="expected",
        )
    if shares:
        axes.plot(
            [_moment(t) for t, _ in shares], [p for _, p in shares], label="observed", **_style("canary")
        )
    else:
        values = []
        for end in range(1, len(history) + 1):
            window = history[max(0, end - _WINDOW) : end]
            istio = totals([s.canary for s in window])[0]
            every = istio + totals([s.baseline for s in window])[0]
            values.append(100 * istio / every if every > 0 else math.nan)
        axes.plot(_moments(history), values, label="observed", **_style("canary"))
    axes.axhline(
        stage.weight_percent,
        color=_INK,
        linestyle=":",
        linewidth=1.4,
        label=f"target {stage.weight_percent} %",
    )
    top = max([stage.weight_percent, *(v for line in axes.lines for v in _finite(line.get_ydata()))])
    # Head room for the legend, and a small weight is not a line at the bottom.
    axes.set_ylim(0, max(1.45 * top, 10))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.set_title("share of requests on Istio, %")
    _legend(axes, "upper left", columns=3)


def _errors(axes: Axes, history: Sequence[Sample], stage: StageParams) -> None:
    _both(axes, history, _error_rate)
    limit = stage.error_rate_limit_percent
    axes.axhline(limit, color=_LIMIT, linestyle="-.", linewidth=1.4, label=f"limit {limit:g} %")
    top = max([v for line in axes.lines for v in _finite(line.get_ydata())] or [0.0])
    axes.set_ylim(-0.03 * max(top, 1.6 * limit), max(1.35 * top, 1.6 * limit))
    axes.set_title(f"error rate (5xx), %, over {_WINDOW} samples")
    _legend(axes, "upper left", columns=3)


def _finite(values: Any) -> list[float]:
    return [float(v) for v in values if math.isfinite(float(v))]


def _evidence(  # noqa: PLR0917 - private, called once
    axes: Axes,
    history: Sequence[Sample],
    stage: StageParams,
    verdict: Verdict | None,
    params: JudgeParams,
    reference: Sequence[Side],
) -> None:
    inputs = {} if verdict is None else verdict.evidence.get("inputs", {})
    curve = (
        evidence_curve(
            history,
            stage,
            params,
            stages=int(inputs.get("stages", 5)),
            points=_CURVE_POINTS,
            reference=reference,
            attempt=inputs.get("attempt"),
        )
        if history
        else []
    )
    times = [_moment(t) for t, _, _ in curve]
    bound = (-1.0, 1.5)
    for index, label, colour, style in (
        (1, "for rolling back", _LIMIT, "-"),
        (2, "for promoting", _PROMOTE, "--"),
    ):
        values = [min(max(point[index], bound[0]), bound[1]) for point in curve]
        axes.plot(times, values, color=colour, linestyle=style, linewidth=1.9, label=label)
    axes.axhline(1.0, color=_INK, linestyle=":", linewidth=1.4, label="decides")
    axes.set_ylim(bound[0] - 0.1, bound[1] + 0.9)
    axes.set_title("evidence on errors, in units of its threshold")
    _legend(axes, "upper left", columns=3)


def _rate(axes: Axes, history: Sequence[Sample]) -> None:
    for side, label in (("baseline", "APISIX (old)"), ("canary", "Istio (new)")):
        values = []
        for end in range(1, len(history) + 1):
            window = history[max(0, end - _WINDOW) : end]
            newest: Side = getattr(window[-1], side)
            # The first sample of a window only opens it (its own interval began earlier); gaps do not count.
            known = [
                (after.time - before.time, getattr(after, side))
                for before, after in itertools.pairwise(window)
                if getattr(after, side).missing is None
            ]
            span = math.fsum(seconds for seconds, _ in known)
            count = totals([figures for _, figures in known])[0]
            values.append(count / span if span > 0 and newest.missing is None else math.nan)
        axes.plot(_moments(history), values, label=label, **_style(side))
    top = max([v for line in axes.lines for v in _finite(line.get_ydata())] or [1.0])
    axes.set_ylim(0, 1.35 * max(top, 1.0))
    axes.set_title("requests per second")
    _legend(axes, "upper left", columns=2)


def _connections(axes: Axes, connections: Sequence[tuple[float, float | None, float | None]]) -> None:
    times = [_moment(time) for time, _, _ in connections]
    sides = (
        ("baseline", "APISIX (old)", [_known(apisix) for _, _, apisix in connections]),
        ("canary", "Istio (new)", [_known(istio) for _, istio, _ in connections]),
    )
    for side, label, values in sides:
        axes.plot(times, values, label=label, **_style(side))
    top = max([v for line in axes.lines for v in _finite(line.get_ydata())] or [1.0])
    axes.set_ylim(0, 1.6 * max(top, 1.0))
    axes.set_title("open connections")
    _legend(axes, "upper left", columns=1)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _latency(axes: Axes, history: Sequence[Sample], stage: StageParams, side: str, title: str) -> None:
    colour = _ISTIO if side == "canary" else _APISIX
    for percent, style, width in ((50, (0, (1, 1.5)), 1.6), (95, "-", 2.1), (99, (0, (5, 2)), 1.5)):

        def figure_of(sides: Sequence[Side], percent: int = percent) -> float | None:
            return quantile(sum_buckets(sides), percent / 100).value

        axes.plot(
            _moments(history),
            _rolling(history, side, figure_of),
            color=colour,
            linestyle=style,
            linewidth=width,
            label=f"P{percent}",
        )
    limit = stage.p95_limit_ms
    axes.axhline(limit, color=_LIMIT, linestyle="-.", linewidth=1.4, label=f"P95 limit {limit:.0f} ms")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1, top=max(14 * limit, 100))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(title)
    _legend(axes, "upper left", columns=4)


def _legend(
    axes: Axes, where: Literal["upper left", "upper right", "lower right"], *, columns: int = 1
) -> None:
    legend = axes.legend(
        loc=where, ncols=columns, fontsize=8, framealpha=0.85, facecolor=_GROUND, edgecolor=_GRID
    )
    for text in legend.get_texts():
        text.set_color(_INK)


def _dress(axes: Axes) -> None:
    axes.set_facecolor(_GROUND)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=8.5)
    axes.title.set_color(_INK)
    axes.title.set_fontsize(9.5)
    for spine in axes.spines.values():
        spine.set_color(_GRID)


def _gaps(axes: Axes, history: Sequence[Sample], sides: tuple[str, ...]) -> None:
    """Shade where the canary (or, lighter, the baseline) has no figures, with the reason's name."""
    for side in sides:
        alpha = 0.28 if side == sides[0] else 0.12
        begin: float | None = None
        name = ""
        for before, sample in zip([history[0], *history] if history else [], history, strict=False):
            missing = getattr(sample, side).missing
            if missing is not None and begin is None:
                begin, name = before.time, missing.kind.value
            elif missing is None and begin is not None:
                _shade(axes, begin, before.time, alpha, name if side == sides[0] else "")
                begin = None
        if begin is not None:
            _shade(axes, begin, history[-1].time, alpha, name if side == sides[0] else "")


def _shade(axes: Axes, begin: float, end: float, alpha: float, name: str) -> None:
    axes.axvspan(_moment(begin), _moment(max(end, begin + 0.5)), color="#888888", alpha=alpha, linewidth=0)
    if name:
        axes.text(
            _moment((begin + end) / 2),
            0.5,
            name,
            transform=axes.get_xaxis_transform(),
            rotation=90,
            ha="center",
            va="center",
            fontsize=7.5,
            color=_INK,
        )


def _clock(axes: Axes, history: Sequence[Sample], zone: tzinfo) -> None:
    """Label the time axis in the operator's zone, and in UTC below it."""
    if not history:
        axes.set_xticks([])
        return
    if len(history) == 1:
        axes.set_xlim(_moment(history[0].time - 5), _moment(history[0].time + 5))
    # With more than two ticks at least, some spans have no fitting step: Matplotlib warns into the notebook.
    locator = AutoDateLocator(minticks=2, maxticks=6, tz=zone)  # type: ignore[no-untyped-call]  # matplotlib.dates is untyped
    axes.xaxis.set_major_locator(locator)
    span = history[-1].time - history[0].time if len(history) > 1 else 0.0
    pattern = "%H:%M:%S" if span < 900 else "%H:%M" if span < 86400 else "%m-%d %H:%M"
    moment = datetime.fromtimestamp(history[-1].time, UTC)
    name = moment.astimezone(zone).tzname() or "local"
    local = DateFormatter(pattern, tz=zone)  # type: ignore[no-untyped-call]  # as above
    utc = DateFormatter(pattern, tz=UTC)  # type: ignore[no-untyped-call]  # as above
    if moment.astimezone(zone).utcoffset() == moment.utcoffset():
        axes.xaxis.set_major_formatter(local)
        axes.set_xlabel(f"UTC, {moment:%Y-%m-%d}", color=_INK, fontsize=8.5)
        return
    axes.xaxis.set_major_formatter(
        lambda value, position: f"{local(value, position)}\n{utc(value, position)}"
    )
    axes.set_xlabel(f"{name}, below it UTC, {moment.astimezone(zone):%Y-%m-%d}", color=_INK, fontsize=8.5)
