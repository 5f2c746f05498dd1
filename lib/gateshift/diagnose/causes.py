"""The causes that a diagnosis can name: one row each in ``causes.tsv``. Probes fill in evidence.

Confidence says how surely the finding alone explains the tree's symptom: a contradiction between objects
that leaves requests no way is above 0.9; a consequence that has causes of its own (a response flag) is
below 0.8; what only may matter is below 0.7.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from gateshift.cluster.objects import Object, name_of
from gateshift.diagnose.model import Cause, Level
from gateshift.words import language

__all__ = ["KNOWN", "TITLES", "TREES", "Known", "found", "patch_command"]


@dataclass(frozen=True, slots=True)
class Known:
    """One kind of cause: its tree, usual level and confidence (0-1), title with ``{words}``, reference.

    ``explained_by`` are causes of which this one is a consequence.
    """

    tree: str
    level: Level
    confidence: float
    title: str
    reference: str
    explained_by: frozenset[str] = frozenset()


def _read() -> Mapping[str, Known]:
    text = (resources.files("gateshift.diagnose") / "causes.tsv").read_text(encoding="utf-8")
    known = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            code, tree, level, confidence, title, reference, by = line.split("\t")
            explained = frozenset(by.split(",")) - {""}
            known[code] = Known(tree, Level(level), float(confidence), title, reference, explained)
    return MappingProxyType(known)


def _read_titles(lang: str) -> Mapping[str, str]:
    text = (resources.files("gateshift.diagnose") / f"causes.{lang}.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return MappingProxyType({row[0]: row[1] for row in rows})


TREES: Mapping[str, str] = {
    "gateway": "the new gateway cannot be reached",
    "404": "requests get 404, a VirtualService has no effect",
    "503": "requests get 503: upstream connect error, mTLS",
    "latency": "P95 is above the limit",
    "rate-limit": "no 429 although there should be",
    "share": "the traffic share does not arrive",
    "no-metrics": "metrics are missing",
    "webhook": "changes are refused",
    "parity": "APISIX and Istio answer differently",
    "stuck": "the migration does not go on",
    "lint": "all traps that can be seen in objects",
}
"""The trees: symptom as parameters name it, and what it means."""

KNOWN = _read()
"""Every kind of cause by its code; read-only. Traps found by the lint are ``trap-<number>``."""

TITLES: Mapping[str, Mapping[str, str]] = {"zh": _read_titles("zh")}
"""Titles in other languages than English, by language and code."""


def found(
    code: str,
    evidence: str,
    remedy: str,
    *,
    level: Level | None = None,
    confidence: float | None = None,
    **words: object,
) -> Cause:
    """Return a cause of kind *code*; *words* fill its title. Raises KeyError for an unknown code or word."""
    known = KNOWN[code]
    return Cause(
        level=known.level if level is None else level,
        title=known.title.format(**words),
        evidence=evidence,
        remedy=remedy,
        confidence=known.confidence if confidence is None else confidence,
        reference=_reference(known),
        code=code,
        shown=TITLES.get(language(), {}).get(code, "").format(**words),
    )


def _reference(known: Known) -> str:
    page = "docs/troubleshooting.md" + (f"#{known.tree}" if known.tree in TREES else "")
    return f"{known.reference}; {page}".lstrip("; ")


def patch_command(obj: Object, spec: Mapping[str, Any]) -> str:
    """Return the kubectl command that merges *spec* into *obj*'s spec."""
    space = obj["metadata"].get("namespace")
    text = json.dumps({"spec": spec}, separators=(",", ":"))
    scope = f"-n {space} " if space else ""
    # The Gateway API has a Gateway as well: kubectl would take whichever comes first.
    group = str(obj.get("apiVersion", "")).rpartition("/")[0] if obj["kind"] == "Gateway" else ""
    kind = f"{obj['kind'].lower()}.{group}" if group else obj["kind"].lower()
    return f"kubectl {scope}patch {kind} {name_of(obj)} --type=merge -p {shlex.quote(text)}"
