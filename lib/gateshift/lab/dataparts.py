"""The data-plane processes as the supervisor starts them: command lines and what their ready lines give."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.lab.controlplane import Layout

__all__ = ["PORTS", "DataPart", "available", "later"]

PORTS = ("faults", "apisix_http", "apisix_https", "apisix_admin", "apisix_metrics", "route53", "traffic")


@dataclass(frozen=True, slots=True)
class DataPart:
    """One ``python -m gateshift.lab.NAME``; *values* reads state values from its ready line."""

    name: str
    command: list[str]
    values: Callable[[Mapping[str, Any]], dict[str, Any]]


def _module(name: str) -> bool:
    return importlib.util.find_spec(f"gateshift.lab.{name}") is not None and (
        importlib.util.find_spec(f"gateshift.lab.{name}.__main__") is not None
    )


def available(layout: Layout, backends: Mapping[str, int], options: Mapping[str, Any]) -> list[DataPart]:
    """Return the parts that can start at once."""
    p = layout.ports
    parts = []
    if _module("backends"):
        command = [sys.executable, "-m", "gateshift.lab.backends"]
        command += ["--ports", json.dumps(dict(backends)), "--port", str(p["faults"])]
        parts.append(
            DataPart("backends", command, lambda _r: {"faults_url": f"http://127.0.0.1:{p['faults']}"})
        )
    return parts


def later(layout: Layout, values: Mapping[str, Any], options: Mapping[str, Any]) -> list[DataPart]:
    """Return the parts that need others' values first."""
    return []
