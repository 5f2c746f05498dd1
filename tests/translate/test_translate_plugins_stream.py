"""Stream routes: ports, shares, addresses, and what TCP cannot tell apart."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.translate import Translation
from tests.translate.helpers import configuration, of_kind, route, run


def stream(id_: str = "db", port: int = 5432, **fields: Any) -> dict[str, Any]:
    upstream = {"type": "roundrobin", "scheme": "tcp", "nodes": {"db:5432": 1}}
    return {"id": id_, "server_port": port, "upstream": upstream, **fields}


def translated(*streams: dict[str, Any], **kinds: Any) -> Translation:
    return run(configuration(stream_routes=list(streams), **kinds))


def test_a_port_becomes_a_gateway_and_a_virtual_service() -> None:
    translation = translated(stream(plugins={"prometheus": {}}))
    assert not translation.blockers
    (gateway,) = of_kind(translation, "Gateway")
    assert gateway["spec"]["servers"] == [
        {"port": {"number": 5432, "name": "tcp-5432", "protocol": "TCP"}, "hosts": ["*"]}
    ]
    (service,) = of_kind(translation, "VirtualService")
    assert service["spec"]["gateways"] == ["istio-system/gateshift-tcp-5432"]
    assert service["spec"]["tcp"] == [
        {
            "match": [{"port": 5432}],
            "route": [
                {"destination": {"host": "db.app.svc.cluster.local", "port": {"number": 5432}}},
            ],
        }
    ]
    assert any("add port 5432" in one for one in translation.warnings)
    assert {str(one.status) for one in translation.ledger} <= {"exact", "approximate", "ignored-default"}


def test_addresses_and_shares_and_connections() -> None:
    other = {"upstream": {"type": "roundrobin", "nodes": {"10.1.2.3:5432": 1}}, "weight": 1}
    plugins = {
        "ip-restriction": {"whitelist": ["10.0.0.0/8"]},
        "traffic-split": {"rules": [{"weighted_upstreams": [other, {"weight": 3}]}]},
        "limit-conn": {"conn": 10, "burst": 5, "key_type": "constant", "key": "all"},
    }
    translation = translated(stream(plugins=plugins))
    assert not translation.blockers
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert policy["spec"]["action"] == "DENY"
    assert policy["spec"]["rules"] == [
        {
            "from": [{"source": {"notIpBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"ports": ["5432"]}}],
        }
    ]
    (service,) = of_kind(translation, "VirtualService")
    assert [one["weight"] for one in service["spec"]["tcp"][0]["route"]] == [1, 3]
    (entry,) = of_kind(translation, "ServiceEntry")
    assert entry["spec"]["ports"][0]["protocol"] == "TCP"
    limits = str(of_kind(translation, "DestinationRule"))
    assert "'maxConnections': 15" in limits


@pytest.mark.parametrize(
    "fields",
    [
        {"sni": "a.test"},
        {"remote_addr": "10.0.0.0/8"},
        {"protocol": {"name": "redis"}},
        {"server_port": None},
        {"upstream": {"type": "roundrobin", "scheme": "udp", "nodes": {"dns:53": 1}}},
        {"plugins": {"mqtt-proxy": {"protocol_name": "MQTT", "protocol_level": 4}}},
        {"plugins": {"ip-restriction": {}}},
        {"plugins": {"limit-conn": {"conn": 1, "burst": 0, "key": "remote_addr"}}},
    ],
)
def test_what_tcp_cannot_do_blocks(fields: dict[str, Any]) -> None:
    translation = translated(stream(**fields))
    assert translation.blockers
    assert not of_kind(translation, "VirtualService")
    assert not of_kind(translation, "Gateway")


def test_two_routes_on_one_port_block_both() -> None:
    assert len(translated(stream("a"), stream("b")).blockers) == 2


def test_a_rule_about_paths_never_holds_on_a_tcp_port() -> None:
    """A DENY rule with HTTP fields matches every connection of a TCP port."""
    http = route("r", "/r", plugins={"ip-restriction": {"blacklist": ["10.1.1.1"]}})
    translation = translated(stream(), routes=[http])
    (policy,) = of_kind(translation, "AuthorizationPolicy")
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["notPorts"] == ["5432"]
