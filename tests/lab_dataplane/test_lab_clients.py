"""Client traffic: it follows the weights with its caches' delay, and counts what it sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateshift.lab.clients.dns import Answer, Population, read_answers
from gateshift.lab.clients.mix import MIX, Protocol
from gateshift.lab.clients.stats import Outcome, Stats
from gateshift.lab.clients.wire import Address
from gateshift.lab.topology import APISIX_LB_NAME, HOST_API, ISTIO_LB_NAME

from .conftest import Plane
from .programs import program


def population(**more: Any) -> Population:
    values: dict[str, Any] = {
        "size": 2000, "ttl": 60.0, "stale_share": 0.0, "stale_factor": 3.0, "connection_age": 0.0, **more
    }  # fmt: skip
    return Population(**values)


def weights(istio: float) -> dict[str, tuple[Answer, ...]]:
    return {HOST_API: (Answer("old", 255 - istio), Answer("new", istio))}


def share(people: Population, now: float) -> float:
    found = [people.target(user, HOST_API, now) for user in people.users]
    return found.count("new") / len(found)


def test_caches_expire_evenly_over_one_ttl() -> None:
    people = population()
    people.answers = weights(0)
    assert share(people, 0.0) == 0.0
    people.answers = weights(255)
    assert share(people, 30.0) == pytest.approx(0.5, abs=0.05)
    assert share(people, 60.5) == 1.0


def test_stale_resolvers_and_open_connections_hold_the_old_answer_longer() -> None:
    people = population(stale_share=0.2)
    people.answers = weights(0)
    share(people, 0.0)
    people.answers = weights(255)
    assert 0.75 < share(people, 61.0) < 0.9
    assert share(people, 181.0) == 1.0
    sticky = population(connection_age=40.0)
    sticky.answers = weights(0)
    share(sticky, 0.0)
    sticky.answers = weights(255)
    assert share(sticky, 10.0) == 0.0  # connections live 20 to 40 s
    assert share(sticky, 101.0) == 1.0


def test_weights_are_followed_in_proportion() -> None:
    people = population(size=20000)
    people.answers = weights(64)
    assert share(people, 0.0) == pytest.approx(64 / 255, abs=0.02)


def test_answers_are_read_from_route53() -> None:
    data = {HOST_API: {"ttl": None, "answers": [{"target": "a", "weight": 3, "set_identifier": "x"}]}}
    assert read_answers(data) == {HOST_API: (Answer("a", 3.0),)}


def test_expected_refusals_are_no_errors_and_wrong_statuses_are_not_silent() -> None:
    stats = Stats()
    by_name = {one.name: one for one in MIX}
    stats.record("istio", by_name["no-token"], Outcome(403))
    stats.record("istio", by_name["me"], Outcome(404))
    stats.record("istio", by_name["me"], Outcome(503))
    stats.record("istio", by_name["me"], Outcome(None, "timeout"))
    stats.record("istio", by_name["get-user"], Outcome(14))
    side = stats.summary()["gateways"]["istio"]
    assert (side["requests"], side["errors"], side["connection_errors"], side["unexpected"]) == (5, 3, 1, 1)
    assert [p["status"] for p in stats.problems()] == [404, 503, None, 14]
    assert sum(row["errors"].get("istio", 0) for row in stats.timeline()) == 3


def test_addresses_are_read_with_their_gateway() -> None:
    found = Address.parse(f"{ISTIO_LB_NAME}=127.0.0.1:1,127.0.0.1:2,127.0.0.1:1")
    assert (found.gateway, found.https) == ("istio", "127.0.0.1:2")
    with pytest.raises(ValueError, match="write name="):
        Address.parse("istio=127.0.0.1:1")


def test_the_mix_has_every_protocol() -> None:
    assert {one.protocol for one in MIX} == set(Protocol)


@pytest.fixture
def traffic(plane: Plane) -> Iterator[str]:
    ports = plane.gateway
    address = f"127.0.0.1:{ports['http_port']},127.0.0.1:{ports['https_port']},127.0.0.1:{ports['http_port']}"
    with program("route53") as route53, program(
        "clients",
        "--route53", f"http://127.0.0.1:{route53['port']}",
        "--keys", str(plane.keys),
        "--ca", str(plane.ca),
        "--lb", f"{APISIX_LB_NAME}={address}",
        "--lb", f"{ISTIO_LB_NAME}=127.0.0.1:9,127.0.0.1:9,127.0.0.1:9",
        "--rate", "80",
        "--ttl", "1",
    ) as ready:  # fmt: skip
        yield f"http://127.0.0.1:{ready['port']}"


@pytest.mark.slow
def test_traffic_through_the_old_gateway_sees_what_the_sample_promises(traffic: str, plane: Plane) -> None:
    promised = {"200", "401", "404", "302"}
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline:
        stats = plane.client.get(f"{traffic}/stats").json()
        seen = stats["gateways"].get("apisix", {"protocols": {}})["protocols"]
        statuses = set(seen.get("http", {}).get("statuses", ()))
        # Calls are drawn at random: the rarest answer may need more than a few hundred of them.
        if stats["requests"] >= 300 and set(seen) == {"http", "websocket", "grpc"} and promised <= statuses:
            break
        time.sleep(0.2)
    assert plane.client.get(f"{traffic}/errors").json() == []
    assert stats["errors"] == stats["unexpected"] == stats["dropped"] == 0
    assert promised <= set(seen["http"]["statuses"])
    assert stats["share"]["percent"] == {"apisix": 100.0}
    # An error the backends make is an error the users see, and the accounts agree.
    plane.client.delete(f"{plane.faults}/stats")
    plane.client.put(f"{plane.faults}/faults", json={"gateway": "apisix", "error_ratio": 0.5})
    time.sleep(1.5)
    plane.client.put(f"{traffic}/pause", json={"paused": True}).raise_for_status()
    plane.client.delete(f"{plane.faults}/faults")

    def accounts() -> tuple[int, int]:
        told = plane.client.get(f"{plane.faults}/stats").json()["gateways"]["apisix"]
        return int(told["errors"]), int(plane.client.get(f"{traffic}/stats").json()["errors"])

    time.sleep(1.5)
    deadline = time.monotonic() + 30  # what was under way at the pause takes a busy machine its time
    while len(set(accounts())) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    made, seen_by_users = accounts()
    assert made > 10
    assert seen_by_users == made
    quiet = plane.client.get(f"{traffic}/stats").json()["requests"]
    assert plane.client.put(f"{traffic}/rate", json={"rate": -1}).status_code == 400
    plane.client.put(f"{traffic}/rate", json={"rate": 40}).raise_for_status()
    assert plane.client.get(f"{traffic}/stats").json()["requests"] == quiet
