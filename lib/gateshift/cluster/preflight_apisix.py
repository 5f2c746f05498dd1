"""Preflight of APISIX itself: its pods, its address, and the configuration that really runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from gateshift.apisix.admin import AdminClient
from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.custom_resources import read_custom_resources
from gateshift.cluster.gateways import load_balancer_name, pod_ready, selector_text
from gateshift.cluster.objects import name_of
from gateshift.params.model import Params

__all__ = ["items"]

_DEFAULT_ROUTER = "radixtree_host_uri"
"""Since APISIX 3.3; before, and where an old config.yaml says so, radixtree_uri."""


def items(params: Params, cluster: Cluster) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster)
    return (
        Item("APISIX pods", "the old gateway carries all traffic now and is the way back", checks.pods),
        Item("APISIX address", "its load balancer is the target of the way back", checks.address),
        Item("APISIX configuration", "it is what is translated", checks.configuration),
        Item("APISIX settings", "router and deployment mode decide how routes are matched", checks.settings),
    )


class _Checks:
    def __init__(self, params: Params, cluster: Cluster) -> None:
        self.params = params
        self.cluster = cluster

    def pods(self) -> Iterator[Check]:
        why = "the way back leads here"
        namespace, name = self.params.apisix.namespace, self.params.apisix.service
        service = self.cluster.get("Service", name, namespace)
        selector = (service or {}).get("spec", {}).get("selector")
        if not selector:
            yield failed(
                "APISIX pods",
                f"Service {namespace}/{name} does not exist or selects no pods",
                why,
                "correct apisix.namespace and apisix.service",
            )
            return
        pods = self.cluster.list("Pod", namespace, labels=selector_text(selector))
        ready = [p for p in pods if pod_ready(p)]
        text = f"{len(ready)} of {len(pods)} pods ready"
        if not ready:
            yield failed("APISIX pods", text, why, f"kubectl -n {namespace} describe pods")
        elif len(ready) < len(pods):
            late = ", ".join(name_of(p) for p in pods if not pod_ready(p))
            yield warned("APISIX pods", f"{text} (not ready: {late})", why, "repair before moving traffic")
        elif len(ready) == 1:
            yield warned("APISIX pods", text, "one pod is no way back to rely on", "run at least two")
        else:
            yield passed("APISIX pods", text, why)

    def address(self) -> Iterator[Check]:
        why = "Route 53 points there now and after a rollback"
        route53 = self.params.traffic.route53
        if route53 and route53.apisix_target:
            yield passed("APISIX address", f"{route53.apisix_target} (from params)", why)
            return
        address = load_balancer_name(self.cluster, self.params.apisix.namespace, self.params.apisix.service)
        if route53 and route53.record == "alias" and address.replace(".", "").isdigit():
            yield failed(
                "APISIX address",
                f"{address} is an IP address",
                "an alias record needs the load balancer's DNS name",
                "set traffic.route53.apisix_target to a DNS name",
            )
        else:
            yield passed("APISIX address", address, why)

    def configuration(self) -> Iterator[Check]:
        why = "what cannot be read cannot be translated"
        apisix = self.params.apisix
        version: str | None = None
        if apisix.read_cluster:
            configuration = read_custom_resources(self.cluster, apisix.read_namespaces)
        elif not apisix.admin_url or apisix.admin_key is None:
            yield passed("APISIX configuration", f"from files: {', '.join(apisix.files)}", why)
            return
        else:
            with AdminClient(apisix.admin_url, apisix.admin_key.get_secret_value(), timeout=8.0) as client:
                configuration = client.read()
                version = client.version()
        counts = {kind.value: len(found) for kind, found in configuration.resources.items() if found}
        text = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        if not counts.get("routes"):
            yield failed(
                "APISIX configuration",
                f"no routes ({text or 'empty'})",
                why,
                "check that apisix.admin_url is the instance that serves users (standalone mode: use files), "
                "or with apisix.read_cluster the context and apisix.read_namespaces",
            )
        else:
            yield passed("APISIX configuration", text, why)
        if not apisix.read_cluster:
            yield passed(
                "APISIX version", version or "hidden by the server", "translation knows the versions"
            )
        errors = [f for f in configuration.findings if f.severity.value == "error"]
        if errors:
            yield failed(
                "APISIX resources",
                f"{len(errors)} unreadable, first: {errors[0].origin}: {errors[0].message}",
                why,
                errors[0].remedy or "correct them in APISIX",
            )

    def settings(self) -> Iterator[Check]:
        """Read ``config.yaml`` from the ConfigMaps of APISIX's namespace."""
        why = "another router matches other routes: the translation would prove the wrong thing"
        found = self._settings()
        wanted = self.params.apisix.router
        if not found:
            yield warned(
                "APISIX settings",
                "no ConfigMap with a config.yaml in the namespace",
                why,
                "look up apisix.router.http in the instance's config.yaml and set apisix.router in params",
            )
            return
        for where, config in found.items():
            router = str(((config.get("apisix") or {}).get("router") or {}).get("http") or _DEFAULT_ROUTER)
            if wanted is None:
                yield warned(
                    "APISIX settings", f"{where}: router {router}", why, f"set apisix.router: {router}"
                )
            elif router != wanted:
                yield failed(
                    "APISIX settings",
                    f"{where}: router {router}, but apisix.router is {wanted}",
                    why,
                    f"set apisix.router: {router}",
                )
            else:
                yield passed("APISIX settings", f"{where}: router {router}", why)
            yield self._mode(where, config)

    def _mode(self, where: str, config: dict[str, Any]) -> Check:
        why = "in standalone mode there is no Admin API, and the file is the truth"
        deployment = config.get("deployment") or {}
        role = str(deployment.get("role") or "traditional")
        section = deployment.get(f"role_{role}") or {}
        provider = str(section.get("config_provider") or "etcd")
        text = f"{where}: role {role}, configuration from {provider}"
        if provider in {"yaml", "json"} and self.params.apisix.admin_url:
            return failed(
                "APISIX deployment mode",
                text,
                why,
                "name the files under apisix.files instead of apisix.admin_url",
            )
        if role == "data_plane" and self.params.apisix.admin_url:
            return warned(
                "APISIX deployment mode",
                text,
                "a data plane has no Admin API of its own",
                "check that apisix.admin_url is the control plane of this data plane",
            )
        return passed("APISIX deployment mode", text, why)

    def _settings(self) -> dict[str, dict[str, Any]]:
        out = {}
        for item in self.cluster.list("ConfigMap", self.params.apisix.namespace):
            for key, text in (item.get("data") or {}).items():
                if not key.endswith(("config.yaml", "config.yml")):
                    continue
                try:
                    config = yaml.safe_load(text)
                except yaml.YAMLError:
                    continue
                if isinstance(config, dict) and {"apisix", "deployment"} & set(config):
                    out[f"{name_of(item)}/{key}"] = config
        return out
