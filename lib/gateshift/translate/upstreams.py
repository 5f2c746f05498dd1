"""Upstreams as destinations: FQDN hosts, ServiceEntries for what is no Service, and DestinationRules.

A DestinationRule belongs to a host, an APISIX upstream to whoever refers to it. Where two upstreams want
different policies for one host, each policy becomes a subset, so neither changes the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateshift.apisix.model import Resource
from gateshift.istio.builders import build, dns_label
from gateshift.istio.versions import Feature
from gateshift.plan import digest_of
from gateshift.translate.health import CHECK, check_filter
from gateshift.translate.job import Draft, Job
from gateshift.translate.ledger import Path
from gateshift.translate.model import Fidelity
from gateshift.translate.nodes import Node, host_header, is_address, read_nodes, split_address
from gateshift.translate.upstream_policy import traffic_policy

__all__ = ["Backend", "UpstreamBook"]

_PROTOCOLS = {"grpc": "GRPC", "grpcs": "GRPC", "tcp": "TCP"}
_LABEL = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


@dataclass(frozen=True, slots=True)
class Backend:
    """One destination: the host Istio knows, and which policy of that host applies.

    *authority* is the Host header that it gets (``pass_host``); empty for the client's own.
    """

    host: str
    port: int
    weight: int
    policy: str
    authority: str = ""


@dataclass(slots=True)
class _Host:
    policies: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)


class UpstreamBook:
    """All destinations of one translation."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._hosts: dict[str, _Host] = {}
        self._entries: dict[str, tuple[dict[str, Any], set[str]]] = {}
        self._kept: list[Backend] = []

    def fqdn(self, host: str, port: int) -> tuple[str, int, str]:
        """Return (host, port, note) that Istio should use for an APISIX node name."""
        mapped = self._job.params.services.get(f"{host}:{port}") or self._job.params.services.get(host)
        if mapped:
            name, mapped_port = split_address(mapped, port)
            return self.complete(name), mapped_port, "mapped by translate.services"
        if host.endswith(".svc.cluster.local") or is_address(host):
            return host, port, ""
        if host.endswith(".svc"):
            return f"{host}.cluster.local", port, ""
        if "." not in host:
            full = f"{host}.{self._job.target.namespace}.svc.cluster.local"
            return full, port, f"short name taken as Service {full}; set translate.services to say otherwise"
        return host, port, ""

    def complete(self, name: str) -> str:
        """Write a Service name in full."""
        if name.endswith(".svc"):
            return f"{name}.cluster.local"
        return name if "." in name else f"{name}.{self._job.target.namespace}.svc.cluster.local"

    def resolve(
        self, spec: Mapping[str, Any], owner: Resource, path: Path, draft: Draft, *, tcp: bool = False
    ) -> list[Backend] | None:
        """Return the destinations of an upstream; None when there are none (the route is then blocked).

        *tcp* is for stream routes, whose upstreams carry bytes whatever their scheme says.
        """
        job = self._job
        if tcp:
            spec = {**spec, "scheme": "tcp"}
        if spec.get("service_name") or spec.get("discovery_type"):
            return self._discovered(spec, owner, path, draft)
        nodes = read_nodes(spec, path)
        if not nodes:
            return None
        policy = traffic_policy(job, spec, owner, path, nodes)
        resolved = [(node, *self.fqdn(node.host, node.port)) for node in nodes]
        for node, host, _port, _named in resolved:
            if not (_NAME.fullmatch(host.lower()) or is_address(host)):
                reason = f"the node {node.host} has a name that neither Kubernetes nor Istio can have"
                draft.blocked |= job.block(
                    owner, "nodes", draft.resource, reason, "say in translate.services which Service it is"
                )
                job.mark(owner, node.path, Fidelity.MANUAL, "", reason)
        if draft.blocked:
            resolved = [one for one in resolved if _NAME.fullmatch(one[1].lower()) or is_address(one[1])]
            if not resolved:
                return []
        backends = self._destinations(spec, owner, path, draft, resolved, policy, tcp=tcp)
        again = "a retry stays with the Service that was chosen, APISIX tries the next node"
        chosen = not tcp and spec.get("retries") != 0 and sum(one.weight > 0 for one in backends) > 1
        for node, host, _port, named in resolved:
            priority = "node priority has no equivalent: all nodes take traffic" if node.priority else ""
            notes = [one for one in (priority or named, again if chosen else "") if one]
            fidelity = Fidelity.APPROXIMATE if notes else Fidelity.EXACT
            job.mark(owner, node.path, fidelity, f"destination {host}", "; ".join(notes))
        return backends

    def _destinations(  # noqa: PLR0917 - the upstream, and its nodes under the names that Istio has for them
        self,
        spec: Mapping[str, Any],
        owner: Resource,
        path: Path,
        draft: Draft,
        resolved: list[tuple[Node, str, int, str]],
        policy: Mapping[str, Any],
        *,
        tcp: bool,
    ) -> list[Backend]:
        source = f"{owner.kind}/{owner.id}"
        together = len(resolved) > 1 and str(spec.get("type", "roundrobin")) not in ("roundrobin", "")
        named = {"" if tcp else host_header(spec, one[0]) for one in resolved if one[0].weight > 0}
        if together and len(named) > 1:
            reason = "pass_host node: one load balancer over nodes of several names sends one Host to all"
            self._hold_host(owner, path, draft, reason)
            named = {""}
        apart = len(named) > 1  # then each node is a destination of its own, with its Host
        addresses = any(is_address(one[1]) for one in resolved)
        if not apart and (addresses or (together and len({one[1] for one in resolved}) > 1)):
            host = self._static(spec, owner, path, [(n, h, p) for n, h, p, _ in resolved])
            port = resolved[0][2] if len(resolved) == 1 else 80
            return [self._use(host, port, 1, policy, source, authority=next(iter(named), ""))]
        backends: dict[tuple[str, int, str], Backend] = {}
        for place, (node, host, port, _) in enumerate(resolved):
            target = host
            if is_address(host):
                if node.weight == 0:
                    continue  # a ServiceEntry without an endpoint serves nothing either
                target = self._static(spec, owner, (*path, "node", place), [(node, host, port)])
            elif not host.endswith(".cluster.local"):
                self._external(host, port, spec, source)
            name = host_header(spec, node) if apart else next(iter(named), "")
            known = backends.get((target, port, name))
            weight = node.weight + (known.weight if known else 0)
            backends[target, port, name] = self._use(target, port, weight, policy, source, authority=name)
        return list(backends.values())

    def _hold_host(self, owner: Resource, path: Path, draft: Draft, reason: str) -> None:
        """Hold a route back whose backends would get another Host header than from APISIX."""
        job = self._job
        remedy = "give the nodes one Host (pass_host rewrite), or sign that they get the client's"
        job.mark(owner, (*path, "pass_host"), Fidelity.MANUAL, "", f"{reason}; {remedy}")
        draft.blocked |= job.block(owner, "pass_host", draft.resource, reason, remedy)

    def _discovered(
        self, spec: Mapping[str, Any], owner: Resource, path: Path, draft: Draft
    ) -> list[Backend] | None:
        job = self._job
        kind, name = str(spec.get("discovery_type", "")), str(spec.get("service_name", ""))
        source = f"{owner.kind}/{owner.id}"
        found = re.fullmatch(r"([a-z0-9-]+)/([a-z0-9-]+):(\S+)", name)
        if kind == "kubernetes" and found and found[3].isdigit():
            host = f"{found[2]}.{found[1]}.svc.cluster.local"
            port = int(found[3])
        elif kind == "dns" and name:
            host, port = split_address(name, 80)
            host, port, _ = self.fqdn(host, port)
            if not host.endswith(".cluster.local"):
                self._external(host, port, spec, source)
        else:
            for key in ("service_name", "discovery_type", "discovery_args"):
                if key in spec:
                    job.mark(
                        owner, (*path, key), Fidelity.NONE, "", f"Istio has no {kind or 'such'} discovery"
                    )
            draft.blocked |= job.block(
                owner,
                "discovery_type",
                draft.resource,
                f"the endpoints come from {kind or 'an unknown'} discovery, which Istio does not read",
                "make the backend a Kubernetes Service or name its addresses as nodes",
            )
            return []
        for key in ("service_name", "discovery_type", "discovery_args"):
            if key in spec:
                job.mark(owner, (*path, key), Fidelity.EXACT, f"destination {host}")
        policy = traffic_policy(job, spec, owner, path, [Node(host, port, 1, path)])
        if spec.get("pass_host") == "node":
            reason = "pass_host node: APISIX sends the address that discovery gave it as Host, Istio cannot"
            self._hold_host(owner, path, draft, reason)
            return [self._use(host, port, 1, policy, source)]
        authority = host_header(spec, Node(host, port, 1, path))
        return [self._use(host, port, 1, policy, source, authority=authority)]

    def _use(
        self,
        host: str,
        port: int,
        weight: int,
        policy: Mapping[str, Any],
        source: str,
        *,
        authority: str = "",
    ) -> Backend:
        known = self._hosts.setdefault(host, _Host())
        text = json.dumps(policy, sort_keys=True)
        if text not in known.policies:
            name = dns_label(source.replace("/", "-"))
            # One upstream may come in two forms: with a plugin's policy laid over it, and without.
            taken = name in known.policies.values()
            known.policies[text] = dns_label(name, digest_of(policy)[:6]) if taken else name
        known.sources.add(source)
        return Backend(host, port, weight, text, authority)

    def with_policy(self, backend: Backend, source: str, key: str, change: Mapping[str, Any]) -> Backend:
        """Return *backend* with a traffic policy of its own, *change* laid over what it has under *key*."""
        policy = json.loads(backend.policy)
        known = policy.get(key, {})
        policy[key] = {
            **known,
            **{k: {**known.get(k, {}), **v} if isinstance(v, dict) else v for k, v in change.items()},
        }
        return self._use(
            backend.host, backend.port, backend.weight, policy, source, authority=backend.authority
        )

    def external(
        self, host: str, port: int, *, tls: bool, source: str, verify: bool = True, grpc: bool = False
    ) -> Backend:
        """Return a destination outside any upstream (an external function, a mirror)."""
        name, port, _ = self.fqdn(host, port)
        if not name.endswith(".cluster.local"):
            self._external(name, port, {"scheme": "grpc" if grpc else "https" if tls else "http"}, source)
        policy: dict[str, Any] = {"tls": {"mode": "SIMPLE", "sni": host}} if tls else {}
        if grpc:
            policy["connectionPool"] = {"http": {"h2UpgradePolicy": "UPGRADE"}}
        if tls and not verify:
            policy["tls"]["insecureSkipVerify"] = True
        elif tls and not self._job.has(Feature.UPSTREAM_VERIFY_BY_DEFAULT):
            # Older versions take any certificate unless they are told what to look at.
            policy["tls"] |= {"caCertificates": "system", "subjectAltNames": [host]}
        return self._use(name, port, 1, policy, source)

    def _external(self, host: str, port: int, spec: Mapping[str, Any], source: str) -> None:
        protocol = _PROTOCOLS.get(str(spec.get("scheme", "http")), "HTTP")
        name = f"{host}"
        ports = [{"number": port, "name": f"{protocol.lower()}-{port}", "protocol": protocol}]
        if name in self._entries:
            entry, sources = self._entries[name]
            sources.add(source)
            if port not in [one["number"] for one in entry["ports"]]:
                entry["ports"] = sorted([*entry["ports"], *ports], key=lambda one: int(one["number"]))
            return
        self._entries[name] = (
            {"hosts": [host], "ports": ports, "location": "MESH_EXTERNAL", "resolution": "DNS"},
            {source},
        )

    def _static(
        self,
        spec: Mapping[str, Any],
        owner: Resource,
        path: Path,
        nodes: list[tuple[Node, str, int]],
    ) -> str:
        """Make one ServiceEntry for nodes that must share a load balancer, or are bare addresses."""
        label = dns_label(owner.kind.rstrip("s"), owner.id, *[str(one) for one in path if one != "upstream"])
        host = f"{label}.gateshift.internal"
        protocol = _PROTOCOLS.get(str(spec.get("scheme", "http")), "HTTP")
        port = nodes[0][2] if len(nodes) == 1 else 80
        name = f"{protocol.lower()}-{port}"
        endpoints = [
            {"address": address, "ports": {name: number}, "weight": node.weight}
            for node, address, number in nodes
            if node.weight > 0
        ]
        static = all(is_address(address) for _, address, _ in nodes)
        entry = {
            "hosts": [host],
            "ports": [{"number": port, "name": name, "protocol": protocol}],
            "location": "MESH_INTERNAL" if not static else "MESH_EXTERNAL",
            "resolution": "STATIC" if static else "DNS",
            "endpoints": endpoints,
        }
        self._entries[host] = (entry, {f"{owner.kind}/{owner.id}"})
        return host

    def keep(self, used: Iterable[Backend]) -> None:
        """Forget destinations and policies that no emitted route uses."""
        wanted: dict[str, set[str]] = {}
        self._kept = list(used)
        for one in self._kept:
            wanted.setdefault(one.host, set()).add(one.policy)
        for host in list(self._hosts):
            if host not in wanted:
                del self._hosts[host]
                self._entries.pop(host, None)
                continue
            policies = self._hosts[host].policies
            for text in [one for one in policies if one not in wanted[host]]:
                del policies[text]

    def destination(self, backend: Backend) -> dict[str, Any]:
        """Render a destination; the subset is named only where one host has several policies."""
        found: dict[str, Any] = {"host": backend.host}
        policies = self._hosts[backend.host].policies
        if len(policies) > 1:
            found["subset"] = policies[backend.policy]
        return found | {"port": {"number": backend.port}}

    def objects(self) -> list[dict[str, Any]]:
        """Return ServiceEntries and DestinationRules, sorted by name."""
        job = self._job
        found = []
        for host, (entry, sources) in sorted(self._entries.items()):
            found.append(build(job.version, "ServiceEntry", host, job.target.namespace, entry, sources))
        for host, one in sorted(self._hosts.items()):
            spec: dict[str, Any] = {"host": host}
            if len(one.policies) == 1:
                policy = _rule_of(next(iter(one.policies)))
                if not policy:
                    continue
                spec["trafficPolicy"] = policy
            else:
                job.warn(
                    f"{host}: {len(one.policies)} upstreams want different policies; "
                    "each is a subset of one DestinationRule"
                )
                spec["subsets"] = [
                    {"name": name, **({"trafficPolicy": policy} if (policy := _rule_of(text)) else {})}
                    for text, name in sorted(one.policies.items(), key=lambda item: item[1])
                ]
            found.append(build(job.version, "DestinationRule", host, job.target.namespace, spec, one.sources))
        return found

    def health_checks(self) -> list[dict[str, Any]]:
        """Return the EnvoyFilter that makes the gateway check endpoints, if any upstream asks for it."""
        checks: dict[tuple[str, str], Mapping[str, Any]] = {}
        sources: set[str] = set()
        for one in self._kept:
            check = json.loads(one.policy).get(CHECK)
            if not check:
                continue
            policies = self._hosts[one.host].policies
            subset = policies[one.policy] if len(policies) > 1 else ""
            # The nodes of a ServiceEntry of our own are asked by the first one's address.
            endpoints = self._entries.get(one.host, ({}, set()))[0].get("endpoints")
            name = str(endpoints[0]["address"]) if endpoints else one.host
            checks[f"outbound|{one.port}|{subset}|{one.host}", name] = check
            sources |= self._hosts[one.host].sources
        return check_filter(self._job, checks, sources)


def _rule_of(policy: str) -> dict[str, Any]:
    """Return what a DestinationRule can say of a policy."""
    found: dict[str, Any] = json.loads(policy)
    found.pop(CHECK, None)
    return found
