"""Which of a route's hosts a request can have, and which of them Istio takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateshift.apisix.model import Router

__all__ = ["Hosts", "sort_hosts"]

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_ISTIO = re.compile(rf"\*|(?:\*\.|\*-?)?{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Hosts:
    """``served`` go into VirtualServices, ``unreachable`` match no request, ``refused`` Istio cannot hold.

    A refused host with a port is served as well, without it: its route is held back, and only answers 503.
    """

    served: tuple[str, ...]
    unreachable: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def sort_hosts(hosts: Sequence[str], router: Router) -> Hosts:
    """Sort a route's hosts. Routers compare nginx's ``$host``: lower case, without port or last dot.

    Only radixtree_uri compares a host that has a port, and then with the Host header as it was sent.
    """
    served, unreachable, refused = [], [], []
    for host in dict.fromkeys(hosts):
        bare = host.removeprefix("*")
        port = bool(re.search(r"[^:\]]*:[^\]]*$", bare))
        if host != host.lower() or bare.endswith(".") or (port and router is Router.HOST_URI):
            unreachable.append(host)
        elif _ISTIO.fullmatch(host):
            served.append(host)
        else:
            refused.append(host)
            if port and _ISTIO.fullmatch(host.rpartition(":")[0]):
                served.append(host.rpartition(":")[0])  # the refusal has to stand where its requests arrive
    return Hosts(tuple(dict.fromkeys(served)), tuple(unreachable), tuple(refused))
