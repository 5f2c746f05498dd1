from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gateshift.archive.snapshots import SnapshotFile, read_snapshot
from gateshift.cluster import acceptance, apply
from gateshift.cluster.client import Cluster
from gateshift.cluster.objects import MANAGED_BY
from gateshift.cluster.permissions import covered
from gateshift.errors import Blocked, ClusterError
from tests.cluster.conftest import FakeApi


def service(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"hosts": [host], **more},
    }


def policy(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"action": "DENY"},
    }


@pytest.fixture(autouse=True)
def _namespace(api: FakeApi) -> None:
    api.add("Namespace", "shop")


def state(api: FakeApi) -> dict[tuple[str, ...], Any]:
    return {k: copy.deepcopy(o.get("spec")) for k, o in api.objects.items()}


def test_policies_come_before_routes_and_all_are_labelled(api: FakeApi, cluster: Cluster) -> None:
    wanted = [service("a", "a.com"), policy("p")]
    plan = apply.plan(cluster, wanted)
    assert [s.target for s in plan.steps] == ["AuthorizationPolicy shop/p", "VirtualService shop/a"]
    assert apply.plan(cluster, list(reversed(wanted))).digest == plan.digest
    apply.execute(cluster, wanted, plan)
    assert api.find("VirtualService", "a", "shop")["metadata"]["labels"] == {MANAGED_BY: "gateshift"}  # type: ignore[index]
    assert apply.plan(cluster, wanted).empty
    assert not covered(cluster.calls)


def test_planning_writes_nothing(api: FakeApi, cluster: Cluster) -> None:
    before = state(api)
    apply.plan(cluster, [service("a", "a.com")])
    assert state(api) == before


def test_diff_shows_what_changes(cluster: Cluster) -> None:
    apply.execute(cluster, [service("a", "a.com")], apply.plan(cluster, [service("a", "a.com")]))
    step = apply.plan(cluster, [service("a", "b.com")]).steps[0]
    assert step.verb == "change"
    assert "-  - a.com" in step.note
    assert "+  - b.com" in step.note


def test_only_what_we_made_is_pruned(api: FakeApi, cluster: Cluster) -> None:
    both = [service("a", "a.com"), service("b", "b.com")]
    apply.execute(cluster, both, apply.plan(cluster, both))
    api.add("VirtualService", "theirs", "shop", spec={"hosts": ["t.com"]})
    api.add("VirtualService", "copied", "shop", spec={}, metadata={"labels": {MANAGED_BY: "gateshift"}})
    plan = apply.plan(cluster, both[:1])
    assert [(s.verb, s.target) for s in plan.steps] == [("delete", "VirtualService shop/b")]
    apply.execute(cluster, both[:1], plan)
    assert api.find("VirtualService", "b", "shop") is None
    assert api.find("VirtualService", "theirs", "shop")
    assert api.find("VirtualService", "copied", "shop")  # the label alone proves nothing


def test_what_a_person_had_made_with_equal_fields_is_adopted_and_never_pruned(
    api: FakeApi, cluster: Cluster
) -> None:
    api.add("VirtualService", "theirs", "shop", spec={"hosts": ["t.com"]})
    wanted = [service("theirs", "t.com"), service("ours", "o.com")]
    apply.execute(cluster, wanted, apply.plan(cluster, wanted))
    adopted = api.find("VirtualService", "theirs", "shop")
    assert adopted
    assert adopted["metadata"]["labels"] == {MANAGED_BY: "gateshift"}
    assert {m["manager"] for m in adopted["metadata"]["managedFields"]} == {"gateshift"}
    assert apply.plan(cluster, wanted).empty
    keep = [service("kept", "k.com")]
    plan = apply.plan(cluster, keep)
    assert [s.target for s in plan.steps if s.verb == "delete"] == ["VirtualService shop/ours"]
    apply.execute(cluster, keep, plan)
    assert api.find("VirtualService", "theirs", "shop")


