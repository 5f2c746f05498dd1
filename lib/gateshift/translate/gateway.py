"""The Gateways with their servers, and what holds for the whole gateway: token checks and policies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.builders import build, dns_label
from gateshift.istio.versions import Feature
from gateshift.translate.certificates import GATEWAY_NAME, secret_of, serving
from gateshift.translate.emit import Emission
from gateshift.translate.gateway_api import gateway_objects
from gateshift.translate.job import Draft, Job, Policy
from gateshift.translate.model import Fidelity
from gateshift.translate.scope import Unscopable, operations
from gateshift.translate.tables import HostList, covers
from gateshift.translate.vhosts import places

__all__ = ["api_gateway", "check_scopes", "gateways", "maximal", "security"]

_VERSIONS = {"TLSv1.1": "TLSV1_1", "TLSv1.2": "TLSV1_2", "TLSv1.3": "TLSV1_3"}


def _server(job: Job, ssl: Resource, snis: list[str], field: str) -> dict[str, Any]:
    spec = ssl.spec
    secret = secret_of(job, ssl)
    where = f"Secret {secret} in namespace {job.target.gateway_namespace}"
    tls: dict[str, Any] = {"mode": "SIMPLE", "credentialName": secret}
    for key in ("cert", "key"):
        if key in spec:
            note = f"put it into {where} (kubectl create secret tls); never copied"
            job.mark(ssl, (key,), Fidelity.MANUAL, field, note)
    if spec.get("certs") or spec.get("keys"):
        several = job.has(Feature.CREDENTIAL_NAMES)
        for key in ("certs", "keys"):
            if several:
                note = f"second certificate: {where}-2"
                job.mark(ssl, (key,), Fidelity.MANUAL, "Gateway servers[].tls.credentialNames", note)
            else:
                note = f"only the first is served: more than one needs Istio {Feature.CREDENTIAL_NAMES.since}"
                job.mark(ssl, (key,), Fidelity.NONE, "", note)
        if several:
            tls.pop("credentialName")
            tls["credentialNames"] = [secret, f"{secret}-2"]
        else:
            job.warn(f"ssls/{ssl.id}: two certificates need Istio {Feature.CREDENTIAL_NAMES.since}")
    client = spec.get("client")
    if isinstance(client, Mapping):
        skip = client.get("skip_mtls_uri_regex")
        tls["mode"] = "OPTIONAL_MUTUAL" if skip and _spared(job, ssl) else "MUTUAL"
        note = f"put the authority's certificate into Secret {secret}-cacert, key ca.crt"
        job.mark(ssl, ("client", "ca"), Fidelity.MANUAL, "Gateway servers[].tls MUTUAL", note)
        job.mark(ssl, ("client", "depth"), Fidelity.NONE, "", "Envoy has no limit of the chain's depth")
        if skip:
            how = "asked but not required on any" if tls["mode"] != "MUTUAL" else "required on every"
            note = f"client certificates are {how} path"
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


def _spared(job: Job, ssl: Resource) -> bool:
    """Tell whether a person has signed that no path needs a client certificate any more."""
    return not job.block(
        ssl,
        "client.skip_mtls_uri_regex",
        "",
        "Envoy asks for a client certificate before it knows the path: it is required on every path, or "
        "(signed) on none",
        "move the paths that need none to a host of their own, or sign that certificates become optional",
    )


def maximal(hosts: Sequence[str]) -> list[str]:
    """Drop hosts that a wildcard of the same list covers: Istio would join their tables."""
    return [
        one
        for one in sorted(set(hosts))
        if not any(other.startswith("*") and covers(other, one) for other in hosts)
    ]


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
        lists = (emission.lists[host] for host in emission.hosts)
        routes = {d.resource for pairs in lists for d, _ in pairs if not d.blocked}
        add(GATEWAY_NAME, {"port": port, "hosts": maximal(emission.hosts)}, sorted(routes))
    gates = dict(serving(job))
    for ssl in job.configuration.of(Kind.SSL).values():
        _account_ssl(job, ssl)
        name = dns_label(GATEWAY_NAME, ssl.id)
        if name in tls and gates.get(name) is ssl:
            of_the_api = name in emission.api_gates
            field = "listeners[].tls.certificateRefs" if of_the_api else "servers[].tls.credentialName"
            server = _server(job, ssl, maximal(tls[name]), f"Gateway {field}")
            if not of_the_api:
                add(name, server, [f"ssls/{ssl.id}"])
        for leaf in job.ledger.open_leaves(ssl):
            job.mark(ssl, leaf, Fidelity.MANUAL, "", "a TLS setting that gateshift does not know")
    return found


def api_gateway(job: Job, emission: Emission, tls: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the Gateway API's Gateway for the hosts that are emitted as its routes."""
    lists = (emission.lists[host] for host in emission.api_hosts)
    routes = {draft.resource for pairs in lists for draft, _ in pairs}
    return gateway_objects(job, [g for g in tls if g in emission.api_gates], tls, sorted(routes))


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
            found_in = operations(pairs, policy.key, policy.exempt_methods)
            for operation, (part, told), alternative in product(found_in, places(host, lists), policy.when):
                rule: dict[str, Any] = {}
                if policy.source:
                    rule["from"] = [{"source": dict(policy.source)}]
                rule["to"] = [{"operation": {**part, **operation, **others}}]
                conditions = [dict(one) for one in (*told, *alternative)]
                if conditions:
                    rule["when"] = conditions
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
