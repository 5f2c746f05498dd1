"""Two mechanisms in one migration: each has a share, and the users see what comes of both.

*Handover*: traffic-split for the first stages, DNS for the rest. The split stays where the last of its stages
put it, and DNS takes over from what is left. With the split at s and DNS at d Istio has 1 - (1 - d)(1 - s) of
all requests, so a stage of w needs d = (w - s) / (1 - s): weights w - s and 100 - w, exact whole numbers. The
share never overshoots while DNS spreads, and the way back starts with what reacts in a second.

*Front*: Istio-first. DNS brings everybody to the Istio gateway, whose weights decide: v of d, v * d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateshift.errors import TrafficError
from gateshift.plan import Plan
from gateshift.traffic.protocol import HostWeights, Receipt, Shifter, Weights

__all__ = ["Staged"]

KIND = "traffic.staged"
_WAY_BACK = "`gateshift rollback` sets both back: DNS first, because caches take longest"


class Staged:
    """*inner* decides per request (traffic-split, Istio's weights), *dns* by the users' resolvers.

    *by_dns* says, for a handover, whether the stage at hand is one of DNS; *front* that DNS only brings
    everybody to Istio.
    """

    def __init__(self, inner: Shifter, dns: Shifter, *, by_dns: bool, front: bool = False) -> None:
        self._inner, self._dns = inner, dns
        self._by_dns, self._front = by_dns, front

    @property
    def name(self) -> str:
        """Both mechanisms' names."""
        return f"{self._inner.name}+{self._dns.name}"

    def _total(self, inner: float | None, dns: float | None) -> float | None:
        if inner is None or dns is None:
            return None
        share = inner * dns / 100 if self._front else 100 - (100 - dns) * (100 - inner) / 100
        return round(share, 6)

    def read(self) -> Weights:
        """Read both; the percentage is of all requests, and each host keeps its own mechanism's."""
        inner, dns = self._inner.read(), self._dns.read()
        total = self._total(_percent(inner), _percent(dns))
        hosts: dict[str, HostWeights] = {**inner.hosts, **dns.hosts}
        if not self._by_dns and not self._front:
            # DNS is prepared when its first stage comes; until then only that it is at 0 matters.
            hosts = {**inner.hosts, **{h: replace(w, prepared=True) for h, w in dns.hosts.items()}}
        return Weights(int(total) if total is not None and total == int(total) else None, hosts)

    def prepare_plan(self) -> Plan:
        """Plan what the stage at hand needs prepared."""
        parts = [self._inner.prepare_plan()]
        if self._by_dns or self._front:
            parts.append(self._dns.prepare_plan())
        return _joined("prepare, nobody is moved", parts, None)

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of all requests for Istio with what the stage at hand moves by."""
        if of != 100:
            raise TrafficError("two mechanisms move all of the traffic, not a part of it", hint="of is 100")
        if percent == 0:
            return self._way_back()
        if self._front:
            # DNS first while Istio still sends everything back: the share never overshoots.
            parts = [self._dns.plan(100), self._inner.plan(percent)]
            return _joined(f"Istio {percent} %, everybody's front is Istio", parts, percent)
        if not self._by_dns:
            return _joined(f"Istio {percent} % by {self._inner.name}", [self._inner.plan(percent)], percent)
        inner = _percent(self._inner.read())
        if inner is None or inner != int(inner) or inner > percent:
            now = "not the same everywhere" if inner is None else f"{inner:g} %"
            raise TrafficError(
                f"the {self._inner.name} share is {now}, so DNS cannot be set to make {percent} % of it",
                hint="`gateshift shift` shows each route; roll back, or set the split right",
            )
        split = int(inner)
        # Istio's part of what the split leaves to APISIX; at a split of 100 % nothing is left to choose.
        parts = [self._dns.plan(percent - split, of=100 - split) if split < 100 else self._dns.plan(100)]
        title = f"Istio {percent} %: DNS moves what a {self._inner.name} of {split} % leaves"
        return _joined(title, parts, percent)

    def _way_back(self) -> Plan:
        """Plan both to 0; one that cannot be asked now must not stop the other."""
        parts, silent = [], []
        for shifter in (self._dns, self._inner):
            try:
                parts.append(shifter.plan(0))
            except TrafficError as error:
                silent.append(f"{shifter.name}: {error}")
        if not parts:
            raise TrafficError("; ".join(silent), hint="check the network and credentials, then run it again")
        return _joined("everything back to APISIX", parts, 0, silent)

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the end of both."""
        parts = [
            self._inner.settle_plan(snapshot.get("inner", {})),
            self._dns.settle_plan(snapshot.get("dns", {})),
        ]
        return _joined("as it was before the migration", parts, None)

    def check_access(self) -> None:
        """Raise unless both may be written."""
        self._inner.check_access()
        self._dns.check_access()

    def snapshot(self) -> dict[str, Any]:
        """Return both snapshots."""
        return {"mechanism": self.name, "inner": self._inner.snapshot(), "dns": self._dns.snapshot()}

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan both back as *snapshot* has them."""
        if snapshot.get("mechanism") != self.name:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')}, not of {self.name}",
                hint="run with the params file the snapshot was taken with",
            )
        parts = [self._dns.restore_plan(snapshot["dns"]), self._inner.restore_plan(snapshot["inner"])]
        return _joined("restore both snapshots", parts, None)

    def set(self, plan: Plan) -> Receipt:
        """Carry out each part in its order. On the way back a part that fails does not stop the other."""
        if plan.kind != KIND:
            raise TrafficError(f"this plan ({plan.kind}) is of one mechanism alone", hint="plan again")
        receipts: list[Receipt] = []
        failures: list[str] = list(plan.inputs.get("silent", ()))
        for part in _parts(plan):
            shifter = self._dns if part.kind == f"traffic.{self._dns.name}" else self._inner
            try:
                receipts.append(shifter.set(part))
            except TrafficError as error:
                if plan.inputs.get("percent") != 0:
                    raise
                failures.append(f"{shifter.name}: {error}")
        done = {r.mechanism for r in receipts}
        if failures and not (self._front and self._dns.name in done):
            # In front of Istio-first DNS alone brings everybody back; after a handover it takes both.
            raise TrafficError(
                f"{'; '.join(failures)} (set: {', '.join(sorted(done)) or 'nothing'}); a part of the traffic "
                "still goes to Istio",
                hint="repair the connection, then run `gateshift rollback` again: it goes on from here",
            )
        return Receipt(
            self.name,
            plan.digest,
            tuple(change for r in receipts for change in r.change_ids),
            max((r.accepted_at for r in receipts), default=0.0),
            sum(r.took_s for r in receipts),
            any(r.changed for r in receipts),
            max((r.wait_out_s for r in receipts), default=0.0),
        )

    def confirm(self, receipt: Receipt) -> float:
        """Wait for the part that spreads: DNS."""
        return self._dns.confirm(receipt) if receipt.change_ids else self._inner.confirm(receipt)


def _percent(weights: Weights) -> float | None:
    shares = {h.istio_percent for h in weights.hosts.values()}
    return shares.pop() if len(shares) == 1 else None


def _joined(title: str, parts: list[Plan], percent: int | None, silent: Sequence[str] = ()) -> Plan:
    """Join plans; each part's kind and inputs are kept, so that it can be taken out again unchanged."""
    return Plan(
        KIND,
        title,
        tuple(step for part in parts for step in part.steps),
        _WAY_BACK,
        {
            "percent": percent,
            "parts": [
                {"kind": p.kind, "title": p.title, "steps": len(p.steps), "inputs": dict(p.inputs)}
                for p in parts
            ],
            **({"silent": list(silent)} if silent else {}),
        },
    )


def _parts(plan: Plan) -> list[Plan]:
    parts, start = [], 0
    for part in plan.inputs["parts"]:
        steps = plan.steps[start : start + part["steps"]]
        start += part["steps"]
        if steps:
            parts.append(Plan(part["kind"], part["title"], steps, plan.way_back, part["inputs"]))
    return parts
