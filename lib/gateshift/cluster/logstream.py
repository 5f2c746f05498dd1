"""A container's log line by line: a day of it need not fit into memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes.client.exceptions import ApiException

from gateshift.cluster.failures import explain_status, explain_transport
from gateshift.cluster.resources import Call
from gateshift.cluster.transport import Transport

__all__ = ["LogStream"]

_CHUNK = 64 * 1024


class LogStream(Transport):
    """The part of the client that reads logs as they come. Safe to use from several threads."""

    calls: set[Call]

    def log_lines(
        self,
        namespace: str,
        pod: str,
        *,
        container: str,
        seconds: float | None = None,
        previous: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """Yield the lines of a container's log, oldest first, each behind its time (RFC 3339) and a space.

        *seconds* leaves out what is older, *previous* is the container before its last restart, *limit* the
        bytes that the server sends at most. Whoever needs no more just stops: the connection is closed.
        The time limit is on each silence, not on the whole.

        Raises :class:`ApiError` when refused (400 while the container is not there yet, 404 when the pod is
        gone), :class:`ClusterError` when the connection breaks.
        """
        self.calls.add(Call("get", "", "pods", "log"))
        query = {"container": container, "timestamps": "true"}
        if seconds is not None:
            query["sinceSeconds"] = str(max(1, math.ceil(seconds)))
        if previous:
            query["previous"] = "true"
        if limit is not None:
            query["limitBytes"] = str(limit)
        subject = f"log of pod {namespace}/{pod}"
        response = self._open(
            f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log?{urlencode(query)}", subject
        )
        rest = b""
        try:
            for chunk in response.stream(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise explain_transport(error, subject, self.server, self._timeout) from None
        finally:
            response.close()  # what was not read is not waited for
        if rest:
            yield rest.decode("utf-8", "replace")

    def _open(self, path: str, subject: str) -> Any:
        """Return the answer before its body is read; a broken connection is tried once more."""
        headers: dict[str, str] = {}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        for attempt in (1, 2):
            try:
                # A pair, because one number would be the time for the whole body.
                answer = self._api.call_api(
                    "GET",
                    self.server + path,
                    header_params=dict(headers),
                    _request_timeout=(self._timeout, self._timeout),
                )
                if answer.status >= 400:
                    raise explain_status(answer.status, bytes(answer.read() or b""), subject, "GET")
            except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
                if attempt == 1 and not isinstance(error, urllib3.exceptions.TimeoutError):
                    time.sleep(0.2)
                    continue
                raise explain_transport(error, subject, self.server, self._timeout) from None
            return answer.response
        raise AssertionError("the loop returns or raises")  # pragma: no cover
