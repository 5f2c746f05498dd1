"""The lab's strict Route 53 (moto for reading) on loopback, behind a door that fails on demand."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from defusedxml import ElementTree
from moto.backends import get_backend
from werkzeug.serving import make_server

from gateshift.lab.route53.service import Behaviour, Service
from gateshift.params.model import Route53Params
from gateshift.traffic.route53 import Route53Shifter

APISIX_LB = "apisix-lab.elb.us-east-1.amazonaws.com"
ISTIO_LB = "istio-lab.elb.us-east-1.amazonaws.com"
NLB_ZONE = "Z26RNL4JYFTOTI"
ZONE = "voiceassistant.com"
HOSTS = ("api.voiceassistant.com", "ws.voiceassistant.com", "grpc.voiceassistant.com")
_NS = {"r": "https://route53.amazonaws.com/doc/2013-04-01/"}


def refusal(code: str, message: str, status: str) -> tuple[str, bytes]:
    body = (
        '<?xml version="1.0"?><ErrorResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/">'
        f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
        "<RequestId>r-1</RequestId></ErrorResponse>"
    )
    return status, body.encode()


@dataclass
class Door:
    """WSGI in front of the service: records what is asked, and fails on demand.

    ``fault(method, path)`` may return (status, body) to answer instead; ``pending`` GetChange answers are
    PENDING first; ``cut_after`` answers are lost after the service has done the work.
    """

    app: Any
    fault: Callable[[str, str], tuple[str, bytes] | None] | None = None
    before_change: Callable[[], None] | None = None
    pending: int = 0
    cut_after: int = 0
    batches: list[list[tuple[str, str, str | None]]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.calls.append(f"{method} {path}")
        if self.fault and (answer := self.fault(method, path)):
            return self._answer(start, *answer)
        if path.startswith("/2013-04-01/change/") and self.pending > 0:
            self.pending -= 1
            body = (
                f'<GetChangeResponse xmlns="{_NS["r"]}"><ChangeInfo><Id>{path.rsplit("/")[-1]}</Id>'
                "<Status>PENDING</Status><SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo>"
                "</GetChangeResponse>"
            )
            return self._answer(start, "200 OK", body.encode())
        if method == "POST" and path.rstrip("/").endswith("/rrset"):
            raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if self.before_change:
                self.before_change()
            self._record(raw)
            environ["wsgi.input"] = io.BytesIO(raw)
            if self.cut_after:
                self.cut_after -= 1
                b"".join(self.app(environ, lambda *_: None))
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError("the network went away")
        return self.app(environ, start)

    @staticmethod
    def _answer(start: Any, status: str, body: bytes) -> list[bytes]:
        start(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def _record(self, raw: bytes) -> None:
        batch = []
        for change in ElementTree.fromstring(raw).iter(f"{{{_NS['r']}}}Change"):
            action, name, rtype, identifier = (
                change.findtext(f"r:{path}", namespaces=_NS)
                for path in (
                    "Action",
                    "ResourceRecordSet/r:Name",
                    "ResourceRecordSet/r:Type",
                    "ResourceRecordSet/r:SetIdentifier",
                )
            )
            batch.append((str(action), f"{name} {rtype}", identifier))
        self.batches.append(batch)


@dataclass
class Wire:
    """The server's address, its door, an admin client, and a shifter on a clock that sleeping moves."""

    url: str
    door: Door
    admin: Any
    zone_id: str
    now: float = 1_700_000_000.0
    slept: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    def shifter(
        self, *, apisix: str = APISIX_LB, istio: str = ISTIO_LB, retry_for: float = 90.0, **params: Any
    ) -> Route53Shifter:
        made = Route53Params.model_validate(
            {"zone": ZONE, "hosts": list(HOSTS), "endpoint_url": self.url, **params}
        )
        return Route53Shifter(
            made,
            apisix_target=apisix,
            istio_target=istio,
            migration="test",
            clock=lambda: self.now,
            sleep=self.sleep,
            retry_for=retry_for,
        )

    def put(self, *records: dict[str, Any], zone_id: str | None = None, action: str = "UPSERT") -> None:
        self.admin.change_resource_record_sets(
            HostedZoneId=zone_id or self.zone_id,
            ChangeBatch={"Changes": [{"Action": action, "ResourceRecordSet": r} for r in records]},
        )

    def simple_aliases(self, rtype: str = "A") -> None:
        self.put(*[alias(host, rtype) for host in HOSTS])

    def records(self) -> list[dict[str, Any]]:
        got = self.admin.list_resource_record_sets(HostedZoneId=self.zone_id)["ResourceRecordSets"]
        return [r for r in got if r["Type"] in ("A", "AAAA", "CNAME")]


def alias(host: str, rtype: str = "A", target: str = APISIX_LB, **more: Any) -> dict[str, Any]:
    where = {"HostedZoneId": NLB_ZONE, "DNSName": target, "EvaluateTargetHealth": False}
    return {"Name": host, "Type": rtype, "AliasTarget": where, **more}


@pytest.fixture(scope="session")
def _server() -> Iterator[tuple[str, Door]]:
    door = Door(None)
    server = make_server("127.0.0.1", 0, door, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", door
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def wire(_server: tuple[str, Door], monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    url, door = _server
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    get_backend("route53").reset()
    door.app = Service(Behaviour(pending_seconds=0.0))
    door.fault = door.before_change = None
    door.pending = door.cut_after = 0
    door.batches, door.calls = [], []
    admin = boto3.client(
        "route53",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="admin",
        aws_secret_access_key="admin",
    )
    zone = admin.create_hosted_zone(Name=ZONE, CallerReference="one")["HostedZone"]["Id"].rsplit("/")[-1]
    yield Wire(url, door, admin, zone)
    admin.close()
