"""istioctl on a machine that has no address but loopback: the error says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateshift.cluster.tools import run_tool
from gateshift.errors import ClusterError


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (
            "rpc error: no valid IP address in the service node id or metadata",
            True,
        ),
        ("rpc error: code = Unavailable", False),
    ],
)
def test_a_machine_without_an_address_is_told_to_take_one(tmp_path: Path, said: str, named: bool) -> None:
    tool = tmp_path / "istioctl"
    tool.write_text(f"#!/bin/sh\necho 'Error: {said}' >&2\nexit 1\n", encoding="utf-8")
    tool.chmod(0o755)
    with pytest.raises(ClusterError) as caught:
        run_tool([str(tool), "proxy-status"], timeout=10)
    assert said in str(caught.value)
    assert ("no address but loopback" in caught.value.hint) is named
