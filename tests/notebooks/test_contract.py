"""The notebooks keep their contract: thin, stripped, in the fixed rhythm."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

from gateshift.runbook.order import NOTEBOOKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
RHYTHM = ["purpose", "parameters", "open", "read", "plan", "gate", "act", "verify", "close"]
FORBIDDEN = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.For,
    ast.While,
    ast.Try,
    ast.With,
    ast.If,
    ast.Lambda,
)


def cells(name: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return list(notebook.cells)


def test_all_eleven_are_there() -> None:
    assert sorted(NOTEBOOKS.values()) == NAMES
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_stripped(name: str) -> None:
    raw = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert set(raw["metadata"]) == {"kernelspec", "language_info"}
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}


@pytest.mark.parametrize("name", NAMES)
def test_rhythm(name: str) -> None:
    steps = [c.id.removeprefix("about-").split("-")[0] for c in cells(name)]
    places = [RHYTHM.index(step) for step in steps]
    assert places == sorted(places), f"{name}: {steps} is not the order {RHYTHM}"
    assert {"purpose", "parameters", "open", "read", "close"} <= set(steps)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_has_plan_and_gate(name: str) -> None:
    steps = {c.id for c in cells(name)}
    if "act" in steps:
        assert {"plan", "gate", "verify"} <= steps


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_thin(name: str) -> None:
    for cell in cells(name):
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 10, f"{name}/{cell.id} has {len(lines)} lines"
        tree = ast.parse(cell.source)
        found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, FORBIDDEN)]
        assert not found, f"{name}/{cell.id} has {found}"
        if "parameters" not in cell.metadata.get("tags", []):
            assert isinstance(tree.body[-1], ast.Expr), f"{name}/{cell.id}: the last expression must render"


@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_parameters_cell_and_own_name(name: str) -> None:
    tagged = [c for c in cells(name) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(isinstance(node, ast.Assign) for node in ast.parse(tagged[0].source).body)
    opening = next(c for c in cells(name) if c.id == "open")
    assert f'open_run("{name}", globals())' in opening.source
