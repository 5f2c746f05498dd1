"""One VirtualService rule as an HTTPRoute or GRPCRoute rule, where that says exactly the same.

What istiod makes of each field was read in pilot/pkg/config/kube/gateway/conversion.go (1.22 to 1.31): it
turns the rule into a VirtualService rule again, so a field is exact when what comes back is what we would
have written. Two differences are not in the fields: without backends an HTTPRoute answers 500 (APISIX and
our VirtualService 503), and without a retry policy of its own it gets the mesh's default of two more
attempts (``applyHTTPRouteDestination`` in pilot/pkg/networking/core/route/route.go). The standard channel
has no ``retry``, so :func:`retry_patch` takes the default away by an EnvoyFilter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateshift.translate.precedence import Inexact

__all__ = ["Action", "action_of", "retry_patch"]

_SERVICE = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?)\.([a-z0-9]([-a-z0-9]*[a-z0-9])?)\.svc\.cluster\.local"
)
_HOSTNAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")
_VALUE = re.compile(r"[\t\x20-\x7e]{1,4096}")
_DURATION = re.compile(r"(\d+)(ms|s)")
_WHOLE_PATH = "^/.*$"
_ITEMS = 16

_UNKNOWN = {
    "directResponse": "the gateway answers by itself, for which an HTTPRoute has no field",
    "fault": "delays and aborts are nothing that an HTTPRoute has",
    "corsPolicy": "CORS is handled by the VirtualService's policy, which the HTTPRoute's filter is not",
}


@dataclass(frozen=True, slots=True)
class Action:
    """A rule without its matches; *retries* is what an EnvoyFilter has to set (None: it does not forward)."""

    spec: Mapping[str, Any]
    retries: Mapping[str, Any] | None
    services: tuple[tuple[str, str], ...]
    """(namespace, name) of each Service that it refers to."""


def _reference(destination: Mapping[str, Any], namespace: str) -> tuple[dict[str, Any], tuple[str, str]]:
    found = _SERVICE.fullmatch(destination["host"])
    if found is None:
        raise Inexact(f"the destination {destination['host']} is no Service of Kubernetes")
    if "subset" in destination:
        raise Inexact(f"{destination['host']} is used under several policies, which takes subsets")
    name, space = found[1], found[3]
    reference: dict[str, Any] = {"name": name}
    if space != namespace:
        reference["namespace"] = space
    return {**reference, "port": destination["port"]["number"]}, (space, name)


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    if len(values) > _ITEMS:
        raise Inexact(f"a filter has room for {_ITEMS} headers, {len(values)} are wanted")
    for name, value in values.items():
        if not _HEADER.fullmatch(name) or name in ("host", ":authority"):
            raise Inexact(f"the header {name} cannot be set by an HTTPRoute")
        if not _VALUE.fullmatch(value):
            raise Inexact(f"the value of header {name} is empty, too long, or has characters of no header")
    return [{"name": name, "value": value} for name, value in values.items()]


def _modifier(operations: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for operation in ("set", "add"):
        if operations.get(operation):
            found[operation] = _pairs(operations[operation])
    if operations.get("remove"):
        if len(operations["remove"]) > _ITEMS:
            raise Inexact(f"a filter has room for {_ITEMS} headers to remove")
        found["remove"] = list(operations["remove"])
    return found


def _headers(headers: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for side, kind, field in (
        ("request", "RequestHeaderModifier", "requestHeaderModifier"),
        ("response", "ResponseHeaderModifier", "responseHeaderModifier"),
    ):
        change = _modifier(headers.get(side) or {})
        if change:
            found.append({"type": kind, field: change})
    return found


def _rewrite(rewrite: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: dict[str, Any] = {}
    if "authority" in rewrite:
        if not _HOSTNAME.fullmatch(rewrite["authority"]):
            raise Inexact(f"the Host {rewrite['authority']} is more than a hostname")
        found["hostname"] = rewrite["authority"]
    rule = rewrite.get("uriRegexRewrite")
    if rule is not None:
        if rule["match"] != _WHOLE_PATH or "\\" in rule["rewrite"] or len(rule["rewrite"]) > 1024:
            raise Inexact("a path rewritten by a regular expression is nothing that an HTTPRoute has")
        found["path"] = {"type": "ReplaceFullPath", "replaceFullPath": rule["rewrite"]}
    if "uri" in rewrite:
        raise Inexact("the way a VirtualService replaces a prefix depends on the match")
    return [{"type": "URLRewrite", "urlRewrite": found}] if found else []


def _redirect(redirect: Mapping[str, Any], *, usual_ports: bool) -> dict[str, Any]:
    if not usual_ports:
        raise Inexact("a redirect names the gateway's port when that is not 80 or 443")
    found: dict[str, Any] = {}
    if "scheme" in redirect:
        found["scheme"] = redirect["scheme"]
    if "port" in redirect:
        raise Inexact("the redirect names a port")
    if "authority" in redirect:
        if not _HOSTNAME.fullmatch(redirect["authority"]):
            raise Inexact(f"the redirect to {redirect['authority']} has more than a hostname")
        found["hostname"] = redirect["authority"]
    if "uri" in redirect:
        if "?" in redirect["uri"] or len(redirect["uri"]) > 1024:
            raise Inexact("the redirect brings its own query string")
        found["path"] = {"type": "ReplaceFullPath", "replaceFullPath": redirect["uri"]}
    return {"type": "RequestRedirect", "requestRedirect": {**found, "statusCode": redirect["redirectCode"]}}


def _timeout(text: str) -> dict[str, str]:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Inexact(f"the timeout {text} has no equal in the Gateway API")
    milliseconds = int(found[1]) * (1000 if found[2] == "s" else 1)
    seconds, rest = divmod(milliseconds, 1000)
    if seconds > 99_999 or not milliseconds:
        raise Inexact(f"the timeout {text} has more digits than the Gateway API takes")
    return {"request": (f"{seconds}s" if seconds else "") + (f"{rest}ms" if rest else "")}


def action_of(rule: Mapping[str, Any], namespace: str, *, usual_ports: bool = True) -> Action:
    """Return what *rule* does, as an HTTPRoute in *namespace* says it. Raises :class:`Inexact`.

    *usual_ports* says that the gateway listens on 80 and 443: istiod writes any other port into redirects.
    """
    for key in rule:
        if key in _UNKNOWN:
            raise Inexact(_UNKNOWN[key])
    known = {"name", "match", "redirect", "rewrite", "route", "timeout", "retries", "headers", "mirrors"}
    if set(rule) - known:
        raise Inexact(f"{min(set(rule) - known)} is nothing that an HTTPRoute has")
    filters = _headers(rule.get("headers") or {})
    if "redirect" in rule:
        filters.append(_redirect(rule["redirect"], usual_ports=usual_ports))
        return Action({"filters": filters}, None, ())
    filters += _rewrite(rule.get("rewrite") or {})
    services = []
    for mirror in rule.get("mirrors") or ():
        if float((mirror.get("percentage") or {"value": 100}).get("value", 100)) != 100:
            raise Inexact("only a share of the requests is mirrored, which older definitions do not have")
        reference, service = _reference(mirror["destination"], namespace)
        services.append(service)
        filters.append({"type": "RequestMirror", "requestMirror": {"backendRef": reference}})
    backends = []
    for part in rule["route"]:
        if set(part) - {"destination", "weight"}:
            raise Inexact("a destination changes headers of its own")
        reference, service = _reference(part["destination"], namespace)
        services.append(service)
        backends.append({**reference, "weight": part["weight"]} if "weight" in part else reference)
    if len(backends) > _ITEMS:
        raise Inexact(f"a rule has room for {_ITEMS} backends")
    spec: dict[str, Any] = {"filters": filters} if filters else {}
    spec["backendRefs"] = backends
    if "timeout" in rule:
        spec["timeouts"] = _timeout(rule["timeout"])
    return Action(spec, dict(rule.get("retries") or {}), tuple(services))


def retry_patch(retries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what to merge into the Envoy route so that it retries as the VirtualService would.

    istiod's merge cannot write a zero (pkg/proto/merge/merge.go leaves out unset values), so no attempts
    are said by a condition that is never met: ``retriable-headers``, with no header named. None where the
    mesh's default is wanted.
    """
    if not retries:
        return None
    attempts = int(retries["attempts"])
    policy: dict[str, Any] = {"retry_on": "retriable-headers"}
    if attempts > 0:
        policy = {"num_retries": attempts, "retry_on": retries["retryOn"]}
    return {"route": {"retry_policy": policy}}
