"""What is declared, locked, installed, and offered to conda is one and the same set."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {
        one.name.lower().replace("_", "-"): one
        for one in wanted
        if one.marker is None or one.marker.evaluate({**default_environment(), "extra": ""})
    }


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize("wanted", declared(), ids=lambda one: one.name)
def test_each_declared_package_is_locked_within_its_bounds(wanted: Requirement) -> None:
    (exact,) = locked()[wanted.name.lower().replace("_", "-")].specifier
    assert exact.operator == "=="
    assert wanted.specifier.contains(exact.version)


def test_what_is_installed_is_what_is_locked() -> None:
    wrong = {
        name: (version(name), str(one.specifier))
        for name, one in locked().items()
        if not one.specifier.contains(version(name), prereleases=True)
    }
    assert wrong == {}


def test_conda_gets_the_same_lock_and_the_same_python() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [one["pip"] for one in environment["dependencies"] if isinstance(one, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [one for one in environment["dependencies"] if str(one).startswith("python=")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = Requirement(f"python{project['requires-python']}").specifier
    assert lowest.contains(python.removeprefix("python="))
