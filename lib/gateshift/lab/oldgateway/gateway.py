"""The request path that HTTP, WebSocket and gRPC share: match, plugins, log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from multidict import CIMultiDict

from gateshift.errors import ConfigurationError
from gateshift.lab.oldgateway.auth import AUTH_PLUGINS, Consumer
from gateshift.lab.oldgateway.balancer import Balancer, Resolver
from gateshift.lab.oldgateway.exchange import Exchange, Reply, message
from gateshift.lab.oldgateway.metrics import Metrics
from gateshift.lab.oldgateway.plugins import ACCESS, HEADER_FILTERS, REWRITE, Limits
from gateshift.lab.oldgateway.store import Store
from gateshift.lab.oldgateway.table import Chain, Route, Table

__all__ = ["SERVER", "Gateway"]

SERVER = "APISIX/3.18.0"
_NOT_FOUND = message(404, "404 Route Not Found", "error_msg")


class Gateway:
    """The data plane without its listeners."""

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self.store = store
        self.resolver = resolver
        self.metrics = Metrics()
        self.balancer = Balancer()
        self.limits = Limits()
        self.table = Table(store.configuration())
        self._access = {
            **ACCESS,
            "limit-count": self.limits.limit_count,
            "limit-req": self.limits.limit_req,
        }

    def reload(self) -> None:
        """Take the store's present state; raises ConfigurationError and keeps the old one otherwise."""
        try:
            self.table = Table(self.store.configuration())
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"the configuration cannot be compiled: {error!r}") from None

    async def admit(self, exchange: Exchange) -> tuple[Route | None, Chain, Reply | None]:
        """Run everything before the upstream: a reply ends the request, otherwise there is a route."""
        table = self.table
        route = table.find(exchange)
        for chain in table.global_chains:
            reply = self._phase(chain, REWRITE, exchange) or self._phase(chain, self._access, exchange)
            if reply:
                return route, (), reply
        if route is None:
            return None, (), _NOT_FOUND
        chain = route.chain
        consumer: Consumer | None = None
        for name, conf in chain:
            reply = None
            if name in AUTH_PLUGINS:
                found = self._authenticate(name, conf, exchange)
                if isinstance(found, Reply):
                    return route, chain, found
                consumer = found
            elif name in REWRITE:
                reply = REWRITE[name](conf, exchange)
            if reply:
                return route, chain, reply
        if consumer and consumer.plugins:
            own = {name for name, _ in chain}
            chain = table.merged(route, exchange, consumer.plugins)
            late = tuple(item for item in chain if item[0] not in own)
            reply = self._phase(late, REWRITE, exchange)
            if reply:
                return route, chain, reply
        reply = self._phase(chain, self._access, exchange)
        if reply is None and exchange.delay:
            await asyncio.sleep(exchange.delay)
        return route, chain, reply

    def _authenticate(self, name: str, conf: Mapping[str, Any], exchange: Exchange) -> Consumer | Reply:
        consumers = self.table.consumers
        if name == "jwt-auth":
            return consumers.jwt_auth(conf, exchange)
        return consumers.key_auth(conf, exchange)

    @staticmethod
    def _phase(chain: Chain, steps: Mapping[str, Any], exchange: Exchange) -> Reply | None:
        for name, conf in chain:
            step = steps.get(name)
            if step is not None:
                reply: Reply | None = step(conf, exchange)
                if reply:
                    return reply
        return None

    def decorate(self, chain: Chain, exchange: Exchange, headers: CIMultiDict[str], status: int) -> int:
        """Run the header filters on an answer; return its status."""
        for name, value in exchange.response_headers.items():
            headers[name] = value
        for one in (*self.table.global_chains, chain):
            for name, conf in one:
                step = HEADER_FILTERS.get(name)
                if step is not None:
                    status = step(conf, exchange, headers, status)
        headers["Server"] = SERVER
        return status

    def upstream(self, route: Route, exchange: Exchange) -> Mapping[str, Any] | None:
        """The upstream in force: traffic-split's choice, else the route's."""
        if exchange.upstream is not None:
            return self.table.upstream(exchange.upstream)
        return route.upstream

    def log(self, exchange: Exchange, code: int, started: float, received: int, sent: int) -> None:
        """Count a finished request."""
        if not self.table.counts_metrics:
            return
        self.metrics.log(
            code=code,
            route=exchange.route_id,
            matched_uri=exchange.matched_uri,
            matched_host=exchange.matched_host,
            service=exchange.service_id,
            consumer=exchange.consumer,
            node=exchange.node,
            total_ms=(perf_counter() - started) * 1000,
            upstream_ms=exchange.upstream_ms,
            received=received,
            sent=sent,
        )
