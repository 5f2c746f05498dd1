"""What a rehearsal with the Gateway API changes: the definitions that the lab serves, and one param."""

from __future__ import annotations

import re

import pytest
import yaml

from gateshift.lab import build, gateway_api
from gateshift.params.model import TranslateParams
from gateshift.rehearse import command
from gateshift.runbook.inputs import project_root


def test_the_definitions_are_of_the_version_that_istiod_is_built_with() -> None:
    group = gateway_api._GROUP
    istio = next(one for one in build.GROUPS if one.name == "istio")
    assert group.folder == istio.folder
    assert re.search(r"sigs\.k8s\.io/gateway-api v1\.\d+", (group.folder / "go.mod").read_text("utf-8"))
    assert build.entry_path(group) != build.entry_path(istio)
    assert group not in build.GROUPS, "a lab that is not asked needs no such module"


@pytest.mark.parametrize("output", ["istio", "gateway-api"])
def test_the_rehearsal_changes_the_form_and_no_signature(output: str) -> None:
    data = yaml.safe_load((project_root() / command.PARAMS).read_text(encoding="utf-8"))
    overrides = command._overrides(1.0, True, output)
    given = TranslateParams.model_validate(overrides.get("translate", data["translate"]))
    assert given.output == output
    assert [one.plugin for one in given.accept] == [a["plugin"] for a in data["translate"]["accept"]]
    assert all(one.covers for one in given.accept), "the lab signs what it has read, nothing more"
    assert len(overrides["stages"]) == 2
