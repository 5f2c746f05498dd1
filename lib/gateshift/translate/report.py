"""The ledger as one readable HTML page without outside references."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gateshift.translate.model import Blocker, Translation

__all__ = ["html"]

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}
th{background:#f6f8fa}code{font-size:12px;overflow-wrap:anywhere}
.exact,.ignored-default{color:#1a7f37}.approximate{color:#9a6700}.manual,.none,.blocked{color:#b62324}
"""


def _blockers(title: str, blockers: Sequence[Blocker]) -> str:
    if not blockers:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(b.resource)}</code></td><td>{escape(b.plugin)}</td>"
        f"<td>{escape(b.reason)}</td><td>{escape(b.remedy)}</td><td>{escape(', '.join(b.routes))}</td><td>{escape(b.accepted)}</td></tr>"
        for b in blockers
    )
    head = "<tr><th>where</th><th>what</th><th>why</th><th>what to do</th><th>routes</th><th>signed</th></tr>"
    return f'<h2 class="blocked">{escape(title)}</h2><table>{head}{rows}</table>'


def html(translation: Translation) -> str:
    """Return the page; worst entries first, so that nobody has to search for them."""
    counts = ", ".join(f"{n} {kind}" for kind, n in translation.counts().items() if n)
    entries = sorted(translation.ledger, key=lambda e: -e.status.rank)
    rows = "".join(
        f'<tr><td class="{e.status}">{e.status}</td>'
        f"<td><code>{escape(e.resource)}: {escape(e.path)}</code></td><td>{escape(e.target)}</td><td>{escape(e.note)}</td><td>{escape(e.source)}</td></tr>"
        for e in entries
    )
    warnings = "".join(f"<li>{escape(one)}</li>" for one in translation.warnings)
    head = "<tr><th>ends as</th><th>source value</th><th>target</th><th>difference or task</th><th>from</th></tr>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>gateshift ledger</title>'
        f"<style>{_STYLE}</style><h1>Ledger</h1><p>{escape(counts)}; router {escape(translation.router)}</p>"
        + _blockers("What blocks", translation.blockers)
        + _blockers("Signed for", translation.accepted)
        + (f"<h2>Warnings</h2><ul>{warnings}</ul>" if warnings else "")
        + f"<h2>Every source value</h2><table>{head}{rows}</table></html>\n"
    )
