"""A shift by traffic-split is told from the source's own splits by the upstream that it names."""

from __future__ import annotations

import pytest

from gateshift.apisix.own_shift import is_ours, without_own_shift
from tests.translate.helpers import configuration, route


@pytest.mark.parametrize(
    ("split", "ours"),
    [
        ({"rules": [{"weighted_upstreams": [{"upstream_id": "gateshift-istio", "weight": 5}]}]}, True),
        ({"rules": [{"weighted_upstreams": [{"upstream_id": "gateshift-istio-grpc", "weight": 5}]}]}, True),
        ({"rules": [{"weighted_upstreams": [{"upstream": {"name": "gateshift-istio"}}]}]}, True),
        ({"rules": [{"weighted_upstreams": [{"upstream_id": "gateshift-istiod", "weight": 5}]}]}, False),
        ({"rules": [{"weighted_upstreams": [{"upstream": {"nodes": {"a:80": 1}}}, {"weight": 1}]}]}, False),
        ({"rules": [{"weighted_upstreams": ["gateshift-istio"]}, "x"]}, False),
        ({"rules": {"weighted_upstreams": 5}}, False),
        (None, False),
    ],
)
def test_ours_by_its_upstream(split: object, ours: bool) -> None:
    assert is_ours(split) is ours


def test_a_source_without_a_shift_is_left_as_it_is() -> None:
    split = {"rules": [{"weighted_upstreams": [{"upstream_id": "canary", "weight": 1}, {"weight": 9}]}]}
    config = configuration(
        routes=[route("r", "/a", plugins={"traffic-split": split})],
        upstreams=[{"id": "canary", "nodes": {"c:80": 1}}],
    )
    assert without_own_shift(config) is config
