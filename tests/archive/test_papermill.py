"""Plain papermill: our engine, our IO scheme, and the same archive as by our own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateshift.archive.audit import verify
from gateshift.archive.copying import keep_safe
from gateshift.archive.run import execute
from gateshift.migration.journal import Journal, read_records
from gateshift.params.model import ArchiveParams
from tests.archive.books import read, statuses, write_notebook

pytestmark = pytest.mark.slow

SECRET = "canary-of-plain-papermill"
RUN = (
    "import os\nfrom pathlib import Path\nfrom gateshift.archive.opened import Opened, announce\n"
    "from gateshift.migration.journal import Journal\n"
    "from gateshift.params.model import ArchiveParams\n"
    "run = Path(folder)\nasked = ArchiveParams(sign_key=key).model_dump(mode='json')\n"
    "announce(Opened(run, 'in', asked))\n"
    "journal = Journal.open(run.parent / 'journal.jsonl', who='ann', run=run.name)\n"
    "journal.append('run.started', notebook='in')\n"
    "(run / 'plan.json').write_text('{}')\nprint(admin_key)"
)
END = "journal.append('run.ended', notebook='in', outcome='done')\njournal.close()"


def papermill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *arguments]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GATESHIFT_", "AWS_"))}
    env |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "eu-west-1"}
    env |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)


@pytest.mark.parametrize("engine", ["gateshift", None])
def test_scheme_writes_whole_files_without_secrets(tmp_path: Path, engine: str | None) -> None:
    book = write_notebook(tmp_path / "in.ipynb", "print('was', len(token))", parameters="token = ''")
    target = tmp_path / "m" / "run" / "in.ipynb"
    chosen = ("--engine", engine) if engine else ()
    done = papermill(*chosen, "-p", "token", SECRET, str(book), f"gateshift://{target}")
    assert done.returncode == 0, done.stderr
    assert statuses(target) == ["completed"]
    assert SECRET not in target.read_text()
    assert f"was {len(SECRET)}" in target.read_text()
    assert [p.name for p in target.parent.iterdir()] == ["in.ipynb"], "nothing half-written is left"
    again = papermill("--prepare-only", f"gateshift://{target}", f"gateshift://{tmp_path}/second.ipynb")
    assert again.returncode == 0, again.stderr
    assert read(tmp_path / "second.ipynb").cells


def _shape(value: Any) -> Any:
    """Return what must be equal between two archives: names and structure, without times, hashes, ids."""
    if isinstance(value, dict):
        free = {"sealed", "sha256", "bytes", "hash", "run", "versions", "changed"}
        return {k: "*" if k in free else _shape(v) for k, v in value.items()}
    return [_shape(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def key(tmp_path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    return tmp_path / "key"


def _opened(migration: Path) -> Path:
    """Begin a migration as `open` does, and return the folder of its first run."""
    run = migration / "in-r1"
    run.mkdir(parents=True)
    with Journal.open(migration / "journal.jsonl", who="ann", run="open") as journal:
        journal.append("migration.opened", params_digest="x")
    return run


@pytest.mark.parametrize("inside", [True, False])
def test_plain_papermill_leaves_the_same_archive(tmp_path: Path, inside: bool, key: Path) -> None:
    book = write_notebook(tmp_path / "in.ipynb", RUN, END, parameters="folder = ''\nadmin_key = ''\nkey = ''")
    shapes, copies = [], []
    for way in ("ours", "plain"):
        run = _opened(tmp_path / way / "m")
        migration = run.parent
        given = {"folder": str(run), "admin_key": SECRET, "key": str(key)}
        if way == "ours":
            assert execute(book, run / "in.ipynb", given, secrets=[SECRET]).exit_code == 0
            assert keep_safe(migration, ArchiveParams(sign_key=str(key))) == []
        else:
            pairs = [word for key, value in given.items() for word in ("-p", key, value)]
            target = run / "in.ipynb" if inside else tmp_path / "out" / "elsewhere.ipynb"
            target.parent.mkdir(exist_ok=True)
            done = papermill("--engine", "gateshift", *pairs, str(book), str(target))
            assert done.returncode == 0, done.stderr
            assert target.read_bytes() == (run / "in.ipynb").read_bytes()
        assert verify(migration) == []
        manifest = json.loads((run / "manifest.json").read_text())
        kinds = [r.kind for r in read_records(migration / "journal.jsonl")]
        files = sorted(str(p.relative_to(migration)) for p in migration.rglob("*") if p.is_file())
        shapes.append((files, kinds, _shape(manifest), statuses(run / "in.ipynb")))
        copies.append([(c.cell_type, c.source.replace(str(run), "*")) for c in read(run / "in.ipynb").cells])
        assert not any(SECRET in p.read_text() for p in migration.rglob("*") if p.is_file())
    assert any("signatures" in name for name in shapes[0][0])
    assert shapes[0] == shapes[1]
    assert copies[0] == copies[1]


def test_a_kernel_that_dies_under_plain_papermill_is_on_record(tmp_path: Path) -> None:
    cells = RUN.replace("print(admin_key)", ""), "os._exit(9)"
    book = write_notebook(tmp_path / "in.ipynb", *cells, parameters="folder = ''\nkey = ''")
    run = _opened(tmp_path / "m")
    done = papermill(
        "--engine", "gateshift", "-p", "folder", str(run), str(book), str(tmp_path / "out.ipynb")
    )
    assert done.returncode == 5, done.stderr
    ended = next(r for r in read_records(run.parent / "journal.jsonl") if r.kind == "run.ended")
    assert (ended.data["outcome"], ended.data["by"]) == ("interrupted", "engine")
    assert "kernel died" in statuses(run / "in.ipynb")
    assert verify(run.parent) == []


def test_a_bucket_out_of_reach_is_said_and_the_run_is_done(tmp_path: Path) -> None:
    opening = RUN.replace("sign_key=key", "s3_bucket='b'").replace("print(admin_key)", "")
    book = write_notebook(tmp_path / "in.ipynb", opening, END, parameters="folder = ''")
    run = _opened(tmp_path / "m")
    done = papermill(
        "--engine", "gateshift", "-p", "folder", str(run), str(book), str(tmp_path / "out.ipynb")
    )
    assert done.returncode == 0, done.stderr
    assert "archive: the archive was not copied" in done.stderr
    assert verify(run.parent) == []
