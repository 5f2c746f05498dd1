"""Facts of one diagnosis: each is read at most once, when a probe first asks; nothing is ever written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from gateshift.cluster.client import Cluster
from gateshift.cluster.gateways import gateway_pods, pod_ready, proxy_status
from gateshift.cluster.objects import Object, name_of
from gateshift.cluster.tools import run_json
from gateshift.errors import GateshiftError
from gateshift.params.model import Params

__all__ = ["Facts"]

T = TypeVar("T")
_LOG_LINES = 500


class Facts:
    """Lazily read, cached facts. A failed read fails alike for each probe that needs it."""

    def __init__(self, context: Any, *, host: str, path: str, symptom: str = "") -> None:
        self.context = context
        self.params: Params = context.params
        self.host = host
        self.path = path
        self.symptom = symptom
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
                except GateshiftError as error:
                    self._values[key] = error
        value = self._values[key]
        if isinstance(value, GateshiftError):
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
            return self.cluster.list(kind, namespace) if self.cluster.serves(kind) else []

        return self.once((kind, namespace), read)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object."""
        return self.once((kind, name, namespace), lambda: self.cluster.get(kind, name, namespace))

    @property
    def service(self) -> Object | None:
        """The gateway's Service."""
        return self.get("Service", self.params.istio.gateway_service, self.params.istio.namespace)

    @property
    def pods(self) -> list[Object]:
        """The gateway's pods."""
        return self.once("pods", lambda: gateway_pods(self.cluster, self.params))

    @property
    def statuses(self) -> dict[str, dict[str, str]]:
        """xDS status of each proxy."""
        return self.once("statuses", lambda: proxy_status(self.params, timeout=10))

    def envoy(self, what: str) -> list[dict[str, Any]]:
        """Return what one ready gateway's Envoy has: ``routes``, ``listeners``, ``clusters``, ``secret``."""

        def read() -> list[dict[str, Any]]:
            ready = [p for p in self.pods if pod_ready(p)]
            if not ready:
                raise GateshiftError("no gateway pod is ready, so its Envoy cannot be asked")
            pod = f"{name_of(ready[0])}.{self.params.istio.namespace}"
            answer = run_json(self.params, ["proxy-config", what, pod, "-o", "json"], timeout=10)
            return answer if isinstance(answer, list) else [answer or {}]

        return self.once(("envoy", what), read)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The gateway's newest access-log entries (JSON lines; other lines are left out)."""

        def read() -> list[dict[str, Any]]:
            found = []
            for pod in self.pods:
                text = self.cluster.log(self.params.istio.namespace, name_of(pod), tail=_LOG_LINES)
                for line in text.splitlines():
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict) and "response_code" in entry:
                        found.append(entry)
            return found

        return self.once("requests", read)
