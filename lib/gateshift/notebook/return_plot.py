"""The figure of a rollback: when the weights were accepted, and how the users came back."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from gateshift.notebook.plots import _APISIX, _GROUND, _INK, _LIMIT, _PROMOTE, _dress, _legend

__all__ = ["return_figure"]

_SHORTEST = 20.0
"""Seconds that the figure shows at least."""


def return_figure(
    shares: Sequence[tuple[float, float]], started: float, accepted: float, limit: float, *, title: str
) -> Figure:
    """Draw APISIX's observed share after a rollback.

    *shares* are (unix seconds, percent on Istio); *started* and *accepted* unix seconds; *limit* seconds
    from the start within which users must be back.
    """
    figure = Figure(figsize=(9, 3.6), dpi=100, facecolor=_GROUND, layout="constrained")
    axes = figure.add_subplot()
    times = [t - started for t, _ in shares]
    back = [100 - percent for _, percent in shares]
    axes.plot(
        times, back, color=_APISIX, linewidth=2.2, marker="o", markersize=3, label="on APISIX, observed"
    )
    axes.axvline(
        accepted - started,
        color=_INK,
        linestyle="--",
        linewidth=1.3,
        label=f"weights accepted, {accepted - started:.1f} s",
    )
    axes.axhline(99, color=_LIMIT, linestyle="-.", linewidth=1.3, label="users are back: 99 %")
    reached = next((t for t, b in zip(times, back, strict=True) if b >= 99), None)
    if reached is not None:
        axes.axvline(reached, color=_PROMOTE, linewidth=1.3, label=f"99 % reached, {reached:.0f} s")
    if not shares:
        axes.text(0.5, 0.5, "no share was observed", ha="center", transform=axes.transAxes, color=_INK)
    axes.set_ylim(0, 134)  # head room for the legend, which then hides no line
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(0, max([*times, accepted - started, _SHORTEST]) * 1.05)
    axes.set_xlabel(f"seconds since the start (limit {limit:.0f} s)", color=_INK, fontsize=9)
    axes.set_title("share of requests on APISIX, %")
    _dress(axes)
    _legend(axes, "upper left", columns=4)
    figure.suptitle(title, color=_INK, fontsize=11.5, fontweight="bold")
    return figure
