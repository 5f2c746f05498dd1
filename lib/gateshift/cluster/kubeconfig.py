"""From params to a client configuration: a kubeconfig, or the service account of the pod we run in."""

from __future__ import annotations

from kubernetes import client as kube_client
from kubernetes import config as kube_config

from gateshift.errors import ClusterError
from gateshift.params.model import ClusterParams

__all__ = ["load_configuration"]


def load_configuration(params: ClusterParams) -> kube_client.Configuration:
    """Return the configuration that *params* select. Raises :class:`ClusterError` when there is none."""
    configuration = kube_client.Configuration()
    try:
        if params.kubeconfig is None and _in_cluster():
            kube_config.load_incluster_config(configuration)
        else:
            kube_config.load_kube_config(
                config_file=params.kubeconfig,
                context=params.context,
                client_configuration=configuration,
                persist_config=False,
            )
    except (kube_config.ConfigException, OSError) as error:
        where = params.kubeconfig or "~/.kube/config"
        raise ClusterError(
            f"kubeconfig {where} cannot be used: {error}",
            hint="set cluster.kubeconfig and cluster.context in the params file",
        ) from None
    configuration.retries = False  # our own limits decide; urllib3 would triple every time-out
    configuration.connection_pool_maxsize = 16
    return configuration


def _in_cluster() -> bool:
    try:
        kube_config.load_incluster_config(kube_client.Configuration())
    except kube_config.ConfigException:
        return False
    return True
