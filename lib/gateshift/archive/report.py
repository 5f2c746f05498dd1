"""``report.html``: a whole migration on one self-contained page, outcome first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gateshift.archive.changes import changes, compared
from gateshift.archive.files import atomic_write, file_digest
from gateshift.archive.history import outcome_of
from gateshift.archive.manifest import read_manifest
from gateshift.archive.pages import ALONE, Notebook, read_notebooks, write_pages
from gateshift.archive.redact import Redactor
from gateshift.archive.spoken import column, listed, outcome_words, said
from gateshift.archive.timeline import timeline_svg
from gateshift.errors import InputError
from gateshift.migration.identity import identity
from gateshift.migration.journal import Journal, Record
from gateshift.migration.state import State, VerdictMark
from gateshift.notebook.theme import PAGE
from gateshift.words import decision_words, gloss, language, tell, term

__all__ = ["write_report"]

_STYLE = """
:root{color-scheme:light dark;--line:rgba(128,128,128,.4);--soft:rgba(128,128,128,.1)}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:16px}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;width:100%}td,th{padding:3px 10px;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.outcome{border:2px solid;border-left-width:14px;padding:10px 16px;font-size:1.1em}
.good{border-color:#0a7d33}.bad{border-color:#b3261e}.open{border-color:#a15c00}
img,svg{max-width:100%;height:auto}figure{margin:1em 0}code,pre{font-size:.88em}
pre{background:var(--soft);padding:8px;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer}.wide{overflow-x:auto}nav a{margin-right:1em}
@media print{details{display:block}nav{display:none}}
"""

_CHECKLIST = (
    "DNS back at 100 % APISIX",
    "traffic confirmed recovered",
    "Istio error logs collected",
    "root cause analysed",
    "configuration fixed, then retry",
)
"""The guide's checklist after a rollback."""


def write_report(migration_dir: str | Path, *, reporting: str = "") -> Path:
    """Write ``report.html`` and a page for each executed notebook; return the report's path.

    *reporting* is the run that asks for it and is not over yet: the page says nothing about it. The page
    needs nothing but itself: plots are embedded, links go to pages beside it. Its hash is put into
    the journal, so that a changed report shows in the audit.
    """
    folder = Path(migration_dir)
    book = folder / "journal.jsonl"
    if not book.exists():
        raise InputError(f"{folder}: there is no journal here", hint="run a notebook of this migration first")
    with Journal.open(book, who=identity(), run="report") as journal:
        notebooks = read_notebooks(folder)
        last = next((r for r in reversed(journal.records) if r.kind == "report.done"), None)
        pages = write_pages(folder, notebooks, dict((last and last.data.get("files")) or {}))
        text = Redactor().text(_page(folder, journal.state, journal.records, notebooks, reporting))
        target = folder / "report.html"
        atomic_write(target, text)
        files = {str(p.relative_to(folder)): file_digest(p) for p in [*pages, target]}
        journal.append("report.done", files=files, sha256=hashlib.sha256(text.encode()).hexdigest())
    return target


# -- the page --------------------------------------------------------------------------------------


def _page(
    folder: Path, state: State, records: Sequence[Record], notebooks: Sequence[Notebook], reporting: str
) -> str:
    name = folder.name
    sections = [
        ("timeline", timeline_svg(records) + _events(records)),
        ("stages", _stages(records, state)),
        ("plots", _plots(notebooks)),
        ("rollback", _checklist(records)),
        ("approvals", _approvals(records)),
        ("changes", _diffs(folder, records) + _plans(records)),
        ("ledger", _ledger(notebooks)),
        ("attempts", _attempts(records)),
        ("compared", _compared([r for r in records if r.run != reporting])),
        ("runs", _runs(state, notebooks, reporting)),
        ("trust", _trust(records, notebooks)),
    ]
    shown = [(key, tell(f"report.section.{key}"), body) for key, body in sections if body]
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in shown)
    body = "".join(f'<h2 id="{key}">{escape(title)}</h2>{text}' for key, title, text in shown)
    return (
        f'<!doctype html><html lang="{language()}"><head><meta charset="utf-8">{ALONE}'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(tell('report.head', name=name))}</title><style>{_STYLE}{PAGE}</style></head><body>"
        f"<h1>{escape(tell('report.title', name=name))}</h1>"
        f"{_outcome(state, records)}<nav>{links}</nav>{body}"
        f"</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numeric: Iterable[int] = ()) -> str:
    """Return an HTML table; *numeric* columns are aligned right. Values are escaped."""
    right = set(numeric)

    def cell(tag: str, index: int, value: Any) -> str:
        kind = ' class="n"' if index in right else ""
        return f"<{tag}{kind}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", i, column(c)) for i, c in enumerate(columns))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(rows: Iterable[tuple[str, Any]]) -> str:
    return table(("what", "value"), [(column(name), value) for name, value in rows])


