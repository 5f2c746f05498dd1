"""How istiod and the ingress gateway run beside the lab's cluster: environment, files, command lines.

The node agent plays the kubelet for them: it reads the pod, its ConfigMaps and a ServiceAccount token, and
starts the real program with the same settings, its ports moved to free loopback ports. The differences from
a container, all of them because upstream Envoy has none of Istio's own filters:

- the mesh configuration loses ``defaultProviders`` (istio.stats would be pushed and refused by Envoy);
- istiod runs with PILOT_ENABLE_METADATA_EXCHANGE and PILOT_ENABLE_ALPN_FILTER off;
- an EnvoyFilter adds Envoy's stats access logger, which counts what istio.stats would.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gateshift.lab import topology
from gateshift.lab.api import Api

__all__ = [
    "envoy_filters",
    "gateway_command",
    "gateway_environment",
    "inherited",
    "istiod_command",
    "istiod_environment",
    "lay_proxy",
    "mesh_for_lab",
    "request_counter",
    "tls_secret",
    "workload_entry",
    "write_bootstrap",
]

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_LOGGER = "envoy.access_loggers.stats"
_STATS = "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config"
_TOKEN_LIFE = 12 * 3600
_SELECTOR = {"labels": {"istio": "ingressgateway"}}


def inherited() -> dict[str, str]:
    """Return what a program of the lab takes over from the environment of whoever starts it."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_STATE_HOME", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k in kept}


def plain_environment(pod: Mapping[str, Any], container: str) -> dict[str, str]:
    """Return the container's environment as far as it is written out in the pod (no references)."""
    for one in pod["spec"]["containers"]:
        if one["name"] == container:
            return {e["name"]: e["value"] for e in one.get("env") or () if "value" in e}
    return {}


def mesh_for_lab(text: str) -> str:
    """Return the ConfigMap's mesh configuration without what upstream Envoy refuses."""
    mesh = yaml.safe_load(text) or {}
    mesh["defaultProviders"] = {}
    return yaml.safe_dump(mesh, sort_keys=False)


def istiod_environment(pod: Mapping[str, Any]) -> dict[str, str]:
    """Return istiod's environment: the pod's, with what the lab must change."""
    return {
        **plain_environment(pod, "discovery"),
        "POD_NAME": str(pod["metadata"]["name"]),
        "POD_NAMESPACE": topology.GATEWAY_NAMESPACE,
        "SERVICE_ACCOUNT": "istiod",
        "KUBECONFIG": "",
        "ISTIOD_CUSTOM_HOST": "localhost",
        "PILOT_ENABLE_METADATA_EXCHANGE": "false",
        "PILOT_ENABLE_ALPN_FILTER": "false",
    }


def istiod_command(program: str, kubeconfig: str, ports: Mapping[str, int]) -> list[str]:
    """Return istiod's command line, every port on loopback."""
    return [
        program,
        "discovery",
        f"--kubeconfig={kubeconfig}",
        f"--grpcAddr=127.0.0.1:{ports['istiod_grpc']}",
        f"--secureGRPCAddr=127.0.0.1:{ports['istiod_xds']}",
        f"--httpsAddr=127.0.0.1:{ports['istiod_https']}",
        f"--httpAddr=127.0.0.1:{ports['istiod_http']}",
        f"--monitoringAddr=127.0.0.1:{ports['istiod_monitoring']}",
        f"--ctrlz_port={ports['istiod_ctrlz']}",
        "--ctrlz_address=127.0.0.1",
        "--keepaliveMaxServerConnectionAge=30m",
        "--shutdownDuration=1s",
        "--log_output_level=default:info",
    ]