def test_a_snapshot_is_kept_in_parts_of_which_each_is_written_once(
    api: FakeApi, cluster: Cluster, tmp_path: Path
) -> None:
    first = [service(f"s{n}", "old.com") for n in range(6)]
    apply.execute(cluster, first, apply.plan(cluster, first))
    wanted = [service(f"s{n}", "new.com") for n in range(6)]
    file = SnapshotFile(tmp_path / "before.jsonl")
    parts: list[Any] = []

    def save(part: Any) -> None:
        parts.append(part)
        file.write(apply.archived(part))

    snapshot = apply.execute(cluster, wanted, apply.plan(cluster, wanted), save=save)
    assert read_snapshot(tmp_path / "before.jsonl") == snapshot
    assert len(parts) == 1 + 2 * 6  # the cluster; each object before and after: no part has them all
    assert not [part for part in parts if "objects" in part]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_a_dead_process_left_of_its_snapshot_takes_everything_back(
    api: FakeApi, cluster: Cluster, tmp_path: Path, at: int
) -> None:
    first = [service("a", "a.com"), service("gone", "g.com")]
    apply.execute(cluster, first, apply.plan(cluster, first))
    before = state(api)
    wanted = [service("a", "new.com"), service("b", "b.com")]
    file = tmp_path / "before.jsonl"
    kept = SnapshotFile(file)
    texts: list[str] = []

    def save(part: Any) -> None:
        kept.write(apply.archived(part))
        if "name" in part:
            texts.append(file.read_text())

    def states(_: str) -> None:
        done.append({k: copy.deepcopy(o) for k, o in api.objects.items()})

    done: list[dict[Any, Any]] = []
    apply.execute(cluster, wanted, apply.plan(cluster, wanted), save=save, progress=states)
    # It died after this change was made, and before what the server answered was written.
    file.write_text(texts[at])
    api.objects = done[at]
    assert apply.undo(cluster, read_snapshot(file)) == []
    assert state(api) == before


def test_snapshots_are_read_in_each_form_and_without_a_torn_end(tmp_path: Path) -> None:
    entry = {"kind": "Gateway", "name": "g", "namespace": "shop", "before": None, "after": None}
    whole = {"cluster": "c", "objects": [entry]}
    file = tmp_path / "before"
    for text in (json.dumps(whole, indent=1) + "\n", json.dumps(whole)):
        file.write_text(text)
        assert read_snapshot(file) == whole
    head, line = json.dumps({"cluster": "c"}) + "\n", json.dumps(entry)
    file.write_text(f'{head}{line}\n{{"after": {{"uid": "1"}}}}\n')
    assert read_snapshot(file) == {"cluster": "c", "objects": [{**entry, "after": {"uid": "1"}}]}
    file.write_text(f"{head}{line[:20]}")
    assert read_snapshot(file) == {"cluster": "c", "objects": []}
    for bad in ("", f"{head}{line[:20]}\n", f"{line[:20]}\n{line}\n"):
        file.write_text(bad)
        with pytest.raises(ValueError):  # noqa: PT011 - which of them is JSON's own affair
            read_snapshot(file)


def api_objects() -> list[dict[str, Any]]:
    group = "gateway.networking.k8s.io"
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "a.com", "namespace": "shop"},
            "spec": {"hostnames": ["a.com"]},
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "Gateway",
            "metadata": {"name": "gateshift-gateway-api", "namespace": "shop"},
            "spec": {"gatewayClassName": "istio"},
        },
        {
            "apiVersion": f"{group}/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "gateshift-shop", "namespace": "shop"},
            "spec": {},
        },
    ]


