"""Run the probes of a symptom side by side, bounded in time, and rank what they found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gateshift.diagnose import gateway, lint, ours, routing, upstream
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import GateshiftError, InputError

__all__ = ["PROBES", "SYMPTOMS", "run"]

PROBES: tuple[Probe, ...] = (
    *gateway.PROBES,
    *routing.PROBES,
    *upstream.PROBES,
    *ours.PROBES,
    *lint.PROBES,
)

SYMPTOMS = {
    "gateway": "the new gateway cannot be reached",
    "404": "requests get 404, a VirtualService has no effect",
    "503": "requests get 503: upstream connect error, mTLS",
    "latency": "P95 is above the limit",
    "rate-limit": "no 429 although there should be",
    "share": "the traffic share does not arrive",
    "no-metrics": "metrics are missing",
    "webhook": "changes are refused",
    "lint": "all traps that can be seen in objects",
}

_ALIASES = {
    "unreachable": "gateway",
    "not-found": "404",
    "mtls": "503",
    "slow": "latency",
    "p95": "latency",
    "429": "rate-limit",
    "dns": "share",
    "metrics": "no-metrics",
}

LIMIT = 14.0
"""Seconds for a whole diagnosis; a probe without an answer by then is said and left."""


def run(
    symptom: str,
    context: Any,
    *,
    host: str = "",
    path: str = "/",
    limit: float = LIMIT,
    probes: Sequence[Probe] = PROBES,
    progress: Callable[[str], None] | None = None,
) -> tuple[Cause, ...]:
    """Return the causes found, most likely first; an empty tuple when all is well.

    *symptom* is a key of :data:`SYMPTOMS` or empty for all trees; *context* has ``params``, ``cluster``
    and, for share and metrics, ``sampler``, ``source`` and ``shifter()``. Raises :class:`InputError` for an
    unknown symptom; a failing or hanging probe becomes a cause of level info.
    """
    wanted = _ALIASES.get(symptom.strip().lower(), symptom.strip().lower())
    if wanted and wanted not in SYMPTOMS:
        raise InputError(
            f"symptom {symptom!r} is not known", hint=f"choose one of {', '.join(SYMPTOMS)}, or none for all"
        )
    chosen = [p for p in probes if not wanted or wanted in p.symptoms]
    facts = Facts(context, host=host, path=path, symptom=wanted)
    found = _gather(chosen, facts, limit, progress or (lambda _: None))
    causes = [
        replace(
            cause,
            symptom=cause.symptom or wanted or sorted(probe.symptoms)[0],
            equivalent=cause.equivalent or probe.equivalent,
        )
        for probe, causes in found
        for cause in causes
    ]
    unique = {(c.level, c.title, c.evidence): c for c in reversed(causes)}
    order = list(Level)
    return tuple(
        sorted(unique.values(), key=lambda c: (order.index(c.level), -c.confidence, c.title, c.evidence))
    )


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
    try:
        return tuple(probe.look(facts))
    except GateshiftError as error:
        return (_unknown(probe, str(error), error.hint),)
    except Exception as error:  # noqa: BLE001 - under pressure the other probes' answers still count
        reason = f"the probe itself broke: {type(error).__name__}: {error}"
        return (_unknown(probe, reason, "report this as a defect of gateshift"),)


def _unknown(probe: Probe, why: str, remedy: str) -> Cause:
    return Cause(
        Level.INFO,
        f"not known: {probe.name}",
        why,
        remedy,
        equivalent=probe.equivalent,
        confidence=0.05,
    )
