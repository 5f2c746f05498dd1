"""What the API server says when it refuses, as one clear sentence."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import urllib3

from gateshift.errors import ClusterError

__all__ = [
    "ApiError",
    "ConflictError",
    "HopelessError",
    "NotServedError",
    "explain_status",
    "explain_transport",
    "heals",
    "persist",
]

_T = TypeVar("_T")


class ApiError(ClusterError):
    """The API server answered with an error. ``status`` is the HTTP code."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ConflictError(ApiError):
    """Another manager owns fields we would change, or the object changed since it was read.

    ``owners`` maps a field path to the manager that owns it (empty for a stale resourceVersion).
    """

    def __init__(self, message: str, *, owners: dict[str, str], hint: str | None = None) -> None:
        super().__init__(message, status=409, hint=hint)
        self.owners = owners


class NotServedError(ClusterError):
    """The cluster does not know a kind: its CRD is missing or its version too old."""

    default_hint = "install Istio first (`gateshift install`), or check its version"


class HopelessError(ClusterError):
    """Waiting or repeating does not heal it: Envoy rejected it, an image is missing, a person changed it."""


_OURS_TO_CORRECT = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
"""HTTP codes that the same request gets again: rights or the request itself must change first."""


def heals(error: ClusterError) -> bool:
    """Tell whether the same call may succeed a moment later: no answer, overload, a restart, a conflict."""
    if isinstance(error, ApiError):
        return error.status not in _OURS_TO_CORRECT
    return not isinstance(error, (HopelessError, NotServedError))


def persist(act: Callable[[], _T], deadline: float) -> _T:
    """Repeat *act* with growing pauses while its failure may heal, until *deadline* (monotonic seconds)."""
    pause = 0.5
    while True:
        try:
            return act()
        except ClusterError as error:
            if not heals(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 8.0)


_WEBHOOK = re.compile(r'admission webhook "([^"]+)" denied the request:? ?(.*)', re.S)
_WEBHOOK_DOWN = re.compile(r'failed calling webhook "([^"]+)": (.*)', re.S)
_OWNER = re.compile(r'conflict with "([^"]+)"')


def explain_status(status: int, data: bytes, subject: str, method: str) -> ClusterError:
    """Turn an error answer into our error: the server's own words, whose object, and what to do."""
    body: dict[str, Any] = {}
    try:
        parsed = json.loads(data)
        body = parsed if isinstance(parsed, dict) else {}
    except ValueError:
        pass
    message = " ".join(str(body.get("message") or data[:200].decode("utf-8", "replace")).split())
    causes = body.get("details", {}).get("causes") or []
    if status == 409:
        return _conflict(message, causes, subject)
    if found := _WEBHOOK.search(message):
        return ApiError(
            f"{subject} was refused by the admission webhook {found[1]}: {found[2]}",
            status=status,
            hint="correct the object; `istioctl validate -f FILE` checks it beforehand",
        )
    if found := _WEBHOOK_DOWN.search(message):
        return ApiError(
            f"{subject}: the admission webhook {found[1]} did not answer: {found[2]}",
            status=status,
            hint="check that istiod runs and that the API server reaches it: `gateshift diagnose`",
        )
    hints = {
        401: "the credentials in the kubeconfig are missing or expired: log in again",
        403: "`gateshift preflight` lists every missing permission with a ready ClusterRole",
        422: "correct the field named",
        429: "the API server sheds load; try again in a minute",
    }
    verb = {"GET": "reading", "DELETE": "deleting"}.get(method, "writing")
    return ApiError(
        f"{verb} {subject}: {message or 'no message'} (HTTP {status})", status=status, hint=hints.get(status)
    )


def _conflict(message: str, causes: list[dict[str, Any]], subject: str) -> ConflictError:
    owners = {
        str(cause.get("field", "?")): found[1]
        for cause in causes
        if (found := _OWNER.search(str(cause.get("message", ""))))
    }
    if owners:
        named = "; ".join(f"{field} is owned by {owner}" for field, owner in sorted(owners.items()))
        return ConflictError(
            f"{subject} has fields of another manager: {named}",
            owners=owners,
            hint="agree with that owner, or have it give the field up; gateshift never forces a conflict",
        )
    return ConflictError(
        f"{subject}: {message}", owners={}, hint="somebody changed it at the same time: read again and retry"
    )


def explain_transport(error: BaseException, subject: str, server: str, timeout: float) -> ClusterError:
    """Turn a failed connection into our error."""
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # a TimeoutError to urllib3
    if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
        reason = f"no answer within {timeout:g} s"
    elif isinstance(error, urllib3.exceptions.SSLError):
        reason = f"TLS failed: {error}"
    else:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        reason = reason.split("object at 0x")[-1].partition(": ")[2] or reason
    return ClusterError(
        f"{subject}: the API server {server} is not reachable: {reason}",
        hint="check cluster.kubeconfig, cluster.context and the network path to the API server",
    )
