"""The Host header of each backend: what an upstream's ``pass_host`` makes APISIX send."""

from __future__ import annotations

from typing import Any

import pytest

from gateshift.translate import Translation
from gateshift.translate.model import Fidelity
from tests.translate.helpers import configuration, of_kind, route, rules, run


def _one(upstream: dict[str, Any], accept: Any = None, **fields: Any) -> Translation:
    given = {"type": "roundrobin", **upstream}
    params = {} if accept is None else {"accept": accept}
    return run(configuration(routes=[route("r", "/a", upstream=given, **fields)]), **params)


def _hosts(rule: Any) -> dict[str, str]:
    """Return the Host that each destination of a rule gets, by the destination's host and port."""
    whole = rule.get("rewrite", {}).get("authority", "")
    found = {}
    for part in rule["route"]:
        own = part.get("headers", {}).get("request", {}).get("set", {}).get("host", "")
        assert not (whole and own), "Envoy would take the rule's and not the destination's"
        destination = part["destination"]
        found[f"{destination['host']}:{destination['port']['number']}"] = own or whole
    return found


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ({"nodes": {"a.test:80": 1, "b.test:80": 3}}, {"a.test:80": "a.test", "b.test:80": "b.test"}),
        (
            {"nodes": {"a.test:8080": 1, "b.test:80": 1}},
            {"a.test:8080": "a.test:8080", "b.test:80": "b.test"},
        ),
        (
            {"scheme": "https", "nodes": {"a.test:443": 1, "a.test:8443": 1}},
            {"a.test:443": "a.test", "a.test:8443": "a.test:8443"},
        ),
        ({"nodes": {"a.test:80": 1, "b.test:80": 0}}, {"a.test:80": "a.test", "b.test:80": "a.test"}),
        # A short name is the Service's for Istio, and the node's own for the backend.
        (
            {"nodes": {"shop": 1, "pay": 1}},
            {"shop.app.svc.cluster.local:80": "shop", "pay.app.svc.cluster.local:80": "pay"},
        ),
    ],
)
def test_each_node_gets_its_own_name(upstream: dict[str, Any], expected: dict[str, str]) -> None:
    translation = _one({"pass_host": "node", **upstream})
    assert not translation.blockers
    (rule,) = rules(translation)
    assert _hosts(rule) == expected


def test_addresses_become_destinations_of_their_own_only_where_they_get_their_own_host() -> None:
    nodes = {"10.0.0.1:8080": 1, "10.0.0.2:80": 2, "[fd00::1]:8080": 1, "10.0.0.9:80": 0}
    translation = _one({"pass_host": "node", "nodes": nodes})
    (rule,) = rules(translation)
    assert list(_hosts(rule).values()) == ["10.0.0.1:8080", "10.0.0.2", "[fd00::1]:8080"]
    assert [one["weight"] for one in rule["route"]] == [1, 2, 1]
    entries = of_kind(translation, "ServiceEntry")
    assert [[e["address"] for e in one["spec"]["endpoints"]] for one in entries] == [
        ["10.0.0.1"], ["10.0.0.2"], ["fd00::1"],
    ]  # fmt: skip
    together = _one({"nodes": nodes})
    assert len(of_kind(together, "ServiceEntry")) == 1, "the client's Host is the same for all"
    assert _hosts(rules(together)[0]) == {"route-r.gateshift.internal:80": ""}


@pytest.mark.parametrize(
    "upstream",
    [
        {"type": "chash", "key": "remote_addr", "nodes": {"a.test:80": 1, "b.test:80": 1}},
        {"type": "least_conn", "nodes": {"10.0.0.1:80": 1, "10.0.0.2:80": 1}},
        {"discovery_type": "kubernetes", "service_name": "shop/web:8080"},
    ],
)
def test_a_host_that_cannot_be_kept_is_held_back_and_said(upstream: dict[str, Any]) -> None:
    given = {"pass_host": "node", **upstream}
    translation = _one(given)
    (blocker,) = translation.blockers
    assert (blocker.resource, blocker.plugin) == ("routes/r", "pass_host")
    (entry,) = [one for one in translation.ledger if one.path == "upstream.pass_host"]
    assert entry.status is Fidelity.MANUAL
    assert "Host" in entry.note
    assert not of_kind(translation, "VirtualService")
    accept = [{"resource": "routes/r", "plugin": "pass_host", "who": "Ada", "why": "they ignore it"}]
    (rule,) = rules(_one(given, accept=accept))
    assert set(_hosts(rule).values()) == {""}


