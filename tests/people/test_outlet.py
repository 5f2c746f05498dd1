"""Output that goes away under a command: nothing that was begun is left undone for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from gateshift.cli import main
from gateshift.cli.outlet import outlets

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def reader_gone() -> Iterator[None]:
    """A standard output whose reader has ended, as below ``| head -1``."""
    ours, theirs = os.pipe()
    os.close(ours)
    stream = os.fdopen(theirs, "w", encoding="utf-8")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            yield
    finally:
        with suppress(BrokenPipeError):  # what is left in its buffer
            stream.close()


@contextmanager
def disk_full() -> Iterator[None]:
    """A standard output that goes to a file on a full disk."""
    with Path("/dev/full").open("w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def _changes(done: list[str]) -> None:
    """Says what it will do before it does it, as a rollback shows its plan."""
    click.echo("the plan")
    print("the gate", flush=True)
    done.append("weights")
    click.echo("weights back")
    raise SystemExit(0)


@pytest.mark.parametrize(("lost", "code"), [(reader_gone, 0), (disk_full, 1)])
def test_a_change_is_made_though_nobody_can_be_told(lost: Callable[[], contextmanager], code: int) -> None:  # type: ignore[type-arg]
    done: list[str] = []
    with lost(), pytest.raises(SystemExit) as left, outlets():
        _changes(done)
    assert done == ["weights"]
    assert left.value.code == code


def test_a_full_disk_is_named_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipeline that keeps the JSON in a file must not take half of it for an answer."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["gateshift", "status", "--json"])
    with disk_full(), pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "not written: standard output: No space left on device\n"


def test_a_reader_that_ended_does_not_change_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words, code in ((("status",), 0), (("status", "-f", "nope", "--json"), 2)):
        monkeypatch.setattr(sys, "argv", ["gateshift", *words])
        with reader_gone(), pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code


def test_explain_ends_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be fed without end."""
    with reader_gone(), pytest.raises(BrokenPipeError), outlets(filters=True):
        click.echo("an answer")
