"""Kubernetes objects as what carries the weights: compared, replaced one by one, read back.

Several objects are several requests, so a batch is not atomic: every object is checked before the first is
written, each write is refused by the API server when somebody was faster (resourceVersion), and a repeated
call goes on where the last one stopped.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateshift.errors import ClusterError, TrafficError
from gateshift.plan import Plan, Step
from gateshift.traffic.protocol import Changed, Objects, Receipt

__all__ = ["Object", "key_of", "put_specs", "split_key"]

Object = dict[str, Any]


def key_of(kind: str, obj: Mapping[str, Any]) -> str:
    """Return how plans name an object: ``Kind namespace/name``."""
    return f"{kind} {obj['metadata'].get('namespace', 'default')}/{obj['metadata']['name']}"


def split_key(key: str) -> tuple[str, str, str]:
    """Return kind, namespace and name of what :func:`key_of` wrote."""
    kind, _, rest = key.partition(" ")
    namespace, _, name = rest.partition("/")
    return kind, namespace, name


def _read(objects: Objects, key: str) -> Object:
    kind, namespace, name = split_key(key)
    found = objects.get(kind, name, namespace)
    if found is None:
        raise TrafficError(f"{key} is not there any more", hint="plan again")
    return found


def put_specs(
    objects: Objects,
    mechanism: str,
    plan: Plan,
    *,
    view: Callable[[Object], Any],
    change: Callable[[Object, Any], None],
    clock: Callable[[], float] = time.time,
) -> Receipt:
    """Carry out *plan* and read it back: its steps hold what *view* shows of an object, *change* sets it.

    Raises :class:`TrafficError` before the first write when any object is neither as planned nor as it was.
    """
    started = clock()
    try:
        due: list[tuple[Step, Object]] = []
        for step in plan.steps:
            found = _read(objects, step.target)
            now = view(found)
            if now == step.after:
                continue
            if now != step.before:
                raise Changed(
                    f"{step.target} was changed by somebody else since the plan",
                    hint="find out who else manages it (GitOps, Helm), then plan again",
                )
            due.append((step, found))
        for step, found in due:
            changed = copy.deepcopy(found)
            change(changed, copy.deepcopy(step.after))
            objects.update(changed)
        for step, _ in due:
            if view(_read(objects, step.target)) != step.after:
                raise TrafficError(
                    f"{step.target} is not as it was set: somebody else writes it too",
                    hint="pause the GitOps controller for this object, or shift by DNS",
                )
    except ClusterError as error:
        raise TrafficError(str(error), hint=error.hint) from None
    accepted = clock()
    return Receipt(mechanism, plan.digest, (), accepted, accepted - started, bool(due))
