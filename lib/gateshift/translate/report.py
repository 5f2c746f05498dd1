"""A translation as files: the objects by kind, and the ledger as JSON and as one readable HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gateshift.translate.model import FILES, ROUTES_FILE, Blocker, Translation, dump_yaml

__all__ = ["html", "write_translation"]

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}
th{background:#f6f8fa}code{font-size:12px;overflow-wrap:anywhere}
.exact,.ignored-default{color:#1a7f37}.approximate{color:#9a6700}.manual,.none,.blocked{color:#b62324}
"""


def _row(cells: Sequence[str], kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    first, *rest = cells
    return f"<tr><td{mark}>{escape(first)}</td>" + "".join(f"<td>{escape(c)}</td>" for c in rest) + "</tr>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    names = "".join(f"<th>{escape(one)}</th>" for one in head)
    return f"<table><tr>{names}</tr>{''.join(rows)}</table>"


def _blockers(title: str, blockers: Sequence[Blocker]) -> str:
    if not blockers:
        return ""
    rows = [
        _row(
            (
                b.resource,
                b.plugin,
                b.reason,
                b.remedy,
                ", ".join(b.routes),
                ", ".join(b.fingerprints),
                b.held_by,
            )
        )
        for b in blockers
    ]
    head = ("where", "what", "why", "what to do", "routes", "covers", "signed")
    return f'<h2 class="blocked">{escape(title)}</h2>' + _table(head, rows)


def _hosts(translation: Translation) -> str:
    if not translation.forms:
        return ""
    rows = [_row((one.host, one.form, one.why)) for one in translation.forms]
    return "<h2>Hosts</h2>" + _table(("host", "emitted as", "why not as a route of the Gateway API"), rows)


def html(translation: Translation) -> str:
    """Return the page; worst entries first, so that nobody has to search for them."""
    counts = ", ".join(f"{n} {kind}" for kind, n in translation.counts().items() if n)
    entries = sorted(translation.ledger, key=lambda e: -e.status.rank)
    rows = [
        _row((str(e.status), f"{e.resource}: {e.path}", e.target, e.note, e.source), str(e.status))
        for e in entries
    ]
    warnings = "".join(f"<li>{escape(one)}</li>" for one in translation.warnings)
    head = ("ends as", "source value", "target", "difference or task", "from")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>gateshift ledger</title>'
        f"<style>{_STYLE}</style><h1>Ledger</h1><p>{escape(counts)}; router {escape(translation.router)}</p>"
        + _blockers("What blocks", translation.blockers)
        + _blockers("Signed for", translation.accepted)
        + _hosts(translation)
        + (f"<h2>Warnings</h2><ul>{warnings}</ul>" if warnings else "")
        + "<h2>Every source value</h2>"
        + _table(head, rows)
        + "</html>\n"
    )


def _ledger(translation: Translation) -> str:
    """Return the ledger as JSON, an entry a line: a change of one leaf is a change of one line."""
    head = translation.as_json()
    entries = ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in head.pop("entries"))
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{text},\n "entries": [\n{entries}\n ]\n}}\n'


def write_translation(translation: Translation, directory: str | Path) -> tuple[Path, ...]:
    """Write the six files, ``ledger.json`` and ``ledger.html``, and ``gateway-api.yaml`` if there are routes.

    One that an earlier translation left in *directory* is taken away: it would be applied beside the
    VirtualServices of the same hosts. Returns the paths of what was written.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    texts = {
        name: dump_yaml(translation.files[name])
        if translation.files.get(name)
        else "# The APISIX configuration needs nothing of this kind.\n"
        for name in FILES
    }
    if translation.files.get(ROUTES_FILE):
        texts[ROUTES_FILE] = dump_yaml(translation.files[ROUTES_FILE])
    else:
        (folder / ROUTES_FILE).unlink(missing_ok=True)
    texts["ledger.json"] = _ledger(translation)
    texts["ledger.html"] = html(translation)
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return tuple(written)
