"""The verbs that look at and move traffic without a notebook: ``shift``, and a rollback's first step."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gateshift.cli.shared import OVERRIDES, PARAMS, known_folder
from gateshift.errors import InputError
from gateshift.params import Params, load, needs_of
from gateshift.params.load import parse_override
from gateshift.runbook.inputs import in_clone, resolvers
from gateshift.words import gloss, tell

if TYPE_CHECKING:
    from gateshift.plan import Plan
    from gateshift.traffic.protocol import Shifter

__all__ = ["rollback", "shift"]


def _load(params_file: str, overrides: dict[str, Any], step: str) -> Params:
    return load(params_file, overrides=overrides, resolvers=resolvers(), needs=needs_of(step))


@click.command()
@PARAMS
@OVERRIDES
@click.option("--to", "percent", type=click.IntRange(0, 100), help="Weight on Istio in percent.")
@click.option("--restore", is_flag=True, help="The records as they were before gateshift's first change.")
@click.option("--plan", "plan_only", is_flag=True, help="Print what would change; the default without --act.")
@click.option("--act", is_flag=True, help="Carry it out after its plan is approved.")
@click.option("--approve", metavar="DIGEST", help="Approve the plan with this digest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def shift(  # noqa: PLR0917 - click passes by name
    params_file: str,
    overrides: tuple[str, ...],
    percent: int | None,
    restore: bool,
    plan_only: bool,
    act: bool,
    approve: str | None,
    as_json: bool,
) -> None:
    """Show the weights; plan other ones (--to N) or the records of before (--restore).

    Without --act nothing is changed. With it, --to sets the weight in force again after somebody else
    changed it, and --restore brings the records back exactly once nobody is on Istio. Weights rise only by
    the stages of `gateshift canary` and go to 0 only by `gateshift rollback`.
    """
    if restore and percent is not None:
        raise InputError("--to and --restore exclude each other", hint="choose one")
    values = dict(parse_override(o) for o in overrides)
    if act and not plan_only:
        if not restore and percent is None:
            raise InputError("--act needs --to or --restore", hint="`gateshift shift` shows the weights")
        values["mode"] = "act"
        values |= {"approve": approve} if approve else {}
        params = _load(params_file, values, "shift")
        known_folder(params)
        _act(
            params,
            {"to": percent, "restore": restore, "params_file": params_file},
        )
        return
    from gateshift.runbook.context import Context  # noqa: PLC0415 - keeps --help quick

    context = Context(_load(params_file, values, "shift"), run="shift", params_file=params_file)
    if percent is None and not restore:
        _show(context.shifter(stage=_stage(context)), as_json)
        return
    plan, note = _planned(context, percent, restore)
    _print_plan(plan, as_json)
    if note:
        click.echo(note, err=as_json)


def _stage(context: Any) -> int:
    return int(min(context.state.stage_index, len(context.params.stages) - 1))


def _planned(context: Any, percent: int | None, restore: bool) -> tuple[Plan, str]:
    from gateshift.runbook.shifting import original_of  # noqa: PLC0415 - keeps --help quick

    if restore:
        original = original_of(context)
        if original is None:
            raise InputError(
                "there is no snapshot to restore: gateshift has not changed these records",
                hint="`gateshift shift` shows the weights",
            )
        return context.shifter().restore_plan(original), ""
    shifter = context.shifter(stage=_stage(context))
    prepare = shifter.prepare_plan()
    if prepare.empty:
        return shifter.plan(percent), ""
    return prepare, tell("cli.weights.first")


def _print_plan(plan: Plan, as_json: bool) -> None:
    from gateshift.notebook.show import PlanView  # noqa: PLC0415 - keeps --help quick

    click.echo(json.dumps(plan.as_json()) if as_json else repr(PlanView(plan)))


def _show(shifter: Shifter, as_json: bool) -> None:
    weights = shifter.read()
    hosts = {
        name: {"istio_percent": w.istio_percent, "weighted": w.prepared, "problem": w.problem}
        for name, w in weights.hosts.items()
    }
    if as_json:
        click.echo(
            json.dumps({"mechanism": shifter.name, "istio_percent": weights.istio_percent, "hosts": hosts})
        )
        return
    uneven = weights.istio_percent is None
    whole = tell("cli.weights.uneven") if uneven else f"{weights.istio_percent} %"
    click.echo(tell("cli.weights", percent=whole, provider=shifter.name))
    for name, w in weights.hosts.items():
        share = tell("cli.weights.unknown") if w.istio_percent is None else f"{w.istio_percent:g} %"
        state = gloss(w.problem) or ("" if w.prepared else tell("cli.weights.plain"))
        click.echo(f"  {name}: {share}{f' ({state})' if state else ''}")


def _act(params: Params, extra: dict[str, Any]) -> None:
    from gateshift.notebook.show import PlanView  # noqa: PLC0415 - keeps --help quick
    from gateshift.runbook.shift import Shift  # noqa: PLC0415 - keeps --help quick

    run = Shift(params, extra)
    try:
        shown: PlanView = run.plan()
        click.echo(repr(shown))
        click.echo(repr(run.gate()))
        click.echo(repr(run.act()))
    finally:
        run.close()


@click.command()
@PARAMS
@OVERRIDES
@click.option("--act", is_flag=True, help="Bring the traffic back; without it only the plan is shown.")
@click.option("--yes", is_flag=True, help="The one confirmation, for pipelines and people in a hurry.")
@click.option("--approve", metavar="DIGEST", help="The one confirmation, by the plan's digest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the outcome at the end.")
@click.option("--junit", metavar="FILE", help="Write the checks as a JUnit file.")
@click.option("--summary", metavar="FILE", help="Append a Markdown summary, as for $GITHUB_STEP_SUMMARY.")
def rollback(  # noqa: PLR0917 - click passes by name
    params_file: str,
    overrides: tuple[str, ...],
    act: bool,
    yes: bool,
    approve: str | None,
    as_json: bool,
    junit: str | None,
    summary: str | None,
) -> None:
    """Bring all traffic back to APISIX (-p reason=TEXT): weights, proof, evidence, checklist.

    With --act the plan is shown, confirmed once, and the weights are set from this process, before a kernel
    starts; then 80_rollback proves that the users are back and collects the evidence into the archive.
    """
    begun = time.time()
    values = dict(parse_override(o) for o in overrides)
    if act:
        values["mode"] = "act"
    if approve:
        values["approve"] = approve
    if act:
        own: dict[str, Any] = {"reason": values.pop("reason")} if "reason" in values else {}
        params = _load(params_file, values, "80_rollback")
        in_clone()  # its notebook proves the way back; without it "bad input" would end what had begun
        _weights_first(params, {**own, "params_file": params_file}, yes, begun, as_json)
        values |= {**own, "asked": begun}
        values.pop("approve", None)
    # Only now: papermill and its friends take longer to import than the weights to be set.
    from gateshift.cli.notebooks import run_notebook, tell_pipeline  # noqa: PLC0415 - see above

    outcome = run_notebook(
        "rollback", params_file, values, on_output=lambda text: click.echo(text, nl=False, err=as_json)
    )
    tell_pipeline("rollback", params_file, values, outcome, as_json=as_json, junit=junit, summary=summary)
    click.get_current_context().exit(outcome.exit_code)


def _weights_first(params: Params, extra: dict[str, Any], yes: bool, begun: float, quiet: bool) -> None:
    """Show the plan, take the one confirmation, and set the weights; the notebook finishes the rest."""
    from gateshift.runbook.rollback import Rollback  # noqa: PLC0415 - keeps --help quick

    run = Rollback(params, {**extra, "asked": begun})
    try:
        run.already = run.context.state.rolling_back
        shown = run.plan()
        click.echo(repr(shown), err=quiet)
        if yes and not params.approve:
            run.confirm()
        run.gate()
        seconds = run.shift_back()
        click.echo(tell("cli.weights_back", seconds=f"{seconds:.1f}"), err=quiet)
    finally:
        run.close()
