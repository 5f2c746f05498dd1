"""Which keys of the params each step needs; a reference elsewhere may be without a value.

A rollback at night must not wait for the key of a system it never asks. What is not needed here is not
looked at; used all the same, it raises ParamsError (:class:`~gateshift.params.unset.Unset`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from gateshift.params.model import Params
from gateshift.params.traffic import Mechanism

__all__ = ["Needs", "needs_of", "only"]

Needs = Callable[[Params], Collection[str]]
"""Names the keys a step needs: ``traffic`` stands for all of that section, ``metrics.step`` for one key."""

_WHERE = ("migration", "environment", "outputs", "lang", "stages")
"""What names a migration and its archive: enough to read the journal."""
_RUN = (*_WHERE, "mode", "approve", "approver", "second_person", "gate_wait", "confirm_namespace")
_SETUP = (*_RUN, "cluster", "apisix", "istio", "translate", "traffic")
# Who is told, and what happens to the archive afterwards, stops no step: both are said when they fail.
_FORWARD = tuple(name for name in Params.model_fields if name not in {"notify", "archive"})

_SECTIONS = {
    "route53": Mechanism.ROUTE53,
    "cloudflare": Mechanism.CLOUDFLARE,
    "traffic_split": Mechanism.TRAFFIC_SPLIT,
    "istio_first": Mechanism.ISTIO_FIRST,
}


def only(*sections: str) -> Needs:
    """Return what a step needs that reads the journal, and of the params only *sections*."""
    return lambda _: (*_WHERE, *sections)


def _moving(params: Params) -> tuple[str, ...]:
    """What moving traffic needs by the mechanisms of these *params*; with DNS no cluster and no APISIX."""
    traffic = params.traffic
    used = {params.mechanism_of(stage) for stage in range(len(params.stages))}
    if Mechanism.ISTIO_FIRST in used and traffic.istio_first.front is not None:
        used.add(traffic.istio_first.front)
    keys = [
        f"traffic.{name}"
        for name in type(traffic).model_fields
        if name not in _SECTIONS or _SECTIONS[name] in used
    ]
    through_admin = Mechanism.TRAFFIC_SPLIT in used and traffic.traffic_split.through == "admin"
    if through_admin:
        keys += ["apisix.admin_url", "apisix.admin_key"]
    if Mechanism.ISTIO_FIRST in used or (Mechanism.TRAFFIC_SPLIT in used and not through_admin):
        keys += ["cluster", "istio"]
    return tuple(keys)


def _way_back(params: Params) -> Collection[str]:
    # Metrics prove that the users are back; without their address or credentials that is unproven, as when
    # they do not answer. Only the pace of the watch is asked for.
    return (*_WHERE, "mode", "approve", "gate_wait", "metrics.step", *_moving(params))


def _shift(params: Params) -> Collection[str]:
    return (*_RUN, "cluster", "istio", "apisix.namespace", "apisix.service", *_moving(params))


_NEEDS: dict[str, Needs] = {
    # Preflight is asked what would stop the migration: a missing notification or signing key, too.
    "00_preflight": lambda _: tuple(Params.model_fields),
    "10_install": lambda _: _SETUP,
    "20_translate": lambda _: _SETUP,
    "30_apply": lambda _: _SETUP,
    "80_rollback": _way_back,
    # A probe that lacks something says so and the others answer.
    "90_troubleshoot": lambda _: _RUN,
    "99_report": lambda _: _RUN,
    "shift": _shift,
}


def needs_of(step: str) -> Needs:
    """Return what *step* (a notebook's name, or ``shift``) needs; nearly everything when it has no entry."""
    return _NEEDS.get(step, lambda _: _FORWARD)
