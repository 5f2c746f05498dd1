"""Backends: what they say, and the faults and accounts that a rehearsal relies on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gateshift.lab.backends import messages
from gateshift.lab.backends.faults import Faults, Gateway, origin

from .conftest import Plane

ENVOY = {"x-envoy-attempt-count": "1", "x-real-ip": "127.0.0.1"}
APISIX = {"x-real-ip": "127.0.0.1"}


def ask(plane: Plane, headers: dict[str, str], service: str = "catalog-service") -> httpx.Response:
    url = f"http://127.0.0.1:{plane.backends['ports'][service]}/api/v1/catalog/x"
    return plane.client.get(url, headers=headers)


def put(plane: Plane, **fault: Any) -> httpx.Response:
    return plane.client.put(f"{plane.faults}/faults", json=fault)


def test_origin_is_told_by_what_gateways_add() -> None:
    assert origin(["host", "x-real-ip", "x-envoy-attempt-count"]) is Gateway.ISTIO
    assert origin(["host", "x-forwarded-host"]) is Gateway.APISIX
    assert origin(["host", "user-agent"]) is Gateway.DIRECT


def test_a_fault_hits_only_its_gateway_and_is_accounted_exactly(plane: Plane) -> None:
    plane.client.delete(f"{plane.faults}/stats")
    put(plane, service="*", gateway="istio", error_ratio=0.3, status=503).raise_for_status()
    new = Counter(ask(plane, ENVOY).status_code for _ in range(100))
    old = Counter(ask(plane, APISIX).status_code for _ in range(30))
    assert set(old) == {200}
    assert 10 <= new[503] <= 55
    stats = plane.client.get(f"{plane.faults}/stats").json()
    assert stats["gateways"]["istio"] == {"requests": 100, "errors": new[503], "cut": 0, "hung": 0}
    assert stats["services"]["catalog-service"]["apisix"]["errors"] == 0


def test_latency_refuse_and_hang(plane: Plane) -> None:
    put(plane, service="catalog-service", latency_ms=300)
    assert ask(plane, ENVOY).elapsed.total_seconds() >= 0.3
    put(plane, service="catalog-service", refuse=True)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(plane, ENVOY)
    put(plane, service="catalog-service", hang=True)
    url = f"http://127.0.0.1:{plane.backends['ports']['catalog-service']}/x"
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, timeout=0.3)
    plane.client.delete(f"{plane.faults}/faults", params={"service": "catalog-service"})
    assert ask(plane, ENVOY).status_code == 200


def test_the_most_specific_fault_holds() -> None:
    faults = Faults(["a", "b"])
    faults.put({"error_ratio": 0.1})
    faults.put({"service": "a", "error_ratio": 0.2})
    faults.put({"service": "a", "gateway": "istio", "error_ratio": 0.3})
    ratios = [
        found.error_ratio
        for service, gateway in (("a", "istio"), ("a", "apisix"), ("b", "istio"))
        if (found := faults.find(service, gateway))
    ]
    assert ratios == [0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    "bad",
    [{"error_ratio": 5}, {"status": 200}, {"service": "nobody"}, {"gateway": "nginx"}, {"eror_ratio": 0.1}],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(plane: Plane, bad: dict[str, Any]) -> None:
    assert put(plane, **bad).status_code == 400
    assert plane.client.get(f"{plane.faults}/faults").json() == []


def test_grpc_reflection_lists_the_service(plane: Plane) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{plane.backends['ports']['identity-grpc']}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert messages.SERVICE in database.get_services()
        found = DescriptorPool(database).FindServiceByName(messages.SERVICE)
        assert [m.name for m in found.methods] == ["GetUser"]


def test_grpc_faults_are_accounted(plane: Plane) -> None:
    put(plane, service="identity-grpc", gateway="istio", error_ratio=1)
    plane.client.delete(f"{plane.faults}/stats")
    with grpc.insecure_channel(f"127.0.0.1:{plane.backends['ports']['identity-grpc']}") as channel:
        call = channel.unary_unary(
            messages.METHOD,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=messages.User.FromString,
        )
        assert call(messages.GetUserRequest(id="1"), timeout=5).id == "1"
        with pytest.raises(grpc.RpcError):
            call(messages.GetUserRequest(id="1"), metadata=(("x-envoy-attempt-count", "1"),), timeout=5)
    stats = plane.client.get(f"{plane.faults}/stats").json()["gateways"]
    assert (stats["istio"]["errors"], stats["direct"]["errors"]) == (1, 0)


def test_the_proto_file_says_what_the_descriptors_say() -> None:
    text = (Path(messages.__file__).parent / "identity.proto").read_text()
    declared = {
        name: re.findall(r"string (\w+) = (\d+);", body)
        for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.S)
    }
    file: descriptor_pb2.FileDescriptorProto = messages.FILE
    assert declared == {m.name: [(f.name, str(f.number)) for f in m.field] for m in file.message_type}
    assert f"package {file.package};" in text