def test_one_host_for_a_hash_over_several_addresses_is_kept() -> None:
    upstream = {"type": "chash", "key": "uri", "pass_host": "rewrite", "upstream_host": "in.test"}
    (rule,) = rules(_one({**upstream, "nodes": {"10.0.0.1:80": 1, "10.0.0.2:80": 1}}))
    assert rule["rewrite"] == {"authority": "in.test"}


def test_the_upstreams_host_comes_after_that_of_proxy_rewrite() -> None:
    plugins = {"proxy-rewrite": {"host": "plugin.test", "uri": "/new"}}
    for mode, expected in (("pass", "plugin.test"), ("node", "a.test"), ("rewrite", "up.test")):
        upstream = {"pass_host": mode, "upstream_host": "up.test", "nodes": {"a.test:80": 1}}
        (rule,) = rules(_one(upstream, plugins=plugins))
        assert rule["rewrite"]["authority"] == expected
        assert rule["rewrite"]["uriRegexRewrite"]["rewrite"] == "/new"


def test_a_traffic_split_keeps_the_host_of_each_upstream() -> None:
    """The route's own Host would go to the canary otherwise, and the canary's to nobody."""
    canary = {
        "type": "roundrobin",
        "pass_host": "rewrite",
        "upstream_host": "canary.test",
        "nodes": {"c.test": 1},
    }
    rule = {
        "match": [{"vars": [["http_x_beta", "==", "1"]]}],
        "weighted_upstreams": [{"upstream": canary, "weight": 1}, {"weight": 3}],
    }
    plain = {"nodes": {"a.test:80": 1}}
    for own, host in (({}, ""), ({"pass_host": "node"}, "a.test")):
        split, rest = rules(_one({**plain, **own}, plugins={"traffic-split": {"rules": [rule]}}))
        assert _hosts(split) == {"c.test:80": "canary.test", "a.test:80": host}
        assert _hosts(rest) == {"a.test:80": host}


def test_a_host_of_its_own_keeps_a_gateway_api_host_a_virtual_service() -> None:
    upstream = {"type": "roundrobin", "pass_host": "node", "nodes": {"shop": 1, "pay": 1}}
    config = configuration(routes=[route("r", "/a", host="a.test", upstream=upstream)])
    translation = run(config, output="gateway-api")
    (form,) = translation.forms
    assert (form.form, "headers of its own" in form.why) == ("VirtualService", True)


@pytest.mark.parametrize(
    ("upstream", "said"),
    [
        ({"nodes": {"a.app:80": 1, "b.app:80": 1}}, True),
        ({"nodes": {"a.app:80": 1, "a.app:81": 1}, "retries": 2}, True),
        ({"nodes": {"a.app:80": 1, "b.app:80": 1}, "retries": 0}, False),
        ({"nodes": {"10.0.0.1:80": 1, "10.0.0.2:80": 1}}, False),  # endpoints of one destination
        ({"nodes": {"10.0.0.1:80": 1, "a.app:80": 1}}, False),  # the same: a name beside an address
        ({"nodes": {"a.app:80": 1, "b.app:80": 1}, "type": "chash", "key": "uri"}, False),  # and one balancer
        ({"nodes": {"10.0.0.1:80": 1, "10.0.0.2:80": 1}, "pass_host": "node"}, True),  # each its own Host
        ({"nodes": {"a.app:80": 1}, "retries": 2}, False),
    ],
)
def test_a_retry_that_stays_with_its_service_is_said(upstream: dict[str, Any], said: bool) -> None:
    translation = run(configuration(routes=[{**route("r", "/x"), "upstream": upstream}]))
    nodes = [entry for entry in translation.ledger if "nodes" in entry.path]
    assert nodes
    assert all(("a retry stays" in entry.note) is said for entry in nodes)
    assert not said or all(entry.status is Fidelity.APPROXIMATE for entry in nodes)
