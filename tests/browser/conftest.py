"""An operator's screen: JupyterLab started by ``gateshift open --lab``, in the system's Chromium."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gateshift import lab as laboratory
from gateshift.lab.build import cache_home
from gateshift.lab.state import state_home
from gateshift.migration.journal import Record, read_records

ROOT = Path(__file__).parents[2]
PICTURES = os.environ.get("GATESHIFT_SCREENSHOTS")
"""Folder for the screenshots that docs and README show; without it they stay in the migration's archive."""

SCREEN = {"width": 1280, "height": 900}
TALL = {"width": 1280, "height": 1020}


def chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    return None


def installable() -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    asked = ["apt-get", "install", "--dry-run", "--no-install-recommends", "chromium"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = chromium()
    if program is None:
        line = "NO CHROMIUM: the browser test was NOT run. Install it: `make browser` (as root)."
        print(f"\n{'!' * 79}\n{line}\n{'!' * 79}", file=sys.stderr)
        if os.environ.get("CI") and installable():
            pytest.fail(line)  # CI on a machine that can install it must run this test
        pytest.skip(line)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        one = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the screen a failed test was looking at."""
    outcome = yield
    desk = getattr(item, "funcargs", {}).get("desk")
    if outcome.get_result().failed and desk is not None and desk.page is not None:  # type: ignore[attr-defined]
        desk.picture(f"failed-{item.name}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Desk:
    """The operator's migration: its params file, its server, its page."""

    folder: Path
    url: str
    token: str
    page: Any
    server: subprocess.Popen[bytes]
    migration: str = "browser"
    shots: list[Path] = field(default_factory=list)

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def records(self) -> tuple[Record, ...]:
        path = self.folder / "outputs" / self.migration / "journal.jsonl"
        return read_records(path) if path.exists() else ()

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]

    def recorded(self, kind: str, seconds: float, times: int = 1) -> None:
        """Wait until the journal has *kind*, *times* times."""
        deadline = time.monotonic() + seconds
        while self.kinds().count(kind) < times:
            assert time.monotonic() < deadline, f"no {kind} yet: {self.text()[-2000:]}"
            time.sleep(0.2)

    def write_params(self, **changes: str) -> None:
        """Write the lab's params for two short stages; *changes* are of the section metrics."""
        data = yaml.safe_load((ROOT / "params/lab.yaml").read_text(encoding="utf-8"))
        data.update(migration=self.migration, mode="act", outputs=str(self.folder / "outputs"))
        data["stages"] = [{**data["stages"][1], "dwell": "25s"}, {**data["stages"][-1], "dwell": "10s"}]
        data["metrics"].update(changes)
        self.params.write_text(yaml.safe_dump(data), encoding="utf-8")

    # -- what an operator does -----------------------------------------------------------------

    def command(self, name: str, **arguments: object) -> None:
        self.page.evaluate(
            "([n, a]) => { void window.jupyterapp.commands.execute(n, a); }", [name, arguments]
        )

    @property
    def panel(self) -> Any:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def show(self, notebook: str) -> None:
        """Have *notebook* in front with a kernel that is ready."""
        if not self.title().startswith(notebook):
            self.command("docmanager:open", path=f"{notebook}.ipynb")
        self.settled(notebook)

    def title(self) -> str:
        return str(self.page.evaluate("() => window.jupyterapp.shell.currentWidget?.title.label ?? ''"))

    def settled(self, notebook: str) -> None:
        self.page.wait_for_function(
            """(name) => { const w = window.jupyterapp.shell.currentWidget;
              return w?.title.label.startsWith(name) && w.sessionContext?.session?.kernel?.status === 'idle'
                && w.content?.widgets?.length > 2 }""",
            arg=notebook,
            timeout=90_000,
        )

    def run_all(self, notebook: str) -> None:
        self.show(notebook)
        self.run()

    def run(self) -> None:
        """Run all cells of the notebook in front, and see the run open in the journal.

        Cells that are waiting say little: a kernel that has just failed refuses what is queued behind the
        failure, and JupyterLab shows that as waiting, too, for a moment.
        """
        before = self.opened
        for _ in range(4):
            self.command("notebook:run-all-cells")
            calm = time.monotonic()
            while time.monotonic() - calm < 5:
                if self.opened > before:
                    return
                if self.busy():
                    calm = time.monotonic()
                time.sleep(0.2)
        raise AssertionError(f"the notebook does not run: {self.text()[-2000:]}")

    @property
    def opened(self) -> int:
        """How many runs the journal knows."""
        return sum(record.kind == "run.started" for record in self.records)

    def busy(self) -> bool:
        """Whether a cell of the notebook in front runs or waits to run.

        The cells are asked, not the screen: JupyterLab draws only those in sight, and a long plan pushes the
        running one out of it.
        """
        found = self.page.evaluate(
            """() => { const w = window.jupyterapp.shell.currentWidget;
              return w?.sessionContext?.session?.kernel?.status === 'busy'
                || !!w?.content?.widgets?.some(c => c.model?.executionState === 'running') }"""
        )
        return bool(found) or self.panel.locator(".jp-InputPrompt", has_text="[*]").count() > 0

    def finish(self, seconds: float = 90) -> None:
        """Wait until no cell of the notebook in front runs or waits to run."""
        deadline = time.monotonic() + seconds
        while self.busy():
            assert time.monotonic() < deadline, f"still running: {self.text()[-2000:]}"
            time.sleep(0.2)

    def text(self) -> str:
        return str(self.panel.inner_text())

    def asked(self, seconds: float = 60) -> str:
        """Wait until a gate asks and return its question; empty when the notebook ended without asking."""
        prompt = self.panel.locator(".jp-Stdin-prompt")
        deadline = time.monotonic() + seconds
        while prompt.count() == 0:
            if not self.busy():
                return ""
            assert time.monotonic() < deadline, f"no question: {self.text()[-2000:]}"
            time.sleep(0.2)
        return str(prompt.inner_text())

    def answer(self, seconds: float = 60) -> str:
        """Approve at the gate as it asks: the first 4 characters of the digest it names."""
        found = re.search(r"\b[0-9a-f]{16}\b", self.asked(seconds))
        assert found, self.text()[-3000:]
        box = self.panel.locator("input.jp-Stdin-input")
        box.fill(found[0][:4])
        box.press("Enter")
        return found[0]

    def picture(self, name: str, part: Any = None) -> None:
        self.page.mouse.move(1, 1)  # nothing below it is lit
        folder = Path(PICTURES) if PICTURES else self.folder / "outputs" / self.migration / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{name}.png"
        shot = Image.open(io.BytesIO((part or self.page).screenshot()))
        # 256 colours, the rare ones of the plots' lines as true as the frequent: a third of the bytes.
        small = shot.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
        small.save(target, optimize=True)
        self.shots.append(target)


