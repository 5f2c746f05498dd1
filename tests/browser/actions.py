"""Runs a GitHub Actions workflow on this machine, step by step, as far as the example uses Actions.

Each job has a workspace of its own; what travels between jobs travels as outputs and artifacts. Anything
this does not know is an error, so that a step is never taken for run when it was not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")
_COMPARISON = re.compile(r"(.+?)\s*(!=|==)\s*'(.*)'")


@dataclass
class Job:
    workspace: Path
    env: dict[str, str]
    result: str = "success"
    outputs: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    summary: str = ""
    log: str = ""


@dataclass
class Workflow:
    """A workflow file with its inputs; *make_workspace* is what ``actions/checkout`` gives."""

    path: Path
    inputs: Mapping[str, str]
    secrets: Mapping[str, str]
    folder: Path
    make_workspace: Callable[[Path], None]
    jobs: dict[str, Job] = field(default_factory=dict)

    def run(self) -> dict[str, Job]:
        """Run every job whose needs were met, in the file's order."""
        data = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        # YAML reads the bare key `on` as true.
        declared = data[True]["workflow_dispatch"]["inputs"]
        self.values = {
            name: str(self.inputs.get(name, one.get("default", ""))) for name, one in declared.items()
        }
        assert set(self.inputs) <= set(declared)
        for name, job in data["jobs"].items():
            needs = job.get("needs", [])
            waits = [needs] if isinstance(needs, str) else needs
            if all(self.jobs[n].result == "success" for n in waits) and self._wanted(job.get("if"), None):
                self.jobs[name] = self._job(name, job)
        return self.jobs

    def _job(self, name: str, job: Mapping[str, Any]) -> Job:
        workspace = self.folder / name
        workspace.mkdir(parents=True)
        one = Job(workspace, {k: self._fill(v, None) for k, v in job.get("env", {}).items()})
        for number, step in enumerate(job["steps"], 1):
            if one.result != "success" and "always()" not in str(step.get("if", "")):
                continue
            if not self._wanted(step.get("if"), one):
                continue
            title = step.get("name") or step.get("uses") or f"step {number}"
            one.ran.append(title)
            if "run" in step:
                self._shell(one, step)
            else:
                self._uses(one, step["uses"], step.get("with", {}))
        one.outputs = {k: self._fill(v, one) for k, v in job.get("outputs", {}).items()}
        return one

    def _shell(self, job: Job, step: Mapping[str, Any]) -> None:
        files = {
            name: job.workspace.parent / f"{job.workspace.name}-{name}"
            for name in ("output", "summary", "env")
        }
        for file in files.values():
            file.touch()
        files["output"].write_text("")
        env = {
            **os.environ,
            **job.env,
            **{k: self._fill(v, job) for k, v in step.get("env", {}).items()},
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_RUN_ID": "4711",
            "GITHUB_REPOSITORY": "acme/shop",
            "GITHUB_ACTOR": "octocat",
            "GITHUB_ENV": str(files["env"]),
            "RUNNER_TEMP": str(job.workspace.parent),
            "GITHUB_OUTPUT": str(files["output"]),
            "GITHUB_STEP_SUMMARY": str(files["summary"]),
        }
        done = subprocess.run(
            ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self._fill(step["run"], job)],
            cwd=job.workspace,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        job.log += f"$ {step.get('name')}\n{done.stdout}{done.stderr}"
        job.summary = files["summary"].read_text(encoding="utf-8")
        lines = files["output"].read_text(encoding="utf-8").splitlines()
        job.steps[step.get("id", "")] = dict(line.split("=", 1) for line in lines)
        job.env |= dict(line.split("=", 1) for line in files["env"].read_text(encoding="utf-8").splitlines())
        if done.returncode:
            job.result = f"exit code {done.returncode}"

    def _uses(self, job: Job, action: str, given: Mapping[str, Any]) -> None:
        store = self.folder / "artifacts"
        match action.partition("@")[0]:
            case "actions/checkout":
                self.make_workspace(job.workspace)
            case "actions/setup-python":
                pass  # the workspace's Makefile takes the Python that is here
            case "actions/upload-artifact":
                source, target = job.workspace / given["path"], store / given["name"]
                if target.exists():
                    assert given.get("overwrite"), "an artifact is written once unless told to overwrite"
                    shutil.rmtree(target)
                if source.is_dir():
                    shutil.copytree(source, target)
                else:
                    target.mkdir(parents=True)
                    shutil.copy2(source, target)
            case "actions/download-artifact":
                shutil.copytree(store / given["name"], job.workspace / given["path"], dirs_exist_ok=True)
            case other:
                raise AssertionError(f"this runner does not know {other}")

    def _wanted(self, condition: Any, job: Job | None) -> bool:
        if condition is None or condition == "always()":
            return True
        found = _COMPARISON.fullmatch(str(condition).removeprefix("always() && "))
        assert found, f"this runner cannot read the condition {condition!r}"
        same = self._value(found[1], job) == found[3]
        return same if found[2] == "==" else not same

    def _fill(self, text: Any, job: Job | None) -> str:
        return _EXPRESSION.sub(lambda found: self._value(found[1], job), str(text))

    def _value(self, name: str, job: Job | None) -> str:
        match name.split("."):
            case ["inputs", key]:
                return self.values[key]
            case ["secrets", key]:
                return self.secrets.get(key, "")  # as GitHub does with one that is not set
            case ["vars", _]:
                return ""
            case ["needs", other, "outputs", key]:
                return self.jobs[other].outputs[key]
            case ["steps", step, "outputs", key]:
                assert job is not None
                return job.steps[step][key]
            case ["github", "token"]:
                return "none"
        raise AssertionError(f"this runner does not know {name}")
