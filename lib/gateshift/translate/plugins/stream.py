"""Plugins of stream routes: addresses, connections, shares and metrics of TCP."""

from __future__ import annotations

from gateshift.istio.builders import dns_label
from gateshift.plan import digest_of
from gateshift.translate.conditions import Inexpressible
from gateshift.translate.job import Policy
from gateshift.translate.plugins.registry import Use, handles
from gateshift.translate.plugins.splitting import shares
from gateshift.translate.plugins.upstreamside import overlay_policy


@handles("stream:ip-restriction")
def ip_restriction(use: Use) -> None:
    """Refuse connections by the peer's address, on the route's port only."""
    found = False
    for key, field in (("whitelist", "notIpBlocks"), ("blacklist", "ipBlocks")):
        blocks = sorted(str(one) for one in use.config.get(key) or ())
        if not blocks:
            continue
        found = True
        digest = digest_of([field, blocks, use.draft.resource])[:8]
        use.draft.policies.append(
            Policy(f"stream-address:{digest}", dns_label("tcp-address", digest), source={field: blocks})
        )
        note = "the peer's address: a load balancer must keep it, or speak the PROXY protocol"
        use.approximate(key, target="AuthorizationPolicy DENY", note=note)
    if not found:
        raise Inexpressible("neither whitelist nor blacklist is given")
    use.ignored("message", note="a TCP client is told nothing")


@handles("stream:limit-conn")
def limit_conn(use: Use) -> None:
    """Bound the connections of all clients together, where the key allows it."""
    config = use.config
    if str(config.get("key_type", "var")) != "constant" and str(config.get("key")) != "server_addr":
        raise Inexpressible("Envoy bounds connections for a whole backend, not for one client")
    limit = {"tcp": {"maxConnections": int(config["conn"]) + int(config.get("burst", 0))}}
    overlay_policy(use, "connectionPool", limit)
    note = "for each gateway pod; beyond it connections are cut at once, nothing is delayed"
    use.approximate(target="DestinationRule connectionPool.tcp.maxConnections", note=note)


@handles("stream:traffic-split")
def traffic_split(use: Use) -> None:
    """Share connections by weight; a condition has no equivalent."""
    rules = list(use.config.get("rules") or ())
    if any(rule.get("match") for rule in rules):
        raise Inexpressible("TCP connections cannot be told apart by variables")
    for number, rule in enumerate(rules[:1]):
        items = list(rule.get("weighted_upstreams") or ())
        if items:
            use.draft.backends = shares(use, items, ("rules", number, "weighted_upstreams"), tcp=True)
    use.exact(target="VirtualService tcp[].route[].weight")


@handles("stream:prometheus")
def prometheus(use: Use) -> None:
    """Istio's own TCP metrics; their names differ."""
    note = "names change (istio_tcp_connections_opened_total, istio_tcp_sent_bytes_total): dashboards follow"
    use.approximate(target="istio_tcp_* metrics", note=note)
