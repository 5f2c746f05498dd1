"""Every command in the documentation exists as it is written, and is executed by a test or says why not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from tests.docs.commands import (
    ELSEWHERE,
    GLUE,
    NOW,
    ON_LAB,
    PAGES,
    PLACEHOLDERS,
    ROOT,
    SECRETS,
    named,
    shown,
    workspace,
)

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_each_command_of_a_page_is_executed_or_says_why_not(page: Path) -> None:
    known = {*NOW, *(command for command, _ in ON_LAB), *ELSEWHERE}
    assert [command for command in shown(page) if command not in known] == []


def test_nothing_is_listed_that_no_page_shows() -> None:
    every = {command for page in PAGES for command in (*shown(page), *named(page))}
    listed = {*NOW, *(command for command, _ in ON_LAB), *ELSEWHERE}
    assert listed - GLUE - every == set()
    assert {file for file, _ in ELSEWHERE.values() if not (ROOT / file).exists()} == set()


def of_gateshift(command: str) -> list[str]:
    """Return the arguments of the command line, without redirections and what follows."""
    words = shlex.split(re.split(r"[;|>]", command)[0])
    return words[1:] if words and words[0] == "gateshift" else []


def parse(arguments: list[str]) -> None:
    """Raise click.UsageError unless the command and its options exist."""
    from gateshift.cli import cli

    command: click.Command | None = cli
    context = click.Context(cli, info_name="gateshift")
    while isinstance(command, click.Group) and arguments:
        name, *arguments = arguments
        command = command.get_command(context, name)
        if command is None:
            raise click.UsageError(f"no command {name}")
        context = click.Context(command, info_name=name, parent=context)
    if command is not None and command.name in {"translate", "diagnose"}:
        command = _handed_on(command.name, arguments)
    assert command is not None
    command.make_parser(context).parse_args(list(arguments))


def _handed_on(verb: str, arguments: list[str]) -> click.Command:
    """Two verbs hand their arguments on to one of two commands."""
    from gateshift.cli import notebooks
    from gateshift.cli.translation import translate_command
    from gateshift.diagnose.command import lint_command

    if verb == "translate":
        return translate_command if "--in" in arguments else notebooks._translate_notebook
    return lint_command if "--files" in arguments else notebooks._diagnose_notebook


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_each_mention_names_a_command_and_options_that_exist(page: Path) -> None:
    wrong = {}
    for command in named(page):
        try:
            parse(of_gateshift(command))
        except click.UsageError as error:
            wrong[command] = error.format_message()
    assert wrong == {}


def test_the_parser_can_say_no() -> None:
    for wrong in ("gateshift nonsense", "gateshift canary --nonsense", "gateshift audit verfiy x"):
        with pytest.raises(click.UsageError):
            parse(of_gateshift(wrong))


def test_each_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named_ = {c.split()[1] for page in PAGES for c in (*shown(page), *named(page)) if c.startswith("make ")}
    assert named_ - targets == set()


@pytest.mark.slow
def test_what_needs_no_lab_runs_as_it_is_shown(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    workspace(clone)
    env = {**os.environ, **SECRETS, "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for command, expected in NOW.items():
        line = command
        for mark, value in PLACEHOLDERS.items():
            line = line.replace(mark, value)
        done = subprocess.run(
            ["/bin/bash", "-c", line],
            cwd=clone,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expected.code, f"{command}: {done.returncode}\n{said[-2000:]}"
        assert expected.says in said, f"{command}: {said[-2000:]}"
