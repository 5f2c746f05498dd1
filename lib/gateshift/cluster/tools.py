"""Run istioctl and kubectl: by the paths in params, against the params' cluster, with a time limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from gateshift.cluster.failures import HopelessError
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["cluster_flags", "environment", "find_tool", "run_istioctl", "run_json", "run_tool"]


def find_tool(name: str) -> str:
    """Return the tool's absolute path. Raises :class:`HopelessError` when it is not there."""
    found = shutil.which(name)
    if found is None:
        raise HopelessError(
            f"{name} was not found",
            hint="install it, or set istio.istioctl / istio.kubectl in the params file to its path",
        )
    return found


def cluster_flags(params: Params) -> list[str]:
    """Return the flags that select the params' cluster."""
    flags = []
    if params.cluster.kubeconfig:
        flags += ["--kubeconfig", params.cluster.kubeconfig]
    if params.cluster.context:
        flags += ["--context", params.cluster.context]
    return flags


def environment() -> dict[str, str]:
    """Return the child's environment: as ours, but no proxy for loopback API servers."""
    child = dict(os.environ)
    child["NO_PROXY"] = ",".join(filter(None, [child.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
    return child


def run_tool(command: Sequence[str], *, timeout: float, accept: Sequence[int] = (0,)) -> str:
    """Run a command and return what it printed. *timeout* is in seconds; *accept* lists good exit codes."""
    name = os.path.basename(command[0])  # noqa: PTH119 - a command is text, not a path of ours
    try:
        done = subprocess.run(
            [find_tool(command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{name} {command[1]}` gave no answer within {timeout:g} s") from None
    except OSError as error:
        raise HopelessError(f"{name} cannot be run: {error.strerror or error}") from None
    if done.returncode not in accept:
        said = last_lines(done.stderr or done.stdout)
        lonely = "no valid IP address in the service node id" in said
        if lonely:
            raise HopelessError(f"`{name} {command[1]}` failed: {said}", hint=_LONELY)
        raise ClusterError(f"`{name} {command[1]}` failed: {said}")
    return done.stdout


# istioctl names itself to istiod by an address of this machine, and takes none of loopback.
_LONELY = (
    "this machine has no address but loopback, and istioctl needs one to ask istiod: connect it to "
    "a network, or give it an interface with an address of its own (ip link add ... type dummy)"
)


def last_lines(text: str, count: int = 3) -> str:
    """Return the last non-empty lines as one sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-count:]) or "it printed nothing"


def run_istioctl(
    params: Params, arguments: Sequence[str], *, timeout: float, accept: Sequence[int] = (0,)
) -> str:
    """Run istioctl against the params' cluster."""
    return run_tool(
        [params.istio.istioctl, *arguments, *cluster_flags(params)], timeout=timeout, accept=accept
    )


def run_json(
    params: Params, arguments: Sequence[str], *, timeout: float, accept: Sequence[int] = (0,)
) -> Any:
    """Run istioctl and parse the JSON it prints."""
    printed = run_istioctl(params, arguments, timeout=timeout, accept=accept)
    try:
        return json.loads(printed or "null")
    except ValueError:
        raise ClusterError(
            f"`istioctl {arguments[0]}` printed no JSON: {last_lines(printed)}",
            hint="check that istio.istioctl has the version in istio.version",
        ) from None
