"""What a person may type wrongly after ``gateshift audit`` and ``history``: one clear error, exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateshift.archive.commands import audit_group, history_command
from gateshift.archive.signing import sign
from gateshift.errors import InputError
from gateshift.judge.replay import replay
from gateshift.migration.journal import Journal
from tests.archive import story
from tests.archive.test_keeping import new_key, signers


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        story.write(tmp_path / "outputs" / name / "journal.jsonl", story.rolled_back())
    return tmp_path / "outputs"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(audit_group, [str(a) for a in arguments])
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "place", ["no/dir/x.tgz", "", "outputs", "outputs/one/x.tgz", "outputs/one/sub/x.tgz"]
)
def test_a_pack_that_cannot_be_written_there(outputs: Path, tmp_path: Path, place: str) -> None:
    (outputs / "one" / "sub").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, said = run("export", outputs / "one", tmp_path / place)
    assert (code, "cannot be written there" in said) == (2, True), said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["export", "sign", "copy"])
def test_what_is_no_migration_is_named_and_nothing_is_made(outputs: Path, tmp_path: Path, verb: str) -> None:
    more = {"export": [tmp_path / "x.tgz"], "sign": ["--key", new_key(tmp_path / "id")]}
    options = more.get(verb, ["--bucket", "b"])
    code, said = run(verb, outputs, *options)
    assert (code, "name one migration: one, two" in said) == (2, True), said
    code, said = run(verb, tmp_path / "nope", *options)
    assert (code, "no archive here" in said) == (2, True), said
    assert not (tmp_path / "nope").exists()


def test_nothing_is_signed_where_there_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no archive here"):
        sign(tmp_path / "nope", str(new_key(tmp_path / "id")))
    assert not (tmp_path / "nope").exists()


def test_history_of_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    for name in ("nope", "README.md"):
        done = CliRunner().invoke(history_command, [str(tmp_path / name)])
        assert (done.exit_code, "no such folder" in done.output) == (2, True), done.output
    assert CliRunner().invoke(history_command, [str(tmp_path)]).output == "no migrations yet\n"


def test_a_journal_is_no_recording(outputs: Path) -> None:
    with pytest.raises(InputError, match="begins with the params of a stage") as caught:
        replay(outputs / "one" / "journal.jsonl")
    assert "samples.jsonl" in caught.value.hint


def test_who_asks_for_signatures_is_told_that_there_are_none(outputs: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "id")
    allowed = signers(tmp_path / "allowed", key)
    for option in (("--signers", allowed), ("--key", "cosign.pub"), ("--kms",)):
        code, said = run("verify", outputs / "one", *option)
        assert (code, "nothing is signed by a key of the kind that was asked for" in said) == (1, True), said
    assert run("verify", outputs / "one")[0] == 0
    sign(outputs / "one", str(key))
    assert run("verify", outputs / "one", "--signers", allowed)[0] == 0
    code, said = run("verify", outputs, "--signers", allowed)
    assert (code, "two/signatures: nothing is signed" in said) == (1, True), said
    assert run("verify", outputs / "one", "--kms")[0] == 1, "an SSH signature is none of KMS"
    code, said = run("verify", outputs / "one", "--signers", tmp_path / "none")
    assert (code, "no such file" in said) == (2, True), said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users of this machine may enter, too."""
    folder = Path(tempfile.mkdtemp(prefix="gateshift-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.head", "report.html", "approvals"])
def test_a_file_that_may_not_be_read_is_said(open_folder: Path, name: str) -> None:
    migration = open_folder / "one"
    story.write(migration / "journal.jsonl", story.rolled_back())
    (migration / "journal.jsonl").chmod(0o644)
    (migration / "journal.head").chmod(0o644)
    (migration / "approvals").mkdir()
    with Journal.open(migration / "journal.jsonl", who="ann", run="report") as journal:
        (migration / "report.html").write_text("x")
        journal.append("report.done", files={"report.html": "0" * 64})
    (migration / "journal.jsonl").chmod(0o644)
    (migration / "journal.head").chmod(0o644)
    (migration / name).chmod(0)
    code = (
        "import json, os, sys\nfrom pathlib import Path\nfrom gateshift.archive import audit\n"
        "from gateshift.errors import InputError\n"
        "os.getuid() or os.setuid(65534)\n"  # root reads everything
        "try:\n    audit.verify(Path(sys.argv[1]))\n"
        "except InputError as error:\n    print(json.dumps([error.exit_code, str(error), error.hint]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(migration)], capture_output=True, text=True, check=True, timeout=60
    )
    exit_code, said, hint = json.loads(done.stdout)
    assert (exit_code, str(migration / name) in said, "may read" in hint) == (2, True, True), said
