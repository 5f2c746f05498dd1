"""The params reference: each key with an example that can be copied into a params file as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from gateshift.cli.reference import _model_of, _sections, params_page
from gateshift.params import Params

ROOT = Path(__file__).resolve().parents[2]
REMARKS = ROOT / "docs/params_remarks.yaml"
ROWS = {
    cells[0].strip("`"): cells
    for line in params_page(ROOT / "params/production.yaml", REMARKS).splitlines()
    if len(cells := re.split(r"(?<!\\) \| ", line.strip("| "))) >= 4 and cells[0].startswith("`")
}
FIELDS: dict[str, FieldInfo] = {
    f"{section}.{name}" if section else name: field
    for section, model in _sections(Params)
    for name, field in model.model_fields.items()
    if _model_of(field.annotation) is None
}


def test_the_page_has_a_row_for_each_key() -> None:
    assert set(FIELDS) <= set(ROWS)
    assert len(FIELDS) > 150


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_each_key_has_an_example_that_can_be_copied(key: str) -> None:
    shown = ROWS[key][3]
    assert re.fullmatch("`.+`", shown), "no example: give the field one, or production.yaml a value"
    value = yaml.safe_load(shown.strip("`").replace(r"\|", "|"))
    assert value not in ("", [], {}, None)
    field = FIELDS[key]
    kind: Any = field.annotation
    for mark in field.metadata:
        kind = Annotated[kind, mark]
    TypeAdapter(kind, config=ConfigDict(strict=True, extra="forbid")).validate_python(value)


@pytest.mark.parametrize("key", sorted(FIELDS))
def test_each_key_is_explained(key: str) -> None:
    """By a remark in its row, or by name in the words above its section."""
    section, _, name = key.rpartition(".")
    model = dict(_sections(Params))[section]
    told = f"``{name}" in str(model.__doc__) or f"*{name}*" in str(model.__doc__)
    assert told or len(ROWS[key]) > 4, "explain it in docs/params_remarks.yaml"


def test_no_remark_is_about_a_key_that_is_gone() -> None:
    assert set(yaml.safe_load(REMARKS.read_text(encoding="utf-8"))) - set(FIELDS) == set()


def test_a_key_with_few_values_lists_them() -> None:
    for key, words in {
        "lang": "`en`, `zh`",
        "stages[].mechanism": "`traffic-split`",
        "translate.output": "`istio`, `gateway-api`",
        "traffic.route53.record": "`alias`, `cname`",
        "istio.external_traffic_policy": "`Cluster`, `Local`",
        "apisix.router": "text",
    }.items():
        assert words in ROWS[key][1], key
    assert all(row[1] for row in ROWS.values())
