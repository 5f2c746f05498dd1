"""The new gateway from outside: each address of its load balancer, each host, each certificate, before DNS.

Requests carry the real host in Host and SNI and go to the load balancer's own addresses, so that what DNS
says does not matter yet.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from gateshift.cluster.certificates import certificate_of, covers
from gateshift.cluster.checks import Check, failed, passed, warned
from gateshift.cluster.objects import Object
from gateshift.params.model import Params
from gateshift.traffic.probes import Address, ask_all

__all__ = ["answers", "await_name", "certificates", "servers_of", "tls_hosts"]

_TIMEOUT = 5.0
_AT_ONCE = 32
_LATE = "no answer"
_PUBLISHED = 90.0
_LOOK_AGAIN = 2.0
"""Seconds for the cloud to publish the name of a load balancer that it has just made, and between looks."""
_HANDSHAKES = 3
"""Handshakes that may time out before the certificate counts as not served."""


def servers_of(gateway: Object) -> list[dict[str, Any]]:
    """Return the servers of a Gateway of either kind; the Gateway API's listeners are written as servers."""
    found: list[dict[str, Any]] = list(gateway["spec"].get("servers") or [])
    for one in gateway["spec"].get("listeners") or []:
        refs = (one.get("tls") or {}).get("certificateRefs") or []
        server: dict[str, Any] = {
            "port": {"number": one["port"], "protocol": one["protocol"]},
            "hosts": [one.get("hostname") or "*"],
        }
        if refs:
            server["tls"] = {"mode": "SIMPLE", "credentialName": refs[0]["name"]}
        found.append(server)
    return found


def tls_hosts(gateways: Iterable[Object], hosts: Sequence[str]) -> dict[str, str]:
    """Return, for each of *hosts* that a Gateway serves by TLS, the Secret it names; the most exact wins."""
    found: dict[str, tuple[int, str]] = {}
    for gateway in gateways:
        for server in servers_of(gateway):
            tls = server.get("tls") or {}
            name = tls.get("credentialName") or next(iter(tls.get("credentialNames") or []), "")
            if tls.get("mode", "SIMPLE") not in {"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"} or not name:
                continue
            for pattern in (str(h).rpartition("/")[2] for h in server.get("hosts") or []):
                exact = 0 if pattern == "*" else len(pattern)
                for host in hosts:
                    matches = pattern == "*" or covers(pattern, host)
                    if matches and exact >= found.get(host, (-1, ""))[0]:
                        found[host] = (exact, str(name))
    return {host: name for host, (_, name) in found.items()}


def await_name(address: Address, progress: Callable[[str], None] | None = None) -> None:
    """Wait until the load balancer's name resolves, as long as that takes with one just made.

    A Service has its name minutes before DNS does. One that does not resolve by then is left to the checks.
    """
    name, port = address.endpoint(tls=False)
    deadline = time.monotonic() + _PUBLISHED
    said = False
    while time.monotonic() < deadline:
        try:
            socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except OSError as error:
            if progress and not said:
                progress(f"load balancer: {name} does not resolve yet: {error.strerror or error}")
                said = True
        else:
            return
        time.sleep(_LOOK_AGAIN)


