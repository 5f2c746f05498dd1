"""What ``istioctl analyze`` says, and which of it concerns a north-south migration."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from gateshift.cluster.objects import Object
from gateshift.errors import ClusterError

__all__ = ["Finding", "judge_findings", "parse_analysis"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One message of ``istioctl analyze``."""

    code: str
    level: str
    origin: str
    message: str


def parse_analysis(printed: str) -> tuple[Finding, ...]:
    """Read the output of ``istioctl analyze -o json`` (an array, or prose when nothing was found).

    Raises :class:`ClusterError` on anything else: an unreadable analysis is not a clean one.
    """
    text = printed.strip()
    if not text.startswith("["):
        if "No validation issues found" in text:
            return ()
        raise ClusterError(f"`istioctl analyze` printed something unknown: {text[:120]!r}")
    try:
        answer = json.loads(text)
    except ValueError:
        raise ClusterError("`istioctl analyze` printed broken JSON") from None
    return tuple(
        Finding(
            str(item.get("code", "")),
            str(item.get("level", "")),
            str(item.get("origin", "")),
            str(item.get("message", "")),
        )
        for item in answer or []
    )


# Messages that are no defect of a north-south migration, with the reason.
_HARMLESS = {
    "IST0102": "the namespace is not labelled for injection: intended, sidecars come later",
    "IST0103": "a pod without sidecar: intended, sidecars come later",
    "IST0118": "a port of an unrelated Service without a protocol name",
}
# An artefact: a Sidecar whose selector matches WorkloadEntries only is reported as matching nothing.
_NOT_OURS_TO_JUDGE = {"IST0101": "Sidecar"}


def judge_findings(
    findings: Iterable[Finding], ours: Iterable[Object]
) -> tuple[list[Finding], list[Finding]]:
    """Split into (errors, warnings) that matter; findings about others' objects are warnings at most."""
    names = {f"{o['kind']} {o['metadata'].get('namespace', '')}/{o['metadata']['name']}" for o in ours}
    errors: list[Finding] = []
    warnings: list[Finding] = []
    for finding in findings:
        if finding.code in _HARMLESS or finding.level == "Info":
            continue
        if finding.origin.startswith(_NOT_OURS_TO_JUDGE.get(finding.code, "\0")):
            continue
        about_ours = any(finding.origin == n or finding.origin.startswith(f"{n} ") for n in names)
        (errors if finding.level == "Error" and about_ours else warnings).append(finding)
    return errors, warnings
