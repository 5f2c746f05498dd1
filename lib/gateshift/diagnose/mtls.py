"""Tree 3, TLS and mTLS between gateway and backends: what was declared, and what the handshakes said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.cluster.objects import Object, name_of, title_of
from gateshift.diagnose.causes import found, patch_command
from gateshift.diagnose.destinations import (
    destinations,
    in_mesh,
    labels_of_workloads,
    meshed,
    parse_cluster,
    relevance,
    rules_for,
    service_of,
)
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause, Level, Probe
from gateshift.errors import GateshiftError

__all__ = ["PROBES", "strict_policy", "tls_of"]

# What BoringSSL and Envoy write into upstream_transport_failure_reason, most telling first.
_HANDSHAKE = (
    ("certificate has expired", "tls-upstream-expired"),
    ("certificate is not yet valid", "tls-upstream-expired"),
    ("SAN", "tls-upstream-name"),
    ("unable to get local issuer", "tls-upstream-untrusted"),
    ("self-signed", "tls-upstream-untrusted"),
    ("self signed", "tls-upstream-untrusted"),
    ("UNKNOWN_CA", "tls-upstream-untrusted"),
    ("CERTIFICATE_VERIFY_FAILED", "tls-upstream-untrusted"),
    ("UNRECOGNIZED_NAME", "tls-upstream-sni"),
    ("WRONG_VERSION_NUMBER", "tls-to-plaintext"),
    ("HTTP_REQUEST", "tls-to-plaintext"),
    ("Connection refused", "connection-refused"),
    ("TLS_error", "tls-upstream"),
)


def strict_policy(facts: Facts, service: Object, port: int | None = None) -> Object | None:
    """Return the PeerAuthentication that makes *service*'s workloads demand mTLS, or None.

    The narrowest one decides, as in Istio: workload selector, then namespace, then the root namespace.
    """
    space, root = service["metadata"]["namespace"], facts.params.istio.namespace
    workloads = list(labels_of_workloads(facts, service))
    ranked = []
    for policy in facts.objects("PeerAuthentication"):
        where = policy["metadata"]["namespace"]
        selector = (policy["spec"].get("selector") or {}).get("matchLabels") or {}
        if where not in {space, root} or (where == root and selector and where != space):
            continue
        if selector and not any(selector.items() <= labels.items() for labels in workloads):
            continue
        ranked.append((2 if selector else 1 if where == space else 0, policy))
    for _, policy in sorted(ranked, key=lambda r: -r[0]):
        target = next(
            (
                p.get("targetPort", p["port"])
                for p in service["spec"].get("ports") or []
                if port in {None, p["port"]}
            ),
            None,
        )
        levels = policy["spec"].get("portLevelMtls") or {}
        mode = (levels.get(str(target)) or policy["spec"].get("mtls") or {}).get("mode")
        if mode and mode != "UNSET":
            return policy if mode == "STRICT" else None
    return None


def tls_of(rule: Object, port: int | None, subset: str = "") -> Mapping[str, Any]:
    """Return the TLS settings that *rule* gives a destination: subset, then port, then the whole host."""
    policies = [
        s.get("trafficPolicy") or {} for s in rule["spec"].get("subsets") or [] if s.get("name") == subset
    ]
    policies.append(rule["spec"].get("trafficPolicy") or {})
    for policy in policies:
        for level in policy.get("portLevelSettings") or []:
            if (level.get("port") or {}).get("number") == port:
                return level.get("tls") or {}  # it replaces, never inherits
        if policy.get("tls"):
            return dict(policy["tls"])
    return {}


def _tls_path(rule: Object, port: int | None, subset: str) -> str:
    """Return where the settings of :func:`tls_of` stand in *rule*, as a JSON pointer."""
    places = [
        (f"/spec/subsets/{n}/trafficPolicy", s.get("trafficPolicy") or {})
        for n, s in enumerate(rule["spec"].get("subsets") or [])
        if s.get("name") == subset
    ]
    places.append(("/spec/trafficPolicy", rule["spec"].get("trafficPolicy") or {}))
    for place, policy in places:
        for n, level in enumerate(policy.get("portLevelSettings") or []):
            if (level.get("port") or {}).get("number") == port:
                return f"{place}/portLevelSettings/{n}/tls"
        if policy.get("tls"):
            return f"{place}/tls"
    return "/spec/trafficPolicy/tls"


def _declared(facts: Facts) -> Iterator[Cause]:
    said: set[tuple[str, str]] = set()
    for to in destinations(facts):
        service = service_of(facts, to.host)
        if service is None:
            continue
        rules = rules_for(facts, to.host)
        tls = tls_of(rules[0], to.port, to.subset) if rules else {}
        mode, weight = tls.get("mode", ""), relevance(facts, to.host)
        if not mode or (to.host, mode) in said:
            continue
        said.add((to.host, mode))
        strict, mesh = strict_policy(facts, service, to.port), in_mesh(facts, service)
        remove = (
            f"kubectl -n {rules[0]['metadata']['namespace']} patch destinationrule {name_of(rules[0])} "
            f'--type=json -p \'[{{"op":"remove","path":"{_tls_path(rules[0], to.port, to.subset)}"}}]\' '
            "(automatic mTLS decides)"
        )
        if mode in {"DISABLE", "SIMPLE"} and strict and mesh is not False:
            yield found(
                "mtls-off",
                f"{title_of(rules[0])} says tls {mode} for {to.host}; {title_of(strict)} is STRICT",
                remove,
                confidence=0.95 * weight,
                name=title_of(rules[0]),
            )
        elif mode == "ISTIO_MUTUAL" and mesh is False:
            yield found(
                "mtls-without-sidecar",
                f"{to.host}: ISTIO_MUTUAL, but its workloads have no sidecar",
                remove,
                confidence=0.95 * weight,
                name=title_of(rules[0]),
            )


def _permissive(policy: Object) -> str:
    command = patch_command(policy, {"mtls": {"mode": "PERMISSIVE"}})
    return f"{command} (plaintext is taken as well, until the clean-up)"


def _plaintext_clients(facts: Facts) -> Iterator[Cause]:
    """STRICT cuts off whoever has no sidecar; until clean-up that is APISIX, and with it the way back."""
    apisix = facts.params.apisix
    if facts.get("Service", apisix.service, apisix.namespace) is None:
        return
    if any(meshed(pod) for pod in facts.objects("Pod", apisix.namespace)):
        return
    # Others may be STRICT as they like: only what this migration's routes lead to is called by APISIX.
    targets: dict[str, set[int | None]] = {}
    for to in destinations(facts):
        targets.setdefault(to.host, set()).add(to.port)
    hit: dict[str, tuple[Object, list[str]]] = {}
    later: dict[str, Object] = {}
    for host, ports in sorted(targets.items()):
        service = service_of(facts, host)
        if service is None:
            continue
        strict = [strict_policy(facts, service, port) for port in sorted(ports, key=lambda p: p or 0)]
        policy = next((p for p in strict if p is not None), None)
        if policy is None:
            continue
        if in_mesh(facts, service):
            hit.setdefault(title_of(policy), (policy, []))[1].append(name_of(service))
        else:
            later[title_of(policy)] = policy
    for title, (policy, services) in sorted(hit.items()):
        yield found(
            "mtls-plaintext-client",
            f"workloads of {', '.join(sorted(services)[:5])} refuse plaintext; {apisix.namespace}'s pods "
            "have no sidecar",
            _permissive(policy),
            name=title,
        )
    if hit:
        return
    for title, policy in sorted(later.items()):
        yield found(
            "mtls-plaintext-client",
            "no workload with a sidecar yet; the first one will refuse APISIX, and the way back breaks",
            _permissive(policy),
            level=Level.WARNING,
            confidence=0.7,
            name=title,
        )


def _handshakes(facts: Facts) -> Iterator[Cause]:
    """What the failed connections themselves say, by cluster."""
    counted: dict[tuple[str, str, str], int] = {}
    entries = facts.concerned
    for entry in entries:
        text = f"{entry.transport_failure} {entry.details}".replace("_", " ")
        for words, code in _HANDSHAKE:
            if words.replace("_", " ") in text:
                key = (code, entry.cluster, entry.transport_failure or entry.details)
                counted[key] = counted.get(key, 0) + 1
                break
    for (code, cluster, text), count in sorted(counted.items(), key=lambda c: (-c[1], c[0]))[:4]:
        host, port, subset = parse_cluster(cluster)
        rules = rules_for(facts, host)
        tls = tls_of(rules[0], port, subset) if rules else {}
        named = title_of(rules[0]) if rules else "automatic mTLS"
        yield found(
            code,
            f"{count} of the last {len(entries)} requests, {cluster}: {' '.join(text.split())[:300]}",
            _handshake_remedy(code, tls, rules),
            name=named,
        )


def _handshake_remedy(code: str, tls: Mapping[str, Any], rules: list[Object]) -> str:
    if code == "connection-refused":
        return "start the backend, or correct its Service's targetPort (WorkloadEntry: its port)"
    if not rules:
        return "make a DestinationRule whose tls fits the backend"
    rule = rules[0]
    edit = f"kubectl -n {rule['metadata']['namespace']} edit destinationrule {name_of(rule)}"
    return {
        "tls-to-plaintext": f"{edit}:\n-  tls:\n-    mode: {tls.get('mode', '')}",
        "tls-upstream-expired": "renew the backend's certificate; meanwhile nothing safe replaces it",
        "tls-upstream-untrusted": f"{edit}: set tls.caCertificates or credentialName to the backend's CA "
        f"(now {tls.get('caCertificates') or tls.get('credentialName') or 'the system CAs'})",
        "tls-upstream-name": f"{edit}: subjectAltNames must hold a name of the backend's certificate "
        f"(now {tls.get('subjectAltNames') or 'the SNI'})",
        "tls-upstream-sni": f"{edit}: set tls.sni to the name that the backend expects "
        f"(now {tls.get('sni') or 'none'})",
    }.get(code, edit)


def _counters(facts: Facts) -> Iterator[Cause]:
    """The same from Envoy's counters, for gateways without an access log."""
    try:
        if facts.requests:
            return
    except GateshiftError:
        pass  # the log cannot be read: the counters are then the only witness
    envoy = facts.envoy
    for cluster in sorted(envoy.clusters):
        for name, code in (
            ("ssl.fail_verify_san", "tls-upstream-name"),
            ("ssl.fail_verify_error", "tls-upstream-untrusted"),
            ("ssl.connection_error", "tls-upstream"),
        ):
            if count := envoy.now(cluster, name):
                rules = rules_for(facts, parse_cluster(cluster)[0])
                yield found(
                    code,
                    f"{cluster}: {name} grew by {count} in {envoy.seconds:.0f} s",
                    _handshake_remedy(code, {}, rules),
                    confidence=0.8,
                )
                break


