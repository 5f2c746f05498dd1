"""A reference without a value stops exactly the steps that need it, before anything is touched."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.cli import main
from gateshift.errors import ParamsError
from gateshift.params import Params, load, needs_of, plain, secrets_of, unset_of, validate
from tests.archive import story

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = ROOT / "params" / "production.yaml"
VARIABLES = ("APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN", "NOTIFY_SLACK", "NOTIFY_MAIL", "PROMETHEUS")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def content(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(PRODUCTION.read_text())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    return copy.deepcopy(data)


def params(step: str, **changes: Any) -> Params:
    return validate(content(**changes), source="x.yaml", needs=needs_of(step))


def test_all_that_is_missing_is_one_error_with_its_remedy() -> None:
    with pytest.raises(ParamsError) as caught:
        load(PRODUCTION)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{PRODUCTION}: ") for line in lines)
    assert lines[0].endswith("apisix.admin_key: ${env:APISIX_ADMIN_KEY} has no value")
    assert "APISIX_ADMIN_KEY, PROBE_PASSWORD, PROBE_TOKEN" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("step", "missing"),
    [
        ("00_preflight", {"APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN", "NOTIFY_SLACK"}),
        ("10_install", {"APISIX_ADMIN_KEY"}),
        ("20_translate", {"APISIX_ADMIN_KEY"}),
        ("30_apply", {"APISIX_ADMIN_KEY"}),
        ("40_verify", {"APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN"}),
        ("50_canary", {"APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN"}),
        ("70_cleanup", {"APISIX_ADMIN_KEY", "PROBE_PASSWORD", "PROBE_TOKEN"}),
        ("80_rollback", set()),
        ("90_troubleshoot", set()),
        ("99_report", set()),
        ("shift", set()),
    ],
)
def test_each_step_asks_for_what_it_needs(step: str, missing: set[str]) -> None:
    notify = {"urls": ["${env:NOTIFY_SLACK}"]}
    if not missing:
        params(step, notify=notify)
        return
    with pytest.raises(ParamsError) as caught:
        params(step, notify=notify)
    assert {name for name in VARIABLES if name in str(caught.value)} == missing


def test_a_value_that_is_used_all_the_same_is_the_error_of_the_params() -> None:
    made = params("80_rollback", metrics={"url": "${env:PROMETHEUS}", "password": "a-${env:PROBE_TOKEN}"})
    for read in (
        lambda: made.apisix.admin_key,
        lambda: made.verify.probes[0].body,
        lambda: made.metrics.url,
        lambda: made.metrics.password,
    ):
        with pytest.raises(ParamsError, match=r"x\.yaml: \S+: \$\{env:\w+\} has no value"):
            read()
    assert made.metrics.step == 15.0
    assert "metrics.url" in {one.key for one in unset_of(made)}


def test_of_several_secrets_only_the_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_MAIL", "mailto://user:pass@example.com")
    monkeypatch.setenv("APISIX_ADMIN_KEY", "key-that-is-there")
    made = params("80_rollback", notify={"urls": ["${env:NOTIFY_SLACK}", "${env:NOTIFY_MAIL}"]})
    assert set(secrets_of(made)) == {"mailto://user:pass@example.com", "key-that-is-there"}
    assert secrets_of(made.notify) == ("mailto://user:pass@example.com",)
    with pytest.raises(ParamsError, match="NOTIFY_SLACK"):
        made.notify.urls[0].get_secret_value()


def test_a_rollback_by_the_admin_api_needs_its_key_and_one_by_dns_no_other_provider() -> None:
    with pytest.raises(ParamsError, match=r"apisix\.admin_key: .*APISIX_ADMIN_KEY"):
        params("80_rollback", traffic={"mechanism": "traffic-split"})
    other = {"api_token": "${env:PROBE_TOKEN}", "zone": "a.com", "hosts": ["b.a.com"]}
    other |= {"apisix_pool": "a", "istio_pool": "b"}
    assert params("80_rollback", traffic={"cloudflare": other}).traffic.route53 is not None
    with pytest.raises(ParamsError, match=r"traffic\.cloudflare\.api_token"):
        params("80_rollback", traffic={"cloudflare": other, "mechanism": "cloudflare"})


def test_what_a_rollback_needs_is_asked_for() -> None:
    with pytest.raises(ParamsError, match=r"x\.yaml: traffic\.route53\.hosts\[0\]: \$\{env:PROBE_TOKEN\}"):
        params("80_rollback", traffic={"route53": {"zone": "a.com", "hosts": ["${env:PROBE_TOKEN}"]}})
    with pytest.raises(ParamsError, match=r"x\.yaml: migration: "):
        params("80_rollback", migration="${env:PROBE_TOKEN}")


def test_an_error_beside_a_missing_value_is_still_found() -> None:
    with pytest.raises(ParamsError, match=r"metrics\.step: write a duration"):
        params("80_rollback", metrics={"url": "${env:PROMETHEUS}", "step": 15})


def test_the_digest_of_the_params_does_not_hang_on_a_secret_being_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROBE_PASSWORD", "x")
    without = params("80_rollback")
    for name in VARIABLES:
        monkeypatch.setenv(name, "x")
    there = params("80_rollback")
    assert unset_of(without)
    assert not unset_of(there)
    assert plain(without, leave_out=()) == plain(there, leave_out=()) == there.model_dump(mode="json")


@pytest.mark.parametrize("words", [("status",), ("status", "--json"), ("open", "--print")])
def test_verbs_that_only_read_the_journal_need_no_secret(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    story.write(tmp_path / "voiceassistant" / "journal.jsonl", story.setup())
    given = [*words, "-f", str(PRODUCTION), "-p", f"outputs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["gateshift", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "50_canary" in out
