"""A step of a rehearsal that fails says in the log which checks failed, and what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.errors import LabError
from gateshift.rehearse.director import Director


@pytest.mark.slow
def test_failed_checks_are_in_the_log(
    kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that answers and has nothing in it, a Prometheus and a Route 53 that do not answer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    nobody = "http://127.0.0.1:9"
    params: dict[str, Any] = {
        "migration": "nobody-there",
        "environment": "lab",
        "outputs": str(tmp_path),
        "cluster": {"kubeconfig": kubeconfig, "application_namespace": "shop"},
        "apisix": {"files": [str(tmp_path / "apisix.yaml")]},
        "istio": {"version": "1.31.0"},
        "traffic": {"route53": {"zone": "shop.com", "hosts": ["api.shop.com"], "endpoint_url": nobody}},
        "metrics": {"url": nobody},
        "stages": [{"weight_percent": 100, "dwell": "1s", "error_rate_limit_percent": 1.0}],
    }
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(params))
    said: list[str] = []
    director = Director("nobody-there", str(file), tmp_path, {}, said.append)
    with pytest.raises(LabError, match="preflight ended with exit code 3"):
        director.run("preflight")
    failed = [line for line in said if line.startswith("  [fail] ")]
    assert any("127.0.0.1" in line for line in failed), said
    (leg,) = director.legs
    checks = json.loads((leg.path.parent / "checks.json").read_text())
    assert len(failed) == sum(check["result"] == "fail" for check in checks)
