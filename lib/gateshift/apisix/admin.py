"""APISIX's Admin API: read a whole configuration, and the few writes that traffic-split needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from gateshift.apisix.model import Configuration, Kind, Origin
from gateshift.apisix.readers.builder import Builder
from gateshift.apisix.readers.native import add_item
from gateshift.errors import ApisixError

__all__ = ["AdminClient"]

_PAGE = 100
_ATTEMPTS = 3
_PREFIX = "/apisix/admin"
_PATHS: Mapping[Kind, str] = {kind: kind.value for kind in Kind if kind is not Kind.CREDENTIAL}


class AdminClient:
    """A client for one Admin API address (``http://host:9180``). Use it in a ``with`` block.

    Reads are retried twice on connection failures and 5xx answers; writes are not, because the caller's
    journal decides what a repeated write means. The key never appears in a message.
    """

    def __init__(self, url: str, key: str, *, timeout: float = 10.0) -> None:
        base = url.rstrip("/")
        self._url = base.removesuffix(_PREFIX)
        self._client = httpx.Client(
            base_url=self._url,
            headers={"X-API-KEY": key},
            timeout=timeout,
            trust_env=False,  # an Admin API is never behind the operator's web proxy
        )
        self._server = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **query: str | int) -> Any:
        """Return the answer to GET *path* (below ``/apisix/admin``), or None on 404."""
        return self._request("GET", path, query=query)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Create or replace the resource at *path*."""
        return self._request("PUT", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change fields of the resource at *path*; None removes a field."""
        return self._request("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        """Remove the resource at *path*; None when there is none."""
        return self._request("DELETE", path)

    def version(self) -> str | None:
        """APISIX's version from its Server header, None when it hides it."""
        if not self._server:
            self.get("routes", page=1, page_size=10)
        _, slash, version = self._server.partition("/")
        return version or None if slash else None

    def read(self) -> Configuration:
        """Read every kind of resource, all pages.

        Kinds that this APISIX does not know (404 or 400) are left out. The router is not part of the Admin
        API: ``router`` stays None and the version says which default applies.
        """
        builder = Builder()
        for kind, path in _PATHS.items():
            self._read_kind(builder, kind, path)
        consumers = [r.id for r in builder.build().of(Kind.CONSUMER).values()]
        for name in consumers:
            self._read_credentials(builder, name)
        builder.version = self.version()
        return builder.build()

    def _read_kind(self, builder: Builder, kind: Kind, path: str) -> None:
        page = 1
        seen = 0
        while True:
            answer = self._request("GET", path, query={"page": page, "page_size": _PAGE}, missing=(400, 404))
            entries, total = _entries(answer)
            for entry in entries:
                key = str(entry.get("key", f"{_PREFIX}/{path}/{seen}"))
                fallback = key.rsplit(f"/{path}/", 1)[-1]
                origin = Origin(self._url, f"{path}/{fallback}")
                add_item(builder, kind, entry.get("value"), origin, fallback)
            seen += len(entries)
            if not entries or total is None or seen >= total:
                return
            page += 1

    def _read_credentials(self, builder: Builder, consumer: str) -> None:
        answer = self._request("GET", f"consumers/{consumer}/credentials", missing=(400, 404))
        for entry in _entries(answer)[0]:
            value = entry.get("value")
            if isinstance(value, Mapping):
                id_ = f"{consumer}/{str(entry.get('key', '')).rsplit('/', 1)[-1]}"
                origin = Origin(self._url, f"consumers/{id_.replace('/', '/credentials/')}")
                builder.add(Kind.CREDENTIAL, id_, dict(value), origin)

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int] | None = None,
        missing: tuple[int, ...] = (404,),
    ) -> Any:
        address = f"{_PREFIX}/{path.strip('/').removeprefix(_PREFIX.strip('/')).strip('/')}"
        what = f"{method} {self._url}{address}"
        response = self._send(method, address, what, body, query)
        self._server = response.headers.get("server", "") or self._server
        if response.status_code in missing and method in ("GET", "DELETE"):
            return None
        if response.status_code in (401, 403):
            raise ApisixError(
                f"{what}: the Admin API refused the key ({response.status_code})",
                hint="check apisix.admin_key and deployment.admin.allow_admin of APISIX",
            )
        if response.status_code >= 400:
            raise ApisixError(f"{what}: {response.status_code}: {_reason(response)}")
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError:
            raise ApisixError(
                f"{what}: the answer is not JSON", hint="is this address APISIX's Admin API?"
            ) from None

    def _send(
        self,
        method: str,
        address: str,
        what: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str | int] | None,
    ) -> httpx.Response:
        attempts = _ATTEMPTS if method == "GET" else 1
        for attempt in range(1, attempts + 1):
            try:
                response = self._client.request(
                    method, address, json=body, params=dict(query) if query else None
                )
            except httpx.HTTPError as error:
                if attempt == attempts:
                    raise ApisixError(f"{what}: no answer: {type(error).__name__}: {error}") from None
            else:
                if response.status_code < 500 or attempt == attempts:
                    return response
            time.sleep(0.2 * attempt)
        raise ApisixError(f"{what}: no answer")


def _entries(answer: Any) -> tuple[list[Mapping[str, Any]], int | None]:
    """Return the entries of a list answer of v3 or v2, and how many there are in all when it says so."""
    if not isinstance(answer, Mapping):
        return [], None
    if isinstance(answer.get("list"), list):
        found = answer.get("total")
        total = found if isinstance(found, int) else None
        return [e for e in answer["list"] if isinstance(e, Mapping)], total if isinstance(
            total, int
        ) else None
    node = answer.get("node")
    nodes = node.get("nodes") if isinstance(node, Mapping) else None
    if isinstance(nodes, list):
        return [e for e in nodes if isinstance(e, Mapping)], None
    if isinstance(answer.get("value"), Mapping):
        return [answer], None
    return [], None


def _reason(response: httpx.Response) -> str:
    try:
        data = response.json()
    except ValueError:
        return response.text[:200]
    if isinstance(data, Mapping):
        return str(data.get("error_msg") or data.get("message") or data)[:400]
    return str(data)[:400]