def test_routes_of_the_gateway_api_come_last_and_go_when_the_form_changes(
    api: FakeApi, cluster: Cluster
) -> None:
    wanted = [*api_objects(), policy("p")]
    plan = apply.plan(cluster, wanted, migration="m")
    assert [s.target for s in plan.steps] == [
        "AuthorizationPolicy shop/p",
        "ReferenceGrant shop/gateshift-shop",
        "Gateway shop/gateshift-gateway-api",
        "HTTPRoute shop/a.com",
    ]
    apply.execute(cluster, wanted, plan)
    as_service = [service("a", "a.com"), policy("p")]
    plan = apply.plan(cluster, as_service, migration="m")
    assert [(s.verb, s.target) for s in plan.steps] == [
        ("create", "VirtualService shop/a"),
        ("delete", "HTTPRoute shop/a.com"),
        ("delete", "Gateway shop/gateshift-gateway-api"),
        ("delete", "ReferenceGrant shop/gateshift-shop"),
    ]
    snapshot = apply.execute(cluster, as_service, plan)
    assert not [key for key in api.objects if key[0].startswith("gateway.networking")]
    assert apply.undo(cluster, snapshot) == []
    assert {key[1] for key in api.objects if key[0].startswith("gateway.networking")} == {
        "httproutes",
        "gateways",
        "referencegrants",
    }
    assert not covered(cluster.calls)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_failure_at_each_step_restores_everything(api: FakeApi, cluster: Cluster, at: int) -> None:
    first = [service("a", "a.com"), service("gone", "g.com")]
    apply.execute(cluster, first, apply.plan(cluster, first))
    wanted = [service("a", "new.com"), service("b", "b.com")]
    plan = apply.plan(cluster, wanted)
    assert [s.verb for s in plan.steps] == ["change", "create", "delete"]
    before = state(api)
    writes: list[str] = []

    def refuse(method: str, path: str, _: Any) -> Any:
        if method in {"PATCH", "DELETE"} and "dryRun" not in api.requests[-1][1] and not writes[at:]:
            writes.append(path)
            if len(writes) == at + 1:
                return 500, {"message": "etcd is full"}
        return None

    api.refuse = refuse
    with pytest.raises(ClusterError, match=r"etcd is full.*everything was restored"):
        apply.execute(cluster, wanted, plan)
    assert state(api) == before


def test_acceptance_that_fails_restores(api: FakeApi, cluster: Cluster) -> None:
    before = state(api)
    wanted = [service("a", "a.com")]

    def refuse_it() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply.execute(cluster, wanted, apply.plan(cluster, wanted), accept=refuse_it)
    assert state(api) == before


def test_restore_does_not_overwrite_somebody_elses_change(api: FakeApi, cluster: Cluster) -> None:
    first = [service("a", "a.com")]
    apply.execute(cluster, first, apply.plan(cluster, first))
    second = [service("a", "b.com")]
    snapshot = apply.execute(cluster, second, apply.plan(cluster, second))
    live = copy.deepcopy(api.find("VirtualService", "a", "shop"))
    assert live
    live["spec"]["hosts"] = ["theirs.com"]
    live["metadata"]["managedFields"].append({"manager": "kubectl", "operation": "Update", "time": "later"})
    api.store(live)
    left = apply.undo(cluster, snapshot)
    assert len(left) == 1
    assert "somebody changed it since" in left[0]
    assert api.find("VirtualService", "a", "shop")["spec"]["hosts"] == ["theirs.com"]  # type: ignore[index]


def test_changed_cluster_voids_the_plan(api: FakeApi, cluster: Cluster) -> None:
    wanted = [service("a", "a.com")]
    plan = apply.plan(cluster, wanted)
    api.add("VirtualService", "a", "shop", spec={"hosts": ["quick.com"]})
    with pytest.raises(Blocked, match="changed since this plan"):
        apply.execute(cluster, wanted, plan)


def test_all_refusals_are_told_at_once(api: FakeApi, cluster: Cluster) -> None:
    words = 'admission webhook "validation.istio.io" denied the request: bad'
    api.refuse = lambda method, *_: (400, {"message": words}) if method == "PATCH" else None
    with pytest.raises(
        ClusterError, match=r"2 of 2 objects are refused, nothing was applied.*shop/a.*shop/b"
    ):
        apply.plan(cluster, [service("a", "a.com"), service("b", "b.com")])


def test_same_object_twice_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="given twice"):
        apply.plan(cluster, [service("a", "a.com"), service("a", "b.com")])