@pytest.fixture(scope="module")
def lab_name() -> Iterator[str]:
    """The lab of these tests; it is ended afterwards unless GATESHIFT_BROWSER_LAB named one to keep."""
    kept = os.environ.get("GATESHIFT_BROWSER_LAB")
    yield kept or "browser"
    if not kept:
        laboratory.down("browser")


@pytest.fixture(scope="module")
def people_lab(lab_name: str) -> str:
    """The name of a running lab."""
    laboratory.up(lab_name)
    return lab_name


def newcomer(folder: Path) -> dict[str, str]:
    """Return the environment of an operator at home in *folder*, with nothing set up but what we keep.

    The lab and its programs are those of the tests. What a picture shows of paths begins with ``~``.
    """
    for name, target in ((".local/state", state_home().parent), (".cache", cache_home().parent)):
        (folder / name).mkdir(parents=True)
        target.mkdir(parents=True, exist_ok=True)
        (folder / name / target.name).symlink_to(target)
    own = {"HOME": str(folder), "LOGNAME": "operator", "USER": "operator"}
    return {**{k: v for k, v in os.environ.items() if not k.startswith("XDG_")}, **own}


@pytest.fixture(scope="module")
def desk(browser: Any, lab_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder, name = tmp_path_factory.mktemp("desk"), lab_name
    port, token = free_port(), "browser-test"
    one = Desk(folder, f"http://127.0.0.1:{port}", token, None, None)  # type: ignore[arg-type]
    one.write_params()
    command = [
        str(Path(sys.executable).with_name("gateshift")),
        *("open", "--lab", "--name", name, "-f", str(one.params)),
        *("--no-browser", "--port", str(port)),
        *("--jupyter", f"--IdentityProvider.token={token}"),
        *("--jupyter", "--LabApp.expose_app_in_browser=True"),
    ]
    with served_by(one, command, browser, cwd=ROOT, env=newcomer(folder)):
        yield one


@contextmanager
def served_by(
    one: Desk,
    command: list[str],
    browser: Any,
    *,
    cwd: Path,
    env: Mapping[str, str],
    screen: Mapping[str, int] = SCREEN,
) -> Iterator[None]:
    """Run *command*, a JupyterLab, and open it in *browser*; both are gone afterwards."""
    with (one.folder / "server.log").open("wb") as log:
        one.server = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await_server(one, one.folder / "server.log")
        context = browser.new_context(viewport=screen)
        one.page = context.new_page()
        # With the token once: the cookie carries it from here on, links included.
        one.page.goto(f"{one.url}/?token={one.token}", wait_until="domcontentloaded")
        one.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget", timeout=90_000)
        yield
        context.close()
    finally:
        _end(one.server)


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        return
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(5)


def _await_server(desk: Desk, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert desk.server.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if httpx.get(f"{desk.url}/api/status?token={desk.token}", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start: {log.read_text(errors='replace')[-3000:]}")
