"""Where a run's APISIX configuration comes from, and its translation."""

from __future__ import annotations

from gateshift.apisix.admin import AdminClient
from gateshift.apisix.model import Configuration, Router
from gateshift.apisix.own_shift import without_own_shift
from gateshift.apisix.readers import read_files
from gateshift.cluster.custom_resources import read_custom_resources
from gateshift.cluster.operator import gateway_selector
from gateshift.runbook.context import Context
from gateshift.runbook.inputs import project_root
from gateshift.translate import Target, Translation, translate

__all__ = ["read_configuration", "translate_now"]


def read_configuration(context: Context) -> Configuration:
    """Read the APISIX configuration from where the params say, without the shift that gateshift put there."""
    return without_own_shift(_read(context))


def _read(context: Context) -> Configuration:
    apisix = context.params.apisix
    if apisix.admin_url and apisix.admin_key:
        with AdminClient(apisix.admin_url, apisix.admin_key.get_secret_value()) as client:
            return client.read()
    if apisix.read_cluster:
        return read_custom_resources(context.cluster, apisix.read_namespaces)
    root = project_root()
    return read_files([root / name for name in apisix.files])


def translate_now(context: Context, configuration: Configuration) -> Translation:
    """Translate with the params' Istio version and names."""
    istio = context.params.istio
    target = Target(
        version=istio.version,
        namespace=context.params.cluster.application_namespace,
        gateway_namespace=istio.namespace,
        gateway_selector=gateway_selector(istio),
        gateway_service=istio.gateway_service,
        router=Router(context.params.apisix.router) if context.params.apisix.router else None,
    )
    return translate(configuration, context.params.translate, target)
