"""What the command line says to a person who made a mistake, and to a machine that did not like the disk."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateshift.archive.outcome import Outcome
from gateshift.cli import main, notebooks
from gateshift.words import use
from tests.archive import story

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def language() -> Iterator[None]:
    """What a command chose ends with it."""
    yield
    use("")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run one command as it would be typed in the clone; gives exit code, standard output and error."""
    monkeypatch.chdir(ROOT)

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gateshift", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return left.value.code, said.out, said.err

    return run


def test_a_mistake_is_told_in_chinese_and_to_programs_in_english(typed, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("GATESHIFT_LANG", "zh")
    code, out, err = typed("status", "-p", "nope=1", "--json")
    assert code == 2
    assert "错误：params/lab.yaml：nope：未知的键" in err
    assert "提示：更正参数文件" in err
    assert json.loads(out)["error"].startswith("params/lab.yaml: nope: unknown key")


def test_a_value_that_is_no_yaml_is_a_mistake_and_no_traceback(typed) -> None:  # type: ignore[no-untyped-def]
    code, _, err = typed("status", "-p", "migration=[1")
    assert code == 2
    assert "-p migration=[1: the value is not valid YAML" in err
    assert "quote a text" in err


def test_a_wrong_folder_is_named(typed, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    code, _, err = typed("status")
    assert code == 2
    assert "params/lab.yaml: no such params file" in err
    assert f"go to the clone's folder (this is {tmp_path})" in err


def test_outputs_that_cannot_be_written_are_named_without_a_traceback(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    code, out, err = typed("open", "--print", "-p", f"outputs={tmp_path / 'file'}", "--json")
    assert code == 2, "open has no --json"
    code, out, err = typed("open", "--print", "-p", f"outputs={tmp_path / 'file'}")
    assert (code, out) == (1, "")
    assert str(tmp_path / "file") in err
    assert "correct the permissions" in err


def test_a_report_that_cannot_be_written_does_not_hide_how_the_run_ended(  # type: ignore[no-untyped-def]
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rollback has moved the weights by then: its exit code and its JSON line are what counts."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "m" / "80_rollback-1"
    run.mkdir(parents=True)
    outcome = Outcome(3, run / "80_rollback.ipynb", "not proven", "look at the access log")
    summary = tmp_path / "summary.md"
    notebooks.tell_pipeline(
        "report",
        "params/lab.yaml",
        {},
        outcome,
        as_json=True,
        junit=str(tmp_path / "no" / "x"),
        summary=str(summary),
    )
    said = capsys.readouterr()
    assert "not written: [Errno 2]" in said.err
    assert "held: not proven\nnext: look at the access log" in said.err
    assert json.loads(said.out.splitlines()[-1])["error"] == "not proven"
    assert summary.exists()


def test_a_terminal_is_told_that_the_users_are_back_and_what_is_next(  # type: ignore[no-untyped-def]
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page for people on call promises these words; a terminal does not see the notebook."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "m" / "80_rollback-1"
    run.mkdir(parents=True)
    story.write(run.parent / "journal.jsonl", story.rolled_back())
    outcome = Outcome(0, run / "80_rollback.ipynb")
    arguments = ("rollback", "params/production.yaml")
    for secret in ("APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN"):
        monkeypatch.setenv(secret, "x")
    for lang, told in (("en", "users are back "), ("zh", "用户已返回")):
        notebooks.tell_pipeline(
            *arguments, {"mode": "act", "lang": lang}, outcome, as_json=False, junit=None, summary=None
        )
        *_, proof, now, archived = capsys.readouterr().out.splitlines()
        assert told in proof
        assert "99_report" in now
        assert str(outcome.path) in archived


def test_a_terminal_is_told_where_the_report_is(  # type: ignore[no-untyped-def]
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It named the executed notebook only, which nobody asked for."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "m" / "99_report-1"
    run.mkdir(parents=True)
    page = run.parent / "report.html"
    for there in (False, True):
        if there:
            page.write_text("")
        outcome = Outcome(0, run / "99_report.ipynb")
        notebooks.tell_pipeline(
            "report", "params/lab.yaml", {}, outcome, as_json=False, junit=None, summary=None
        )
        assert (f"report: {page}" in capsys.readouterr().out.splitlines()) is there


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("diagnose", "window=5m", "window: write a number of seconds"),
        ("diagnose", "window=0", "window: write a number of seconds"),
        ("diagnose", "window=.nan", "window: write a number of seconds"),
        ("soak", "samples=many", "samples: write a whole number, 1 or more"),
        ("soak", "samples=0", "samples: write a whole number, 1 or more"),
        ("soak", "samples=true", "samples: write a whole number, 1 or more"),
        ("install", "undo=never", "undo: write true or false"),
        ("cleanup", "strict_mtls=1", "strict_mtls: write true or false"),
    ],
)
def test_a_parameter_of_one_notebook_is_checked_before_it_runs(  # type: ignore[no-untyped-def]  # noqa: PLR0917 - pytest passes by name
    typed, verb: str, given: str, said: str, monkeypatch, tmp_path: Path
) -> None:
    """One was called a defect of gateshift, with a traceback; `undo=never` took the installation back."""
    code, _, err = typed(verb, "-p", given, "-p", f"outputs={tmp_path}")
    assert code == 2
    assert said in err
    monkeypatch.setenv("GATESHIFT_LANG", "zh")
    assert "参数单元格" in typed(verb, "-p", given, "-p", f"outputs={tmp_path}")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_written_twice_is_named(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The second counted silently: of two migrations, or of two sets of stages."""
    text = (ROOT / "params" / "production.yaml").read_text()
    file = tmp_path / "p.yaml"
    for more, key in (("migration: other\n", "migration"), ("more: {a: 1, a: 2}\n", "a")):
        file.write_text(text + more)
        code, _, err = typed("status", "-f", str(file))
        assert code == 2
        assert re.search(rf"line \d+: {key} is written twice in its section\n", err)
    file.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n")
    assert "written twice" not in typed("status", "-f", str(file))[2]


def test_half_a_digest_is_told_to_be_half_a_digest(typed) -> None:  # type: ignore[no-untyped-def]
    """Who is used to the prompt gives four characters; a regular expression did not say what is missing."""
    code, _, err = typed("rollback", "--act", "--approve", "3f9c", "-f", "params/lab.yaml")
    assert code == 2
    assert "approve: write the whole digest that the plan shows, 16 characters" in err
    assert "or the value given for it with the command" in err


def test_help_names_what_may_be_chosen(typed) -> None:  # type: ignore[no-untyped-def]
    assert "errors-2" in typed("rehearse", "--help")[1]
    assert "Usage: gateshift open [OPTIONS] [VERB]" in typed("open", "--help")[1]


def test_an_archive_that_was_altered_is_a_failure_and_no_bad_input(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A job that ships archives must tell the two apart: one is corrected, of the other people are told."""
    altered = tmp_path / "m"
    altered.mkdir()
    text = story.write(altered / "journal.jsonl", story.setup()).read_text()
    (altered / "journal.jsonl").write_text(text.replace("preflight", "preFlight", 1))
    code, _, err = typed("audit", "export", str(altered), str(tmp_path / "m.tar.gz"))
    assert code == 1, err
    assert typed("audit", "export", str(tmp_path / "nope"))[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("status", "-f", "{params}"),
        ("status", "-f", "{params}", "--json"),
        ("approve", "-f", "{params}", "abcd"),
        ("rollback", "-f", "{params}", "--act", "--yes"),
        ("shift", "-f", "{params}", "--restore", "--act"),
        ("history",),
        ("audit", "verify"),
    ],
)
def test_outside_of_a_clone_nothing_is_called_not_started(  # type: ignore[no-untyped-def]
    typed, words: tuple[str, ...], monkeypatch, tmp_path: Path
) -> None:
    """Production may be at 50 %: its journal is only not here, and a rollback could not prove its end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATESHIFT_ROOT", raising=False)
    code, _, err = typed(*(word.format(params=ROOT / "params" / "production.yaml") for word in words))
    assert code == 2
    assert err == (
        f"error: {tmp_path} has no notebooks\n"
        "hint: run this in a clone of gateshift, or set GATESHIFT_ROOT to one\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_params_file_is_called_empty(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Not NoneType, which is a word of Python."""
    file = tmp_path / "p.yaml"
    for text, said in (("", "this one is empty"), ("- 1", "this is a list or a single value")):
        file.write_text(text)
        code, _, err = typed("status", "-f", str(file))
        assert code == 2
        assert err.startswith(f"error: {file}: a params file is a mapping of keys, {said}\n")


def test_a_recording_without_a_stage_is_no_recording(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It was called one whose verdicts are missing, with exit code 0."""
    file = tmp_path / "samples.jsonl"
    file.write_text("")
    code, out, err = typed("judge", "replay", str(file))
    assert (code, out) == (2, "")
    assert f"{file}: no stage is recorded in it" in err


@pytest.mark.parametrize(
    "words",
    [
        ("translate", "--in", "params/lab/apisix.yaml", "--out", "{tmp}", "--requests", "-5"),
        ("lab", "up", "--rate", "-5"),
        ("lab", "up", "--ttl", "-1"),
        ("lab", "down", "--name", "no/name"),
        ("rehearse", "--lab", "no/name"),
    ],
)
def test_a_value_that_cannot_be_meant_is_bad_input(  # type: ignore[no-untyped-def]
    typed, words: tuple[str, ...], monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GATESHIFT_LAB", "default")  # `rehearse` names its own
    code, _, err = typed(*(word.format(tmp=tmp_path / "out") for word in words))
    assert code == 2
    assert "not in the range" in err or "is no name for a lab" in err
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_not_there_is_told_as_any_other_mistake(
    typed, monkeypatch, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    """A program got the next step inside the error, and `see --help` in its place."""
    nowhere = str(tmp_path / "nope")
    for words, hint in (
        (("history", nowhere, "--json"), "name a folder of migrations, such as outputs"),
        (
            ("audit", "verify", nowhere, "--json"),
            "name a migration's folder (outputs/<migration>), or outputs itself",
        ),
    ):
        code, out, err = typed(*words)
        told = json.loads(out)
        assert (code, told["exit_code"], told["hint"]) == (2, 2, hint)
        assert "\n" not in told["error"]
        assert err == f"error: {told['error']}\nhint: {hint}\n"
    monkeypatch.setenv("GATESHIFT_LANG", "zh")
    assert typed("history", nowhere)[2].startswith(f"错误：{nowhere}：没有该目录\n提示：")
