"""What one gateway's Envoy really has and does, read from its admin interface through `kubectl port-forward`.

One forward a diagnosis: configuration (with rejected updates, which Envoy keeps beside what is in force),
endpoints with their health, certificates, and the counters twice, some moments apart, because a counter's
past says nothing about now. Formats: Envoy's `/config_dump`, `/clusters?format=json`, `/certs`, `/stats`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import re
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from gateshift.cluster.tools import cluster_flags, environment, find_tool
from gateshift.errors import ClusterError
from gateshift.params.model import Params

__all__ = ["Endpoint", "Envoy", "SilentEnvoyError", "parse", "read"]

_ADMIN = 15000
APART = 1.5
"""Seconds between the two readings of the counters."""
MOST_BYTES = 150_000_000
"""More than this is not parsed: it would take all the time and a gigabyte of memory."""
_LINE = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class SilentEnvoyError(ClusterError):
    """The pod was reached, and nothing listens there: its Envoy has ended."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a cluster: address, Envoy's health flags, and requests since it was added."""

    address: str
    healthy: bool
    ejected: bool
    requests: int
    active: int


@dataclass(frozen=True, slots=True)
class Envoy:
    """One Envoy's state. ``stats`` are counters and gauges, ``grown`` their increase over ``seconds``.

    ``slowest`` is the 99th percentile (ms) of each histogram, of its last interval that had values.
    """

    pod: str
    listeners: tuple[Mapping[str, Any], ...] = ()
    routes: tuple[Mapping[str, Any], ...] = ()
    clusters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    rejections: tuple[str, ...] = ()
    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    certificates: tuple[Mapping[str, Any], ...] = ()
    stats: Mapping[str, int] = field(default_factory=dict)
    grown: Mapping[str, int] = field(default_factory=dict)
    slowest: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def now(self, cluster: str, name: str) -> int:
        """Return a cluster's counter increase between the two readings."""
        return self.grown.get(f"cluster.{cluster}.{name}", 0)

    def total(self, cluster: str, name: str) -> int:
        """Return a cluster's counter or gauge at the second reading."""
        return self.stats.get(f"cluster.{cluster}.{name}", 0)


def read(params: Params, pod: str, *, timeout: float = 9.0) -> Envoy:
    """Read pod *pod*'s Envoy within *timeout* seconds; the counters are read twice, ``APART`` seconds.

    Raises :class:`SilentEnvoyError` when nobody listens behind the pod's admin port, and ClusterError when
    it answers late, too much or something else: that says nothing about the requests it serves.
    """
    until = time.monotonic() + timeout
    late = ClusterError(f"the Envoy of {pod} did not tell all within {timeout:g} s", hint=_BY_HAND)
    try:
        with _forward(params, pod, timeout) as url, _client(url, timeout) as admin:
            begun = time.monotonic()
            try:
                before, early = _stats(admin, until)
            except httpx.TimeoutException:
                raise
            except httpx.TransportError as error:
                raise SilentEnvoyError(
                    f"the Envoy of {pod} did not answer: {type(error).__name__}: {error}",
                    hint="see symptom gateway",
                ) from None
            config = json.loads(_fetch(admin, "/config_dump", until))
            clusters = json.loads(_fetch(admin, "/clusters", until, format="json"))
            certificates = json.loads(_fetch(admin, "/certs", until))
            time.sleep(max(0.0, APART - (time.monotonic() - begun)))
            after, last = _stats(admin, until)
            seconds = time.monotonic() - begun
        slowest = {name: max(value, early.get(name, 0.0)) for name, value in (early | last).items()}
        told = parse(pod, config, clusters, certificates, before, after, seconds)
        return replace(told, slowest=slowest)
    except (httpx.TimeoutException, TimeoutError):
        raise late from None
    except httpx.HTTPError as error:
        raise ClusterError(
            f"the Envoy of {pod} broke off: {type(error).__name__}: {error}", hint=_BY_HAND
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ClusterError(
            f"what the Envoy of {pod} answers is not Envoy's admin interface: {type(error).__name__}",
            hint=_BY_HAND,
        ) from None


_BY_HAND = "ask it by hand: istioctl proxy-config all POD -o json"


def _fetch(admin: httpx.Client, path: str, until: float, **query: str) -> bytes:
    """Return an answer's bytes. Raises TimeoutError after *until*, ClusterError when there are too many."""
    got = bytearray()
    with admin.stream("GET", path, params=query) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            got += chunk
            if time.monotonic() > until:
                raise TimeoutError
            if len(got) > MOST_BYTES:
                raise ClusterError(
                    f"Envoy's answer to {path} has more than {MOST_BYTES / 1e6:g} MB", hint=_BY_HAND
                )
    if time.monotonic() > until:
        raise TimeoutError
    return bytes(got)


def parse(  # noqa: PLR0917 - the admin interface's answers, in the order they are read
    pod: str,
    config: Mapping[str, Any],
    clusters: Mapping[str, Any],
    certificates: Mapping[str, Any],
    before: Mapping[str, int],
    after: Mapping[str, int],
    seconds: float,
) -> Envoy:
    """Return the state that the admin interface's answers describe. Pure."""
    dumps = {str(c.get("@type", "")).rpartition(".")[2]: c for c in config.get("configs") or []}
    listeners, rejections = [], []
    for one in dumps.get("ListenersConfigDump", {}).get("dynamic_listeners") or []:
        if "active_state" in one:
            listeners.append(one["active_state"]["listener"])
        rejections += _rejection("LDS", one)
    routes = []
    for one in dumps.get("RoutesConfigDump", {}).get("dynamic_route_configs") or []:
        if "route_config" in one:
            routes.append(one["route_config"])
        rejections += _rejection("RDS", one)
    found: dict[str, Mapping[str, Any]] = {}
    dump = dumps.get("ClustersConfigDump", {})
    for one in [*(dump.get("static_clusters") or []), *(dump.get("dynamic_active_clusters") or [])]:
        if "cluster" in one:
            found[str(one["cluster"].get("name")).rstrip(";")] = one["cluster"]
        rejections += _rejection("CDS", one)
    secrets = [
        str(s.get("name"))
        for s in dumps.get("SecretsConfigDump", {}).get("dynamic_active_secrets") or []
        if "version_info" in s and s["version_info"] != "uninitialized"
    ]
    return Envoy(
        pod=pod,
        listeners=tuple(listeners),
        routes=tuple(routes),
        clusters=found,
        secrets=tuple(secrets),
        rejections=tuple(rejections),
        endpoints={str(c.get("name")): _endpoints(c) for c in clusters.get("cluster_statuses") or []},
        certificates=tuple(certificates.get("certificates") or []),
        stats=after,
        grown={k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)},
        seconds=seconds,
    )


