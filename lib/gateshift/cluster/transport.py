"""Requests to one API server: a time limit on each, typed errors, and repeated only what was not done.

A read is repeated once after a broken connection, a write never: it may have been done. What the server
sheds (429) it has not begun, so any request is sent again, after the pause that the answer asks for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client as kube_client
from kubernetes.client.exceptions import ApiException

from gateshift.cluster.failures import ApiError, explain_status, explain_transport
from gateshift.cluster.objects import Object
from gateshift.errors import ClusterError

__all__ = ["TIMEOUT", "Transport"]

TIMEOUT = 10.0
"""Seconds that one request may take."""

_SHED = 3
"""Times that a request is sent while the server sheds load."""
_LONGEST_PAUSE = 8.0
"""Seconds; a server that asks for more is not waited for any longer."""


class Transport:
    """The wire to one API server. Safe to use from several threads."""

    def __init__(self, api: kube_client.ApiClient, timeout: float = TIMEOUT) -> None:
        self._api = api
        self._timeout = timeout
        self._date: float | None = None
        """What the server's clock said with its last answer, Unix seconds."""

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self._api.configuration.host)

    def _optional(
        self, method: str, path: str, subject: str, body: Mapping[str, Any] | None = None
    ) -> Object | None:
        """Send a request and return its answer, None when the object does not exist (404)."""
        try:
            return self._request(method, path, body=body, subject=subject)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        subject: str,
    ) -> Object:
        """Send a request and return its answer, a JSON object; *subject* names it in errors."""
        data = self._send(method, path, query=query, body=body, content_type=content_type, subject=subject)
        try:
            answer: Object = json.loads(data)
        except ValueError:
            raise ClusterError(
                f"{subject}: the API server answered with something that is not JSON: {data[:80]!r}",
                hint="check that cluster.kubeconfig points at a Kubernetes API server and not at a proxy",
            ) from None
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        subject: str,
    ) -> bytes:
        """Send a request and return the bytes of its answer.

        Raises :class:`ApiError` (or one of its kinds) when refused, :class:`ClusterError` without an answer.
        """
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        if content_type != "application/json" and body is not None:
            body = json.dumps(body)
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        broken = shed = 0
        while True:
            try:
                response = self._api.call_api(
                    method, url, header_params=dict(headers), body=body, _request_timeout=self._timeout
                )
                data = bytes(response.read() or b"")
                self._date = _unix(response.headers.get("Date"))
            except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
                broken += 1
                late = isinstance(error, urllib3.exceptions.TimeoutError)
                if method == "GET" and broken == 1 and not late:
                    time.sleep(0.2)
                    continue
                raise explain_transport(error, subject, self.server, self._timeout) from None
            shed += response.status == 429
            if response.status == 429 and shed < _SHED:
                time.sleep(_pause(response.headers.get("Retry-After")))
                continue
            if response.status >= 400:
                raise explain_status(response.status, data, subject, method)
            return data


def _pause(asked: str | None) -> float:
    """Return the seconds to wait that ``Retry-After`` asks for; 1 when it does not."""
    try:
        return min(max(float(asked or 1.0), 0.0), _LONGEST_PAUSE)
    except ValueError:  # a date: the API server sends seconds
        return 1.0


def _unix(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
