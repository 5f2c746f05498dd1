"""Move traffic between the old and the new gateway, and tell where it really is."""

from __future__ import annotations

from collections.abc import Callable

from gateshift.errors import ParamsError
from gateshift.params.model import Mechanism, Params
from gateshift.traffic.forwarded import apisix_service, uses
from gateshift.traffic.protocol import HostWeights, Objects, Receipt, Shifter, Weights
from gateshift.traffic.route53 import Route53Shifter
from gateshift.traffic.share import Share, observed_share
from gateshift.traffic.split import SplitShifter
from gateshift.traffic.staged import Staged

__all__ = [
    "HostWeights",
    "Objects",
    "Receipt",
    "Share",
    "Shifter",
    "Weights",
    "before_the_install",
    "make_shifter",
    "observed_share",
]


def make_shifter(
    params: Params,
    *,
    apisix_target: str,
    istio_target: str,
    objects: Callable[[], Objects] | None = None,
    stage: int | None = None,
) -> Shifter:
    """Return the shifter that *params* choose for *stage* (from 0; None: the last, which knows them all).

    The targets are the two load balancers' addresses as the cluster knows them; empty when it cannot be
    asked, which is enough to read and to roll back. *objects* connects to the cluster when a mechanism
    keeps its weights there.
    """

    def one(mechanism: Mechanism) -> Shifter:
        return _single(params, mechanism, apisix_target, istio_target, objects)

    used = uses(params)
    here = params.mechanism_of(len(params.stages) - 1 if stage is None else stage)
    front = params.traffic.istio_first.front
    if here is Mechanism.ISTIO_FIRST and front is not None:
        return Staged(one(here), one(front), by_dns=True, front=True)
    if len(used) == 1:
        return one(here)
    (dns,) = used - {Mechanism.TRAFFIC_SPLIT}
    return Staged(one(Mechanism.TRAFFIC_SPLIT), one(dns), by_dns=here is dns)


def before_the_install(
    params: Params, *, apisix_target: str, istio_target: str, objects: Callable[[], Objects]
) -> Shifter:
    """Return what can be asked before Istio is there: for Istio-first only the DNS in front of it."""
    front = params.traffic.istio_first.front
    if front is not None and Mechanism.ISTIO_FIRST in uses(params):
        return _single(params, front, apisix_target, istio_target, objects)
    return make_shifter(params, apisix_target=apisix_target, istio_target=istio_target, objects=objects)


def _single(
    params: Params,
    mechanism: Mechanism,
    apisix_target: str,
    istio_target: str,
    objects: Callable[[], Objects] | None,
) -> Shifter:
    traffic = params.traffic
    if mechanism is Mechanism.ROUTE53 and traffic.route53 is not None:
        return Route53Shifter(
            traffic.route53,
            apisix_target=apisix_target,
            istio_target=istio_target,
            migration=params.migration,
        )
    if mechanism is Mechanism.CLOUDFLARE and traffic.cloudflare is not None:
        # Only here: the client library takes half a second to import.
        from gateshift.traffic.cloudflare import CloudflareShifter  # noqa: PLC0415 - see above

        return CloudflareShifter(traffic.cloudflare)
    if mechanism is Mechanism.TRAFFIC_SPLIT and traffic.traffic_split.through == "admin":
        return SplitShifter(traffic.traffic_split, params.apisix, istio_target=istio_target)
    if objects is not None and mechanism is Mechanism.TRAFFIC_SPLIT:
        from gateshift.traffic.split_crd import CrdSplitShifter  # noqa: PLC0415 - rarely used

        return CrdSplitShifter(traffic.traffic_split, objects, istio_target=istio_target)
    if objects is not None and mechanism is Mechanism.ISTIO_FIRST:
        from gateshift.traffic.istio_first import IstioFirstShifter  # noqa: PLC0415 - rarely used

        return IstioFirstShifter(
            traffic.istio_first,
            objects,
            namespace=params.cluster.application_namespace,
            apisix_host=apisix_service(params),
        )
    raise ParamsError(
        f"traffic.mechanism {mechanism} has no section in the params file, or needs the cluster"
    )
