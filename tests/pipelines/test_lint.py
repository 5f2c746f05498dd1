"""Each pipeline example passes its own linter, and each linter can say no."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import tool

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ACTIONS = EXAMPLES / "github-actions" / "gateshift.yml"
GITLAB = EXAMPLES / "gitlab-ci" / "gateshift.gitlab-ci.yml"
MANIFESTS = sorted(
    path
    for folder in ("examples", "deploy")
    for path in (ROOT / folder).rglob("*.y*ml")
    if path not in {ACTIONS, GITLAB}
)
ARGO = [path for path in MANIFESTS if "argoproj.io/" in path.read_text(encoding="utf-8")]
BIN = Path(sys.executable).parent
YAML_RULES = (
    "{extends: default, rules: {line-length: {max: 140}, document-start: disable,"
    " truthy: {check-keys: false}, comments: {min-spaces-from-content: 1}, braces: {max-spaces-inside: 1},"
    " indentation: {indent-sequences: whatever}}}"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=300)


def schema(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "check-jsonschema", "--builtin-schema", f"vendor.{name}", path)


def spoiled(path: Path, folder: Path, before: str, after: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert before in text
    target = folder / path.name
    target.write_text(text.replace(before, after), encoding="utf-8")
    return target


def test_yaml_is_tidy() -> None:
    done = run(BIN / "yamllint", "--strict", "-d", YAML_RULES, ACTIONS, GITLAB, *MANIFESTS)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_gitlab_schema(tmp_path: Path) -> None:
    assert schema("gitlab-ci", GITLAB).returncode == 0, schema("gitlab-ci", GITLAB).stdout
    assert schema("gitlab-ci", spoiled(GITLAB, tmp_path, "when: manual", "when: perhaps")).returncode == 1


@pytest.mark.slow
def test_github_actions_lint(tmp_path: Path) -> None:
    done = run(tool("actionlint"), ACTIONS)
    assert done.returncode == 0, done.stdout
    wrong = spoiled(ACTIONS, tmp_path, "needs.plan.outputs.digest", "needs.plan.outputs.digets")
    assert "digets" in run(tool("actionlint"), wrong).stdout


@pytest.mark.slow
def test_argo_lint(tmp_path: Path) -> None:
    done = run(tool("argolint"), *ARGO)
    assert done.returncode == 0, done.stdout
    regions = EXAMPLES / "argo-workflows" / "regions.yaml"
    for before, after in (("withItems", "withItem"), ("entrypoint: regions", "entrypoint: nowhere")):
        assert run(tool("argolint"), spoiled(regions, tmp_path, before, after)).returncode == 1


def test_dockerfiles() -> None:
    for path in [p for p in ROOT.glob("**/Dockerfile*") if ".venv" not in p.parts]:
        done = run(BIN / "hadolint", path)
        assert done.returncode == 0, f"{path}: {done.stdout}"
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^USER (?!root|0)", text, re.MULTILINE), f"{path}: runs as root"
        bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
        given = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
        for base in bases:
            image = re.sub(r"\$\{(\w+)\}", lambda name: given[name[1]], base)  # noqa: B023 - used at once
            assert re.search(r":\d+\.\d|@sha256:", image), f"{path}: {image} is not pinned"


def test_bash_of_the_examples_is_bash() -> None:
    bash = shutil.which("bash")
    assert bash
    jobs = yaml.safe_load(ACTIONS.read_text(encoding="utf-8"))["jobs"]
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    pipeline = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))
    scripts += [line for name in ("plan", "act") for line in pipeline[name]["script"]]
    for script in scripts:
        assert run(bash, "-n", "-c", script).returncode == 0, script


def test_every_command_and_option_in_the_examples_exists() -> None:
    from gateshift.cli import cli

    texts = [p.read_text(encoding="utf-8") for p in (ACTIONS, GITLAB, *MANIFESTS)]
    known = set(cli.list_commands(None))  # type: ignore[arg-type]
    command = cli.get_command(None, "canary")  # type: ignore[arg-type]
    assert command is not None
    options = {name for one in command.params for name in one.opts}
    for text in texts:
        for verb, rest in re.findall(r"gateshift \"?(\$?[A-Za-z]+)\"? (-f .*)", text):
            assert verb in known | {"$VERB"}, verb
            assert set(re.findall(r"(?<= )--?[a-z]+", " " + rest.split(">")[0])) <= options, rest


REFERENCE = re.compile(r"\$\{env:(\w+)(:-)?")


def needed() -> set[str]:
    """The variables without which a step of the examples' own params file ends with exit code 2."""
    data = yaml.safe_load((ROOT / "params" / "production.yaml").read_text(encoding="utf-8"))
    return {name for name, default in REFERENCE.findall(json.dumps(data)) if not default}


