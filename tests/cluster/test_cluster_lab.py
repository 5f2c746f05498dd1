"""Install, apply, clean up and uninstall on real parts, as the generated least-privilege ServiceAccount."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateshift.archive.redact import Redactor
from gateshift.cluster import acceptance, apply, cleanup, install, permissions, restore, uninstall
from gateshift.cluster.client import Call, Cluster
from gateshift.cluster.exported import shown
from gateshift.cluster.objects import clean, title_of
from gateshift.cluster.ownership import owner_selector
from gateshift.cluster.tools import run_tool
from gateshift.errors import Blocked, ClusterError
from gateshift.lab.api import Api
from gateshift.lab.state import LabState
from gateshift.params import Params
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.inputs import resolvers
from tests.cluster.operating import (
    PARAMS,
    SHOP,
    added,
    gateway,
    item,
    own_lab,
    status,
    until,
    virtual_service,
)

pytestmark = pytest.mark.lab

NAME = "operate"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with own_lab(NAME, tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture(scope="module")
def params(running: LabState) -> Params:
    return load(PARAMS, overrides={"migration": NAME, "confirm_namespace": "apisix"}, resolvers=resolvers())


@pytest.fixture(scope="module")
def cluster(params: Params) -> Iterator[Cluster]:
    """The least-privilege account; at the end every call that was made must be in its table."""
    found = Cluster.connect(params.cluster)
    yield found
    assert not permissions.covered(found.calls)


@pytest.fixture(scope="module")
def admin(running: LabState) -> Cluster:
    return Cluster.connect(ClusterParams(kubeconfig=running["kubeconfig"]))


def test_the_account_may_do_what_a_migration_needs_and_no_more(params: Params, cluster: Cluster) -> None:
    assert permissions.missing(cluster, params) == []
    for call in (
        Call("delete", "", "nodes"),
        Call("create", "", "pods", "exec"),
        Call("*", "*", "*"),
        Call("impersonate", "", "users"),
    ):
        assert not cluster.may(call), call


@pytest.mark.long  # and the install after it waits until Kubernetes tries the refused pods again
def test_a_quota_is_named_long_before_the_time_out(params: Params, cluster: Cluster, admin: Cluster) -> None:
    admin.create(item("v1", "Namespace", "istio-system"))
    hasty = params.model_copy(update={"istio": params.istio.model_copy(update={"ready_timeout": 90.0})})
    with added(admin, item("v1", "ResourceQuota", "none", "istio-system", spec={"hard": {"pods": "0"}})):
        begun = time.monotonic()
        with pytest.raises(ClusterError, match=r"cannot become ready: istiod: .*exceeded quota: none"):
            install.execute(install.plan(hasty, cluster), hasty, cluster)
        assert time.monotonic() - begun < 75


def test_an_install_brings_what_istioctl_renders(params: Params, cluster: Cluster) -> None:
    ours = owner_selector(params)
    install.execute(install.plan(params, cluster), params, cluster)
    assert install.plan(params, cluster).steps == ()
    wanted = {title_of(o) for o in install.manifests(params)}
    for kind in ("Deployment", "Service", "ClusterRole", "Role", "PodDisruptionBudget"):
        found = {title_of(o) for o in cluster.list(kind, labels=ours) if "revision-tag" not in title_of(o)}
        assert found == {t for t in wanted if t.startswith(f"{kind} ")}
    budget = cluster.get("PodDisruptionBudget", "istio-ingressgateway", "istio-system")
    assert budget
    assert budget["spec"]["minAvailable"] == params.istio.gateway.replicas_min - 1


def test_the_istio_that_is_there_is_not_overwritten(params: Params, cluster: Cluster) -> None:
    istio = params.istio.model_copy(update={"revision": "next"})
    beside = params.model_copy(update={"istio": istio})
    with pytest.raises(Blocked, match=r"Service istio-system/istio-ingressgateway \(of IstioOperator"):
        install.plan(beside, cluster)
    own = istio.model_copy(update={"gateway_service": "istio-next"})
    plan = install.plan(params.model_copy(update={"istio": own}), cluster)
    assert {s.verb for s in plan.steps} == {"create"}
    assert "Deployment istio-system/istiod-next" in {s.target for s in plan.steps}


@contextmanager
def second_gateway(running: LabState) -> Iterator[None]:
    """Play kubelet and cloud for the second gateway: the lab runs the programs of one.

    Its pods become ready, its Service has an address; all else of the second revision is real.
    """
    done, home, pki = threading.Event(), "/api/v1/namespaces/istio-system", running.directory / "pki"
    address = {"status": {"loadBalancer": {"ingress": [{"hostname": "next.lb.internal"}]}}}

    def play() -> None:
        with Api(running["api_url"], pki / "ca.crt", pki / "admin.crt", pki / "admin.key") as api:
            while not done.wait(0.3):
                for pod in api.items(f"{home}/pods?labelSelector=istio%3Dnext"):
                    conditions = pod.get("status", {}).get("conditions") or []
                    status = {"conditions": [{**c, "status": "True"} for c in conditions]}
                    api.merge(f"{home}/pods/{pod['metadata']['name']}/status", {"status": status})
                if api.get(f"{home}/services/istio-next"):
                    api.merge(f"{home}/services/istio-next/status", address)

    player = threading.Thread(target=play)
    player.start()
    try:
        yield
    finally:
        done.set()
        player.join(10)


def test_a_second_revision_comes_and_goes_and_leaves_the_first_untouched(
    params: Params, cluster: Cluster, running: LabState
) -> None:
    def first() -> dict[str, Any]:
        found = [o for kind in (*uninstall._KINDS, uninstall._LAST_KIND) for o in cluster.list(kind)]
        found += cluster.list("CustomResourceDefinition")
        kept = {title_of(o): clean(o) or {} for o in found if "next" not in title_of(o)}
        for one in kept.values():
            one["metadata"].get("annotations", {}).pop("control-plane.alpha.kubernetes.io/leader", None)
            if one["kind"] == "Deployment":
                one["spec"].pop("replicas")  # the autoscaler's
        return kept

    istio = params.istio.model_copy(update={"revision": "next", "gateway_service": "istio-next"})
    beside = params.model_copy(update={"istio": istio})
    before, shared = first(), uninstall.shared_before(beside, cluster)
    assert len(shared) > 10
    with second_gateway(running):
        install.execute(install.plan(beside, cluster), beside, cluster)
    assert install.plan(beside, cluster).steps == ()
    assert cluster.get("Deployment", "istiod-next", "istio-system")
    assert {t: install._stable(o) for t, o in first().items()} == {
        t: install._stable(o) for t, o in before.items()
    }, "of the shared objects only the labels change that name the last installer"
    assert install.plan(params, cluster).steps == ()

    plan = uninstall.plan(beside, cluster, before=shared)
    assert {"istiod-next" in s.target for s in plan.steps if s.verb == "delete"} == {True, False}
    assert all("next" in s.target for s in plan.steps if s.verb == "delete"), plan.steps
    assert {s.target for s in plan.steps if s.verb != "delete"} == {title_of(o) for o in shared}
    uninstall.execute(plan, beside, cluster, before=shared)
    assert uninstall.plan(beside, cluster, before=shared).steps == ()
    assert cluster.get("Deployment", "istiod-next", "istio-system") is None
    assert first() == before
    assert install.plan(params, cluster).steps == ()


def broken_filter() -> dict[str, Any]:
    """A filter that istiod accepts and Envoy does not: a script that does not parse."""
    value = {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": "function envoy_on_request( -- not closed"},
        },
    }
    match = {
        "context": "GATEWAY",
        "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}},
    }
    patch = {"operation": "INSERT_BEFORE", "value": value}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "operate-broken", "namespace": "istio-system"},
        "spec": {
            "workloadSelector": {"labels": {"istio": "ingressgateway"}},
            "configPatches": [{"applyTo": "HTTP_FILTER", "match": match, "patch": patch}],
        },
    }


def state(cluster: Cluster) -> list[Any]:
    kinds = ("Gateway", "VirtualService", "EnvoyFilter", "AuthorizationPolicy")
    return [clean(o) for kind in kinds for o in cluster.list(kind)]


def test_apply_is_all_or_nothing(params: Params, cluster: Cluster, running: LabState) -> None:
    def accept(objects: list[dict[str, Any]]) -> Callable[[], object]:
        return lambda: acceptance.wait_in_sync(params, cluster, objects, since=time.time())

    before = state(cluster)
    bad = virtual_service("bad", redirect={"uri": "/"})
    with pytest.raises(
        ClusterError, match=r"1 of 3 objects are refused, nothing was applied.*VirtualService"
    ):
        apply.plan(cluster, [gateway(), virtual_service("a"), bad])
    assert state(cluster) == before

    good = [gateway(), virtual_service("a")]
    first = apply.execute(cluster, good, apply.plan(cluster, good, migration=NAME), accept=accept(good))
    assert status(running, "a.voiceassistant.com") == 200
    applied = state(cluster)

    worse = [*good, virtual_service("b"), broken_filter()]
    with pytest.raises(ClusterError, match=r"rejected by Envoy.*everything was restored"):
        apply.execute(cluster, worse, apply.plan(cluster, worse, migration=NAME), accept=accept(worse))
    assert state(cluster) == applied
    acceptance.wait_in_sync(params, cluster, good)
    assert status(running, "a.voiceassistant.com") == 200
    assert status(running, "b.voiceassistant.com") == 404

    gone = copy.deepcopy(good)
    gone[0]["spec"]["servers"][0]["port"]["number"] = 4444
    plan = apply.plan(cluster, gone, migration=NAME)

    def short() -> object:
        return acceptance.wait_in_sync(params, cluster, gone, timeout=1)

    with pytest.raises(ClusterError, match=r"port 4444, which Service istio-ingressgateway does not have"):
        apply.execute(cluster, gone, plan, accept=short)
    assert state(cluster) == applied

    back = apply.plan_undo(cluster, apply.archived(first))
    assert [s.verb for s in back.steps] == ["delete", "delete"]
    assert apply.undo(cluster, first) == []
    assert state(cluster) == before


def test_fields_of_another_manager_are_named_and_stay_theirs(
    params: Params, cluster: Cluster, running: LabState, tmp_path: Path
) -> None:
    theirs = virtual_service("theirs")
    theirs["spec"]["hosts"] = ["theirs.example.com"]
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(theirs), encoding="utf-8")
    argo = ["apply", "--server-side", "--field-manager=argocd", "-f", str(file)]
    run_tool([params.istio.kubectl, *argo, "--kubeconfig", running["kubeconfig"]], timeout=30)
    before = state(cluster)
    with pytest.raises(ClusterError, match=r"nothing was applied.*\.spec\.hosts is owned by argocd"):
        apply.plan(cluster, [gateway(), virtual_service("theirs")])
    assert state(cluster) == before
    cluster.delete("VirtualService", "theirs", SHOP)


def test_clean_up_restores_and_traffic_flows(params: Params, cluster: Cluster, running: LabState) -> None:
    client = httpx.Client(trust_env=False, timeout=5)
    admin = {"X-API-KEY": running["admin_key"]}
    assert client.get(f"{running['admin_url']}/apisix/admin/routes", headers=admin).status_code == 200
    deployment = cluster.get("Deployment", "apisix", "apisix")
    plan = cleanup.plan(params, cluster)
    exported = [shown(o, Redactor()) for o in cleanup.export(params, cluster, plan)]
    cleanup.execute(params, cluster, plan)
    assert cluster.get("Namespace", "apisix") is None
    assert cluster.get("Namespace", SHOP)
    with pytest.raises(Blocked, match="does not exist"):
        cleanup.plan(params, cluster)
    restore.execute(params, cluster, restore.plan(params, cluster, exported), exported)
    assert restore.plan(params, cluster, exported).empty

    def serves() -> bool:
        again = cluster.get("Deployment", "apisix", "apisix") or {}
        service = cluster.get("Service", "apisix-gateway", "apisix") or {}
        ready = again.get("status", {}).get("readyReplicas", 0) == again.get("spec", {}).get("replicas")
        return bool(ready and service.get("status", {}).get("loadBalancer", {}).get("ingress"))

    assert until(serves)
    again = cluster.get("Deployment", "apisix", "apisix")
    assert again
    assert deployment
    assert again["spec"] == deployment["spec"]
    target = running["connect_to"][f"{running['apisix_lb_name']}:80"]
    answer = client.post(
        f"http://{target}/api/v1/auth/login",
        headers={"host": "api.voiceassistant.com"},
        json={"user": "probe"},
    )
    assert answer.status_code == 200


def test_uninstall_leaves_what_it_found(params: Params, cluster: Cluster, admin: Cluster) -> None:
    for kind in ("EnvoyFilter", "WorkloadEntry"):  # the lab's own; in production a person removes theirs
        for obj in admin.list(kind):
            admin.delete(kind, obj["metadata"]["name"], obj["metadata"]["namespace"])
    plan = uninstall.plan(params, cluster, created_namespace=True)
    uninstall.execute(plan, params, cluster, created_namespace=True)
    left = uninstall.plan(params, cluster, created_namespace=True)
    # The certificate is a person's, so the namespace stays.
    assert "Secret istio-system/ssl-voiceassistant-com" in left.title
    assert left.steps == ()
    assert not [c for c in cluster.list("CustomResourceDefinition") if "istio.io" in title_of(c)]
    assert not [o for o in cluster.list("ConfigMap") if title_of(o).endswith("/istio-ca-root-cert")]
    assert cluster.get("Deployment", "apisix", "apisix")
