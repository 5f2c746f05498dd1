"""The Gateway with its servers, and the gateway-wide objects: token checks, policies and HTTP filters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.builders import build, dns_label
from gateshift.istio.versions import Feature
from gateshift.translate.emit import GATEWAY_NAME, Emission
from gateshift.translate.job import Draft, HttpFilter, Job, Policy
from gateshift.translate.model import Fidelity
from gateshift.translate.scope import Unscopable, operations
from gateshift.translate.tables import ANY_HOST, HostList

__all__ = ["check_scopes", "envoy_filters", "gateways", "maximal", "security", "tls_names"]

_JWT = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3"
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_VERSIONS = {"TLSv1.1": "TLSV1_1", "TLSv1.2": "TLSV1_2", "TLSv1.3": "TLSV1_3"}


def _snis(spec: Mapping[str, Any]) -> list[str]:
    raw = spec.get("snis") or ([spec["sni"]] if spec.get("sni") else [])
    return [str(one).lower() for one in raw]


def _server(job: Job, ssl: Resource, snis: list[str]) -> dict[str, Any]:
    spec = ssl.spec
    secret = job.params.credentials.get(ssl.id) or dns_label("ssl", ssl.id)
    where = f"Secret {secret} in namespace {job.target.gateway_namespace}"
    tls: dict[str, Any] = {"mode": "SIMPLE", "credentialName": secret}
    for key in ("cert", "key"):
        if key in spec:
            note = f"put it into {where} (kubectl create secret tls); never copied"
            job.mark(ssl, (key,), Fidelity.MANUAL, "Gateway servers[].tls.credentialName", note)
    if spec.get("certs") or spec.get("keys"):
        for key in ("certs", "keys"):
            note = f"second certificate: {where}-2"
            job.mark(ssl, (key,), Fidelity.MANUAL, "Gateway servers[].tls.credentialNames", note)
        if job.has(Feature.CREDENTIAL_NAMES):
            tls.pop("credentialName")
            tls["credentialNames"] = [secret, f"{secret}-2"]
        else:
            job.warn(f"ssls/{ssl.id}: two certificates need Istio {Feature.CREDENTIAL_NAMES.since}")
    client = spec.get("client")
    if isinstance(client, Mapping):
        skip = client.get("skip_mtls_uri_regex")
        tls["mode"] = "OPTIONAL_MUTUAL" if skip else "MUTUAL"
        note = f"put the authority's certificate into Secret {secret}-cacert, key ca.crt"
        job.mark(ssl, ("client", "ca"), Fidelity.MANUAL, "Gateway servers[].tls MUTUAL", note)
        job.mark(ssl, ("client", "depth"), Fidelity.NONE, "", "Envoy has no limit of the chain's depth")
        if skip:
            note = "client certificates are asked but not required on any path"
            job.mark(ssl, ("client", "skip_mtls_uri_regex"), Fidelity.MANUAL, "", note)
            job.warn(f"ssls/{ssl.id}: {note}")
    protocols = [_VERSIONS[p] for p in spec.get("ssl_protocols") or () if p in _VERSIONS]
    if protocols:
        tls["minProtocolVersion"], tls["maxProtocolVersion"] = min(protocols), max(protocols)
    job.mark(ssl, ("ssl_protocols",), Fidelity.EXACT, "Gateway servers[].tls.minProtocolVersion")
    return {
        "port": {
            "number": job.target.https_port,
            "name": dns_label("https", ssl.id),
            "protocol": "HTTPS",
        },
        "hosts": snis,
        "tls": tls,
    }


def maximal(hosts: Sequence[str]) -> list[str]:
    """Drop hosts that a wildcard of the same list covers: Istio would join their tables."""
    return [
        one
        for one in sorted(set(hosts))
        if not any(
            other != one and other.startswith("*") and one.removeprefix("*").endswith(other[1:])
            for other in hosts
        )
    ]


def tls_names(job: Job) -> dict[str, list[str]]:
    """Return the names that each certificate's Gateway serves; a name belongs to the first that has it."""
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for ssl in job.configuration.of(Kind.SSL).values():
        spec = ssl.spec
        if spec.get("type") == "client" or spec.get("status", 1) in (0, "0"):
            continue
        snis = [one for one in dict.fromkeys(_snis(spec)) if one not in taken]
        if len(snis) < len(set(_snis(spec))):
            job.warn(f"ssls/{ssl.id}: another certificate already serves some of its names")
        taken.update(snis)
        if snis:
            found[dns_label(GATEWAY_NAME, ssl.id)] = snis
    return found


