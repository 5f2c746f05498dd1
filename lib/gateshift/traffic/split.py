"""Shift inside APISIX: its traffic-split plugin sends a share of each route's requests to Istio.

Works per request and at once, without DNS; the route's own plugins keep running at APISIX. Every route is
patched by itself, so a batch is not atomic: each step is checked first, written, and read back, and a
repeated call goes on where the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gateshift.apisix.admin import AdminClient
from gateshift.apisix.merge import effective
from gateshift.apisix.model import Configuration, Kind, Resource
from gateshift.apisix.own_shift import PLUGIN, UPSTREAM
from gateshift.errors import ApisixError, TrafficError
from gateshift.params.model import ApisixParams, TrafficSplitParams
from gateshift.plan import Plan, Step
from gateshift.traffic.protocol import Changed, HostWeights, Receipt, Weights
from gateshift.traffic.records import weights_for

__all__ = ["UPSTREAM", "SplitShifter"]

KIND = "traffic.split"
_GRPC = "-grpc"
_WAY_BACK = "`gateshift rollback` gives APISIX 100 % of every route again, in seconds"


class SplitShifter:
    """Weights by APISIX's traffic-split. *istio_target* may be empty for reading and rolling back."""

    def __init__(
        self,
        params: TrafficSplitParams,
        apisix: ApisixParams,
        *,
        istio_target: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not apisix.admin_url or apisix.admin_key is None:
            raise TrafficError(
                "traffic-split changes routes through APISIX's Admin API, but params name none",
                hint="set apisix.admin_url and apisix.admin_key",
            )
        self._params = params
        self._url, self._key = apisix.admin_url, apisix.admin_key
        self._target = params.istio_target or istio_target
        self._clock = clock

    @property
    def name(self) -> str:
        """The mechanism's name in params."""
        return "traffic-split"

    @contextmanager
    def _client(self) -> Iterator[AdminClient]:
        try:
            with AdminClient(self._url, self._key.get_secret_value()) as client:
                yield client
        except ApisixError as error:
            raise TrafficError(str(error), hint=error.hint) from None

    def _routes(self, configuration: Configuration) -> list[Resource]:
        every = configuration.of(Kind.ROUTE)
        missing = [r for r in self._params.routes if r not in every]
        if missing:
            raise TrafficError(
                f"APISIX has no route {', '.join(missing)}", hint="correct traffic.traffic_split.routes"
            )
        chosen = [every[r] for r in self._params.routes] or [
            r for r in every.values() if r.spec.get("status", 1) != 0
        ]
        if not chosen:
            raise TrafficError("APISIX has no enabled route to split", hint="check apisix.admin_url")
        return chosen

    def _states(self) -> tuple[Configuration, dict[str, Any], dict[str, str]]:
        """Return the configuration, the split by route (None without one) and the routes' obstacles."""
        with self._client() as client:
            configuration = client.read()
        splits, obstacles = {}, {}
        for route in self._routes(configuration):
            own = (route.spec.get("plugins") or {}).get(PLUGIN)
            splits[route.id] = own
            if own is not None and _share(own) is None:
                obstacles[route.id] = f"route {route.id} has a traffic-split of its own"
            elif own is None and PLUGIN in effective(configuration, route).plugins:
                obstacles[route.id] = f"route {route.id} inherits a traffic-split from its service or group"
        return configuration, splits, obstacles

    def read(self) -> Weights:
        """Read every chosen route's share."""
        configuration, splits, obstacles = self._states()
        present = UPSTREAM in configuration.of(Kind.UPSTREAM)
        hosts = {}
        for route, split in splits.items():
            share = None if route in obstacles else 0 if split is None else _share(split)
            weights = {} if share is None else {"apisix": 100 - share, "istio": share}
            hosts[route] = HostWeights(
                route, share, present and route not in obstacles, weights, obstacles.get(route, "")
            )
        shares = {h.istio_percent for h in hosts.values()}
        one = shares.pop() if len(shares) == 1 else None
        return Weights(None if one is None else int(one), hosts)

    def prepare_plan(self) -> Plan:
        """Plan the upstreams that stand for the Istio gateway; no route uses them yet."""
        configuration, _, obstacles = self._states()
        _refuse(obstacles)
        if not self._target:
            raise TrafficError(
                "the Istio load balancer has no address",
                hint="wait until its Service has an address, or set traffic.traffic_split.istio_target",
            )
        steps = []
        for name in sorted({_upstream_of(configuration, r) for r in self._routes(configuration)}):
            now = configuration.of(Kind.UPSTREAM).get(name)
            before = None if now is None else _essential(now.spec)
            after = {
                "type": "roundrobin",
                "nodes": {f"{self._target}:{self._params.port}": 1},
                # Istio routes by host name, so the client's must arrive there.
                "pass_host": "pass",
                "scheme": "grpc" if name.endswith(_GRPC) else "http",
            }
            if before != after:
                steps.append(Step("put", f"upstreams/{name}", before, after, "nobody is sent to it yet"))
        return self._plan("make the Istio gateway an upstream of APISIX", steps, None)

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of *of* parts for Istio on every chosen route; 0 minds no obstacle."""
        low, high = weights_for(percent, of)
        configuration, splits, obstacles = self._states()
        if percent:
            _refuse(obstacles)
        steps = []
        for route in self._routes(configuration):
            split = splits[route.id]
            if route.id in obstacles or (split is None and not percent):
                continue
            upstream = _upstream_of(configuration, route)
            if percent and upstream not in configuration.of(Kind.UPSTREAM):
                raise TrafficError(
                    f"APISIX has no upstream {upstream} yet",
                    hint="run the preflight notebook with mode=act: it plans the preparation",
                )
            after = {
                "rules": [
                    {"weighted_upstreams": [{"upstream_id": upstream, "weight": high}, {"weight": low}]}
                ]
            }
            if split != after:
                steps.append(Step("weigh", f"routes/{route.id}", split, after))
        return self._plan(f"Istio {high} %, APISIX {low} % by traffic-split", steps, percent)

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan nothing: no TTL was lowered here."""
        del snapshot
        return self._plan("nothing to settle", [], None)

    def check_access(self) -> None:
        """Raise unless the key may write: a route that does not exist is deleted.

        APISIX refuses a viewer's key for any method but GET before it looks for the route.
        """
        with self._client() as client:
            client.delete("routes/gateshift-access-check")

    def snapshot(self) -> dict[str, Any]:
        """Return every chosen route's traffic-split as it is."""
        _, splits, _ = self._states()
        return {"mechanism": self.name, "splits": splits}

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan every route's traffic-split back as *snapshot* has it."""
        if snapshot.get("mechanism") != self.name:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')}, not of {self.name}",
                hint="run with the params file the snapshot was taken with",
            )
        _, splits, _ = self._states()
        saved = snapshot["splits"]
        steps = [
            Step("weigh", f"routes/{route}", split, saved[route], "as it was")
            for route, split in splits.items()
            if route in saved and split != saved[route]
        ]
        return self._plan("restore the routes of the snapshot", steps, None)

    def _plan(self, title: str, steps: list[Step], percent: int | None) -> Plan:
        return Plan(KIND, title, tuple(steps), _WAY_BACK, {"admin": self._url, "percent": percent})

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* route by route; refuse before the first one if any is not as planned."""
        if plan.kind != KIND or plan.inputs.get("admin") != self._url:
            raise TrafficError("this plan is not for this APISIX", hint="plan again with these params")
        started = self._clock()
        with self._client() as client:
            due = []
            for step in plan.steps:
                now = _current(client, step.target)
                if now == step.after:
                    continue
                if now != step.before:
                    raise Changed(
                        f"{step.target} was changed by somebody else since the plan",
                        hint="find out who else manages APISIX (ingress controller, GitOps), then plan again",
                    )
                due.append(step)
            for step in due:
                if step.verb == "put":
                    client.put(step.target, step.after)
                else:
                    client.patch(step.target, {"plugins": {PLUGIN: step.after}})
            for step in due:
                if _current(client, step.target) != step.after:
                    raise TrafficError(
                        f"{step.target} is not as it was set: somebody else writes it too",
                        hint="an ingress controller puts its own state back: shift by its CRDs or by DNS",
                    )
        accepted = self._clock()
        return Receipt(self.name, plan.digest, (), accepted, accepted - started, bool(due))

    def confirm(self, receipt: Receipt) -> float:
        """Return at once: APISIX's workers watch their store and follow within a second."""
        return max(0.0, self._clock() - receipt.accepted_at) if receipt.changed else 0.0


