"""Small notebooks and what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def write_notebook(path: Path, *sources: str, parameters: str = "x = 1") -> Path:
    cells = [new_markdown_cell("# A notebook"), new_code_cell(parameters), *map(new_code_cell, sources)]
    cells[1].metadata["tags"] = ["parameters"]
    book = new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def statuses(path: Path) -> list[str]:
    """Status of each code cell, without parameters and injected parameters."""
    code = [c for c in read(path).cells if c.cell_type == "code"]
    own = [c for c in code if not {"parameters", "injected-parameters"} & set(c.metadata.get("tags", []))]
    return [c.metadata.papermill.status for c in own]
