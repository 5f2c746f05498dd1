"""The Cloudflare shifter with the official library against its API's wire format on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateshift.errors import TrafficError
from gateshift.params.model import CloudflareParams
from gateshift.traffic.cloudflare import TOKEN_SCOPES, CloudflareShifter
from gateshift.traffic.protocol import Shifter

TOKEN = "cf-secret-token"
HOSTS = ("api.voiceassistant.com", "ws.voiceassistant.com")


@dataclass
class Api:
    balancers: dict[str, dict[str, Any]] = field(default_factory=dict)
    pools: list[dict[str, Any]] = field(default_factory=list)
    fault: Callable[[str, str], int] = lambda *_: 0
    writes: int = 0
    url: str = ""
    token: dict[str, Any] = field(default_factory=lambda: {"id": "t1", "status": "active"})
    owner: str = "user"
    calls: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append(f"{method} {path.partition('?')[0]}")
        if status := self.fault(method, path):
            return status, None
        parts = path.partition("?")[0].strip("/").split("/")
        refused: tuple[int, Any] = (401, None)
        fixed = {
            "user/tokens/verify": (200, self.token) if self.owner == "user" else refused,
            "accounts/a1/tokens/verify": (200, self.token) if self.owner == "account" else refused,
            "zones": (200, [{"id": "z1", "name": "voiceassistant.com", "account": {"id": "a1"}}]),
            "accounts/a1/load_balancers/pools": (200, self.pools),
            "zones/z1/load_balancers": (200, list(self.balancers.values())),
        }
        if (there := fixed.get("/".join(parts))) is not None:
            return there
        if (
            method == "PATCH"
            and parts[:3] == ["zones", "z1", "load_balancers"]
            and parts[3] in self.balancers
        ):
            self.writes += 1
            self.balancers[parts[3]].update(body)
            return 200, self.balancers[parts[3]]
        return 404, None


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api(
        balancers={
            f"lb{i}": {"id": f"lb{i}", "name": h, "default_pools": ["p-old"], "steering_policy": "off"}
            for i, h in enumerate(HOSTS)
        },
        pools=[{"id": "p-old", "name": "apisix"}, {"id": "p-new", "name": "istio"}],
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            page = "page=2" in self.path
            status, result = api.answer(self.command, self.path, json.loads(raw) if raw else None)
            if page and isinstance(result, list):
                result = []
            good = status == 200
            answer = {"success": good, "errors": [], "messages": [], "result": result}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PATCH = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    yield api
    server.shutdown()
    server.server_close()


def shifter(api: Api, **more: Any) -> CloudflareShifter:
    params = {
        "zone": "voiceassistant.com",
        "hosts": list(HOSTS),
        "apisix_pool": "apisix",
        "istio_pool": "istio",
    }
    made = CloudflareParams.model_validate({**params, "api_token": TOKEN, "base_url": api.url, **more})
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    return CloudflareShifter(made, clock=lambda: clock[0], sleep=sleep)


def test_prepare_shift_and_exact_restore(api: Api) -> None:
    one = shifter(api)
    assert isinstance(one, Shifter)
    assert one.read().istio_percent == 0
    snapshot = json.loads(json.dumps(one.snapshot()))
    one.set(one.prepare_plan())
    assert one.read().istio_percent == 0
    assert one.read().prepared
    assert one.prepare_plan().empty
    for percent in (10, 25, 50, 75, 100, 0):
        assert one.set(one.plan(percent)).changed
        assert one.read().istio_percent == percent
        steering = api.balancers["lb0"]["random_steering"]
        assert steering["pool_weights"] == {"p-old": (100 - percent) / 100, "p-new": percent / 100}
    writes = api.writes
    assert not one.set(one.plan(0)).changed
    assert api.writes == writes
    one.set(one.restore_plan(snapshot))
    assert api.balancers["lb0"]["default_pools"] == ["p-old"]
    assert api.balancers["lb0"]["steering_policy"] == "off"


def test_the_token_lacks_a_scope(api: Api) -> None:
    api.fault = lambda *_: 403
    with pytest.raises(TrafficError, match="refuses the token") as caught:
        shifter(api).read()
    assert "Load Balancers: Edit" in caught.value.hint
    assert TOKEN not in str(caught.value) + caught.value.hint


def test_5xx_and_throttling_are_tried_again_and_given_up(api: Api) -> None:
    answers = iter([502, 429, 520])
    api.fault = lambda *_: next(answers, 0)
    assert shifter(api).read().istio_percent == 0
    api.fault = lambda *_: 503
    with pytest.raises(TrafficError, match="kept answering 503"):
        shifter(api).read()


def test_changed_by_somebody_else(api: Api) -> None:
    one = shifter(api)
    one.set(one.prepare_plan())
    plan = one.plan(10)
    api.balancers["lb1"]["random_steering"] = {"pool_weights": {"p-old": 0.2, "p-new": 0.8}}
    writes = api.writes
    with pytest.raises(TrafficError, match="changed by somebody else"):
        one.set(plan)
    assert api.writes == writes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default_pools": ["p-old", "third"]}, "also uses pool third"),
        ({"region_pools": {"WEU": ["p-old"]}}, "region_pools"),
        ({"session_affinity": "cookie"}, "session affinity"),
    ],
)
def test_what_passes_by_the_weights_is_refused(api: Api, change: dict[str, Any], message: str) -> None:
    api.balancers["lb0"].update(change)
    one = shifter(api)
    assert one.read().istio_percent is None
    with pytest.raises(TrafficError, match=message):
        one.prepare_plan()
    with pytest.raises(TrafficError, match=message):
        one.plan(10)


def test_missing_pool_and_missing_load_balancer(api: Api) -> None:
    with pytest.raises(TrafficError, match="no pool nothere"):
        shifter(api, istio_pool="nothere").read()
    with pytest.raises(TrafficError, match="same pool"):
        shifter(api, istio_pool="p-old").read()
    with pytest.raises(TrafficError, match="no load balancer x"):
        shifter(api, hosts=["x.voiceassistant.com"]).read()


@pytest.mark.parametrize("owner", ["user", "account"])
def test_access_is_checked_without_changing_anything(api: Api, owner: str) -> None:
    api.owner = owner
    before = json.loads(json.dumps(api.balancers))
    shifter(api).check_access()
    assert api.balancers == before
    assert api.writes == 0
    assert api.calls[-1] == f"PATCH /zones/z1/load_balancers/{'0' * 32}"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({"id": "t1", "status": "expired"}, "token is expired"),
        ({"id": "t1", "status": "disabled"}, "token is disabled"),
        ({"id": "t1", "status": "active", "expires_on": "1970-01-01T05:00:00Z"}, "token ends at 1970-01-01"),
    ],
)
def test_a_token_that_would_not_last_is_refused(api: Api, token: dict[str, Any], message: str) -> None:
    api.token = token
    with pytest.raises(TrafficError, match=message):
        shifter(api).check_access()
    assert not any(call.startswith("PATCH") for call in api.calls)


def test_a_token_that_lasts_is_accepted(api: Api) -> None:
    api.token = {"id": "t1", "status": "active", "expires_on": "1970-01-03T00:00:00Z"}
    shifter(api).check_access()


# Accepted permissions as Cloudflare's API reference lists them, endpoint by endpoint; verifying needs none.
NEEDS = {
    ("GET", "/zones"): "Zone: Zone: Read",
    ("GET", "/accounts/a1/load_balancers/pools"): "Account: Load Balancing: Monitors And Pools: Read",
    ("GET", "/zones/z1/load_balancers"): "Zone: Load Balancers: Edit",
    ("PATCH", "/zones/z1/load_balancers/*"): "Zone: Load Balancers: Edit",
}


def allowing(scopes: set[str]) -> Callable[[str, str], int]:
    def decide(method: str, path: str) -> int:
        path = path.partition("?")[0]
        for (verb, where), scope in NEEDS.items():
            if verb == method and (where == path or (where.endswith("*") and path.startswith(where[:-1]))):
                return 0 if scope in scopes else 403
        return 0 if path == "/user/tokens/verify" else 403

    return decide


def test_the_documented_scopes_are_sufficient_and_each_is_needed(api: Api) -> None:
    api.fault = allowing(set(TOKEN_SCOPES))
    one = shifter(api)
    one.check_access()
    one.set(one.prepare_plan())
    one.set(one.plan(40))
    one.set(one.plan(0))
    for scope in TOKEN_SCOPES:
        api.fault = allowing(set(TOKEN_SCOPES) - {scope})
        with pytest.raises(TrafficError, match="refuses the token"):
            shifter(api).check_access()


def test_a_token_that_may_only_read_is_noticed_in_preflight(api: Api) -> None:
    api.fault = lambda method, _: 403 if method == "PATCH" else 0
    with pytest.raises(TrafficError, match=r"may be edited.*refuses the token"):
        shifter(api).check_access()
