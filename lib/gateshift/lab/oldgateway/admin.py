"""APISIX's Admin API (v3 shapes), on its own port, with ``X-API-KEY``."""

from __future__ import annotations

import hmac
import json
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from gateshift.apisix.model import Kind
from gateshift.errors import ConfigurationError
from gateshift.lab.dataplane import Handler
from gateshift.lab.oldgateway.gateway import SERVER, Gateway
from gateshift.lab.oldgateway.plugins import KNOWN
from gateshift.lab.oldgateway.store import Entry

__all__ = ["handler", "merge_patch"]

_PREFIX = "/apisix/admin"


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(data).encode(),
        content_type="application/json",
        headers={"Server": SERVER, "X-API-VERSION": "v3"},
    )


class _Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    def __init__(self, status: int, body: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def _target(path: str) -> tuple[Kind | None, list[str]]:
    """Kind and the rest of an Admin API path; no kind means the list of plugins."""
    head, _, tail = path.rstrip("/").partition(_PREFIX + "/")
    parts = tail.split("/")
    if head or not tail:
        raise _Refused(404, {"error_msg": "not found"})
    if parts == ["plugins", "list"]:
        return None, []
    try:
        kind = Kind(parts[0])
    except ValueError:
        raise _Refused(404, {"error_msg": f"unsupported resource type: {parts[0]}"}) from None
    rest = parts[1:]
    if kind is Kind.CONSUMER and rest[1:2] == ["credentials"]:
        # A credential's id is <consumer>/credentials/<name>; without a name its list is asked for.
        kind = Kind.CREDENTIAL
        rest = ["/".join(rest[:3]), *rest[3:]] if len(rest) > 2 else [rest[0] + "/"]
    return kind, rest


def _item(kind: Kind, id_: str, entry: Entry) -> dict[str, Any]:
    return {
        "key": _key(kind, id_),
        "value": entry.value,
        "createdIndex": entry.created,
        "modifiedIndex": entry.modified,
    }


def _key(kind: Kind, id_: str) -> str:
    if kind is Kind.CREDENTIAL:
        return f"/apisix/consumers/{id_}"
    return f"/apisix/{kind}/{id_}"


def merge_patch(old: Any, patch: Any) -> Any:
    """Merge as the Admin API's PATCH does: objects deeply, null removes, everything else replaces."""
    if not isinstance(old, Mapping) or not isinstance(patch, Mapping):
        return patch
    merged = dict(old)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _place(path: list[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def handler(gateway: Gateway, key: str) -> Handler:
    """Return the handler of the Admin API."""
    api = _Admin(gateway, key)
    return api.handle


class _Admin:
    def __init__(self, gateway: Gateway, key: str) -> None:
        self._gateway = gateway
        self._key = key.encode()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.get("X-API-KEY", "") or request.query.get("api_key", "")
        if not hmac.compare_digest(given.encode(), self._key):
            return _json({"description": "wrong apikey", "error_msg": "failed to check token"}, 401)
        try:
            return await self._serve(request, *_target(request.path))
        except _Refused as refused:
            return _json(refused.body, refused.status)
        except ConfigurationError as error:
            return _json({"error_msg": str(error)}, 400)
        except json.JSONDecodeError as error:
            return _json({"error_msg": f"invalid request body: {error}"}, 400)

    async def _serve(self, request: web.BaseRequest, kind: Kind | None, rest: list[str]) -> web.Response:
        if kind is None:
            return _json(sorted(KNOWN))
        store = self._gateway.store
        id_ = rest[0] if rest else ""
        if request.method == "GET" and (not id_ or id_.endswith("/")):
            return self._list(request, kind, id_)
        present = store.of(kind).get(id_)
        if present is None and request.method in {"GET", "DELETE", "PATCH"}:
            raise _Refused(404, {"message": "Key not found"})
        if request.method == "GET" and present:
            return _json(_item(kind, id_, present))
        if request.method == "DELETE":
            store.delete(kind, id_)
            self._gateway.reload()
            return _json({"key": _key(kind, id_), "deleted": "1"})
        body = json.loads(await request.read() or b"null")
        if request.method == "PATCH" and present:
            return self._write(kind, id_, merge_patch(present.value, _place(rest[1:], body)))
        if request.method not in {"PUT", "POST"}:
            raise _Refused(405, {"error_msg": "method not allowed"})
        if not isinstance(body, dict):
            raise _Refused(400, {"error_msg": "invalid configuration: object expected"})
        own = str(body.get("username" if kind is Kind.CONSUMER else "id", ""))
        return self._write(kind, id_ or own or uuid.uuid4().hex, body)

    def _list(self, request: web.BaseRequest, kind: Kind, prefix: str) -> web.Response:
        store = self._gateway.store
        if kind is Kind.CREDENTIAL:
            prefix += "credentials/"
        items = [_item(kind, i, e) for i, e in store.of(kind).items() if i.startswith(prefix)]
        total = len(items)
        size = int(request.query.get("page_size", "0") or 0)
        if size:
            page = int(request.query.get("page", "1"))
            items = items[(page - 1) * size : page * size]
        return _json({"total": total, "list": items})

    def _write(self, kind: Kind, id_: str, value: Mapping[str, Any]) -> web.Response:
        """Store and put into force, or restore and refuse: nothing half-written stays."""
        store = self._gateway.store
        old = store.of(kind).get(id_)
        entry = store.put(kind, id_, value)
        try:
            self._gateway.reload()
        except ConfigurationError:
            if old is None:
                store.delete(kind, id_)
            else:
                store.put(kind, id_, old.value)
            self._gateway.reload()
            raise
        return _json(_item(kind, id_, entry), 200 if old else 201)
