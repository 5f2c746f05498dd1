"""Traps in Gateways, and in hosts that two APIs serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.lint_rules import World, check, gateways_of, space_of, template_labels, trap
from gateshift.diagnose.model import Cause, Level

_E, _W = Level.ERROR, Level.WARNING


@check("Gateway")
def _gateway(obj: Object, world: World) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    seen: dict[tuple[Any, str], str] = {}
    for server in spec.get("servers") or []:
        tls, port = server.get("tls") or {}, server.get("port") or {}
        where = f"{title_of(obj)}, port {port.get('number')}"
        if tls.get("httpsRedirect"):
            yield trap(
                13,
                _W,
                "httpsRedirect answers every request of this port with 301",
                where,
                "behind a load balancer that ends TLS this loops: redirect by rule instead",
            )
        if port.get("protocol") in {"HTTPS", "TLS"} and not tls:
            yield trap(
                23,
                _E,
                "a TLS port without tls settings opens no listener",
                where,
                "set tls.mode and credentialName",
            )
        for host in server.get("hosts") or []:
            key = (port.get("number"), host)
            if key in seen:
                yield trap(
                    23,
                    _W,
                    f"host {host} is on two servers of one port: the first wins in silence",
                    where,
                    "join them",
                )
            seen[key] = where
        if tls.get("credentialNames") and world.before(1, 26):
            yield trap(21, _E, "credentialNames is of Istio 1.26", where, "use credentialName")
        if tls.get("caCertCredentialName") and world.before(1, 28):
            yield trap(21, _E, "caCertCredentialName is of Istio 1.28", where, "put ca.crt into the Secret")
        secret = str(tls.get("credentialName") or "")
        homes = _homes(obj, world)
        elsewhere = world.find("Secret", secret) if secret else None
        if elsewhere is not None and not any(world.find("Secret", secret, home) for home in homes):
            yield trap(
                21,
                _E if space_of(elsewhere) else _W,
                f"Secret {secret} is not in {homes[0]}, where the gateway runs",
                where,
                f"copy it to {homes[0]}",
            )
    services = list(world.of("VirtualService"))
    full = f"{obj['metadata'].get('namespace') or 'default'}/{name_of(obj)}"
    if services and not any(full in gateways_of(s) for s in services) and space_of(obj):
        yield trap(
            22, _W, "no VirtualService names this Gateway: it answers 404", obj, "bind one, or remove it"
        )
    yield from _selected(obj, world)


def _workloads(obj: Object, world: World) -> list[Object]:
    """The Deployments and DaemonSets, in any namespace, whose pods a Gateway selects."""
    selector = (obj.get("spec") or {}).get("selector") or {}
    return [w for w in world.of("Deployment", "DaemonSet") if selector.items() <= template_labels(w).items()]


def _homes(obj: Object, world: World) -> list[str]:
    """The namespaces of a Gateway's pods: Secrets are looked up there. Several gateways have several."""
    selected = (obj.get("spec") or {}).get("selector")
    found = sorted({space_of(w) for w in _workloads(obj, world) if space_of(w)}) if selected else []
    return found or [world.home]


def _selected(obj: Object, world: World) -> Iterator[Cause]:
    selector = (obj.get("spec") or {}).get("selector") or {}
    gateways = [d for d in world.of("Deployment", "DaemonSet") if "gateway" in name_of(d)]
    if selector and any(map(template_labels, gateways)) and not _workloads(obj, world):
        yield trap(
            4,
            world.missing("DaemonSet"),
            "the selector matches no Deployment or DaemonSet",
            f"{title_of(obj)}: {selector}",
            "use the pods' labels",
        )


@check("Gateway")
def _certificates(obj: Object, world: World) -> Iterator[Cause]:
    def names(one: Object) -> set[str]:
        return {
            str((s.get("tls") or {}).get("credentialName"))
            for s in (one.get("spec") or {}).get("servers") or []
            if (s.get("tls") or {}).get("credentialName")
        }

    for other in world.of("Gateway"):
        shared = names(obj) & names(other)
        if title_of(other) > title_of(obj) and shared:
            yield trap(
                24,
                _W,
                f"one certificate ({', '.join(sorted(shared))}) on two Gateways: browsers reuse the "
                "connection, and get 404",
                f"{title_of(obj)} and {title_of(other)}",
                "serve hosts of one certificate by one server",
            )


@check("HTTPRoute")
def _both_apis(obj: Object, world: World) -> Iterator[Cause]:
    mine = set((obj.get("spec") or {}).get("hostnames") or [])
    for service in world.of("VirtualService"):
        shared = mine & set((service.get("spec") or {}).get("hosts") or [])
        if shared:
            yield trap(
                68,
                _W,
                f"{', '.join(sorted(shared))} has an HTTPRoute and a VirtualService",
                f"{title_of(obj)} and {title_of(service)}",
                "use one API for a host",
            )
