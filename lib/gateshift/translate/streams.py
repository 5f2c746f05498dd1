"""stream_routes: each TCP port gets a Gateway and a VirtualService of its own.

What APISIX tells apart on one port (SNI, client address) and what is no TCP (UDP, xRPC) stays a blocker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.builders import build, dns_label
from gateshift.translate.job import Draft, Job
from gateshift.translate.model import Fidelity
from gateshift.translate.plugins.registry import Use, apply_plugin
from gateshift.translate.sources import inherit
from gateshift.translate.unrendered import unrendered
from gateshift.translate.upstreams import UpstreamBook

__all__ = ["draft_streams", "stream_objects", "stream_ports"]

_FOLLOWED = ("upstream_id", "service_id")
_DOCUMENTATION = ("id", "name", "desc", "labels", "create_time", "update_time")
_TELLS_APART = {
    "remote_addr": "the client's address chooses the route",
    "server_addr": "the address of arrival chooses the route",
    "sni": "the TLS name chooses the route",
    "protocol": "APISIX speaks the protocol itself (xRPC)",
}
_REMEDY = "add Gateway, VirtualService and the port of the gateway's Service by hand, then sign for it"


def _port(route: Resource) -> int | None:
    value = route.spec.get("server_port")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536 else None


def _refusal(route: Resource, ports: Counter[int | None], scheme: str) -> str:
    """Return why a stream route cannot be converted; empty when it can."""
    port = _port(route)
    if port is None:
        return "it names no server_port"
    if ports[port] > 1:
        return f"several stream routes share port {port}"
    for key, why in _TELLS_APART.items():
        if route.spec.get(key):
            return why
    if scheme not in ("tcp", "http"):
        return f"its upstream speaks {scheme}"
    return ""


def _template(job: Job, draft: Draft) -> str:
    """Return what of a stream route a template was to complete; empty when nothing is missing."""
    inherited = draft.effective
    for owner in (draft.route, inherited.service, inherited.upstream_owner):
        for _, said in unrendered(job, owner) if owner is not None else ():
            return said
    return ""


def draft_streams(job: Job, book: UpstreamBook) -> list[Draft]:
    """Return a draft for every stream route; one that cannot be converted is blocked."""
    routes = list(job.configuration.of(Kind.STREAM_ROUTE).values())
    ports: Counter[int | None] = Counter(_port(one) for one in routes)
    drafts = []
    for route in routes:
        inherited = inherit(job.configuration, route)
        draft = Draft(route, dns_label("tcp", route.id), inherited, (), [{}])
        upstream, owner = inherited.upstream, inherited.upstream_owner
        # A stream upstream is TCP unless it says otherwise; http is the schema's default, and means nothing.
        scheme = str((upstream or {}).get("scheme", "tcp"))
        reason = _refusal(route, ports, scheme) or _template(job, draft)
        if not reason and upstream is not None and owner is not None:
            draft.backends = book.resolve(upstream, owner, inherited.upstream_path, draft, tcp=True) or []
            draft.default_backends = draft.backends
        if not reason and not draft.backends and not draft.blocked:
            reason = "it has no upstream with nodes"
        if reason:
            draft.blocked |= job.block(route, "stream_route", draft.resource, reason, _REMEDY)
            draft.blocked = True  # nothing is known that could be emitted, signed or not
        else:
            _account(job, route)
            for one in inherited.plugins:
                name = f"stream:{one.name}"
                apply_plugin(Use(job, book, draft, name, one.config, one.owner, written=one.name))
        drafts.append(draft)
    return drafts


def _account(job: Job, route: Resource) -> None:
    for key in route.spec:
        if key == "server_port":
            note = "add the port to the gateway's Service"
            job.mark(route, (key,), Fidelity.APPROXIMATE, "Gateway servers[].port", note)
        elif key in _FOLLOWED:
            job.mark(route, (key,), Fidelity.EXACT, "", "followed")
        elif key in _DOCUMENTATION:
            job.mark(route, (key,), Fidelity.IGNORED_DEFAULT, "", "documentation only")
        elif key in _TELLS_APART:
            job.mark(route, (key,), Fidelity.IGNORED_DEFAULT, "", "empty")
    job.warn(f"stream_routes/{route.id}: add port {_port(route)} to the gateway's Service")


def stream_ports(drafts: Sequence[Draft]) -> list[int]:
    """Return the TCP ports that are served."""
    return sorted(port for one in drafts if not one.blocked and (port := _port(one.route)) is not None)


def stream_objects(job: Job, book: UpstreamBook, drafts: Sequence[Draft]) -> dict[str, list[dict[str, Any]]]:
    """Return Gateways, VirtualServices and address policies by file."""
    files: dict[str, list[dict[str, Any]]] = {}
    place = job.target.gateway_namespace
    selector = dict(job.target.gateway_selector)
    for draft in drafts:
        port = _port(draft.route)
        if draft.blocked or port is None:
            continue
        sources = [draft.resource]
        name = f"gateshift-tcp-{port}"
        server = {"port": {"number": port, "name": f"tcp-{port}", "protocol": "TCP"}, "hosts": ["*"]}
        spec: dict[str, Any] = {"selector": selector, "servers": [server]}
        files.setdefault("gateway.yaml", []).append(build(job.version, "Gateway", name, place, spec, sources))
        whole = len(draft.backends) == 1
        destinations = [
            {"destination": book.destination(one), **({} if whole else {"weight": one.weight})}
            for one in draft.backends
        ]
        tcp = [{"match": [{"port": port}], "route": destinations}]
        spec = {"hosts": ["*"], "gateways": [f"{place}/{name}"], "tcp": tcp}
        files.setdefault("virtual-service.yaml", []).append(
            build(job.version, "VirtualService", name, job.target.namespace, spec, sources)
        )
        for policy in draft.policies:
            rule = {
                "from": [{"source": dict(policy.source)}],
                "to": [{"operation": {"ports": [str(port)]}}],
            }
            spec = {"selector": {"matchLabels": selector}, "action": "DENY", "rules": [rule]}
            label = f"gateshift-{policy.name}"
            files.setdefault("security.yaml", []).append(
                build(job.version, "AuthorizationPolicy", label, place, spec, sources)
            )
    return files
