"""Preflight of the cluster itself: version, rights, room, what is already there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from gateshift.cluster import install
from gateshift.cluster.checks import Check, Item, failed, passed, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import selector_text
from gateshift.cluster.netpolicy import selects
from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.permissions import cluster_role, missing
from gateshift.params.model import Params

__all__ = ["items", "minor"]

OLDEST = (1, 26)


def minor(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version text such as ``v1.36.3``; (0, 0) if unreadable."""
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def items(params: Params, cluster: Cluster) -> tuple[Item, ...]:
    """Return the checks of this module."""
    checks = _Checks(params, cluster)
    return (
        Item("cluster", "everything else needs the API server", checks.version),
        Item("permissions", "a verb that is denied stops the run half-way", checks.permissions),
        Item("namespaces", "the migration works in these namespaces", checks.namespaces),
        Item("istio already there", "two Istios with one name overwrite each other", checks.istio),
        Item("injection", "labels act on the next restart of any pod", checks.injection),
        Item("disruption budgets", "a drain in the middle of the canary takes gateways down", checks.budgets),
        Item("webhooks", "a dead fail-closed webhook refuses every change", checks.webhooks),
        Item("clocks", "tokens and certificates are rejected when clocks differ", checks.clocks),
    )


class _Checks:
    def __init__(self, params: Params, cluster: Cluster) -> None:
        self.params = params
        self.cluster = cluster

    def version(self) -> Iterator[Check]:
        version = self.cluster.version
        why = "Istio's API use and native sidecars need Kubernetes 1.26 or newer"
        if minor(version) < OLDEST:
            yield failed("cluster version", version, why, "upgrade the cluster to 1.26 or newer")
        else:
            yield passed("cluster version", version, why)
        if self.params.cluster.uid:
            yield passed("cluster identity", self.cluster.uid, "the params name this very cluster")
        else:
            yield warned(
                "cluster identity",
                f"uid {self.cluster.uid}, not pinned",
                "a wrong kubeconfig context would be changed instead",
                f"set cluster.uid: {self.cluster.uid}",
            )

    def permissions(self) -> Iterator[Check]:
        denied = missing(self.cluster, self.params)
        why = "each verb the run will use is asked beforehand"
        if denied:
            named = ", ".join(f"{c.verb} {c.resource}{'.' + c.group if c.group else ''}" for c in denied[:8])
            more = f" and {len(denied) - 8} more" if len(denied) > 8 else ""
            yield failed(
                "permissions",
                f"denied: {named}{more}",
                why,
                "bind this ClusterRole:\n" + cluster_role(denied),
            )
        else:
            yield passed("permissions", "every verb is allowed", why)

    def namespaces(self) -> Iterator[Check]:
        why = "a misspelt namespace is found now, not at 50 %"
        wanted = {
            "application": self.params.cluster.application_namespace,
            "APISIX": self.params.apisix.namespace,
        }
        for role, name in wanted.items():
            found = self.cluster.get("Namespace", name)
            if found is None:
                yield failed(f"namespace of {role}", f"{name} does not exist", why, "correct the params file")
            elif found.get("status", {}).get("phase") == "Terminating":
                yield failed(
                    f"namespace of {role}", f"{name} is being deleted", why, "wait, or create it anew"
                )
            else:
                yield passed(f"namespace of {role}", name, why)
        istio = self.cluster.get("Namespace", self.params.istio.namespace)
        if istio is not None and istio.get("status", {}).get("phase") == "Terminating":
            yield failed(
                "namespace of Istio",
                f"{self.params.istio.namespace} is being deleted",
                why,
                "find the finalizer that holds it",
            )

    def istio(self) -> Iterator[Check]:
        why = "the installed Istio must be ours, or have another revision"
        there = install.owners(self.cluster, self.params)
        strangers = [o for o in there if " installed by " in o]
        ambient = self.cluster.list("DaemonSet", labels="app=ztunnel")
        if strangers:
            yield failed(
                "istio already there",
                ", ".join(strangers),
                why,
                "set istio.revision to install beside it, or let its installer remove it",
            )
        elif there:
            yield warned(
                "istio already there",
                ", ".join(there),
                why,
                "its gateways and CRDs stay untouched; check that its CRDs are not newer than ours",
            )
        else:
            ours = self.cluster.get("Deployment", istiod_name(self.params.istio), self.params.istio.namespace)
            yield passed("istio already there", "our own" if ours else "none", why)
        if ambient:
            yield warned(
                "ambient mesh",
                f"{title_of(ambient[0])} runs",
                "ambient redirects pods below HTTP; both gateways are affected",
                "keep both gateways out of it: label istio.io/dataplane-mode=none",
            )

    def injection(self) -> Iterator[Check]:
        why = "moving north-south traffic needs no sidecars; injection is a later step of its own"
        found = []
        for role in (self.params.apisix.namespace, self.params.cluster.application_namespace):
            namespace = self.cluster.get("Namespace", role)
            labels = (namespace or {}).get("metadata", {}).get("labels") or {}
            if labels.get("istio-injection") == "enabled" or "istio.io/rev" in labels:
                found.append(role)
            if labels.get("istio-injection") == "enabled" and "istio.io/rev" in labels:
                yield warned(
                    "injection labels",
                    f"{role} has both labels",
                    "istio-injection wins over istio.io/rev",
                    f"kubectl label namespace {role} istio-injection-",
                )
        if self.params.apisix.namespace in found:
            yield warned(
                "injection",
                f"{self.params.apisix.namespace} is labelled for sidecars",
                "the next restart of APISIX puts a sidecar into the old path and into the way back",
                f"kubectl label namespace {self.params.apisix.namespace} istio-injection- istio.io/rev-",
            )
        elif found:
            yield passed("injection", f"{', '.join(found)} labelled", why)
        else:
            yield passed("injection", "no namespace of ours is labelled", why)

    def budgets(self) -> Iterator[Check]:
        why = "the old gateway must survive a node drain until it is removed"
        namespace = self.params.apisix.namespace
        budgets = self.cluster.list("PodDisruptionBudget", namespace)
        stuck = [
            title_of(b)
            for b in budgets
            if b.get("status", {}).get("disruptionsAllowed") == 0 and b["status"].get("expectedPods", 0) > 0
        ]
        if stuck:
            yield warned(
                "disruption budgets",
                f"no disruption is allowed: {', '.join(stuck)}",
                "a node drain then waits for ever, or is forced and takes every pod",
                "run one pod more, or lower minAvailable",
            )
        elif any(self._guards(budget) for budget in budgets):
            yield passed("disruption budgets", f"{namespace} has one", why)
        else:
            others = f" for APISIX, only {', '.join(map(title_of, budgets))}" if budgets else ""
            yield warned(
                "disruption budgets",
                f"{namespace} has none{others}",
                why,
                f"kubectl -n {namespace} create pdb apisix --selector=<labels> --min-available=1",
            )

    def _guards(self, budget: Object) -> bool:
        """Tell whether *budget* selects APISIX's pods; one without a selector selects none (policy/v1)."""
        apisix = self.params.apisix
        service = self.cluster.get("Service", apisix.service, apisix.namespace) or {"spec": {}}
        chosen = service["spec"].get("selector") or {}
        pods = self.cluster.list("Pod", apisix.namespace, labels=selector_text(chosen)) if chosen else []
        selector = budget.get("spec", {}).get("selector")
        labels = [p["metadata"].get("labels") or {} for p in pods] or [chosen]
        return selector is not None and all(selects(selector, one) for one in labels)

    def webhooks(self) -> Iterator[Check]:
        why = "every object of this migration passes the cluster's admission webhooks"
        dead = []
        for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
            for config in self.cluster.list(kind):
                for hook in config.get("webhooks") or []:
                    service = hook.get("clientConfig", {}).get("service")
                    if hook.get("failurePolicy", "Fail") != "Fail" or not service:
                        continue
                    if lacks := self._unserved(service["namespace"], service["name"]):
                        dead.append(f"{hook['name']} ({lacks})")
        if dead:
            yield failed(
                "webhooks",
                f"fail-closed without a server: {', '.join(dead)}",
                why,
                "restore that Service and its pods, or delete the left-over webhook configuration",
            )
        else:
            yield passed("webhooks", "every fail-closed webhook has a server that is ready", why)

    def _unserved(self, namespace: str, name: str) -> str:
        """Return why nobody answers behind a Service, an empty text when somebody does."""
        service = self.cluster.get("Service", name, namespace)
        if service is None:
            return f"no Service {namespace}/{name}"
        if service["spec"].get("type") == "ExternalName":
            return ""  # it has no endpoints of its own
        slices = self.cluster.list("EndpointSlice", namespace, labels=f"kubernetes.io/service-name={name}")
        ready = [
            one
            for part in slices
            for one in part.get("endpoints") or []
            # An endpoint that says nothing is ready (EndpointConditions).
            if (one.get("conditions") or {}).get("ready") is not False
        ]
        return "" if ready else f"no ready endpoint behind {namespace}/{name}"

    def clocks(self) -> Iterator[Check]:
        why = "JWT allows 60 s of skew, certificates none"
        skew = self.cluster.clock_skew()
        if skew is None or abs(skew) > 5:
            told = "unknown" if skew is None else f"{skew:+.0f} s against this machine"
            yield warned("clock of the API server", told, why, "check NTP there and here")
        else:
            yield passed("clock of the API server", f"{skew:+.1f} s against this machine", why)
        ages = []
        for lease in self.cluster.list("Lease", "kube-node-lease"):
            renewed = lease.get("spec", {}).get("renewTime")
            if renewed:
                when = datetime.fromisoformat(str(renewed).replace("Z", "+00:00"))
                ages.append(((datetime.now(UTC) - when).total_seconds(), name_of(lease)))
        if not ages:
            yield warned("clocks", "no node renews a lease", why, "compare `date -u` on the nodes by hand")
            return
        ahead = [f"{node} {-age:.0f} s ahead" for age, node in ages if age < -5]
        behind = [f"{node} silent or behind for {age:.0f} s" for age, node in ages if age > 120]
        if ahead or behind:
            yield warned("clocks", "; ".join(ahead + behind), why, "check NTP on these nodes and here")
        else:
            yield passed("clocks", f"{len(ages)} nodes within seconds of this machine", why)
