"""Executed notebooks as pages: rendered as HTML beside the report, with their plots taken out for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from gateshift.archive.files import atomic_write, file_digest
from gateshift.archive.layout import DESK
from gateshift.archive.redact import Redactor
from gateshift.notebook.theme import PAGE

__all__ = ["ALONE", "Notebook", "read_notebooks", "write_pages"]

ALONE = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
"""First in each page's head: whatever a cell displayed, its page runs nothing and loads nothing."""

_STYLE = """
:root{color-scheme:light dark}
body{font:14px/1.5 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:16px}
pre{background:rgba(128,128,128,.12);padding:8px;overflow:auto;white-space:pre-wrap}
img{max-width:100%}.input{border-left:3px solid #3b5b92;padding-left:8px;margin-top:14px}
.prompt,.anchor-link{display:none}table{border-collapse:collapse}td,th{padding:2px 8px;text-align:left}
"""


@dataclass(frozen=True, slots=True)
class Notebook:
    """One executed notebook of the archive. ``plots`` are base64 PNGs, ``tables`` HTML fragments."""

    path: Path
    run: str
    name: str
    page: str
    outcome: str
    node: Any = field(repr=False)
    plots: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def read_notebooks(migration: Path) -> list[Notebook]:
    """Return the executed notebooks under *migration* in the order they began; broken ones are left out."""
    found = []
    for path in migration.glob("*/*.ipynb"):
        if path.parent.name == DESK:
            continue  # a working copy; what was executed of it lies in its run's folder
        try:
            node = nbformat.read(path, as_version=4)
            mark = node.metadata.get("gateshift", {})
            if mark.get("outcome") == "running":
                continue  # most often the notebook that writes this report
            nbformat.validate(node)  # what is left out here would end the page's rendering by an error
            plots, tables = _outputs(node)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError):
            continue
        entry = Notebook(
            path=path,
            run=path.parent.name,
            name=path.stem,
            page=f"html/{path.parent.name}--{path.stem}.html",
            outcome=str(mark.get("outcome", "")),
            node=node,
            plots=plots,
            tables=tables,
        )
        found.append((str(mark.get("started", "")), str(path), entry))
    return [entry for _, _, entry in sorted(found, key=lambda f: f[:2])]


def _outputs(node: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    plots, tables = [], []
    for cell in node.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                plots.append(re.sub(r"[^A-Za-z0-9+/=]", "", data["image/png"]))
            elif "<table" in str(data.get("text/html", "")):
                tables.append(str(data["text/html"]))
    return tuple(plots), tuple(tables)


def write_pages(migration: Path, notebooks: list[Notebook], known: Mapping[str, str]) -> list[Path]:
    """Render each notebook to ``html/``.

    A page is kept when it is newer than its notebook and has the SHA-256 that *known* (the journal's word on
    the last report) has for it: one that was edited since must not get a new hash for it.
    """
    exporter: Any = None
    pages = []
    for book in notebooks:
        target = migration / book.page
        pages.append(target)
        newer = target.is_file() and target.stat().st_mtime > book.path.stat().st_mtime
        if newer and file_digest(target) == known.get(book.page):
            continue
        if exporter is None:
            from nbconvert import HTMLExporter  # noqa: PLC0415 - takes seconds, and only a new page needs it

            exporter = HTMLExporter(template_name="basic")
        body, _ = exporter.from_notebook_node(book.node)
        title = f"{book.name} — {book.run} — {book.outcome}"
        target.parent.mkdir(exist_ok=True)
        atomic_write(
            target,
            Redactor().text(
                f'<!doctype html><html lang="en"><head><meta charset="utf-8">{ALONE}'
                f"<title>{escape(title)}</title><style>{_STYLE}{PAGE}</style></head>"
                f'<body><p><a href="../report.html">report</a></p>'
                f"<h1>{escape(title)}</h1>{body}</body></html>\n"
            ),
        )
    return pages
