"""``gateshift open``: JupyterLab at the notebook that is due, with the environment checked."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import quote

import click

from gateshift.cli.shared import PARAMS, load_params, short_path
from gateshift.errors import InputError
from gateshift.migration.journal import read_records
from gateshift.migration.state import State, fold
from gateshift.params import only
from gateshift.runbook.inputs import in_clone, migration_folder, project_root
from gateshift.runbook.order import NOTEBOOKS, due_notebook
from gateshift.words import tell, use

__all__ = ["open_command"]

_NEEDED = ("jupyterlab", "ipykernel", "papermill", "matplotlib")


@click.command("open")
@click.argument("verb", required=False, metavar="[VERB]", type=click.Choice(sorted(NOTEBOOKS)))
@PARAMS
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, for this check.")
@click.option("--lab", "with_lab", is_flag=True, help="Start the rehearsal lab first, to practise.")
@click.option(
    "--name", default="default", show_default=True, envvar="GATESHIFT_LAB", help="Which lab (with --lab)."
)
@click.option("--no-browser", is_flag=True, help="Only print the address, for a machine without a screen.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; 8888 or the next free one without it.")
@click.option(
    "--print", "print_only", is_flag=True, help="Check everything and print the command; start nothing."
)
@click.option("--jupyter", "more", multiple=True, metavar="OPTION", help="An option passed on to JupyterLab.")
def open_command(  # noqa: PLR0917 - click passes by name
    verb: str | None,
    params_file: str,
    overrides: tuple[str, ...],
    with_lab: bool,
    name: str,
    no_browser: bool,
    port: int | None,
    print_only: bool,
    more: tuple[str, ...],
) -> None:
    """Open JupyterLab at the notebook that is due, or at that of VERB (preflight, canary, rollback, …).

    Checks the environment and the params file first. The notebooks that open are working copies under
    outputs/<migration>/desk/; the clone's own stay as they are.
    """
    from gateshift.desk import command, environment, lay  # noqa: PLC0415 - keeps `--help` quick

    check_environment()
    if with_lab:
        from gateshift.lab.cli import start  # noqa: PLC0415 - a production run must not need the lab

        os.environ["GATESHIFT_LAB"] = name
        if not print_only:
            start(name)
    root = project_root()
    params = load_params(params_file, overrides, only())
    folder = migration_folder(params)
    notebook = NOTEBOOKS[verb] if verb else due_notebook(_state(folder), len(params.stages))
    desk = lay(root / "notebooks", folder)
    served = root if root in desk.parents else desk
    line = command(served, desk / f"{notebook}.ipynb", browser=not no_browser, port=port, more=more)
    use(params.lang)
    key = "cli.open.named" if verb else "cli.open.due"
    click.echo(tell(key, migration=params.migration, notebook=notebook))
    click.echo(tell("cli.open.copy", path=short_path(desk / f"{notebook}.ipynb")))
    if print_only:
        click.echo(" ".join(quote(part, safe="/=-_.:~ ") for part in line))
        return
    file = Path(params_file).resolve()
    named = str(file.relative_to(root)) if root in file.parents else str(file)
    own = environment(named, lab=name if with_lab else None)
    os.execve(sys.executable, line, {**own, "GATESHIFT_ROOT": str(root)})  # noqa: S606 - becomes JupyterLab


def check_environment() -> None:
    """Raise InputError, with the remedy, when this environment cannot run the notebooks."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"this Python ({sys.executable}) lacks {', '.join(missing)}",
            hint="run `make install` in the clone and use .venv/bin/gateshift",
        )
    in_clone()


def _state(folder: Path) -> State:
    path = folder / "journal.jsonl"
    return fold(read_records(path)) if path.exists() else State()
