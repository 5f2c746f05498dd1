"""The lab's Route 53 on its wire, through boto3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from gateshift.lab.topology import APISIX_LB_NAME, HOST_API, HOST_WS, HOSTS, ISTIO_LB_NAME, LB_ZONE_ID

from .programs import program

PENDING = 0.2


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Any]]:
    with program("route53", "--pending", str(PENDING)) as ready:
        yield ready


@pytest.fixture
def url(running: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{running['port']}"


@pytest.fixture
def zone(running: dict[str, Any]) -> str:
    return str(running["zone_id"])


@pytest.fixture
def client(running: dict[str, Any]) -> Any:
    return connect(running)


def connect(server: dict[str, Any]) -> Any:
    return boto3.client(
        "route53",
        endpoint_url=f"http://127.0.0.1:{server['port']}",
        region_name="us-east-1",
        aws_access_key_id="lab",
        aws_secret_access_key="lab",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(autouse=True)
def restored(client: Any, zone: str, url: str) -> Iterator[None]:
    yield
    httpx.delete(f"{url}/lab/faults")
    present = [r for r in records(client, zone) if r["Type"] not in {"NS", "SOA"}]
    batch = [{"Action": "DELETE", "ResourceRecordSet": r} for r in present]
    batch += [{"Action": "CREATE", "ResourceRecordSet": simple(h)} for h in HOSTS]
    change(client, zone, *batch)
    time.sleep(PENDING + 0.1)


def simple(host: str, target: str = APISIX_LB_NAME) -> dict[str, Any]:
    alias = {"HostedZoneId": LB_ZONE_ID, "DNSName": target + ".", "EvaluateTargetHealth": False}
    return {"Name": host + ".", "Type": "A", "AliasTarget": alias}


def weighted(host: str, identifier: str, weight: int) -> dict[str, Any]:
    target = APISIX_LB_NAME if identifier == "apisix" else ISTIO_LB_NAME
    return {**simple(host, target), "SetIdentifier": identifier, "Weight": weight}


def records(client: Any, zone: str) -> list[dict[str, Any]]:
    return list(client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"])


def change(client: Any, zone: str, *changes: dict[str, Any]) -> dict[str, Any]:
    done = client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": list(changes)})
    return dict(done["ChangeInfo"])


def create(record: dict[str, Any]) -> dict[str, Any]:
    return {"Action": "CREATE", "ResourceRecordSet": record}


def delete(record: dict[str, Any]) -> dict[str, Any]:
    return {"Action": "DELETE", "ResourceRecordSet": record}


def upsert(record: dict[str, Any]) -> dict[str, Any]:
    return {"Action": "UPSERT", "ResourceRecordSet": record}


def convert(client: Any, zone: str, host: str, istio: int) -> dict[str, Any]:
    return change(
        client,
        zone,
        delete(simple(host)),
        create(weighted(host, "apisix", 255 - istio)),
        create(weighted(host, "istio", istio)),
    )


def refusal(client: Any, zone: str, *changes: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        change(client, zone, *changes)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def test_the_zone_is_found_and_starts_with_simple_alias_records(client: Any, zone: str) -> None:
    found = client.list_hosted_zones_by_name(DNSName="voiceassistant.com")["HostedZones"]
    assert [z["Id"] for z in found] == [f"/hostedzone/{zone}"]
    ours = {r["Name"]: r for r in records(client, zone) if r["Type"] == "A"}
    assert set(ours) == {h + "." for h in HOSTS}
    assert all(
        "Weight" not in r and r["AliasTarget"]["DNSName"] == APISIX_LB_NAME + "." for r in ours.values()
    )


def test_a_change_is_pending_first_and_answers_follow_only_when_in_sync() -> None:
    # A server of its own: a busy machine may take longer than PENDING for what is asked meanwhile.
    with program("route53", "--pending", "4") as ready:
        client, zone, url = connect(ready), str(ready["zone_id"]), f"http://127.0.0.1:{ready['port']}"

        def status() -> str:
            return str(client.get_change(Id=info["Id"])["ChangeInfo"]["Status"])

        def answers() -> set[tuple[str, int]]:
            told = httpx.get(f"{url}/lab/answers", params={"host": HOST_API}).json()[HOST_API]["answers"]
            return {(a["target"], a["weight"]) for a in told}

        info = convert(client, zone, HOST_API, 64)
        assert info["Status"] == "PENDING"
        assert status() == "PENDING"
        assert answers() == {(APISIX_LB_NAME, 1)}
        deadline = time.monotonic() + 30
        while status() != "INSYNC":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert answers() == {(APISIX_LB_NAME, 191), (ISTIO_LB_NAME, 64)}


def test_the_same_set_identifiers_on_several_hosts_are_independent(client: Any, zone: str) -> None:
    convert(client, zone, HOST_API, 10)
    convert(client, zone, HOST_WS, 20)
    change(client, zone, delete(weighted(HOST_API, "istio", 10)))
    left = {(r["Name"], r["SetIdentifier"]) for r in records(client, zone) if "SetIdentifier" in r}
    assert left == {(HOST_API + ".", "apisix"), (HOST_WS + ".", "apisix"), (HOST_WS + ".", "istio")}


def test_conversion_and_exact_restore_can_be_repeated(client: Any, zone: str) -> None:
    for _ in range(2):
        convert(client, zone, HOST_API, 128)
        change(
            client,
            zone,
            delete(weighted(HOST_API, "apisix", 127)),
            delete(weighted(HOST_API, "istio", 128)),
            create(simple(HOST_API)),
        )
    assert [r for r in records(client, zone) if r["Name"] == HOST_API + "."] == [simple(HOST_API)]


@pytest.mark.parametrize("weight", [256, 1000])
def test_weights_end_at_255(client: Any, zone: str, weight: int) -> None:
    convert(client, zone, HOST_API, 255)
    code, message = refusal(client, zone, upsert(weighted(HOST_API, "istio", weight)))
    assert code == "InvalidInput"
    assert str(weight) in message


def test_a_simple_record_is_in_the_way_of_weighted_ones_and_the_reverse(client: Any, zone: str) -> None:
    code, message = refusal(client, zone, create(weighted(HOST_API, "istio", 1)))
    assert code == "InvalidChangeBatch"
    assert "cannot be created as a non-weighted set exists with the same name and type" in message
    convert(client, zone, HOST_API, 1)
    code, message = refusal(client, zone, upsert(simple(HOST_API)))
    assert code == "InvalidChangeBatch"
    assert "cannot be created as a weighted set exists with the same name and type" in message


def test_a_batch_is_all_or_nothing(client: Any, zone: str) -> None:
    before = records(client, zone)
    code, message = refusal(
        client,
        zone,
        delete(simple(HOST_API)),
        create(weighted(HOST_API, "apisix", 255)),
        create(weighted(HOST_WS, "istio", 1)),
    )
    assert code == "InvalidChangeBatch"
    assert HOST_WS in message
    assert records(client, zone) == before


def test_delete_must_name_the_present_values(client: Any, zone: str) -> None:
    code, message = refusal(client, zone, delete(simple(HOST_API, ISTIO_LB_NAME)))
    assert (code, "do not match the current values" in message) == ("InvalidChangeBatch", True)
    code, message = refusal(client, zone, delete(weighted(HOST_API, "istio", 1)))
    assert (code, "was not found" in message) == ("InvalidChangeBatch", True)


def test_weights_of_zero_are_never_answered_unless_all_are(client: Any, zone: str, url: str) -> None:
    change(
        client,
        zone,
        delete(simple(HOST_API)),
        create(weighted(HOST_API, "apisix", 0)),
        create(weighted(HOST_API, "istio", 0)),
    )
    time.sleep(PENDING + 0.1)
    answers = httpx.get(f"{url}/lab/answers", params={"host": HOST_API}).json()[HOST_API]["answers"]
    assert [a["weight"] for a in answers] == [1, 1]


def test_access_denied_and_throttling_are_errors_boto3_knows(client: Any, zone: str, url: str) -> None:
    httpx.put(f"{url}/lab/faults", json={"denied": ["ChangeResourceRecordSets"]}).raise_for_status()
    code, message = refusal(client, zone, upsert(simple(HOST_API)))
    assert (code, "route53:ChangeResourceRecordSets" in message) == ("AccessDenied", True)
    assert records(client, zone)  # reading is still allowed
    httpx.put(f"{url}/lab/faults", json={"denied": [], "throttle_per_second": 5}).raise_for_status()
    codes = []
    for _ in range(7):
        try:
            records(client, zone)
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])
    assert set(codes) == {"Throttling"}


def test_a_change_can_be_held_and_let_go(client: Any, zone: str, url: str) -> None:
    httpx.put(f"{url}/lab/faults", json={"never_insync": True}).raise_for_status()
    info = convert(client, zone, HOST_API, 255)
    time.sleep(PENDING + 0.1)
    assert client.get_change(Id=info["Id"])["ChangeInfo"]["Status"] == "PENDING"
    httpx.delete(f"{url}/lab/faults").raise_for_status()
    time.sleep(PENDING + 0.1)
    assert client.get_change(Id=info["Id"])["ChangeInfo"]["Status"] == "INSYNC"


def test_unknown_change_zone_and_fault_are_refused(client: Any, url: str) -> None:
    with pytest.raises(ClientError, match="NoSuchChange"):
        client.get_change(Id="CNOTHING")
    with pytest.raises(ClientError, match="NoSuchHostedZone"):
        change(client, "ZNOTHING", upsert(simple(HOST_API)))
    assert httpx.put(f"{url}/lab/faults", json={"pendng": 1}).status_code == 400


def test_a_cname_cannot_stand_beside_an_address(client: Any, zone: str) -> None:
    cname = {"Name": HOST_API + ".", "Type": "CNAME", "TTL": 60, "ResourceRecords": [{"Value": "x.example."}]}
    code, message = refusal(client, zone, create(cname))
    assert (code, "conflicting RRSet" in message) == ("InvalidChangeBatch", True)
