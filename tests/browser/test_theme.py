"""A plot in JupyterLab's two themes, and in our own pages in a browser that prefers dark. No lab."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from gateshift import desk as own
from gateshift.archive.pages import read_notebooks, write_pages
from tests.browser.conftest import ROOT, SCREEN, Desk, free_port, served_by

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CARD = "from gateshift.notebook.show import Card\nCard('t', False, {'a': 'b'})"
REACH = f"import sys\nsys.path.insert(0, {str(ROOT)!r})"
PLOT = """from gateshift.notebook.live import LiveFigure
from tests.plots.test_theme import canary
live = LiveFigure()
live.update(canary)"""
LIGHT, DARK = (255, 255, 255), (17, 17, 17)


def write(path: Path, *sources: str) -> None:
    cells = [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def lab_page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("theme")
    write(folder / "ours.ipynb", CARD, REACH, PLOT)
    write(folder / "other.ipynb", "1 + 1", REACH, PLOT)
    port, token = free_port(), "theme-test"
    more = [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    one = Desk(folder, f"http://127.0.0.1:{port}", token, None, None)  # type: ignore[arg-type]
    command = own.command(folder, folder / "ours.ipynb", browser=False, port=port, more=more)
    home = {**os.environ, "HOME": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"}
    with served_by(one, command, browser, cwd=folder, env=home, screen={**SCREEN, "height": 1300}):
        yield one


def shown(desk: Desk, name: str, wanted: tuple[int, ...]) -> np.ndarray:
    """The plot of the notebook in front, as it is on the screen once a change of the theme has faded away."""
    plot = desk.panel.locator(".jp-RenderedImage img").last
    plot.wait_for(timeout=60_000)
    deadline = time.monotonic() + 15
    while True:
        plot.scroll_into_view_if_needed()
        desk.page.mouse.move(1, 1)
        picture = plot.screenshot()
        seen = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        if near(ground(seen), wanted) or time.monotonic() > deadline:
            (desk.folder / f"{name}.png").write_bytes(picture)
            return seen
        time.sleep(0.5)


def ground(picture: np.ndarray) -> tuple[int, ...]:
    """The colour that most of the plot has."""
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return tuple(int(c) for c in colours[counts.argmax()])


def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 3 for a, b in zip(one, other, strict=True))


def theme(desk: Desk, name: str) -> None:
    light = str(name.endswith("Light")).lower()
    desk.command("apputils:change-theme", theme=name)
    desk.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached", timeout=30_000)


def test_a_plot_has_the_ground_of_the_theme_and_is_redrawn_in_it(lab_page: Desk) -> None:
    desk = lab_page
    desk.settled("ours")
    desk.command("notebook:run-all-cells")
    light = shown(desk, "light", LIGHT)
    assert near(ground(light), LIGHT)
    theme(desk, "JupyterLab Dark")
    dark = shown(desk, "dark", DARK)
    assert near(ground(dark), DARK), ground(dark)
    assert dark.max() > 180, "its words are light now"
    desk.finish()
    desk.command("notebook:run-all-cells")  # the style comes with the card, again
    desk.finish()
    assert near(ground(shown(desk, "redrawn", DARK)), DARK)


def test_the_pictures_of_another_notebook_stay_as_they_are(lab_page: Desk) -> None:
    desk = lab_page
    theme(desk, "JupyterLab Dark")
    desk.command("docmanager:open", path="other.ipynb")
    desk.settled("other")
    desk.command("notebook:run-all-cells")
    assert near(ground(shown(desk, "other", LIGHT)), LIGHT)
    theme(desk, "JupyterLab Light")


@pytest.mark.parametrize(("scheme", "wanted"), [("light", LIGHT), ("dark", DARK)])
def test_the_archived_page_follows_the_browser(
    browser: Any, lab_page: Desk, tmp_path: Path, scheme: str, wanted: tuple[int, ...]
) -> None:
    from nbclient import NotebookClient

    run = tmp_path / "50_canary-20261130T000000Z"
    run.mkdir()
    write(run / "50_canary.ipynb", CARD, REACH, PLOT)
    node = nbformat.read(run / "50_canary.ipynb", as_version=4)
    NotebookClient(node).execute()
    node.metadata["gateshift"] = {"outcome": "done"}
    nbformat.write(node, run / "50_canary.ipynb")
    (page,) = write_pages(tmp_path, read_notebooks(tmp_path), {})
    context = browser.new_context(viewport=SCREEN, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.as_uri())
    plot = tab.locator("img").last
    picture = plot.screenshot()
    (lab_page.folder / f"page-{scheme}.png").write_bytes(tab.screenshot(full_page=True))
    assert near(ground(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))), wanted)
    corner = Image.open(io.BytesIO(tab.screenshot())).convert("RGB").getpixel((2, 2))
    assert near(corner, wanted), f"the page itself is {corner}"
    context.close()
