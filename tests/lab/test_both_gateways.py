"""Every real configuration at both gateways: admitted by istiod, clean for analyze, and the same answers."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gateshift.apisix.model import Configuration, Kind, Router
from gateshift.apisix.readers import read_files
from gateshift.apisix.routing import Request, RouteTable
from gateshift.cluster.client import Cluster
from gateshift.lab.state import LabState
from gateshift.params.model import TranslateParams
from gateshift.translate import Translation, translate
from gateshift.translate.model import dump_yaml
from gateshift.translate.proof import boundary_requests
from tests.lab.both_gateways import (
    TARGET,
    Answer,
    Applied,
    Backends,
    Difference,
    Loop,
    ask,
    old_gateway,
    pools_of,
    routing_only,
)
from tests.lab.test_controlplane_lab import Tools, eventually
from tests.translate.helpers import CORPUS, configuration, route, signed

pytestmark = pytest.mark.lab

SAMPLE = Path(__file__).parents[2] / "params" / "lab" / "apisix.yaml"
REQUESTS = 20
PARAMS = TranslateParams()


def translated(given: Configuration) -> Translation:
    return translate(given, signed(given, PARAMS, TARGET), TARGET)


def sources() -> list[Path]:
    public = sorted(CORPUS.glob("*.yaml")) if CORPUS.is_dir() else []
    return [SAMPLE, *(one for one in public if read_files([one], env={}).of(Kind.ROUTE))]


@pytest.fixture(scope="module")
def tools(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    tools = Tools(running, tmp_path_factory.mktemp("tools"))
    installed = tools.install()
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return tools


def test_istiod_admits_every_object_and_analyze_has_no_error(
    tools: Tools, cluster: Cluster, tmp_path: Path
) -> None:
    seen = 0
    for source in sources():
        translation = translated(read_files([source], env={}))
        for one in translation.objects:
            cluster.apply(dict(one), dry_run=True)
            seen += 1
        if translation.objects:
            file = tmp_path / source.name
            file.write_text(dump_yaml(translation.objects))
            words = tools.run(
                "istioctl", "analyze", "--use-kube=false", "--failure-threshold", "Error", str(file)
            )
            errors = [line for line in words.stdout.splitlines() if line.startswith("Error")]
            assert not errors, (source.name, errors)
    assert seen > 50


def test_both_gateways_answer_alike(tools: Tools, cluster: Cluster, loop: Loop, backends: Backends) -> None:
    envoy = tools.state["istio_http"]
    applied = Applied(cluster, envoy, TARGET.gateway_namespace)
    different: list[tuple[str, Difference]] = []
    compared = 0
    for source in sources():
        given = routing_only(read_files([source], env={}))
        translation = translated(given)
        table, pools = RouteTable(given), pools_of(given)

        def pooled(answer: Answer, pools: dict[str, str] = pools) -> Answer:
            return answer[0], pools.get(answer[1], answer[1]), answer[2]

        applied.replace(backends.behind(translation.objects, TARGET.namespace))
        with old_gateway(loop, backends, given) as old:
            for request in itertools.islice(boundary_requests(given, REQUESTS), REQUESTS):
                if not re.fullmatch(r"[a-z0-9.-]+", request.host):
                    continue  # an unfilled placeholder: neither nginx nor Envoy takes it as a host
                if table.match(request).winner in translation.refused:
                    assert ask(envoy, request)[0] >= 400, (source.name, request)  # held back: closed
                    continue
                expected = pooled(ask(old.address, request))
                compared += 1
                if not eventually(lambda: pooled(ask(envoy, request)) == expected, 3):  # noqa: B023 - called at once
                    different.append((source.name, Difference(request, expected, ask(envoy, request))))
    assert not different, "\n".join(f"{name}: {one}" for name, one in different[:20])
    assert compared >= REQUESTS * len(sources()) // 2


def test_a_host_with_a_port_is_told_apart_at_both_gateways(
    tools: Tools, cluster: Cluster, loop: Loop, backends: Backends
) -> None:
    table = configuration(
        routes=[
            route("port", "/a", host="a.test:8080"),
            route("mixed", "/b", hosts=["*.w.test:81", "b.test"]),
            route("bare", "/*", host="a.test"),
            route("open", "/*"),
        ]
    )
    given = replace(table, router=Router.URI)
    translation = translated(given)
    assert not translation.blockers
    envoy, routing = tools.state["istio_http"], RouteTable(given)
    applied = Applied(cluster, envoy, TARGET.gateway_namespace)
    applied.replace(backends.behind(translation.objects, TARGET.namespace))
    hosts = (
        "a.test:8080",
        "A.test:8080",
        "a.test",
        "a.test:81",
        "x.w.test:81",
        "x.w.test",
        "b.test:9",
        "c.test:1",
    )
    answers = {}
    with old_gateway(loop, backends, given) as old:
        for host, path in itertools.product(hosts, ("/a", "/b")):
            request = Request(host=host, path=path)
            expected = ask(old.address, request)
            assert expected[0] == 200
            eventually(lambda: ask(envoy, request) == expected, 3)  # noqa: B023 - called at once
            answers[host, path] = (routing.match(request).winner, expected, ask(envoy, request))
    applied.remove()
    assert {key: one for key, one in answers.items() if one[1] != one[2]} == {}
    assert {one[0] for one in answers.values()} == {"port", "mixed", "bare", "open"}
