"""The image and its schedules: linted, equal to each other, and of one install script with `make install`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.params.load import validate

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
REGIONS = ROOT / "examples" / "argo-workflows" / "regions.yaml"
BIN = Path(sys.executable).parent


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def run(*command: str | Path) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_and_yaml_pass_their_linters() -> None:
    run(BIN / "hadolint", DEPLOY / "Dockerfile")
    rules = "{extends: relaxed, rules: {line-length: {max: 120}}}"
    run(BIN / "yamllint", "-s", "-d", rules, *sorted(DEPLOY.glob("*.yaml")))
    run("sh", "-n", DEPLOY / "install.sh")


def test_bases_are_pinned_and_the_image_runs_without_root() -> None:
    images = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.M))
    used = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert used
    for name in used:
        reference = images[name.strip("${}")]
        assert re.search(r":\d+\.\d+\.\d+-[a-z-]+$|@sha256:[0-9a-f]{64}$", reference), reference
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    assert user
    assert "0" not in user[-1]
    assert not re.search(r"^ADD |curl|wget", DOCKERFILE, re.M)


def test_what_is_copied_is_there() -> None:
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    assert len(sources) >= 5
    for one in " ".join(sources).split():
        assert (ROOT / one).exists(), one


def test_image_and_make_install_share_one_script() -> None:
    assert re.search(r"^RUN deploy/install\.sh \S+ runtime$", DOCKERFILE, re.M)
    assert "deploy/install.sh $(VENV)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_istioctl_is_of_the_version_in_params() -> None:
    version = re.search(r"buildVersion=([\d.]+)", DOCKERFILE)
    assert version
    params = yaml.safe_load((ROOT / "params" / "production.yaml").read_text(encoding="utf-8"))
    assert version[1] == params["istio"]["version"]


def pod_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (found,) = documents(name)
    if found["kind"] == "CronJob":
        pod = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        return pod, pod["containers"][0]
    pod = found["spec"]["workflowSpec"]
    return pod, pod["templates"][0]["container"]


def test_both_schedules_run_the_same_thing() -> None:
    cron, argo = pod_of("cronjob.yaml"), pod_of("argo-workflow.yaml")
    assert cron[1] == argo[1]
    for key in ("serviceAccountName", "securityContext", "volumes"):
        assert cron[0][key] == argo[0][key]
    assert cron[1]["args"][0] == "soak"


@pytest.mark.parametrize("name", ["cronjob.yaml", "argo-workflow.yaml"])
def test_runs_restricted_and_never_twice(name: str) -> None:
    pod, container = pod_of(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert documents(name)[0]["spec"]["concurrencyPolicy"] == "Forbid"
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/outputs", "/tmp"}


@pytest.mark.parametrize(
    ("rights", "path"),
    [
        (DEPLOY / "argo-rbac.yaml", DEPLOY / "argo-workflow.yaml"),
        (REGIONS.with_name("rbac.yaml"), REGIONS),
    ],
    ids=["stable run", "regions"],
)
def test_argos_executor_may_report_and_the_account_gets_nothing_else_by_it(rights: Path, path: Path) -> None:
    role, binding = yaml.safe_load_all(rights.read_text(encoding="utf-8"))
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = {
        "apiGroups": ["argoproj.io"],
        "resources": ["workflowtaskresults"],
        "verbs": ["create", "patch"],
    }
    assert (role["kind"], role["rules"]) == ("Role", [wanted])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    spec = workflow["spec"].get("workflowSpec", workflow["spec"])
    assert [s["name"] for s in binding["subjects"]] == [spec["serviceAccountName"]]
    spaces = {one["metadata"].get("namespace") for one in (role, binding, workflow)}
    assert spaces == {binding["subjects"][0]["namespace"]} == {"gateshift"}


def test_names_agree_and_params_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, config, secret = documents("stable-run.yaml")
    pod, container = pod_of("cronjob.yaml")
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["outputs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volumes["params"]["configMap"]["name"] == config["metadata"]["name"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    text = config["data"]["params.yaml"]
    for name in re.findall(r"\$\{env:(\w+)\}", text):
        assert name in secret["stringData"]
        monkeypatch.setenv(name, "x")
    params = validate(yaml.safe_load(text), source="stable-run.yaml")
    assert params.outputs == "/outputs"
    assert params.soak.stable_for == 14 * 86400
