"""traffic-split through the Admin API of the lab's APISIX stand-in, run as its own process."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from gateshift.apisix.admin import AdminClient
from gateshift.apisix.own_shift import without_own_shift
from gateshift.errors import TrafficError
from gateshift.params.model import ApisixParams, TranslateParams
from gateshift.params.traffic import TrafficSplitParams
from gateshift.traffic.protocol import Shifter
from gateshift.traffic.split import SplitShifter
from gateshift.translate import Target, translate
from tests.lab_dataplane.programs import program

KEY = "edd1c9f034335f136f87ad84b625c8f1"


def backend(name: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = f"{name} {self.headers['Host']}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    old, new = backend("old"), backend("istio")
    configuration = {
        "routes": [
            {
                "id": "catalog",
                "uri": "/catalog",
                "plugins": {"response-rewrite": {"headers": {"set": {"X-Own": "kept"}}}},
                "upstream": {"type": "roundrobin", "nodes": {f"127.0.0.1:{old.server_port}": 1}},
            },
            {
                "id": "plain",
                "uri": "/plain",
                "upstream": {"type": "roundrobin", "nodes": {f"127.0.0.1:{old.server_port}": 1}},
            },
        ]
    }
    file = Path(tmp_path_factory.mktemp("apisix")) / "apisix.yaml"
    file.write_text(json.dumps(configuration) + "\n#END\n")
    with program("oldgateway", "--config", str(file), env={"APISIX_ADMIN_KEY": KEY}) as ready:
        yield {**ready, "new_port": new.server_port}
    for server in (old, new):
        server.shutdown()
        server.server_close()


def shifter(lab: dict[str, Any], *, key: str = KEY, target: str = "127.0.0.1", **more: Any) -> SplitShifter:
    apisix = ApisixParams(admin_url=f"http://127.0.0.1:{lab['admin_port']}", admin_key=SecretStr(key))
    params = TrafficSplitParams.model_validate({"port": lab["new_port"], **more})
    return SplitShifter(params, apisix, istio_target=target)


@pytest.fixture
def clean(lab: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield lab
    one = shifter(lab)
    splits = {"catalog": None, "plain": None}
    one.set(one.restore_plan({"mechanism": "traffic-split", "splits": splits}))
    with admin(lab) as client:
        client.delete("upstreams/gateshift-istio")


def admin(lab: dict[str, Any]) -> AdminClient:
    return AdminClient(f"http://127.0.0.1:{lab['admin_port']}", KEY)


def ask(lab: dict[str, Any], path: str, times: int) -> Counter[str]:
    with httpx.Client(trust_env=False, headers={"host": "api.voiceassistant.com"}) as client:
        answers = [client.get(f"http://127.0.0.1:{lab['http_port']}{path}") for _ in range(times)]
    if path == "/catalog":
        assert {a.headers["x-own"] for a in answers} == {"kept"}, "the route's own plugins must keep running"
    assert {a.text.split()[1] for a in answers} == {"api.voiceassistant.com"}
    return Counter(a.text.split()[0] for a in answers)


@pytest.mark.slow
def test_requests_move_at_once_and_back(clean: dict[str, Any]) -> None:
    one = shifter(clean)
    assert isinstance(one, Shifter)
    assert one.read().istio_percent == 0
    assert not one.read().prepared
    with pytest.raises(TrafficError, match="no upstream gateshift-istio yet"):
        one.plan(50)
    one.set(one.prepare_plan())
    assert one.prepare_plan().empty
    assert ask(clean, "/catalog", 5) == {"old": 5}
    snapshot = json.loads(json.dumps(one.snapshot()))
    receipt = one.set(one.plan(50))
    assert receipt.changed
    assert one.confirm(receipt) < 5
    assert one.read().istio_percent == 50
    seen = ask(clean, "/catalog", 60)
    assert 10 <= seen["istio"] <= 50  # binomial(60, 0.5): outside with probability 1e-7
    one.set(one.plan(100))
    assert ask(clean, "/plain", 10) == {"istio": 10}
    one.set(one.plan(0))
    assert ask(clean, "/plain", 10) == {"old": 10}
    one.set(one.restore_plan(snapshot))
    with admin(clean) as client:
        plugins = client.get("routes/catalog")["value"]["plugins"]
    assert set(plugins) == {"response-rewrite"}


def test_a_shift_in_progress_is_no_part_of_the_source(clean: dict[str, Any]) -> None:
    one = shifter(clean)

    def source() -> dict[str, Any]:
        with admin(clean) as client:
            found = without_own_shift(client.read())
        return {f"{r.kind}/{r.id}": _stable(r.spec) for r in found}

    before = source()
    assert set(before) == {"routes/catalog", "routes/plain"}
    one.set(one.prepare_plan())
    assert source() == before, "an upstream that only the shift uses"
    one.set(one.plan(25))
    assert source() == before
    with admin(clean) as client:
        configuration = without_own_shift(client.read())
    (warning,) = [f.message for f in configuration.findings if "shift in progress" in f.message]
    assert warning.endswith("catalog, plain")
    translation = translate(configuration, TranslateParams(), Target(version="1.31", namespace="app"))
    assert "gateshift-istio" not in json.dumps(translation.objects)


def _stable(spec: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in spec.items() if key != "update_time"}
    return out if out.get("plugins") else {key: value for key, value in out.items() if key != "plugins"}


def test_twice_is_once_and_changes_by_others_are_refused(clean: dict[str, Any]) -> None:
    one = shifter(clean)
    one.set(one.prepare_plan())
    plan = one.plan(10)
    assert one.set(plan).changed
    assert not one.set(plan).changed
    later = one.plan(25)
    one.set(one.plan(75))
    with pytest.raises(TrafficError, match="changed by somebody else"):
        one.set(later)
    assert one.read().istio_percent == 75


def test_a_foreign_split_is_refused_but_rollback_goes_past_it(clean: dict[str, Any]) -> None:
    one = shifter(clean)
    one.set(one.prepare_plan())
    one.set(one.plan(25))
    foreign = {"rules": [{"weighted_upstreams": [{"weight": 1}]}]}
    with admin(clean) as client:
        client.patch("routes/plain", {"plugins": {"traffic-split": foreign}})
    assert one.read().istio_percent is None
    with pytest.raises(TrafficError, match="route plain has a traffic-split of its own"):
        one.plan(50)
    one.set(one.plan(0))
    assert one.read().hosts["catalog"].istio_percent == 0
    with admin(clean) as client:
        assert client.get("routes/plain")["value"]["plugins"]["traffic-split"] == foreign


def test_wrong_key_and_unknown_route_and_no_target(lab: dict[str, Any]) -> None:
    with pytest.raises(TrafficError, match="refused the key") as caught:
        shifter(lab, key="wrong").read()
    assert "admin_key" in caught.value.hint
    with pytest.raises(TrafficError, match="no route nothere"):
        shifter(lab, routes=["nothere"]).read()
    with pytest.raises(TrafficError, match="no address"):
        shifter(lab, target="").prepare_plan()
    with pytest.raises(TrafficError, match="through APISIX's Admin API"):
        SplitShifter(TrafficSplitParams(), ApisixParams(files=("a.yaml",)), istio_target="")