def _current(client: AdminClient, target: str) -> Any:
    answer = client.get(target)
    value = (answer or {}).get("value", (answer or {}).get("node", {}).get("value"))
    if target.startswith("upstreams/"):
        return None if value is None else _essential(value)
    if value is None:
        raise TrafficError(f"APISIX has no {target} any more", hint="plan again")
    return (value.get("plugins") or {}).get(PLUGIN)


def _essential(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what we set of an upstream; APISIX adds times and defaults and may list nodes."""
    nodes = spec.get("nodes") or {}
    if isinstance(nodes, list):
        nodes = {f"{n['host']}:{n['port']}": n["weight"] for n in nodes}
    return {
        "type": spec.get("type", "roundrobin"),
        "nodes": dict(nodes),
        "pass_host": spec.get("pass_host", "pass"),
        "scheme": spec.get("scheme", "http"),
    }


def _upstream_of(configuration: Configuration, route: Resource) -> str:
    upstream = effective(configuration, route).upstream
    grpc = upstream is not None and str(upstream.spec.get("scheme", "http")).startswith("grpc")
    return UPSTREAM + _GRPC if grpc else UPSTREAM


def _share(split: Any) -> int | None:
    """Return Istio's percentage if *split* is one of ours, else None."""
    try:
        (rule,) = split["rules"]
        ours, rest = rule["weighted_upstreams"]
        if set(rule) != {"weighted_upstreams"} or not str(ours["upstream_id"]).startswith(UPSTREAM):
            return None
        high, low = int(ours["weight"]), int(rest["weight"])
    except (KeyError, TypeError, ValueError):
        return None
    return high if set(rest) == {"weight"} and high + low == 100 else None


def _refuse(obstacles: Mapping[str, str]) -> None:
    if obstacles:
        raise TrafficError(
            "; ".join(obstacles.values()),
            hint="gateshift does not overwrite it: leave these routes out (traffic.traffic_split.routes) "
            "or shift by DNS",
        )
