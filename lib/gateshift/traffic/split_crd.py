"""traffic-split through the cluster: for routes that an ingress controller writes into APISIX.

A change through the Admin API would be put back by the controller, so the plugin goes where the controller
reads it: ``spec.http[].plugins`` of each ApisixRoute, with the Istio gateway as an inline upstream of the
plugin (apisix/plugins/traffic-split.lua: ``weighted_upstreams[].upstream``), which needs no further object.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateshift.apisix.own_shift import PLUGIN, UPSTREAM, is_ours
from gateshift.errors import ClusterError, TrafficError
from gateshift.params.traffic import TrafficSplitParams
from gateshift.plan import Plan, Step
from gateshift.traffic.protocol import HostWeights, Objects, Receipt, Weights
from gateshift.traffic.records import weights_for
from gateshift.traffic.replace import Object, key_of, put_specs, split_key

__all__ = ["CrdSplitShifter"]

KIND = "traffic.split-crd"
ROUTE = "ApisixRoute"
SETTINGS = "apisix.apache.org/v2/ApisixUpstream"
_WAY_BACK = "`gateshift rollback` gives APISIX 100 % of every route again, in seconds"


class CrdSplitShifter:
    """Weights by traffic-split in ApisixRoutes. *istio_target* may be empty for reading and rolling back."""

    def __init__(
        self,
        params: TrafficSplitParams,
        objects: Callable[[], Objects],
        *,
        istio_target: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._params = params
        self._objects = objects
        self._target = params.istio_target or istio_target
        self._clock = clock

    @property
    def name(self) -> str:
        """The mechanism's name in params."""
        return "traffic-split"

    def _routes(self) -> dict[str, Object]:
        try:
            cluster = self._objects()
            spaces: tuple[str | None, ...] = self._params.namespaces or (None,)
            every = {key_of(ROUTE, o): o for space in spaces for o in cluster.list(ROUTE, space)}
        except ClusterError as error:
            raise TrafficError(str(error), hint=error.hint) from None
        wanted = [f"{ROUTE} {name}" for name in self._params.routes]
        missing = [one for one in wanted if one not in every]
        if missing:
            raise TrafficError(
                f"the cluster has no {', '.join(missing)}",
                hint="correct traffic.traffic_split.routes (namespace/name) or namespaces",
            )
        chosen = {key: every[key] for key in (wanted or sorted(every))}
        if not any(o.get("spec", {}).get("http") for o in chosen.values()):
            raise TrafficError(
                "the cluster has no ApisixRoute with HTTP rules to split",
                hint="routes of Ingress or HTTPRoute objects are not split here: shift by DNS",
            )
        return chosen

    def _rules(self) -> dict[str, tuple[list[Any], float | None, str]]:
        """Return, per route object, its rules, Istio's share (None: rules disagree) and its obstacle."""
        found = {}
        for key, obj in self._routes().items():
            rules = obj.get("spec", {}).get("http") or []
            shares = {0.0 if (own := _plugin(rule)) is None else _share(own) for rule in rules}
            problems = [p for rule in rules if (p := _obstacle(key, rule))]
            share = shares.pop() if len(shares) == 1 else None
            found[key] = (rules, share, "; ".join(problems))
        return found

    def read(self) -> Weights:
        """Read every chosen route's share."""
        hosts = {}
        for key, (_, share, obstacle) in self._rules().items():
            unequal = f"{key}: its rules have different shares" if share is None else ""
            problem = obstacle or unequal
            weights = {} if share is None else {"apisix": 100 - int(share), "istio": int(share)}
            hosts[key] = HostWeights(key, None if problem else share, not problem, weights, problem)
        shares = {h.istio_percent for h in hosts.values()}
        one = shares.pop() if len(shares) == 1 else None
        return Weights(None if one is None else int(one), hosts)

    def prepare_plan(self) -> Plan:
        """Plan nothing: the plugin brings its upstream with it. Refuses what would stand in the way."""
        problems = [problem for _, _, problem in self._rules().values() if problem]
        if problems:
            raise _refusal(problems)
        self._need_target()
        return self._plan("nothing to prepare", [], None)

    def _need_target(self) -> None:
        if not self._target:
            raise TrafficError(
                "the Istio load balancer has no address",
                hint="wait until its Service has an address, or set traffic.traffic_split.istio_target",
            )

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of *of* parts for Istio; 0 minds no obstacle and takes the plugin out."""
        low, high = weights_for(percent, of)
        rules = self._rules()
        if percent:
            self._need_target()
            problems = [problem for _, _, problem in rules.values() if problem]
            if problems:
                raise _refusal(problems)
        steps = []
        for key, (before, _, _) in rules.items():
            after = [self._with_split(key, rule, low, high) for rule in before]
            if after != before:
                steps.append(Step("weigh", key, before, after))
        return self._plan(f"Istio {high}, APISIX {low} of {of} by traffic-split", steps, percent)

    def _with_split(self, key: str, rule: Mapping[str, Any], low: int, high: int) -> dict[str, Any]:
        own = _plugin(rule)
        if own is not None and _share(own) is None:
            return dict(rule)  # somebody else's: left alone on the way back, refused on the way there
        if own is None and not high:
            return dict(rule)
        others = [copy.deepcopy(p) for p in rule.get("plugins") or [] if p.get("name") != PLUGIN]
        out = {k: v for k, v in rule.items() if k != "plugins"}
        if high:
            upstream = {
                "name": UPSTREAM,  # by it the shift is told from a split of somebody else's
                "type": "roundrobin",
                "nodes": {f"{self._target}:{self._params.port}": 1},
                # Istio routes by host name, so the client's must arrive there.
                "pass_host": "pass",
                "scheme": self._scheme(key, rule),
            }
            ours = [{"upstream": upstream, "weight": high}, {"weight": low}]
            others.append(
                {"name": PLUGIN, "enable": True, "config": {"rules": [{"weighted_upstreams": ours}]}}
            )
        if others:
            out["plugins"] = others
        return out

    def _scheme(self, key: str, rule: Mapping[str, Any]) -> str:
        """Tell gRPC from HTTP: an ApisixUpstream of the backend's name says it."""
        _, namespace, _ = split_key(key)
        for backend in rule.get("backends") or []:
            settings = self._objects().get(SETTINGS, str(backend.get("serviceName")), namespace)
            if str(((settings or {}).get("spec") or {}).get("scheme", "")).startswith("grpc"):
                return "grpc"
        return "http"

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan nothing: no TTL was lowered here."""
        del snapshot
        return self._plan("nothing to settle", [], None)

    def check_access(self) -> None:
        """Return: preflight's permissions check asks the cluster for ``update`` of ApisixRoutes."""

    def snapshot(self) -> dict[str, Any]:
        """Return every chosen route's rules as they are."""
        return {"mechanism": KIND, "routes": {key: rules for key, (rules, _, _) in self._rules().items()}}

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan every route's rules back as *snapshot* has them."""
        if snapshot.get("mechanism") != KIND:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')}, not of {KIND}",
                hint="run with the params file the snapshot was taken with",
            )
        saved = snapshot["routes"]
        steps = [
            Step("weigh", key, rules, saved[key], "as it was")
            for key, (rules, _, _) in self._rules().items()
            if key in saved and rules != saved[key]
        ]
        return self._plan("restore the routes of the snapshot", steps, None)

    def _plan(self, title: str, steps: list[Step], percent: int | None) -> Plan:
        return Plan(KIND, title, tuple(steps), _WAY_BACK, {"percent": percent})

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* route by route; refuse before the first one if any is not as planned."""
        if plan.kind != KIND:
            raise TrafficError(f"this plan ({plan.kind}) is not for ApisixRoutes", hint="plan again")
        return put_specs(
            self._objects(),
            self.name,
            plan,
            view=lambda obj: obj["spec"].get("http") or [],
            change=lambda obj, rules: obj["spec"].update(http=rules),
            clock=self._clock,
        )

    def confirm(self, receipt: Receipt) -> float:
        """Return at once: the controller follows within seconds; the observed share tells the arrival."""
        return max(0.0, self._clock() - receipt.accepted_at) if receipt.changed else 0.0


def _plugin(rule: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((p for p in rule.get("plugins") or [] if p.get("name") == PLUGIN), None)


def _share(plugin: Mapping[str, Any]) -> float | None:
    """Return Istio's percentage if *plugin* is one of ours: an inline upstream, then the route's own."""
    try:
        (rule,) = plugin["config"]["rules"]
        ours, rest = rule["weighted_upstreams"]
        if set(rule) != {"weighted_upstreams"} or set(rest) != {"weight"}:
            return None
        if set(ours) != {"upstream", "weight"} or not is_ours(plugin["config"]):
            return None
        high, low = int(ours["weight"]), int(rest["weight"])
    except (KeyError, TypeError, ValueError):
        return None
    return 100.0 * high / (high + low) if high + low else None


def _obstacle(key: str, rule: Mapping[str, Any]) -> str:
    label = f"{key} rule {rule.get('name') or '?'}"
    own = _plugin(rule)
    if own is not None and _share(own) is None:
        return f"{label} has a traffic-split of its own"
    if len(rule.get("backends") or []) + len(rule.get("upstreams") or []) > 1:
        # The controller makes a traffic-split of them, which ours would displace.
        return f"{label} has several backends, which the controller splits itself"
    return ""


def _refusal(problems: list[str]) -> TrafficError:
    return TrafficError(
        "; ".join(problems),
        hint="gateshift does not overwrite it: leave these routes out (traffic.traffic_split.routes) "
        "or shift by DNS",
    )
