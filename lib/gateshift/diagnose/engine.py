"""Run the probes of a symptom side by side, bounded in time, and rank what they found."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateshift.archive.shapes import without_shapes
from gateshift.cluster.tools import cluster_flags
from gateshift.diagnose import gateway, latency, limits, lint, mtls, ours, routing, upstream
from gateshift.diagnose.causes import KNOWN, TREES, found
from gateshift.diagnose.facts import WINDOW, Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import GateshiftError, InputError
from gateshift.params.model import Params

__all__ = ["PROBES", "SYMPTOMS", "explain_rollback", "run", "symptom_of"]

PROBES: tuple[Probe, ...] = (
    *gateway.PROBES,
    *routing.PROBES,
    *mtls.PROBES,
    *upstream.PROBES,
    *latency.PROBES,
    *limits.PROBES,
    *ours.PROBES,
    *lint.PROBES,
)

SYMPTOMS = TREES

_ALIASES = {
    "unreachable": "gateway",
    "not-found": "404",
    "mtls": "503",
    "slow": "latency",
    "p95": "latency",
    "429": "rate-limit",
    "dns": "share",
    "metrics": "no-metrics",
    "lock": "stuck",
    "403": "parity",
    "401": "parity",
}

_CONSEQUENCE = 0.6

LIMIT = 14.0
"""Seconds for a whole diagnosis; a probe without an answer by then is said and left."""

_WHO = re.compile(r'User "([^"]+)" cannot')
_DENIED = re.compile(r'cannot (\w+) resource "([\w./-]+)" in API group "([\w.]*)"')


def run(
    symptom: str,
    context: Any,
    *,
    host: str = "",
    path: str = "",
    rule: str = "",
    window: float = WINDOW,
    limit: float = LIMIT,
    probes: Sequence[Probe] = PROBES,
    progress: Callable[[str], None] | None = None,
) -> tuple[Cause, ...]:
    """Return the causes found, most likely first; an empty tuple when all is well.

    *symptom* is a key of :data:`SYMPTOMS` or empty for all trees; *host* and *path* narrow it to one
    request, *rule* names the rule that was meant to take it; *window* is how many seconds of requests are
    looked at. *context* has ``params``, ``cluster`` and, for what they answer, ``sampler``, ``source``,
    ``state`` and ``shifter()``. Nothing is written. Raises :class:`InputError` for an unknown symptom; a
    probe that fails, hangs or is not permitted becomes a cause of level info.
    """
    host, path = _request(host, path)
    wanted = _ALIASES.get(symptom.strip().lower(), symptom.strip().lower())
    if wanted and wanted not in SYMPTOMS:
        raise InputError(
            f"symptom {symptom!r} is not known", hint=f"choose one of {', '.join(SYMPTOMS)}, or none for all"
        )
    chosen = [p for p in probes if not wanted or wanted in p.symptoms]
    facts = Facts(context, host=host, path=path, symptom=wanted, rule=rule, window=window)
    answered = _gather(chosen, facts, limit, progress or (lambda _: None))
    present = {c.code for _, causes in answered for c in causes if c.level == Level.ERROR}
    ranked = []
    for position, (probe, causes) in enumerate(answered):
        for cause in (_weighed(one, present) for one in causes):
            full = replace(
                cause,
                title=without_shapes(cause.title),
                shown=without_shapes(cause.shown),
                evidence=without_shapes(cause.evidence),
                remedy=_at_cluster(without_shapes(cause.remedy), facts.params),
                symptom=cause.symptom or wanted or min(probe.symptoms),
                equivalent=_at_cluster(cause.equivalent or facts.by_hand(probe.equivalent), facts.params),
            )
            ranked.append((list(Level).index(cause.level), -cause.confidence, position, full))
    ranked.sort(key=lambda r: (*r[:3], r[3].title, r[3].evidence))
    # A dict keeps the first position of each key: of two alike the better ranked one stays.
    unique: dict[tuple[object, ...], Cause] = {}
    for *_, cause in ranked:
        unique.setdefault((cause.level, cause.title, cause.evidence), cause)
    return _varied(_together(unique.values()))


_WHAT = re.compile(r"^(?:discovery|list|log|get) of [^:]+: (?=the API server )")


def _together(ranked: Iterable[Cause]) -> Iterable[Cause]:
    """Say once what several probes could not learn for one reason: forty rows of it hide what was found."""
    first: dict[tuple[str, str], Cause] = {}
    names: dict[tuple[str, str], dict[str, None]] = {}
    by_hand: dict[tuple[str, str], dict[str, None]] = {}
    others = []
    for cause in ranked:
        if cause.code not in {"not-known", "no-permission"}:
            others.append(cause)
            continue
        key = cause.code, _WHAT.sub("", cause.evidence)
        first.setdefault(key, cause)
        names.setdefault(key, {})[cause.title.partition(": ")[2]] = None
        by_hand.setdefault(key, {})[cause.equivalent] = None
    yield from others
    for key, cause in first.items():
        code, why = key
        said = found(code, why, cause.remedy, probe=", ".join(names[key]))
        yield replace(said, symptom=cause.symptom, equivalent="; ".join(by_hand[key]))


def _request(host: str, path: str) -> tuple[str, str]:
    """Return host and path of a request as an operator may paste it: a URL, with a port, in capitals."""
    host, path = host.strip(), path.strip()
    if "://" in host:
        parts = urlsplit(host)
        host = parts.netloc
        path = path or parts.path + (f"?{parts.query}" if parts.query else "")
    if "://" in path:
        parts = urlsplit(path)
        host, path = host or parts.netloc, parts.path + (f"?{parts.query}" if parts.query else "")
    name, colon, port = host.rpartition("@")[2].rpartition(":")
    host = (name if colon and port.isdigit() else host.rpartition("@")[2]).rstrip(".").lower()
    return host, path if not path or path.startswith("/") else f"/{path}"


_TOOL = re.compile(r"(?<![\w/.-])(kubectl|istioctl) (?=-n\b|[a-z])")


def _at_cluster(text: str, params: Params) -> str:
    """Name the cluster in each command: the current context of whoever pastes it may be another one."""
    # A path below home as a shell takes it: shorter, and the archive names nobody's home.
    flags = shlex.join(cluster_flags(params)).replace(f" {Path.home()}/", " ~/")
    return _TOOL.sub(lambda tool: f"{tool[1]} {flags} ", text) if flags else text


def _varied(ranked: Iterable[Cause]) -> tuple[Cause, ...]:
    """Put further cases of a cause behind the first of each: seven hosts must not hide another one."""
    seen: set[tuple[Level, str]] = set()
    first: list[Cause] = []
    further: list[Cause] = []
    for cause in ranked:
        (further if (cause.level, cause.code) in seen else first).append(cause)
        seen.add((cause.level, cause.code))
    return tuple(sorted([*first, *further], key=lambda cause: list(Level).index(cause.level)))


def _weighed(cause: Cause, present: set[str]) -> Cause:
    """Lower what is only a consequence of another cause that was found."""
    known = KNOWN.get(cause.code)
    if known is None or not known.explained_by & (present - {cause.code}):
        return cause
    return replace(cause, confidence=cause.confidence * _CONSEQUENCE)


def symptom_of(reason: str) -> str:
    """Return the symptom that a rollback's or a verdict's reason speaks of; empty when it may be any."""
    text = reason.lower()
    for words, symptom in (
        (("p95", "latency", "slow"), "latency"),
        (("missing data", "metrics", "stale", "no series", "scrape"), "no-metrics"),
        (("arriv", "dns", "share"), "share"),
        (("error rate", "5xx", "503", "availability"), "503"),
        (("404", "not found"), "404"),
        (("unreachable", "refused", "gateway is down"), "gateway"),
        (("rate limit", "429"), "rate-limit"),
    ):
        if any(word in text for word in words):
            return symptom
    return ""


def explain_rollback(
    reason: str, context: Any, *, progress: Callable[[str], None] | None = None
) -> tuple[Cause, ...]:
    """Return why a rollback may have been needed: the tree that *reason* speaks of, else all of them.

    The tree about a migration that stands is left out: a rollback under way is its very finding.
    """
    window = 900.0  # the rollback itself has taken minutes; what led to it is older
    causes: tuple[Cause, ...] = ()
    symptom = symptom_of(reason)
    if symptom == "no-metrics" and "new gateway" in reason:
        # A gateway that died gives no figures either, and then Prometheus is not to blame.
        both = [p for p in PROBES if p.symptoms & {"gateway", "no-metrics"}]
        causes = run("", context, window=window, probes=both, progress=progress)
    elif symptom:
        causes = run(symptom, context, window=window, progress=progress)
    if not any(c.level == Level.ERROR for c in causes):
        others = [p for p in PROBES if not p.symptoms & {"stuck", "lint"}]
        causes = run("", context, window=window, probes=others, progress=progress)
    return causes


def _gather(
    chosen: Sequence[Probe], facts: Facts, limit: float, say: Callable[[str], None]
) -> list[tuple[Probe, tuple[Cause, ...]]]:
    done: dict[int, tuple[Cause, ...]] = {}
    changed = threading.Condition()

    def work(index: int) -> None:
        causes = _ask(chosen[index], facts)
        with changed:
            done[index] = causes
            changed.notify_all()

    for index in range(len(chosen)):
        threading.Thread(target=work, args=(index,), daemon=True).start()
    deadline = time.monotonic() + limit
    with changed:
        while len(done) < len(chosen) and (left := deadline - time.monotonic()) > 0:
            changed.wait(left)
        answered = dict(done)
    say(f"{len(answered)} of {len(chosen)} probes answered")
    return [
        (
            probe,
            answered.get(
                index,
                (_unknown(probe, f"no answer within {limit:g} s", "ask by hand, see the equivalent"),),
            ),
        )
        for index, probe in enumerate(chosen)
    ]


def _ask(probe: Probe, facts: Facts) -> tuple[Cause, ...]:
    causes: list[Cause] = []
    try:
        # One by one: what was found before a later read fails still counts.
        causes.extend(probe.look(facts))
    except GateshiftError as error:
        causes.append(_unknown(probe, str(error), error.hint, denied=getattr(error, "status", 0) == 403))
    except Exception as error:  # noqa: BLE001 - under pressure the other probes' answers still count
        reason = f"the probe itself broke: {type(error).__name__}: {error}"
        causes.append(_unknown(probe, reason, "report this as a defect of gateshift"))
    return tuple(causes)


def _unknown(probe: Probe, why: str, remedy: str, *, denied: bool = False) -> Cause:
    text = _DENIED.search(why)
    if denied or text:
        grant = remedy
        if text:
            _, resource, group = text.groups()
            role = f"gateshift-diagnose-{resource.replace('/', '-')}"
            verbs = "create" if resource.endswith("portforward") else "get,list"
            user = _WHO.search(why)
            kind, slash, part = resource.partition("/")
            full = f"{kind}{'.' + group if group else ''}{slash}{part}"
            grant = (
                f"kubectl create clusterrole {role} --verb={verbs} --resource={full} && "
                f"kubectl create clusterrolebinding {role} --clusterrole={role} "
                f"--user={shlex.quote(user[1]) if user else '<you>'}"
            )
        return found("no-permission", why, grant, probe=probe.name)
    return found("not-known", why, remedy, probe=probe.name)