def test_the_examples_give_what_their_params_file_refers_to() -> None:
    assert needed(), "production.yaml has no secrets any more?"
    for job in yaml.safe_load(ACTIONS.read_text(encoding="utf-8"))["jobs"].values():
        given = {name for name, value in job["env"].items() if value == f"${{{{ secrets.{name} }}}}"}
        assert needed() <= given
    comments = [line for line in GITLAB.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert needed() <= set(re.findall(r"\w+", " ".join(comments))), "GitLab's variables are in every job"


def approval(who: str, state: str, *environments: str) -> dict[str, Any]:
    """A review as GitHub's API lists it."""
    return {"state": state, "user": {"login": who}, "environments": [{"name": name} for name in environments]}


def github_cli(folder: Path, approvals: list[dict[str, Any]]) -> Path:
    """Put a ``gh`` into *folder* that answers the one question of the example."""
    folder.mkdir()
    asked = "api repos/acme/shop/actions/runs/4711/approvals"
    (folder / "answer.json").write_text(json.dumps(approvals), encoding="utf-8")
    lines = ["#!/bin/sh", f'[ "$*" = "{asked}" ] || exit 1', f'cat "{folder}/answer.json"']
    (folder / "gh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "gh").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("verb", "approvals", "who"),
    [
        ("canary", [approval("hubot", "approved", "production")], "hubot"),
        (
            "canary",
            [approval("eve", "approved", "staging"), approval("hubot", "approved", "staging", "production")],
            "hubot",
        ),
        ("canary", [approval("hubot", "rejected", "production")], None),
        ("canary", [], None),
        ("rollback", [], "octocat"),
    ],
)
def test_the_approver_is_who_approved_not_who_started(
    tmp_path: Path, verb: str, approvals: list[dict[str, Any]], who: str | None
) -> None:
    steps = yaml.safe_load(ACTIONS.read_text(encoding="utf-8"))["jobs"]["act"]["steps"]
    asks = next(step for step in steps if step.get("id") == "approval")
    acts = next(step for step in steps if step.get("name") == "Act by digest")
    assert acts["env"] == {"APPROVER": "${{ steps.approval.outputs.who }}"}
    gh = github_cli(tmp_path / "bin", approvals)
    output = tmp_path / "output"
    env = {
        "PATH": f"{gh}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "acme/shop",
        "GITHUB_RUN_ID": "4711",
        "GITHUB_ACTOR": "octocat",
        "GITHUB_OUTPUT": str(output),
        "VERB": verb,
    }
    bash = ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", asks["run"]]
    done = subprocess.run(bash, env=env, capture_output=True, text=True, check=False, timeout=60)
    if who is None:
        assert done.returncode == 3
        assert "required reviewers" in done.stderr
        assert not output.exists()
    else:
        assert done.returncode == 0, done.stderr
        assert output.read_text() == f"who={who}\n"


def test_no_preflight_stands_before_a_rollback() -> None:
    steps = yaml.safe_load(ACTIONS.read_text(encoding="utf-8"))["jobs"]["plan"]["steps"]
    preflight = next(step for step in steps if step.get("name") == "Preflight")
    assert preflight["if"] == "inputs.verb != 'rollback'"
    script = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))["plan"]["script"]
    (line,) = [line for line in script if "preflight" in line]
    ran = line.replace(".venv/bin/gateshift", "echo ran")
    for verb, said in (("rollback", ""), ("canary", "ran preflight")):
        done = subprocess.run(
            ["/bin/bash", "-eu", "-c", ran],
            env={"VERB": verb, "PARAMS": "p.yaml", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.startswith(said)
        assert bool(done.stdout) == bool(said)


def test_a_retry_on_gitlab_finds_the_journal_of_its_first_attempt() -> None:
    """Artifacts are unpacked over the cache that restores the journal: those of the plan must not hold it."""
    jobs = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))
    assert jobs[".gateshift"]["cache"]["paths"] == ["outputs/"]
    assert "plan" in jobs["act"]["needs"]
    assert "outputs/" not in jobs["plan"]["artifacts"]["paths"]


def test_what_the_argo_examples_take_from_the_cluster_is_there_by_that_name() -> None:
    made = {
        (one["kind"], one["metadata"]["name"])
        for one in yaml.safe_load_all((ROOT / "deploy" / "stable-run.yaml").read_text(encoding="utf-8"))
    }
    for path in MANIFESTS:
        text = path.read_text(encoding="utf-8")
        wanted = {("Secret", name) for name in re.findall(r"secretRef:\s+name: (\S+)", text)}
        wanted |= {("ConfigMap", name) for name in re.findall(r"configMap:\s+name: (\S+)", text)}
        wanted |= {("PersistentVolumeClaim", name) for name in re.findall(r"claimName: (\S+)", text)}
        assert wanted <= made, path


def test_a_region_is_asked_about_only_when_its_plan_was_shown_and_would_change_something() -> None:
    templates = yaml.safe_load((EXAMPLES / "argo-workflows" / "regions.yaml").read_text(encoding="utf-8"))[
        "spec"
    ]
    steps = {t["name"]: t for t in templates["templates"]}
    for (step,) in steps["region"]["steps"][1:]:
        assert step["when"] == "'{{steps.plan.outputs.parameters.digest}}' != ''"
    assert "cat /tmp/summary.md" in steps["plan"]["container"]["args"][0]