def write_bootstrap(template: str, target: Path) -> None:
    """Copy Istio's bootstrap template with its wildcard listeners moved to loopback.

    Envoy merges histograms only when it flushes statistics, by default every 5 s; the lab scrapes every
    second, and its compressed stages would see latencies of the stage before.
    """
    text = Path(template).read_text(encoding="utf-8")
    text = text.replace("{{ .wildcard }}", "{{ .localhost }}")
    interval = '"stats_flush_interval": "1s",\n  "stats_config": {'
    target.write_text(text.replace('"stats_config": {', interval, 1), encoding="utf-8")


def lay_proxy(api: Api, folder: Path, root: Mapping[str, Any], account: str, template: str) -> None:
    """Lay out what pilot-agent reads below *folder*: the CA's root, a token and the bootstrap template.

    *root* is the ConfigMap ``istio-ca-root-cert``, *account* the API path of the proxy's ServiceAccount.
    """
    tokens = folder / "var" / "run" / "secrets" / "tokens"
    tokens.mkdir(parents=True, exist_ok=True)
    (folder / "etc" / "istio" / "proxy").mkdir(parents=True, exist_ok=True)
    (folder / "root-cert.pem").write_text(root["data"]["root-cert.pem"], encoding="utf-8")
    answer = api.create(
        f"{account}/token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": ["istio-ca"], "expirationSeconds": _TOKEN_LIFE},
        },
    )
    token = tokens / "istio-token"
    token.touch(mode=0o600)
    token.write_text(answer["status"]["token"], encoding="utf-8")
    write_bootstrap(template, folder / "envoy_bootstrap.json")


def gateway_environment(
    pod: Mapping[str, Any], ports: Mapping[str, int], envoy: str, folder: Path
) -> dict[str, str]:
    """Return pilot-agent's environment for the gateway pod."""
    metadata = pod["metadata"]
    labels = dict(metadata.get("labels") or {})
    proxy = {
        "discoveryAddress": f"localhost:{ports['istiod_xds']}",
        "binaryPath": envoy,
        # Relative to the working folder: a socket is made there, and its path may not pass 108 characters.
        "configPath": "./etc/istio/proxy",
        "proxyBootstrapTemplatePath": str(folder / "envoy_bootstrap.json"),
        "proxyAdminPort": ports["envoy_admin"],
        "statusPort": ports["agent_status"],
        "concurrency": 1,
        "terminationDrainDuration": "1s",
        "proxyStatsMatcher": {
            "inclusionPrefixes": ["cluster.outbound", "http.", "listener.", "server.", "cluster_manager"]
        },
    }
    root = str(folder / "root-cert.pem")
    workload = labels.get("app", topology.GATEWAY_SERVICE)
    return {
        **plain_environment(pod, "istio-proxy"),
        "POD_NAME": str(metadata["name"]),
        "POD_NAMESPACE": str(metadata["namespace"]),
        "INSTANCE_IP": str(pod["status"].get("podIP", "")),
        "HOST_IP": "127.0.0.1",
        "SERVICE_ACCOUNT": str(pod["spec"].get("serviceAccountName", "default")),
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "ISTIO_META_NODE_NAME": topology.NODE_NAME,
        "ISTIO_META_WORKLOAD_NAME": str(workload),
        "ISTIO_METAJSON_LABELS": json.dumps(labels),
        "ISTIOD_SAN": f"istiod.{topology.GATEWAY_NAMESPACE}.svc",
        "XDS_ROOT_CA": root,
        "CA_ROOT_CA": root,
        "CA_ADDR": f"localhost:{ports['istiod_xds']}",
        "ENVOY_PROMETHEUS_PORT": str(ports["envoy_metrics"]),
        "ENVOY_STATUS_PORT": str(ports["envoy_status"]),
        "TERMINATION_DRAIN_DURATION_SECONDS": "1",  # a pod's own setting would go before PROXY_CONFIG
        "PROXY_CONFIG": json.dumps(proxy),
    }


def gateway_command(program: str) -> list[str]:
    """Return pilot-agent's command line."""
    return [
        program,
        "proxy",
        "router",
        "--domain",
        f"{topology.GATEWAY_NAMESPACE}.svc.cluster.local",
        "--proxyLogLevel=warning",
        "--log_output_level=default:info",
    ]


