import json
from pathlib import Path

import promql_parser
import pytest

from gateshift.metrics.dashboards import OFFICIAL, build

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
FILLED = {
    "$istio_selector": 'source_workload="istio-ingressgateway"',
    "$envoy_selector": 'job=~".+"',
    "$apisix_selector": 'job=~".+"',
}


@pytest.mark.parametrize("name", sorted(build()))
def test_the_files_are_what_the_catalogue_gives(name: str) -> None:
    on_disk = json.loads((DASHBOARDS / name).read_text(encoding="utf-8"))
    assert on_disk == build()[name], "python -m gateshift.metrics.dashboards dashboards"


def expressions() -> dict[str, str]:
    """Every query of every dashboard as Grafana sends it, with the panel it stands in."""
    found = {}
    for dashboard in build().values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                text = target["expr"]
                for variable, value in FILLED.items():
                    text = text.replace(variable, value)
                found[text] = panel["title"]
    return found


def test_each_query_is_promql_once_grafana_has_filled_it_in() -> None:
    assert expressions()
    for text in expressions():
        assert "$" not in text
        promql_parser.parse(text)


def test_the_four_of_the_guide_the_verdicts_and_the_official_ones_are_there() -> None:
    assert {"traffic.json", "errors.json", "latency.json", "connections.json"} <= set(build())
    for dashboard in build().values():
        assert [a["target"]["tags"] for a in dashboard["annotations"]["list"]] == [["gateshift", "verdict"]]
        assert len(dashboard["links"]) == len(OFFICIAL) == 4
