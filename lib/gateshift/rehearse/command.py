"""``gateshift rehearse``: set up, migrate, break it on purpose, show the table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import yaml

from gateshift import lab as laboratory
from gateshift.cli.shared import short_path
from gateshift.errors import GateshiftError, Interrupted
from gateshift.lab.cli import start
from gateshift.lab.gateway_api import serve
from gateshift.lab.state import LabState
from gateshift.params.load import load
from gateshift.rehearse import faults as lab_faults
from gateshift.rehearse import kills
from gateshift.rehearse.director import Director
from gateshift.rehearse.ledger import ClientLedger
from gateshift.rehearse.screen import Screen
from gateshift.rehearse.table import folded, stage_table
from gateshift.runbook.inputs import project_root, resolvers
from gateshift.words import gloss, tell, term

__all__ = ["rehearse"]

PARAMS = "params/lab.yaml"


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab running at the end.")
@click.option(
    "--fault",
    "fault_name",
    default="errors",
    show_default=True,
    help=f"The fault of the second migration: {', '.join(lab_faults.FAULTS)}.",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.25, 10),
    default=1.0,
    show_default=True,
    help="Divides the dwell times.",
)
@click.option("--short", is_flag=True, help="Two stages instead of five, for tests.")
@click.option("--only", type=click.Choice(["healthy", "fault"]), help="Run only one of the two migrations.")
@click.option("--lab", "lab_name", default="rehearsal", show_default=True, help="Name of the lab.")
@click.option(
    "--output",
    type=click.Choice(["istio", "gateway-api"]),
    default="istio",
    show_default=True,
    help="Form of the hosts (translate.output); the lab then serves the Gateway API.",
)
def rehearse(  # noqa: PLR0917 - click passes by name
    keep: bool, fault_name: str, speed: float, short: bool, only: str | None, lab_name: str, output: str
) -> None:
    """Run a whole migration in the lab, then a second one that is broken on purpose.

    The first must be promoted through every stage without an error that the backends did not make; into
    the second a fault is injected at its second stage, and it must be rolled back (or held, where the
    fault leaves nothing to judge). With the fault kill the migration's own processes die there instead, and
    it must go on to 100 %. Exit code 0 only if both end as they must.
    """
    fault = lab_faults.find(fault_name)
    stamp = f"{datetime.now(UTC):%Y%m%dt%H%M%S}"
    begun = time.monotonic()
    os.environ["GATESHIFT_LAB"] = lab_name  # the notebooks' kernels inherit which lab they talk to
    lab = start(lab_name)
    laboratory.forget_migrations(lab_name)  # an earlier rehearsal that was not brought to its end
    if output == "gateway-api":
        serve(lab)
    screen = Screen()
    failures: list[str] = []
    tables = []
    try:
        if only != "fault":
            director = _director(f"rehearsal-{stamp}", _overrides(speed, short, output), screen)
            with _failing("first", failures):
                failures += _healthy(director, lab, screen)
            tables.append((term("promoted"), director))
        if only != "healthy":
            screen.phase(tell("rehearse.reset"))
            laboratory.reset(lab_name)
            overrides = _overrides(speed, short, output, compared=fault.compared)
            director = _director(f"rehearsal-{stamp}-fault", overrides, screen)
            with _failing("second", failures):
                if fault.name == "kill":
                    failures += _killed(director, screen)
                else:
                    failures += _broken(director, lab, fault, screen)
            tables.append((tell("rehearse.fault", text=gloss(fault.text)), director))
    finally:
        screen.close()
        if not keep:
            laboratory.down(lab_name)
    for title, director in tables:
        click.echo(stage_table(title, director))
    click.echo(tell("rehearse.took", seconds=f"{time.monotonic() - begun:.0f}"))
    for _, director in tables:
        click.echo(tell("rehearse.archive", folder=short_path(director.folder)))
    for failure in failures:
        click.echo(folded(tell("rehearse.failed", failure=failure)), err=True)
    click.get_current_context().exit(1 if failures else 0)


@contextmanager
def _failing(which: str, failures: list[str]) -> Iterator[None]:
    """Note an error of one migration and go on; a stop from outside ends the rehearsal."""
    try:
        yield
    except Interrupted:
        raise
    except GateshiftError as error:
        failures.append(f"{gloss(f'{which} migration: {error}')} ({gloss(error.hint)})")


def _overrides(speed: float, short: bool, output: str = "istio", *, compared: bool = False) -> dict[str, Any]:
    params = yaml.safe_load((project_root() / PARAMS).read_text(encoding="utf-8"))
    stages = params["stages"]
    if short:
        # Where the gateways must be compared, the second of them is not yet at 100 %.
        stages = [stages[1], *([stages[2]] if compared else []), stages[-1]]
    for stage in stages:
        stage["dwell"] = f"{float(stage['dwell'].removesuffix('s')) / speed:g}s"
    if output == "istio":
        return {"stages": stages}
    return {"stages": stages, "translate": {**params["translate"], "output": output}}


def _director(migration: str, overrides: Mapping[str, Any], screen: Screen) -> Director:
    root = project_root()
    params = load(root / PARAMS, overrides={"migration": migration}, resolvers=resolvers())
    return Director(
        migration=migration,
        # As a person would give it: what is archived then names no folder of this machine.
        params_file=short_path(root / PARAMS),
        outputs=root / params.outputs,
        overrides=overrides,
        narrate=screen.line,
    )


def _stages(director: Director) -> int:
    return len(director.overrides["stages"])


def _phase(screen: Screen, director: Director, text: str) -> None:
    screen.phase(f"{director.migration}: {text}")


def _prepare(director: Director, screen: Screen) -> None:
    for verb in ("preflight", "install", "translate", "apply", "verify"):
        _phase(screen, director, tell(f"rehearse.verb.{verb}"))
        director.run(verb)


def _healthy(director: Director, lab: LabState, screen: Screen) -> list[str]:
    """From preflight to clean-up; returns what went wrong."""
    ledger = ClientLedger(lab)
    _prepare(director, screen)
    for index in range(_stages(director)):
        _phase(screen, director, tell("rehearse.stage.of", stage=index + 1, all=_stages(director)))
        director.run("canary", label=f"stage{index + 1}")
    _phase(screen, director, tell("rehearse.soak"))
    director.run("soak")
    failures = ledger.unexplained()
    _phase(screen, director, tell("rehearse.cleanup"))
    director.run("cleanup", confirm_namespace="apisix")
    director.run("report")
    return failures


def _broken(director: Director, lab: LabState, fault: lab_faults.Fault, screen: Screen) -> list[str]:
    """A fault at the second stage; returns what went wrong."""

    def inject(record: Mapping[str, Any]) -> None:
        if record["kind"] == "stage.arrived" and record["data"]["stage"] == 1:
            screen.line(tell("rehearse.injected", text=gloss(fault.text)))
            fault.inject(lab)

    director.on_record = inject
    _prepare(director, screen)
    _phase(screen, director, tell("rehearse.stage", stage=1))
    director.run("canary", label="stage1")
    _phase(screen, director, tell("rehearse.stage.with", stage=2, text=gloss(fault.text)))
    director.run("canary", label="stage2", expect=fault.outcomes)
    _phase(screen, director, tell("rehearse.rollback"))
    back = director.run("rollback", reason=f"rehearsal: {fault.text}", expect=frozenset({0, 3}))
    lab_faults.clear(lab)
    if back.exit_code:
        screen.line(tell("rehearse.unseen"))
    director.run("report")
    return _back_on_apisix(director, fault)


def _killed(director: Director, screen: Screen) -> list[str]:
    """Kernel, command line and papermill die in stage 2, one after another; then it must go on to its end."""
    codes = {}
    _prepare(director, screen)
    _phase(screen, director, tell("rehearse.stage", stage=1))
    director.run("canary", label="stage1")
    for victim in kills.VICTIMS:
        _phase(screen, director, tell("rehearse.stage.dies", stage=2, text=gloss(victim.text)))
        codes[victim.kind] = kills.die(director, victim)
        screen.line(tell("rehearse.killed", text=gloss(victim.text)))
    for index in range(1, _stages(director)):
        _phase(screen, director, tell("rehearse.stage.end", stage=index + 1, all=_stages(director)))
        director.run("canary", label=f"stage{index + 1}")
    director.run("report")
    return [f"second migration: {problem}" for problem in kills.problems(director, codes)]


def _back_on_apisix(director: Director, fault: lab_faults.Fault) -> list[str]:
    """The archive must say that the weights are back; the users too, unless the fault blinds the metrics."""
    from gateshift.migration.journal import read_records  # noqa: PLC0415 - only needed here
    from gateshift.migration.state import fold  # noqa: PLC0415 - only needed here

    state = fold(read_records(director.folder / "journal.jsonl"))
    if state.weight_percent != 0:
        return [f"second migration: not back on APISIX (weight {state.weight_percent} %)"]
    if state.rolling_back and not fault.blinds:
        return ["second migration: the weights are back on APISIX, but not proven that the users are"]
    return []
