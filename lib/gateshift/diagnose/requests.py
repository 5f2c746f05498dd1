"""The gateway's access log, in Istio's JSON or its default text format, reduced to what is asked. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["Entry", "parse_log", "percentile", "unread"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished request. Times are milliseconds, ``time`` is unix seconds (None when not written)."""

    time: float | None
    identity: str
    host: str
    path: str
    method: str
    code: int
    flags: tuple[str, ...]
    details: str
    route: str
    cluster: str
    endpoint: str
    transport_failure: str
    duration: float | None
    upstream: float | None

    def concerns(self, host: str, path: str) -> bool:
        """Say whether this is the request asked about (an empty *host* or *path* means any)."""
        return (not host or self.host == host) and (not path or self.path == path.partition("?")[0])


# Istio's default format (accessLogEncoding TEXT, accessLogFormat not set).
_TEXT = re.compile(
    r'\[(?P<start_time>[^\]]+)\] "(?P<method>\S+) (?P<path>\S+) [^"]*" (?P<response_code>\d+) '
    r"(?P<response_flags>\S+) (?P<response_code_details>\S+) \S+ "
    r'"(?P<upstream_transport_failure_reason>[^"]*)" \d+ \d+ (?P<duration>\S+) '
    r'(?P<upstream_service_time>\S+) "[^"]*" ".*" "(?P<request_id>[^"]*)" "(?P<authority>[^"]*)" '
    r'"(?P<upstream_host>[^"]*)" (?P<upstream_cluster>\S+) \S+ \S+ \S+ \S+ (?P<route_name>\S+)'
)
_PROTOCOL = re.compile(r"\bHTTP/[123](?:\.[01])?\"")


def unread(text: str) -> int:
    """Return how many lines of a log look like requests in a format that :func:`parse_log` does not know."""
    return sum(
        1
        for line in text.splitlines()
        if '"response_code"' not in line and _PROTOCOL.search(line) and not _TEXT.match(line)
    )


def parse_log(text: str) -> Iterator[Entry]:
    """Yield the requests of a log; lines that are no access-log entry are left out."""
    for line in text.splitlines():
        if line.startswith("[") and (written := _TEXT.match(line)):
            yield _entry({key: None if value == "-" else value for key, value in written.groupdict().items()})
            continue
        if '"response_code"' not in line:
            continue
        try:
            raw = json.loads(line[line.index("{") :])
        except ValueError:
            continue
        if isinstance(raw, dict):
            yield _entry(raw)


def _entry(raw: dict[str, Any]) -> Entry:
    host = str(raw.get("authority") or "")
    name, colon, port = host.rpartition(":")
    return Entry(
        time=_time(raw.get("start_time")),
        identity=str(raw.get("request_id") or ""),
        host=(name if colon and port.isdigit() else host).lower(),
        path=str(raw.get("path") or "").partition("?")[0],
        method=str(raw.get("method") or ""),
        code=_code(raw.get("response_code")),
        flags=tuple(f for f in str(raw.get("response_flags") or "-").split(",") if f != "-"),
        details=str(raw.get("response_code_details") or ""),
        route=str(raw.get("route_name") or ""),
        cluster=str(raw.get("upstream_cluster") or "").rstrip(";"),
        endpoint=str(raw.get("upstream_host") or ""),
        transport_failure=str(raw.get("upstream_transport_failure_reason") or ""),
        duration=_ms(raw.get("duration")),
        upstream=_ms(raw.get("upstream_service_time")),
    )


def _code(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0


def _ms(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _time(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def percentile(values: list[float], share: float) -> float:
    """Return the value below which *share* (0-1) of *values* lies; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
