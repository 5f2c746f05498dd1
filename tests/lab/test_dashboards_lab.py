"""The dashboards ask for what the lab's Prometheus really has, after traffic through both gateways."""

from __future__ import annotations

import re

import httpx
import pytest

from gateshift.lab import topology
from gateshift.lab.state import LabState
from tests.lab.test_controlplane_lab import GATEWAY, IDENTITY, Tools, eventually, route
from tests.metrics.test_dashboards import expressions

pytestmark = pytest.mark.lab

NAMES = re.compile(r"\b(?:istio|apisix|envoy)_[a-z_]+\b(?=[{\[])")
NEEDS_SIDECARS = 'reporter="destination"'
"""Only a workload's own sidecar reports how it was reached; the lab's backends have none."""

NOT_IN_LAB = {"istio_request_bytes_sum", "istio_response_bytes_sum"}
"""The lab's gateway counts requests and durations only, so the throughput panel stays empty there."""


@pytest.fixture(scope="module")
def busy(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    tools = Tools(running, tmp_path_factory.mktemp("tools"))
    installed = tools.install()
    assert installed.returncode == 0, installed.stdout + installed.stderr
    applied = tools.apply(GATEWAY, route("api", {"match": [{"uri": {"prefix": "/api/v1/auth"}}], **IDENTITY}))
    assert applied.returncode == 0, applied.stderr
    assert eventually(lambda: tools.get("/api/v1/auth/login") == 200, 30)
    return tools


def ask_both(tools: Tools, times: int = 20) -> None:
    """Send the same requests to both gateways; what they answer does not matter here."""
    for _ in range(times):
        for gateway in ("istio_http", "apisix_http"):
            httpx.post(
                f"http://{tools.state[gateway]}/api/v1/auth/login",
                headers={"Host": topology.HOST_API},
                timeout=5,
                trust_env=False,
            )


def test_the_lab_has_every_metric_and_every_query_answers(busy: Tools) -> None:
    asked = expressions()
    names = {name for text in asked for name in NAMES.findall(text)} - NOT_IN_LAB
    assert len(names) >= 7
    missing: dict[str, str] = {}

    def complete() -> bool:
        ask_both(busy)
        missing.clear()
        missing.update({name: "no series" for name in names if not busy.query(name)})
        for text, title in asked.items():
            needs = set(NAMES.findall(text))
            if NEEDS_SIDECARS not in text and not needs & NOT_IN_LAB and not busy.query(text):
                missing[text] = title
        return not missing

    # Rates need two scrapes of the same series.
    assert eventually(complete, 30), missing
