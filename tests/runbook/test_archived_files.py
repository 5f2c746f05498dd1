"""What the first runbooks keep as files beside the executed notebook is without secrets, too."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gateshift.errors import Blocked
from gateshift.runbook.setup import Translate, Verify, checks_table
from tests.cluster.conftest import make_params

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2VjcmV0c2VjcmV0"
ADDRESS = "https://admin:p4ssw0rd-of-it@apisix:9180 did not answer"


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATESHIFT_RUN", raising=False)


def test_what_a_check_measured_is_kept_without_secrets(tmp_path: Path) -> None:
    run = Verify(make_params(str(tmp_path / "absent"), mode="plan", outputs=str(tmp_path)), {})
    run.checks = [SimpleNamespace(status="fail", name="probe", measured=ADDRESS, why="", remedy="")]
    checks_table("Verify", run.checks, run.context)
    with pytest.raises(Blocked):
        run.check()
    folder = run.context.run_folder
    run.close()
    for name in ("checks.json", "verify.json"):
        text = (folder / name).read_text()
        assert json.loads(text)
        assert "did not answer" in text
        assert "p4ssw0rd" not in text


def test_a_token_in_a_route_is_not_in_the_archived_translation(tmp_path: Path) -> None:
    headers = {"set": {"X-Partner": TOKEN}}
    node = {"type": "roundrobin", "nodes": {"shop.shop.svc:80": 1}}
    route = {"id": 1, "uri": "/a", "upstream": node, "plugins": {"proxy-rewrite": {"headers": headers}}}
    source = tmp_path / "apisix.yaml"
    source.write_text(yaml.safe_dump({"routes": [route]}) + "#END\n")
    params = make_params(
        str(tmp_path / "absent"), mode="plan", outputs=str(tmp_path), apisix={"files": [str(source)]}
    )
    run = Translate(params, {})
    run.read()
    run.make_plan()
    run.check()
    folder = run.context.run_folder / "istio"
    run.close()
    text = (folder / "virtual-service.yaml").read_text()
    assert "x-partner" in text.lower()
    assert TOKEN not in text
    assert yaml.safe_load(text)["kind"] == "VirtualService"
