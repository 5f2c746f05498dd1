"""A migration as its operator sees it, in a real browser on the lab's real parts.

One story in order: a failing check and its troubleshooting, set-up step by step, a gate, a plot that moves,
a kernel that dies in mid-stage, and the way back.
"""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gateshift.archive.audit import verify
from tests.browser.conftest import PICTURES, SCREEN, TALL, Desk

pytestmark = [pytest.mark.lab, pytest.mark.browser]


def pixels(plot: Any) -> np.ndarray:
    """The picture that the browser shows in *plot*.

    Not a screenshot of the element: that waits until the element is still, and JupyterLab puts a new one in
    its place with each redrawing.
    """
    source = str(plot.get_attribute("src"))
    assert source.startswith("data:image/png;base64,"), source[:40]
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


def moved(before: np.ndarray, now: np.ndarray) -> bool:
    """Say whether a plot of the same size has changed in more than a few pixels."""
    return now.shape == before.shape and bool((np.abs(now - before).max(axis=2) > 40).sum() > 200)


def test_open_shows_the_notebook_that_is_due_and_the_card_says_where_we_are(desk: Desk) -> None:
    desk.settled("00_preflight")
    desk.write_params(url="http://127.0.0.1:9")  # nobody listens there: the metrics check must fail
    desk.run_all("00_preflight")
    desk.finish()
    card = desk.panel.locator(".gateshift-card").first.inner_text()
    for fact in ("LAB", "UID", "act", "APISIX 100 %", "free", "00_preflight", "80_rollback"):
        assert fact in card, card
    assert "PRODUCTION" not in card


def test_a_failing_check_leads_to_its_troubleshooting_by_one_click(desk: Desk) -> None:
    error = desk.panel.locator(".gateshift-error").last
    said = error.inner_text()
    assert "What happened" in said
    assert "Nothing was changed in this run" in said
    assert "http://127.0.0.1:9" in desk.text()  # the check says who did not answer
    error.scroll_into_view_if_needed()
    desk.picture("error")
    assert desk.panel.locator("details").count() == 1  # the traceback is there, folded
    error.locator("a", has_text="90_troubleshoot").first.click()
    desk.settled("90_troubleshoot")
    desk.run_all("90_troubleshoot")
    desk.finish()
    found = desk.text()
    assert "Ranked causes" in found
    assert "127.0.0.1:9" in found
    desk.panel.locator("b", has_text="Ranked causes").first.scroll_into_view_if_needed()
    desk.picture("troubleshoot")
    desk.write_params()


def test_set_up_step_by_step_with_gates(desk: Desk) -> None:
    desk.run_all("00_preflight")
    desk.finish()
    assert "none failed" in desk.text()
    desk.panel.locator(".gateshift-card").last.locator("a", has_text="10_install").click()
    desk.settled("10_install")
    desk.run()
    if desk.asked():  # a lab that was used before may leave nothing to approve
        desk.answer()
    desk.finish(150)
    desk.run_all("20_translate")
    desk.finish()
    desk.run_all("30_apply")
    if desk.asked():
        desk.answer()
    desk.finish(150)
    for _ in range(3):  # a busy machine can be too slow for one of the parity probes
        desk.run_all("40_verify")
        desk.finish(120)
        if desk.records[-1].kind == "run.ended":
            break
    steps = {"preflight.done", "install.done", "apply.done", "verify.done"}
    done = [r.kind for r in desk.records if r.kind in steps and r.data.get("ok", True)]
    assert done == ["preflight.done", "install.done", "apply.done", "verify.done"], desk.text()[-3000:]


def test_run_all_stops_at_a_gate_that_is_not_answered(desk: Desk) -> None:
    desk.run_all("50_canary")
    assert "first 4 characters" in desk.asked()
    box = desk.panel.locator("input.jp-Stdin-input")
    assert "Way back: 80_rollback" in desk.text()
    box.scroll_into_view_if_needed()
    desk.picture("gate")
    box.press("Enter")
    box.wait_for(state="detached")
    desk.finish()
    assert "was not approved at the prompt; nothing was changed" in desk.text()
    assert "stage.entered" not in desk.kinds()
    waiting = desk.panel.locator(".jp-InputPrompt", has_text="[ ]")
    assert waiting.count() >= 3  # act, verify, close did not run