def workload_entry(backend: topology.Backend, port: int) -> dict[str, Any]:
    """Return the WorkloadEntry that puts a backend on this machine behind its Service."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": backend.name, "namespace": topology.APPLICATION_NAMESPACE},
        "spec": {
            "address": "127.0.0.1",
            "labels": {"app": backend.name},
            "ports": {backend.port_name: port},
        },
    }


def envoy_filters() -> list[dict[str, Any]]:
    """Return the lab's EnvoyFilters: request metrics, and the gateway's listeners moved to loopback."""

    def item(name: str, why: str, patches: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": {
                "name": name,
                "namespace": topology.GATEWAY_NAMESPACE,
                "annotations": {"gateshift.dev/lab": why},
            },
            "spec": {"workloadSelector": _SELECTOR, "configPatches": patches},
        }

    (metrics,) = request_counter(_SELECTOR, "GATEWAY", _tags())["configPatches"]

    # Any port: a Gateway that names a wrong one must not open a listener to the outside either.
    loopback = {
        "applyTo": "LISTENER",
        "match": {"context": "GATEWAY"},
        "patch": {
            "operation": "MERGE",
            "value": {"address": {"socket_address": {"address": "127.0.0.1"}}},
        },
    }
    return [
        item("lab-request-metrics", "stands in for istio.stats, which upstream Envoy lacks", [metrics]),
        item("lab-loopback", "the lab listens on loopback only", [loopback]),
    ]


def request_counter(selector: Mapping[str, Any], context: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    """Return the spec of an EnvoyFilter that counts requests as istio.stats would, with these *tags*."""
    value = {"@type": _HCM, "access_log": [{"name": _LOGGER, "typed_config": _stats_logger(tags)}]}
    chain = {"filter": {"name": "envoy.filters.network.http_connection_manager"}}
    patch = {
        "applyTo": "NETWORK_FILTER",
        "match": {"context": context, "listener": {"filterChain": chain}},
        "patch": {"operation": "MERGE", "value": {"typed_config": value}},
    }
    return {"workloadSelector": dict(selector), "configPatches": [patch]}


def _tags() -> list[dict[str, str]]:
    fixed = {
        "reporter": "source",
        "source_workload": topology.GATEWAY_SERVICE,
        "source_workload_namespace": topology.GATEWAY_NAMESPACE,
        "source_app": topology.GATEWAY_SERVICE,
        "source_canonical_service": topology.GATEWAY_SERVICE,
        "source_cluster": "Kubernetes",
        "destination_cluster": "Kubernetes",
        # Istio writes the policy of the receiving side only; a gateway reports as the source.
        "connection_security_policy": "unknown",
    }
    read = {
        "response_code": "%RESPONSE_CODE%",
        "response_flags": "%RESPONSE_FLAGS%",
        "grpc_response_status": "%GRPC_STATUS_NUMBER%",
        "request_protocol": "%PROTOCOL%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    }
    return [{"name": n, "value_format": v} for n, v in (fixed | read).items()]


def _stats_logger(tags: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "@type": _STATS,
        "stat_prefix": "istio",
        "counters": [{"stat": {"name": "requests_total", "tags": tags}, "value_fixed": 1}],
        "histograms": [
            {
                "stat": {"name": "request_duration_milliseconds", "tags": tags},
                "unit": "Milliseconds",
                "value_format": "%DURATION%",
            }
        ],
    }


def tls_secret(certificate: Path, key: Path) -> dict[str, Any]:
    """Return the certificate Secret of the hosts, as a person would bring it before the migration."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": topology.TLS_SECRET, "namespace": topology.GATEWAY_NAMESPACE},
        "stringData": {
            "tls.crt": certificate.read_text(encoding="ascii"),
            "tls.key": key.read_text(encoding="ascii"),
        },
    }
