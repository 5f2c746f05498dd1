"""Commands to see the same by hand, with this migration's names, so that they can be pasted."""

from __future__ import annotations

from collections.abc import Mapping

from gateshift.cluster.gateways import selector_text
from gateshift.cluster.operator import istiod_name
from gateshift.params.model import Params

__all__ = ["fill"]


def fill(equivalent: str, params: Params, *, pod: str, selector: Mapping[str, str] | None) -> str:
    """Fill a probe's equivalent: *pod* is a gateway pod, *selector* its Service's, each as far as known."""
    istio = params.istio
    words = {
        "<ns>": istio.namespace,
        "<service>": istio.gateway_service,
        "<labels>": selector_text(selector or {"istio": "ingressgateway"}),
        "<istiod>": istiod_name(istio),
        "<apisix>": params.apisix.service,
        "<apisix-ns>": params.apisix.namespace,
        "<pod>": f"{pod or '<gateway pod>'}.{istio.namespace}",
        "<app>": params.cluster.application_namespace,
    }
    for word, value in words.items():
        equivalent = equivalent.replace(word, value)
    return equivalent
