"""The operator's desk: copies that keep what a person wrote, and executed copies in the archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateshift.archive.audit import survey, verify
from gateshift.archive.opened import OPENED, Opened, announce
from gateshift.archive.signing import FOLDER
from gateshift.cli.open import check_environment
from gateshift.desk import command, environment, lay, run_of
from gateshift.desk.copies import keep
from gateshift.errors import InputError
from gateshift.migration.journal import Journal
from gateshift.params.model import ArchiveParams

RUN = "50_canary-20260101T000000Z"


def notebook(code: str = "run.act()", params: str = "mode = None", run: str = "") -> dict[str, Any]:
    outputs = (
        [{"output_type": "execute_result", "data": {"text/plain": f"[LAB]\n  run  {run}"}}] if run else []
    )
    return {
        "cells": [
            {
                "id": "parameters",
                "cell_type": "code",
                "metadata": {"tags": ["parameters"]},
                "source": [params],
            },
            {"id": "open", "cell_type": "code", "metadata": {}, "source": ["run.card()"], "outputs": outputs},
            {"id": "act", "cell_type": "code", "metadata": {}, "source": [code]},
        ]
    }


def write(path: Path, book: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(book), encoding="utf-8")


def test_a_copy_keeps_its_parameters_and_outputs_until_the_original_changes(tmp_path: Path) -> None:
    original, copy = tmp_path / "notebooks" / "50_canary.ipynb", tmp_path / "m" / "desk" / "50_canary.ipynb"
    write(original, notebook())
    assert lay(original.parent, tmp_path / "m") == copy.parent
    write(copy, notebook(params='mode = "act"', run=RUN))
    lay(original.parent, tmp_path / "m")
    assert '\\"act\\"' in copy.read_text(encoding="utf-8")
    write(original, notebook(code="run.act() # newer"))
    lay(original.parent, tmp_path / "m")
    assert "newer" in copy.read_text(encoding="utf-8")


def test_a_damaged_copy_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "notebooks" / "50_canary.ipynb", notebook())
    copy = tmp_path / "m" / "desk" / "50_canary.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text("{torn", encoding="utf-8")
    lay(tmp_path / "notebooks", tmp_path / "m")
    assert run_of(json.loads(copy.read_text(encoding="utf-8"))) == ""


def test_each_save_puts_the_executed_copy_into_its_run_until_that_is_sealed(tmp_path: Path) -> None:
    copy, folder = tmp_path / "m" / "desk" / "50_canary.ipynb", tmp_path / "m" / RUN
    write(copy, notebook(run=RUN))
    keep({"type": "notebook"}, str(copy))  # no such run: nothing happens
    assert not folder.exists()
    folder.mkdir()
    keep({"type": "notebook"}, str(copy), contents_manager=None)
    assert (folder / copy.name).read_text(encoding="utf-8") == copy.read_text(encoding="utf-8")
    (folder / "manifest.json").write_text("{}")
    write(copy, notebook(code="later", run=RUN))
    keep({"type": "notebook"}, str(copy))
    assert "later" not in (folder / copy.name).read_text(encoding="utf-8")


def by_hand(migration: Path, run: str, *, ended: bool, when: float = 0.0) -> dict[str, Any]:
    """Record a run by hand; return its notebook as it is before its last cell shows its output."""
    (migration / run).mkdir(parents=True)
    clock = (lambda: when) if when else time.time
    with Journal.open(migration / "journal.jsonl", who="ann", run=run, clock=clock) as journal:
        journal.append("migration.opened", params_digest="x")
        journal.append("run.started", notebook="50_canary")
        if ended:
            journal.append("run.ended", notebook="50_canary", outcome="done")
    book = notebook(run=run)
    book["cells"].append({"id": "close", "cell_type": "code", "metadata": {}, "source": [], "outputs": []})
    return book


def test_a_run_by_hand_is_sealed_by_the_save_that_shows_its_end(tmp_path: Path) -> None:
    copy, folder = tmp_path / "m" / "desk" / "50_canary.ipynb", tmp_path / "m" / RUN
    book = by_hand(tmp_path / "m", RUN, ended=True)
    write(copy, book)
    keep({"type": "notebook"}, str(copy))
    assert not (folder / "manifest.json").exists(), "the card of the last cell is still to come"
    book["cells"][-1]["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": "done"}}]
    write(copy, book)
    keep({"type": "notebook"}, str(copy))
    assert survey(tmp_path / "m") == []
    (folder / copy.name).write_text("{}", encoding="utf-8")
    assert [p.path for p in verify(tmp_path / "m")] == [folder / copy.name], "an edit shows at once"


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == "gateshift-archive":
            thread.join(30)


@pytest.mark.parametrize("key", ["key", "no-such-key"])
def test_that_save_signs_as_the_params_of_the_run_asked(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OPENED, raising=False)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    migration = tmp_path / "m"
    copy = migration / "desk" / "50_canary.ipynb"
    book = by_hand(migration, RUN, ended=True)
    book["cells"][-1]["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": "done"}}]
    write(copy, book)
    wishes = ArchiveParams(sign_key=str(tmp_path / key)).model_dump(mode="json")
    announce(Opened(migration / RUN, "50_canary", wishes))
    for _ in range(2):  # the second save finds nothing to do
        keep({"type": "notebook"}, str(copy))
        settled()
    assert survey(migration) == []
    signed = list((migration / FOLDER).glob("*")) if (migration / FOLDER).is_dir() else []
    warned = [record.message for record in caplog.records if "not signed" in record.message]
    assert (bool(signed), len(warned)) == ((True, 0) if key == "key" else (False, 1))


def test_a_save_seals_runs_that_ended_a_while_ago(tmp_path: Path) -> None:
    migration, now = tmp_path / "m", time.time()
    for run, ended, when in (
        ("10_install-20260101T000000Z", True, now - 3600),
        ("20_translate-20260101T000000Z", False, now - 1800),
        ("30_apply-20260101T000000Z", True, now - 1),
    ):
        by_hand(migration, run, ended=ended, when=when)
    copy = migration / "desk" / "50_canary.ipynb"
    write(copy, notebook())
    keep({"type": "notebook"}, str(copy))
    assert [p.parent.name[:2] for p in migration.glob("*/manifest.json")] == ["10"]
    assert verify(migration) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "m" / "elsewhere" / "x.ipynb", notebook(run=RUN))
    (tmp_path / "m" / RUN).mkdir()
    keep({"type": "notebook"}, str(tmp_path / "m" / "elsewhere" / "x.ipynb"))
    keep({"type": "file"}, str(tmp_path / "m" / "desk" / "x.txt"))
    assert list((tmp_path / "m" / RUN).iterdir()) == []


def test_jupyterlab_is_this_environments_and_opens_the_notebook(tmp_path: Path) -> None:
    line = command(tmp_path, tmp_path / "outputs" / "m" / "desk" / "50_canary.ipynb", browser=False, port=9)
    assert line[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--LabApp.default_url=/lab/tree/outputs/m/desk/50_canary.ipynb" in line
    assert "--no-browser" in line


def test_two_migrations_do_not_share_their_open_tabs(tmp_path: Path) -> None:
    one, other = (
        {part for part in command(tmp_path, tmp_path / name / "desk" / "x.ipynb") if "workspaces_dir" in part}
        for name in ("lab", "production")
    )
    assert len(one | other) == 2


def test_a_session_by_hand_names_its_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESHIFT_RUN", "of-a-pipeline")
    own = environment("params/x.yaml", lab="practice")
    assert "GATESHIFT_RUN" not in own
    assert own["GATESHIFT_LAB_ONLY"] == "1"
    assert own["JUPYTER_PREFER_ENV_PATH"] == "1"


def test_a_home_that_cannot_be_written_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "JUPYTER_RUNTIME_DIR" not in environment("p.yaml").keys() - os.environ.keys()
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = environment("p.yaml")
    ask = "from jupyter_core import paths as p; print(p.jupyter_runtime_dir(), p.jupyter_data_dir())"
    done = subprocess.run([sys.executable, "-c", ask], env=own, capture_output=True, text=True, check=True)
    assert [Path(one).parent.parent for one in done.stdout.split()] == [tmp_path, tmp_path]
    assert not (tmp_path / "nobody").exists()


def test_outside_a_clone_open_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        check_environment()
    assert "clone" in caught.value.hint


def test_open_prints_the_notebook_that_is_due_and_starts_nothing(tmp_path: Path) -> None:
    from gateshift.cli.open import open_command

    root = Path(__file__).parents[2]
    text = (root / "params/production.yaml").read_text(encoding="utf-8")
    file = tmp_path / "p.yaml"
    file.write_text(
        text.replace("approver:", f"outputs: {tmp_path / 'outputs'}\napprover:"), encoding="utf-8"
    )
    secrets = dict.fromkeys(("APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN"), "x")
    done = CliRunner(env=secrets).invoke(open_command, ["--print", "-f", str(file)])
    assert done.exit_code == 0, done.output
    assert "00_preflight is due" in done.output
    assert (tmp_path / "outputs" / "voiceassistant" / "desk" / "50_canary.ipynb").is_file()


def test_a_stranger_called_python3_is_not_the_kernel_of_the_desk(tmp_path: Path) -> None:
    spec = tmp_path / ".local/share/jupyter/kernels/python3"
    spec.mkdir(parents=True)
    stranger = {"argv": ["/bin/false", "{connection_file}"], "display_name": "stranger", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(stranger), encoding="utf-8")
    ask = "from jupyter_client.kernelspec import get_kernel_spec; print(get_kernel_spec('python3').argv)"
    env = {**environment("params/lab.yaml"), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert "ipykernel" in done.stdout
    found = {**env, "JUPYTER_PREFER_ENV_PATH": "0"}
    other = subprocess.run([sys.executable, "-c", ask], env=found, capture_output=True, text=True, check=True)
    assert "/bin/false" in other.stdout  # what would have been taken
