"""Gateway API routes on the real istiod and Envoy, bound to the ingress gateway that is there already."""

from __future__ import annotations

import itertools
import json
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateshift.apisix.model import Configuration, Kind
from gateshift.apisix.readers import read_files
from gateshift.apisix.routing import Request, RouteTable
from gateshift.cluster import acceptance, apply, permissions, verify
from gateshift.cluster.acceptance import unaccepted
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import Object
from gateshift.lab import topology
from gateshift.lab.gateway_api import serve
from gateshift.lab.state import LabState
from gateshift.params import load
from gateshift.params.model import TranslateParams
from gateshift.runbook.inputs import resolvers
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

LAB_PARAMS = Path(__file__).parents[2] / "params" / "lab.yaml"
REQUESTS = 20
PARAMS = TranslateParams.model_validate({"output": "gateway-api"})


def translated(given: Configuration) -> Translation:
    return translate(given, signed(given, PARAMS, TARGET), TARGET)


@pytest.fixture(scope="module")
def tools(running: LabState, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    tools = Tools(running, tmp_path_factory.mktemp("tools"))
    serve(running)
    installed = tools.install()
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return tools


@pytest.fixture
def applied(tools: Tools, cluster: Cluster) -> Iterator[Applied]:
    found = Applied(cluster, tools.state["istio_http"], TARGET.gateway_namespace)
    yield found
    found.remove()


def of_routes(translation: Translation) -> bool:
    return any(one.form != "VirtualService" for one in translation.forms)


def everything() -> Configuration:
    """One table with each kind of match and filter, exact hosts, wildcards and no host."""
    both = {**route("seg", "/seg", host="a.api.test"), "uris": ["/seg", "/seg/*"]}
    shares = {"type": "roundrobin", "nodes": {"one:80": 1, "two:80": 0}}
    own = {"host": "a.api.test"}
    return configuration(
        routes=[
            route("exact", "/exact", **own),
            {key: value for key, value in both.items() if key != "uri"},
            route("header", "/pick", vars=[["http_x_kind", "==", "new"]], **own),
            route("query", "/pick", vars=[["arg_v", "==", "2"]], **own),
            route("post", "/pick", methods=["POST", "PUT"], **own),
            route("pick", "/pick", **own),
            route(
                "new", "/old", plugins={"proxy-rewrite": {"uri": "/brand/new", "host": "inner.test"}}, **own
            ),
            route(
                "away",
                "/away",
                plugins={"redirect": {"uri": "https://new.test/there", "ret_code": 308}},
                **own,
            ),
            {"id": "share", "uri": "/share", "host": "a.api.test", "upstream": shares},
            route("words", "/word*", host="b.api.test"),
            route("deep", "/word/deep/*", host="b.api.test"),
            route("middle", "/m/*/end", host="b.api.test"),
            route("wild", "/*", host="*.api.test"),
            route("any", "/any"),
        ]
    )


def test_the_same_requests_are_answered_alike_by_both_gateways(
    tools: Tools, cluster: Cluster, loop: Loop, backends: Backends, applied: Applied
) -> None:
    envoy = tools.state["istio_http"]
    public = sorted(CORPUS.glob("*.yaml")) if CORPUS.is_dir() else []
    files = [(one.name, read_files([one], env={})) for one in public]
    sources = [("everything", everything()), *((n, c) for n, c in files if c.of(Kind.ROUTE))]
    different: list[tuple[str, Difference]] = []
    compared, routed = 0, 0
    for name, given in sources:
        config = routing_only(given)
        translation = translated(config)
        if not of_routes(translation):
            continue
        routed += 1
        table, pools = RouteTable(config), pools_of(config)

        def pooled(answer: Answer, pools: dict[str, str] = pools) -> Answer:
            return answer[0], pools.get(answer[1], answer[1]), answer[2]

        objects = backends.behind(translation.objects, TARGET.namespace)
        applied.replace(objects)
        assert eventually(lambda: not unaccepted(cluster, objects), 20), (  # noqa: B023 - called at once
            name,
            unaccepted(cluster, objects),
        )
        count = 120 if name == "everything" else REQUESTS
        with old_gateway(loop, backends, config) as old:
            for request in itertools.islice(boundary_requests(config, count), count):
                if not re.fullmatch(r"[a-z0-9.-]+", request.host):
                    continue
                if table.match(request).winner in translation.refused:
                    continue
                expected = pooled(ask(old.address, request))
                compared += 1
                if not eventually(lambda: pooled(ask(envoy, request)) == expected, 3):  # noqa: B023 - called at once
                    different.append((name, Difference(request, expected, ask(envoy, request))))
    assert not different, "\n".join(f"{name}: {one}" for name, one in different[:20])
    assert routed >= 2
    assert compared > 120


def test_istiod_admits_every_object_and_analyze_has_no_error(
    tools: Tools, cluster: Cluster, tmp_path: Path
) -> None:
    kinds: set[str] = set()
    public = sorted(CORPUS.glob("*.yaml")) if CORPUS.is_dir() else []
    sample = Path(__file__).parents[2] / "params" / "lab" / "apisix.yaml"
    for number, config in enumerate(
        [everything(), *(read_files([one], env={}) for one in [sample, *public])]
    ):
        translation = translated(config)
        for one in translation.objects:
            cluster.apply(dict(one), dry_run=True)
            kinds.add(one["kind"])
        if of_routes(translation):
            file = tmp_path / f"{number}.yaml"
            file.write_text(dump_yaml(translation.objects))
            words = tools.run(
                "istioctl", "analyze", "--use-kube=false", "--failure-threshold", "Error", str(file)
            )
            assert not [line for line in words.stdout.splitlines() if line.startswith("Error")], words.stdout
    assert {"HTTPRoute", "VirtualService", "EnvoyFilter"} <= kinds


def test_policies_filters_and_retries_hold_on_routes_of_the_gateway_api(
    tools: Tools, cluster: Cluster, backends: Backends, applied: Applied
) -> None:
    envoy = tools.state["istio_http"]
    closed = {"ip-restriction": {"blacklist": ["127.0.0.0/8"]}}
    slow = {
        "limit-count": {
            "count": 1,
            "time_window": 60,
            "key_type": "constant",
            "key": "one",
            "policy": "local",
        }
    }
    config = configuration(
        routes=[
            route("closed", "/closed/*", host="p.api.test", plugins=closed),
            route("slow", "/slow", host="p.api.test", plugins=slow),
            route("open", "/*", host="p.api.test"),
        ]
    )
    translation = translated(config)
    assert [one.form for one in translation.forms] == ["HTTPRoute"], translation.forms
    applied.replace(backends.behind(translation.objects, TARGET.namespace))

    def status(path: str) -> int:
        return ask(envoy, Request(host="p.api.test", path=path))[0]

    assert eventually(lambda: status("/open") == 200, 10)
    assert eventually(lambda: status("/closed/x") == 403, 10), status("/closed/x")
    status("/slow")
    assert status("/slow") in {429, 503}
    assert status("/open") == 200

    told = tools.run("istioctl", "proxy-config", "routes", f"{tools.pod()}.istio-system", "-o", "json")
    hosts = [h for table in json.loads(told.stdout) for h in table.get("virtualHosts", ())]
    routes = [
        r for h in hosts for r in h.get("routes", ()) if r.get("name", "").startswith("shop.p.api.test.")
    ]
    assert {r["name"] for r in routes} == set(translation.entries)
    assert {r["route"]["retryPolicy"]["retryOn"] for r in routes} == {"retriable-headers"}


def test_a_route_to_a_service_that_is_not_there_is_told_by_name(cluster: Cluster, applied: Applied) -> None:
    config = configuration(routes=[route("nowhere", "/x", host="n.api.test")])
    objects = [dict(one) for one in translated(config).objects]
    applied.replace(objects)

    def told() -> list[str]:
        return [one for one in unaccepted(cluster, objects) if "BackendNotFound" in one]

    assert eventually(lambda: bool(told()), 10), unaccepted(cluster, objects)
    assert told()[0].startswith("HTTPRoute shop/n.api.test: BackendNotFound")


def test_a_certificate_is_served_by_a_listener(
    tools: Tools, cluster: Cluster, backends: Backends, applied: Applied
) -> None:
    config = configuration(
        routes=[
            route("shop", "/*", host=f"shop.{topology.ZONE}"),
            route("rest", "/*", host=f"*.{topology.ZONE}"),
        ],
        ssls=[{"id": "hosts", "sni": f"*.{topology.ZONE}", "cert": "c", "key": "k"}],
    )
    params = PARAMS.model_copy(update={"credentials": {"hosts": topology.TLS_SECRET}})
    translation = translate(config, params, TARGET)
    assert {one.form for one in translation.forms} == {"HTTPRoute"}, translation.forms
    objects = backends.behind(translation.objects, TARGET.namespace)
    applied.replace(objects)
    assert eventually(lambda: not unaccepted(cluster, objects), 20), unaccepted(cluster, objects)
    context = ssl.create_default_context(cafile=tools.state["ca_file"])

    def backend(name: str) -> str:
        host = f"{name}.{topology.ZONE}"
        try:
            with httpx.Client(verify=context, trust_env=False, timeout=5) as client:
                url = f"https://{tools.state['istio_https']}/x"
                told = client.get(url, headers={"host": host}, extensions={"sni_hostname": host})
        except httpx.HTTPError as error:
            return str(error)
        return str(told.json()["backend"]) if told.status_code == 200 else str(told.status_code)

    assert eventually(lambda: backend("shop") == "shop:80", 10), backend("shop")
    assert backend("other") == "rest:80"


def test_the_operators_account_applies_and_prunes_both_forms(
    tools: Tools, cluster: Cluster, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account has the generated rights and nothing more; Envoy must have each form before it counts."""
    monkeypatch.setenv("GATESHIFT_LAB", "test")
    given = load(LAB_PARAMS, overrides={"migration": "rights"}, resolvers=resolvers())
    home = given.cluster.model_copy(update={"application_namespace": TARGET.namespace})
    params = given.model_copy(update={"cluster": home})
    config = configuration(routes=[route("shop", "/*", host="rights.test")])
    forms = {
        name: backends.behind(
            translate(config, PARAMS.model_copy(update={"output": name}), TARGET).objects, TARGET.namespace
        )
        for name in ("gateway-api", "istio")
    }
    parts = {one["kind"]: one for one in forms["istio"] if one["kind"] in {"Service", "WorkloadEntry"}}
    for one in parts.values():
        cluster.apply(one)  # what stands in the cluster before the migration
    operator = Cluster.connect(params.cluster)
    kinds: dict[str, set[str]] = {}
    for name in ("gateway-api", "istio", "gateway-api"):
        wanted = [one for one in forms[name] if one["kind"] not in parts]
        plan = apply.plan(operator, wanted, migration="rights")

        def accepted(wanted: list[Object] = wanted) -> object:
            return acceptance.wait_in_sync(params, operator, wanted, since=time.time(), timeout=60)

        apply.execute(operator, wanted, plan, accept=accepted)
        kinds[name] = {step.target.split()[0] for step in plan.steps if step.verb == "delete"}
    assert kinds["istio"] == {"HTTPRoute", "Gateway", "EnvoyFilter"}
    assert kinds["gateway-api"] == {"VirtualService", "Gateway"}
    checks = {
        c.name: c for c in verify.run(params, operator, istio_target="lab.invalid", probing=lambda _: [])
    }
    for name in ("resources", "routes in Envoy", "proxy status"):
        assert checks[name].status == "pass", checks[name]
    assert checks["istioctl analyze"].status in {"pass", "warn"}, checks["istioctl analyze"]
    assert "HTTPRoute" in str(checks["resources"].measured)
    assert not permissions.covered(operator.calls)
    nothing = apply.plan(operator, [], migration="rights")
    apply.execute(operator, [], nothing)
    for one in parts.values():
        cluster.delete(f"{one['apiVersion']}/{one['kind']}", one["metadata"]["name"], TARGET.namespace)