def _rejection(kind: str, one: Mapping[str, Any]) -> list[str]:
    error = one.get("error_state")
    if not error:
        return []
    failed = error.get("failed_configuration") or {}
    name = failed.get("name") or one.get("name") or ""
    return [f"{kind} {name}: {' '.join(str(error.get('details', '')).split())}"]


def _endpoints(status: Mapping[str, Any]) -> tuple[Endpoint, ...]:
    out = []
    for host in status.get("host_statuses") or []:
        socket = (host.get("address") or {}).get("socket_address") or {}
        health = host.get("health_status") or {}
        values = {s.get("name"): int(s.get("value", 0)) for s in host.get("stats") or []}
        out.append(
            Endpoint(
                address=f"{socket.get('address', '?')}:{socket.get('port_value', '?')}",
                healthy=health.get("eds_health_status", "HEALTHY") in {"HEALTHY", "UNKNOWN"}
                and not any(v for k, v in health.items() if k != "eds_health_status"),
                ejected=bool(health.get("failed_outlier_check")),
                requests=values.get("rq_total", 0),
                active=values.get("rq_active", 0),
            )
        )
    return tuple(out)


_P99 = re.compile(r"P99\(([\d.]+|nan),([\d.]+|nan)\)")


def _stats(admin: httpx.Client, until: float) -> tuple[dict[str, int], dict[str, float]]:
    """Return counters and gauges, and each histogram's P99: of its last interval, else of all time."""
    text = _fetch(admin, "/stats", until, usedonly="").decode("utf-8", "replace")
    numbers: dict[str, int] = {}
    histograms: dict[str, float] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(": ")
        if not colon:
            continue
        # The default tag of Istio's statistics ends a cluster's name with a semicolon.
        name = name.replace(";.", ".")
        if value.lstrip("-").isdigit():
            numbers[name] = int(value)
        elif found := _P99.search(value):
            recent, ever = float(found[1]), float(found[2])
            number = ever if math.isnan(recent) else recent
            histograms[name] = 0.0 if math.isnan(number) else number
    return numbers, histograms


def _client(url: str, timeout: float) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False)


@contextlib.contextmanager
def _forward(params: Params, pod: str, timeout: float) -> Iterator[str]:
    command = [find_tool(params.istio.kubectl), *cluster_flags(params), "-n", params.istio.namespace]
    command += ["port-forward", "--address", "127.0.0.1", f"pod/{pod}", f":{_ADMIN}"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        _RUNNING.add(process)
        try:
            yield f"http://127.0.0.1:{_port(process, timeout)}"
        finally:
            process.kill()
            _RUNNING.discard(process)


_RUNNING: set[subprocess.Popen[bytes]] = set()


@atexit.register
def _end_forwards() -> None:
    """End what a thread left behind whose time was over: it does not reach its own clean-up any more."""
    for process in list(_RUNNING):
        process.kill()


def _port(process: subprocess.Popen[bytes], timeout: float) -> int:
    """Wait for kubectl's line that names the local port."""
    out, err = process.stdout, process.stderr
    if out is None or err is None:  # both are pipes
        raise ClusterError("kubectl port-forward has no output")
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            line = out.readline()
            if found := _LINE.search(line.decode("utf-8", "replace")):
                return int(found[1])
            if not line:
                said = " ".join(err.read().decode("utf-8", "replace").split())
                raise ClusterError(f"`kubectl port-forward` ended: {said[-300:] or 'without a word'}")
    raise ClusterError(f"`kubectl port-forward` gave no answer within {timeout:g} s")
