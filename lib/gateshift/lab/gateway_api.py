"""The definitions of the Gateway API for a lab: a cluster has them only when somebody put them there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from gateshift.errors import LabError
from gateshift.lab import build
from gateshift.lab.api import Api
from gateshift.lab.state import LabState

__all__ = ["definitions", "serve"]

_KINDS = ("gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants")
_MODULE = "sigs.k8s.io/gateway-api"
_GROUP = build.Group(
    "gateway-api",
    {},
    {},
    files={
        f"{kind}.yaml": (_MODULE, f"config/crd/standard/gateway.networking.k8s.io_{kind}.yaml")
        for kind in _KINDS
    },
    source="istio",  # in the version that the lab's istiod is built with
)
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_LIMIT = 60.0


def definitions() -> tuple[Path, ...]:
    """Return the files of the standard channel, from the cache or from the pinned module.

    Raises :class:`~gateshift.errors.LabError` when they are in neither.
    """
    files = build.ensure((_GROUP,)).files
    return tuple(Path(files[f"{kind}.yaml"]) for kind in _KINDS)


def serve(state: LabState) -> None:
    """Make the lab's API server serve the Gateway API; a lab that does so already is left as it is."""
    wanted = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in definitions()]
    pki = state.directory / "pki"
    with Api(state["api_url"], pki / "ca.crt", pki / "admin.crt", pki / "admin.key") as api:
        for item in wanted:
            api.apply(f"{_PATH}/{item['metadata']['name']}", item)
        deadline = time.monotonic() + _LIMIT
        while missing := [n for n in (i["metadata"]["name"] for i in wanted) if not _served(api, n)]:
            if time.monotonic() > deadline:
                raise LabError(f"the lab does not serve {', '.join(missing)} after {_LIMIT:.0f} s")
            time.sleep(0.2)


def _served(api: Api, name: str) -> bool:
    found: dict[str, Any] = api.get(f"{_PATH}/{name}") or {}
    conditions = found.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)
