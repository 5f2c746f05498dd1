"""Real configurations: output or a named blocker, a complete ledger, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateshift.apisix.readers import read_files
from gateshift.cli.translation import translate_command
from gateshift.params.model import TranslateParams
from gateshift.translate import Target, prove, translate
from gateshift.translate.model import FILES
from tests.translate.helpers import CORPUS, leaf_count

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "params" / "lab" / "apisix.yaml"
FILES_IN = sorted(CORPUS.glob("*.yaml")) if CORPUS.is_dir() else []


@pytest.mark.parametrize("path", [SAMPLE, *FILES_IN], ids=lambda one: one.name)
@pytest.mark.parametrize("version", ["1.20", "1.31"])
def test_translates_or_names_a_blocker(path: Path, version: str) -> None:
    configuration = read_files([path])
    target = Target(version=version, namespace="app")
    translation = translate(configuration, TranslateParams(), target)
    count = leaf_count(configuration)
    assert len(translation.ledger) == count
    assert not [one for one in translation.warnings if "in no table of fields" in one]
    routes = [r for r in configuration if r.kind == "routes" and r.spec.get("status", 1) != 0]
    assert not routes or translation.blockers or translation.files["virtual-service.yaml"]
    proof = prove(configuration, translation, requests=200)
    assert not proof.disagreements, str(proof.disagreements[0])


@pytest.mark.parametrize("path", FILES_IN, ids=lambda one: one.name)
def test_the_command_gives_output_or_a_named_blocker(path: Path, tmp_path: Path) -> None:
    arguments = ["--in", str(path), "--out", str(tmp_path), "--requests", "100", "--json"]
    result = CliRunner().invoke(translate_command, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 3), result.output
    summary = json.loads(result.stdout)
    assert not summary["proof"]["disagreements"]
    blockers = summary["blockers"]
    assert (result.exit_code == 3) == bool(blockers)
    assert blockers or summary["objects"], "neither output nor a named blocker"
    assert all(one["resource"] and one["plugin"] and one["reason"] and one["remedy"] for one in blockers)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert len(ledger["entries"]) == leaf_count(read_files([path]))
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*FILES, "ledger.json", "ledger.html"])


def test_the_command_writes_everything_and_tells_by_its_exit_code(tmp_path: Path) -> None:
    source = tmp_path / "apisix.yaml"
    source.write_text(
        "routes:\n- {id: 1, uri: /*, plugins: {hmac-auth: {}}, "
        "upstream: {type: roundrobin, nodes: {a: 1}}}\n#END\n"
    )
    out = tmp_path / "out"
    result = CliRunner().invoke(translate_command, ["--in", str(source), "--out", str(out), "--json"])
    assert result.exit_code == 3, result.output
    assert json.loads(result.output)["blockers"][0]["plugin"] == "hmac-auth"
    assert sorted(one.name for one in out.iterdir()) == sorted([*FILES, "ledger.json", "ledger.html"])
    source.write_text("routes:\n- {id: 1, uri: /*, upstream: {type: roundrobin, nodes: {a: 1}}}\n#END\n")
    result = CliRunner().invoke(translate_command, ["--in", str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
