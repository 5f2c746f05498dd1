"""``gateshift shift`` and ``gateshift rollback`` as typed: what they print, change, and exit with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cli import main
from gateshift.migration.journal import read_records
from gateshift.migration.state import Phase, fold
from gateshift.params import Params
from tests.cluster.conftest import FakeApi, api, kubeconfig, server  # noqa: F401 - fixtures

from .conftest import HOSTS, ISTIO_LB, Wire, alias
from .test_return import Flow, flow, params, settings, shifted, weights  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def file(settings: dict[str, Any], tmp_path: Path) -> Path:  # noqa: F811 - the fixture
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**settings, "mode": "plan"}))
    return path


@pytest.fixture
def alive(settings: dict[str, Any], kubeconfig: str, tmp_path: Path) -> Path:  # noqa: F811 - fixtures
    """The same params file, with a cluster that answers: whoever acts takes its Lease."""
    path = tmp_path / "alive.yaml"
    cluster = {"kubeconfig": kubeconfig, "application_namespace": "shop", "uid": "cluster-uid"}
    path.write_text(yaml.safe_dump({**settings, "mode": "plan", "cluster": cluster}))
    return path


class Typed:
    """Types a command in this process, as the console script does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["gateshift", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    monkeypatch.delenv("GATESHIFT_RUN", raising=False)
    return Typed(monkeypatch, capsys)


def journal(made: Params) -> Path:
    return Path(made.outputs) / "demo" / "journal.jsonl"


def test_shift_shows_the_weights(wire: Wire, file: Path, shifted: Params, typed: Typed) -> None:  # noqa: F811
    assert typed("shift", "-f", file) == 0
    assert "Istio has 50 % by route53" in typed.out
    assert typed("shift", "-f", file, "--json") == 0
    shown = json.loads(typed.out)
    assert shown["istio_percent"] == 50
    assert set(shown["hosts"]) == set(HOSTS)


def test_a_plan_changes_nothing(
    wire: Wire,
    file: Path,
    shifted: Params,  # noqa: F811 - the fixture
    typed: Typed,
) -> None:
    before, book = wire.records(), journal(shifted).read_bytes()
    wire.door.batches.clear()
    for words in (("--to", 75, "--plan"), ("--to", 75), ("--to", 75, "--plan", "--act"), ("--to", 0)):
        assert typed("shift", "-f", file, *words) == 0
        assert f"{HOSTS[0]} A istio" in typed.out
    assert typed("shift", "-f", file, "--restore", "--plan", "--json") == 0
    assert {s["verb"] for s in json.loads(typed.out)["steps"]} == {"create", "delete"}
    assert typed("rollback", "-f", file) == 0
    assert wire.door.batches == [], "not one change was sent"
    assert wire.records() == before
    assert fold(read_records(journal(shifted))).phase is Phase.CANARY
    assert journal(shifted).read_bytes().startswith(book)


def test_the_first_plan_is_the_conversion(wire: Wire, file: Path, typed: Typed) -> None:
    wire.simple_aliases()
    wire.door.batches.clear()
    assert typed("shift", "-f", file, "--to", 10, "--plan", "--json") == 0
    assert {s["verb"] for s in json.loads(typed.out)["steps"]} == {"create", "delete"}
    assert "not weighted yet" in typed.err
    assert wire.door.batches == []


@pytest.mark.parametrize(
    "case",
    [
        (("--restore", "--to", "1"), 2, "exclude each other"),
        (("--act",), 2, "needs --to or --restore"),
        (("--to", "101"), 2, "101"),
        (("--to", "75", "--act"), 2, "not the weight in force"),
        (("--to", "0", "--act"), 2, "by a rollback"),
        (("--restore", "--act"), 3, "nobody is on Istio"),
        (("--to", "50", "-p", "stages=7"), 2, "stages"),
    ],
)
def test_what_may_not_be_asked(
    wire: Wire,
    alive: Path,
    shifted: Params,  # noqa: F811 - the fixture
    typed: Typed,
    case: tuple[tuple[str, ...], int, str],
) -> None:
    words, code, said = case
    wire.door.batches.clear()
    assert typed("shift", "-f", alive, *words) == code
    assert said in typed.err
    assert wire.door.batches == []


def test_the_weight_in_force_is_set_again_behind_its_gate(
    wire: Wire,
    alive: Path,
    shifted: Params,  # noqa: F811 - the fixture
    typed: Typed,
) -> None:
    wire.put(*[alias(h, target=ISTIO_LB, SetIdentifier="istio", Weight=90) for h in HOSTS])
    assert typed("shift", "-f", alive, "--to", 50, "--json") == 0
    digest = json.loads(typed.out)["digest"]
    quick = ("-p", "gate_wait=1s")
    assert typed("shift", "-f", alive, "--to", 50, "--act", "--approve", "0" * 16, *quick) == 3
    assert ("istio", 90) in weights(wire)
    assert typed("shift", "-f", alive, "--to", 50, "--act", "--approve", digest, *quick) == 0
    assert weights(wire) == {("apisix", 50), ("istio", 50)}


def test_a_rollback_typed_with_the_cluster_out_of_reach(
    wire: Wire,
    file: Path,
    shifted: Params,  # noqa: F811 - the fixture
    flow: tuple[Flow, str],  # noqa: F811 - the fixture
    typed: Typed,
) -> None:
    flow[0].now(0.0, 200.0)
    assert typed("rollback", "-f", file, "--act", "--yes", "-p", "reason=test", "--json") == 0
    last = json.loads(typed.out.splitlines()[-1])
    assert (last["exit_code"], last["verb"]) == (0, "rollback")
    assert weights(wire) == {("apisix", 100), ("istio", 0)}
    records = read_records(journal(shifted))
    assert fold(records).phase is Phase.ROLLED_BACK
    done = next(r for r in records if r.kind == "rollback.done").data
    assert any("nothing of the cluster" in one and "proxy-config.json" in one for one in done["unchecked"])
    assert typed("shift", "-f", file, "--restore", "--plan") == 0
    assert "as it was" in typed.out or "restore" in typed.out


def test_a_rollback_that_is_not_confirmed_changes_nothing(
    wire: Wire,
    file: Path,
    shifted: Params,  # noqa: F811 - the fixture
    typed: Typed,
) -> None:
    words = ("--act", "--approve", "0" * 16, "-p", "gate_wait=1s")
    assert typed("rollback", "-f", file, *words) == 3
    assert weights(wire) == {("apisix", 50), ("istio", 50)}


def test_what_is_slow_to_import_waits_until_the_weights_are_set() -> None:
    code = (
        "import sys; import gateshift.cli.traffic; import gateshift.runbook.rollback; "
        "import gateshift.traffic.route53; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gateshift.runbook.rollback" in loaded
    assert not {"papermill", "nbformat", "matplotlib", "scipy"} & set(loaded)
