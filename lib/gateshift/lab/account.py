"""The ServiceAccount as which a rehearsal runs: it holds what ``gateshift preflight`` asks for, nothing more.

So each rehearsal proves that the generated ClusterRole is enough.
"""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from gateshift.cluster.permissions import binding, cluster_role
from gateshift.errors import LabError
from gateshift.lab.api import Api

__all__ = ["ACCOUNT", "NAMESPACE", "create"]

NAMESPACE = "gateshift"
ACCOUNT = "gateshift"
_TOKEN_LIFE = 24 * 3600


def create(api: Api, url: str, ca: Path, folder: Path, name: str) -> Path:
    """Make the account with its rights and write a kubeconfig for it; return the file's path."""
    api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    api.create(accounts, {"metadata": {"name": ACCOUNT}})
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    api.create(f"{rbac}/clusterroles", yaml.safe_load(cluster_role()))
    api.create(f"{rbac}/clusterrolebindings", yaml.safe_load(binding(ACCOUNT, NAMESPACE)))
    answer = api.create(f"{accounts}/{ACCOUNT}/token", {"spec": {"expirationSeconds": _TOKEN_LIFE}})
    token = str(answer.get("status", {}).get("token", ""))
    if not token:
        raise LabError(f"the API server gave no token for {NAMESPACE}/{ACCOUNT}")
    context = f"gateshift-lab-{name}-operator"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": context,
                "cluster": {
                    "server": url,
                    "certificate-authority-data": base64.b64encode(ca.read_bytes()).decode(),
                },
            }
        ],
        "users": [{"name": context, "user": {"token": token}}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }
    path = folder / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
