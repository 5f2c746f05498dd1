"""The verbs that run a notebook through papermill into the archive."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from gateshift.archive.copying import keep_safe
from gateshift.archive.run import Outcome, execute
from gateshift.cli import results
from gateshift.cli.shared import PARAMS, complain, short_path
from gateshift.cli.translation import translate_command
from gateshift.errors import InputError, Interrupted
from gateshift.migration.journal import read_records
from gateshift.migration.state import fold
from gateshift.notify import problem
from gateshift.params import Mode, Params, load, needs_of, secrets_of
from gateshift.params.load import parse_override
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import check_own, migration_folder, project_root, resolvers
from gateshift.runbook.order import NOTEBOOKS
from gateshift.words import tell, use

__all__ = ["forms_of", "run_notebook", "tell_pipeline"]


def run_notebook(
    verb: str,
    params_file: str,
    overrides: dict[str, Any],
    *,
    on_output: Callable[[str], None] | None = None,
    label: str = "",
) -> Outcome:
    """Run the notebook of *verb* with a params file; return its outcome.

    The params are validated before a kernel starts. What goes into the notebook are the file's own
    values with references unresolved, so that no secret is written into the archived copy.
    """
    own, top = _split(overrides)
    check_own(own)
    name = NOTEBOOKS[verb]
    params = load(params_file, overrides=top, resolvers=resolvers(), needs=needs_of(name))
    root = project_root()
    notebook = root / "notebooks" / f"{name}.ipynb"
    if not notebook.exists():
        raise InputError(
            f"{notebook} is missing", hint="run from a clone of the project, or set GATESHIFT_ROOT to one"
        )
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    run = f"{name}{'-' + label if label else ''}-{stamp[:-4]}Z"
    folder = migration_folder(params) / run
    data = _plain(params_file, top)
    data.update(own)
    outcome = execute(
        notebook,
        folder / f"{name}.ipynb",
        data,
        secrets=secrets_of(params),
        cwd=root / "notebooks",
        env={
            "GATESHIFT_RUN": run,
            "GATESHIFT_PARAMS": params_file,
            # What the kernel prints for a person is as wide as this terminal; a pipe gets 110 columns.
            "COLUMNS": str(shutil.get_terminal_size((110, 24)).columns),
        },
        on_output=on_output,
    )
    for warning in (*outcome.warnings, *keep_safe(folder.parent, params.archive)):
        click.echo(f"archive: {warning}", err=True)
    if outcome.exit_code == 5:
        _tell_people(params, folder, name, outcome)
    return outcome


def _tell_people(params: Params, folder: Path, notebook: str, outcome: Outcome) -> None:
    """A kernel that died could not tell anybody."""
    if not secrets_of(params.notify) or not (folder.parent / "journal.jsonl").exists():
        return
    notifier = Context(params, run=folder.name).notifier()
    state = fold(read_records(folder.parent / "journal.jsonl"))
    notifier.tell(problem(Interrupted(outcome.error or "interrupted"), notebook, state))
    notifier.flush()


_OWN = {"samples", "reason", "asked", "symptom", "host", "path", "rule", "window", "undo", "strict_mtls"}


def _split(overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {k: v for k, v in overrides.items() if k in _OWN}
    return own, {k: v for k, v in overrides.items() if k not in _OWN}


def _plain(params_file: str, overrides: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(params_file).read_text(encoding="utf-8"))
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return data


def _command(verb: str, text: str, *, name: str = "", own: Mapping[str, Any] | None = None) -> click.Command:
    @click.command(name=name or verb, help=text)
    @PARAMS
    @click.option(
        "-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, as papermill does."
    )
    @click.option("--act", is_flag=True, help="Short for -p mode=act.")
    @click.option("--approve", metavar="DIGEST", help="Approve the plan with this digest.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the outcome at the end.")
    @click.option("--junit", metavar="FILE", help="Write the checks as a JUnit file (preflight, verify).")
    @click.option("--summary", metavar="FILE", help="Append a Markdown summary, as for $GITHUB_STEP_SUMMARY.")
    def command(  # noqa: PLR0917 - click passes by name
        params_file: str,
        overrides: tuple[str, ...],
        act: bool,
        approve: str,
        as_json: bool,
        junit: str | None,
        summary: str | None,
    ) -> None:
        values = {**(own or {}), **dict(parse_override(o) for o in overrides)}
        if act:
            values["mode"] = "act"
        if approve:
            values["approve"] = approve
        outcome = run_notebook(
            verb, params_file, values, on_output=lambda text: click.echo(text, nl=False, err=as_json)
        )
        tell_pipeline(verb, params_file, values, outcome, as_json=as_json, junit=junit, summary=summary)
        click.get_current_context().exit(outcome.exit_code)

    return command


def tell_pipeline(
    verb: str,
    params_file: str,
    values: dict[str, Any],
    outcome: Outcome,
    *,
    as_json: bool,
    junit: str | None,
    summary: str | None,
) -> None:
    """Tell a person or a pipeline how a notebook ended, in the forms that were asked for."""
    needs = needs_of(NOTEBOOKS[verb])
    params = load(params_file, overrides=_split(values)[1], resolvers=resolvers(), needs=needs)
    found = results.result(verb, outcome, migration=params.migration, stages=len(params.stages))
    run = outcome.path.parent
    use(params.lang)
    if junit:
        _leave(junit, "w", results.junit(verb, found, results.checks_of(run)))
    if summary:
        _leave(summary, "a", results.summary(found, results.plan_of(run), results.checks_of(run)))
    if not as_json:
        plan = results.plan_of(run) if params.mode is Mode.PLAN else {}
        if text := results.shown({**found, "digest": plan.get("digest")}, plan, results.checks_of(run)):
            click.echo(text)
    if outcome.error:
        what = "cli.held" if outcome.exit_code == 3 else "cli.error"
        complain(outcome.error, outcome.hint, what=what, then="cli.next")
    if as_json:
        click.echo(results.json_line(found))
    else:
        # A notebook ends with its closing card; a terminal has only what is printed.
        if verb == "rollback" and params.mode is Mode.ACT and outcome.exit_code == 0:
            click.echo(results.returned(run))
        if verb == "report" and (page := run.parent / "report.html").is_file():
            click.echo(tell("cli.report", path=short_path(page)))
        click.echo(results.stands(run, len(params.stages)))
        click.echo(tell("cli.archived", path=short_path(outcome.path)))


def _leave(file: str, mode: str, text: str) -> None:
    """Write what a pipeline asked for. How the run ended counts also where this cannot be written."""
    try:
        with Path(file).open(mode, encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        click.echo(tell("cli.unwritten", why=error), err=True)


def _names(option: str, arguments: tuple[str, ...]) -> bool:
    return any(one == option or one.startswith(f"{option}=") for one in arguments)


def _hand_on(context: click.Context, arguments: tuple[str, ...], chosen: click.Command) -> None:
    """Let *chosen* parse the arguments and run, as if it had been called itself."""
    with chosen.make_context(context.info_name, list(arguments), parent=context.parent) as own:
        chosen.invoke(own)


preflight = _command("preflight", "Check everything that would stop the migration. Changes nothing.")
install = _command("install", "Install Istio beside APISIX, after its plan is approved.")
uninstall = _command(
    "install",
    "Take back what `gateshift install` brought, after the plan is approved; what others use stays.",
    name="uninstall",
    own={"undo": True},
)
_translate_notebook = _command(
    "translate",
    "Translate the APISIX configuration into Istio objects, with ledger and proof. Changes nothing. "
    "`gateshift translate --in FILE --out DIR` does it for files alone, without a params file or a notebook; "
    "`gateshift translate --in FILE --help` shows its options.",
)


@click.command(
    "translate",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def translate(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the translate notebook, or translate files when ``--in`` names them."""
    _hand_on(context, arguments, translate_command if _names("--in", arguments) else _translate_notebook)