def _account_ssl(job: Job, ssl: Resource) -> None:
    spec = ssl.spec
    for key in spec:
        if key in ("id", "create_time", "update_time", "labels", "desc", "validity_start", "validity_end"):
            job.mark(ssl, (key,), Fidelity.IGNORED_DEFAULT, "", "documentation only")
        elif key in ("sni", "snis"):
            job.mark(ssl, (key,), Fidelity.EXACT, "Gateway servers[].hosts")
        elif key in ("status", "type"):
            job.mark(ssl, (key,), Fidelity.EXACT)
    if spec.get("type") == "client":
        for key in ("cert", "key"):
            note = "the Secret that upstreams name as credentialName"
            job.mark(ssl, (key,), Fidelity.MANUAL, "DestinationRule tls.credentialName", note)
    elif spec.get("status", 1) in (0, "0"):
        job.mark(ssl, (), Fidelity.EXACT, "", "disabled: nothing is emitted")


def gateways(job: Job, emission: Emission, tls: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the HTTP Gateway for all hosts and one Gateway for each certificate."""
    found = []

    def add(name: str, server: Mapping[str, Any], sources: Sequence[str]) -> None:
        spec = {"selector": dict(job.target.gateway_selector), "servers": [dict(server)]}
        found.append(build(job.version, "Gateway", name, job.target.gateway_namespace, spec, sources))

    if emission.hosts:
        port = {"number": job.target.http_port, "name": "http", "protocol": "HTTP"}
        routes = {d.resource for pairs in emission.lists.values() for d, _ in pairs if not d.blocked}
        add(GATEWAY_NAME, {"port": port, "hosts": maximal(emission.hosts)}, sorted(routes))
    for ssl in job.configuration.of(Kind.SSL).values():
        _account_ssl(job, ssl)
        name = dns_label(GATEWAY_NAME, ssl.id)
        active = ssl.spec.get("type") != "client" and ssl.spec.get("status", 1) not in (0, "0")
        if name in tls and active:
            add(name, _server(job, ssl, maximal(tls[name])), [f"ssls/{ssl.id}"])
        for leaf in job.ledger.open_leaves(ssl):
            job.mark(ssl, leaf, Fidelity.MANUAL, "", "a TLS setting that gateshift does not know")
    return found


def check_scopes(job: Job, lists: Mapping[str, HostList]) -> None:
    """Hold back routes whose policies cannot be limited to them, until the rest can all be scoped."""
    again = True
    while again:
        again = False
        for pairs in lists.values():
            for policy in _policies(pairs):
                try:
                    operations(pairs, policy.key, policy.exempt_methods)
                except Unscopable as problem:
                    for draft in problem.drafts:
                        if draft.blocked:
                            continue
                        draft.blocked = again = True
                        _block_unscopable(job, draft, policy, str(problem))


def _block_unscopable(job: Job, draft: Draft, policy: Policy, reason: str) -> None:
    plugin = policy.key.split(":", 1)[0]
    owner = next((one.owner for one in draft.effective.plugins if one.name == plugin), draft.route)
    job.block(
        owner,
        plugin,
        draft.resource,
        f"its policy cannot be limited to the route: {reason}",
        "give the protected routes paths or methods of their own",
    )


def _policies(pairs: HostList) -> list[Policy]:
    found = {p.key: p for draft, _ in pairs if not draft.blocked for p in draft.policies}
    return [found[key] for key in sorted(found)]


def _hosts_of(host: str, lists: Mapping[str, HostList]) -> dict[str, list[str]]:
    """Write a virtual host for a policy; the port in a Host header must not be a way around it."""
    if host != ANY_HOST and not host.startswith("*"):
        return {"hosts": [host, f"{host}:*"]}
    others = sorted(one for one in lists if one != host)
    if host == ANY_HOST:
        spared = [text for one in others for text in ([one] if one[0] == "*" else [one, f"{one}:*"])]
        return {"notHosts": spared} if spared else {}
    inside = [one for one in others if one.removeprefix("*").endswith(host[1:])]
    spared = [text for one in inside for text in ([one] if one[0] == "*" else [one, f"{one}:*"])]
    found = {"hosts": [host, f"{host}:80", f"{host}:443"]}
    return found | ({"notHosts": spared} if spared else {})


def security(job: Job, lists: Mapping[str, HostList]) -> list[dict[str, Any]]:
    """Return RequestAuthentication and the DENY policies; an ALLOW policy is never emitted."""
    target = {"selector": {"matchLabels": dict(job.target.gateway_selector)}}
    namespace = job.target.gateway_namespace
    found = []
    if job.jwt_rules:
        rules = [job.jwt_rules[issuer] for issuer in sorted(job.jwt_rules)]
        found.append(
            build(
                job.version,
                "RequestAuthentication",
                "gateshift-jwt",
                namespace,
                target | {"jwtRules": rules},
                job.sources["jwt"],
            )
        )
    # On a TCP port a rule about hosts or paths would hold for every connection.
    others = {"notPorts": [str(one) for one in job.tcp_ports]} if job.tcp_ports else {}
    rules_of: dict[str, dict[str, dict[str, Any]]] = {}
    policies: dict[str, Policy] = {}
    sources: dict[str, set[str]] = {}
    for host, pairs in sorted(lists.items()):
        for policy in _policies(pairs):
            policies[policy.key] = policy
            for operation in operations(pairs, policy.key, policy.exempt_methods):
                rule: dict[str, Any] = {}
                if policy.source:
                    rule["from"] = [{"source": dict(policy.source)}]
                rule["to"] = [{"operation": {**_hosts_of(host, lists), **operation, **others}}]
                if policy.when:
                    rule["when"] = [dict(one) for one in policy.when]
                rules_of.setdefault(policy.key, {}).setdefault(json.dumps(rule), rule)
            carriers = {d.resource for d, _ in pairs if any(p.key == policy.key for p in d.policies)}
            sources.setdefault(policy.key, set()).update(carriers)
    names: dict[str, int] = {}
    for key in sorted(rules_of):
        name = policies[key].name
        names[name] = names.get(name, 0) + 1
        suffix = f"-{names[name]}" if names[name] > 1 else ""
        action: dict[str, Any] = {"action": "DENY"}
        if policies[key].provider:
            action = {"action": "CUSTOM", "provider": {"name": policies[key].provider}}
        spec = target | action | {"rules": list(rules_of[key].values())}
        found.append(
            build(
                job.version, "AuthorizationPolicy", f"gateshift-{name}{suffix}", namespace, spec, sources[key]
            )
        )
    return found


def _insertion(one: HttpFilter) -> dict[str, Any]:
    value: dict[str, Any] = {"name": one.name}
    if one.disabled:
        value["disabled"] = True
    value["typed_config"] = dict(one.config)
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": "GATEWAY",
            "listener": {
                "filterChain": {
                    "filter": {
                        "name": "envoy.filters.network.http_connection_manager",
                        "subFilter": {"name": "envoy.filters.http.router"},
                    }
                }
            },
        },
        "patch": {"operation": "INSERT_BEFORE", "value": value},
    }


def envoy_filters(job: Job, drafts: Sequence[Draft], emission: Emission) -> list[dict[str, Any]]:
    """Return one EnvoyFilter a concern: the filter, off for everybody, and on for its routes by name."""
    live = [d for d in drafts if not d.blocked and emission.names.get(d.id)]
    _tokens_only_where_wanted(job, live)
    by_concern: dict[str, list[Any]] = {}
    for one in sorted(job.filters.values(), key=lambda f: (-f.priority, f.name)):
        by_concern.setdefault(one.concern, []).append(one)
    for concern in sorted({name for draft in live for name in draft.patches}):
        by_concern.setdefault(concern, [])
    found = []
    for concern, filters in by_concern.items():
        patches: list[dict[str, Any]] = []
        sources: set[str] = set()
        for one in filters:
            users = [d for d in live if one.name in d.filters]
            if not users and any(concern in d.patches for d in live):
                patches.append(_insertion(one))  # the routes' patches speak to it
            if not users:
                continue
            patches.append(_insertion(one))
            for draft in users:
                sources.add(draft.resource)
                if draft.filters[one.name]:
                    value = {"typed_per_filter_config": {one.name: dict(draft.filters[one.name])}}
                    patches += _on_route(emission.names[draft.id], value)
        for draft in live:
            if concern in draft.patches:
                sources.add(draft.resource)
                patches += _on_route(emission.names[draft.id], draft.patches[concern])
        for number, part in enumerate(_parts(patches), start=1):
            spec = {
                # Lower numbers are applied first, so filters stand in APISIX's order before the router.
                "priority": -max((one.priority for one in filters), default=0),
                "workloadSelector": {"labels": dict(job.target.gateway_selector)},
                "configPatches": part,
            }
            name = dns_label("gateshift", concern, *((str(number),) if number > 1 else ()))
            found.append(build(job.version, "EnvoyFilter", name, job.target.gateway_namespace, spec, sources))
    return found + _slashes(job, live)


_LARGEST = 600_000
"""Bytes of patches an object; etcd refuses objects beyond 1.5 MB, and kubectl keeps a second copy of each."""


def _parts(patches: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Spread patches over as many objects as their size needs, in their order."""
    found: list[list[dict[str, Any]]] = []
    size = _LARGEST
    for one in patches:
        weight = len(json.dumps(one))
        if size + weight > _LARGEST:
            found.append([])
            size = 0
        found[-1].append(one)
        size += weight
    return found


def _tokens_only_where_wanted(job: Job, live: Sequence[Draft]) -> None:
    """Switch the token check off on routes that did not ask for it.

    A RequestAuthentication holds for the whole gateway: it would refuse the tokens of other issuers, and
    opaque ones, on routes whose backends check their own.
    """
    if not job.jwt_rules:
        return
    off = {"@type": f"{_JWT}.PerRouteConfig", "disabled": True}
    for draft in live:
        if not any(one.checks_tokens for one in draft.policies):
            draft.patches["tokens"] = {"typed_per_filter_config": {"envoy.filters.http.jwt_authn": off}}


def _slashes(job: Job, live: Sequence[Draft]) -> list[dict[str, Any]]:
    """Read paths as nginx does where something is guarded: another spelling must not lead around a guard."""
    guarded = [d for d in live if d.policies or d.filters or d.guards]
    if not guarded:
        return []
    reading = {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    }
    match = {
        "context": "GATEWAY",
        "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}},
    }
    patch = {"operation": "MERGE", "value": {"typed_config": {"@type": _HCM, **reading}}}
    spec = {
        "workloadSelector": {"labels": dict(job.target.gateway_selector)},
        "configPatches": [{"applyTo": "NETWORK_FILTER", "match": match, "patch": patch}],
    }
    note = "a path with // or %2F reaches the backend as it is compared (/ once), APISIX forwards it as sent"
    for draft in guarded:
        job.mark(
            draft.route, ("uris" if "uris" in draft.route.spec else "uri",), Fidelity.APPROXIMATE, "", note
        )
    namespace = job.target.gateway_namespace
    sources = {d.resource for d in guarded}
    return [build(job.version, "EnvoyFilter", "gateshift-paths", namespace, spec, sources)]


def _on_route(names: Sequence[str], value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Merge *value* into the routes that VirtualService rules of these names make."""
    return [
        {
            "applyTo": "HTTP_ROUTE",
            "match": {"context": "GATEWAY", "routeConfiguration": {"vhost": {"route": {"name": name}}}},
            "patch": {"operation": "MERGE", "value": dict(value)},
        }
        for name in sorted(names)
    ]
