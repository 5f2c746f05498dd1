"""Every colour of a plot stands out from the light ground it is drawn on, and from the dark one it gets."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from gateshift.judge.verdict import judge
from gateshift.notebook.plots import canary_figure
from gateshift.notebook.return_plot import return_figure
from gateshift.notebook.show import Card
from gateshift.notebook.theme import DARK_GROUND, FILTER, PAGE, STYLE
from gateshift.params.model import JudgeParams
from tests.plots.test_plots import STAGE, history

Colour = tuple[float, float, float]
GROUNDS = {"light": (1.0, 1.0, 1.0), "dark": (17 / 255,) * 3}
"""JupyterLab's two grounds."""


def canary() -> Figure:
    samples = history(30)
    verdict = judge(
        samples, STAGE, JudgeParams(), stage_index=1, stages=5, started=1.79e9, now=samples[-1].time
    )
    known = [(s.time, 40.0, 900.0) for s in samples]
    curve = [(s.time, 25.0) for s in samples]
    return canary_figure(samples, STAGE, verdict=verdict, title="t", forecast=curve, connections=known)


def back() -> Figure:
    return return_figure([(5.0, 40.0), (30.0, 0.2)], 0.0, 1.4, 300.0, title="t")


def turned(colour: Sequence[float]) -> Colour:
    """What a browser makes of *colour* by the filter (Filter Effects Module, invert and hueRotate)."""
    found = re.fullmatch(r"invert\(([\d.]+)\) hue-rotate\((\d+)deg\)", FILTER)
    assert found
    part, angle = float(found[1]), math.radians(float(found[2]))
    red, green, blue = (channel * (1 - 2 * part) + part for channel in colour)
    c, s = math.cos(angle), math.sin(angle)
    rows = (
        (0.213 + c * 0.787 - s * 0.213, 0.715 - c * 0.715 - s * 0.715, 0.072 - c * 0.072 + s * 0.928),
        (0.213 - c * 0.213 + s * 0.143, 0.715 + c * 0.285 + s * 0.140, 0.072 - c * 0.072 - s * 0.283),
        (0.213 - c * 0.213 - s * 0.787, 0.715 - c * 0.715 + s * 0.715, 0.072 + c * 0.928 + s * 0.072),
    )
    r, g, b = (min(1.0, max(0.0, x * red + y * green + z * blue)) for x, y, z in rows)
    return r, g, b


def seen(colour: Any, ground: str) -> Colour:
    return to_rgb(colour) if ground == "light" else turned(to_rgb(colour))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG 2's ratio."""

    def luminance(colour: Sequence[float]) -> float:
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


SIGHT = {
    "common": np.eye(3),
    "protanopia": np.array(
        ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
    ),
    "deuteranopia": np.array(
        ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881))
    ),
    "tritanopia": np.array(
        ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039))
    ),
}
"""Machado, Oliveira and Fernandes 2009, whole strength, on linear light."""


def apart(one: Sequence[float], other: Sequence[float], sight: str) -> float:
    """How different two colours look (CIE 1976): about 2 is just seen, 20 is told at a glance."""

    def lab(colour: Sequence[float]) -> np.ndarray:
        c = np.asarray(colour)
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        to_xyz = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)))
        xyz = to_xyz @ np.clip(SIGHT[sight] @ linear, 0, 1) / (0.9505, 1.0, 1.089)
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array((116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])))

    return float(np.linalg.norm(lab(one) - lab(other)))


def words_of(figure: Figure) -> Iterator[Text]:
    figure.draw_without_rendering()  # the ticks get their texts
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():  # type: ignore[attr-defined]  # a Text
            yield text  # type: ignore[misc]  # a Text


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("draw", [canary, back])
def test_lines_and_words_stand_out_from_both_grounds(draw: Any, ground: str) -> None:
    figure = draw()
    under = seen(figure.get_facecolor(), ground)
    assert contrast(under, GROUNDS[ground]) < 1.02, "the picture's ground is the page's"
    for axes in figure.axes:
        assert contrast(seen(axes.get_facecolor(), ground), under) < 1.02
        for line in axes.lines:
            ratio = contrast(seen(line.get_color(), ground), under)
            assert ratio >= 3, f"{line.get_label()}: {ratio:.2f}"
    for text in words_of(figure):
        ratio = contrast(seen(text.get_color(), ground), under)
        assert ratio >= 4.5, f"{text.get_text()!r}: {ratio:.2f}"


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_two_gateways_and_the_limit_are_told_apart_on_both_grounds(ground: str) -> None:
    lines = next(axes for axes in canary().axes if axes.get_title().startswith("error rate")).lines
    assert len({str(line.get_linestyle()) for line in lines}) == len(lines) == 3, "without colours, too"
    colours = [seen(line.get_color(), ground) for line in lines]
    for one, other in itertools.combinations(colours, 2):
        assert min(apart(one, other, sight) for sight in SIGHT) >= 20


def test_white_becomes_the_dark_ground() -> None:
    assert [round(255 * c) for c in turned((1.0, 1.0, 1.0))] == [DARK_GROUND] * 3


def test_the_card_brings_the_style_and_touches_no_other_notebook() -> None:
    html = Card("t", production=False, facts={"a": "b"})._repr_html_()
    assert STYLE in html
    for selector in STYLE.removeprefix("<style>").partition("{")[0].split(","):
        assert selector.startswith('[data-jp-theme-light="false"]')
        assert ":has(.gateshift-card)" in selector or "].jp-Notebook" in selector
    assert "screen" in PAGE, "paper is white"
