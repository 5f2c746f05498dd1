"""The new gateway before any user reaches it: the guide's list, istioctl's opinion, and real requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from gateshift.cluster import front
from gateshift.cluster.acceptance import missing_from_gateway
from gateshift.cluster.analysis import judge_findings, parse_analysis
from gateshift.cluster.checks import Check, Item, failed, passed, run_items, warned
from gateshift.cluster.client import Cluster
from gateshift.cluster.failures import persist
from gateshift.cluster.gateways import (
    disconnected,
    gateway_pods,
    load_balancer_name,
    proxy_status,
    rejected,
    takes_requests,
)
from gateshift.cluster.objects import API_GATEWAY, MANAGED_BY, MANAGER, Object, name_of
from gateshift.cluster.operator import istiod_name
from gateshift.cluster.reach import Reach
from gateshift.cluster.tools import run_istioctl
from gateshift.cluster.waiting import deployment_standing, hopeless, pod_problem
from gateshift.params.model import Params
from gateshift.traffic import probes

__all__ = ["probe_checks", "run"]

_ROUTES = ("HTTPRoute", "GRPCRoute")

LIMIT = 90.0
"""Seconds for all checks together; functional probes have limits of their own."""

_STARTING = 45.0
"""Seconds for pods that lack: the autoscaler looks every 15 s, and a pod that it asks for has to start."""
_LOOK_AGAIN = 1.0
_PATIENCE = 30.0
"""Seconds for a look that fails in a way that heals: istioctl asks every istiod, also one just starting."""
_LOOKS = 3
_PAUSE = 2.0
_SETTLING = 15.0
"""Looks at what may be on its way, the seconds between them, and those that they go on for at least.