apply = _command("apply", "Apply the translated objects, all or nothing, after the plan is approved.")
verify = _command("verify", "Verify the new gateway before any user reaches it. Changes nothing.")
canary = _command(
    "canary",
    "Run the next canary stage: shift, wait for arrival, dwell, judge; promote or roll back.",
)
soak = _command("soak", "Add a sample to the stable run (-p samples=N for several). Changes nothing.")
cleanup = _command("cleanup", "Remove APISIX after the stable run: export, then delete what the plan lists.")
_diagnose_notebook = _command(
    "diagnose",
    "From symptom to cause, read-only (-p symptom=NAME -p host=H -p path=P -p rule=R). "
    "`gateshift diagnose --files PATH...` judges Istio objects in files, without a cluster.",
)


@click.command(
    "diagnose",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def diagnose(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the troubleshooting notebook, or the lint of files when ``--files`` names them."""
    from gateshift.diagnose.command import lint_command  # noqa: PLC0415 - clients take a second to load

    _hand_on(context, arguments, lint_command if _names("--files", arguments) else _diagnose_notebook)


report = _command("report", "Write the report of the migration: one self-contained page.")


def forms_of(verb: str) -> tuple[tuple[str, click.Command], ...]:
    """Return the commands behind a verb that chooses by its arguments, each with how it is called."""
    from gateshift.diagnose.command import lint_command  # noqa: PLC0415 - clients take a second to load

    return {
        "translate": (("translate", _translate_notebook), ("translate --in", translate_command)),
        "diagnose": (("diagnose", _diagnose_notebook), ("diagnose --files", lint_command)),
    }.get(verb, ())
