from __future__ import annotations

import pytest

from gateshift.diagnose import envoy


@pytest.fixture(autouse=True)
def counters_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's counters do not need time to grow; a real Envoy's do."""
    if request.node.get_closest_marker("lab") is None:
        monkeypatch.setattr(envoy, "APART", 0.0)
