"""The two faces of ``gateshift translate``: files alone, and the notebook."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from gateshift.cli import cli
from gateshift.errors import InputError

CONFIG = """
routes:
  - id: "1"
    uri: /hello
    upstream: {type: roundrobin, nodes: {"hello.default.svc:80": 1}}
#END
"""


def test_files_need_neither_params_nor_notebook(tmp_path: Path) -> None:
    source = tmp_path / "apisix.yaml"
    source.write_text(CONFIG, encoding="utf-8")
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["translate", "--in", str(source), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["proof"]["disagreements"] == []
    assert said["objects"] > 0
    assert (out / "ledger.html").is_file()


def test_a_missing_file_is_one_clear_error_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["translate", "--in", "nothing.yaml", "--out", str(out)])
    assert isinstance(result.exception, InputError)
    assert not out.exists()


def test_without_files_it_is_the_verb_of_the_notebook() -> None:
    result = CliRunner().invoke(cli, ["translate", "--help"])
    assert result.exit_code == 0
    assert "--params" in result.output
    assert "--in FILE --out DIR" in result.output
