"""The outside world of a migration, in its own process: Route 53, API server and Prometheus at the wire.

Route 53 is the lab's strict service; the API server keeps the Lease. Requests flow at a fixed rate and split
as the DNS weights are at that moment. Time is whatever the newest query says, so that runs may simulate it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.backends import get_backend
from werkzeug.serving import make_server

from gateshift.lab.route53.service import Behaviour, Service
from tests.cluster.conftest import FakeApi, _handler
from tests.traffic.conftest import APISIX_LB, ISTIO_LB, ZONE, Door, alias, refusal

HOST = "api.voiceassistant.com"
RATE = 2000.0
EDGES = ("10", "100", "1000", "+Inf")


class Traffic:
    """Counters of both gateways by time."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float, float, float]] = []  # time, istio, of it errors, apisix
        self.bad_weight: int | None = None
        self.away = False

    def at(self, time: float, weight: float) -> tuple[float, float, float]:
        if not self.points:
            self.points.append((time, 5000.0, 5.0, 90000.0))
        last = self.points[-1]
        if time > last[0]:
            passed = RATE * (time - last[0])
            istio = passed * weight / 100.0
            bad = 0.2 if self.bad_weight == weight else 0.0001
            self.points.append((time, last[1] + istio, last[2] + istio * bad, last[3] + passed - istio))
        known = next((p for p in reversed(self.points) if p[0] <= time), self.points[0])
        return known[1:]


class World:
    """One address: ``/2013-04-01`` is Route 53, ``/api/v1/query`` Prometheus, ``/world`` the test's own."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.reset()

    def reset(self) -> None:
        get_backend("route53").reset()
        for key in [k for k in self.api.objects if k[1] == "leases"]:
            del self.api.objects[key]
        self.door = Door(Service(Behaviour(pending_seconds=0.0)))
        self.traffic = Traffic()
        self.changes: list[int] = []
        self.now_weight = 0
        self.zone = ""
        self.away: dict[str, tuple[float, float]] = {}
        self.begun: float | None = None

    def trouble(self, given: dict[str, Any]) -> None:
        """Befall the next run: spans of seconds from its first query under weights, counts for DNS."""
        self.away, self.begun = given.get("away", {}), None
        self.door.pending = given.get("pending", 0)
        refused = iter([refusal("Throttling", "Rate exceeded", "400 Bad Request")] * given.get("throttle", 0))
        self.door.fault = lambda method, _: next(refused, None) if method == "POST" else None

    def is_away(self, system: str, time: float) -> bool:
        """Return whether *system* does not answer at *time*."""
        begin, end = self.away.get(system, (0.0, 0.0))
        return self.begun is not None and begin <= time - self.begun < end

    def prepare(self, url: str) -> None:
        self.admin = boto3.client(
            "route53",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
        )
        made = self.admin.create_hosted_zone(Name=ZONE, CallerReference="one")
        self.zone = made["HostedZone"]["Id"].rsplit("/")[-1]
        change = {"Action": "UPSERT", "ResourceRecordSet": alias(HOST)}
        self.admin.change_resource_record_sets(HostedZoneId=self.zone, ChangeBatch={"Changes": [change]})
        self.changes.clear()

    def weight(self) -> int:
        found = self.admin.list_resource_record_sets(HostedZoneId=self.zone)["ResourceRecordSets"]
        by_target = {
            r["AliasTarget"]["DNSName"].rstrip("."): r["Weight"] for r in found if r.get("Weight") is not None
        }
        high = sum(w for target, w in by_target.items() if ISTIO_LB in target)
        low = sum(w for target, w in by_target.items() if APISIX_LB in target)
        return round(100 * high / (high + low)) if high + low else 0

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/2013-04-01"):
            answer = self.door(environ, start)
            if environ["REQUEST_METHOD"] == "POST" and path.rstrip("/").endswith("/rrset") and self.zone:
                answer = list(answer)
                self.changes.append(self.weight())
                self.now_weight = self.changes[-1]
            return answer
        raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        if path == "/world/reset":
            self.reset()
            self.prepare(f"http://{environ['HTTP_HOST']}")
            self.traffic.bad_weight = json.loads(raw)["bad_weight"]
            return self._answer(start, {})
        if path == "/world/trouble":
            self.trouble(json.loads(raw))
            return self._answer(start, {})
        if path == "/world":
            now = self.traffic.points[-1][0] if self.traffic.points else 0.0
            return self._answer(start, {"weight": self.weight(), "changes": self.changes, "now": now})
        form = parse_qs(raw)
        asked = float(form["time"][0])
        if self.begun is None and self.now_weight > 0:
            self.begun = asked
        if self.is_away("metrics", asked):
            self.traffic.at(asked, self.now_weight)
            start("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        found = self.series(form["query"][0], asked)
        data = {"resultType": "vector", "result": found}
        return self._answer(start, {"status": "success", "data": data})

    @staticmethod
    def _answer(start: Any, body: object) -> list[bytes]:
        data = json.dumps(body).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
        return [data]

    def series(self, query: str, time: float) -> list[dict[str, Any]]:
        istio, errors, apisix = self.traffic.at(time, self.now_weight)
        istio_side = "istio" in query
        total, bad = (istio, errors) if istio_side else (apisix, apisix * 0.0001)
        labels = {"job": "gw", "instance": "istio" if istio_side else "apisix"}
        if istio_side:
            labels["reporter"] = "source"
        if "timestamp(" in query:
            return [{"metric": labels, "value": [time, str(time)]}]
        if query.startswith("up") or "up{" in query:
            return [{"metric": labels, "value": [time, "1"]}]
        if "_bucket" in query:
            parts = zip(EDGES, (0.2, 0.98, 1.0, 1.0), strict=True)
            return [{"metric": {**labels, "le": e}, "value": [time, str(total * p)]} for e, p in parts]
        key = "response_code" if istio_side else "code"
        counts = {"200": total - bad, "503": bad}
        return [{"metric": {**labels, key: c}, "value": [time, str(v)]} for c, v in counts.items()]


def main() -> None:
    """Serve until the standard input ends; print the two addresses as JSON first."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    api = FakeApi()
    api.add("Namespace", "kube-system", metadata={"uid": "cluster-uid"})
    world = World(api)

    class Cluster(_handler(api)):  # type: ignore[misc]  # made by a function
        def parse_request(self) -> bool:
            now = world.traffic.points[-1][0] if world.traffic.points else 0.0
            if not super().parse_request():
                return False
            if world.is_away("api", now):
                self.send_error(503)
                return False
            return True

    cluster = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    cluster.daemon_threads = True
    server = make_server("127.0.0.1", 0, world, threaded=True)
    for one in (cluster, server):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    world.prepare(url)
    print(json.dumps({"url": url, "api": f"http://127.0.0.1:{cluster.server_port}"}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
