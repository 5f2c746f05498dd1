"""Error lines of a log, grouped by what they have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Pattern", "group", "merged", "pattern_of"]

_LONGEST = 200

# What makes two lines of one cause differ, most specific first.
_VARIABLE = (
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\b"), "<time>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I), "<id>"),
    (re.compile(r"(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?"), "<address>"),
    (re.compile(r"\[[0-9a-f:]{2,}\](?::\d+)?", re.I), "<address>"),
    (re.compile(r"(?<=-)[a-z0-9]{7,10}-[a-z0-9]{5}\b"), "<pod>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", re.I), "<id>"),
    (re.compile(r"\b\d+(?:\.\d+)?(?=(?:ms|us|ns|s|m|h)?\b)"), "<n>"),
)
# Envoy: [time][thread][level][logger] ...; Istio's Go programs: time TAB level TAB ...; klog: E1125 ...
_ENVOY = re.compile(r"^\[[^\]]+\]\[\d+\]\[(error|critical|warning)\]\[([^\]]+)\]\s*(?:\[[^\]]*\]\s*)?(.*)")
_GO = re.compile(r"^\S+\s+(error|fatal|warn)\s+(.*)")
_KLOG = re.compile(r"^[EF]\d{4} \S+\s+\d+ (.*)")
# A day's access log is millions of lines, nearly all of them answers below 500: those are not parsed.
_ANSWER = re.compile(r'"response_code"\s*:\s*"?(\d)')
_CRI = re.compile(r"^\d{4}-\d\d-\d\dT\S+ (?:stdout|stderr) [FP] ")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One cause: how often it was logged, and one line of it as it was."""

    pattern: str
    count: int
    example: str


def pattern_of(line: str) -> str:
    """Return the pattern of an error line, or an empty text when it reports no error.

    Errors are the lines of level error or worse, and access-log entries with a 5xx answer.
    """
    text = _CRI.sub("", line.strip())
    if text.startswith("{"):
        return _json_pattern(text)
    if found := _ENVOY.match(text):
        return "" if found[1] == "warning" else _general(f"{found[2]}: {found[3]}")
    if found := _GO.match(text):
        return "" if found[1] == "warn" else _general(found[2])
    if found := _KLOG.match(text):
        return _general(found[1])
    return ""


def _json_pattern(text: str) -> str:
    answer = _ANSWER.search(text)
    try:
        entry = None if answer and answer[1] != "5" else json.loads(text)
    except ValueError:
        return ""
    if not isinstance(entry, dict):
        return ""
    if "response_code" in entry:
        code = str(entry["response_code"])
        if not re.fullmatch(r"5\d\d", code):
            return ""
        cluster = entry.get("upstream_cluster") or "no cluster"
        return f"answered {code} {entry.get('response_flags') or '-'} {cluster}"
    if str(entry.get("level", "")).lower() in {"error", "fatal", "critical"}:
        return _general(str(entry.get("msg") or entry.get("message") or text))
    return ""


def _general(text: str) -> str:
    for expression, name in _VARIABLE:
        text = expression.sub(name, text)
    return " ".join(text.split())[:_LONGEST]


def group(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Group the error lines among *lines*, the most frequent pattern first."""
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for line in lines:
        pattern = pattern_of(line)
        if pattern:
            counts[pattern] = counts.get(pattern, 0) + 1
            examples.setdefault(pattern, line.strip()[:500])
    return _sorted(counts, examples)


def merged(parts: Iterable[Iterable[Pattern]]) -> tuple[Pattern, ...]:
    """Add up patterns that were grouped apart, the most frequent first."""
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for found in parts:
        for one in found:
            counts[one.pattern] = counts.get(one.pattern, 0) + one.count
            examples.setdefault(one.pattern, one.example)
    return _sorted(counts, examples)


def _sorted(counts: dict[str, int], examples: dict[str, str]) -> tuple[Pattern, ...]:
    order = sorted(counts, key=lambda p: (-counts[p], p))
    return tuple(Pattern(p, counts[p], examples[p]) for p in order)
