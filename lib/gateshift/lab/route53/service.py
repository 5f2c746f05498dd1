"""The wrapped server: a WSGI application that answers changes itself and passes the rest to moto."""

from __future__ import annotations

import json
import math
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qs

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.route53.models import RecordSet, route53_backends

from gateshift.lab.route53 import batch, wire

__all__ = ["Behaviour", "Service"]

Start = Callable[..., Any]
_RRSET = re.compile(r"/2013-04-01/hostedzone/([^/]+)/rrset/?")
_CHANGE = re.compile(r"/2013-04-01/change/([^/]+)")
_FIELDS = {  # of boto3 -> attribute of moto's RecordSet
    "Name": "name",
    "Type": "type",
    "TTL": "ttl",
    "ResourceRecords": "records",
    "SetIdentifier": "set_identifier",
    "Weight": "weight",
    "Region": "region",
    "HealthCheckId": "health_check_id",
    "AliasTarget": "alias_target",
    "Failover": "failover",
    "GeoLocation": "geo_location",
    "MultiValueAnswer": "multi_value_answer",
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the service behaves; changed at ``PUT /lab/faults``.

    *pending_seconds*: from PENDING to INSYNC. *throttle_per_second*: requests a second before Throttling
    (the real service allows 5 an account; 0 is no limit). *denied*: IAM actions refused with AccessDenied
    (``*`` for all). *never_insync*: changes stay PENDING. *prior_not_complete*: each change is refused with
    PriorRequestNotComplete. *fail_status*: every request is answered with this HTTP status (0: no fault).
    """

    pending_seconds: float = 2.0
    throttle_per_second: float = 0.0
    denied: tuple[str, ...] = ()
    never_insync: bool = False
    prior_not_complete: bool = False
    fail_status: int = 0

    def changed(self, data: Mapping[str, Any]) -> Behaviour:
        """Return this with the values of a control request; raises ValueError for an unknown key."""
        unknown = sorted(set(data) - {f.name for f in fields(self)})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}")
        values: dict[str, Any] = {k: tuple(v) if k == "denied" else v for k, v in data.items()}
        return replace(self, **values)


@dataclass(slots=True)
class _Pending:
    """One accepted change: *insync* is when it takes effect (monotonic seconds, infinite while held)."""

    id: str
    zone: str
    submitted: float
    insync: float
    records: tuple[batch.Record, ...]
    summary: tuple[str, ...]


def _plain(record: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, attribute in _FIELDS.items():
        value = getattr(record, attribute)
        if value is None or value in ([], ""):
            continue
        if name == "TTL":
            value = int(value)
        elif name == "ResourceRecords":
            value = [one["Value"] if isinstance(one, dict) else one for one in value]
        elif name == "Name":
            value = str(value).lower().rstrip(".") + "."
        out[name] = value
    return out


class Service:
    """WSGI application. Thread-safe: one lock around the state, requests are short."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._initial = behaviour
        self.behaviour = behaviour
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._backend = route53_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._lock = threading.RLock()
        self._changes: dict[str, _Pending] = {}
        self._published: dict[str, tuple[batch.Record, ...]] = {}
        self._recent: deque[float] = deque()

    def seed(self, zone: str, records: Iterable[Mapping[str, Any]]) -> str:
        """Create a public zone with records that are in force at once; return its id."""
        with self._lock:
            created = self._backend.create_hosted_zone(zone.rstrip(".") + ".", private_zone=False)
            identifier = str(created.resource_id)
            existing = tuple(_plain(one) for one in created.rrsets)
            changes = tuple(wire.Change("CREATE", one) for one in records)
            after = batch.apply(existing, changes, zone.rstrip(".") + ".")
            created.rrsets = [RecordSet(dict(one)) for one in after]
            self._published[identifier] = after
        return identifier

    # -- requests

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Serve one request."""
        path = str(environ.get("PATH_INFO", ""))
        if path.startswith("/lab/"):
            return self._lab(environ, start, path)
        request_id = str(uuid.uuid4())
        try:
            return self._aws(environ, start, path)
        except wire.Refused as refused:
            document = wire.error(refused.code, refused.message, request_id)
            return _send(start, refused.status, document, "text/xml", request_id)

    def _aws(self, environ: dict[str, Any], start: Start, path: str) -> Iterable[bytes]:
        method = str(environ["REQUEST_METHOD"])
        change, found = _RRSET.fullmatch(path), _CHANGE.fullmatch(path)
        self._guard(_action(method, path), path)
        if change and method == "POST":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(length)
            document = self._change(change[1], wire.batch(body))
            return _send(start, 200, document, "text/xml", str(uuid.uuid4()))
        if found and method == "GET":
            return _send(start, 200, self._status(found[1]), "text/xml", str(uuid.uuid4()))
        result: Iterable[bytes] = self._moto(environ, start)
        return result

    def _guard(self, action: str, path: str) -> None:
        """Apply the faults that come before any work."""
        behaviour = self.behaviour
        if behaviour.fail_status:
            raise wire.Refused("ServiceUnavailable", "Service is unavailable", behaviour.fail_status)
        if behaviour.throttle_per_second:
            now = time.monotonic()
            with self._lock:
                while self._recent and now - self._recent[0] > 1.0:
                    self._recent.popleft()
                if len(self._recent) >= behaviour.throttle_per_second:
                    raise wire.Refused("Throttling", "Rate exceeded")
                self._recent.append(now)
        if "*" in behaviour.denied or action in behaviour.denied:
            zone = re.search(r"/(hostedzone|change)/([^/]+)", path)
            resource = f"arn:aws:route53:::{zone[1]}/{zone[2]}" if zone else "*"
            raise wire.Refused(
                "AccessDenied",
                f"User: arn:aws:iam::{DEFAULT_ACCOUNT_ID}:user/gateshift is not authorized to perform: "
                f"route53:{action} on resource: {resource} because no identity-based policy allows the "
                f"route53:{action} action",
                403,
            )

    def _change(self, zone_id: str, changes: tuple[wire.Change, ...]) -> bytes:
        with self._lock:
            zone = self._backend.zones.get(zone_id)
            if zone is None:
                raise wire.Refused("NoSuchHostedZone", f"No hosted zone found with ID: {zone_id}", 404)
            if self.behaviour.prior_not_complete:
                raise wire.Refused(
                    "PriorRequestNotComplete",
                    "The request was rejected because Route 53 was still processing a prior request.",
                )
            before = tuple(_plain(one) for one in zone.rrsets)
            self._published.setdefault(zone_id, before)
            after = batch.apply(before, changes, str(zone.name).lower().rstrip(".") + ".")
            zone.rrsets = [RecordSet(dict(one)) for one in after]
            held = self.behaviour.never_insync
            pending = _Pending(
                id="C" + uuid.uuid4().hex[:20].upper(),
                zone=zone_id,
                submitted=time.time(),
                insync=math.inf if held else time.monotonic() + self.behaviour.pending_seconds,
                records=after,
                summary=tuple(f"{one.action} {' '.join(batch.key(one.record))}".strip() for one in changes),
            )
            self._changes[pending.id] = pending
            return wire.change_info("ChangeResourceRecordSets", pending.id, "PENDING", pending.submitted)

    def _status(self, change_id: str) -> bytes:
        with self._lock:
            found = self._changes.get(change_id)
            if found is None:
                raise wire.Refused(
                    "NoSuchChange", f"A change with the specified change ID {change_id} does not exist.", 404
                )
            status = "INSYNC" if found.insync <= time.monotonic() else "PENDING"
            return wire.change_info("GetChange", change_id, status, found.submitted)

    # -- the lab's own endpoints

    def answers(self, host: str | None = None, kind: str = "A") -> dict[str, Any]:
        """What resolvers are told now: per host its targets with weights, from INSYNC changes only.

        A weight of zero is never answered, unless all are zero: then Route 53 answers each equally.
        """
        out: dict[str, Any] = {}
        for record in self._in_force():
            name = str(record["Name"]).rstrip(".")
            if record["Type"] not in {kind, "CNAME"} or (host and name != host.rstrip(".").lower()):
                continue
            targets = (
                [str(record["AliasTarget"]["DNSName"])]
                if "AliasTarget" in record
                else [str(one) for one in record.get("ResourceRecords", ())]
            )
            entry = out.setdefault(name, {"ttl": record.get("TTL"), "answers": []})
            entry["answers"] += [
                {
                    "target": target.rstrip("."),
                    "weight": record.get("Weight", 1),
                    "set_identifier": record.get("SetIdentifier"),
                }
                for target in targets
            ]
        for entry in out.values():
            if not any(one["weight"] for one in entry["answers"]):
                for one in entry["answers"]:
                    one["weight"] = 1
        return out

    def _in_force(self) -> list[batch.Record]:
        now = time.monotonic()
        with self._lock:
            for one in self._changes.values():  # in the order of acceptance
                if one.insync <= now and one.records:
                    self._published[one.zone] = one.records
                    one.records = ()
            return [record for records in self._published.values() for record in records]

    def _set(self, behaviour: Behaviour) -> None:
        with self._lock:
            if self.behaviour.never_insync and not behaviour.never_insync:
                for one in self._changes.values():
                    if math.isinf(one.insync):
                        one.insync = time.monotonic() + behaviour.pending_seconds
            self.behaviour = behaviour

    def _lab(self, environ: dict[str, Any], start: Start, path: str) -> Iterable[bytes]:
        method = str(environ["REQUEST_METHOD"])
        query = {k: v[-1] for k, v in parse_qs(str(environ.get("QUERY_STRING", ""))).items()}
        status, data = 200, None  # type: int, Any
        match method, path:
            case "GET", "/lab/answers":
                data = self.answers(query.get("host"), query.get("type", "A"))
            case "GET", "/lab/changes":
                with self._lock:
                    data = [
                        {
                            "id": one.id,
                            "zone": one.zone,
                            "submitted": one.submitted,
                            "changes": one.summary,
                            "status": "INSYNC" if one.insync <= time.monotonic() else "PENDING",
                        }
                        for one in self._changes.values()
                    ]
            case "GET", "/lab/faults":
                data = asdict(self.behaviour)
            case "PUT" | "POST", "/lab/faults":
                body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                try:
                    self._set(self.behaviour.changed(json.loads(body or b"{}")))
                    data = asdict(self.behaviour)
                except (ValueError, TypeError) as error:
                    status, data = 400, {"error": str(error)}
            case "DELETE", "/lab/faults":
                self._set(self._initial)
                data = asdict(self.behaviour)
            case _:
                status, data = 404, {"error": "use /lab/answers, /lab/changes or /lab/faults"}
        return _send(start, status, json.dumps(data).encode(), "application/json", str(uuid.uuid4()))


def _action(method: str, path: str) -> str:
    """The IAM action of a request (those that gateshift needs; others by their path's last word)."""
    if _RRSET.fullmatch(path):
        return "ChangeResourceRecordSets" if method == "POST" else "ListResourceRecordSets"
    if _CHANGE.fullmatch(path):
        return "GetChange"
    if path.endswith("/hostedzonesbyname"):
        return "ListHostedZonesByName"
    if path.endswith("/hostedzone"):
        return "CreateHostedZone" if method == "POST" else "ListHostedZones"
    if "/hostedzone/" in path:
        return {"GET": "GetHostedZone", "DELETE": "DeleteHostedZone"}.get(method, "UpdateHostedZoneComment")
    return path.rsplit("/", 1)[-1]


def _send(start: Start, status: int, body: bytes, content: str, request_id: str) -> Iterable[bytes]:
    reason = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}.get(status, "Error")
    start(
        f"{status} {reason}",
        [
            ("Content-Type", content),
            ("Content-Length", str(len(body))),
            ("x-amzn-RequestId", request_id),
        ],
    )
    return [body]
