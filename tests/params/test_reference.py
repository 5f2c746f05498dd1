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
ROWS = {
    cells[0].strip("`"): cells
    for line in params_page(ROOT / "params/production.yaml").splitlines()
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
