"""A minimal Kubernetes REST client for the lab's own parts: they need five verbs and a fast start."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from gateshift.errors import LabError

__all__ = ["Api"]

_MANAGER = "gateshift-lab"


class Api:
    """The lab's kube-apiserver, asked with a client certificate."""

    def __init__(self, url: str, ca: Path, certificate: Path, key: Path, *, timeout: float = 10.0) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(str(certificate), str(key))
        self._http = httpx.Client(base_url=url, verify=context, timeout=timeout, trust_env=False)

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Tell whether the server answers that it is ready."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> dict[str, Any] | None:
        """Return one object or list, None when there is none."""
        answer = self._send("GET", path)
        return None if answer.status_code == 404 else self._body(answer, path)

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the items of a list, none when its kind does not exist (yet)."""
        found = self.get(path)
        return list(found.get("items") or ()) if found else []

    def apply(self, path: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply *item* at its own path, taking over conflicting fields."""
        answer = self._send(
            "PATCH",
            path,
            json=dict(item),
            params={"fieldManager": _MANAGER, "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        return self._body(answer, path)

    def merge(self, path: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Merge-patch one object (or its subresource)."""
        answer = self._send(
            "PATCH", path, json=dict(patch), headers={"Content-Type": "application/merge-patch+json"}
        )
        return self._body(answer, path)

    def create(self, path: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """POST *item*; an object that exists already is left as it is."""
        answer = self._send("POST", path, json=dict(item))
        return dict(item) if answer.status_code == 409 else self._body(answer, path)

    def delete(self, path: str) -> None:
        """DELETE; an object that is not there is left so."""
        answer = self._send("DELETE", path)
        if answer.status_code != 404:
            self._body(answer, path)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise LabError(f"the lab's kube-apiserver did not answer {method} {path}: {error!r}") from None

    @staticmethod
    def _body(answer: httpx.Response, path: str) -> dict[str, Any]:
        if answer.is_error:
            raise LabError(
                f"the lab's kube-apiserver refused {path}: {answer.status_code} {answer.text[:400]}"
            )
        body = answer.json()
        return body if isinstance(body, dict) else {}
