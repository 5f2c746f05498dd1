from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gateshift.archive.audit import survey, verify
from gateshift.archive.client import CellEvent
from gateshift.archive.outcome import CellStatus, exit_code_of
from gateshift.archive.run import execute, settle
from gateshift.archive.scratch import scratch_folder
from gateshift.errors import InputError
from gateshift.migration.journal import Journal, read_records
from tests.archive.books import read, statuses, write_notebook

pytestmark = pytest.mark.slow

SECRET = "Xk7-canary!secret\u00e9/value+9"
SLEEP = "import time\nprint('asleep', flush=True)\ntime.sleep(60)"
DISPLAY = "from gateshift.archive import display; display.install()\nfrom gateshift.errors import *"


def test_run_is_relayed_live_saved_whole_and_done(tmp_path: Path) -> None:
    source = (
        "import sys, os, time\nprint(sys.executable, os.environ['MARK'], os.getcwd(), x)\ntime.sleep(0.6)"
    )
    book = write_notebook(tmp_path / "in.ipynb", source, "x + 1")
    target = tmp_path / "m" / "run" / "in.ipynb"
    said: list[str] = []
    cells: list[CellEvent] = []
    torn: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            if target.exists():
                try:
                    json.loads(target.read_text())
                except ValueError as error:
                    torn.append(str(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = execute(
            book,
            target,
            {"x": 41},
            env={"MARK": "here"},
            cwd=tmp_path,
            on_output=said.append,
            on_cell=cells.append,
        )
    finally:
        stop.set()
        watcher.join()
    assert (outcome.exit_code, outcome.error, outcome.word) == (0, None, "done")
    assert "".join(said) == f"{sys.executable} here {tmp_path} 41\n"
    assert not torn
    assert statuses(target) == ["completed", "completed"]
    assert read(target).cells[-1].outputs[0].data["text/plain"] == "42"
    assert read(target).metadata.gateshift.outcome == "done"
    assert [e.status for e in cells[-2:]] == [CellStatus.RUNNING, CellStatus.COMPLETED]
    assert json.loads((target.parent / "manifest.json").read_text())["files"].keys() == {"in.ipynb"}


def test_typed_error_is_short_held_and_stops_the_notebook(tmp_path: Path) -> None:
    book = write_notebook(tmp_path / "in.ipynb", DISPLAY, "raise Blocked('no jwt', hint='accept it')", "1")
    outcome = execute(book, tmp_path / "m" / "run" / "in.ipynb")
    assert outcome.exit_code == 3
    assert (outcome.error, outcome.hint) == ("no jwt", "accept it")
    assert statuses(outcome.path) == ["completed", "failed", "pending"]
    *_, stopped, _ = read(outcome.path).cells
    folded, error = stopped.outputs
    assert error.traceback == ["Blocked: no jwt", "  next: accept it"]
    assert "<details>" in folded.data["text/html"]
    assert "Traceback" in folded.data["text/html"]
    assert "Outcome: held (exit code 3)" in read(outcome.path).cells[0].source


def test_no_secret_gets_into_any_file(tmp_path: Path) -> None:
    leak = f"""
import base64, sys, json
from IPython.display import HTML, display
print(token, flush=True)
print(base64.b64encode(("x" + token + "yz").encode()).decode())
sys.stderr.write(repr(token))
display(HTML(f"<b>{{token}}</b>"))
print(json.dumps({{"k": token}}), "Authorization: Bearer abcdefghijklmnop")
print("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl")
print("-----BEGIN RSA PRIVATE KEY-----\\nMIIEowIBAAKCAQEAcanary\\n-----END RSA PRIVATE KEY-----")
hand_written = {SECRET!r}
token
"""
    book = write_notebook(
        tmp_path / "in.ipynb",
        leak,
        "raise ValueError('bad ' + token)",
        parameters="token = None\nnested = None",
    )
    said: list[str] = []
    parameters = {"token": SECRET, "nested": {"admin_key": "second-canary-secret"}}
    outcome = execute(book, tmp_path / "m" / "run" / "in.ipynb", parameters, on_output=said.append)
    assert outcome.exit_code == 1
    everything = outcome.error + "".join(said)
    for path in (tmp_path / "m").rglob("*"):
        everything += path.read_text() if path.is_file() else ""
    assert "canary" not in everything.replace("test_no_secret", "")
    assert json.dumps(SECRET)[1:-1] not in everything
    assert "abcdefghijklmnop" not in everything
    assert "c2lnbmF0dXJl" not in everything
    assert "WGs3LWNhbmFyeSFzZWNyZX" not in everything
    assert "s3LWNhbmFy" not in everything
    assert "[redacted]" in everything


@pytest.mark.parametrize(
    ("cells", "code", "after"),
    [
        (("import sys; sys.exit(0)", "1"), 1, ["failed", "pending"]),
        (("exit()", "1"), 1, ["failed", "pending"]),
        (("1", "import sys; sys.exit(0)"), 0, ["completed", "completed"]),
    ],
)
def test_leaving_early_is_no_success(
    tmp_path: Path, cells: tuple[str, ...], code: int, after: list[str]
) -> None:
    outcome = execute(write_notebook(tmp_path / "in.ipynb", *cells), tmp_path / "m" / "run" / "in.ipynb")
    assert outcome.exit_code == code
    assert statuses(outcome.path) == after
    if code:
        assert "with 1 cells undone" in str(outcome.error)


def test_kernel_death_is_not_completed_and_the_journal_is_told(tmp_path: Path) -> None:
    book = write_notebook(tmp_path / "in.ipynb", "import os; os.kill(os.getpid(), 9)", "1")
    with Journal.open(tmp_path / "m" / "journal.jsonl", who="w", run="run") as journal:
        journal.append("migration.opened", params_digest="x")
        journal.append("run.started", notebook="in")
    outcome = execute(book, tmp_path / "m" / "run" / "in.ipynb")
    assert outcome.exit_code == 5
    assert statuses(outcome.path) == ["kernel died", "pending"]
    records = read_records(tmp_path / "m" / "journal.jsonl")
    assert [r.kind for r in records[-2:]] == ["run.ended", "archive.sealed"]
    assert records[-2].data["outcome"] == "interrupted"
    assert "the kernel died" in records[-2].data["error"]
    assert verify(tmp_path / "m") == []


def test_what_a_killed_kernel_leaves_in_its_temporary_folder_goes_with_the_run(tmp_path: Path) -> None:
    source = (
        "import os, tempfile; file = tempfile.NamedTemporaryFile(delete=False)\n"
        f"open({str(tmp_path / 'where')!r}, 'w').write(file.name); os.kill(os.getpid(), 9)"
    )
    book = write_notebook(tmp_path / "in.ipynb", source)
    assert execute(book, tmp_path / "m" / "run" / "in.ipynb").exit_code == 5
    left = Path((tmp_path / "where").read_text())
    assert left.parent.name.startswith("gateshift-run-")
    assert not left.parent.exists()


def test_the_folder_of_an_engine_that_was_killed_goes_with_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living = scratch_folder()
    script = (
        "import os; from gateshift.archive.scratch import scratch_folder; folder = scratch_folder()\n"
        "print(folder.name, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run(
        [sys.executable, "-c", script], check=False, env=environment, capture_output=True, text=True
    )
    dead = Path(killed.stdout.strip())
    assert (dead / "owner").is_file()
    stranger = tmp_path / "gateshift-run-of-another-program"
    stranger.mkdir()
    with scratch_folder() as own:
        assert not dead.exists()
        assert sorted(tmp_path.glob("gateshift-run-*")) == sorted([Path(own), Path(living.name), stranger])


def test_time_out_interrupts_the_cell_and_keeps_what_it_said(tmp_path: Path) -> None:
    source = SLEEP.replace("time.sleep(60)", "\ntry: time.sleep(60)\nfinally: print('cleaned up')")
    book = write_notebook(tmp_path / "in.ipynb", source, "1")
    outcome = execute(book, tmp_path / "m" / "run" / "in.ipynb", cell_timeout=4.0)
    assert outcome.exit_code == 5
    assert "within its time" in str(outcome.error)
    assert statuses(outcome.path) == ["timed out", "pending"]
    assert "cleaned up" in outcome.path.read_text()


def _papermill(book: Path, target: Path) -> subprocess.Popen[str]:
    target.parent.mkdir(parents=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "papermill",
            "--engine",
            "gateshift",
            "--no-progress-bar",
            str(book),
            str(target),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120  # a machine that is busy with other suites starts kernels slowly
    while not (target.exists() and '"running"' in target.read_text() and "sleep(60)" in _running(target)):
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            pytest.fail(f"the notebook did not get to its sleep: {process.communicate()[1]}")
        time.sleep(0.05)
    time.sleep(0.3)
    return process


def _running(target: Path) -> str:
    return "".join(
        c.source for c in read(target).cells if c.metadata.get("papermill", {}).get("status") == "running"
    )


def _kernels_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_plain_papermill_ends_cleanly_on_a_signal(tmp_path: Path, number: int) -> None:
    book, target = write_notebook(tmp_path / "in.ipynb", SLEEP, "1"), tmp_path / "run" / "out.ipynb"
    process = _papermill(book, target)
    kernels = _kernels_of(process.pid)
    assert kernels
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert f"stopped by {signal.Signals(number).name} in cell 3" in errors
    assert "Traceback" not in errors
    assert statuses(target) == ["interrupted", "pending"]
    assert not any(Path(f"/proc/{k}").exists() for k in kernels)


def test_a_signal_that_came_too_late_is_told_to_whoever_runs_several(tmp_path: Path) -> None:
    late = "import atexit, os, signal\natexit.register(os.kill, os.getppid(), signal.SIGINT)"
    outcome = execute(write_notebook(tmp_path / "in.ipynb", late), tmp_path / "run" / "out.ipynb")
    assert (outcome.exit_code, outcome.signal) == (0, "SIGINT")
    assert statuses(outcome.path) == ["completed"]


def test_a_kernel_that_is_slow_to_report_ends_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The control thread's last report comes a second after the main thread was told to leave.
    slow = (
        "import time\nkernel = get_ipython().kernel\nreport = kernel._publish_status_and_flush\n"
        "def late(status, channel, stream, parent=None, sleep=time.sleep, report=report):\n"
        "    sleep(channel == 'control')\n"
        "    report(status, channel, stream, parent)\n"
        "kernel._publish_status_and_flush = late"
    )
    book = write_notebook(tmp_path / "in.ipynb", slow)
    assert execute(book, tmp_path / "m" / "run" / "in.ipynb").exit_code == 0
    assert capfd.readouterr().err == ""


def test_copy_of_a_killed_papermill_is_settled_by_the_next_run(tmp_path: Path) -> None:
    book, target = write_notebook(tmp_path / "in.ipynb", SLEEP, "1"), tmp_path / "m" / "run" / "in.ipynb"
    process = _papermill(book, target)
    kernels = _kernels_of(process.pid)
    assert settle(tmp_path / "m") == [], "an engine that lives is left alone"
    process.kill()
    process.communicate()
    assert statuses(target) == ["running", "pending"]
    assert settle(tmp_path / "m") == [target]
    assert statuses(target) == ["interrupted", "pending"]
    assert read(target).metadata.gateshift.outcome == "interrupted"
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{k}").exists() for k in kernels):
        assert time.monotonic() < deadline, "the kernel outlived its engine"
        time.sleep(0.1)


def test_run_that_failed_before_the_journal_is_sealed_by_the_next(tmp_path: Path) -> None:
    migration = tmp_path / "m"
    assert execute(write_notebook(tmp_path / "a.ipynb", "1 / 0"), migration / "r1" / "a.ipynb").exit_code == 1
    with Journal.open(migration / "journal.jsonl", who="w", run="r2") as journal:
        journal.append("migration.opened", params_digest="x")
    assert verify(migration) == []
    assert [(p.path.name, p.note) for p in survey(migration)] == [("r1", True)], "named until it is sealed"
    settle(migration)
    assert verify(migration) == []


def test_second_attempt_keeps_the_first(tmp_path: Path) -> None:
    target = tmp_path / "m" / "run" / "in.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text("{}")
    outcome = execute(write_notebook(tmp_path / "in.ipynb"), target)
    assert outcome.path.name == "in-attempt2.ipynb"
    assert target.read_text() == "{}"


def test_wrong_arguments_and_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such notebook"):
        execute(tmp_path / "none.ipynb", tmp_path / "out.ipynb")
    broken = tmp_path / "broken.ipynb"
    broken.write_text("no notebook")
    outcome = execute(broken, tmp_path / "m" / "run" / "out.ipynb")
    assert outcome.exit_code == 1
    assert "could not be run" in str(outcome.error)


@pytest.mark.parametrize(
    ("ename", "code"),
    [
        ("ParamsError", 2),
        ("GateClosed", 3),
        ("RolledBack", 4),
        ("Interrupted", 5),
        ("TrafficError", 1),
        ("KeyError", 1),
        ("annotations", 1),
    ],
)
def test_exit_codes(ename: str, code: int) -> None:
    assert exit_code_of(ename) == code


def test_unregistered_user_kernels_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    outcome = execute(write_notebook(tmp_path / "in.ipynb"), tmp_path / "m" / "run" / "in.ipynb")
    assert outcome.exit_code == 0, outcome.error
    assert os.environ["JUPYTER_PATH"]


def test_the_archive_keeps_the_last_frame_of_a_live_plot_as_a_picture(tmp_path: Path) -> None:
    book = write_notebook(
        tmp_path / "in.ipynb",
        "from matplotlib.figure import Figure\nfrom gateshift.notebook.live import LiveFigure\n"
        "live = LiveFigure(every=0)\n"
        "frames = [Figure(figsize=(1, 1)), Figure(figsize=(3, 2))]\n"
        "[frame.suptitle(f'frame {n}') for n, frame in enumerate(frames)]\n"
        "[live.update(lambda frame=frame: frame) for frame in frames]\n"
        "live.finish()",
    )
    target = tmp_path / "m" / "run" / "in.ipynb"
    assert execute(book, target).exit_code == 0
    (output,) = [
        output
        for cell in read(target).cells
        for output in cell.get("outputs", [])
        if "data" in output and "image/png" in output.data
    ]
    png = base64.b64decode(output.data["image/png"])
    assert struct.unpack(">II", png[16:24]) == (300, 200)
    assert "frame 1" in output.data["text/plain"]
    assert "frame 1" in output.metadata["image/png"]["alt"]


def test_a_secret_printed_in_pieces_is_in_no_file_and_in_no_log(tmp_path: Path) -> None:
    body = "BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
    pieces = "import time\nfor c in token: print(c, end='', flush=True); time.sleep(0.02)"
    # The source has no body in one piece, which nothing could know for a secret there.
    lines = f"'-----BEGIN PRIVATE KEY-----', '{body[:16]}' '{body[16:]}', '-----END PRIVATE KEY-----'"
    key = f"for line in {lines}: print(line, flush=True); time.sleep(0.3)"
    book = write_notebook(tmp_path / "in.ipynb", pieces, key)
    said: list[str] = []
    target = tmp_path / "m" / "run" / "in.ipynb"
    outcome = execute(book, target, {"token": SECRET}, on_output=said.append)
    assert outcome.exit_code == 0
    outputs = ["".join(o.text for o in c.outputs) for c in read(target).cells[-2:]]
    assert outputs[0] == "[redacted]"
    for text in (*outputs, "".join(said)):
        assert SECRET not in text
        assert body not in text


def _tagged(path: Path) -> Path:
    book = read(path)
    book.cells[-2].metadata["tags"] = ["raises-exception"]
    path.write_text(json.dumps(book))
    return path


def test_an_error_that_papermill_alone_would_see_stops_the_notebook_and_is_sealed(tmp_path: Path) -> None:
    tagged = _tagged(write_notebook(tmp_path / "a.ipynb", "1 / 0", "1"))
    shown = write_notebook(tmp_path / "b.ipynb", "try: 1 / 0\nexcept: get_ipython().showtraceback()", "1")
    for book in (tagged, shown):
        outcome = execute(book, tmp_path / "m" / book.stem / book.name)
        assert (outcome.exit_code, outcome.ename) == (1, "ZeroDivisionError")
        assert statuses(outcome.path) == ["failed", "pending"]
        assert read(outcome.path).metadata.gateshift.outcome == "failed"
        assert (outcome.path.parent / "manifest.json").exists()


SHOW = "from IPython.display import display\ndisplay({}, raw=True)\n1 / 0"


@pytest.mark.parametrize(
    ("shown", "ename"),
    [
        ("{'text/plain': 5}", "NotebookValidationError"),
        ("{'application/vnd.gateshift.error+json': 'x'}", "ZeroDivisionError"),
        (
            "{'application/vnd.gateshift.error+json': {'ename': 'ZeroDivisionError', 'exit_code': 0}}",
            "ZeroDivisionError",
        ),
    ],
)
def test_what_no_notebook_can_hold_is_a_failure_of_its_cell(tmp_path: Path, shown: str, ename: str) -> None:
    book = write_notebook(tmp_path / "a.ipynb", SHOW.format(shown), "1")
    outcome = execute(book, tmp_path / "m" / "r" / "a.ipynb")
    assert (outcome.exit_code, outcome.ename) == (1, ename)
    assert statuses(outcome.path) == ["failed", "pending"]
    assert read(outcome.path).metadata.gateshift.outcome == "failed"


def test_an_interrupted_cell_says_so_and_a_time_out_names_the_limit_that_was_reached(tmp_path: Path) -> None:
    book = write_notebook(tmp_path / "a.ipynb", "raise KeyboardInterrupt")
    outcome = execute(book, tmp_path / "m" / "r" / "a.ipynb")
    assert (outcome.exit_code, statuses(outcome.path)) == (5, ["interrupted"])
    slow = execute(
        write_notebook(tmp_path / "b.ipynb", SLEEP),
        tmp_path / "m" / "s" / "b.ipynb",
        timeout=60,
        cell_timeout=1,
    )
    assert slow.error is not None
    assert "within its time (1 s)" in slow.error


def test_no_output_is_dropped_however_fast_it_comes(tmp_path: Path) -> None:
    book = write_notebook(tmp_path / "in.ipynb", "for i in range(20_000): print('.', end='', flush=True)")
    said: list[str] = []
    outcome = execute(book, tmp_path / "m" / "r" / "in.ipynb", on_output=said.append)
    kept = "".join(o.text for o in read(outcome.path).cells[-1].outputs)
    assert (len(kept), len("".join(said))) == (20_000, 20_000)
