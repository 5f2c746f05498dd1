"""Params: one clear error with file, key and remedy; nothing converted in silence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateshift.errors import ParamsError
from gateshift.params import Environment, load, validate
from gateshift.params.load import parse_override

ROOT = Path(__file__).resolve().parents[2]

GOOD: dict[str, Any] = {
    "migration": "demo",
    "environment": "lab",
    "apisix": {"files": ["apisix.yaml"]},
    "istio": {"version": "1.31.0"},
    "traffic": {"route53": {"zone": "example.com", "hosts": ["api.example.com"]}},
    "metrics": {"url": "http://127.0.0.1:9090"},
    "stages": [
        {"weight_percent": 10, "dwell": "30m", "error_rate_limit_percent": 1.0},
        {"weight_percent": 100, "dwell": "1h", "error_rate_limit_percent": 0.1},
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    target: Any = data
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if part.isdigit() else target[part]
    if last.isdigit():
        target[int(last)] = value
    else:
        target[last] = value
    return data


def test_good_is_good() -> None:
    params = validate(GOOD, source="x.yaml")
    assert params.environment is Environment.LAB
    assert params.stages[0].dwell == 1800.0
    assert params.stages[1].dwell == 3600.0
    assert params.soak.stable_for == 14 * 86400


@pytest.mark.parametrize(
    ("path", "value", "key", "says"),
    [
        ("surprise", 1, "surprise", "unknown key"),
        ("istio.version", 1.1, "istio.version", "quote the version"),
        ("stages.0.weight_percent", 101, "stages.0.weight_percent", "at most 100"),
        ("stages.0.weight_percent", "10", "stages.0.weight_percent", "whole number"),
        ("stages.1.error_rate_limit_percent", 2.0, "stages", "inverted thresholds"),
        ("stages.1.weight_percent", 10, "stages", "must rise"),
        ("stages.1.weight_percent", 99, "stages", "must have weight_percent 100"),
        ("stages.0.dwell", 1800, "stages.0.dwell", "duration with its unit"),
        ("stages.0.dwell", "30", "stages.0.dwell", "duration with its unit"),
        ("environment", "prod", "environment", "'lab' or 'production'"),
        ("migration", "Bad Name", "migration", "have the form"),
        ("apisix.admin_url", "http://a", "apisix", "exactly one source"),
        ("metrics.url", "ftp://a", "metrics.url", "have the form"),
        ("traffic.route53.hosts", [], "traffic.route53.hosts", "at least 1"),
        ("judge", {"margin": float("nan")}, "judge.margin", "finite"),
    ],
)
def test_bad_input_names_key_and_remedy(path: str, value: Any, key: str, says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate(changed(path, value), source="x.yaml")
    message = str(caught.value)
    assert message.startswith("x.yaml: ")
    assert f"x.yaml: {key}: " in message
    assert says in message
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_secrets_do_not_show() -> None:
    data = changed("apisix", {"admin_url": "http://a", "admin_key": "edd1c9f034335f136f87ad84b625c8f1"})
    params = validate(data, source="x.yaml")
    assert "edd1c9f0" not in repr(params)
    assert "edd1c9f0" not in params.model_dump_json()


def test_a_wrong_secret_is_not_quoted_in_the_error() -> None:
    data = changed("apisix", {"admin_url": "http://a", "admin_key": 12345678})
    with pytest.raises(ParamsError) as caught:
        validate(data, source="x.yaml")
    assert "12345678" not in str(caught.value)


def test_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZONE", "example.org")
    data = changed("traffic.route53.zone", "${env:ZONE}")
    assert validate(data, source="x").traffic.route53.zone == "example.org"  # type: ignore[union-attr]
    data = changed("istio.http_target_port", "${lab:port}")
    assert (
        validate(data, source="x", resolvers={"lab": {"port": 18080}.__getitem__}).istio.http_target_port
        == 18080
    )
    assert validate(changed("migration", "${env:NOT_SET_X:-other}"), source="x").migration == "other"
    monkeypatch.setenv("EMPTY_X", "")
    assert validate(changed("migration", "${env:EMPTY_X:-other}"), source="x").migration == "other"
    with pytest.raises(ParamsError, match=r"EMPTY_X\} has no value"):
        validate(changed("migration", "${env:EMPTY_X}"), source="x")
    with pytest.raises(ParamsError, match="NOT_SET_X") as caught:
        validate(changed("migration", "${env:NOT_SET_X}"), source="x")
    assert "environment variable NOT_SET_X" in caught.value.hint


def test_a_file_that_is_no_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("migration: demo\n  stages: [\n")
    with pytest.raises(ParamsError, match=r"bad\.yaml: line 2"):
        load(path)


def test_missing_file_and_wrong_top(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no such params file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ParamsError, match="mapping of keys"):
        load(tmp_path / "list.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    key, value = parse_override("traffic.arrival_timeout=5m")
    assert load(path, overrides={key: value}).traffic.arrival_timeout == 300
    with pytest.raises(ParamsError, match="key=value"):
        parse_override("nonsense")


def test_production_has_the_guides_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APISIX_ADMIN_KEY", "PROBE_TOKEN", "PROBE_PASSWORD"):
        monkeypatch.setenv(name, "x")
    params = load(ROOT / "params" / "production.yaml")
    assert [s.weight_percent for s in params.stages] == [10, 25, 50, 75, 100]
    assert [s.dwell for s in params.stages[:4]] == [1800, 1800, 3600, 3600]
    assert [s.error_rate_limit_percent for s in params.stages] == [1, 1, 0.5, 0.5, 0.1]
    assert {s.p95_limit_ms for s in params.stages} == {2000}
    assert {s.availability_percent for s in params.stages} == {99.9}
    assert params.soak.stable_for == 14 * 86400
    assert (params.istio.gateway.replicas_min, params.istio.gateway.replicas_max) == (3, 10)
    assert (params.istio.istiod.replicas_min, params.istio.istiod.replicas_max) == (2, 5)


def test_the_lab_compresses_times_only() -> None:
    lab = yaml.safe_load((ROOT / "params" / "lab.yaml").read_text())
    production = yaml.safe_load((ROOT / "params" / "production.yaml").read_text())
    assert len(lab["stages"]) == len(production["stages"])
    for ours, theirs in zip(lab["stages"], production["stages"], strict=True):
        for key in ("weight_percent", "error_rate_limit_percent", "p95_limit_ms"):
            assert ours[key] == theirs[key]
    changed_in_judge = {k for k in lab["judge"] if lab["judge"][k] != production["judge"].get(k)}
    assert changed_in_judge <= {"missing_data_allowance", "hold_timeout"}


SPLIT_FIRST = [
    {"weight_percent": 10, "dwell": "30m", "error_rate_limit_percent": 1.0, "mechanism": "traffic-split"},
    {"weight_percent": 100, "dwell": "1h", "error_rate_limit_percent": 0.1},
]


def test_each_stage_may_have_its_own_mechanism() -> None:
    data = changed("stages", SPLIT_FIRST)
    data["apisix"] = {"admin_url": "http://127.0.0.1:9180", "admin_key": "k"}
    params = validate(data, source="x.yaml")
    assert [params.mechanism_of(i).value for i in (0, 1)] == ["traffic-split", "route53"]


def test_combinations_that_cannot_work_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"needs apisix\.admin_url, or .*crds"):
        validate(changed("stages", SPLIT_FIRST), source="x.yaml")
    backwards = changed("stages.1.mechanism", "traffic-split")
    backwards["apisix"] = {"admin_url": "http://127.0.0.1:9180", "admin_key": "k"}
    with pytest.raises(ParamsError, match="moved by route53, then traffic-split"):
        validate(backwards, source="x.yaml")
    with pytest.raises(ParamsError, match=r"needs the section traffic\.cloudflare"):
        validate(changed("traffic.mechanism", "cloudflare"), source="x.yaml")
    with pytest.raises(ParamsError, match="moved by route53, then cloudflare"):
        validate(changed("stages.1.mechanism", "cloudflare"), source="x.yaml")
    with pytest.raises(ParamsError, match="front is route53 or cloudflare"):
        validate(changed("traffic.istio_first", {"front": "traffic-split"}), source="x.yaml")


def test_istio_first_moves_virtual_services_and_no_other_routes() -> None:
    """Its weights would not be written where a host is an HTTPRoute: that host would jump at once."""
    data = changed("traffic.mechanism", "istio-first")
    data["traffic"]["istio_first"] = {"front": "route53"}
    validate(data, source="x.yaml")
    with pytest.raises(ParamsError, match=r"istio-first .* needs translate.output: istio"):
        validate({**data, "translate": {"output": "gateway-api"}}, source="x.yaml")


@pytest.mark.parametrize(
    ("key", "said"),
    [("lang", "it must be 'en' or 'zh'"), ("traffic.route53.record", "it must be 'alias' or 'cname'")],
)
def test_a_key_with_few_values_is_refused_with_their_names_not_with_a_pattern(key: str, said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load(ROOT / "params" / "production.yaml", overrides={key: "x"}, needs=lambda _: ())
    assert f"{key}: {said}" in str(caught.value)
    assert "^" not in str(caught.value)