istiod gathers changes for up to 10 s before it pushes, and a gateway whose istiod is replaced connects again
after pauses that grow.
"""

Probing = Callable[[str], Iterable[Check]]
"""Runs the params' probes against a gateway's address and returns one check for each."""


def run(
    params: Params,
    cluster: Cluster,
    *,
    istio_target: str = "",
    apisix_target: str = "",
    progress: Callable[[str], None] | None = None,
    probing: Probing | None = None,
    limit: float = LIMIT,
) -> tuple[Check, ...]:
    """Run all checks side by side. *istio_target* and *apisix_target* are load-balancer names.

    *probing* replaces the functional probes of :mod:`gateshift.traffic.probes`.
    """
    checks = _Checks(params, cluster)
    items = [
        Item("istiod", "it serves the gateway's configuration", checks.istiod),
        Item("gateway pods", "they take the traffic", checks.gateway),
        Item("resources", "what was applied must be there", checks.resources),
        Item("istioctl analyze", "Istio's own judgement of the configuration", checks.analyze),
        Item("proxy status", "a proxy that rejected a push keeps its old configuration", checks.synced),
        Item("load balancer", "DNS will point there", lambda: checks.address(istio_target)),
        Item("certificates", "clients see them first", lambda: checks.certificates(istio_target)),
    ]
    if params.verify.probes:
        why = "the guide's functional checks, before DNS knows the new gateway"
        send = probing or (lambda target: probe_checks(params, target))
        items.append(Item("probes through Istio", why, lambda: send(istio_target or checks.target())))
        if apisix_target and probing is None:
            items.append(
                Item(
                    "parity with APISIX",
                    "the same requests must be answered alike by both",
                    lambda: _parity(params, istio_target or checks.target(), apisix_target),
                )
            )
    else:
        items.append(
            Item(
                "probes through Istio",
                "a configuration that looks right may still not serve",
                lambda: [
                    warned(
                        "probes through Istio",
                        "none configured",
                        "only real requests prove the path",
                        "add verify.probes to the params file",
                    )
                ],
            )
        )
    if istio_target:
        front.await_name(_address(params, istio_target), progress)
    items = [replace(item, look=partial(_patiently, item.look)) for item in items]
    return run_items(items, limit=limit, progress=progress)


def _patiently(look: Callable[[], Iterable[Check]]) -> tuple[Check, ...]:
    return persist(lambda: tuple(look()), time.monotonic() + _PATIENCE)


def _settled(look: Callable[[], str]) -> str:
    """Return what *look* finds amiss, an empty text for nothing; what is on its way gets some seconds."""
    deadline = time.monotonic() + _SETTLING
    looks = 0
    while found := look():
        looks += 1
        if looks >= _LOOKS and time.monotonic() >= deadline:
            break
        time.sleep(_PAUSE)
    return found


class _Checks:
    def __init__(self, params: Params, cluster: Cluster) -> None:
        self.params = params
        self.cluster = cluster

    def target(self) -> str:
        istio = self.params.istio
        return load_balancer_name(self.cluster, istio.namespace, istio.gateway_service)

    def istiod(self) -> Iterator[Check]:
        namespace, name = self.params.istio.namespace, istiod_name(self.params.istio)
        why = "it serves the gateway's configuration"
        if lacking := self._awaited(name, lambda: self._standing(name)):
            yield failed("istiod", lacking, why, f"kubectl -n {namespace} describe deployment {name}")
        else:
            yield passed("istiod", "ready", why)

    def _standing(self, name: str) -> str:
        return deployment_standing(self.cluster.get("Deployment", name, self.params.istio.namespace))

    def gateway(self) -> Iterator[Check]:
        istio = self.params.istio
        pods: list[Object] = []

        def lacking() -> str:
            nonlocal pods
            pods = gateway_pods(self.cluster, self.params)
            if sum(1 for p in pods if takes_requests(p)) >= istio.gateway.replicas_min:
                return ""
            return "; ".join([told(), *[problem for p in pods if (problem := pod_problem(p))][:3]])

        def told() -> str:
            ready = sum(1 for p in pods if takes_requests(p))
            return f"{ready} of {len(pods)} pods ready, at least {istio.gateway.replicas_min} wanted"

        why = "fewer gateways than planned cannot carry the traffic of the last stage"
        if found := self._awaited(istio.gateway_service, lacking):
            yield failed("gateway pods", found, why, f"kubectl -n {istio.namespace} describe pods")
        else:
            yield passed("gateway pods", told(), why)

    def _awaited(self, name: str, look: Callable[[], str]) -> str:
        """Return what the Deployment lacks by *look*, an empty text for nothing.

        Pods on their way are waited for; what does not heal by waiting (image, quota, crash) is told at once.
        """
        deadline = time.monotonic() + _STARTING
        while found := look():
            stuck = hopeless(self.cluster, self.params.istio.namespace, name)
            if stuck or time.monotonic() >= deadline:
                return "; ".join([found, *stuck[:3]])
            time.sleep(_LOOK_AGAIN)
        return ""

    def resources(self) -> Iterator[Check]:
        why = "a gateway without routes answers 404 to everybody"
        ours = self._ours()
        counts: dict[str, int] = {}
        for obj in ours:
            counts[obj["kind"]] = counts.get(obj["kind"], 0) + 1
        text = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "none"
        for kinds in (("Gateway",), ("VirtualService", *_ROUTES)):
            if not any(counts.get(kind) for kind in kinds):
                yield failed(
                    "resources", f"no {' or '.join(kinds)} made by gateshift ({text})", why, "run 30_apply"
                )
                return
        yield passed("resources", text, why)
        missing = _settled(lambda: missing_from_gateway(self.params, self.cluster, ours))
        why = "Envoy's own tables are what requests meet"
        if missing:
            yield failed("routes in Envoy", missing, why, "istioctl proxy-config routes <pod> shows them")
        else:
            yield passed("routes in Envoy", "every applied host has its routes", why)

    def _ours(self) -> list[Object]:
        found: list[Object] = []
        namespaces = {self.params.istio.namespace, self.params.cluster.application_namespace}
        for kind in (
            "Gateway",
            "VirtualService",
            "DestinationRule",
            "RequestAuthentication",
            "AuthorizationPolicy",
            "EnvoyFilter",
            "Telemetry",
        ):
            for namespace in sorted(namespaces):
                found += self.cluster.list(kind, namespace, labels=f"{MANAGED_BY}={MANAGER}")
        for kind in (API_GATEWAY, *_ROUTES):
            if self.cluster.serves(kind):
                for namespace in sorted(namespaces):
                    found += self.cluster.list(kind, namespace, labels=f"{MANAGED_BY}={MANAGER}")
        return found

    def analyze(self) -> Iterator[Check]:
        why = "Istio's own judgement of the configuration"
        # Exit code 79: findings. They are judged here, not by istioctl's threshold.
        printed = run_istioctl(
            self.params, ["analyze", "--all-namespaces", "-o", "json"], timeout=60, accept=(0, 79)
        )
        findings = parse_analysis(printed)
        errors, warnings = judge_findings(findings, self._ours())
        if errors:
            text = "; ".join(f"{f.code} {f.origin}: {f.message}" for f in errors[:5])
            yield failed("istioctl analyze", text, why, "correct the objects named")
        elif warnings:
            text = "; ".join(f"{f.code} {f.origin}: {f.message}" for f in warnings[:5])
            yield warned("istioctl analyze", text, why, "read them; they do not hold the migration")
        else:
            ignored = len(findings)
            yield passed("istioctl analyze", f"clean ({ignored} notes that do not concern this)", why)

    def synced(self) -> Iterator[Check]:
        why = "a proxy that rejected a push keeps its old configuration for ever"
        statuses, bad, apart = self._statuses()
        behind = rejected(statuses)
        if not statuses:
            yield failed("proxy status", "no proxy is connected to istiod", why, "read the gateway's log")
        elif bad:
            yield failed("proxy status", "; ".join(bad[:5]), why, "read istiod's log for the rejected object")
        elif behind:
            remedy = "no gateway is concerned; see whether these proxies are starved or cut off"
            yield warned("proxy status", "; ".join(behind[:5]), why, remedy)
        elif not apart:
            yield passed("proxy status", f"{len(statuses)} proxies in sync", why)
        if statuses and apart:
            yield failed(
                "proxy status",
                f"ready, but not connected to istiod: {', '.join(apart)}",
                "such a gateway serves its share of the users by its old routes",
                f"kubectl -n {self.params.istio.namespace} logs <pod> says why; a policy on port 15012 may",
            )

    def _statuses(self) -> tuple[dict[str, dict[str, str]], list[str], list[str]]:
        """Return what istiod says of its proxies, which of it holds, and the gateways that it does not know.

        A push under way (STALE) and a gateway that has just become ready are waited for. What only warns is
        not: in a large mesh some sidecar is behind at any moment, and would use up the looks.
        """
        statuses: dict[str, dict[str, str]] = {}
        bad: list[str] = []
        apart: list[str] = []

        def look() -> str:
            nonlocal statuses, bad, apart
            statuses = proxy_status(self.params)
            pods = gateway_pods(self.cluster, self.params)
            gateways = {f"{name_of(p)}.{self.params.istio.namespace}" for p in pods}
            bad = [b for b in rejected(statuses) if "ERROR" in b or b.partition(": ")[0] in gateways]
            apart = disconnected(self.params, [name_of(p) for p in pods if takes_requests(p)], statuses)
            return "; ".join([*apart, *bad]) if statuses else "no proxy is connected"

        _settled(look)
        return statuses, bad, apart

    def _hosts(self) -> list[str]:
        """Hosts that can be asked for; a wildcard cannot."""
        return [h for h in Reach(self.params, self._ours).hosts() if not h.startswith("*")]

    def _gateways(self) -> list[Object]:
        return [o for o in self._ours() if o["kind"] == "Gateway"]

    def address(self, target: str) -> Iterator[Check]:
        target = target or self.target()
        yield passed("load balancer", target, "DNS will point there")
        hosts, address = self._hosts(), _address(self.params, target)
        ports = {s["port"]["number"] for g in self._gateways() for s in front.servers_of(g)}
        if not hosts:
            yield warned(
                "load balancer answers", "no host to ask for", "DNS will point there", "add verify.probes"
            )
            return
        if 80 in ports or not ports:
            yield from front.answers(address, hosts, tls=False)
        if secure := [h for h in hosts if h in front.tls_hosts(self._gateways(), hosts)]:
            yield from front.answers(address, secure, tls=True)

    def certificates(self, target: str) -> Iterator[Check]:
        why = "clients see them first"
        wanted = front.tls_hosts(self._gateways(), self._hosts())
        if not wanted:
            yield passed("certificates", "no Gateway terminates TLS for these hosts", why)
            return
        namespace = self.params.istio.namespace
        live = {name: self.cluster.get("Secret", name, namespace) for name in set(wanted.values())}
        secrets = {name: secret for name, secret in live.items() if secret is not None}
        address = _address(self.params, target or self.target())
        yield from front.certificates(self.params, address, wanted, secrets)


def _address(params: Params, target: str) -> probes.Address:
    verify = params.verify
    return probes.Address(host=target, connect_to=verify.connect_to, ca_file=verify.ca_file)


def probe_checks(params: Params, target: str) -> Iterator[Check]:
    """Send the params' probes through the gateway at *target* (a load balancer's name or address)."""
    why = "the guide's functional checks, before DNS knows the new gateway"
    for result in probes.run(params.verify.probes, _address(params, target), patient=True):
        name = f"probe {result.name}"
        if result.ok:
            yield passed(name, f"{result.kind} {result.status} in {result.seconds * 1000:.0f} ms", why)
        else:
            yield failed(name, result.why, why, "gateshift diagnose names the cause")


def _parity(params: Params, istio: str, apisix: str) -> Iterator[Check]:
    why = "a difference seen by clients is a defect of the translation"
    for result in probes.parity(params.verify.probes, _address(params, apisix), _address(params, istio)):
        name = f"parity of {result.name}"
        if result.skipped:
            remedy = "compare by hand if it matters"
            yield warned(name, result.why, "a request that changes data is not sent twice", remedy)
        elif result.agrees:
            yield passed(name, "both gateways answer alike", why)
        else:
            yield failed(name, result.why, why, "gateshift diagnose names the cause")