def _clock(time: str) -> str:
    return time[:19].replace("T", " ")


def _outcome(state: State, records: Sequence[Record]) -> str:
    word = outcome_of(state)
    if state.rolling_back:
        kind, what = "bad", tell("report.outcome.unfinished", reason=gloss(state.rollback_reason))
    elif state.phase.value == "rolled back":
        kind, what = "bad", tell("report.outcome.back", reason=gloss(state.rollback_reason))
    elif word == "all stages promoted" or state.phase.value in {"soak", "soaked", "cleaned"}:
        kind, what = "good", tell("report.outcome.istio")
    else:
        kind, what = "open", tell("report.outcome.open")
    facts = [
        ("weight on Istio now", f"{state.weight_percent} %"),
        ("stages promoted", sum(r.kind == "stage.promoted" for r in records)),
        ("began (UTC)", _clock(records[0].time) if records else ""),
        ("last record (UTC)", _clock(records[-1].time) if records else ""),
    ]
    done = next((r for r in reversed(records) if r.kind == "rollback.done"), None)
    if done is not None:
        for key, label in (
            ("seconds_to_dns", "rollback: until the weights were accepted"),
            ("seconds_to_users", "rollback: until users were back"),
        ):
            value = done.data.get(key)
            facts.append((label, f"{float(value):.0f} s" if value is not None else "not proven"))
    if state.shifting_to is not None:
        facts.append(("shift not confirmed", f"to {state.shifting_to} %"))
    head = f"<b>{escape(outcome_words(word))}</b><br>{escape(what)}"
    return f'<div class="outcome {kind}">{head}</div>{_facts(facts)}'


def _events(records: Sequence[Record]) -> str:
    rows = [
        (_clock(r.time), text, r.who)
        for r in records
        if (text := said(r)) is not None and not (r.kind == "run.ended" and r.data["outcome"] == "done")
    ]
    return table(("time (UTC)", "what happened", "who"), rows)


def _stages(records: Sequence[Record], state: State) -> str:
    del state
    rows = []
    entered: dict[str, Any] = {}
    share = ""
    for record in records:
        data = record.data
        if record.kind == "stage.entered":
            entered, share = {**data, "time": record.unix}, ""
        elif record.kind == "stage.arrived":
            share = f"{float(data['share']):.1f} %"
        elif record.kind == "verdict":
            mark = VerdictMark(data["stage"], str(data["decision"]), (), record.time)
            evidence = data.get("evidence") or {}
            spent = record.unix - entered.get("time", record.unix)
            rows.append(
                (
                    mark.stage + 1,
                    f"{entered.get('weight', '?')} %",
                    share,
                    decision_words(mark.decision),
                    listed(data.get("reasons")),
                    "; ".join(_figures(evidence)),
                    f"{spent:.0f} s",
                )
            )
    columns = ("stage", "weight", "observed share", "verdict", "reasons", "evidence", "time")
    return table(columns, rows, numeric=(0, 1, 2, 6)) if rows else ""


