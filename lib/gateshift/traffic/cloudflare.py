"""Cloudflare load balancers: the share of two pools by ``random`` steering.

Every host has its own load balancer, so several hosts are several requests: each is checked first, written
and read back, and a repeated call goes on where the last one stopped. Pools are never changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import cloudflare
from cloudflare import Cloudflare

from gateshift.errors import TrafficError
from gateshift.params.model import CloudflareParams
from gateshift.plan import Plan, Step
from gateshift.traffic.protocol import Changed, HostWeights, Receipt, Weights
from gateshift.traffic.records import weights_for

__all__ = ["TOKEN_SCOPES", "CloudflareShifter"]

KIND = "traffic.cloudflare"
TOKEN_SCOPES = (
    "Zone: Zone: Read",
    "Zone: Load Balancers: Edit",
    "Account: Load Balancing: Monitors And Pools: Read",
)
_TOKEN_LIFE = 86400.0
"""Seconds a token must still be in force when a migration begins."""
_TTL = 30
"""Seconds of a load balancer that is not proxied and names no TTL."""
_FIELDS = ("steering_policy", "random_steering", "default_pools")
_WAY_BACK = "`gateshift rollback` gives the APISIX pool 100 % again"
_SCOPES_HINT = f"the API token needs: {'; '.join(TOKEN_SCOPES)} (docs/dns.md)"


class CloudflareShifter:
    """Moves hosts between the pools of APISIX and of Istio, named or identified in params."""

    def __init__(
        self,
        params: CloudflareParams,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        retry_for: float = 60.0,
    ) -> None:
        self._params = params
        self._clock, self._sleep, self._retry_for = clock, sleep, retry_for
        self._client = Cloudflare(
            api_token=params.api_token.get_secret_value(),
            base_url=params.base_url,
            max_retries=0,
            timeout=15.0,
        )
        self._ids: tuple[str, str, str] | None = None

    @property
    def name(self) -> str:
        """The mechanism's name in params."""
        return "cloudflare"

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        """Run *call*, again on 429, 5xx and a broken connection, for at most ``retry_for`` seconds."""
        started, pause = self._clock(), 0.5
        while True:
            try:
                return call()
            except (cloudflare.AuthenticationError, cloudflare.PermissionDeniedError) as error:
                raise TrafficError(
                    f"{what}: Cloudflare refuses the token ({error.status_code})", hint=_SCOPES_HINT
                ) from None
            except (cloudflare.RateLimitError, cloudflare.InternalServerError) as error:
                problem = f"Cloudflare kept answering {error.status_code}"
            except cloudflare.APIConnectionError:
                problem = "Cloudflare cannot be reached"
            except cloudflare.APIStatusError as error:
                raise TrafficError(f"{what}: Cloudflare refused: {error.status_code} {error}") from None
            waited = self._clock() - started
            if waited + pause > self._retry_for:
                raise TrafficError(
                    f"{what}: {problem} for {waited:.0f} s",
                    hint="see www.cloudflarestatus.com, then run the same notebook again",
                )
            self._sleep(pause)
            pause = min(pause * 2, 8.0)

    def _zone(self) -> tuple[str, str]:
        """Return the ids of the zone, which must be there exactly once, and of its account."""
        zones = self._call(
            f"looking for zone {self._params.zone}",
            lambda: list(self._client.zones.list(name=self._params.zone)),
        )
        zone = _only(zones, "zone", self._params.zone)
        return zone.id, zone.account.id

    def _find(self) -> tuple[str, str, str]:
        """Return the ids of the zone and of both pools; each must be there exactly once."""
        if self._ids is None:
            zone, account = self._zone()
            pools = self._call(
                "listing the pools", lambda: list(self._client.load_balancers.pools.list(account_id=account))
            )
            chosen = [
                _only([p for p in pools if name in (p.id, p.name)], "pool", name)
                for name in (self._params.apisix_pool, self._params.istio_pool)
            ]
            if chosen[0].id == chosen[1].id:
                raise TrafficError(
                    "APISIX and Istio have the same pool", hint="correct traffic.cloudflare.istio_pool"
                )
            self._ids = zone, chosen[0].id, chosen[1].id
        return self._ids

    def _balancers(self) -> dict[str, dict[str, Any]]:
        """Return id and the managed fields of each host's load balancer."""
        zone, _, _ = self._find()
        every = self._call(
            "listing the load balancers", lambda: list(self._client.load_balancers.list(zone_id=zone))
        )
        out = {}
        for host in self._params.hosts:
            found = _only([b for b in every if b.name == host], "load balancer", host)
            out[host] = found.to_dict()
        return out

    def _state(self, balancer: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": balancer["id"], **{field: balancer.get(field) for field in _FIELDS}}

    def _obstacle(self, host: str, balancer: Mapping[str, Any]) -> str:
        _, apisix, istio = self._find()
        others = [p for p in balancer.get("default_pools") or () if p not in (apisix, istio)]
        if others:
            return f"{host}: its load balancer also uses pool {others[0]}"
        for field in ("region_pools", "country_pools", "pop_pools", "rules"):
            if balancer.get(field):
                return f"{host}: its load balancer has {field}, which pass by the weights"
        if balancer.get("session_affinity") not in (None, "", "none"):
            return f"{host}: session affinity keeps clients where they are, whatever the weight"
        return ""

    def _percent(self, balancer: Mapping[str, Any]) -> float | None:
        _, apisix, istio = self._find()
        pools = list(balancer.get("default_pools") or ())
        if balancer.get("steering_policy") != "random":
            # Without random steering the first pool takes everybody while it is healthy.
            first = pools[0] if pools else None
            return {apisix: 0.0, istio: 100.0}.get(str(first))
        steering = balancer.get("random_steering") or {}
        default = float(steering.get("default_weight", 1))
        weights = {p: float((steering.get("pool_weights") or {}).get(p, default)) for p in pools}
        total = sum(weights.values())
        return round(100 * weights.get(istio, 0.0) / total, 6) if total else None

    def read(self) -> Weights:
        """Read every host's share."""
        _, apisix, istio = self._find()
        hosts = {}
        for host, balancer in self._balancers().items():
            problem = self._obstacle(host, balancer)
            prepared = (
                not problem
                and balancer.get("steering_policy") == "random"
                and set(balancer.get("default_pools") or ()) == {apisix, istio}
            )
            hosts[host] = HostWeights(
                host, None if problem else self._percent(balancer), prepared, {}, problem, _ttl(balancer)
            )
        shares = {h.istio_percent for h in hosts.values()}
        one = shares.pop() if len(shares) == 1 else None
        return Weights(int(one) if one is not None and one == int(one) else None, hosts)

    def _target(self, balancer: Mapping[str, Any], percent: int, of: int = 100) -> dict[str, Any]:
        _, apisix, istio = self._find()
        low, high = weights_for(percent, of)
        return {
            "id": balancer["id"],
            "steering_policy": "random",
            # Cloudflare takes weights from 0 to 1 in steps of 0.01, so every percentage is exact.
            "random_steering": {
                "default_weight": 0.0,
                "pool_weights": {apisix: low / 100, istio: high / 100},
            },
            "default_pools": [apisix, istio],
        }

    def prepare_plan(self) -> Plan:
        """Plan both pools and random steering on each load balancer, everybody staying on APISIX."""
        steps = []
        for host, balancer in self._balancers().items():
            self._refuse(host, balancer)
            percent = self._percent(balancer)
            _, apisix, istio = self._find()
            ready = balancer.get("steering_policy") == "random" and set(balancer["default_pools"]) == {
                apisix,
                istio,
            }
            if ready:
                continue
            if percent != 0:
                raise TrafficError(
                    f"{host}: its load balancer does not send everybody to the APISIX pool now",
                    hint="check traffic.cloudflare.apisix_pool",
                )
            steps.append(
                Step("weigh", host, self._state(balancer), self._target(balancer, 0), "all on APISIX")
            )
        return self._plan("random steering over both pools, APISIX keeps everybody", steps, None)

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of *of* parts for Istio on every host. 0 is the way back and minds no obstacle."""
        low, high = weights_for(percent, of)
        steps = []
        for host, balancer in self._balancers().items():
            if percent:
                self._refuse(host, balancer)
            if percent == 0 and self._percent(balancer) == 0:
                continue
            before, after = self._state(balancer), self._target(balancer, percent, of)
            if not _same(before, after):
                steps.append(Step("weigh", host, before, after))
        unit = " %" if of == 100 else ""
        return self._plan(f"Istio {high}{unit}, APISIX {low}{unit} by pool weight", steps, percent)

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan nothing: no TTL was lowered here."""
        del snapshot
        return self._plan("nothing to settle", [], None)

    def check_access(self) -> None:
        """Raise unless the token is in force for another day and may edit load balancers; changes nothing.

        Which permission an endpoint takes is in Cloudflare's API reference ("Accepted Permissions": Load
        Balancers Write for a patch). Whether it is looked at before the load balancer is not written there,
        so the list, which Read allows, comes first: what remains to be refused is the edit alone.
        """
        zone, account = self._zone()
        status, expires = self._token(account)
        if status != "active":
            raise TrafficError(f"the Cloudflare API token is {status}", hint=_SCOPES_HINT)
        if expires is not None and expires.timestamp() < self._clock() + _TOKEN_LIFE:
            raise TrafficError(
                f"the Cloudflare API token ends at {expires:%Y-%m-%d %H:%M} UTC: the way back needs it",
                hint="make a token that outlives the migration",
            )
        self._balancers()
        nobody = "0" * 32

        def edit() -> object:
            try:
                return self._client.load_balancers.edit(nobody, zone_id=zone, enabled=True)
            except (cloudflare.NotFoundError, cloudflare.BadRequestError):
                return None

        self._call("checking that load balancers may be edited", edit)

    def _token(self, account: str) -> tuple[str, datetime | None]:
        """Return status and end of the token: a user's or, where that is refused, an account's."""

        def verify() -> Any:
            try:
                return self._client.user.tokens.verify()
            except (
                cloudflare.AuthenticationError,
                cloudflare.PermissionDeniedError,
                cloudflare.BadRequestError,
            ):
                return self._client.accounts.tokens.verify(account_id=account)

        found = self._call("verifying the API token", verify)
        return ("unknown", None) if found is None else (str(found.status), found.expires_on)

    def _refuse(self, host: str, balancer: Mapping[str, Any]) -> None:
        problem = self._obstacle(host, balancer)
        if problem:
            raise TrafficError(
                problem, hint="change the load balancer so that weights decide, then plan again"
            )

    def snapshot(self) -> dict[str, Any]:
        """Return the managed fields of every load balancer."""
        states = {h: self._state(b) for h, b in self._balancers().items()}
        return {"mechanism": self.name, "zone": self._params.zone, "hosts": states}

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the load balancers back as *snapshot* has them."""
        if snapshot.get("mechanism") != self.name or snapshot.get("zone") != self._params.zone:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')} {snapshot.get('zone')}",
                hint="run with the params file the snapshot was taken with",
            )
        saved = snapshot["hosts"]
        steps = [
            Step("weigh", host, self._state(balancer), saved[host], "as it was")
            for host, balancer in self._balancers().items()
            if host in saved and not _same(self._state(balancer), saved[host])
        ]
        return self._plan("restore the load balancers of the snapshot", steps, None)

    def _plan(self, title: str, steps: list[Step], percent: int | None) -> Plan:
        inputs = {"zone": self._params.zone, "percent": percent}
        return Plan(KIND, f"{self._params.zone}: {title}", tuple(steps), _WAY_BACK, inputs)

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* host by host; refuse before the first one if any is not as planned."""
        if plan.kind != KIND or plan.inputs.get("zone") != self._params.zone:
            raise TrafficError("this plan is not for this Cloudflare zone", hint="plan again")
        started = self._clock()
        zone, _, _ = self._find()
        now = {host: self._state(b) for host, b in self._balancers().items()}
        due = [s for s in plan.steps if not _same(now[s.target], s.after)]
        for step in due:
            if not _same(now[step.target], step.before):
                raise Changed(
                    f"the load balancer of {step.target} was changed by somebody else since the plan",
                    hint="find out who else manages it, then plan again",
                )
        for step in due:
            fields = {k: v for k, v in step.after.items() if k != "id" and v is not None}
            fields.setdefault("steering_policy", "off")
            edit = partial(self._client.load_balancers.edit, step.after["id"], zone_id=zone, **fields)
            self._call(f"changing the load balancer of {step.target}", edit)
        accepted = self._clock()
        now = {host: self._state(b) for host, b in self._balancers().items()} if due else now
        wrong = [s.target for s in plan.steps if not _same(now[s.target], s.after)]
        if wrong:
            raise TrafficError(
                f"the load balancer of {wrong[0]} is not as it was set: somebody else writes it too",
                hint="find out who else manages it, then plan again",
            )
        return Receipt(self.name, plan.digest, (), accepted, accepted - started, bool(due))

    def confirm(self, receipt: Receipt) -> float:
        """Return at once: Cloudflare has no change status; the observed share tells the arrival."""
        return max(0.0, self._clock() - receipt.accepted_at) if receipt.changed else 0.0


def _ttl(balancer: Mapping[str, Any]) -> int | None:
    """Seconds that resolvers keep the answer; None for a proxied host, which Cloudflare steers itself."""
    return None if balancer.get("proxied") else int(balancer.get("ttl") or _TTL)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compare what decides: pools and their order, and the weights where steering is by weight."""

    def deciding(state: Mapping[str, Any]) -> tuple[Any, ...]:
        policy = state.get("steering_policy") or "off"
        steering = (state.get("random_steering") or {}) if policy == "random" else {}
        weights = {p: float(w) for p, w in (steering.get("pool_weights") or {}).items()}
        return policy, list(state.get("default_pools") or ()), weights, steering.get("default_weight")

    return deciding(one) == deciding(other)


def _only(found: list[Any], what: str, name: str) -> Any:
    if len(found) == 1:
        return found[0]
    raise TrafficError(
        f"Cloudflare has {'no' if not found else len(found)} {what} {name}",
        hint=f"check traffic.cloudflare and the token's scopes; {_SCOPES_HINT}",
    )
