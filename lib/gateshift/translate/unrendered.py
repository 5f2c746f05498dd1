"""Holds back what a template was to complete: no object carries ``{{ .host }}`` as if it were meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.apisix.templates import REMEDY, gaps, unknown_existence
from gateshift.translate.job import Draft, Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity

__all__ = ["hold_unrendered", "lost_to_a_template", "unrendered"]

_SIGN = f"{REMEDY}, or sign that the text is meant as it stands"
_CONSUMERS = (Kind.CONSUMER, Kind.CONSUMER_GROUP, Kind.CREDENTIAL)
_STAYS: tuple[tuple[Path, Kind | None], ...] = (
    *(((key,), Kind.SSL) for key in ("cert", "key", "certs", "keys")),
    *((("plugins", "openid-connect", key), None) for key in ("client_secret", "session")),
)
"""What no object ever holds: it is put into Secrets and files by hand, so its text need not be known here."""


def unrendered(job: Job, resource: Resource) -> list[tuple[Path, str]]:
    """Return the places of *resource* that nothing filled in, with what is said about each."""
    return _known(job).get((resource.kind, resource.id), [])


def _known(job: Job) -> Mapping[tuple[str, str], list[tuple[Path, str]]]:
    """Look through the whole configuration once; mostly there is nothing, and then no route is slowed."""
    if job.unrendered is None:
        looked = ((one, _look(job, one)) for one in job.configuration)
        job.unrendered = {(one.kind, one.id): found for one, found in looked if found}
    return job.unrendered


def _look(job: Job, resource: Resource) -> list[tuple[Path, str]]:
    whole = unknown_existence(job.configuration, resource)
    found: list[tuple[Path, str]] = [((), whole)] if whole else []
    for gap in gaps(resource.spec):
        if not any(gap.path[: len(p)] == p and kind in (None, resource.kind) for p, kind in _STAYS):
            found.append((gap.path, str(gap)))
    for one in () if found else job.configuration.unfilled:
        if one.exists and one.covers(resource.origin):
            found.append(((), f"{one.origin.path} holds {one.text}, which was never filled in"))
    return found


def _in_force(draft: Draft, owner: Resource, path: Path) -> bool:
    """Tell whether what *owner* has at *path* acts on the route; a nearer one may stand for it."""
    inherited = draft.effective
    if owner.kind not in (Kind.ROUTE, Kind.SERVICE, Kind.PLUGIN_CONFIG) or not path:
        return True
    if path[0] == "plugins":
        nearer = {one.name for one in inherited.plugins if one.owner is not owner}
        return len(path) == 1 or path[1] not in nearer
    if path[0] == "upstream":
        return inherited.upstream_owner is owner
    return path[0] != "hosts"  # the table of routes looks at those


def _named_below(options: Any, key: str) -> Iterator[Any]:
    """Yield the values of *key* anywhere below a plugin's options."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name == key and isinstance(value, str | int):
                yield value
            else:
                yield from _named_below(value, key)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _named_below(value, key)


def _owners(job: Job, draft: Draft, *, authenticates: bool) -> Iterator[Resource]:
    """Yield every resource that a rule of the route may be made from."""
    inherited, configuration = draft.effective, job.configuration
    for one in (draft.route, inherited.service, inherited.plugin_config, inherited.upstream_owner):
        if one is not None:
            yield one
    yield from configuration.of(Kind.GLOBAL_RULE).values()
    for use in inherited.plugins:
        for kind, key in ((Kind.PROTO, "proto_id"), (Kind.UPSTREAM, "upstream_id")):
            for id_ in _named_below(use.config, key):
                if (named := configuration.get(kind, id_)) is not None:
                    yield named
        if (metadata := configuration.get(Kind.PLUGIN_METADATA, use.name)) is not None:
            yield metadata
    for kind in _CONSUMERS if authenticates else ():
        yield from configuration.of(kind).values()


def hold_unrendered(job: Job, draft: Draft, *, authenticates: bool) -> bool:
    """Hold a route back whose action is not known; True when nothing more is to be made of it.

    Which requests it takes is known, so they are refused and go to no other route.
    """
    if not _known(job):
        return False
    held = False
    owners = {(o.kind, o.id): o for o in _owners(job, draft, authenticates=authenticates)}
    for owner in owners.values():
        for path, said in unrendered(job, owner):
            if _in_force(draft, owner, path):
                job.mark(owner, path, Fidelity.MANUAL, "", f"{said}; {REMEDY}")
                held |= job.block(owner, "input", draft.resource, said, _SIGN)
    if held:
        draft.blocked = True
        note = f"nothing is made of it while {draft.resource} is held back"
        for owner in owners.values():
            job.mark(owner, (), Fidelity.MANUAL, "", note)
    return held


def lost_to_a_template(job: Job, resource: Resource) -> bool:
    """Tell whether *resource*, which is no route, cannot be made; it then waits for a person."""
    found = unrendered(job, resource)
    for path, said in found:
        job.mark(resource, path, Fidelity.MANUAL, "", f"{said}; {REMEDY}")
        job.lost(f"{resource.kind}/{resource.id}", said, REMEDY, str(resource.origin))
    return bool(found)
