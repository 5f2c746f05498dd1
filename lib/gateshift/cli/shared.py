"""What several verbs share: options, the params they lead to, and how a path is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from gateshift.params import Needs, Params, load
from gateshift.params.load import parse_override
from gateshift.runbook.inputs import in_clone, migration_folder, resolvers
from gateshift.words import gloss, tell

__all__ = ["OVERRIDES", "PARAMS", "complain", "known_folder", "load_params", "short_path"]

PARAMS = click.option(
    "-f", "--params", "params_file", default="params/lab.yaml", show_default=True, help="Params file."
)
OVERRIDES = click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key.")


def load_params(params_file: str, overrides: Sequence[str], needs: Needs) -> Params:
    """Load a params file with ``KEY=VALUE`` overrides; references outside *needs* may have no value.

    Raises :class:`~gateshift.errors.ParamsError`.
    """
    values = dict(parse_override(o) for o in overrides)
    return load(params_file, overrides=values, resolvers=resolvers(), needs=needs)


def known_folder(params: Params) -> Path:
    """Return the migration's folder; raises InputError where a relative ``outputs`` is in no clone."""
    if not Path(params.outputs).is_absolute():
        in_clone()
    return migration_folder(params)


def complain(error: str, hint: str, *, what: str = "cli.error", then: str = "cli.hint") -> None:
    """Tell a person on the standard error what is wrong and what to do, in the language in use."""
    click.echo(tell(what, text=gloss(error)), err=True)
    if hint:
        click.echo(tell(then, text=gloss(hint)), err=True)


def short_path(path: Path) -> str:
    """Return *path* relative to the working folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
