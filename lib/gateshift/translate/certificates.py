"""Certificates of the old gateway: their names, and the Secret in which the new gateway looks for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateshift.apisix.model import Kind, Resource
from gateshift.istio.builders import dns_label
from gateshift.translate.job import Job
from gateshift.translate.unrendered import lost_to_a_template

__all__ = ["GATEWAY_NAME", "certificate_of", "secret_of", "serving", "snis", "tls_names"]

GATEWAY_NAME = "gateshift"
"""The Gateway of the HTTP port; each certificate has a Gateway ``gateshift-<name>`` of its own."""


def snis(spec: Mapping[str, Any]) -> list[str]:
    """Return the names of a certificate, in lower case."""
    raw = spec.get("snis") or ([spec["sni"]] if spec.get("sni") else [])
    return [str(one).lower() for one in raw]


def serving(job: Job) -> Iterator[tuple[str, Resource]]:
    """Yield each certificate that serves clients, with the name of its Gateway."""
    for ssl in job.configuration.of(Kind.SSL).values():
        if ssl.spec.get("type") == "client" or ssl.spec.get("status", 1) in (0, "0"):
            continue
        if not lost_to_a_template(job, ssl):
            yield dns_label(GATEWAY_NAME, ssl.id), ssl


def certificate_of(job: Job, gate: str) -> Resource:
    """Return the certificate of the Gateway *gate*."""
    return next(ssl for name, ssl in serving(job) if name == gate)


def secret_of(job: Job, ssl: Resource) -> str:
    """Return the name of the Secret, in the gateway's namespace, that has to hold the certificate."""
    return job.params.credentials.get(ssl.id) or dns_label("ssl", ssl.id)


def tls_names(job: Job) -> dict[str, list[str]]:
    """Return the names that each certificate's Gateway serves; a name belongs to the first that has it."""
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for gate, ssl in serving(job):
        names = [one for one in dict.fromkeys(snis(ssl.spec)) if one not in taken]
        if len(names) < len(set(snis(ssl.spec))):
            job.warn(f"ssls/{ssl.id}: another certificate already serves some of its names")
        taken.update(names)
        if names:
            found[gate] = names
    return found