def _figures(evidence: Mapping[str, Any], test: str = "") -> Iterator[str]:
    """Yield the figures of a verdict's evidence, each with its test and, after a slash, its threshold."""
    for key, value in evidence.items():
        name = f"{test} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            if key != "inputs":  # digests for the replay, nothing that a reader weighs
                yield from _figures(value, name)
        elif value is not None and not key.endswith("_threshold"):
            limit = evidence.get(f"{key}_threshold")
            yield f"{name} {_figure(value)}" + ("" if limit is None else f" / {_figure(limit)}")


def _figure(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_figure, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plots(notebooks: Sequence[Notebook]) -> str:
    figures = []
    for book in notebooks:
        for plot in book.plots:
            figures.append(
                f'<figure><img alt="Plot of {escape(book.name)}, {escape(book.run)}" '
                f'src="data:image/png;base64,{plot}"><figcaption>{escape(book.run)}</figcaption></figure>'
            )
    return "".join(figures)


def _checklist(records: Sequence[Record]) -> str:
    if not any(r.kind == "rollback.started" for r in records):
        return ""
    done = next((r for r in reversed(records) if r.kind == "rollback.done"), None)
    if done is None:
        return table(("item", "result", "detail"), [(item, "open", "") for item in _CHECKLIST])
    rows = []
    for item in done.data.get("checklist") or ():
        parts = list(item) if isinstance(item, (list, tuple)) else [item]
        rows.append(tuple(_in_words(str(part)) for part in [*parts, "", ""][:3]))
    return table(("item", "result", "detail"), rows)


def _in_words(text: str) -> str:
    """Return a cell of the checklist: a standing, or a sentence that is on record."""
    return tell(f"standing.{text}") if text in {"pass", "warn", "fail", "info"} else gloss(text)


def _approvals(records: Sequence[Record]) -> str:
    plans = {str(r.data["plan"]["digest"]): r.data["plan"] for r in records if r.kind == "plan.shown"}
    rows = [
        (
            _clock(r.time),
            gloss(str(plans.get(str(r.data["digest"]), {}).get("title", ""))),
            r.data["digest"],
            r.data["who"],
            r.data.get("account", ""),
            _how(str(r.data["how"])),
        )
        for r in records
        if r.kind == "plan.approved"
    ]
    return table(("time (UTC)", "plan", "digest", "approved by", "account", "how"), rows) if rows else ""


def _how(way: str) -> str:
    key = {"params": "gate.how.params", "prompt": "gate.how.prompt", "approval file": "gate.how.file"}.get(
        way
    )
    return tell(key) if key else gloss(way)


def _diffs(folder: Path, records: Sequence[Record]) -> str:
    parts = [
        f"<details><summary>{escape(_clock(time))} — {escape(what)} — {escape(run)}</summary>"
        f"<pre>{escape(diff)}</pre></details>"
        for time, run, what, diff in changes(folder, records)
    ]
    return f"<p>{escape(tell('report.diffs', count=len(parts)))}</p>{''.join(parts)}" if parts else ""


def _compared(records: Sequence[Record]) -> str:
    rows = compared(records)
    return table(("what", "run before", "newest run"), [(column(r[0]), *r[1:]) for r in rows]) if rows else ""


def _plans(records: Sequence[Record]) -> str:
    approved = {str(r.data["digest"]) for r in records if r.kind == "plan.approved"}
    parts, seen = [], set()
    for record in records:
        if record.kind != "plan.shown" or record.data["plan"]["digest"] in seen:
            continue
        plan = record.data["plan"]
        seen.add(plan["digest"])
        if not plan.get("steps"):
            continue
        rows = [
            (s["verb"], s["target"], _value(s["before"]), _value(s["after"]), gloss(s.get("note", "")))
            for s in plan["steps"]
        ]
        title = gloss(str(plan.get("title", plan["kind"])))
        head = tell("plan.title", title=title, count=len(rows), digest=plan["digest"])
        standing = tell("report.plan.approved" if plan["digest"] in approved else "report.plan.shown")
        back = tell("plan.back", how=gloss(str(plan.get("way_back", ""))))
        parts.append(
            f"<details><summary>{escape(head)}, {standing}</summary>"
            + table(("verb", "target", "before", "after", "note"), rows)
            + f"<p>{escape(back)}</p></details>"
        )
    return "".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return "—"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 1200 else text[:1199] + "…"


def _ledger(notebooks: Sequence[Notebook]) -> str:
    """Repeat the newest translation's tables, as that notebook showed them.

    Without its status cards: they say where the migration stood then and what was next.
    """
    for book in reversed(notebooks):
        shown = [t for t in book.tables if "gateshift-card" not in t]
        if book.name == "20_translate" and shown:
            return "".join(shown)
    return ""


def _attempts(records: Sequence[Record]) -> str:
    attempts: list[dict[str, Any]] = [{}]
    for record in records:
        now = attempts[-1]
        if record.kind == "stage.entered":
            now.setdefault("began", record.time)
            now["top"] = max(now.get("top", 0), int(record.data["weight"]))
        elif record.kind == "stage.promoted":
            now["promoted"] = now.get("promoted", 0) + 1
        elif record.kind == "rollback.started":
            now["end"] = f"rolled back: {record.data['reason']}"
        elif record.kind == "rollback.done" and record.data.get("seconds_to_users", 0) is not None:
            attempts.append({})
    known = [a for a in attempts if a.get("began")]
    if len(known) < 2:
        return ""
    rows = [
        (
            i,
            _clock(a["began"]),
            a.get("promoted", 0),
            f"{a.get('top', 0)} %",
            gloss(a.get("end", "not rolled back")),
        )
        for i, a in enumerate(known, 1)
    ]
    return table(("attempt", "began (UTC)", "stages promoted", "highest weight", "end"), rows)


def _runs(state: State, notebooks: Sequence[Notebook], reporting: str) -> str:
    pages: dict[str, list[Notebook]] = {}
    for book in notebooks:
        pages.setdefault(book.run, []).append(book)
    rows = []
    for mark in state.runs:
        if mark.run == reporting:
            continue  # the run that writes this page has no outcome yet, and its page is not written
        links = " ".join(f'<a href="{escape(b.page)}">{escape(b.name)}</a>' for b in pages.get(mark.run, ()))
        outcome = term(mark.outcome or "under way or died")
        rows.append(
            f"<tr><td>{_clock(mark.started)}</td><td>{escape(mark.notebook)}</td>"
            f"<td>{escape(outcome)}</td><td>{links}</td></tr>"
        )
    names = ("began (UTC)", "notebook", "outcome", "executed copy")
    head = f"<tr>{''.join(f'<th>{escape(column(name))}</th>' for name in names)}</tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _trust(records: Sequence[Record], notebooks: Sequence[Notebook]) -> str:
    newest = records[-1] if records else None
    rows: list[tuple[str, Any]] = [("records in the journal", len(records))]
    if newest is not None:
        rows.append(("hash of the newest", newest.hash))
    manifest = next((m for b in reversed(notebooks) if (m := read_manifest(b.path.parent))), None)
    if manifest is not None:
        rows.append(("revision of the runbooks", (manifest.get("git") or {}).get("revision", "unknown")))
        rows.append(("gateshift", (manifest.get("versions") or {}).get("gateshift", "unknown")))
        rows.append(("params digest", manifest.get("params_digest", "")))
    repaired = sum(r.kind == "journal.repaired" for r in records)
    if repaired:
        rows.append(("torn lines repaired", repaired))
    return _facts(rows) + f"<p><code>gateshift audit verify</code> {escape(tell('report.audit'))}</p>"
