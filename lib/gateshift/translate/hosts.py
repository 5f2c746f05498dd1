"""Which of a route's hosts a request can have, and which of them Istio takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateshift.apisix.model import Router
from gateshift.translate.conditions import Condition

__all__ = ["Hosts", "sort_hosts"]

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_ISTIO = re.compile(rf"\*|(?:\*\.|\*-?)?{_LABEL}(?:\.{_LABEL})*")


_NO_PORT = r"\.?(?::\d+)?"
"""What nginx takes off a Host header before it is compared."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """``served`` go into VirtualServices, ``unreachable`` match no request, ``refused`` Istio cannot hold.

    ``authority`` is the OR of what the Host header must be, where the names in ``served`` do not say it all.
    """

    served: tuple[str, ...]
    unreachable: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    authority: tuple[Condition, ...] = ()


def _has_port(host: str) -> bool:
    """Tell whether there is a colon outside of brackets: ``[::1]`` has no port."""
    return re.search(r":[^\]]*$", host) is not None


def _authority(host: str) -> Condition:
    """Return the condition of one host of a route on the Host header as it was sent."""
    wild, name = host.startswith("*"), host.removeprefix("*")
    if _has_port(host):
        rule = {"regex": f".*{re.escape(name)}"} if wild else {"exact": name}
    else:
        rule = {"regex": f"{'.*' if wild else ''}(?i:{re.escape(name)}){_NO_PORT}"}
    return {"headers": {":authority": rule}}


def sort_hosts(hosts: Sequence[str], router: Router) -> Hosts:
    """Sort a route's hosts. Routers compare nginx's ``$host``: lower case, without port or last dot.

    Only radixtree_uri compares a host that has a port, and then with the Host header as it was sent: the
    bare name does not match it. Istio finds the VirtualService by the name without port, and a rule in it
    can look at the header.
    """
    served, unreachable, refused = [], [], []
    ported = False
    for host in dict.fromkeys(hosts):
        port = _has_port(host)
        name, _, number = host.rpartition(":")
        if host != host.lower() or host.endswith(".") or (port and router is Router.HOST_URI):
            unreachable.append(host)
        elif _ISTIO.fullmatch(host):
            served.append(host)
        elif port and number.isdigit() and _ISTIO.fullmatch(name):
            served.append(name)
            ported = True
        else:
            refused.append(host)
    authority: tuple[Condition, ...] = ()
    if ported and "*" not in hosts:
        authority = tuple(_authority(host) for host in dict.fromkeys(hosts) if host not in unreachable)
    return Hosts(tuple(dict.fromkeys(served)), tuple(unreachable), tuple(refused), authority)
