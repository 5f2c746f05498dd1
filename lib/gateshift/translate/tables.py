"""The flat, winner-ordered list of routes for each host.

Envoy picks one virtual host and tries its rules top-down. APISIX goes on from the exact host to wildcard
hosts and to routes without host. So every host's list holds its own routes and those of every bucket that
APISIX would still ask, in APISIX's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateshift.apisix.model import Router
from gateshift.translate.job import Draft
from gateshift.translate.paths import Pattern

__all__ = ["ANY_HOST", "HostList", "covers", "host_lists"]

ANY_HOST = "*"

HostList = tuple[tuple[Draft, Pattern], ...]


def _priority(draft: Draft) -> float:
    value = draft.route.spec.get("priority", 0)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _ordered(drafts: Sequence[Draft]) -> list[tuple[Draft, Pattern]]:
    pairs = [(draft, pattern) for draft in drafts for pattern in draft.patterns]
    return sorted(
        pairs,
        key=lambda one: (
            not one[1].is_exact,
            -len(one[1].literal),
            one[1].literal,
            -_priority(one[0]),
            -len(one[1].source.encode()),
            one[0].route.order,
        ),
    )


def covers(wildcard: str, host: str) -> bool:
    """Tell whether a wildcard host's bucket is still asked for requests to *host*."""
    suffix = wildcard[1:]
    return host.removeprefix("*").endswith(suffix) and host != wildcard


def _until_catch_all(pairs: Sequence[tuple[Draft, Pattern]]) -> HostList:
    """Cut the list after a rule that takes every request: nothing below it can ever be reached."""
    for position, (draft, pattern) in enumerate(pairs):
        if pattern.kind == "prefix" and pattern.text == "/" and {} in draft.conditions:
            return tuple(pairs[: position + 1])
    return tuple(pairs)


def host_lists(drafts: Sequence[Draft], router: Router, names: Sequence[str] = ()) -> dict[str, HostList]:
    """Return each host's list; the key ``*`` is for requests whose host no route names.

    *names* are the certificates' names: each that some list covers gets a list of its own, because Istio
    would otherwise join the rules of every wider VirtualService on that server, in the order of creation.
    """
    hosts: dict[str, None] = {}
    for draft in drafts:
        for host in draft.effective.hosts or (ANY_HOST,):
            hosts.setdefault(host)
            # `*b.com` also matches `b.com`, which Envoy's wildcard does not.
            if host.startswith("*") and len(host) > 1 and not host.startswith("*."):
                hosts.setdefault(host[1:])
    for name in names:
        if any(covers(one, name) for one in hosts if one.startswith("*")):
            hosts.setdefault(name)
    wildcards = sorted((h for h in hosts if h.startswith("*")), key=lambda h: (-len(h), h))
    buckets = _buckets(drafts)
    joined = _in_buckets if router is Router.HOST_URI else _as_filters
    return {
        host: _until_catch_all(
            joined(buckets, [host, *(one for one in wildcards if covers(one, host)), _HOSTLESS])
        )
        for host in hosts
    }


_HOSTLESS = ""
_Ranked = list[tuple[int, tuple[Draft, Pattern]]]


def _buckets(drafts: Sequence[Draft]) -> Mapping[str, _Ranked]:
    """Return the rules of each host as the routes name it, each with its place in APISIX's order of all."""
    found: dict[str, _Ranked] = {}
    for place, pair in enumerate(_ordered(drafts)):
        for host in dict.fromkeys(pair[0].effective.hosts) or (_HOSTLESS,):
            found.setdefault(host, []).append((place, pair))
    return found


def _in_buckets(buckets: Mapping[str, _Ranked], asked: Sequence[str]) -> list[tuple[Draft, Pattern]]:
    """Join buckets one after the other, as radixtree_host_uri asks them."""
    return [pair for name in asked for _, pair in buckets.get(name, ())]


def _as_filters(buckets: Mapping[str, _Ranked], asked: Sequence[str]) -> list[tuple[Draft, Pattern]]:
    """Join buckets in the order of all rules: for radixtree_uri a host is only one more condition."""
    places = {place: pair for name in asked for place, pair in buckets.get(name, ())}
    return [places[place] for place in sorted(places)]
