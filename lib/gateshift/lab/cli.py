"""``gateshift lab up | down | status``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateshift.errors import LabError
from gateshift.lab import build, lifecycle
from gateshift.lab.gateway_api import serve
from gateshift.lab.state import LabState, names

__all__ = ["lab", "start"]

_NAME = click.option(
    "--name",
    default="default",
    show_default=True,
    envvar="GATESHIFT_LAB",
    help="Which lab; several can run side by side.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the state as JSON, for scripts.")


RATE = 500.0
"""Client requests a second: enough for a verdict on a stage in half a minute, a third of one core's work."""


def _interactive() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")


def start(name: str, *, config: str | None = None, rate: float = RATE, ttl: float = 2.0) -> LabState:
    """Start a lab with progress on the terminal: bars while programs are built, else plain lines."""
    screen = Console(stderr=True)

    def say(text: str) -> None:
        screen.print(f"lab {name}: {text}", highlight=False)

    if _interactive() and build.missing():
        with _BuildBars(screen) as bars:
            return lifecycle.up(name, config=config, rate=rate, ttl=ttl, progress=say, building=bars.report)
    return lifecycle.up(name, config=config, rate=rate, ttl=ttl, progress=say)


@click.group()
def lab() -> None:
    """Start, stop and inspect the rehearsal lab.

    A lab is a real Kubernetes control plane, Istio's programs, Envoy and Prometheus, with stand-ins for
    APISIX and Route 53, all on this machine's loopback. Its first start builds the Go programs (about 20
    minutes on two cores), later starts take some 15 seconds. Use it with `-f params/lab.yaml`.
    """


@lab.command()
@_NAME
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="The old gateway's apisix.yaml.")
@click.option(
    "--rate", type=click.FloatRange(0), default=RATE, show_default=True, help="Client requests a second."
)
@click.option(
    "--ttl",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    help="Seconds clients keep a DNS answer.",
)
@click.option("--gateway-api", is_flag=True, help="Serve the Gateway API (for translate.output gateway-api).")
@_JSON
def up(name: str, config: str | None, rate: float, ttl: float, gateway_api: bool, as_json: bool) -> None:  # noqa: PLR0917 - click passes by name
    """Start a lab and return when it is ready; it keeps running in the background."""
    state = start(name, config=config, rate=rate, ttl=ttl)
    if gateway_api:
        serve(state)
    _show(state, as_json)


@lab.command()
@_NAME
@click.option("--all", "every", is_flag=True, help="End every lab of this user.")
def down(name: str, every: bool) -> None:
    """End a lab: no process and no file of it is left."""
    for one in names() if every else (name,):
        ended = lifecycle.down(one)
        click.echo(f"lab {one}: {'ended' if ended else 'there was none'}")


@lab.command()
@_NAME
@_JSON
def status(name: str, as_json: bool) -> None:
    """Show a lab's parts, addresses and logs; exit code 1 when it does not run or a part crashed."""
    try:
        state = lifecycle.status(name)
    except LabError:
        if as_json:
            click.echo(json.dumps({"name": name, "running": False, "phase": "absent"}))
            click.get_current_context().exit(1)
        raise
    _show(state, as_json)
    if not state.running or state.phase != "ready" or state.crashed:
        click.get_current_context().exit(1)


def _show(state: LabState, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(state.as_json(), indent=1))
        return
    screen = Console()
    phase = state.phase if state.running or state.phase == "failed" else "not running"
    screen.print(f"lab {state.name}: {phase}", highlight=False)
    if state.error:
        screen.print(state.error, highlight=False, markup=False)
    parts = Table("part", "pid", "status", "log", box=None, pad_edge=False)
    for part in state.parts:
        parts.add_row(part.name, str(part.pid), part.status, Path(part.log).name)
    screen.print(parts)
    screen.print(f"logs: {state.directory / 'logs'}", highlight=False, soft_wrap=True)
    for part in state.crashed:
        screen.print(f"{part.name} ended with code {part.exit_code}; its last log lines:", highlight=False)
        for line in part.tail:
            screen.print(f"  {line}", highlight=False, markup=False)
    for key in ("kubeconfig", "istioctl", "prometheus_url", "admin_url", "route53_url", "traffic_url"):
        if key in state.values:
            screen.print(f"{key}: {state.values[key]}", highlight=False, soft_wrap=True)


class _BuildBars:
    """One bar for each group that is being built: packages compiled and time taken."""

    def __init__(self, screen: Console) -> None:
        self._progress = Progress(
            TextColumn("building {task.description:<12}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=screen,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _BuildBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, group: str, part: float) -> None:
        """Show that *part* (0-1) of a group's packages is compiled."""
        if group not in self._tasks:
            if part >= 1.0:
                return
            self._tasks[group] = self._progress.add_task(group, total=1.0)
        self._progress.update(self._tasks[group], completed=part)
