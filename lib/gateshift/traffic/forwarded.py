"""Which requests a gateway counts that it only hands to the other one.

With traffic-split every request passes APISIX, so APISIX counts those that it sends on to Istio as well; with
Istio-first it is the other way round. The share, and the comparison of both gateways' errors and latency,
are right only when each gateway's figures leave those out.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from gateshift.params.model import Mechanism, Params

__all__ = ["apisix_service", "own_selectors", "uses"]

Resolve = Callable[[str], frozenset[str]]


def uses(params: Params) -> frozenset[Mechanism]:
    """Return the mechanisms of all stages."""
    return frozenset(params.mechanism_of(index) for index in range(len(params.stages)))


def apisix_service(params: Params) -> str:
    """Return the cluster's name of APISIX's Service."""
    return f"{params.apisix.service}.{params.apisix.namespace}.svc.cluster.local"


def own_selectors(
    params: Params, istio_target: str, resolve: Resolve | None = None, *, stage: int | None = None
) -> tuple[str, str]:
    """Return label matchers (APISIX's, Istio's) that leave out what is only handed on; empty for DNS.

    During a *stage* (from 0) of traffic-split APISIX's own answers (404, 401, a redirect) are left out too:
    they have no ``node``, no weight moves them, and with them the share could never reach a high target.

    APISIX's ``node`` label is the address a request was sent to (apisix/plugins/prometheus/exporter.lua), so
    the Istio gateway's addresses are looked up; one that is missing counts as APISIX's own request, which
    holds the share below its target instead of promoting. Istio has the Service in ``destination_service``.
    """
    used = uses(params)
    if Mechanism.TRAFFIC_SPLIT in used:
        target = params.traffic.traffic_split.istio_target or istio_target
        addresses = (resolve or _addresses)(target) if target else frozenset()
        unmoved = stage is not None and params.mechanism_of(stage) is Mechanism.TRAFFIC_SPLIT
        left_out = [*([""] if unmoved else []), *sorted(addresses)]
        return ",".join(f'node!="{address}"' for address in left_out), ""
    if Mechanism.ISTIO_FIRST in used:
        return "", f'destination_service!="{apisix_service(params)}"'
    return "", ""


def _addresses(name: str) -> frozenset[str]:
    try:
        return frozenset({str(ipaddress.ip_address(name))})
    except ValueError:
        pass  # a name, looked up below
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()
