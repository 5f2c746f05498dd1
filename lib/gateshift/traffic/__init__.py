"""Move traffic between the old and the new gateway, and tell where it really is."""

from __future__ import annotations

from gateshift.errors import ParamsError
from gateshift.params.model import Mechanism, Params
from gateshift.traffic.protocol import HostWeights, Receipt, Shifter, Weights
from gateshift.traffic.route53 import Route53Shifter
from gateshift.traffic.share import Share, observed_share
from gateshift.traffic.split import SplitShifter

__all__ = [
    "HostWeights",
    "Receipt",
    "Share",
    "Shifter",
    "Weights",
    "make_shifter",
    "observed_share",
]


def make_shifter(params: Params, *, apisix_target: str, istio_target: str) -> Shifter:
    """Return the shifter that *params* choose.

    The targets are the two load balancers' addresses as the cluster knows them; empty when it cannot be
    asked, which is enough to read and to roll back.
    """
    traffic = params.traffic
    if traffic.mechanism is Mechanism.ROUTE53 and traffic.route53 is not None:
        return Route53Shifter(
            traffic.route53,
            apisix_target=apisix_target,
            istio_target=istio_target,
            migration=params.migration,
        )
    if traffic.mechanism is Mechanism.TRAFFIC_SPLIT:
        return SplitShifter(traffic.traffic_split, params.apisix, istio_target=istio_target)
    if traffic.mechanism is Mechanism.CLOUDFLARE and traffic.cloudflare is not None:
        # Only here: the client library takes half a second to import.
        from gateshift.traffic.cloudflare import CloudflareShifter  # noqa: PLC0415 - see above

        return CloudflareShifter(traffic.cloudflare)
    raise ParamsError(f"traffic.mechanism {traffic.mechanism} has no section in the params file")