def _own_certificates(facts: Facts) -> Iterator[Cause]:
    for one in facts.envoy.certificates:
        for chain in [*(one.get("cert_chain") or []), *(one.get("ca_cert") or [])]:
            days = chain.get("days_until_expiration")
            names = [
                str(s.get("uri") or s.get("dns") or "") for s in chain.get("subject_alt_names") or []
            ] or [str(chain.get("serial_number", ""))]
            expired = str(chain.get("expiration_time", "")) < facts_now() and days is not None
            if expired and int(str(days)) <= 0 and any(n.startswith("spiffe://") for n in names):
                yield found(
                    "sidecar-certificate",
                    f"{', '.join(names[:2])} expired {chain.get('expiration_time')}",
                    f"kubectl -n {facts.params.istio.namespace} rollout restart deployment "
                    f"{facts.params.istio.gateway_service}; see istiod's log for refused certificate "
                    "requests",
                )


def facts_now() -> str:
    """Return now as Envoy writes times (ISO 8601, UTC)."""
    from datetime import UTC, datetime  # noqa: PLC0415 - one use

    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_503 = frozenset({"503"})
PROBES = (
    Probe("mTLS settings", _503, "kubectl get peerauthentications,destinationrules -A -o yaml", _declared),
    Probe(
        "plaintext callers", _503 | {"lint"}, "kubectl get peerauthentications -A -o yaml", _plaintext_clients
    ),
    Probe("TLS handshakes", _503, "kubectl -n <ns> logs deploy/<service> --tail=100", _handshakes),
    Probe("TLS counters", _503, "istioctl experimental envoy-stats <pod> | grep ssl", _counters),
    Probe("own certificates", _503 | {"gateway"}, "istioctl proxy-config secret <pod>", _own_certificates),
)
