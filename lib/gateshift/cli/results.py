"""What a pipeline reads of a run: one JSON line, a JUnit file, a Markdown summary. All from the archive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from gateshift.archive.outcome import Outcome
from gateshift.errors import GateshiftError
from gateshift.migration.journal import Record, read_records
from gateshift.migration.state import State, fold
from gateshift.notebook.show import PlanView, Table
from gateshift.plan import Plan, Step
from gateshift.runbook.order import due_notebook, next_notebook
from gateshift.runbook.standing import phase_words
from gateshift.words import tell, term

__all__ = [
    "checks_of",
    "json_line",
    "junit",
    "plan_of",
    "result",
    "returned",
    "shown",
    "stands",
    "summary",
]


def result(verb: str, outcome: Outcome, *, migration: str, stages: int) -> dict[str, Any]:
    """Return the outcome as plain JSON: stable names, no translation; docs/howto/pipelines.md lists them."""
    state = _state(outcome.path.parent.parent)
    plan = plan_of(outcome.path.parent)
    return {
        "verb": verb,
        "migration": migration,
        "run": outcome.path.parent.name,
        "exit_code": outcome.exit_code,
        "outcome": outcome.word,
        "error": outcome.error,
        "hint": outcome.hint or None,
        "notebook": str(outcome.path),
        "digest": plan.get("digest") if plan.get("steps") else None,
        "steps": len(plan.get("steps", ())),
        "phase": state.phase.value,
        "weight_percent": state.weight_percent,
        "next": due_notebook(state, stages),
        "seconds": round(outcome.seconds, 1),
    }


def json_line(found: Mapping[str, Any]) -> str:
    """Return *found* on one line, for the last line of the standard output."""
    return json.dumps(found, ensure_ascii=False)


def _records(folder: Path) -> tuple[Record, ...]:
    try:
        return read_records(folder / "journal.jsonl")
    except (GateshiftError, OSError):
        return ()


def _state(folder: Path) -> State:
    return fold(_records(folder))


def plan_of(run: Path) -> Mapping[str, Any]:
    """Return the plan that a run showed; empty when it showed none."""
    try:
        found: Mapping[str, Any] = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def checks_of(run: Path) -> Sequence[Mapping[str, str]]:
    """Return the checks of a preflight or verify run: ``result, name, measured, why, remedy``."""
    try:
        found: Sequence[Mapping[str, str]] = json.loads((run / "checks.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return found


def junit(verb: str, found: Mapping[str, Any], checks: Sequence[Mapping[str, str]]) -> str:
    """Return a JUnit file: a case a check; a run without checks is one case that failed or passed.

    A warning is a passed case with its text in ``system-out``; an outcome that no failed check explains
    (a cluster out of reach) is an error of its own, so that the file is never green when the run is not.
    """
    suite = Xml.Element("testsuite", name=f"gateshift {verb}", time=f"{found['seconds']}")
    failures = errors = 0
    for check in checks:
        case = Xml.SubElement(suite, "testcase", classname=f"gateshift.{verb}", name=check["name"])
        text = f"{check['measured']}\nwhy: {check['why']}\nremedy: {check['remedy']}"
        if check["result"] == "fail":
            failures += 1
            Xml.SubElement(case, "failure", message=check["measured"]).text = text
        elif check["result"] != "pass":
            Xml.SubElement(case, "system-out").text = f"{check['result']}: {text}"
    if not checks or (found["exit_code"] and not failures):
        case = Xml.SubElement(suite, "testcase", classname=f"gateshift.{verb}", name="run")
        if found["exit_code"]:
            errors = 1
            Xml.SubElement(case, "error", message=str(found["error"])).text = str(found["hint"] or "")
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(failures))
    suite.set("errors", str(errors))
    root = Xml.Element("testsuites")
    root.append(suite)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


_MARKS = {0: "✅", 3: "⏸️", 4: "↩️"}


def summary(found: Mapping[str, Any], plan: Mapping[str, Any], checks: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown summary for a pull request or a job's page."""
    mark = _MARKS.get(found["exit_code"], "❌")
    lines = [
        f"### {mark} gateshift {found['verb']}: {found['outcome']} ({found['migration']})",
        "",
        f"Weight on Istio {found['weight_percent']} %, phase {found['phase']}, next `{found['next']}`.",
        f"Run `{found['run']}`.",
    ]
    if found["error"]:
        lines += ["", f"**{_cell(found['error'])}**", "", f"Next step: {_cell(found['hint'] or '')}"]
    bad = [c for c in checks if c["result"] != "pass"]
    if checks:
        lines += ["", f"{len(checks)} checks, {sum(c['result'] == 'fail' for c in checks)} failed."]
    if bad:
        lines += ["", "| result | check | measured | remedy |", "|---|---|---|---|"]
        lines += [
            f"| {c['result']} | {_cell(c['name'])} | {_cell(c['measured'])} | {_cell(c['remedy'])} |"
            for c in bad
        ]
    if found["digest"]:
        steps = plan["steps"]
        lines += ["", f"Plan `{found['digest']}`: {_cell(plan['title'])}, {len(steps)} steps."]
        lines += ["", "| # | verb | target | before | after |", "|---|---|---|---|---|"]
        lines += [
            f"| {i} | {s['verb']} | {_cell(s['target'])} | {_cell(s['before'])} | {_cell(s['after'])} |"
            for i, s in enumerate(steps[:30], 1)
        ]
        if len(steps) > 30:
            lines.append(f"\n{len(steps) - 30} more steps are in the archive.")
        lines += ["", f"Way back: {_cell(plan['way_back'])}"]
    return "\n".join(lines) + "\n\n"


def shown(found: Mapping[str, Any], plan: Mapping[str, Any], checks: Sequence[Mapping[str, str]]) -> str:
    """Return what a person at a terminal has to see of a run: its plan, and checks that did not pass."""
    parts = []
    if found["digest"] and plan["steps"]:
        steps = tuple(Step(**step) for step in plan["steps"])
        read = Plan(plan["kind"], plan["title"], steps, plan["way_back"])
        parts.append(repr(PlanView(read, digest=str(found["digest"]))))
    bad = tuple(
        (c["result"], term(c["name"]), c["measured"], c["remedy"]) for c in checks if c["result"] != "pass"
    )
    if bad:
        failed = sum(c["result"] == "fail" for c in checks)
        title = tell("checks.title", count=len(checks), failed=failed)
        parts.append(repr(Table(title, ("result", "check", "measured", "remedy"), bad)))
    return "\n".join(parts)


def stands(run: Path, stages: int) -> str:
    """Return one line on where the migration stands after *run* and what is next, in the language in use."""
    state = _state(run.parent)
    return tell(
        "cli.stands",
        phase=phase_words(state.phase.value),
        percent=state.weight_percent,
        next=next_notebook(state, stages),
    )


def returned(run: Path) -> str:
    """Return the proof of a rollback that *run* finished: when the users were back; empty without one."""
    for record in reversed(_records(run.parent)):
        if record.kind == "rollback.done" and record.data.get("seconds_to_users") is not None:
            return tell("rollback.proven", seconds=f"{record.data['seconds_to_users']:.0f}")
    return ""


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 160 else text[:159] + "…"
