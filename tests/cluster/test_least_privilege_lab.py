"""The lab's account holds the generated ClusterRole and nothing more, so what runs under it proves the role.

The real API server is asked: by its review of all rules, by one question for each verb on each resource that
it serves, and by calls that it refuses. A rehearsal, 00 to 70, runs with this account's kubeconfig alone.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateshift.cluster import install, permissions
from gateshift.cluster.client import Call, Cluster
from gateshift.cluster.tools import cluster_flags, run_tool
from gateshift.lab.account import ACCOUNT, NAMESPACE
from gateshift.lab.sidecars import lab_api
from gateshift.lab.state import LabState
from gateshift.params.load import load
from gateshift.params.model import ClusterParams
from gateshift.runbook.inputs import resolvers
from tests.cluster.operating import PARAMS, own_lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
NAME = "least"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
Granted = set[tuple[str, str, str]]
"""(verb, API group, resource or resource/subresource)."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with own_lab(NAME, tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture(scope="module")
def bearer(running: LabState) -> Iterator[httpx.Client]:
    """The API server, asked with the account's own token and nothing else."""
    config = yaml.safe_load(Path(running["operator_kubeconfig"]).read_text(encoding="utf-8"))
    (user,) = config["users"]
    assert set(user["user"]) == {"token"}
    with client(running, user["user"]["token"]) as found:
        yield found


def client(running: LabState, token: str) -> httpx.Client:
    config = yaml.safe_load(Path(running["operator_kubeconfig"]).read_text(encoding="utf-8"))
    cluster = config["clusters"][0]["cluster"]
    ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return httpx.Client(
        base_url=cluster["server"],
        verify=ssl.create_default_context(cadata=ca),
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=20,
    )


@pytest.fixture(scope="module")
def stranger(running: LabState) -> Iterator[httpx.Client]:
    """An account that nobody gave anything: what every account may do."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    with lab_api(running) as api:
        api.create(path, {"metadata": {"name": "stranger"}})
        token = api.create(f"{path}/stranger/token", {"spec": {}})["status"]["token"]
    with client(running, token) as found:
        yield found


def expanded(rules: Iterable[Mapping[str, Any]]) -> Granted:
    found: Granted = set()
    for rule in rules:
        assert not rule.get("resourceNames"), rule
        found |= {(v, g, r) for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]}
    return found


def reviewed(who: httpx.Client, namespace: str) -> tuple[Granted, set[tuple[str, str]]]:
    """What the API server says this account may do in *namespace*: on resources, and on other paths."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    status = who.post(path, json={"spec": {"namespace": namespace}}).raise_for_status().json()["status"]
    assert status["incomplete"] is False
    other = {(v, p) for r in status["nonResourceRules"] for v in r["verbs"] for p in r["nonResourceURLs"]}
    return expanded(status["resourceRules"]), other


def published() -> Granted:
    """The ClusterRole as it is handed to people."""
    documents = yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text(encoding="utf-8"))
    (role,) = [d for d in documents if d["kind"] == "ClusterRole"]
    return expanded(role["rules"])


@pytest.mark.parametrize("namespace", ["kube-system", "apisix", "voiceassistant-prod", "default", NAMESPACE])
def test_its_rules_are_the_published_ones(
    bearer: httpx.Client, stranger: httpx.Client, namespace: str
) -> None:
    mine, paths = reviewed(bearer, namespace)
    everybody, everybodys_paths = reviewed(stranger, namespace)
    assert mine - everybody == published() - everybody
    assert paths == everybodys_paths
    assert len(published()) > 300