def answers(address: Address, hosts: Sequence[str], *, tls: bool) -> Iterator[Check]:
    """Ask every address of the load balancer for every host; any HTTP answer counts, a silence does not."""
    why = "an address that does not answer takes its share of the users with it"
    name, port = address.endpoint(tls=tls)
    try:
        places = sorted({str(i[4][0]) for i in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        yield failed(
            "load balancer answers",
            f"{name} does not resolve: {error.strerror or error}",
            why,
            "wait until the cloud has published the name; a new load balancer takes minutes",
        )
        return
    pairs = [(place, host) for place in places for host in hosts]
    context = address.context() if tls else None  # one for all: reading the authorities takes its time

    def ask(pair: tuple[str, str]) -> str:
        return _ask(pair[0], port, pair[1], context)

    # Side by side: an address that is silent takes the whole time limit for each host.
    told = ask_all(
        ask, pairs, at_once=_AT_ONCE, late=lambda _, said: said.startswith(_LATE), good=lambda said: not said
    )
    silent = [
        f"{place}:{port} for {host}: {said}" for (place, host), said in zip(pairs, told, strict=True) if said
    ]
    if silent:
        yield failed(
            "load balancer answers",
            "; ".join(silent[:5]),
            why,
            "check the load balancer's listeners, target health, security groups and subnets",
        )
    else:
        text = f"{len(places)} addresses of {name} answer for {len(hosts)} hosts on port {port}"
        yield passed("load balancer answers", text, why)


def _ask(place: str, port: int, host: str, context: ssl.SSLContext | None) -> str:
    bare = f"[{place}]" if ":" in place else place
    url = f"{'https' if context else 'http'}://{bare}:{port}/"
    try:
        with httpx.Client(verify=context or False, trust_env=False, timeout=_TIMEOUT) as client:
            client.get(url, headers={"host": host}, extensions={"sni_hostname": host})
    except httpx.TimeoutException:
        return f"{_LATE} within {_TIMEOUT:g} s"
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return ""


def certificates(
    params: Params, address: Address, wanted: Mapping[str, str], secrets: Mapping[str, Object]
) -> Iterator[Check]:
    """Handshake with each host as SNI: chain, name, expiry, and that it is the Secret's certificate.

    *wanted* maps a host to the Secret that its Gateway names, *secrets* a name to the Secret.
    """
    why = "a client sees this certificate in its first second"
    for host, secret_name in sorted(wanted.items()):
        name = f"certificate of {host}"
        served, problem = _served(address, host)
        if served is None:
            yield failed(
                name, problem, why, f"istioctl proxy-config secret shows whether {secret_name} is there"
            )
            continue
        days = (served.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400
        held = certificate_of(secrets[secret_name]) if secret_name in secrets else None
        text = f"{_names(served)}, {days:.0f} days left"
        if problem:
            yield failed(name, f"{problem} (served: {text})", why, "serve a chain that clients trust")
        elif held is None:
            yield failed(
                name,
                f"Secret {secret_name} is not in {params.istio.namespace}",
                why,
                "create the Secret there",
            )
        elif _print(held) != _print(served):
            yield failed(
                name,
                f"the gateway serves another certificate than Secret {secret_name} holds ({text})",
                why,
                "a stale or overlapping Gateway serves this host; see istio-traps.md 23",
            )
        elif days < params.soak.stable_for / 86400:
            yield warned(name, text, "it must outlive the stable run", f"renew Secret {secret_name}")
        else:
            yield passed(name, text, why)


def _served(address: Address, host: str) -> tuple[x509.Certificate | None, str]:
    """Return the certificate that is served for *host*, and what a verifying client says of it."""
    problem = ""
    left = _HANDSHAKES
    contexts = [_blind(), address.context()]
    while contexts:
        context = contexts[-1]
        try:
            with (
                socket.create_connection(address.endpoint(tls=True), timeout=_TIMEOUT) as raw,
                context.wrap_socket(raw, server_hostname=host) as secure,
            ):
                pem = secure.getpeercert(binary_form=True)
                return (x509.load_der_x509_certificate(pem) if pem else None), problem
        except ssl.SSLCertVerificationError as error:
            problem = error.verify_message or str(error)
            contexts.pop()
        except OSError as error:
            left -= 1
            if isinstance(error, TimeoutError) and left:
                continue
            return None, f"TLS to {':'.join(map(str, address.endpoint(tls=True)))} failed: {error}"
    return None, problem


def _blind() -> ssl.SSLContext:
    """Return a context that verifies nothing: only to say which certificate a verifying client refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _names(certificate: x509.Certificate) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return "no names"
    return ", ".join(found.value.get_values_for_type(x509.DNSName)[:3])


def _print(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())
