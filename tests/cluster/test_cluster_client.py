from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gateshift.cluster.client import Call, Cluster, ConflictError, NotServedError
from gateshift.cluster.failures import ApiError
from gateshift.errors import ClusterError
from gateshift.params.model import ClusterParams
from tests.cluster.conftest import FakeApi

VS = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "VirtualService",
    "metadata": {"name": "a", "namespace": "shop"},
    "spec": {"hosts": ["a.com"]},
}


def test_uid_guards_against_the_wrong_cluster(kubeconfig: str) -> None:
    with pytest.raises(ClusterError, match="not the intended cluster: its uid is cluster-uid, not other"):
        Cluster.connect(ClusterParams(kubeconfig=kubeconfig, uid="other"))
    assert Cluster.connect(ClusterParams(kubeconfig=kubeconfig, uid="cluster-uid")).uid == "cluster-uid"


def test_missing_kubeconfig_and_context_are_named(kubeconfig: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="nowhere"):
        Cluster.connect(ClusterParams(kubeconfig=str(tmp_path / "nowhere")))
    with pytest.raises(ClusterError, match="staging"):
        Cluster.connect(ClusterParams(kubeconfig=kubeconfig, context="staging"))


def test_list_follows_pages_and_labels(api: FakeApi, cluster: Cluster) -> None:
    for n in range(8):
        api.add("Pod", f"p{n}", "shop", metadata={"labels": {"even": str(n % 2 == 0)}})
    api.add("Pod", "q", "other")
    assert [p["metadata"]["name"] for p in cluster.list("Pod", "shop")] == [f"p{n}" for n in range(8)]
    assert len(cluster.list("Pod", "shop", labels="even=True")) == 4
    assert len(cluster.list("Pod")) == 9
    assert cluster.list("Pod", "shop")[0]["kind"] == "Pod"


def test_absent_object_is_none_but_forbidden_is_an_error(api: FakeApi, cluster: Cluster) -> None:
    assert cluster.get("Pod", "nope", "shop") is None
    api.refuse = lambda *_: (403, {"message": 'pods "x" is forbidden'})
    with pytest.raises(ApiError, match="forbidden") as caught:
        cluster.get("Namespace", "x")
    assert caught.value.status == 403
    assert "ClusterRole" in caught.value.hint


def test_conflict_names_owner_and_field_and_is_not_forced(api: FakeApi, cluster: Cluster) -> None:
    api.add("VirtualService", "a", "shop", spec={"hosts": ["b.com"]}, owners={"hosts": "argocd"})
    with pytest.raises(ConflictError, match=r"\.spec\.hosts is owned by argocd"):
        cluster.apply(VS)
    assert not any("force" in path for _, path in api.requests)
    assert api.find("VirtualService", "a", "shop")["spec"]["hosts"] == ["b.com"]  # type: ignore[index]


def test_force_is_for_dry_runs_only(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="never forced"):
        cluster.apply(VS, force=True)


def test_dry_run_changes_nothing(api: FakeApi, cluster: Cluster) -> None:
    assert cluster.apply(VS, dry_run=True)["spec"] == VS["spec"]
    assert api.find("VirtualService", "a", "shop") is None


def test_webhook_refusal_reads_as_one_sentence(api: FakeApi, cluster: Cluster) -> None:
    words = (
        'admission webhook "validation.istio.io" denied the request: configuration is invalid: HTTP route x'
    )
    api.refuse = lambda method, *_: (400, {"message": words}) if method == "PATCH" else None
    with pytest.raises(ApiError) as caught:
        cluster.apply(VS)
    assert str(caught.value) == (
        "VirtualService shop/a was refused by the admission webhook validation.istio.io: "
        "configuration is invalid: HTTP route x"
    )


def test_dead_webhook_is_told_apart(api: FakeApi, cluster: Cluster) -> None:
    words = 'Internal error occurred: failed calling webhook "validation.istio.io": connection refused'
    api.refuse = lambda method, *_: (500, {"message": words}) if method == "PATCH" else None
    with pytest.raises(ApiError, match="did not answer: connection refused"):
        cluster.apply(VS)


def test_html_from_a_proxy_is_no_answer(api: FakeApi, cluster: Cluster) -> None:
    api.refuse = lambda *_: (200, b"<html>login</html>")  # type: ignore[assignment]  # on purpose no JSON
    with pytest.raises(ClusterError, match="not JSON"):
        cluster.raw("/version")


def test_unknown_kind_and_late_crd(api: FakeApi, cluster: Cluster) -> None:
    kind = ("networking.istio.io/v1", "VirtualService")
    api.kinds = {k for k in api.kinds if not k[0].startswith("networking.istio.io")}
    assert not cluster.serves("VirtualService")
    with pytest.raises(NotServedError, match="does not serve VirtualService"):
        cluster.list("VirtualService")
    api.kinds.add(kind)  # installed meanwhile: absence is not cached
    assert cluster.serves("VirtualService")
    with pytest.raises(NotServedError, match="Foo"):
        cluster.list("Foo")


def test_old_istio_is_asked_in_v1beta1(api: FakeApi, cluster: Cluster) -> None:
    api.kinds.discard(("networking.istio.io/v1", "VirtualService"))
    assert cluster.resource("VirtualService").api_version == "networking.istio.io/v1beta1"