def test_one_binding_names_it(running: LabState) -> None:
    with lab_api(running) as api:
        bindings = [
            b for kind in ("clusterrolebindings", "rolebindings") for b in api.items(f"{RBAC}/{kind}")
        ]
    here = {
        ("ServiceAccount", f"{NAMESPACE}/{ACCOUNT}"),
        ("User", f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"),
    }
    # The groups of all accounts are those of the stranger, too: what they hold is in the comparison above.
    here |= {("Group", f"system:serviceaccounts:{NAMESPACE}")}

    def subject(one: Mapping[str, Any]) -> tuple[str, str]:
        return one["kind"], f"{one['namespace']}/{one['name']}" if one.get("namespace") else one["name"]

    named = [b for b in bindings if here & {subject(s) for s in b.get("subjects") or ()}]
    assert [(b["metadata"]["name"], b["roleRef"]["name"]) for b in named] == [("gateshift", "gateshift")]


def served(who: httpx.Client) -> set[tuple[str, str]]:
    """(group, resource or resource/subresource) of everything that the API server serves."""
    versions = [("", "/api/v1")]
    for group in who.get("/apis").raise_for_status().json()["groups"]:
        versions += [(group["name"], f"/apis/{v['groupVersion']}") for v in group["versions"]]
    return {
        (g, r["name"]) for g, path in versions for r in who.get(path).raise_for_status().json()["resources"]
    }


def test_every_verb_on_every_resource_is_allowed_just_when_the_role_names_it(
    running: LabState, bearer: httpx.Client, stranger: httpx.Client
) -> None:
    cluster = Cluster.connect(ClusterParams(kubeconfig=running["operator_kubeconfig"]))
    asked = [Call(v, g, *r.split("/", 1)) for g, r in sorted(served(bearer)) for v in VERBS]
    asked += [
        Call(v, "rbac.authorization.k8s.io", r)
        for v in ("escalate", "bind")
        for r in ("roles", "clusterroles")
    ]
    asked += [Call("impersonate", "", r) for r in ("users", "groups", "serviceaccounts")]
    assert len(asked) > 700
    with ThreadPoolExecutor(8) as pool:
        allowed = [call for call, yes in zip(asked, pool.map(cluster.may, asked), strict=True) if yes]
    found = {
        (c.verb, c.group, f"{c.resource}/{c.subresource}" if c.subresource else c.resource) for c in allowed
    }
    everybody, _ = reviewed(stranger, "default")
    granted = {(v, g, r) for v, g, r in published() if (g, r) in served(bearer)}
    assert found - everybody == granted - everybody
    assert permissions.covered(allowed) <= {Call(v, g, *r.split("/", 1)) for v, g, r in everybody}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/v1/nodes/lab-node"),
        ("DELETE", "/api/v1/namespaces/apisix/pods"),
        ("POST", "/api/v1/namespaces/apisix/pods/any/exec?command=id"),
        ("PUT", "/api/v1/namespaces/apisix/pods/any/ephemeralcontainers"),
        ("DELETE", "/api/v1/persistentvolumes/any"),
        ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests"),
        ("GET", "/api/v1/nodes/lab-node/proxy/"),
        ("GET", "/metrics"),
    ],
)
def test_the_api_server_refuses_what_is_not_in_the_role(bearer: httpx.Client, method: str, path: str) -> None:
    answer = bearer.request(method, path, json={} if method in {"POST", "PUT"} else None)
    assert answer.status_code == 403, answer.text
    assert f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}" in answer.json()["message"]


def test_it_cannot_be_somebody_else(bearer: httpx.Client) -> None:
    answer = bearer.get("/api/v1/namespaces", headers={"Impersonate-User": "system:admin"})
    assert answer.status_code == 403
    assert "impersonate" in answer.json()["message"]


def test_a_token_of_an_exec_plugin_is_taken_as_eks_gives_it(running: LabState, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(running["operator_kubeconfig"]).read_text(encoding="utf-8"))
    token = config["users"][0]["user"]["token"]
    version = "client.authentication.k8s.io/v1beta1"
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}}
    plugin = tmp_path / "aws"
    asked = 'test "$*" = "eks get-token --cluster-name shop" -a "$AWS_PROFILE" = ops || exit 1\n'
    plugin.write_text(f"#!/bin/sh\n{asked}cat <<'END'\n{json.dumps(credential)}\nEND\n")
    plugin.chmod(0o755)
    arn = "arn:aws:eks:eu-central-1:111122223333:cluster/shop"
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": version,
            "command": str(plugin),
            "args": ["eks", "get-token", "--cluster-name", "shop"],
            "env": [{"name": "AWS_PROFILE", "value": "ops"}],
            "interactiveMode": "Never",
        }
    }
    config["contexts"][0]["name"] = arn
    del config["current-context"]
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    params = load(PARAMS, overrides={"migration": NAME}, resolvers=resolvers())
    eks = params.model_copy(update={"cluster": ClusterParams(kubeconfig=str(file), context=arn)})
    assert Cluster.connect(eks.cluster).get("Namespace", "apisix")
    printed = run_tool(
        [eks.istio.kubectl, "get", "namespaces", "-o", "name", *cluster_flags(eks)], timeout=30
    )
    assert "namespace/apisix" in printed
    assert install.precheck(eks)
