"""Traps in Gateways, and in hosts that two APIs serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.lint_rules import World, check, gateways_of, trap
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
        secret = tls.get("credentialName")
        if secret and world.knows("Secret") and world.find("Secret", secret, world.home) is None:
            yield trap(
                21,
                _E,
                f"Secret {secret} is not in {world.home}, where the gateway runs",
                where,
                f"copy it to {world.home}",
            )
    services = list(world.of("VirtualService"))
    full = f"{obj['metadata'].get('namespace', 'default')}/{name_of(obj)}"
    if services and not any(full in gateways_of(s) for s in services):
        yield trap(
            22, _W, "no VirtualService names this Gateway: it answers 404", obj, "bind one, or remove it"
        )
    yield from _selected(obj, world)


def _selected(obj: Object, world: World) -> Iterator[Cause]:
    selector = (obj.get("spec") or {}).get("selector") or {}
    labels = [
        ((d["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {}
        for d in world.of("Deployment")
        if d["metadata"].get("namespace") == world.home and "gateway" in name_of(d)
    ]
    if labels and not any(selector.items() <= have.items() for have in labels):
        yield trap(
            4,
            _E,
            "the selector matches no Deployment of the gateway's namespace",
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
