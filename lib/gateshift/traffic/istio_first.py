"""Istio-first: every request reaches the Istio gateway, whose VirtualServices send a share back to APISIX.

Each HTTP route of each VirtualService that gateshift made gets APISIX's Service as one more destination. The
weights are multiplied out, so that a route that already splits between backends keeps its own proportions
(VirtualService: "weight specifies the relative proportion of traffic to be forwarded").
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateshift.errors import ClusterError, TrafficError
from gateshift.params.traffic import IstioFirstParams
from gateshift.plan import Plan, Step
from gateshift.traffic.protocol import HostWeights, Objects, Receipt, Weights
from gateshift.traffic.records import weights_for
from gateshift.traffic.replace import Object, key_of, put_specs

__all__ = ["IstioFirstShifter"]

KIND = "traffic.istio-first"
SERVICE = "VirtualService"
_OURS = "app.kubernetes.io/managed-by=gateshift"
_PARTS = "gateshift.dev/own-weights"
"""Annotation with each route's own proportions, which weights of zero would forget."""
_WAY_BACK = "`gateshift rollback` sends every request back to APISIX, in seconds"


class IstioFirstShifter:
    """Weights between each route's own destinations and APISIX's Service *apisix_host*."""

    def __init__(
        self,
        params: IstioFirstParams,
        objects: Callable[[], Objects],
        *,
        namespace: str,
        apisix_host: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._params = params
        self._objects = objects
        self._namespace = namespace
        self._apisix = apisix_host
        self._clock = clock

    @property
    def name(self) -> str:
        """The mechanism's name in params."""
        return "istio-first"

    def _services(self) -> dict[str, dict[str, Any]]:
        """Return the view (routes and parts) of every VirtualService that 30_apply made, by its key."""
        try:
            found: list[Object] = self._objects().list(SERVICE, self._namespace, labels=_OURS)
        except ClusterError as error:
            raise TrafficError(str(error), hint=error.hint) from None
        views = {key_of(SERVICE, o): _view(o) for o in found}
        views = {key: view for key, view in views.items() if any(r.get("route") for r in view["http"])}
        if not views:
            raise TrafficError(
                f"namespace {self._namespace} has no VirtualService of gateshift's with destinations",
                hint="run 30_apply first",
            )
        return views

    def _is_apisix(self, destination: Mapping[str, Any]) -> bool:
        return bool(destination.get("destination", {}).get("host") == self._apisix)

    def _share(self, rule: Mapping[str, Any]) -> float | None:
        """Return the percentage that stays at Istio; None for a rule without destinations (a redirect)."""
        destinations = rule.get("route") or []
        if not destinations:
            return None
        back = sum(_weight(d, destinations) for d in destinations if self._is_apisix(d))
        own = sum(_weight(d, destinations) for d in destinations if not self._is_apisix(d))
        return round(100.0 * own / (own + back), 9) if own + back else None

    def _obstacles(self, key: str, rules: list[Any]) -> list[str]:
        found = []
        for i, rule in enumerate(rules):
            label = f"{key} route {rule.get('name') or i}"
            if not rule.get("route"):
                continue
            if rule.get("rewrite"):
                found.append(f"{label} rewrites the request, and APISIX would get it rewritten")
            elif self._params.grpc_port is None and self._grpc(rule):
                found.append(f"{label} is gRPC, and traffic.istio_first.grpc_port is not set")
        return found

    def _grpc(self, rule: Mapping[str, Any]) -> bool:
        """Tell gRPC by the name or appProtocol of a destination's Service port, as Istio does."""
        for destination in rule.get("route") or []:
            if self._is_apisix(destination):
                continue
            host = str(destination.get("destination", {}).get("host", ""))
            number = destination.get("destination", {}).get("port", {}).get("number")
            name, _, rest = host.partition(".")
            service = self._objects().get("Service", name, rest.partition(".")[0] or self._namespace)
            for port in ((service or {}).get("spec") or {}).get("ports") or []:
                if number in {None, port.get("port")} and (
                    str(port.get("appProtocol") or port.get("name") or "").startswith(("grpc", "http2"))
                ):
                    return True
        return False

    def read(self) -> Weights:
        """Read every VirtualService's share; None where its routes disagree."""
        hosts = {}
        for key, view in self._services().items():
            rules = view["http"]
            shares = {share for rule in rules if (share := self._share(rule)) is not None}
            share = shares.pop() if len(shares) == 1 else None
            problem = "" if share is not None else f"{key}: its routes have different shares"
            prepared = any(self._is_apisix(d) for rule in rules for d in rule.get("route") or [])
            hosts[key] = HostWeights(key, share, prepared, {}, problem)
        every = {h.istio_percent for h in hosts.values()}
        one = every.pop() if len(every) == 1 else None
        return Weights(int(one) if one is not None and one == int(one) else None, hosts)

    def prepare_plan(self) -> Plan:
        """Plan APISIX as the only weighted destination, before any user's name leads to Istio."""
        services = self._services()
        _refuse([p for key, view in services.items() for p in self._obstacles(key, view["http"])])
        unprepared = [
            rule
            for view in services.values()
            for rule in view["http"]
            if rule.get("route") and not any(self._is_apisix(d) for d in rule["route"])
        ]
        if not unprepared or self.read().istio_percent not in {100, None}:
            return self._plan("nothing to prepare", [], None)
        return self._weigh(services, 0, 100, "everything back to APISIX, before users arrive", 0)

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of *of* parts for Istio's backends; 0 sends everything back and minds nothing."""
        low, high = weights_for(percent, of)
        services = self._services()
        if percent:
            _refuse([p for key, view in services.items() for p in self._obstacles(key, view["http"])])
        title = f"Istio's backends {high}, back to APISIX {low} of {of}"
        return self._weigh(services, high, low, title, percent)

    def _weigh(
        self, services: Mapping[str, dict[str, Any]], own: int, back: int, title: str, percent: int
    ) -> Plan:
        steps = []
        for key, before in services.items():
            parts = json.loads(before["parts"]) if before["parts"] else self._parts(before["http"])
            rules = [
                self._weighted(rule, mine, own, back)
                for rule, mine in zip(before["http"], parts, strict=True)
            ]
            after = {"http": rules, "parts": json.dumps(parts) if back else None}
            if after != before:
                steps.append(Step("weigh", key, before, after))
        return self._plan(title, steps, percent)

    def _parts(self, rules: list[Any]) -> list[list[int | None]]:
        """Return, per route, its own destinations' weights as 30_apply wrote them (None: not given)."""
        return [
            [d.get("weight") for d in rule.get("route") or [] if not self._is_apisix(d)] for rule in rules
        ]

    def _weighted(
        self, rule: Mapping[str, Any], parts: list[int | None], own: int, back: int
    ) -> dict[str, Any]:
        out = copy.deepcopy(dict(rule))
        if not rule.get("route"):
            return out
        mine = [copy.deepcopy(d) for d in rule["route"] if not self._is_apisix(d)]
        numbers = [int(p or 0) for p in parts] if any(parts) else [1] * len(parts)
        for destination, number, original in zip(mine, numbers, parts, strict=True):
            weight = number * own if back else original
            destination.pop("weight", None)
            if weight is not None:
                destination["weight"] = weight
        rest = [self._destination(rule, back * sum(numbers))] if back else []
        out["route"] = [*mine, *rest]
        return out

    def _destination(self, rule: Mapping[str, Any], weight: int) -> dict[str, Any]:
        port = self._params.port
        if self._params.grpc_port is not None and self._grpc(rule):
            port = self._params.grpc_port
        return {"destination": {"host": self._apisix, "port": {"number": port}}, "weight": weight}

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan nothing: at 100 % no destination of ours is left."""
        del snapshot
        return self._plan("nothing to settle", [], None)

    def check_access(self) -> None:
        """Return: preflight's permissions check asks the cluster for ``update`` of VirtualServices."""

    def snapshot(self) -> dict[str, Any]:
        """Return every VirtualService's routes as they are."""
        return {"mechanism": self.name, "services": self._services()}

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the routes back as *snapshot* has them."""
        if snapshot.get("mechanism") != self.name:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')}, not of {self.name}",
                hint="run with the params file the snapshot was taken with",
            )
        saved = snapshot["services"]
        steps = [
            Step("weigh", key, rules, saved[key], "as it was")
            for key, rules in self._services().items()
            if key in saved and rules != saved[key]
        ]
        return self._plan("restore the routes of the snapshot", steps, None)

    def _plan(self, title: str, steps: list[Step], percent: int | None) -> Plan:
        inputs = {"namespace": self._namespace, "percent": percent}
        return Plan(KIND, title, tuple(steps), _WAY_BACK, inputs)

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* object by object; refuse before the first one if any is not as planned."""
        if plan.kind != KIND:
            raise TrafficError(f"this plan ({plan.kind}) is not for VirtualServices", hint="plan again")
        return put_specs(self._objects(), self.name, plan, view=_view, change=_change, clock=self._clock)

    def confirm(self, receipt: Receipt) -> float:
        """Return at once: istiod pushes within a second; the observed share tells the arrival."""
        return max(0.0, self._clock() - receipt.accepted_at) if receipt.changed else 0.0


def _view(obj: Object) -> dict[str, Any]:
    """Return what this mechanism changes of a VirtualService, as plain JSON."""
    return {
        "http": obj["spec"].get("http") or [],
        "parts": (obj["metadata"].get("annotations") or {}).get(_PARTS),
    }


def _change(obj: Object, view: Mapping[str, Any]) -> None:
    obj["spec"]["http"] = view["http"]
    annotations = dict(obj["metadata"].get("annotations") or {})
    annotations.pop(_PARTS, None)
    if view["parts"] is not None:
        annotations[_PARTS] = view["parts"]
    obj["metadata"]["annotations"] = annotations


def _weight(destination: Mapping[str, Any], every: list[Any]) -> int:
    return int(destination.get("weight") or (100 if len(every) == 1 else 0))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise TrafficError(
            "; ".join(problems), hint="shift by DNS or traffic-split, or set traffic.istio_first.grpc_port"
        )