def test_existing_secret_is_kept_and_never_shown(api: FakeApi, cluster: Cluster) -> None:
    def secret(value: str) -> dict[str, Any]:
        metadata = {"name": "s", "namespace": "shop"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"tls.key": value}}

    plan = apply.plan(cluster, [secret("cHJpdmF0ZQ==")])
    assert "cHJpdmF0ZQ" not in str(plan.as_json())
    apply.execute(cluster, [secret("cHJpdmF0ZQ==")], plan)
    assert api.find("Secret", "s", "shop")["data"] == {"tls.key": "cHJpdmF0ZQ=="}  # type: ignore[index]
    assert apply.plan(cluster, [secret("b3RoZXI=")]).empty


def keys(secret: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "jwt", "namespace": "shop"},
        "spec": {"jwtRules": [{"issuer": "i", "jwks": f'{{"keys":[{{"kty":"oct","k":"{secret}"}}]}}'}]},
    }


def test_a_rotated_signing_key_is_applied_and_taken_back_but_never_shown(
    api: FakeApi, cluster: Cluster
) -> None:
    def key() -> str:
        found = api.find("RequestAuthentication", "jwt", "shop")
        assert found is not None
        return str(found["spec"]["jwtRules"][0]["jwks"])

    apply.execute(cluster, [keys("b2xk")], apply.plan(cluster, [keys("b2xk")]))
    assert apply.plan(cluster, [keys("b2xk")]).empty
    plan = apply.plan(cluster, [keys("bmV3")])
    assert [s.verb for s in plan.steps] == ["change"]
    assert plan.digest == apply.plan(cluster, [keys("bmV3")]).digest
    assert plan.digest != apply.plan(cluster, [keys("c3RyYW5nZXI")]).digest  # an approval is for one key
    assert "b2xk" not in str(plan.as_json())
    assert "bmV3" not in str(plan.as_json())
    assert acceptance.brings_push(plan.steps)
    snapshot = apply.execute(cluster, [keys("bmV3")], plan)
    assert "bmV3" in key()
    for kept in (snapshot, apply.archived(snapshot)):
        assert [s.verb for s in apply.plan_undo(cluster, kept).steps] == ["change"]
    assert apply.undo(cluster, apply.archived(snapshot)) != []  # an archive has no secret to bring back
    assert apply.undo(cluster, snapshot) == []
    assert "b2xk" in key()


def test_istiod_is_not_waited_for_where_it_sends_nothing(cluster: Cluster) -> None:
    def steps(obj: dict[str, Any], migration: str) -> tuple[Any, ...]:
        plan = apply.plan(cluster, [obj], migration=migration)
        apply.execute(cluster, [obj], plan)
        return plan.steps

    assert acceptance.brings_push(steps(service("a", "a.com"), "first"))  # new
    renamed = steps(service("a", "a.com"), "second")
    assert [s.verb for s in renamed] == ["change"]
    assert not acceptance.brings_push(renamed)  # the migration's name alone
    assert acceptance.brings_push(steps(service("a", "b.com"), "second"))
    labelled = service("a", "b.com")
    labelled["metadata"]["annotations"] = {"istio.io/rev": "x"}
    assert acceptance.brings_push(steps(labelled, "second"))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}
    assert acceptance.brings_push(steps({**other, "data": {"a": "1"}}, "second"))
    assert acceptance.brings_push(steps({**other, "data": {"a": "1"}}, "third"))


def test_new_namespace_comes_first(cluster: Cluster) -> None:
    home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fresh"}}
    obj = service("a", "a.com")
    obj["metadata"]["namespace"] = "fresh"
    plan = apply.plan(cluster, [obj, home])
    assert [s.target for s in plan.steps] == ["Namespace fresh", "VirtualService fresh/a"]
    apply.execute(cluster, [obj, home], plan)
    assert apply.plan(cluster, [obj, home]).empty


def test_snapshot_of_another_cluster_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Blocked, match="another cluster"):
        apply.undo(cluster, {"cluster": "x", "objects": []})