def test_a_click_on_a_head_sorts_its_table(desk: Desk) -> None:
    desk.show("00_preflight")
    table = desk.panel.locator("table", has=desk.page.locator("th", has_text="check")).first
    column = table.locator("tbody tr td:nth-child(2)")
    head = table.locator("th").nth(1)
    head.click()
    up = column.all_inner_texts()
    assert head.get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    down = column.all_inner_texts()
    assert len(set(up)) > 5
    assert up == down[::-1] != down
    assert head.get_attribute("aria-sort") == "descending"


def test_the_plot_moves_and_a_killed_kernel_resumes_the_stage(desk: Desk) -> None:
    desk.run_all("50_canary")
    desk.answer()
    plot = desk.panel.locator(".jp-RenderedImage img").last
    plot.wait_for(timeout=60_000)
    before = pixels(plot)
    deadline = time.monotonic() + 60
    while not moved(before, pixels(plot)):
        assert time.monotonic() < deadline, "the plot does not move"
        time.sleep(1)
    bar = desk.panel.locator(".gateshift-wait").last
    assert "left" in bar.inner_text() or "so far" in bar.inner_text()
    desk.page.set_viewport_size(TALL)  # the whole plot, and the bar below it
    # By a script, at once: the element that is waited for would be another one by then.
    desk.page.evaluate(
        """() => { const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
             [...panel.querySelectorAll('.gateshift-wait')].at(-1).scrollIntoView({block: 'end'}); }"""
    )
    desk.picture("stage")
    desk.page.set_viewport_size(SCREEN)

    desk.command("notebook:restart-kernel")
    desk.page.locator(".jp-Dialog button.jp-mod-accept").click()
    desk.page.locator(".jp-Dialog").wait_for(state="detached")
    desk.settled("50_canary")
    assert "stage.entered" in desk.kinds()
    assert "stage.promoted" not in desk.kinds(), "the stage ended too soon to be cut"
    desk.run_all("50_canary")
    desk.finish(120)
    assert desk.kinds().count("stage.promoted") == 1, desk.text()[-3000:]
    approvals = [r.data["how"] for r in desk.records if r.kind == "plan.approved"]
    assert approvals[-1] == "stage resumed as approved"
    card = desk.panel.locator(".gateshift-card").first
    assert "Istio 25 %, APISIX 75 %" in card.inner_text()
    card.scroll_into_view_if_needed()
    desk.picture("card", card)


def test_the_browser_may_be_closed_in_mid_stage(desk: Desk) -> None:
    desk.run_all("50_canary")
    desk.answer()
    desk.recorded("stage.arrived", 90, times=2)
    desk.page.reload(wait_until="domcontentloaded")
    desk.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget", timeout=90_000)
    desk.recorded("stage.promoted", 120, times=2)
    desk.show("50_canary")
    desk.run_all("00_preflight")
    desk.finish()
    assert "Istio 100 %, APISIX 0 %" in desk.panel.locator(".gateshift-card").first.inner_text()


def test_roll_back_by_the_link_on_the_card(desk: Desk) -> None:
    desk.panel.locator(".gateshift-card").first.locator("a", has_text="80_rollback").click()
    desk.settled("80_rollback")
    desk.run()
    desk.answer()
    desk.finish(150)
    said = desk.text()
    assert "users are back" in said, said[-3000:]
    assert "rolled back" in said
    assert desk.panel.locator("th", has_text="item").count() == 1  # the checklist
    desk.page.set_viewport_size(TALL)
    desk.panel.locator(".jp-RenderedImage img").last.evaluate("(one) => one.scrollIntoView({block: 'start'})")
    desk.picture("rollback")
    desk.page.set_viewport_size(SCREEN)
    # JupyterLab's next save seals the run.
    assert [r.kind for r in desk.records if r.kind != "archive.sealed"][-1] == "run.ended"


def test_what_was_done_by_hand_is_in_the_archive(desk: Desk) -> None:
    runs = desk.folder / "outputs" / desk.migration
    deadline = time.monotonic() + 20
    while not list(runs.glob("80_rollback-*/80_rollback.ipynb")):  # JupyterLab saves every five seconds
        assert time.monotonic() < deadline, sorted(p.name for p in runs.iterdir())
        time.sleep(0.5)
    assert list(runs.glob("50_canary-*/50_canary.ipynb"))
    strangers = [p.path.name for p in verify(runs)]
    assert strangers == ([] if PICTURES else ["pictures"]), (
        "this test's own: neither the desk nor what it left counts as tampering"
    )
    assert {shot.stem for shot in desk.shots} == {
        "error",
        "troubleshoot",
        "gate",
        "stage",
        "card",
        "rollback",
    }
    assert all(10_000 < shot.stat().st_size < 200_000 for shot in desk.shots)
