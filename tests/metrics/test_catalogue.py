import promql_parser
import pytest

from gateshift.metrics.catalogue import CATALOGUE, render


@pytest.mark.parametrize("name", sorted(CATALOGUE))
@pytest.mark.parametrize("selector", ["", 'source_workload="istio-ingressgateway"', '{a="b",c=~"d|e",}'])
def test_each_query_is_promql(name: str, selector: str) -> None:
    text = render(CATALOGUE[name], selector=selector, window=90)
    assert "$" not in text
    promql_parser.parse(text)


def test_a_broken_query_would_be_noticed() -> None:
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse("sum(rate(istio_requests_total{,a='b'}[1m]))")


def test_every_row_of_the_guide_has_its_counterpart() -> None:
    for what in ("error_rate", "error_rate_by_service", "p50", "p90", "p95", "p99", "request_rate"):
        assert {f"istio_{what}", f"apisix_{what}"} <= set(CATALOGUE)
    assert {"istio_throughput", "apisix_throughput", "istio_availability", "apisix_availability"} <= set(
        CATALOGUE
    )
    assert {"istio_mtls_coverage", "istio_connections", "apisix_connections"} <= set(CATALOGUE)


def test_mtls_is_asked_of_the_receiving_side() -> None:
    assert "source" not in CATALOGUE["istio_mtls_coverage"].reporters
    assert CATALOGUE["istio_error_rate"].reporters[0] == "source"
