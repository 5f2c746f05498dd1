"""The verbs around the notebooks: status, approve, notify."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gateshift.cli.shared import OVERRIDES, PARAMS, known_folder, load_params
from gateshift.errors import InputError
from gateshift.migration.journal import read_records
from gateshift.migration.lock import holder_of
from gateshift.migration.records import head_path
from gateshift.migration.state import State, fold
from gateshift.params import only
from gateshift.runbook.order import next_notebook
from gateshift.words import tell, use

__all__ = ["approve", "notify", "status"]


@click.command()
@PARAMS
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(params_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say where the migration stands and what is next. Reads the journal and the lock file only."""
    from gateshift.notebook.show import columns_of  # noqa: PLC0415 - only this verb
    from gateshift.runbook.standing import lock_words, phase_words, verdict_words  # noqa: PLC0415 - only this verb

    params = load_params(params_file, overrides, only())
    use(params.lang)
    folder = known_folder(params)
    path = folder / "journal.jsonl"
    answer: dict[str, Any]
    lang = "en" if as_json else None  # JSON is for programs
    # Empty, as a death leaves it before its first record; gone beside a head, it is missing.
    records = read_records(path) if path.exists() or head_path(path).exists() else ()
    if not records:
        answer = {
            "migration": params.migration,
            "phase": tell("status.not_started", lang=lang),
            "next": "00_preflight",
        }
    else:
        state = fold(records)
        answer = {
            "migration": params.migration,
            "phase": state.phase.value if as_json else phase_words(state.phase.value),
            "stage": tell("status.promoted", lang=lang, count=state.stage_index, all=len(params.stages)),
            "weight_percent": str(state.weight_percent),
            "rolling_back": str(state.rolling_back).lower(),
            "records": str(len(records)),
            "last_record": tell(
                "status.record", lang=lang, kind=records[-1].kind, time=records[-1].time, who=records[-1].who
            ),
            "last_verdict": _verdict(state) if as_json else verdict_words(state),
            "lock": _lock(folder) if as_json else lock_words(folder),
            "next": next_notebook(state, len(params.stages), lang=lang),
        }
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for key, value in answer.items():
            label = tell(f"status.label.{key}")
            click.echo(f"{' ' * (15 - columns_of(label))}{label}: {value}")


def _verdict(state: State) -> dict[str, Any] | None:
    if not state.verdicts:
        return None
    mark = state.verdicts[-1]
    return {
        "stage": mark.stage + 1,
        "decision": mark.decision,
        "reasons": list(mark.reasons),
        "time": mark.time,
    }


def _lock(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of this machine or shared disk, and for how many seconds more; None for nobody."""
    holder = holder_of(folder / "lock")
    return None if holder is None else {"holder": holder[0], "expires_in_seconds": round(holder[1], 1)}


@click.command()
@PARAMS
@OVERRIDES
@click.option("--who", help="Who approves; the current user when not given.")
@click.argument("digest")
def approve(params_file: str, overrides: tuple[str, ...], who: str | None, digest: str) -> None:
    """Approve the plan with DIGEST (or its first 4 characters or more): the gate that shows it goes on.

    The approval is a file under outputs/<migration>/approvals/; the gate records it in the journal.
    """
    from gateshift.runbook.approvals import shown_digest, write_approval  # noqa: PLC0415 - keeps `status` quick
    from gateshift.runbook.context import identity  # noqa: PLC0415 - keeps `status` quick

    params = load_params(params_file, overrides, only())
    folder = known_folder(params)
    path = folder / "journal.jsonl"
    plans = fold(read_records(path)).plans if path.exists() else ()
    digest = shown_digest(plans, digest, migration=params.migration)
    write_approval(folder, digest, who or identity())
    click.echo(tell("cli.approved", digest=digest, time=f"{datetime.now(UTC):%H:%M:%S}Z"))


@click.command()
@PARAMS
@OVERRIDES
def notify(params_file: str, overrides: tuple[str, ...]) -> None:
    """Send a test message to every service under `notify.urls`. Exit code 1 when one does not take it."""
    from gateshift.notify.sender import deliver  # noqa: PLC0415 - keeps `status` quick

    params = load_params(params_file, overrides, only("notify"))
    urls = [url.get_secret_value() for url in params.notify.urls]
    if not urls:
        raise InputError(
            f"{params_file}: notify.urls is empty",
            hint="add apprise URLs there, as references: ${env:NOTIFY_URL}",
        )
    failed = deliver(urls)("gateshift", tell("notify.test", migration=params.migration), "info")
    for line in failed:
        click.echo(tell("cli.failed", text=line), err=True)
    click.echo(tell("cli.notified", count=len(urls) - len(failed), all=len(urls)))
    click.get_current_context().exit(1 if failed else 0)
