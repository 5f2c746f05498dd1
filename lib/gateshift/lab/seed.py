"""The objects and DNS records that exist before a migration starts, and that a reset puts back."""

from __future__ import annotations

import time
from typing import Any

from gateshift.errors import LabError
from gateshift.lab import topology
from gateshift.lab.api import Api

__all__ = ["first_objects", "has_address", "node_address", "pods_ready", "seed", "simple_records"]


def seed(api: Api, *, limit: float = 20.0) -> None:
    """Create what is missing.

    Retries for *limit* seconds: RBAC's first roles and a namespace being deleted take a moment.
    """
    deadline = time.monotonic() + limit
    while True:
        try:
            for path, item in first_objects():
                api.create(path, item)
            return
        except LabError:
            # Again from the first: a namespace that "exists" may be on its way out.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def pods_ready(api: Api) -> bool:
    """Tell whether all pods of the old gateway are ready."""
    apps = f"/apis/apps/v1/namespaces/{topology.APISIX_NAMESPACE}"
    deployment = _seen(api, f"{apps}/deployments/{topology.APISIX_DEPLOYMENT}")
    ready = deployment.get("status", {}).get("readyReplicas", 0)
    return bool(ready == deployment.get("spec", {}).get("replicas"))


def has_address(api: Api) -> bool:
    """Tell whether the old gateway's Service has its load balancer's name."""
    core = f"/api/v1/namespaces/{topology.APISIX_NAMESPACE}"
    service = _seen(api, f"{core}/services/{topology.APISIX_SERVICE}")
    return bool(service.get("status", {}).get("loadBalancer", {}).get("ingress"))


def _seen(api: Api, path: str) -> dict[str, Any]:
    """Return an object as far as it can be seen: whoever waits for it asks again, up to a limit."""
    try:
        return api.get(path) or {}
    except LabError:
        return {}


def simple_records(url: str) -> None:
    """Make each host one simple alias record to the old gateway's load balancer again."""
    import boto3  # noqa: PLC0415  (half a second to import; only a reset needs it)

    client: Any = boto3.client(
        "route53",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="lab",
        aws_secret_access_key="lab",  # noqa: S106  (the stand-in takes any)
    )
    zone = client.list_hosted_zones_by_name(DNSName=topology.ZONE)["HostedZones"][0]["Id"]
    names = {f"{host}." for host in topology.HOSTS}
    present = client.list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    changes: list[dict[str, Any]] = [
        {"Action": "DELETE", "ResourceRecordSet": r} for r in present if r["Name"] in names
    ]
    changes += [
        {
            "Action": "CREATE",
            "ResourceRecordSet": {
                "Name": name,
                "Type": "A",
                "AliasTarget": {
                    "HostedZoneId": topology.LB_ZONE_ID,
                    "DNSName": f"{topology.APISIX_LB_NAME}.",
                    "EvaluateTargetHealth": False,
                },
            },
        }
        for name in sorted(names)
    ]
    client.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": changes})


def first_objects() -> list[tuple[str, dict[str, Any]]]:
    """Return (collection path, object) of what exists before a migration starts, in order."""
    namespaces = [
        ("/api/v1/namespaces", _namespace(n))
        for n in (topology.APISIX_NAMESPACE, topology.APPLICATION_NAMESPACE)
    ]
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": topology.NODE_NAME,
            "labels": {
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": topology.NODE_NAME,
            },
        },
        "status": {
            "capacity": {"cpu": "64", "memory": "256Gi", "pods": "250"},
            "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "250"},
        },
    }
    apisix = f"/namespaces/{topology.APISIX_NAMESPACE}"
    application = f"/api/v1/namespaces/{topology.APPLICATION_NAMESPACE}/services"
    return [
        ("/api/v1/nodes", node),
        *namespaces,
        (f"/apis/apps/v1{apisix}/deployments", _apisix_deployment()),
        (f"/api/v1{apisix}/services", _apisix_service()),
        *((application, _backend_service(b)) for b in topology.BACKENDS),
    ]


def node_address(kubelet_port: int) -> dict[str, Any]:
    """Return the Node status patch by which the API server finds kwok's kubelet functions.

    Sent once the Node is Ready: kwok's first status drops addresses that were there before.
    """
    return {
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": topology.NODE_NAME},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        }
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _apisix_deployment() -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "apisix"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": topology.APISIX_DEPLOYMENT, "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [
                        {
                            "name": "apisix",
                            "image": "apache/apisix:3.17.0-ubuntu",
                            "ports": [
                                {"name": "http", "containerPort": 9080},
                                {"name": "tls", "containerPort": 9443},
                            ],
                        }
                    ]
                },
            },
        },
    }


def _apisix_service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": topology.APISIX_SERVICE,
            "annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "nlb"},
        },
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app.kubernetes.io/name": "apisix"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 9080},
                {"name": "https", "port": 443, "targetPort": 9443},
            ],
        },
    }


def _backend_service(backend: topology.Backend) -> dict[str, Any]:
    # No pods carry this label, only the WorkloadEntry that the node agent makes once Istio's CRDs exist.
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": backend.name, "labels": {"app": backend.name}},
        "spec": {
            "selector": {"app": backend.name},
            "ports": [{"name": backend.port_name, "port": backend.port, "targetPort": backend.port}],
        },
    }
