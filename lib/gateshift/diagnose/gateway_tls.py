"""Tree 1, TLS at the gateway: Secrets, certificates and the names that TLS servers answer for."""

from __future__ import annotations

from collections.abc import Iterator

from gateshift.cluster.certificates import certificate_problems
from gateshift.cluster.front import servers_of
from gateshift.cluster.objects import GATEWAY_API, Object, name_of, title_of
from gateshift.diagnose.causes import found
from gateshift.diagnose.facts import Facts
from gateshift.diagnose.model import Cause
from gateshift.diagnose.routes import host_matches
from gateshift.errors import GateshiftError

__all__ = ["certificates", "server_names"]


def certificates(facts: Facts) -> Iterator[Cause]:
    """Find what keeps a TLS server from answering: no settings, no Secret, a bad certificate."""
    for gateway in facts.gateways:
        api = gateway["apiVersion"].startswith(GATEWAY_API)
        home = gateway["metadata"]["namespace"] if api else facts.params.istio.namespace
        for server in servers_of(gateway):
            tls, port = server.get("tls") or {}, server.get("port") or {}
            if port.get("protocol") in {"HTTPS", "TLS"} and not tls:
                yield found(
                    "gateway-tls-missing",
                    f"{title_of(gateway)}, port {port.get('number')}",
                    "set tls.mode and tls.credentialName",
                )
            names = tls.get("credentialNames") or (
                [tls["credentialName"]] if tls.get("credentialName") else []
            )
            for name in names:
                hosts = [h.rpartition("/")[2] for h in server.get("hosts") or []]
                if "://" not in str(name):  # a scheme: not a Secret of the gateway's namespace
                    yield from _secret(facts, gateway, str(name), home, [h for h in hosts if h != "*"])


def _secret(facts: Facts, gateway: Object, name: str, home: str, hosts: list[str]) -> Iterator[Cause]:
    secret = facts.get("Secret", name, home)
    if secret is None:
        elsewhere = _elsewhere(facts, name)
        if elsewhere:
            yield found(
                "tls-secret-namespace",
                f"{title_of(gateway)}; found in: {', '.join(elsewhere)}",
                f"kubectl -n {elsewhere[0]} get secret {name} -o yaml | "
                f"sed 's/^  namespace: .*/  namespace: {home}/' | kubectl apply -f - (it is looked up where "
                "the gateway's pods are; whatever renews it, such as cert-manager, does not renew the copy)",
                name=name,
                home=home,
            )
        else:
            yield found(
                "tls-secret-missing",
                f"{title_of(gateway)} names it; {home} does not have it"
                + ("" if elsewhere is None else ", nor any other namespace"),
                f"kubectl -n {home} create secret tls {name} --cert=<chain.pem> --key=<key.pem>",
                name=name,
            )
        return
    wanted = [facts.host] if facts.host and any(host_matches(h, facts.host) for h in hosts) else hosts
    problems = certificate_problems(secret, [h for h in wanted if not h.startswith("*")], soon_days=0)
    if problems:
        yield found(
            "tls-certificate",
            "; ".join(problems),
            f"kubectl -n {home} create secret tls {name} --cert=<chain.pem> --key=<key.pem> "
            "--dry-run=client -o yaml | kubectl apply -f - (taken up without a restart)",
            name=f"{home}/{name}",
        )


def _elsewhere(facts: Facts, name: str) -> list[str] | None:
    """Return the namespaces with a Secret of this name; None when not all may be looked through."""
    try:
        return [s["metadata"]["namespace"] for s in facts.objects("Secret") if name_of(s) == name]
    except GateshiftError:
        return None


def server_names(facts: Facts) -> Iterator[Cause]:
    """Find a host that no TLS server of the Gateways answers for."""
    servers = [
        h.rpartition("/")[2]
        for s in facts.servers
        if (s.get("port") or {}).get("protocol") in {"HTTPS", "TLS"}
        for h in s.get("hosts") or []
    ]
    if servers and facts.host and not any(host_matches(h, facts.host) for h in servers):
        yield found(
            "tls-sni",
            f"TLS servers answer for {', '.join(sorted(set(servers)))}",
            f"add {facts.host} to the hosts of the Gateway's HTTPS server",
            host=facts.host,
        )