def test_discovery_is_cached_per_instance(api: FakeApi, cluster: Cluster) -> None:
    cluster.list("Pod")
    cluster.list("Service")
    assert [p for _, p in api.requests].count("/api/v1") == 1


def test_hanging_server_ends_in_time(server: str, kubeconfig: str, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        slow = tmp_path / "slow"
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        slow.write_text(Path(kubeconfig).read_text().replace(server, address))
        cluster = Cluster.connect(ClusterParams(kubeconfig=str(slow)), timeout=0.3)
        with pytest.raises(ClusterError, match=r"no answer within 0\.3 s"):
            cluster.raw("/version")


def test_refused_connection_names_the_server(server: str, kubeconfig: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.write_text(Path(kubeconfig).read_text().replace(server, "http://127.0.0.1:1"))
    cluster = Cluster.connect(ClusterParams(kubeconfig=str(gone)))
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:1 is not reachable.*refused"):
        cluster.list("Pod")


def test_what_was_shed_is_sent_again_also_a_write(api: FakeApi, cluster: Cluster) -> None:
    shed = (429, {"message": "busy"}, {"Retry-After": "0"})
    left = iter([shed])
    api.refuse = lambda *_: next(left, None)
    assert cluster.raw("/version") == {"gitVersion": "v1.34.2"}
    cluster.resource("VirtualService")
    left = iter([shed, shed])
    assert cluster.apply(VS, dry_run=True)["spec"] == VS["spec"]
    left = iter([shed])
    assert cluster.may(Call("get", "", "pods"))
    api.refuse = lambda *_: shed
    before = len(api.requests)
    with pytest.raises(ApiError, match="busy"):
        cluster.apply(VS)
    assert len(api.requests) - before == 3


def test_the_pause_is_as_long_as_the_server_asks(api: FakeApi, cluster: Cluster) -> None:
    left = iter([(429, {"message": "busy"}, {"Retry-After": "2"})])
    api.refuse = lambda *_: next(left, None)
    begun = time.monotonic()
    cluster.raw("/version")
    assert time.monotonic() - begun >= 2


def test_a_write_is_not_repeated_after_a_failure_that_may_have_done_it(
    api: FakeApi, cluster: Cluster
) -> None:
    cluster.resource("VirtualService")
    api.refuse = lambda method, *_: (503, {"message": "etcd"}) if method == "PATCH" else None
    before = len(api.requests)
    with pytest.raises(ApiError, match="etcd"):
        cluster.apply(VS)
    assert len(api.requests) - before == 1


def test_definitions_are_read_in_small_pages(api: FakeApi, cluster: Cluster) -> None:
    for n in range(4):
        api.add("CustomResourceDefinition", f"c{n}")
    assert len(cluster.list("CustomResourceDefinition")) == 4
    asked = [p for _, p in api.requests if "/customresourcedefinitions?" in p]
    assert len(asked) == 2
    assert all("limit=25" in p for p in asked)


def test_a_list_whose_pages_expired_is_begun_anew_and_not_for_ever(api: FakeApi, cluster: Cluster) -> None:
    for n in range(5):
        api.add("Pod", f"p{n}", "shop")
    gone = (410, {"message": "The provided continue parameter is too old"})
    left = iter([gone])

    def expire(*_: Any) -> Any:
        return next(left, None) if "continue=" in api.requests[-1][1] else None

    api.refuse = expire
    assert [p["metadata"]["name"] for p in cluster.list("Pod", "shop")] == [f"p{n}" for n in range(5)]
    api.refuse = lambda *_: gone if "continue=" in api.requests[-1][1] else None
    with pytest.raises(ApiError, match="too old"):
        cluster.list("Pod", "shop")


def test_lease_is_taken_by_one(cluster: Cluster) -> None:
    lease = cluster.lease_create("shop", "lock", {"holderIdentity": "me"})
    with pytest.raises(ConflictError, match="already exists"):
        cluster.lease_create("shop", "lock", {"holderIdentity": "you"})
    outcomes: list[str] = []

    def take(who: str) -> None:
        try:
            cluster.lease_update(
                {**lease, "metadata": dict(lease["metadata"]), "spec": {"holderIdentity": who}}
            )
            outcomes.append(who)
        except ConflictError:
            outcomes.append("lost")

    threads = [threading.Thread(target=take, args=(w,)) for w in ("a", "b")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert outcomes.count("lost") == 1
    assert cluster.lease_get("shop", "none") is None


def test_token_is_in_no_error(api: FakeApi, cluster: Cluster) -> None:
    api.refuse = lambda *_: (500, {"message": "boom"})
    with pytest.raises(ApiError) as caught:
        cluster.raw("/version")
    assert "secret-token" not in f"{caught.value} {caught.value.hint}"


def test_may_asks_and_calls_are_on_record(api: FakeApi, cluster: Cluster) -> None:
    api.denied.add(("delete", "namespaces"))
    assert not cluster.may(Call("delete", "", "namespaces"))
    assert cluster.may(Call("get", "", "namespaces"))
    cluster.list("Pod", "shop")
    assert Call("list", "", "pods") in cluster.calls
