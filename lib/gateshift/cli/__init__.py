"""The command line: one verb a notebook, and the verbs around them.

Commands are imported when first used, so that ``gateshift explain`` starts without Kubernetes or pandas.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any, NoReturn

import click

from gateshift import __version__
from gateshift.cli.outlet import outlets
from gateshift.errors import GateshiftError, Unwritable
from gateshift.loopback import reach_directly
from gateshift.words import tell

__all__ = ["cli", "main"]

_COMMANDS = {
    "open": ("gateshift.cli.open", "open_command", "Open JupyterLab at the notebook that is due."),
    "preflight": ("gateshift.cli.notebooks", "preflight", "Check everything that would stop the migration."),
    "install": ("gateshift.cli.notebooks", "install", "Install Istio beside APISIX."),
    "uninstall": ("gateshift.cli.notebooks", "uninstall", "Take back what `install` brought."),
    "translate": (
        "gateshift.cli.notebooks",
        "translate",
        "Translate the APISIX configuration, with ledger and proof.",
    ),
    "apply": ("gateshift.cli.notebooks", "apply", "Apply the translated objects, all or nothing."),
    "verify": ("gateshift.cli.notebooks", "verify", "Verify the new gateway before any user reaches it."),
    "canary": ("gateshift.cli.notebooks", "canary", "Run the next canary stage."),
    "soak": ("gateshift.cli.notebooks", "soak", "Add a sample to the stable run."),
    "cleanup": ("gateshift.cli.notebooks", "cleanup", "Remove APISIX after the stable run."),
    "rollback": ("gateshift.cli.traffic", "rollback", "Bring all traffic back to APISIX."),
    "diagnose": ("gateshift.cli.notebooks", "diagnose", "From symptom to cause, read-only."),
    "report": ("gateshift.cli.notebooks", "report", "Write the report of the migration."),
    "approve": ("gateshift.cli.status", "approve", "Approve a plan by its digest while its gate waits."),
    "status": ("gateshift.cli.status", "status", "Say where the migration stands and what is next."),
    "notify": ("gateshift.cli.status", "notify", "Send a test message to the services of notify.urls."),
    "shift": ("gateshift.cli.traffic", "shift", "Show the weights, plan others, put them right."),
    "explain": ("gateshift.apisix.explain", "explain_command", "Say which APISIX route takes each request."),
    "history": ("gateshift.archive.commands", "history_command", "List migrations and their outcomes."),
    "audit": ("gateshift.archive.commands", "audit_group", "Verify an archive, sign, copy or pack it."),
    "judge": ("gateshift.judge.command", "judge_group", "Recompute verdicts from recorded samples."),
    "lab": ("gateshift.lab.cli", "lab", "Start, stop and inspect the rehearsal lab."),
    "rehearse": ("gateshift.rehearse.command", "rehearse", "Run a whole migration in the lab."),
}


class _Lazy(click.Group):
    """A group whose commands are imported when used; the help needs only the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: Any = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 blocked or held, 4 rolled back, 5 interrupted. "
    'Shell completion: eval "$(_GATESHIFT_COMPLETE=bash_source gateshift)" (zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="gateshift")
def cli() -> None:
    """Move live traffic from APISIX to Istio Gateway, stage by stage, and back within five minutes.

    Each notebook verb runs the notebook of that name through papermill into outputs/<migration>/.
    Start with `gateshift rehearse`, which runs a whole migration on this machine.
    """


def main() -> None:
    """Run the command line; a gateshift error becomes one message, its hint and its exit code.

    With ``--json`` the last line of the standard output is JSON even then.
    """
    reach_directly()
    # `explain` may read without end: it stops with its reader. Whatever else was begun is finished.
    with outlets(filters=sys.argv[1:2] == ["explain"]):
        _run()


def _run() -> NoReturn:
    try:
        code = cli.main(standalone_mode=False)
    except GateshiftError as error:
        _complain(str(error), error.hint)
        _end(error.exit_code, str(error), error.hint)
    except OSError as error:
        if error.filename is None:
            raise  # no file of the operator's: a defect, which needs its traceback
        _complain(str(error), Unwritable.default_hint)
        _end(1, str(error), Unwritable.default_hint)
    except click.ClickException as error:
        error.show()
        _end(error.exit_code, error.format_message(), getattr(error, "hint", "see --help"))
    except (click.Abort, KeyboardInterrupt):
        click.echo(tell("cli.interrupted"), err=True)
        click.echo(tell("cli.hint", text=tell("cli.interrupted.next")), err=True)
        _end(5, "interrupted", tell("cli.interrupted.next", lang="en"))
    sys.exit(code if isinstance(code, int) else 0)


def _complain(error: str, hint: str) -> None:
    from gateshift.cli.shared import complain  # noqa: PLC0415 - keeps `gateshift --help` quick

    complain(error, hint)


def _end(code: int, error: str, hint: str) -> NoReturn:
    if "--json" in sys.argv:
        click.echo(json.dumps({"exit_code": code, "error": error, "hint": hint}, ensure_ascii=False))
    sys.exit(code)
