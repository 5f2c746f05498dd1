"""Each pipeline example passes its own linter, and each linter can say no."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

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
