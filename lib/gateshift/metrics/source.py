"""A read-only client of the Prometheus HTTP API: Prometheus, Thanos, Mimir, VictoriaMetrics.

Written on httpx rather than prometheus-api-client because a verdict needs what that client drops: the
``warnings`` of a partial response (Thanos, Mimir), ``isPartial`` (VictoriaMetrics) and timeouts by request.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from gateshift.errors import MetricsError
from gateshift.params.model import MetricsParams

__all__ = ["Answer", "PrometheusSource", "Series"]

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: labels and (unix seconds, value) points; an instant answer has one point."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The newest value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave. ``partial`` says why it may not be the whole truth, empty when it is."""

    series: tuple[Series, ...]
    partial: str = ""


class PrometheusSource:
    """Queries over HTTP; nothing is ever written. Every failure is a MetricsError of our own tree."""

    def __init__(self, params: MetricsParams, *, transport: httpx.BaseTransport | None = None) -> None:
        parts = urlsplit(params.url)
        self._name = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        headers = {"Accept": "application/json", "User-Agent": "gateshift"}
        auth: httpx.Auth | None = None
        if params.bearer_token is not None:
            headers["Authorization"] = f"Bearer {params.bearer_token.get_secret_value()}"
        elif params.username is not None:
            password = params.password.get_secret_value() if params.password else ""
            auth = httpx.BasicAuth(params.username, password)
        if params.tenant is not None:
            headers["X-Scope-OrgID"] = params.tenant
        self._client = httpx.Client(
            base_url=params.url.rstrip("/"),
            headers=headers,
            auth=auth,
            timeout=params.timeout,
            verify=_tls(params) if parts.scheme == "https" else False,
            transport=transport,
            # A proxy of the environment is for the outside; a local Prometheus is reached directly.
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def instant(self, query: str, at: float) -> Answer:
        """Evaluate *query* at *at* (unix seconds)."""
        return self._ask("/api/v1/query", {"query": query, "time": f"{at:.3f}"})

    def range(self, query: str, start: float, end: float, step: float) -> Answer:
        """Evaluate *query* at every *step* seconds from *start* to *end*."""
        data = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        return self._ask("/api/v1/query_range", data)

    def version(self) -> str:
        """Return the server's version, or an empty text where the address does not tell (VictoriaMetrics)."""
        try:
            body = self._client.get("/api/v1/status/buildinfo").json()
            return str(body["data"]["version"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""

    def _ask(self, path: str, data: Mapping[str, str]) -> Answer:
        try:
            response = self._post(path, data)
        except httpx.TimeoutException:
            raise MetricsError(f"{self._name}: no answer within the timeout to {data['query']}") from None
        except httpx.HTTPError as error:
            raise MetricsError(f"{self._name}: {type(error).__name__}: {error}") from None
        try:
            body: Any = response.json()
        except ValueError:
            raise MetricsError(
                f"{self._name}: HTTP {response.status_code} without JSON; is this a Prometheus address?"
            ) from None
        if not isinstance(body, dict) or body.get("status") != "success":
            told = body.get("error", "no reason given") if isinstance(body, dict) else "not an API answer"
            raise MetricsError(f"{self._name}: HTTP {response.status_code}: {told} (query {data['query']})")
        try:
            return Answer(_series(body["data"]), _partial(body))
        except (KeyError, TypeError, ValueError, IndexError):
            raise MetricsError(f"{self._name}: the answer to {data['query']} cannot be read") from None

    def _post(self, path: str, data: Mapping[str, str]) -> httpx.Response:
        try:
            return self._client.post(path, data=data)
        except httpx.RemoteProtocolError:
            # A kept-alive connection that the server had just closed; a read may be asked again, once.
            return self._client.post(path, data=data)


def _tls(params: MetricsParams) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=params.ca_file)
        if params.cert_file:
            context.load_cert_chain(params.cert_file, params.key_file)
    except (OSError, ssl.SSLError) as error:
        raise MetricsError(
            f"metrics: the certificate files cannot be used: {error}",
            hint="check metrics.ca_file, metrics.cert_file and metrics.key_file",
        ) from None
    return context


def _series(data: Mapping[str, Any]) -> tuple[Series, ...]:
    kind, result = data["resultType"], data["result"]
    if kind == "scalar":
        return (Series({}, ((float(result[0]), float(result[1])),)),)
    if kind == "vector":
        return tuple(Series(dict(item["metric"]), (_point(item["value"]),)) for item in result)
    if kind == "matrix":
        return tuple(
            Series(dict(item["metric"]), tuple(_point(p) for p in item["values"]))
            for item in result
            if item["values"]
        )
    raise ValueError(kind)


def _point(pair: Any) -> tuple[float, float]:
    time, value = float(pair[0]), float(pair[1])
    if not math.isfinite(time):
        raise ValueError("time is not finite")
    return time, value


def _partial(body: Mapping[str, Any]) -> str:
    """Collect every sign that data may be lacking. Prometheus's ``infos`` are style advice and not one."""
    signs = [str(warning) for warning in body.get("warnings") or ()]
    data = body.get("data")
    if body.get("isPartial") or (isinstance(data, Mapping) and data.get("isPartial")):
        signs.append("isPartial")
    return "; ".join(signs)
