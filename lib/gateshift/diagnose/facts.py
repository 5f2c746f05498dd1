"""Facts of one diagnosis: each is read at most once, when a probe first asks; nothing is ever written."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from gateshift.cluster.client import Cluster
from gateshift.cluster.front import servers_of
from gateshift.cluster.gateways import (
    gateway_pods,
    load_balancer_name,
    pod_ready,
    proxy_states,
    selector_text,
)
from gateshift.cluster.objects import API_GATEWAY, GATEWAY_API, Object, name_of
from gateshift.diagnose import envoy as admin
from gateshift.diagnose.by_hand import fill
from gateshift.diagnose.log_tails import tails
from gateshift.diagnose.model import filled, labels_of
from gateshift.diagnose.requests import Entry, parse_log, unread
from gateshift.diagnose.routes import Explanation, explain
from gateshift.errors import ClusterError, GateshiftError
from gateshift.params.model import Params

__all__ = ["WINDOW", "Facts"]

T = TypeVar("T")
_SUBJECTS = 3
_LOG_PODS = 5
WINDOW = 300.0
"""Seconds of requests that are looked at."""


class Facts:
    """Lazily read, cached facts. A failed read fails alike for each probe that needs it."""

    def __init__(
        self,
        context: Any,
        *,
        host: str = "",
        path: str = "",
        symptom: str = "",
        rule: str = "",
        window: float = WINDOW,
    ) -> None:
        self.context = context
        self.params: Params = context.params
        self.host = host
        self.path = path
        self.symptom = symptom
        self.rule = rule
        self.window = window
        self._values: dict[object, object] = {}
        self._guards: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()

    def once(self, key: object, read: Callable[[], T]) -> T:
        """Return *read()*, called at most once per *key*; its error is remembered as well."""
        with self._lock:
            guard = self._guards.setdefault(key, threading.Lock())
        with guard:
            if key not in self._values:
                try:
                    self._values[key] = read()
                except Exception as error:  # noqa: BLE001 - a read that broke must not be tried by each probe
                    self._values[key] = error
        value = self._values[key]
        if isinstance(value, Exception):
            raise value
        return cast("T", value)

    @property
    def cluster(self) -> Cluster:
        """The cluster."""
        found: Cluster = self.once("cluster", lambda: self.context.cluster)
        return found

    def objects(self, kind: str, namespace: str | None = None) -> list[Object]:
        """Return all objects of a kind; none when the cluster does not serve it."""

        def read() -> list[Object]:
            found = self.cluster.list(kind, namespace) if self.cluster.serves(kind) else []
            return [filled(one) for one in found]

        return self.once((kind, namespace), read)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object."""

        def read() -> Object | None:
            found = self.cluster.get(kind, name, namespace)
            return None if found is None else filled(found)

        return self.once((kind, name, namespace), read)

    @property
    def service(self) -> Object | None:
        """The gateway's Service."""
        return self.get("Service", self.params.istio.gateway_service, self.params.istio.namespace)

    @property
    def gateways(self) -> list[Object]:
        """The Gateways of Istio, and those of the Gateway API that Istio serves, but for others' ones."""
        foreign = {id(g) for g in self.foreign_gateways}
        return [g for g in self._all_gateways() if id(g) not in foreign]

    def _all_gateways(self) -> list[Object]:
        of_api = self.objects(API_GATEWAY)
        return [
            *self.objects("Gateway"),
            *(g for g in of_api if g["spec"].get("gatewayClassName") == "istio"),
        ]

    @property
    def foreign_gateways(self) -> list[Object]:
        """Gateways of other workloads: they select pods, and none of ours.

        One of the Gateway API is ours when it stands in our namespace; elsewhere istiod makes its workload.
        """

        def read() -> list[Object]:
            labels = self.pod_labels
            found = []
            for gateway in self._all_gateways():
                if gateway["apiVersion"].startswith(GATEWAY_API):
                    if gateway["metadata"]["namespace"] != self.params.istio.namespace:
                        found.append(gateway)
                    continue
                selector = gateway["spec"].get("selector") or {}
                if any(selector.items() <= have.items() for have in labels):
                    continue
                if self.selected(selector):
                    found.append(gateway)
            return found

        return self.once("foreign gateways", read)

    def selected(self, labels: Mapping[str, str], namespace: str | None = None) -> list[Object]:
        """Return the pods with *labels*, of one namespace or of all; none when they may not be listed."""
        text = selector_text(labels)

        def read() -> list[Object]:
            try:
                return self.cluster.list("Pod", namespace, labels=text)
            except GateshiftError:
                return []

        return self.once(("selected", text, namespace), read)

    @property
    def servers(self) -> list[Object]:
        """The servers of all Gateways, of either kind."""
        return [s for g in self.gateways for s in servers_of(g)]

    @property
    def pods(self) -> list[Object]:
        """The pods that the gateway's Service selects."""
        return self.once("pods", lambda: [filled(p) for p in gateway_pods(self.cluster, self.params)])

    @property
    def workload(self) -> list[Object]:
        """The pods of the gateway's Deployment (the Service may select others, by mistake)."""

        def read() -> list[Object]:
            istio = self.params.istio
            deployment = self.get("Deployment", istio.gateway_service, istio.namespace)
            if deployment is None:
                return self.pods
            labels = (deployment["spec"].get("selector") or {}).get("matchLabels") or {}
            found = self.objects("Pod", istio.namespace)
            # Pods that ended (evicted, out of a node that was drained) are kept, and take no part.
            return [
                p
                for p in found
                if labels.items() <= labels_of(p).items()
                and p["status"].get("phase") not in {"Succeeded", "Failed"}
            ]

        return self.once("workload", read)

    @property
    def pod_labels(self) -> list[dict[str, str]]:
        """The labels of the gateway's pods; none when they cannot be found."""
        try:
            return [labels_of(p) for p in self.workload]
        except GateshiftError:
            return []

    @property
    def ports(self) -> dict[int, int | None]:
        """Ports of the Services that select the gateway's pods, and where on the pod each leads.

        None for a name that no container gives a port. Another Service of the same pods opens ports as well.
        """

        def read() -> dict[int, int | None]:
            found: dict[int, int | None] = {}
            labels = self.pod_labels
            mine = self.service
            others = [
                s
                for s in self.objects("Service", self.params.istio.namespace)
                if (chosen := s["spec"].get("selector"))
                and any(chosen.items() <= have.items() for have in labels)
            ]
            for service in [*([mine] if mine else []), *others]:
                for entry in service["spec"].get("ports") or []:
                    found.setdefault(int(entry["port"]), self._target(entry))
            return found

        return self.once("ports", read)

    def _target(self, entry: Mapping[str, Any]) -> int | None:
        target = entry.get("targetPort", entry.get("port"))
        if not isinstance(target, str):
            return int(target or 0)
        named = (
            int(port["containerPort"])
            for pod in self.workload
            for container in pod["spec"].get("containers") or []
            for port in container.get("ports") or []
            if port.get("name") == target
        )
        return int(target) if target.isdigit() else next(named, None)

    @property
    def states(self) -> dict[str, dict[str, tuple[str, float]]]:
        """xDS status of each proxy by type, and when istiod last sent it something."""
        return self.once("states", lambda: proxy_states(self.params, timeout=10))

    @property
    def statuses(self) -> dict[str, dict[str, str]]:
        """xDS status of each proxy."""
        return {proxy: {kind: s for kind, (s, _) in kinds.items()} for proxy, kinds in self.states.items()}

    @property
    def envoy(self) -> admin.Envoy:
        """What one ready gateway's Envoy has; raises ClusterError when none can be asked."""

        def read() -> admin.Envoy:
            ready = [p for p in self.workload if pod_ready(p)]
            if not ready:
                raise ClusterError(
                    "no gateway pod is ready, so its Envoy cannot be asked", hint="see symptom gateway"
                )
            return admin.read(self.params, name_of(ready[0]))

        return self.once("envoy", read)

    @property
    def listening(self) -> set[int]:
        """The ports that the gateway's Envoy listens on."""
        addresses = [
            a.get("socket_address") or {}
            for one in self.envoy.listeners
            for a in [
                one.get("address") or {},
                *(more.get("address") or {} for more in one.get("additional_addresses") or []),
            ]
        ]
        return {int(a["port_value"]) for a in addresses if a.get("port_value")}

    @property
    def requests(self) -> tuple[Entry, ...]:
        """The gateway's access log of the last ``window`` seconds, oldest first."""

        def read() -> tuple[Entry, ...]:
            since = self.now - self.window
            # By request id, should a log reach us twice; entries without one are all kept.
            entries: dict[object, Entry] = {}
            for entry in (e for text in self.logs for e in parse_log(text)):
                if entry.time is None or entry.time >= since:
                    entries[entry.identity or len(entries)] = entry
            return tuple(sorted(entries.values(), key=lambda e: (e.time or 0.0, e.identity)))

        return self.once("requests", read)

    @property
    def now(self) -> float:
        """The cluster's clock, Unix seconds: logs and objects bear its times, not this machine's."""

        def read() -> float:
            try:
                skew = self.cluster.clock_skew() or 0.0
            except GateshiftError:
                skew = 0.0
            # The API server tells whole seconds; less than two are no difference.
            return skew if abs(skew) > 2 else 0.0

        return time.time() + self.once("skew", read)

    @property
    def logs(self) -> list[str]:
        """The ends of the gateway pods' logs; a pod without one (not started yet) hides no other."""

        def read() -> list[str]:
            pods = sorted(self.workload, key=lambda p: (not pod_ready(p), name_of(p)))[:_LOG_PODS]
            return tails(self.cluster, self.params.istio.namespace, pods)

        return self.once("logs", read)

    @property
    def unread(self) -> int:
        """How many requests the log tells in a format that is not known; 0 when some can be read."""
        return 0 if self.requests else sum(unread(text) for text in self.logs)

    @property
    def concerned(self) -> tuple[Entry, ...]:
        """The log entries of the request asked about; all of them when none was named."""
        return tuple(e for e in self.requests if e.concerns(self.host, self.path))

    @property
    def subjects(self) -> tuple[tuple[str, str], ...]:
        """(host, path) of the requests to explain: the one asked about, else those that fail most."""
        if self.host:
            return ((self.host, self.path or "/"),)

        def read() -> tuple[tuple[str, str], ...]:
            try:
                entries = self.requests
            except GateshiftError:
                return ()
            counted: dict[tuple[str, str], int] = {}
            for entry in entries:
                if entry.code >= 500 or entry.code == 404:
                    counted[entry.host, entry.path] = counted.get((entry.host, entry.path), 0) + 1
            return tuple(sorted(counted, key=lambda k: (-counted[k], k))[:_SUBJECTS])

        return self.once("subjects", read)

    def explanation(self, host: str, path: str) -> Explanation:
        """Which rule of Envoy's tables takes a request, by HTTP or, where that only redirects, by HTTPS."""
        istio = self.params.istio

        def read() -> Explanation:
            port = self._target_port(80, istio.http_target_port)
            method = self.method(host, path)
            plain = explain(self.envoy, host, path, method=method, port=port)
            if plain.table and not plain.redirected:
                return plain
            port = self._target_port(443, istio.https_target_port)
            secure = explain(self.envoy, host, path, method=method, port=port, tls=True)
            return secure if secure.table else plain

        return self.once(("explanation", host, path), read)

    def asked(self, host: str, path: str) -> list[Entry]:
        """Return the log entries of one request; none when the log cannot be read."""
        try:
            return [e for e in self.requests if e.concerns(host, path)]
        except GateshiftError:
            return []

    def method(self, host: str, path: str) -> str:
        """Return the method by which a request fails most, or was made most; GET when nobody made it."""
        entries = self.asked(host, path)
        failing = [e for e in entries if e.code >= 400]
        counted = Counter(e.method for e in failing or entries if e.method)
        return min(counted, key=lambda m: (-counted[m], m), default="GET")

    def _target_port(self, port: int, default: int) -> int:
        """The port on which the gateway's Envoy listens for the Service's *port*."""
        return self.ports.get(port) or default

    @property
    def context_target(self) -> str:
        """The address that the params name for the gateway: its Service need not have a load balancer."""
        named = self.params.traffic.route53 and self.params.traffic.route53.istio_target
        return str(named or "")

    @property
    def address(self) -> str:
        """The gateway's load balancer; raises ClusterError when it has none."""
        istio = self.params.istio
        if self.context_target:
            return self.context_target
        return self.once(
            "address", lambda: load_balancer_name(self.cluster, istio.namespace, istio.gateway_service)
        )

    def by_hand(self, equivalent: str) -> str:
        """Fill a probe's equivalent with this migration's names, so that it can be pasted."""
        pods = self._values.get("workload")
        service = self._values.get(
            ("Service", self.params.istio.gateway_service, self.params.istio.namespace)
        )
        return fill(
            equivalent,
            self.params,
            pod=name_of(pods[0]) if isinstance(pods, list) and pods else "",
            selector=service["spec"].get("selector") if isinstance(service, dict) else None,
        )
