"""A proxy of the environment is for the outside: what listens on this machine is reached directly."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["reach_directly"]

_HERE = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def reach_directly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add this machine's own names to ``NO_PROXY`` when *environment* names a proxy.

    httpx, botocore and the Kubernetes client send even 127.0.0.1 through ``HTTP_PROXY``, so that neither
    the lab nor a port-forward would answer; Go's programs make the exception by themselves. Child processes,
    a kernel for instance, inherit it.
    """
    if not any(name.lower() in _PROXIES and value for name, value in environment.items()):
        return
    for name in ("NO_PROXY", "no_proxy"):
        known = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
        environment[name] = ",".join([*known, *(host for host in _HERE if host not in known)])
