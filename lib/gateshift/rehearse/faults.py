"""Faults a rehearsal can inject: what breaks, and what the migration is expected to do about it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from gateshift.errors import InputError, LabError
from gateshift.lab.state import LabState, Part, lab_dir, load
from gateshift.rehearse.ledger import PATIENCE

__all__ = ["FAULTS", "Fault", "clear", "find"]

Inject = Callable[[LabState], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. *outcomes* are the exit codes of the canary that are right: 3 held, 4 rolled back.

    A fault that *blinds* leaves too few figures for the rollback to prove more than the weights. One that is
    *compared* needs the old gateway serving beside the new one, so its stage must be below 100 %.
    """

    name: str
    text: str
    inject: Inject
    outcomes: frozenset[int]
    blinds: bool = False
    compared: bool = False


def _backend(**fault: object) -> Inject:
    def inject(lab: LabState) -> None:
        body = {"service": "*", "gateway": "istio", **fault}
        httpx.put(f"{lab['faults_url']}/faults", json=body, timeout=PATIENCE).raise_for_status()

    return inject


def _kill(part: str) -> Inject:
    """Kill a part of the lab outright, as a node failure would."""

    def inject(lab: LabState) -> None:
        # Read again: the node agent starts parts after the lab came up.
        found = [p for p in load(lab.name).parts if p.name == part or p.name.startswith(f"{part}-")]
        if not found:
            raise LabError(f"the lab has no running part {part}")
        for one in found:
            os.kill(one.pid, signal.SIGKILL)

    return inject


_SCRAPED = "istio-ingressgateway"
_DEAD = "127.0.0.1:9"
"""The discard port, on which nothing listens."""

_KEPT = "before-fault"


def _prometheus(lab: LabState) -> tuple[Part, Path]:
    """Return the lab's Prometheus and its configuration file."""
    for part in load(lab.name).parts:
        if part.name == "prometheus":
            return part, lab_dir(lab.name) / "prometheus.yaml"
    raise LabError("the lab has no running part prometheus")


def _scrape(lab: LabState) -> None:
    """Let Prometheus scrape the gateway where nothing answers, as after a wrong target or a cut network."""
    part, path = _prometheus(lab)
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    for job in config["scrape_configs"]:
        if job["job_name"] == _SCRAPED:
            job["static_configs"][0]["targets"] = [_DEAD]
    kept = path.with_suffix(f".{_KEPT}")
    if not kept.exists():
        kept.write_text(text, encoding="utf-8")
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    os.kill(part.pid, signal.SIGHUP)


def _scrape_again(lab: LabState) -> None:
    kept = (lab_dir(lab.name) / "prometheus.yaml").with_suffix(f".{_KEPT}")
    if kept.exists():
        part, path = _prometheus(lab)
        kept.replace(path)
        os.kill(part.pid, signal.SIGHUP)


def _quiet(lab: LabState) -> None:
    httpx.put(f"{lab['traffic_url']}/rate", json={"rate": 1 / 60}, timeout=PATIENCE).raise_for_status()


_BAD = frozenset({4})
_HELD_OR_BAD = frozenset({3, 4})

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("errors", "5 % errors behind the new gateway", _backend(error_ratio=0.05, status=503), _BAD),
        Fault("errors-2", "2 % errors behind the new gateway", _backend(error_ratio=0.02, status=503), _BAD),
        Fault("latency", "3 s added behind the new gateway", _backend(latency_ms=3000), _BAD),
        Fault("refuse", "the new gateway's backends cut connections", _backend(refuse=True), _BAD),
        Fault("envoy", "the new gateway's Envoy is killed", _kill("gateway"), _HELD_OR_BAD, blinds=True),
        Fault("prometheus", "Prometheus is killed", _kill("prometheus"), _HELD_OR_BAD, blinds=True),
        Fault("scrape", "Prometheus no longer reaches the new gateway", _scrape, _HELD_OR_BAD, blinds=True),
        Fault("kill", "kernel, command line and papermill are killed", lambda lab: None, frozenset({0})),
        Fault(
            "quiet",
            "traffic falls to one request a minute",
            _quiet,
            # Both gateways fall silent together, which only the comparison shows. At 100 % there is none:
            # requests that were due and do not come must count as an outage, and roll back.
            frozenset({3}),
            blinds=True,
            compared=True,
        ),
    )
}


def find(name: str) -> Fault:
    """Return the fault called *name*; raises :class:`~gateshift.errors.InputError` naming those there are."""
    if name not in FAULTS:
        raise InputError(f"there is no fault {name}", hint=f"one of {', '.join(FAULTS)}")
    return FAULTS[name]


def clear(lab: LabState) -> None:
    """Remove every backend fault, let Prometheus scrape the gateway again and clients ask as before."""
    _scrape_again(lab)
    httpx.put(f"{lab['traffic_url']}/rate", json={"rate": lab["rate"]}, timeout=PATIENCE).raise_for_status()
    httpx.delete(f"{lab['faults_url']}/faults", timeout=PATIENCE).raise_for_status()
