"""The GitHub Actions example, executed step by step on the lab: plan, approval, act by digest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import yaml

from gateshift import lab as laboratory
from gateshift.migration.journal import read_records
from tests.browser.actions import Workflow
from tests.browser.conftest import ROOT
from tests.pipelines.test_lint import approval, github_cli

pytestmark = [pytest.mark.lab, pytest.mark.long]
EXAMPLE = ROOT / "examples" / "github-actions" / "gateshift.yml"


def kubectl(lab: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    state = laboratory.status(lab)
    command = [str(state["kubectl"]), "--kubeconfig", str(state["kubeconfig"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_cronjob_is_accepted_strictly_by_a_real_api_server(people_lab: str, tmp_path: Path) -> None:
    example = (ROOT / "deploy" / "cronjob.yaml").read_text(encoding="utf-8")
    text = example.replace("namespace: gateshift", "namespace: default")  # the lab has no such namespace
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(text, encoding="utf-8")
    wrong.write_text(text.replace("concurrencyPolicy", "concurencyPolicy"), encoding="utf-8")
    strict = ("apply", "--dry-run=server", "--validate=strict", "-f")
    done = kubectl(people_lab, *strict, str(right))
    assert done.returncode == 0, done.stderr
    assert "concurencyPolicy" in kubectl(people_lab, *strict, str(wrong)).stderr


def workspace(target: Path) -> None:
    """A clone, with the installed environment in place of a new one: what is tested is the workflow."""
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, target / name)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, target / name)
    for name in (".venv", "lib"):
        (target / name).symlink_to(ROOT / name)
    data = yaml.safe_load((ROOT / "params/lab.yaml").read_text(encoding="utf-8"))
    data.update(migration="pipeline", mode="plan", gate_wait="0s")
    data["apisix"]["admin_key"] = "${env:APISIX_ADMIN_KEY}"
    (target / "params" / "ci.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


def test_the_workflow_plans_waits_for_approval_and_acts(
    people_lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ["GATESHIFT_LAB"] = people_lab
    gh = github_cli(tmp_path / "bin", [approval("hubot", "approved", "production")])
    monkeypatch.setenv("PATH", f"{gh}{os.pathsep}{os.environ['PATH']}")
    secrets = {"APISIX_ADMIN_KEY": str(laboratory.status(people_lab)["admin_key"])}
    inputs = {"verb": "install", "params": "params/ci.yaml"}
    flow = Workflow(EXAMPLE, inputs, secrets, tmp_path, workspace)
    jobs = flow.run()
    plan, act = jobs["plan"], jobs["act"]
    assert plan.result == "success", plan.log[-3000:]
    assert act.result == "success", act.log[-3000:]
    assert "Act by digest" in act.ran
    assert f"Plan `{plan.outputs['digest']}`" in plan.summary
    assert "gateshift install: done" in act.summary
    suite = Xml.parse(plan.workspace / "preflight.xml").getroot()[0]
    assert int(suite.get("tests", "0")) > 10
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    records = read_records(act.workspace / "outputs" / "pipeline" / "journal.jsonl")
    approved = next(r for r in records if r.kind == "plan.approved")
    assert approved.data == {
        "digest": plan.outputs["digest"],
        "how": "params",
        "who": "hubot",
        "account": approved.who,
    }
    assert "GITHUB_RUN_ID=4711" in approved.who
    assert records[-2].kind == "run.ended"
    assert "install.done" in [r.kind for r in records]
    for folder in (plan.workspace, act.workspace):
        for path in (folder / "outputs").rglob("*.*"):
            assert secrets["APISIX_ADMIN_KEY"].encode() not in path.read_bytes()
