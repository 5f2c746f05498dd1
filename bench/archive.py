"""Compare our papermill engine with papermill's own on one notebook: total time and time of a save.

    python -m bench.archive [--write]

Exits 1 when our engine takes over 10 % longer or a save over 200 ms. The engines take turns, and each side's
fastest run counts: the kernel's start varies more than what is measured. ``--write`` puts the figures into
docs/archive.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_notebook

from bench.pages import write_between
from gateshift.archive.saving import Manager

MARKS = ("<!-- engine:begin (written by python -m bench.archive --write) -->", "<!-- engine:end -->")
ROUNDS, CELLS = 3, 20


def notebook(path: Path) -> Path:
    """Write a notebook as a canary run has them: text, values, a picture of 150 KB in each fifth cell."""
    cells = [new_code_cell("import base64, os\nfrom IPython.display import display")]
    for index in range(CELLS):
        source = f"print('line\\n' * 50)\n[i for i in range(200)], {index}"
        if index % 5 == 0:
            picture = "base64.b64encode(os.urandom(150_000)).decode()"
            source = f"display({{'image/png': {picture}, 'text/plain': 'plot'}}, raw=True)\n" + source
        cells.append(new_code_cell(source))
    book = new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def run(book: Path, target: Path, engine: str | None) -> float:
    """Return the seconds one run takes."""
    begun = time.perf_counter()
    papermill.execute_notebook(str(book), str(target), engine_name=engine, progress_bar=False)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare our papermill engine with papermill's own.")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/archive.md")
    write = parser.parse_args().write
    logging.disable(logging.WARNING)
    saves: list[float] = []
    real = Manager.save

    def timed(self: Manager, **options: object) -> None:
        begun = time.perf_counter()
        real(self, **options)
        saves.append(time.perf_counter() - begun)

    Manager.save = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        book = notebook(Path(name) / "in.ipynb")
        run(book, Path(name) / "warm.ipynb", None)
        plain, ours = [], []
        for index in range(ROUNDS):
            plain.append(run(book, Path(name) / f"p{index}.ipynb", None))
            ours.append(run(book, Path(name) / f"g{index}.ipynb", "gateshift"))
    overhead = min(ours) / min(plain) - 1
    mean = sum(saves) / len(saves)
    told = (
        f"{CELLS} cells with four pictures of 150 KB: papermill {min(plain):.2f} s, "
        f"gateshift {min(ours):.2f} s ({overhead:+.1%}, limit +10 %);\n"
        f"a save {mean * 1000:.1f} ms in the mean, "
        f"{max(saves) * 1000:.0f} ms at most (limit 200 ms)."
    )
    print(told)
    if write:
        write_between("archive.md", MARKS, f"\n{told}\n")
    return int(overhead > 0.10 or max(saves) > 0.2)


if __name__ == "__main__":
    sys.exit(main())
