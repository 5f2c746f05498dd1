"""Weighted Route 53 records for several hosts, moved in one atomic batch.

Every change is a compare-and-swap: the batch deletes the records exactly as they were planned and creates
them as they shall be. Route 53 refuses the whole batch when a record is no longer what the plan says, and
applies it at once otherwise, so there is neither a lost update nor a moment without an answer
(docs: ChangeResourceRecordSets, "either all or none of the changes in a batch take effect").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gateshift.errors import TrafficError
from gateshift.params.model import Route53Params
from gateshift.plan import Plan, Step
from gateshift.traffic.elb import plain_name
from gateshift.traffic.prepare import prepare_host
from gateshift.traffic.protocol import Changed, Receipt, Weights
from gateshift.traffic.records import (
    MANAGED_TYPES,
    Record,
    Wanted,
    describe,
    digest,
    host_weights,
    normal,
    restore_host,
    weight_host,
    weights_for,
)
from gateshift.traffic.route53_api import Conflict, Route53Api

if TYPE_CHECKING:
    from mypy_boto3_route53.client import Route53Client

__all__ = ["Route53Shifter"]

KIND = "traffic.route53"
_MAX_CHANGES = 1000  # quota of one batch: 1000 ResourceRecord elements
_ALIAS_TTL = 60  # seconds, of Elastic Load Balancing names (Route 53 developer guide, alias records)
_WAY_BACK = "`gateshift rollback` gives APISIX 100 % again; the snapshot in the journal restores the records"


class Route53Shifter:
    """Moves hosts between two load balancers by the weights ``apisix`` and ``istio``.

    *apisix_target* and *istio_target* may be empty when the cluster cannot be asked: reading and rolling
    back then still work, from the records alone. *clock* and *sleep* are in seconds.
    """

    def __init__(
        self,
        params: Route53Params,
        *,
        apisix_target: str,
        istio_target: str,
        migration: str = "",
        client: Route53Client | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        retry_for: float = 90.0,
    ) -> None:
        self._params = params
        self._wanted = Wanted(
            apisix_target=params.apisix_target or apisix_target,
            istio_target=params.istio_target or istio_target,
            record=params.record,
            ipv6=params.ipv6,
            ttl=int(params.ttl),
            target_zone_id=params.target_zone_id,
        )
        self._migration = migration
        self._clock = clock
        self._api = Route53Api(params, client=client, clock=clock, sleep=sleep, retry_for=retry_for)
        self._zone_id: str | None = None

    @property
    def name(self) -> str:
        """The mechanism's name in params."""
        return "route53"

    @property
    def zone_id(self) -> str:
        """The hosted zone's id, found by name once."""
        if self._zone_id is None:
            self._zone_id = self._api.find_zone()
        return self._zone_id

    def _records(self) -> dict[str, list[Record]]:
        out: dict[str, list[Record]] = {}
        for host in self._params.hosts:
            everything = [normal(r) for r in self._api.records(self.zone_id, host)]
            delegated = [r for r in everything if r["Type"] == "NS"]
            if delegated and host != self._params.zone:
                raise TrafficError(
                    f"{host} is delegated to another hosted zone by an NS record in {self._params.zone}; "
                    "records here are never asked for",
                    hint="set traffic.route53.zone to the zone that answers for this host",
                )
            out[host] = [r for r in everything if r["Type"] in MANAGED_TYPES]
        return out

    def read(self) -> Weights:
        """Read all hosts' weights; the percentage is None unless all agree on a whole number."""
        hosts = {h: host_weights(h, rs, self._wanted) for h, rs in self._records().items()}
        shares = {w.istio_percent for w in hosts.values()}
        share = shares.pop() if len(shares) == 1 else None
        whole = int(share) if share is not None and share == int(share) else None
        return Weights(whole, hosts)

    def names_at(self, target: str) -> list[str]:
        """Return every other name of the zone whose record points to load balancer *target*, any weight."""
        wanted = plain_name(target)
        found = set()
        for record in self._api.records(self.zone_id, None):
            values = [r["Value"] for r in record.get("ResourceRecords") or ()]
            values.append(record.get("AliasTarget", {}).get("DNSName", ""))
            if wanted in map(plain_name, values):
                found.add(record["Name"].replace("\\052", "*").rstrip("."))
        return sorted(found - set(self._params.hosts))

    def prepare_plan(self) -> Plan:
        """Plan the conversion of simple records to weighted ones, everybody staying on APISIX."""
        records = self._records()
        steps = [s for host, rs in records.items() for s in prepare_host(host, rs, self._wanted)]
        return self._plan("make the records weighted, APISIX keeps everybody", records, steps, None)

    def plan(self, percent: int, *, of: int = 100) -> Plan:
        """Plan *percent* of *of* parts for Istio on every host, in one batch."""
        low, high = weights_for(percent, of)
        records = self._records()
        steps = [s for host, rs in records.items() for s in weight_host(host, rs, self._wanted, percent, of)]
        unit = " %" if of == 100 else ""
        title = f"Istio {high}{unit}, APISIX {low}{unit} by DNS weight"
        return self._plan(title, records, steps, percent)

    def settle_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the TTL back that the records had before it was lowered (aliases have their target's)."""
        records = self._records()
        steps = []
        for host, rs in records.items():
            saved = [int(r["TTL"]) for r in snapshot.get("hosts", {}).get(host, ()) if "TTL" in r]
            for r in rs:
                if saved and "Weight" in r and "TTL" in r and r["TTL"] != max(saved):
                    target = f"{r['Name']} {r['Type']} {r['SetIdentifier']}"
                    after = {**r, "TTL": max(saved)}
                    steps.append(Step("set TTL", target, r, after, "as it was before the migration"))
        return self._plan("the TTL of before", records, steps, None)

    def check_access(self) -> None:
        """Raise unless a change would be allowed: an impossible one is sent, which Route 53 must refuse."""
        wrong = {
            "Name": self._params.hosts[0],
            "Type": "CNAME",
            "SetIdentifier": "gateshift-access-check",
            "Weight": 0,
            "TTL": 1,
            "ResourceRecords": [{"Value": "invalid.invalid"}],
        }
        try:
            # Deleting what does not exist is refused after the permission was checked, and changes nothing.
            self._api.change(self.zone_id, [{"Action": "DELETE", "ResourceRecordSet": wrong}], "access check")
        except Conflict:
            self._api.check_get_change()

    def snapshot(self) -> dict[str, Any]:
        """Return the managed records of all hosts, exactly."""
        return {
            "mechanism": self.name,
            "zone": self._params.zone,
            "zone_id": self.zone_id,
            "hosts": {host: list(rs) for host, rs in self._records().items()},
        }

    def restore_plan(self, snapshot: Mapping[str, Any]) -> Plan:
        """Plan the records back exactly as *snapshot* has them."""
        if snapshot.get("mechanism") != self.name or snapshot.get("zone_id") != self.zone_id:
            raise TrafficError(
                f"the snapshot is of {snapshot.get('mechanism')} zone {snapshot.get('zone_id')}, "
                f"not of {self.name} zone {self.zone_id}",
                hint="run with the params file the snapshot was taken with",
            )
        records = self._records()
        saved = snapshot["hosts"]
        steps = [s for h, rs in records.items() if h in saved for s in restore_host(h, rs, saved[h])]
        return self._plan("restore the records of the snapshot", records, steps, None)

    def _plan(
        self, title: str, records: Mapping[str, list[Record]], steps: list[Step], percent: int | None
    ) -> Plan:
        if len(steps) * 2 > _MAX_CHANGES:
            raise TrafficError(
                f"{len(steps)} records do not fit into one atomic batch of {_MAX_CHANGES} changes",
                hint="split traffic.route53.hosts over several migrations",
            )
        after = _applied(records, steps)
        inputs = {
            "zone": self._params.zone,
            "zone_id": self.zone_id,
            "percent": percent,
            "before": digest(records),
            "after": digest(after),
        }
        return Plan(KIND, f"{self._params.zone}: {title}", tuple(steps), _WAY_BACK, inputs)

    def set(self, plan: Plan) -> Receipt:
        """Carry out *plan* as one batch and read it back.

        Nothing is sent when the records already are as planned. When they are neither as planned nor as
        they were when the plan was made, somebody else changed them: refused, naming what differs.
        """
        if plan.kind != KIND or plan.inputs.get("zone_id") != self.zone_id:
            raise TrafficError(
                f"this plan ({plan.kind}, zone {plan.inputs.get('zone_id')}) is not for hosted zone "
                f"{self.zone_id}",
                hint="plan again with these params",
            )
        started = self._clock()
        before, after = plan.inputs["before"], plan.inputs["after"]
        records = self._records()
        now = digest(records)
        change_ids: tuple[str, ...] = ()
        if now != after:
            if now != before:
                raise _changed(plan, records)
            try:
                change_ids = (self._api.change(self.zone_id, _changes(plan.steps), self._comment(plan)),)
            except Conflict as conflict:
                # Either somebody was faster, or our own batch arrived although its answer was lost.
                records = self._records()
                if digest(records) != after:
                    raise _changed(plan, records, because=str(conflict)) from None
        accepted = self._clock()
        records = self._records()
        if digest(records) != after:
            raise _changed(plan, records, because="read back after the change")
        return Receipt(
            mechanism=self.name,
            plan_digest=plan.digest,
            change_ids=change_ids,
            accepted_at=accepted,
            took_s=accepted - started,
            changed=now != after,
            wait_out_s=_wait_out(plan.steps) if now != after else 0.0,
        )

    def confirm(self, receipt: Receipt) -> float:
        """Wait until every change is INSYNC on all of Route 53's servers; return seconds since acceptance."""
        for change_id in receipt.change_ids:
            self._api.wait_insync(change_id, receipt.accepted_at, self._params.insync_timeout)
        return max(0.0, self._clock() - receipt.accepted_at) if receipt.change_ids else 0.0

    def _comment(self, plan: Plan) -> str:
        return f"gateshift {self._migration} plan {plan.digest}".replace("  ", " ")[:256]


def _wait_out(steps: tuple[Step, ...]) -> float:
    """Return how long a longer TTL of before lives on in caches (an alias has its load balancer's 60 s)."""
    old = max((float(s.before.get("TTL", _ALIAS_TTL)) for s in steps if s.before), default=0.0)
    new = max((float(s.after.get("TTL", _ALIAS_TTL)) for s in steps if s.after), default=0.0)
    return old if old > new else 0.0


def _applied(records: Mapping[str, list[Record]], steps: list[Step]) -> dict[str, list[Record]]:
    out = {host: list(rs) for host, rs in records.items()}
    for step in steps:
        if step.before is not None:
            out[step.before["Name"]].remove(step.before)
    for step in steps:
        if step.after is not None:
            out[step.after["Name"]].append(step.after)
    return out


def _changes(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Deletions first: a weighted record cannot be made beside a simple one of the same name and type."""
    deletes = [{"Action": "DELETE", "ResourceRecordSet": s.before} for s in steps if s.before is not None]
    creates = [{"Action": "CREATE", "ResourceRecordSet": s.after} for s in steps if s.after is not None]
    return deletes + creates


def _changed(plan: Plan, records: Mapping[str, list[Record]], because: str = "") -> Changed:
    present = [r for rs in records.values() for r in rs]
    missing = [describe(s.before) for s in plan.steps if s.before is not None and s.before not in present]
    known = [r for s in plan.steps for r in (s.before, s.after)]
    found = [f"{r['Name']} {describe(r)}" for r in present if r not in known]
    what = f"the plan expected {missing[0]}" if missing else "other records of these hosts were changed"
    there = f"; there is {', '.join(found[:3])}" if found else ""
    tail = f" ({because})" if because else ""
    return Changed(
        f"the records were changed by somebody else since the plan: {what}{there}{tail}",
        hint="find out who else manages these records (external-dns, Terraform), then plan again",
    )
